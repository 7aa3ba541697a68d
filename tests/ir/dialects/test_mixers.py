"""The gated delta rule and attention with sinks compute what the functions of transformers' models compute."""

from __future__ import annotations

import types

import numpy as np
import pytest

from ir.base.types import F32, I64, Dim, TensorType
from ir.evaluate.evaluator import evaluate
from ir.graph.compare import differences
from ir.graph.graph import OPSET, Graph, Value
from ir.infer.engine import infer_node, infer_types
from ir.infer.rule_table import TypeMismatch
from ir.tensor.inline import InlineTensor
from ir.text.parser import parse
from ir.text.printer import print_graph

torch = pytest.importorskip("torch")


def graph_of(op: str, shapes: dict[str, tuple[int, ...]], windows: tuple[int, ...] = (), **attrs) -> Graph:
    """A graph of one node whose inputs have a symbolic second axis where the shape says -1."""
    graph = Graph("one", {"": OPSET, "lading": 1})
    seq = graph.add_dim(Dim("seq", 1, None))
    inputs: list[Value] = [
        graph.add_input(name, TensorType(F32, tuple(seq if size == -1 else size for size in shape)))
        for name, shape in shapes.items()
    ]
    for window in windows:
        positions = graph.add_input("positions", TensorType(I64, (1, seq)))
        inputs.append(graph.add("lading.SlidingWindowMask", [positions], {"window": window}).output)
    graph.set_outputs([graph.add(f"lading.{op}", inputs, attrs, outputs=["y"]).output])
    infer_types(graph)
    return graph


# ---- gated delta rule ----

SIZES = [(2, 4, 8, 6, 4), (1, 1, 4, 4, 2), (2, 2, 5, 7, 1), (3, 9, 4, 8, 3)]
"""Heads of keys and of values, widths of both, width of the convolution."""


def delta_graph(key_heads: int, heads: int, key_size: int, size: int, kernel: int) -> Graph:
    width = 2 * key_heads * key_size + heads * size
    shapes = {"qkv": (1, -1, width), "decay": (1, -1, heads), "beta": (1, -1, heads), "conv": (width, 1, kernel)}
    return graph_of(
        "GatedDeltaRule", shapes, num_k_heads=key_heads, num_v_heads=heads, head_k_dim=key_size, head_v_dim=size
    )


def delta_feeds(graph: Graph, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    found = {
        value.name: random.normal(0, 1, [size if isinstance(size, int) else length for size in value.dims]).astype(
            np.float32
        )
        for value in graph.inputs
    }
    found["decay"] = -np.abs(found["decay"])
    found["beta"] = 1 / (1 + np.exp(-found["beta"]))
    return found


def delta_reference(feeds: dict[str, np.ndarray], sizes: tuple[int, ...]) -> np.ndarray:
    from transformers.models.qwen3_next import modeling_qwen3_next as reference

    key_heads, heads, key_size, size, kernel = sizes
    qkv, decay, beta, conv = (torch.from_numpy(feeds[name]) for name in ("qkv", "decay", "beta", "conv"))
    padded = torch.nn.functional.pad(qkv.transpose(1, 2), (kernel - 1, 0))
    mixed = torch.nn.functional.silu(torch.nn.functional.conv1d(padded, conv, groups=conv.shape[0])).transpose(1, 2)
    q, k, v = torch.split(mixed, [key_heads * key_size, key_heads * key_size, heads * size], dim=-1)
    q, k, v = (x.reshape(1, x.shape[1], -1, width) for x, width in ((q, key_size), (k, key_size), (v, size)))
    q, k = (x.repeat_interleave(heads // key_heads, dim=2) for x in (q, k))
    y, _ = reference.torch_recurrent_gated_delta_rule(q, k, v, decay, beta, use_qk_l2norm_in_kernel=True)
    return y.reshape(1, y.shape[1], -1).numpy()


@pytest.mark.parametrize("length", [1, 2, 11])
@pytest.mark.parametrize("sizes", SIZES)
def test_delta_rule_is_that_of_the_reference(sizes, length):
    graph = delta_graph(*sizes)
    feeds = delta_feeds(graph, length)
    (found,) = evaluate(graph, feeds).values()
    want = delta_reference(feeds, sizes)
    assert found.shape == want.shape and np.abs(found - want).max() < 3e-6 * max(np.abs(want).max(), 1)


def test_delta_rule_looks_at_the_past_alone():
    graph = delta_graph(*SIZES[0])
    feeds = delta_feeds(graph, 9)
    (before,) = evaluate(graph, feeds).values()
    for name in ("qkv", "decay", "beta"):
        feeds[name][:, 5:] += 1
    (after,) = evaluate(graph, feeds).values()
    assert np.array_equal(before[:, :5], after[:, :5]) and np.abs(before[:, 5:] - after[:, 5:]).max() > 0.01


def test_delta_rule_has_a_type_and_a_text_form():
    graph = delta_graph(*SIZES[0])
    assert str(graph.outputs[0].type) == "f32[1, seq, 24]"
    assert differences(graph, parse(print_graph(graph))) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"qkv": (1, 3, 55)}, "55 channels where the heads make 56"),
        ({"decay": (1, 3, 2)}, "2 decays where the heads make 4"),
        ({"beta": (3, 4)}, "betas have three axes"),
        ({"conv": (8, 1, 4)}, "8 rows of the convolution where the heads make 56"),
        ({"num_v_heads": 3}, "3 heads cannot share 2 heads of keys evenly"),
        ({"head_k_dim": 0}, "head_k_dim is 0"),
    ],
)
def test_delta_rules_that_do_not_fit_are_refused(changed, message):
    attrs = {"num_k_heads": 2, "num_v_heads": 4, "head_k_dim": 8, "head_v_dim": 6}
    shapes = {"qkv": (1, 3, 56), "decay": (1, 3, 4), "beta": (1, 3, 4), "conv": (56, 1, 4)}
    graph = Graph("one", {"": OPSET, "lading": 1})
    for table in (attrs, shapes):
        table.update({name: value for name, value in changed.items() if name in table})
    inputs = [graph.add_input(name, TensorType(F32, shape)) for name, shape in shapes.items()]
    node = graph.add("lading.GatedDeltaRule", inputs, attrs)
    with pytest.raises(TypeMismatch, match=message):
        infer_node(node)


