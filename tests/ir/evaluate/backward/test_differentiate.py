"""Gradients of decoders of many families are those of torch's autograd; what has no rule is named."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from frontends.checkpoint.load import load
from ir.base.diag import LadingError
from ir.evaluate.backward.differentiate import Backward
from ir.evaluate.backward.shapes import SHAPE_RULES
from ir.evaluate.token_feeds import window_feeds
from ir.graph.graph import Graph
from passes.framework.manager import PassManager
from passes.precision.planned_weights import weights_of
from tests.support.families.cases import CASES
from tests.support.families.checkpoints import kept, read_model

FAMILIES = {
    "qwen2": "product of two branches, biases",
    "qwen3": "norms of heads",
    "gemma2": "soft caps before softmax and behind the logits matrix, norms behind attention",
    "gpt2": "layer norms, biases, gelu",
    "stablelm": "a part of the head turned",
    "olmo2": "norms of whole rows, norms behind branches",
}
"""Cases, with what of the rules they are there for."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("families")


def gradients_of(graph, windows, directions, limit):
    """Sum over windows of ``<direction, logits>``, differentiated by each layer's matrix [in, out]; and the logits."""
    names = [weight.name for weight in weights_of(graph) if weight.role == "layer"]
    backward = Backward(graph, names, graph.outputs[0], memory_limit=limit)
    found = {name: np.zeros(graph.value(name).sizes, np.float32) for name in names}
    finals = []

    def loss(values):
        finals.extend(values)
        return directions

    def receive(name, features, gradients):
        found[name] += features.T @ gradients

    states = backward.start(window_feeds(graph, windows))
    backward.run(states, lambda name: graph.value(name).tensor.load(), loss, receive)
    return found, finals, backward


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_those_of_autograd(name, folder):
    import torch

    place, _ = kept(folder, name, tokenizer=False)
    graph = load(place)
    PassManager("infer-types").run(graph)
    rng = np.random.default_rng(5)
    windows = [rng.integers(3, 300, length) for length in (21, 34)]
    directions = [rng.standard_normal((1, len(item), 320)).astype(np.float32) for item in windows]
    found, finals, backward = gradients_of(graph, windows, directions, 1 << 14)
    assert len(backward.parts) > 4

    model = read_model(place, CASES[name])
    total = torch.zeros(())
    for window, direction, final in zip(windows, directions, finals, strict=True):
        logits = model(input_ids=torch.from_numpy(window)[None], use_cache=False).logits
        assert np.abs(logits.detach().numpy() - final).max() < 1e-4 * max(1, np.abs(final).max())
        total = total + (logits * torch.from_numpy(direction)).sum()
    total.backward()
    compared = 0
    for key, parameter in model.named_parameters():
        if key in found and parameter.grad is not None:
            grad = parameter.grad.numpy()
            wanted = grad if grad.shape == found[key].shape and name == "gpt2" else grad.T
            assert np.abs(found[key] - wanted).max() < 2e-4 * np.abs(wanted).max(), key
            compared += 1
    assert compared >= 6


def test_parts_do_not_change_gradients(folder):
    place, _ = kept(folder, "qwen2", tokenizer=False)
    graph = load(place)
    PassManager("infer-types").run(graph)
    windows = [np.arange(3, 30)]
    directions = [np.random.default_rng(1).standard_normal((1, 27, 320)).astype(np.float32)]
    one, _, whole = gradients_of(graph, windows, directions, 1 << 30)
    other, _, parted = gradients_of(graph, windows, directions, 1 << 12)
    assert len(whole.parts) == 1 and len(parted.parts) > 10
    for name, gradient in one.items():
        assert np.array_equal(gradient, other[name])


@pytest.mark.parametrize(
    ("start", "stop", "step"),
    [(1, 3, 1), (-9, 99, 2), (9, -99, -1), (-1, -9, -2), (-9, -99, -1), (-9, 0, -1), (2, 0, -1)],
)
def test_slices_are_those_of_onnxruntime_whatever_their_ends(start, stop, step):
    array = np.arange(20, dtype=np.float32).reshape(4, 5)
    inputs = [array, *(np.array([number]) for number in (start, stop, 1, step))]
    graph = Graph()
    applied = SHAPE_RULES["Slice"](graph.add("Slice", [graph.add_input("x", None)]), inputs)
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Slice", list("xseat"), ["y"])],
            "slice",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, array.shape)],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
            [onnx.numpy_helper.from_array(part, name) for name, part in zip("seat", inputs[1:], strict=True)],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    (wanted,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": array})
    assert np.array_equal(applied.output, wanted)
    (gradient, *_) = applied.pull(np.ones_like(wanted))
    assert np.array_equal(gradient, np.isin(array, wanted))


def test_an_operator_without_a_rule_is_named(folder):
    place, _ = kept(folder, "qwen3_next", tokenizer=False)
    graph = load(place)
    PassManager("infer-types").run(graph)
    with pytest.raises(LadingError) as caught:
        gradients_of(graph, [np.arange(3, 9)], [], 1 << 20)
    assert caught.value.code == "Q493"
    assert "lading.GatedDeltaRule" in str(caught.value)
