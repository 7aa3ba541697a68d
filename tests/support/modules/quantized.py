"""Models with quantized tensors, and their way to a net that holds codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from backends.mnn.modules.child import Converter
from backends.mnn.modules.edit.edit_net import Edited, edit_net
from backends.mnn.read.net_file import read_net
from backends.onnx.write import write
from ir.graph.graph import Graph
from tests.support.modules.models import legal

LIFT = "upgrade-opset,canonicalize,widen-floats,infer-types"
TAKE = f"{LIFT},take-qdq,cse,dce,infer-types"
"""The part of the pipeline of modules that concerns codes."""


class Chain:
    """Makes models of nodes one after the other, with random weights.

    Args:
        shape: that of the input ``x``.
    """

    def __init__(self, shape: Sequence[int], seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.shape = list(shape)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, op: str, *inputs: str, **attrs: Any) -> str:
        """A node; the name of its value."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attrs))
        return name

    def const(self, array: np.ndarray) -> str:
        """A constant."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def conv(self, x: str, into: int, out: int, kernel: int = 1, **attrs: Any) -> str:
        """A convolution with padding that keeps sizes, and a bias."""
        group = attrs.get("group", 1)
        weight = self.random.standard_normal((out, into // group, kernel, kernel)).astype(np.float32)
        weight *= self.random.uniform(0.2, 2, (out, 1, 1, 1)).astype(np.float32) / np.sqrt(weight[0].size)
        bias = self.random.standard_normal(out).astype(np.float32) * 0.3
        pads = [kernel // 2] * 4
        return self.add("Conv", x, self.const(weight), self.const(bias), kernel_shape=[kernel] * 2, pads=pads, **attrs)

    def model(self, result: str, opset: int = 21) -> onnx.ModelProto:
        """The model that ends in a value, which is called ``y``."""
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)
        made = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        nodes = [*self.nodes, helper.make_node("Identity", [result], ["y"])]
        graph = helper.make_graph(nodes, "g", [given], [made], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        return onnx.shape_inference.infer_shapes(model)

    def feeds(self, count: int = 3) -> list[dict[str, np.ndarray]]:
        """Random inputs."""
        return [{"x": self.random.standard_normal(self.shape).astype(np.float32)} for _ in range(count)]


def quantized(
    model: onnx.ModelProto, feeds: Sequence[Mapping[str, np.ndarray]], folder: Path, kinds: str = "u8s8", **options: Any
) -> onnx.ModelProto:
    """What onnxruntime's ``quantize_static`` makes of a model; `kinds` are the types of activations and weights."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(feeds)

        def get_next(self) -> Any:
            return next(self.left, None)

    types = {"u8": QuantType.QUInt8, "s8": QuantType.QInt8}
    per_channel = options.pop("per_channel", True)
    onnx.save(model, folder / "float.onnx")
    quantize_static(
        folder / "float.onnx", folder / "qdq.onnx", Reader(), quant_format=QuantFormat.QDQ, per_channel=per_channel,
        activation_type=types[kinds[:2]], weight_type=types[kinds[2:]], extra_options=options,
    )  # fmt: skip
    return onnx.load(folder / "qdq.onnx")


def exact(model: onnx.ModelProto | Path, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """What onnxruntime computes without rewriting the model."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    given = str(model) if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(given, options).run(None, dict(feeds))[0]


def step_of(model: onnx.ModelProto) -> float:
    """The scale of the last rounded tensor."""
    last = [node for node in model.graph.node if node.op_type == "DequantizeLinear"][-1]
    return float(next(numpy_helper.to_array(item) for item in model.graph.initializer if item.name == last.input[1]))


def compiled(
    model: onnx.ModelProto, folder: Path, pipeline: str = TAKE, *, inside: bool = True
) -> tuple[Graph, Edited, dict[str, Any]]:
    """The graph, what became of the net ``model.mnn`` in the folder, and the net as it is read back."""
    graph = legal(model, pipeline=pipeline)
    write(graph, folder / "legal.onnx")
    with Converter() as converter:
        converter.convert(folder / "legal.onnx", folder / "raw.mnn", ["--saveExternalData"])
    found = edit_net(folder / "raw.mnn", graph, folder / "model.mnn", inside=inside)
    return graph, found, read_net(folder / "model.mnn")


def run(folder: Path, feeds: Mapping[str, np.ndarray], packages: Path | None = None) -> np.ndarray:
    """What MNN computes with the compiled net."""
    with Converter(packages) as converter:
        return converter.run(folder / "model.mnn", feeds, ["y"])["y"]