# ---- sinks ----


def sink_graph(heads: int, kept: int, size: int, value_size: int, window: int = 0, **attrs) -> Graph:
    shapes = {"q": (1, -1, heads * size), "k": (1, -1, kept * size), "v": (1, -1, kept * value_size), "sinks": (heads,)}
    attrs = {"q_num_heads": heads, "kv_num_heads": kept, "is_causal": int(not window), **attrs}
    return graph_of("SinkAttention", shapes, (window,) if window else (), **attrs)


def sink_feeds(graph: Graph, length: int) -> dict[str, np.ndarray]:
    random, found = np.random.default_rng(1), {}
    for value in graph.inputs:
        shape = [size if isinstance(size, int) else length for size in value.dims]
        found[value.name] = (
            np.arange(length, dtype=np.int64)[None] if value.dtype == I64
            else random.normal(0, 2, shape).astype(np.float32)
        )  # fmt: skip
    return found


def sink_reference(feeds: dict[str, np.ndarray], heads: int, kept: int, window: int, scale: float) -> np.ndarray:
    from transformers.models.gpt_oss import modeling_gpt_oss as reference

    def split(name: str, count: int):
        x = torch.from_numpy(feeds[name])
        return x.reshape(1, x.shape[1], count, -1).transpose(1, 2)

    length = feeds["q"].shape[1]
    gap = np.arange(length)[:, None] - np.arange(length)
    seen = (gap >= 0) & (gap < (window or length + 1))
    mask = torch.from_numpy(np.where(seen, 0, -np.inf).astype(np.float32))[None, None]
    module = types.SimpleNamespace(
        num_key_value_groups=heads // kept, sinks=torch.from_numpy(feeds["sinks"]), training=False
    )
    y, _ = reference.eager_attention_forward(module, split("q", heads), split("k", kept), split("v", kept), mask, scale)
    return y.reshape(1, length, -1).numpy()


@pytest.mark.parametrize("length", [1, 12])
@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize(("heads", "kept", "value_size", "scale"), [(4, 2, 8, None), (3, 3, 5, 0.7), (6, 1, 8, None)])
def test_sinks_are_those_of_the_reference(heads, kept, value_size, scale, window, length):
    graph = sink_graph(heads, kept, 8, value_size, window, **({"scale": scale} if scale else {}))
    feeds = sink_feeds(graph, length)
    (found,) = evaluate(graph, feeds).values()
    want = sink_reference(feeds, heads, kept, window, scale or 8**-0.5)
    assert found.shape == want.shape and np.abs(found - want).max() < 3e-6 * np.abs(want).max()


def test_sinks_have_a_type_and_a_text_form():
    graph = sink_graph(4, 2, 8, 6)
    assert str(graph.outputs[0].type) == "f32[1, seq, 24]"
    assert differences(graph, parse(print_graph(graph))) == []


def test_sinks_that_do_not_fit_are_refused():
    with pytest.raises(TypeMismatch, match="not one for each of 4 heads"):
        graph = Graph("one", {"": OPSET, "lading": 1})
        inputs = [graph.add_input(name, TensorType(F32, (1, 3, 32))) for name in "qkv"]
        sinks = graph.add_const("sinks", InlineTensor(np.zeros(3, np.float32)))
        infer_node(graph.add("lading.SinkAttention", [*inputs, sinks], {"q_num_heads": 4, "kv_num_heads": 4}))
