"""Quantization is taken out of graphs and recorded."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from backends.mnn.modules.edit.codes import ActivationCodes, CodeRange, codes_of
from backends.onnx.write import write
from ir.graph.graph import Graph, Node
from tests.support.modules.models import legal
from tests.support.modules.quantized import TAKE, Chain, exact, quantized

WEIGHTS = np.array([[[[3]], [[-128]]], [[[127]], [[5]]]], np.int8)


def model_of(kind: int, zero: int, weights: np.ndarray = WEIGHTS, weight_zeros: object = None) -> onnx.ModelProto:
    """A convolution between two pairs of the same scale and zero."""
    signed = kind == TensorProto.INT8
    number = np.int8 if signed else np.uint8
    constants = {"s": np.float32(0.5), "z": number(zero), "w": weights, "ws": np.array([0.25, 2], np.float32),
                 "b": np.array([8, -8], np.int32), "bs": np.array([0.125, 1], np.float32)}  # fmt: skip
    if weight_zeros is not None:
        constants["wz"] = np.asarray(weight_zeros, weights.dtype)
    zeros = ["wz"] if weight_zeros is not None else []
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", *zeros], ["wd"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "bs"], ["bd"], axis=0),
        helper.make_node("Conv", ["xd", "wd", "bd"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "s", "z"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 3, 3])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def ranges_of(graph: Graph) -> dict[str, CodeRange]:
    return dict(graph.required_fact(ActivationCodes).ranges)


def convolution(graph: Graph) -> Node:
    return next(node for node in graph.nodes if node.op == "Conv")


@pytest.mark.parametrize(("kind", "zero"), [(TensorProto.INT8, 3), (TensorProto.UINT8, 131)])
def test_pairs_go_away_and_their_codes_are_recorded(kind: int, zero: int):
    graph = legal(model_of(kind, zero), pipeline=TAKE)
    assert [node.op for node in graph.nodes] == ["Clip", "Conv", "Clip"]
    assert ranges_of(graph) == {"x.held": CodeRange(0.5, 3), "y": CodeRange(0.5, 3)}
    assert [value.tensor.load().item() for value in graph.first.inputs[1:]] == [-65.5, 62]
    conv = convolution(graph)
    np.testing.assert_array_equal(conv.operand(2).tensor.load(), np.array([1, -8], np.float32))
    found = codes_of(conv.operand(1).tensor)
    np.testing.assert_array_equal(found.codes.load(), WEIGHTS.reshape(2, 2))
    np.testing.assert_array_equal(conv.operand(1).tensor.load()[:, :, 0, 0], [[0.75, -32], [254, 10]])


def test_unsigned_weights_around_their_middle_have_no_zeros():
    weights = (WEIGHTS.astype(np.int16) + 128).astype(np.uint8)
    graph = legal(model_of(TensorProto.INT8, 0, weights, [128, 128]), pipeline=TAKE)
    found = codes_of(convolution(graph).operand(1).tensor)
    assert found.storage.symmetric
    np.testing.assert_array_equal(found.codes.load(), WEIGHTS.reshape(2, 2))


def test_other_zeros_of_weights_are_kept():
    graph = legal(model_of(TensorProto.INT8, 0, WEIGHTS, [1, -2]), pipeline=TAKE)
    found = codes_of(convolution(graph).operand(1).tensor)
    assert not found.storage.symmetric
    want = (WEIGHTS.astype(np.float32) - np.array([1, -2]).reshape(2, 1, 1, 1)) * np.array([0.25, 2]).reshape(
        2, 1, 1, 1
    )
    np.testing.assert_array_equal(convolution(graph).operand(1).tensor.load(), want)


def test_what_is_left_computes_the_same_up_to_rounding(tmp_path):
    chain = Chain([1, 3, 12, 12])
    x = chain.add("Relu", chain.conv("x", 3, 8, 3))
    result = chain.conv(chain.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), 8, 4)
    feeds = chain.feeds()
    model = quantized(chain.model(result), feeds, tmp_path)
    graph = legal(model, pipeline=TAKE)
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op for node in graph.nodes}
    write(graph, tmp_path / "legal.onnx")
    want, got = exact(model, feeds[0]), exact(tmp_path / "legal.onnx", feeds[0])
    assert sum(node.op == "Clip" for node in graph.nodes) == 3, "input, ReLU and result; pooling stays within"
    assert 0 < np.abs(want - got).max() < 0.03 * np.abs(want).max()
