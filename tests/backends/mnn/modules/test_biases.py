"""What stands behind a convolution: sums that look like biases, comparisons of packed tensors, and cubes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from backends.mnn.modules.child import Converter
from backends.onnx.write import write
from frontends.onnx.load import load
from ir.evaluate.evaluator import evaluate
from tests.support.modules.models import legal

RNG = np.random.default_rng(8)
X = RNG.normal(size=(2, 3, 6, 5)).astype(np.float32)
WEIGHT = RNG.normal(size=(6, 3, 3, 3)).astype(np.float32)


def behind(op: str, shape: tuple[int, ...], between: str = "", first: bool = False) -> onnx.ModelProto:
    """A convolution with six channels, something between, and an operator on that and a constant."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1])]
    if between:
        nodes.append(helper.make_node(between, ["c"], ["b"]))
    operands = ["k", nodes[-1].output[0]] if first else [nodes[-1].output[0], "k"]
    nodes.append(helper.make_node(op, operands, ["y"]))
    constant = RNG.normal(size=shape).astype(np.float32)
    kind = TensorProto.FLOAT if op == "Add" else TensorProto.BOOL
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(constant, "k")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)


SUMS = [("Add", shape, between, first) for shape in ((6, 1, 1), (1, 6, 1, 1), (1, 1, 6, 1), (6, 5), ())
        for between in ("", "Relu", "Tanh") for first in (False, True)]  # fmt: skip
COMPARED = [(op, shape, "", first) for op in ("Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal")
            for shape in ((6, 1, 1), (2, 6, 6, 5), (5,), (), (1, 2, 6, 6, 5)) for first in (False, True)]  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "between", "ops"),
    [
        ((6, 1, 1), "", ["Conv", "Add"]),
        ((1, 1, 6, 1), "", ["Conv", "Sub"]),
        ((6, 1, 1), "Relu", ["Conv", "Relu", "Sub"]),
        ((6, 1, 1), "Tanh", ["Conv", "Tanh", "Add"]),
        ((), "Relu", ["Conv", "Relu", "Add"]),
    ],
)
def test_only_what_is_a_bias_is_left_to_be_one(shape, between, ops):
    assert [node.op for node in legal(behind("Add", shape, between)).nodes] == ops


@pytest.mark.parametrize("case", [*SUMS, *COMPARED], ids=str)
def test_numbers_are_the_same(case):
    model = behind(*case)
    found, wanted = evaluate(legal(model), {"x": X})["y"], evaluate(load(model), {"x": X})["y"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.mnn
def test_mnn_computes_them(tmp_path):
    with Converter() as converter:
        for case in [*SUMS, *COMPARED]:
            model = behind(*case)
            write(legal(model), tmp_path / "m.onnx")
            converter.convert(tmp_path / "m.onnx", tmp_path / "m.mnn")
            found = converter.run(tmp_path / "m.mnn", {"x": X}, ["y"])["y"]
            wanted = evaluate(load(model), {"x": X})["y"]
            assert found.shape == wanted.shape, case
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4, err_msg=str(case))


def test_cubes_are_products():
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 24]>
        g (float[2, 3] x) => (float[2, 3] y) <float[1] k = {3}> { y = Pow(x, k) }
    """)
    graph = legal(model)
    assert {node.op for node in graph.nodes} == {"Mul"}
    x = X[0, 0, :2, :3]
    np.testing.assert_allclose(evaluate(graph, {"x": x})["y"], x**3, rtol=1e-6)
