"""Attention of onnxruntime's transformer operators computes the same in standard operators."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from frontends.onnx.load import load
from ir.evaluate.evaluator import evaluate
from tests.support.contrib.one_node import contrib, expanded, model_of, same

RNG = np.random.default_rng(7)
CLOSE = 2e-5


def floats(*shape: int, dtype=np.float32) -> np.ndarray:
    return RNG.normal(size=shape).astype(dtype)


def tables(width: int, length: int = 40) -> dict[str, np.ndarray]:
    angles = np.arange(length)[:, None] * (100.0 ** -(np.arange(width // 2) / (width // 2)))
    return {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}


GROUPED = (
    "q k v past_k past_v seqlens total cos sin positions bias sink k_scale v_scale q_gain k_gain query_lengths".split()
)


class Grouped:
    """A GroupQueryAttention and what it is fed.

    Args:
        new: tokens that come now.
        before: tokens of the history; None for no history at all.
        lengths: real tokens of each sequence where a prompt is padded at the right.
    """

    def __init__(self, heads=4, kept=2, size=16, new=5, before=None, lengths=None, batch=1, packed=False, **attrs):
        self.attrs = {"num_heads": heads, "kv_num_heads": kept, **attrs}
        self.feeds: dict[str, np.ndarray] = {}
        self.constants: dict[str, np.ndarray] = {}
        if packed:
            self.feeds["q"] = floats(batch, new, (heads + 2 * kept) * size)
        else:
            self.feeds["q"] = floats(batch, new, heads * size)
            self.feeds |= {name: floats(batch, new, kept * size) for name in "kv"}
        if before is not None:
            self.feeds |= {name: floats(batch, kept, before, size) for name in ("past_k", "past_v")}
        total = new + (before or 0)
        self.feeds["seqlens"] = np.array([size - 1 for size in lengths or [total] * batch], np.int32)
        self.feeds["total"] = np.array(total, np.int32)
        if attrs.get("do_rotary"):
            self.constants |= tables(size)
        self.rows = None
        if lengths:
            self.rows = {"y": np.array([[place < real for place in range(new)] for real in lengths])}

    def node(self, outputs=("y", "pk", "pv")):
        names = [name if name in self.feeds or name in self.constants else "" for name in GROUPED]
        while not names[-1]:
            names.pop()
        return contrib("GroupQueryAttention", names, list(outputs), **self.attrs)

    def check(self, **more):
        return same(self.node(), self.feeds, self.constants, tolerance=CLOSE, rows=self.rows, **{"opset": 22, **more})


@pytest.mark.parametrize("before", [None, 0, 7])
@pytest.mark.parametrize("rotary", [{}, {"do_rotary": 1}, {"do_rotary": 1, "rotary_interleaved": 1}])
@pytest.mark.parametrize("packed", [False, True])
def test_grouped_attention(before, rotary, packed):
    graph = Grouped(before=before, packed=packed, **rotary).check()
    assert [node.op for node in graph.nodes].count("Attention") == 1


@pytest.mark.parametrize("kept", [1, 2, 4])
def test_heads_that_share_keys(kept):
    Grouped(kept=kept, before=3, do_rotary=1).check()


def test_one_token_after_a_history():
    Grouped(new=1, before=9, do_rotary=1).check()


@pytest.mark.parametrize("scale", [0.5, 0.125])
def test_a_scale(scale):
    Grouped(before=3, scale=scale).check()


@pytest.mark.parametrize("window", [1, 3, 4, 30])
@pytest.mark.parametrize("before", [None, 6])
def test_a_window(window, before):
    Grouped(new=8, before=before, local_window_size=window, do_rotary=1).check()


@pytest.mark.parametrize("before", [None, 6])
@pytest.mark.parametrize("window", [-1, 3])
def test_a_cap(before, window):
    Grouped(before=before, softcap=0.7, local_window_size=window).check()


def test_batches_of_one_length():
    Grouped(batch=3, new=1, before=4, do_rotary=1).check()


@pytest.mark.parametrize("history", [None, 0])
def test_prompts_padded_at_the_right(history):
    Grouped(batch=3, new=6, before=history, lengths=[6, 2, 4], do_rotary=1).check()


def test_only_a_part_of_each_head_is_turned():
    case = Grouped(size=32, before=4, do_rotary=1)
    case.constants = tables(16)
    case.check()


def test_positions_that_are_given():
    case = Grouped(new=4, before=3, do_rotary=1)
    case.feeds["positions"] = np.array([[3, 4, 5, 6]]) + 2
    case.check()


def test_a_bias_of_the_scores():
    case = Grouped(new=4, before=3)
    case.feeds["bias"] = floats(1, 4, 4, 7)
    case.check()


@pytest.mark.parametrize("before", [None, 3])
def test_a_smooth_softmax(before):
    Grouped(before=before, smooth_softmax=1).check()


def test_a_sink_of_each_head():
    case = Grouped(before=3, local_window_size=3)
    case.constants["sink"] = floats(4)
    case.check()


def test_norms_of_each_head():
    """onnxruntime has them on other devices alone; here it computes them as norms in front of the operator."""
    case = Grouped(before=3, do_rotary=1, qk_norm_epsilon=0.01)
    gains = {"q_gain": floats(16), "k_gain": floats(16)}
    case.constants |= gains
    graph, report = expanded(model_of([case.node()], case.feeds, case.constants, ["y", "pk"], 22))
    assert not report.all_diagnostics()
    nodes = []
    for name, heads in (("q", 4), ("k", 2)):
        nodes += [
            helper.make_node("Reshape", [name, f"{name}_apart"], [f"{name}_heads"]),
            helper.make_node(
                "SimplifiedLayerNormalization", [f"{name}_heads", f"{name}_gain"], [f"{name}_even"], epsilon=0.01
            ),
            helper.make_node("Reshape", [f"{name}_even", "joined"], [f"{name}_normed"]),
        ]
        case.constants[f"{name}_apart"] = np.array([0, 0, heads, 16])
    plain = case.node()
    plain.input[0], plain.input[1] = "q_normed", "k_normed"
    del plain.input[14:]
    while not plain.input[-1]:
        plain.input.pop()
    case.constants["joined"] = np.array([0, 0, -1])
    wanted = evaluate(load(model_of([*nodes, plain], case.feeds, case.constants, ["y", "pk"], 22)), case.feeds)
    found = evaluate(graph, case.feeds)
    for name in ("y", "pk"):
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-5)


def test_sizes_that_are_open():
    case = Grouped(before=3, do_rotary=1)
    case.check(shapes={
        "q": ["b", "n", 64], "k": ["b", "n", 32], "v": ["b", "n", 32],
        "past_k": ["b", 2, "p", 16], "past_v": ["b", 2, "p", 16], "seqlens": ["b"],
    })  # fmt: skip


def test_half_precision():
    case = Grouped(before=3, do_rotary=1)
    for store in (case.feeds, case.constants):
        store |= {name: array.astype(np.float16) for name, array in store.items() if array.dtype == np.float32}
    same(case.node(), case.feeds, case.constants, tolerance=5e-3, opset=22)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"k_scale": np.ones(1, np.float32)}, "its history is quantized"),
        ({"query_lengths": np.ones(1, np.int32)}, "its queries have lengths of their own"),
    ],
)
def test_what_stays(change, reason):
    case = Grouped(before=3)
    case.constants |= change
    _, report = expanded(model_of([case.node()], case.feeds, case.constants, ["y"], 22))
    (warning,) = report.all_diagnostics()
    assert warning.code == "P325" and reason in warning.message


# ---- other attention ----

MULTI = "q k v bias padding scores past_k past_v".split()


def multi(outputs=("y", "pk", "pv"), present=(), **attrs):
    names = [name if name in ("q", "k", "v", *present) else "" for name in MULTI]
    while not names[-1]:
        names.pop()
    return contrib("MultiHeadAttention", names, list(outputs), num_heads=4, **attrs)


def operands(keys: int = 5) -> dict[str, np.ndarray]:
    return {"q": floats(2, 5, 32), "k": floats(2, keys, 32), "v": floats(2, keys, 32)}


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("bias", [False, True])
def test_multi_head_attention(causal, scale, bias):
    attrs = {} if scale is None else {"scale": scale}
    constants = {"bias": floats(96)} if bias else {}
    same(multi(present=constants, unidirectional=causal, **attrs), operands(), constants, tolerance=CLOSE)


@pytest.mark.parametrize("causal", [0, 1])
def test_multi_head_attention_with_a_history(causal):
    feeds = operands() | {"past_k": floats(2, 4, 3, 8), "past_v": floats(2, 4, 3, 8)}
    same(multi(present=feeds, unidirectional=causal), feeds, tolerance=CLOSE)


@pytest.mark.parametrize("shape", [(1, 1, 5, 5), (2, 1, 5, 5), (2, 4, 5, 5)])
def test_multi_head_attention_with_added_scores(shape):
    feeds = operands() | {"scores": floats(*shape)}
    same(multi(present=feeds), feeds, tolerance=CLOSE)


def test_multi_head_attention_with_padding():
    feeds = operands(7) | {"padding": np.array([[1] * 7, [1] * 4 + [0] * 3], np.int32)}
    same(multi(present=feeds), feeds, tolerance=CLOSE)
    same(multi(present=feeds, mask_filter_value=-3.0), feeds, tolerance=CLOSE)


def test_multi_head_attention_of_given_heads():
    feeds = {"q": floats(2, 5, 32), "k": floats(2, 4, 7, 8), "v": floats(2, 4, 7, 8)}
    same(multi(["y"]), feeds, tolerance=CLOSE)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize("mask", [None, (2, 0), (2, 5, 0)], ids=["none", "keys", "queries"])
def test_attention_with_its_weights(causal, past, mask):
    feeds = {"x": floats(2, 5, 24)}
    names = ["x", "w", "b", "mask" if mask else "", "past" if past else ""]
    if past:
        feeds["past"] = floats(2, 2, 4, 3, 8)
    if mask:
        keep = RNG.random((*mask[:-1], 8 if past else 5)) < 0.7
        keep[..., 0] = True
        feeds["mask"] = keep.astype(np.int32)
    while not names[-1]:
        names.pop()
    node = contrib("Attention", names, ["y", "p"] if past else ["y"], num_heads=4, unidirectional=causal)
    same(node, feeds, {"w": floats(24, 96) / 5, "b": floats(96)}, tolerance=CLOSE)
