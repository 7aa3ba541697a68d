"""Operators of an exporter's own mean what its layers compute, as definitions and as what they are expanded to."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from frontends.onnx.load import load
from ir.base.diag import LadingError
from ir.evaluate.evaluator import evaluate
from ir.infer.engine import infer_types
from tests.support.contrib.one_node import expanded, model_of

RNG = np.random.default_rng(13)
LENGTH, HEADS, KEPT, SIZE = 6, 4, 2, 8


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """[1, S, heads, D] operands, in float64."""
    k, v = (np.repeat(x[0], q.shape[2] // x.shape[2], axis=1) for x in (k, v))
    scores = np.einsum("shd,thd->hst", q[0], k) / np.sqrt(q.shape[3]) + mask[0, 0]
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    scores /= scores.sum(-1, keepdims=True)
    return np.einsum("hst,thd->shd", scores, v).reshape(1, q.shape[1], -1)


def turned(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, gain: np.ndarray | None, epsilon: float) -> np.ndarray:
    """[1, S, heads, D] normalized where there are gains, and its first channels turned, halves against halves."""
    x = x.astype(np.float64)
    if gain is not None:
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * gain
    width = cos.shape[-1]
    part, rest = x[..., :width], x[..., width:]
    swapped = np.concatenate([-part[..., width // 2 :], part[..., : width // 2]], -1)
    return np.concatenate([part * cos + swapped * sin, rest], -1)


def exporter(op: str, inputs: list[str], outputs: list[str], **attrs: object):
    made = helper.make_node(op, inputs, outputs, domain="LlmExporter", **attrs)
    made.attribute.append(helper.make_attribute("name", op))
    return made


def run(node, feeds: dict, constants: dict, opset: int) -> list[dict[str, np.ndarray]]:
    """Results of the operator by its definition in the model's opset, and of what it is expanded to."""
    model = model_of([node], feeds, constants, list(node.output), opset)
    defined = load(model)
    assert not infer_types(defined)
    made, report = expanded(model)
    assert not report.all_diagnostics() and not any(one.domain for one in made.nodes)
    return [evaluate(defined, feeds), evaluate(made, feeds)]


CAUSAL = np.where(np.tril(np.ones((LENGTH, LENGTH))) > 0, 0, np.finfo(np.float32).min).astype(np.float32)[None, None]


@pytest.mark.parametrize("opset", [13, 15, 18, 23])
@pytest.mark.parametrize("kept", [1, 2, 4])
def test_attention(opset, kept):
    feeds = {"q": floats(1, LENGTH, HEADS, SIZE)} | {name: floats(1, LENGTH, kept, SIZE) for name in "kv"}
    node = exporter("FusedAttention", ["q", "k", "v", "m"], ["y"], output_dim=HEADS * SIZE, kv_cache=1, layer_index=3)
    wanted = attention(feeds["q"], feeds["k"], feeds["v"], CAUSAL)
    for found in run(node, feeds, {"m": CAUSAL}, opset):
        np.testing.assert_allclose(found["y"], wanted, atol=2e-6)


@pytest.mark.parametrize("opset", [15, 23])
@pytest.mark.parametrize("width", [SIZE, 4])
@pytest.mark.parametrize("normed", [(), ("q",), ("q", "k")])
def test_rotation(opset, width, normed):
    angles = np.arange(LENGTH)[:, None] * (100.0 ** -(np.arange(width // 2) / (width // 2)))
    angles = np.concatenate([angles, angles], -1)[None, :, None, :]
    constants = {"c": np.cos(angles).astype(np.float32), "s": np.sin(angles).astype(np.float32)}
    gains = {name: floats(SIZE) if name in normed else None for name in "qk"}
    constants |= {f"{name}g": np.zeros(0, np.float32) if gain is None else gain for name, gain in gains.items()}
    feeds = {"q": floats(1, LENGTH, HEADS, SIZE), "k": floats(1, LENGTH, KEPT, SIZE)}
    node = exporter(
        "FusedRoPE",
        ["q", "k", "c", "s", "qg", "kg"],
        ["qt", "kt"],
        rope_cut_head_dim=width,
        num_head=HEADS,
        kv_num_head=KEPT,
        head_dim=SIZE,
        q_norm=int("q" in normed),
        k_norm=int("k" in normed),
        q_norm_eps=0.05,
        k_norm_eps=0.1,
    )
    for found in run(node, feeds, constants, opset):
        for name, epsilon in (("q", 0.05), ("k", 0.1)):
            wanted = turned(feeds[name], constants["c"], constants["s"], gains[name], epsilon)
            np.testing.assert_allclose(found[f"{name}t"], wanted, atol=2e-6)


def test_keys_of_another_layer_stay():
    feeds = {name: floats(1, LENGTH, HEADS, SIZE) for name in "qkv"}
    node = exporter("FusedAttention", ["q", "k", "v", "m"], ["y"], output_dim=32, kv_shared_layer_index=0)
    _, report = expanded(model_of([node], feeds, {"m": CAUSAL}, ["y"], 15))
    (warning,) = report.all_diagnostics()
    assert warning.code == "P325" and "another layer" in warning.message


def test_a_layer_whose_weights_are_elsewhere_has_types_and_no_numbers():
    node = exporter("FakeLinear", ["x"], ["y"], in_features=8, out_features=3, has_bias=0)
    feeds = {"x": floats(2, 8)}
    graph, report = expanded(model_of([node], feeds, {}, ["y"], 15))
    (warning,) = report.all_diagnostics()
    assert warning.code == "P325" and "weights of FakeLinear are in another file" in warning.message
    assert str(graph.outputs[0].type) == "f32[2, 3]"
    with pytest.raises(LadingError) as caught:
        evaluate(graph, feeds)
    assert caught.value.code == "T220"
