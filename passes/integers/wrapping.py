"""Arithmetic of integers of few bits in wider ones: what may leave their range comes back in, as it does in the original.

Products are made of factors of at most 24 bits together, and powers of two, so that they are right on runtimes that multiply
integers in single precision too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ir.base.types import DType
from ir.graph.graph import Node, Value
from ir.ops.registry import attribute
from passes.integers.steps import Builder, like

Wide = Callable[[Node, Builder, DType], "Value | None"]
"""What stands for the result of a node of few bits; None where the wide node is right as it is."""

MOST_SHIFTED = 31
"""Bits by which numbers of 32 bits can be shifted."""

FEW_BITS = 16
"""Widest integers whose range is kept to; those of 32 and 64 bits without a sign are held where they fit."""


def within(b: Builder, value: Value, kind: DType) -> Value:
    """The integer of a type that is the same in its lowest bits (two's complement)."""
    size = 1 << kind.bits
    if not kind.low:
        return b.add("Mod", value, like(b, size, value))
    half = like(b, size // 2, value)
    return b.add("Sub", b.add("Mod", b.add("Add", value, half), like(b, size, value)), half)


def holds(kind: DType, other: DType) -> bool:
    """True when every value of another type is one of this type."""
    if other.kind == "b":
        return True
    return other.is_integer and kind.low <= other.low and other.high <= kind.high


def product(node: Node, b: Builder, kind: DType) -> Value | None:
    """The product of two operands; of more than 8 bits in two parts, of the high and of the low byte of the first."""
    x, y = node.operand(0), node.operand(1)
    if kind.bits > FEW_BITS:
        return None
    if kind.bits <= 8:
        return within(b, b.add("Mul", x, y), kind)
    size, byte = like(b, 1 << kind.bits, x), like(b, 256, x)
    x, y = b.add("Mod", x, size), b.add("Mod", y, size)
    low = b.add("Mod", x, byte)
    high = b.add("Mod", b.add("Mul", b.add("Div", x, byte), y), byte)
    return within(b, b.add("Add", b.add("Mul", high, byte), b.add("Mul", low, y)), kind)


def shift(node: Node, b: Builder, kind: DType) -> Value:
    """A shift by bits (ONNX, BitShift-28), to the right as quotients, rounded down, by powers of two.

    To the left it is a product with one where the type has few bits, else repeated doubling, which is exact. By a negative
    number, or by more bits than there are, nothing but copies of the sign is left.
    """
    x, by = node.operand(0), node.operand(1)
    zero, two = like(b, 0, x), like(b, 2, x)
    outside = b.add("GreaterOrEqual", by, like(b, kind.bits, x))
    if kind.low:
        outside = b.add("Or", outside, b.add("Less", by, zero))
    most = like(b, min(kind.bits, MOST_SHIFTED), x)
    by = b.add("Where", b.add("Or", outside, b.add("Greater", by, most)), most, by)
    if attribute(node, "direction") == "LEFT" and kind.bits <= FEW_BITS:
        kept = b.add("Mod", x, b.add("Pow", two, b.add("Sub", most, by)))
        moved = b.add("Mul", kept, b.add("Pow", two, by))
        return within(b, moved, kind) if kind.low else moved
    if attribute(node, "direction") == "LEFT":
        return b.add("Where", outside, zero, _doubled(b, x, by))
    first = b.add("Div", by, two)
    for part in (first, b.add("Sub", by, first)):
        power = b.add("Pow", two, part)
        x = b.add("Div", b.add("Sub", x, b.add("Mod", x, power)), power)
    return x


def _doubled(b: Builder, x: Value, by: Value) -> Value:
    """Numbers doubled as often as is said, at most `MOST_SHIFTED` times: as many times as each bit of the count says."""
    two = like(b, 2, by)
    for times in (1, 2, 4, 8, 16):
        more = x
        for _ in range(times):
            more = b.add("Add", more, more)
        x = b.add("Where", b.add("Equal", b.add("Mod", by, two), like(b, 1, by)), more, x)
        by = b.add("Div", by, two)
    return x


def inverted(node: Node, b: Builder, kind: DType) -> Value | None:
    """The bits of an integer without a sign, each the other way round; with a sign that is the same for all widths."""
    if kind.low or kind.bits > FEW_BITS:
        return None
    x = node.operand(0)
    return b.add("Sub", like(b, kind.high, x), x)


def smallest_over(node: Node, b: Builder, kind: DType) -> Value | None:
    """Only the smallest number has no counterpart: its magnitude, negative, and quotient by -1 are itself."""
    return within(b, node.output, kind) if kind.low and kind.bits <= FEW_BITS else None


def brought_back(node: Node, b: Builder, kind: DType) -> Value | None:
    """What may be outside of the range on either side."""
    return within(b, node.output, kind) if kind.bits <= FEW_BITS else None


def scattered(node: Node, b: Builder, kind: DType) -> Value | None:
    """Sums and products of what is scattered to one place."""
    return brought_back(node, b, kind) if attribute(node, "reduction") in ("add", "mul") else None


REPLACED: Mapping[str, Wide] = {"BitShift": shift, "BitwiseNot": inverted, "Mul": product}
"""Operators that something else stands for."""

BEHIND: Mapping[str, Wide] = {
    **dict.fromkeys(("Abs", "Div", "Neg"), smallest_over),
    **dict.fromkeys(("Add", "Einsum", "ReduceSum", "Sub", "Sum"), brought_back),
    **dict.fromkeys(("ScatterElements", "ScatterND"), scattered),
}
"""Operators whose results are worked on."""

__all__ = ["BEHIND", "REPLACED", "holds", "within"]
