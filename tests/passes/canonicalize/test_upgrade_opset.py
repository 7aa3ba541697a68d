"""Operators of older ONNX versions mean the same after they were written anew; onnxruntime runs both."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from frontends.onnx.load import load
from ir.evaluate.evaluator import evaluate
from ir.graph.graph import OPSET
from passes.canonicalize.upgrade_opset import UpgradeOpset
from passes.framework.context import PassContext

X = np.random.default_rng(0).normal(0, 1, (2, 3, 4)).astype(np.float32)


def model(opset: int, op: str, outputs: int = 1, **attrs: object):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)
    names = [f"y{index}" for index in range(outputs)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    graph = helper.make_graph([helper.make_node(op, ["x"], names, **attrs)], "g", [x], ends)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize(
    ("opset", "op", "outputs", "attrs"),
    [
        (11, "ReduceSum", 1, {"axes": [1], "keepdims": 0}),
        (13, "ReduceMean", 1, {"axes": [-1]}),
        (17, "ReduceL2", 1, {"axes": [0, 2]}),
        (17, "ReduceMax", 1, {}),
        (11, "Unsqueeze", 1, {"axes": [0, 3]}),
        (12, "Split", 2, {"axis": 2, "split": [1, 3]}),
        (13, "Split", 2, {"axis": 2}),
        (11, "Softmax", 1, {"axis": 2}),
        (11, "LogSoftmax", 1, {"axis": -1}),
        (11, "Dropout", 1, {"ratio": 0.5}),
        (14, "Relu", 1, {}),
    ],
)
def test_the_newer_form_computes_the_same(opset, op, outputs, attrs):
    proto = model(opset, op, outputs, **attrs)
    wanted = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": X})
    graph = load(proto)
    UpgradeOpset().run(graph, PassContext())
    assert graph.opsets[""] == OPSET
    found = evaluate(graph, {"x": X})
    for index, array in enumerate(wanted):
        np.testing.assert_array_equal(array, found[f"y{index}"])
