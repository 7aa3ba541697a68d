"""ONNX models with quantized weights, written down node by node, and what onnxruntime makes of them exactly."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from frontends.onnx.load import load
from ir.base.diag import Diagnostic
from ir.evaluate.evaluator import evaluate
from ir.graph.graph import Graph
from passes.framework.manager import PassManager

ROWS, COLUMNS, BLOCK = 24, 64, 16
BLOCKS = COLUMNS // BLOCK
KINDS = {
    np.dtype(dtype): getattr(TensorProto, name)
    for dtype, name in (
        (np.float32, "FLOAT"), (np.float16, "FLOAT16"), (np.int64, "INT64"), (np.int32, "INT32"),
        (np.int16, "INT16"), (np.uint16, "UINT16"), (np.int8, "INT8"), (np.uint8, "UINT8"),
        (ml_dtypes.int4, "INT4"), (ml_dtypes.uint4, "UINT4"),
        (ml_dtypes.float8_e4m3fn, "FLOAT8E4M3FN"), (ml_dtypes.float8_e5m2, "FLOAT8E5M2"),
    )
}  # fmt: skip
"""ONNX types by numpy's."""


class Model:
    """An ONNX model that is written down node by node."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def const(self, array: np.ndarray, name: str = "") -> str:
        """A constant; its name."""
        array = np.asarray(array)
        name = name or f"c{len(self.constants)}"
        flat = array.astype(np.float32).reshape(-1) if array.dtype.kind not in "iuf" else array.reshape(-1)
        self.constants.append(helper.make_tensor(name, KINDS[array.dtype], array.shape, flat))
        return name

    def op(self, op: str, *inputs: str, name: str = "", **attrs: object) -> str:
        """A node with one output; its name."""
        name = name or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attrs))
        return name

    def product(self, weight: str, name: str = "y") -> None:
        """An output: the input times a weight."""
        self.op("MatMul", "x", weight, name=name)
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))

    def look_up(self, table: str, name: str = "rows") -> None:
        """An output: rows of a table."""
        self.op("Gather", table, "ids", name=name)
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))

    def made(self) -> onnx.ModelProto:
        """The model."""
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", COLUMNS]),
                  helper.make_tensor_value_info("ids", TensorProto.INT64, ["m"])]  # fmt: skip
        graph = helper.make_graph(self.nodes, "g", inputs, self.outputs, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


FEEDS = {
    "x": np.random.default_rng(1).normal(0, 1, (5, COLUMNS)).astype(np.float32),
    "ids": np.array([3, 0, ROWS - 1], np.int64),
}


def after(model: onnx.ModelProto, pipeline: str, bar: float = 1e-5) -> tuple[Graph, list[Diagnostic]]:
    """The graph after passes, which gives what onnxruntime gives for the model, and what was said of it."""
    graph = load(model)
    report = PassManager(f"infer-types,{pipeline}").run(graph)
    exact = onnxruntime.SessionOptions()
    # Its optimizer makes one operator of dequantization and product, which rounds activations to 8 bits.
    exact.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), exact, ["CPUExecutionProvider"])
    feeds = {item.name: FEEDS[item.name] for item in session.get_inputs()}
    wanted = session.run(None, feeds)
    for name, array in zip((item.name for item in session.get_outputs()), wanted, strict=True):
        got = evaluate(graph, feeds)[name]
        assert np.abs(got - array).max() <= bar * np.abs(array).max(), name
    return graph, report.all_diagnostics()
