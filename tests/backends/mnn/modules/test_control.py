"""Loops of a known number of steps and choices, written out for MNN."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from backends.mnn.modules.child import Converter
from backends.onnx.write import write
from ir.base.diag import LadingError
from ir.evaluate.evaluator import evaluate
from tests.support.modules.models import legal

F32, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
RNG = np.random.default_rng(8)


def value(name: str, shape=None, kind: int = F32) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes, inputs, outputs, constants=()) -> onnx.ModelProto:
    held = [numpy_helper.from_array(array, name) for name, array in constants]
    graph = helper.make_graph(nodes, "g", inputs, outputs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def scanned(axis: int, direction: int) -> onnx.ModelProto:
    """Two states, a value from outside, and two results of the steps, one of them backwards."""
    nodes = [
        helper.make_node("Add", ["s", "x"], ["mid"]),
        helper.make_node("Mul", ["mid", "outside"], ["s2"]),
        helper.make_node("Sub", ["t", "x"], ["t2"]),
        helper.make_node("Tanh", ["s2"], ["r1"]),
        helper.make_node("Identity", ["t2"], ["r2"]),
    ]
    body = helper.make_graph(
        nodes, "body", [value(n, [3]) for n in ("s", "t", "x")], [value(n, [3]) for n in ("s2", "t2", "r1", "r2")]
    )
    node = helper.make_node(
        "Scan", ["a", "b", "xs"], ["y0", "y1", "y2", "y3"], body=body, num_scan_inputs=1, scan_input_axes=[axis],
        scan_input_directions=[direction], scan_output_directions=[0, 1], scan_output_axes=[0, 1],
    )  # fmt: skip
    shape = [4, 3] if axis == 0 else [3, 4]
    inputs = [value("a", [3]), value("b", [3]), value("xs", shape), value("outside", [3])]
    return model([node], inputs, [value(f"y{place}") for place in range(4)])


def looped(condition: str) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["i"], ["f"], to=F32),
        helper.make_node("Add", ["s", "f"], ["s2"]),
        helper.make_node("Mul", ["s2", "x"], ["r"]),
        helper.make_node("Identity", ["go"], ["same"]),
        helper.make_node("ReduceMax", ["s2"], ["most"], keepdims=0),
        helper.make_node("Less", ["most", "limit"], ["small"]),
    ]
    body = helper.make_graph(
        nodes, "body", [value("i", [], I64), value("go", [], BOOL), value("s", [3])],
        [value(condition, [], BOOL), value("s2", [3]), value("r", [3])],
    )  # fmt: skip
    node = helper.make_node("Loop", ["trips", "", "x"], ["y0", "y1"], body=body)
    held = [("trips", np.array(4)), ("limit", np.array(3, np.float32))]
    return model([node], [value("x", [3])], [value("y0"), value("y1")], held)


def chosen(size: int = 3, shape=(3,)) -> onnx.ModelProto:
    sides = [
        helper.make_graph([helper.make_node(op, ["x"], [op])], op, [], [value(op, shape)]) for op in ("Exp", "Neg")
    ]
    if size != 3:
        sides[1] = helper.make_graph(
            [helper.make_node("Concat", ["x", "x"], ["Neg"], axis=0)], "Neg", [], [value("Neg", [size])]
        )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y0"], then_branch=sides[0], else_branch=sides[1]),
    ]
    return model(nodes, [value("x", shape)], [value("y0")], [("zero", np.array(0, np.float32))])


MODELS = [
    *(scanned(axis, direction) for axis in (0, 1) for direction in (0, 1)),
    looped("same"),
    chosen(),
    chosen(shape=("n", 3)),
]


def feeds(made: onnx.ModelProto) -> list[dict[str, np.ndarray]]:
    shapes = {item.name: [dim.dim_value or 2 for dim in item.type.tensor_type.shape.dim] for item in made.graph.input}
    found = [{name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(2)]
    return [*found, {name: -array for name, array in found[0].items()}]


@pytest.mark.parametrize("made", MODELS)
def test_numbers_of_what_is_written_out(made):
    session = onnxruntime.InferenceSession(made.SerializeToString())
    graph = legal(made)
    assert not {"If", "Loop", "Scan"} & {node.op for node in graph.walk()}
    for feed in feeds(made):
        found = evaluate(graph, feed)
        for item, wanted in zip(graph.outputs, session.run(None, feed), strict=True):
            np.testing.assert_allclose(found[item.name], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.mnn
def test_mnn_computes_it(tmp_path: Path):
    with Converter() as converter:
        for place, made in enumerate(MODELS):
            session = onnxruntime.InferenceSession(made.SerializeToString())
            write(legal(made), tmp_path / f"{place}.onnx")
            converter.convert(tmp_path / f"{place}.onnx", tmp_path / f"{place}.mnn")
            names = [item.name for item in made.graph.output]
            for feed in feeds(made):
                found = converter.run(tmp_path / f"{place}.mnn", feed, names)
                for name, wanted in zip(names, session.run(None, feed), strict=True):
                    np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("made", "op"), [(looped("small"), "Loop"), (chosen(6), "If")])
def test_what_depends_on_numbers_is_refused(made, op):
    with pytest.raises(LadingError, match=f"{op} has no form that MNN computes right"):
        legal(made)
