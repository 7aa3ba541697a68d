"""The operator ``example.SquaredRelu``: max(x, 0) squared (So et al. 2021, Primer, section 3)."""

from __future__ import annotations

from ir.base.types import ValueType
from ir.graph.graph import Node, Value
from ir.infer.inference import Inference
from ir.ops.meaning import Body
from ir.ops.registry import OpDef


def _type(run: Inference, node: Node) -> ValueType | None:
    """The type of the operand."""
    return node.inputs[0].type


def _meaning(body: Body) -> list[Value]:
    """In ONNX terms: this is what onnxruntime evaluates, and what is written as a function of the ONNX file."""
    positive = body.op("Relu", body.inputs[0])
    return [body.op("Mul", positive, positive)]


SQUARED_RELU = OpDef(
    "example.SquaredRelu",
    inputs=("x",),
    traits=frozenset({"elementwise", "pure", "constant_foldable"}),
    infer=_type,
    define=_meaning,
    rowwise=lambda node, index: True,
    package="lading_example",
    doc="max(x, 0) * max(x, 0), element by element.",
)
