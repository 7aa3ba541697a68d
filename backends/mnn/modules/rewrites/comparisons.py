"""Comparisons, and conversions to and from truth values."""

from __future__ import annotations

from collections.abc import Sequence

from backends.mnn.modules.broadcast import covers
from backends.mnn.modules.build import Build, type_of
from backends.mnn.modules.rewrites.types import Table
from backends.mnn.modules.table.arithmetic import second_choice_is_whole, whole_comes_first
from backends.mnn.modules.table.row import FLOAT
from ir.base.types import BOOL, dtype_of_onnx
from ir.graph.graph import Node, Value


def _floats(node: Node) -> bool:
    found = type_of(node.input(0))
    return found is not None and found.dtype in FLOAT


def _one_whole(node: Node, b: Build) -> tuple[Value, Value]:
    """The operands, the first of the common shape unless one of them is known to have it already."""
    x, y = node.operand(0), node.operand(1)
    return (x if covers(x, y) or covers(y, x) else b.add("Expand", x, b.add("Shape", y))), y


def less(node: Node, b: Build) -> Sequence[Value] | None:
    """``a < b`` as ``b > a``: on x86 the runtime compares negative numbers by their bits."""
    return [b.add("Greater", node.operand(1), node.operand(0))] if _floats(node) else None


def compare(node: Node, b: Build) -> Sequence[Value] | None:
    """The operand that has the common shape first, both negated where they change places; else the first one stretched."""
    x, y = node.operand(0), node.operand(1)
    if not _floats(node) or whole_comes_first(node) is None:
        return None
    if covers(y, x):
        return [b.add(node.op, b.add("Neg", y), b.add("Neg", x))]
    return [b.add(node.op, *_one_whole(node, b))]


def equal(node: Node, b: Build) -> Sequence[Value] | None:
    """Neither less nor greater: the runtime compares bits, by which the two zeros differ and NaN is equal to itself."""
    if not _floats(node):
        return None
    x, y = _one_whole(node, b)
    return [b.add("And", b.add("GreaterOrEqual", x, y), b.add("LessOrEqual", x, y))]


def where(node: Node, b: Build) -> Sequence[Value] | None:
    """The second choice stretched to the first: the runtime does not do so where the first has the size of the result."""
    if second_choice_is_whole(node) is None:
        return None
    condition, x, y = (node.operand(index) for index in range(3))
    return [b.add("Where", condition, x, b.add("Expand", y, b.add("Shape", x)))]


def cast(node: Node, b: Build) -> Sequence[Value] | None:
    """To a truth value: what is not zero. The converter leaves numbers as they are."""
    found = type_of(node.input(0))
    if found is None or node.attrs.get("to") != BOOL.onnx or not (found.dtype.is_integer or found.dtype.is_float):
        return None
    x = node.operand(0)
    return [b.add("Not", b.add("Equal", x, b.like(0, x)))]


def cast_like(node: Node, b: Build) -> Sequence[Value] | None:
    """To the element type that the second operand has."""
    found = type_of(node.input(1))
    return [b.add("Cast", node.operand(0), to=found.dtype.onnx, saturate=b.attr("saturate"))] if found else None


def bit_cast(node: Node, b: Build) -> Sequence[Value] | None:
    """To the type that it has already."""
    found = type_of(node.input(0))
    same = found is not None and dtype_of_onnx(int(b.attr("to"))) == found.dtype
    return [b.add("Identity", node.operand(0))] if same else None


REWRITES: Table = {
    "BitCast": (bit_cast,),
    "Cast": (cast,),
    "CastLike": (cast_like,),
    "Equal": (equal,),
    "Greater": (compare,),
    "GreaterOrEqual": (compare,),
    "Less": (less,),
    "LessOrEqual": (compare,),
    "Where": (where,),
}
"""Rewrites by operator."""
