"""A product, a choice of rows and a product that makes logits, with one operand of the choice lost: one maker for each
operator that may read it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH, WORDS, END = 16, 50, 2**31 - 1

Maker = Callable[[], tuple[list[onnx.NodeProto], dict[str, np.ndarray]]]


def _slice(start: str, end: str = "end", **more: np.ndarray) -> Maker:
    numbers = {"end": np.array([END]), "axes": np.array([1]), **more}
    numbers = {name: value for name, value in numbers.items() if name in (start, end, "axes")}
    return lambda: ([helper.make_node("Slice", ["x", start, end, "axes"], ["row"], name="rows")], numbers)


def _node(op: str, *inputs: str, **attributes: object) -> Maker:
    return lambda: ([helper.make_node(op, list(inputs), ["row"], name="rows", **attributes)], {})


CHOICES: dict[str, Maker] = {
    "slice": _slice("logits_index"),
    "end": _slice("zero", "length", zero=np.array([0])),
    "gather": _node("Gather", "x", "logits_index", axis=1),
    "add": _node("Add", "x", "bias"),
    "clip": lambda: (
        [helper.make_node("Clip", ["x", "low", "high"], ["row"], name="rows")],
        {"low": np.float32(0)},
    ),
    "where": _node("Where", "keep", "x", "x"),
    "matmul": _node("MatMul", "x", "weight"),
    "reshape": _node("Reshape", "x", "shape"),
    "norm": _node("LayerNormalization", "x", "gain"),
    "whole": _node("Relu", "x"),
    "frozen": _slice("six", six=np.array([6])),
    "last": _slice("minus", minus=np.array([-1])),
}
"""How the row of the logits comes about; the last three lose nothing."""


def lost_model(kind: str, *, declared: bool = False) -> onnx.ModelProto:
    """A model of one kind; with `declared`, ``logits_index`` is an input after all."""
    nodes, numbers = CHOICES[kind]()
    rng = np.random.default_rng(7)
    numbers |= {
        "first": rng.normal(size=(WIDTH, WIDTH)).astype(np.float32),
        "head": rng.normal(size=(WIDTH, WORDS)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["input_ids", "first"], ["x"], name="product"),
        *nodes,
        helper.make_node("MatMul", ["row", "head"], ["logits"], name="scores"),
    ]
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.FLOAT, [1, "seq", WIDTH])]
    inputs += [helper.make_tensor_value_info("logits_index", TensorProto.INT64, [1])] if declared else []
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "rows", WORDS])]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in numbers.items()]
    graph = helper.make_graph(nodes, "lost", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def lost_file(folder: Path, kind: str, **options: bool) -> Path:
    """`lost_model` as a file."""
    path = folder / f"{kind}.onnx"
    onnx.save(lost_model(kind, **options), path)
    return path


def quantized_file(folder: Path) -> Path:
    """A product with a quantized result, of which MNN's converter makes an empty graph."""
    scale = {"s": np.float32(0.1), "z": np.int8(1), "w": np.arange(32, dtype=np.int8).reshape(8, 4)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
        helper.make_node("QuantizeLinear", ["y", "s", "z"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "s", "z"], ["out"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 8])]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, [3, 4])]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in scale.items()]
    graph = helper.make_graph(nodes, "quantized", inputs, outputs, constants)
    path = folder / "quantized.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
