"""Reductions of ONNX, and what is made of them, in MNN's."""

from __future__ import annotations

from collections.abc import Callable

from backends.mnn.lower.lowering import Lowering
from ir.base.types import F32, TensorType
from ir.graph.graph import OPSET, Node, Value
from ir.ops.registry import attribute, opsets_of

REDUCTIONS = {
    "ReduceMax": "MAXIMUM", "ReduceMean": "MEAN", "ReduceMin": "MINIMUM", "ReduceProd": "PROD", "ReduceSum": "SUM",
}  # fmt: skip
"""ONNX operator to ``ReductionType`` of MNN's schema; the runtime has no kernel for its other kinds."""

_BEFORE: dict[str, Callable[[Lowering, Value], Value]] = {
    "ReduceL1": lambda low, x: low.unary("ABS", x),
    "ReduceL2": lambda low, x: low.binary("MUL", x, x),
    "ReduceSumSquare": lambda low, x: low.binary("MUL", x, x),
    "ReduceLogSum": lambda low, x: x,
}
"""Reductions that are sums of what a function gives."""

_AFTER = {"ReduceL2": "SQRT", "ReduceLogSum": "LOG"}
"""Functions of those sums."""

SUMS = tuple(_BEFORE)
"""Operators that `lower_sum` takes."""


def _wanted(node: Node, low: Lowering) -> tuple[tuple[int, ...], int]:
    """Axes and whether they are kept; P373 where axes are computed."""
    keep = int(node.attrs.get("keepdims", 1))
    given = node.attrs.get("axes")
    axes = node.input(1)
    rank = len(low.dims(node.operand(0)))
    if axes is not None:
        given = low.axes(axes)
    if not given:
        if node.attrs.get("noop_with_empty_axes", 0):
            raise low.refused("MNN reduces all axes where none is named")
        given = range(rank)
    return tuple(sorted(int(axis) % rank for axis in given)), keep


def lower_reduction(node: Node, low: Lowering) -> None:
    """A reduction that MNN has."""
    x = low.plain(node.operand(0))
    if node.op == "ReduceMean":
        low.floats(x)
    attrs = _attrs(node, low, REDUCTIONS[node.op])
    low.replace(node.output, low.add("Reduction", [x], low.type_of(node.output), attrs))


def _attrs(node: Node, low: Lowering, kind: str) -> dict[str, object]:
    axes, keep = _wanted(node, low)
    return {"kind": kind, "axes": axes, "keep_dims": keep}


def lower_sum(node: Node, low: Lowering) -> None:
    """A sum of a function of the elements, and a function of the sum."""
    x = _BEFORE[node.op](low, low.floats(node.operand(0)))
    total = low.add("Reduction", [x], node.output.type, _attrs(node, low, "SUM"))
    after = _AFTER.get(node.op)
    low.replace(node.output, low.unary(after, total) if after else total)


def lower_softmax(node: Node, low: Lowering) -> None:
    """Exponentials over their sum along an axis, the largest taken off first."""
    x = low.floats(node.operand(0))
    shape = low.dims(x)
    axis = attribute(node, "axis") % len(shape)
    if axis < len(shape) - 1 and opsets_of(low.graph).get("", OPSET) < 13:
        raise low.refused("before operator set 13 this operator joins all axes behind its own")
    kept = TensorType(F32, (*shape[:axis], 1, *shape[axis + 1 :]))

    def reduced(value: Value, kind: str) -> Value:
        return low.add("Reduction", [value], kept, {"kind": kind, "axes": (axis,), "keep_dims": 1})

    shifted = low.binary("SUB", x, reduced(x, "MAXIMUM"))
    powers = low.unary("EXP", shifted)
    total = reduced(powers, "SUM")
    if node.op == "LogSoftmax":
        low.replace(node.output, low.binary("SUB", shifted, low.unary("LOG", total)))
    else:
        low.replace(node.output, low.binary("REALDIV", powers, total))
