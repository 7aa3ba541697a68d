"""Lists that a loop appends to, as scripted programs of exporters keep them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from frontends.onnx.load import load as load_onnx
from ir.evaluate.evaluator import evaluate
from passes.framework.instruments import VerifyEach
from passes.framework.manager import PassManager

F32, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def value(name: str, shape, kind: int = F32) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def listed(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_sequence_value_info(name, F32, None)


def model(
    behind: list[onnx.NodeProto], outputs: list[str], insert=("list", "row2"), before=(), given="row"
) -> onnx.ModelProto:
    """A state, a list of it, and what each step gives; the rows of the input are gone through."""
    body = helper.make_graph(
        [
            helper.make_node("Gather", ["x", "i"], ["row"], axis=0),
            helper.make_node("Add", ["s", "row"], ["s2"]),
            helper.make_node("Tanh", ["s2"], ["row2"]),
            helper.make_node("SequenceInsert", list(insert), ["list2"]),
            helper.make_node("Identity", ["go"], ["go2"]),
            *before,
            helper.make_node("Cast", [given], ["given"], to=F32),
        ],
        "body",
        [value("i", [], I64), value("go", [], BOOL), listed("list"), value("s", ["b", 3])],
        [value("go2", [], BOOL), listed("list2"), value("s2", ["b", 3]), value("given", None)],
    )
    nodes = [
        helper.make_node("SequenceEmpty", [], ["empty"]),
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "first"], ["steps"], axis=0),
        helper.make_node("Gather", ["x", "first"], ["begin"], axis=0),
        helper.make_node("Loop", ["steps", "", "empty", "begin"], ["all", "last", "scan"], body=body, name="loop"),
        *behind,
    ]
    held = [numpy_helper.from_array(np.array(0), "first")]
    graph = helper.make_graph(nodes, "g", [value("x", ["t", "b", 3])], [value(name, None) for name in outputs], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def joined(axis: int, new: int, name: str = "y") -> onnx.NodeProto:
    return helper.make_node("ConcatFromSequence", ["all"], [name], axis=axis, new_axis=new)


def stacked(made: onnx.ModelProto):
    graph = load_onnx(made)
    PassManager("canonicalize,stack-lists", (VerifyEach(),)).run(graph)
    return graph


JOINED = [(axis, new) for new in (0, 1) for axis in range(-2 - new, 2 + new)]


@pytest.mark.parametrize(("axis", "new"), JOINED)
def test_what_steps_append_is_what_they_give(axis, new):
    made = model([joined(axis, new), joined(0, 1, "z")], ["y", "z", "last", "scan"])
    graph = stacked(made)
    assert not any("Sequence" in node.op for node in graph.walk())
    session = onnxruntime.InferenceSession(made.SerializeToString())
    for steps, batch in ((4, 2), (1, 5)):
        feed = {"x": np.random.default_rng(3 + axis).normal(size=(steps, batch, 3)).astype(np.float32)}
        found = evaluate(graph, feed)
        for name, wanted in zip(("y", "z", "last", "scan"), session.run(None, feed), strict=True):
            np.testing.assert_allclose(found[name], wanted, rtol=1e-6, err_msg=name)


OTHERWISE = {
    "its length is asked for": model([joined(0, 1), helper.make_node("SequenceLength", ["all"], ["n"])], ["y", "n"]),
    "inserted at a place": model([joined(0, 1)], ["y"], ("list", "row2", "first")),
    "read by a step": model(
        [joined(0, 1)], ["y"], before=[helper.make_node("SequenceLength", ["list"], ["n"])], given="n"
    ),
}


@pytest.mark.parametrize("made", OTHERWISE.values(), ids=OTHERWISE)
def test_lists_of_which_something_else_is_asked_stay(made):
    assert any(node.op == "SequenceInsert" for node in stacked(made).walk())
