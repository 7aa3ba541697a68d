"""Operators on the bits of integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from backends.mnn.modules.build import Build, type_of
from backends.mnn.modules.rewrites.types import Rewrite, Table
from backends.mnn.modules.table.row import INT, MOST_AXES
from ir.graph.graph import Node, Value
from passes.integers.wrapping import shift

DIGITS = 8
"""Hexadecimal digits of a 32-bit integer."""


def _is_integer(value: Value) -> bool:
    found = type_of(value)
    return found is not None and found.dtype in INT and found.rank is not None and found.rank < MOST_AXES


def by_digits(combine: Callable[[int, int], int]) -> Rewrite:
    """Hexadecimal digits of both operands in an axis of their own, combined by a table; the last has the sign.

    64-bit integers are held as 32-bit ones, so that these digits are all there are.
    """
    pairs = [combine(first, second) for first in range(16) for second in range(16)]
    table = np.array([*pairs, *(digit - 16 if digit > 7 else digit for digit in pairs)])
    places = np.array([16**place for place in range(DIGITS)])
    offsets = np.array([0] * (DIGITS - 1) + [256])

    def rewrite(node: Node, b: Build) -> Sequence[Value] | None:
        x, y = node.operand(0), node.operand(1)
        if not _is_integer(x) or not _is_integer(y):
            return None
        kind = x.dtype.numpy
        weights, base = b.const(places.astype(kind), "places"), b.like(16, x)
        first, second = _digits(x, b, weights, base), _digits(y, b, weights, base)
        index = b.add("Add", b.add("Add", b.add("Mul", first, base), second), b.const(offsets.astype(kind), "offsets"))
        found = b.add("Gather", b.const(table.astype(kind), "table"), index, axis=0)
        return [b.add("ReduceSum", b.add("Mul", found, weights), b.ints(-1), keepdims=0)]

    rewrite.__doc__ = by_digits.__doc__
    return rewrite


def _digits(value: Value, b: Build, weights: Value, base: Value) -> Value:
    wide = b.add("Unsqueeze", value, b.ints(-1))
    rest = b.add("Mod", wide, weights)
    return b.add("Mod", b.add("Div", b.add("Sub", wide, rest), weights), base)


def bitwise_not(node: Node, b: Build) -> Sequence[Value] | None:
    """``-1 - x``."""
    x = node.operand(0)
    return [b.add("Sub", b.like(-1, x), x)] if _is_integer(x) else None


def bit_shift(node: Node, b: Build) -> Sequence[Value] | None:
    """Quotients by powers of two, or repeated doubling; see `passes.integers.wrapping.shift`."""
    found = type_of(node.input(0))
    return [shift(node, b, found.dtype)] if found is not None and found.dtype in INT else None


REWRITES: Table = {
    "BitShift": (bit_shift,),
    "BitwiseAnd": (by_digits(lambda first, second: first & second),),
    "BitwiseNot": (bitwise_not,),
    "BitwiseOr": (by_digits(lambda first, second: first | second),),
    "BitwiseXor": (by_digits(lambda first, second: first ^ second),),
}
"""Rewrites by operator."""
