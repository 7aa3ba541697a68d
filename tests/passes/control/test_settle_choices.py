"""Choices between results of different numbers of axes, as exporters write them for what a model asks of sizes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from frontends.onnx.load import load as load_onnx
from ir.evaluate.evaluator import evaluate
from passes.framework.manager import PassManager

RNG = np.random.default_rng(3)
WIDTH = 4


def value(name: str, shape=None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def choice(name: str, condition: str, results: list[str], then: list, other: list) -> onnx.NodeProto:
    """A choice whose sides are lists of nodes, the first output of the last ones being their results."""
    sides = [
        helper.make_graph(nodes, f"{name}_{side}", [], [value(node.output[0]) for node in nodes[-len(results) :]])
        for side, nodes in (("then", then), ("else", other))
    ]
    return helper.make_node("If", [condition], results, name=name, then_branch=sides[0], else_branch=sides[1])


def node(op: str, *names: str, **attrs) -> onnx.NodeProto:
    *inputs, output = names
    return helper.make_node(op, inputs, [output], **attrs)


HELD = {
    "zero": np.array([0]),
    "one": np.array([1]),
    "last": np.array([-1]),
    "two": np.array(2),
    "w": RNG.normal(0, 0.5, (1, 4 * WIDTH, WIDTH)).astype(np.float32),
    "r": RNG.normal(0, 0.5, (1, 4 * WIDTH, WIDTH)).astype(np.float32),
    "kernel": RNG.normal(0, 0.5, (2, WIDTH, 1)).astype(np.float32),
}


def drop(source: str, result: str, name: str = "drop") -> list[onnx.NodeProto]:
    """The last axis is dropped when its size is 1."""
    return [
        node("Shape", source, f"{name}_sizes"),
        node("Gather", f"{name}_sizes", "last", f"{name}_size"),
        node("Equal", f"{name}_size", "one", f"{name}_single"),
        choice(
            name, f"{name}_single", [result],
            [node("Squeeze", source, "last", f"{name}_dropped")], [node("Identity", source, f"{name}_kept")],
        ),
    ]  # fmt: skip


def cell() -> list[onnx.NodeProto]:
    """One step of a recurrent layer, with a batch or without, asked for by the number of axes of what comes in."""
    return [
        *drop("x", "features"),
        node("Shape", "features", "sizes"),
        node("Size", "sizes", "rank"),
        node("Equal", "rank", "two", "batched"),
        node("Not", "batched", "single"),
        choice(
            "widen", "single", ["input", "state"],
            [node("Unsqueeze", "features", "zero", "wide"), node("Unsqueeze", "h", "zero", "wide_h")],
            [node("Identity", "features", "same"), node("Identity", "h", "same_h")],
        ),
        node("Unsqueeze", "input", "zero", "steps"),
        node("Unsqueeze", "state", "zero", "start"),
        helper.make_node(
            "LSTM", ["steps", "w", "r", "", "", "start", "start"], ["", "hidden"], name="lstm", hidden_size=WIDTH
        ),
        node("Squeeze", "hidden", "zero", "made"),
        choice(
            "narrow", "single", ["result"],
            [node("Squeeze", "made", "zero", "first")], [node("Identity", "made", "all")],
        ),
        node("Unsqueeze", "result", "last", "columns"),
        node("Conv", "columns", "kernel", "scores"),
        node("Tanh", "scores", "y"),
    ]  # fmt: skip


def model(nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    inputs = [value("x", ["batch", WIDTH, "n"]), value("h", ["batch", WIDTH]), value("flag", [], TensorProto.BOOL)]
    held = [numpy_helper.from_array(array, name) for name, array in HELD.items()]
    graph = helper.make_graph(nodes, "g", inputs, [value("y")], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def settle(made: onnx.ModelProto):
    graph = load_onnx(made)
    return graph, PassManager("canonicalize,settle-choices").run(graph)


def choices(graph) -> list[str]:
    return [inner.name for inner in graph.walk() if inner.op == "If"]


def feeds(batch: int, n: int) -> dict[str, np.ndarray]:
    x, h = RNG.normal(size=(batch, WIDTH, n)), RNG.normal(size=(batch, WIDTH))
    return {"x": x.astype(np.float32), "h": h.astype(np.float32), "flag": np.array(True)}


def branched(first: list, second: list) -> list[onnx.NodeProto]:
    """Two computations of the result, chosen by an input; each with values of names of its own."""
    return [choice("outer", "flag", ["y"], first, second)]


def renamed(nodes: list[onnx.NodeProto], stem: str) -> list[onnx.NodeProto]:
    outer = {*HELD, "x", "h", "flag", ""}
    found = []
    for item in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(item)
        for names in (copy.input, copy.output):
            names[:] = [name if name in outer else f"{stem}{name}" for name in names]
        for attribute in copy.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                inner = renamed(list(attribute.g.node), stem)
                outputs = [value(f"{stem}{item.name}") for item in attribute.g.output]
                attribute.g.CopyFrom(helper.make_graph(inner, f"{stem}{attribute.g.name}", [], outputs))
        found.append(copy)
    return found


@pytest.mark.parametrize(
    "nodes", [cell(), branched(renamed(cell(), "a_"), renamed(cell(), "b_"))], ids=["flat", "inside"]
)
def test_a_recurrent_layer_and_a_convolution_decide_what_comes_before_them(nodes):
    made = model(nodes)
    graph, _ = settle(made)
    assert choices(graph) == (["outer"] if len(nodes) == 1 else [])
    session = onnxruntime.InferenceSession(made.SerializeToString())
    for batch in (1, 3):
        feed = feeds(batch, 1)
        np.testing.assert_allclose(evaluate(graph, feed)["y"], session.run(None, feed)[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(InvalidArgument, match="must have 3 dimensions only"):
        session.run(None, feeds(2, 3))


def test_the_user_is_told_that_other_inputs_are_not_refused():
    nodes = [
        *drop("x", "features"),
        node("Unsqueeze", "features", "last", "columns"),
        node("Conv", "columns", "kernel", "y"),
    ]
    graph, report = settle(model(nodes))
    assert not choices(graph)
    (warning,) = report.all_diagnostics()
    assert str(warning) == (
        "warning[P392]: 1 choice of the model is settled: for inputs that choose otherwise the model fails, and the "
        "compiled one may not\n  at drop: its else_branch gives 3 axes, and 2 axes can be read\n"
        "  hint: in the application, feed sizes that the model takes"
    )


BOTH_WORK = {
    "either is returned": drop("x", "y"),
    "either fits": [*drop("x", "features"), node("Exp", "features", "y")],
    "one side alone reads it": [
        *drop("x", "features"),
        node("Unsqueeze", "features", "last", "columns"),
        choice("guarded", "flag", ["y"], [node("Conv", "columns", "kernel", "a")], [node("Exp", "features", "b")]),
    ],
    "neither fits": [
        *drop("x", "features"),
        node("Unsqueeze", "features", "two_more", "columns"),
        node("Conv", "columns", "kernel", "y"),
    ],
}


@pytest.mark.parametrize("nodes", BOTH_WORK.values(), ids=BOTH_WORK)
def test_a_choice_stays_where_either_side_may_be_meant(nodes):
    made = model(nodes)
    made.graph.initializer.append(numpy_helper.from_array(np.array([0, 1]), "two_more"))
    graph, report = settle(made)
    assert "drop" in choices(graph) and not report.all_diagnostics()
