"""Sizes and places along an axis, as numbers where they are known and computed where they are not."""

from __future__ import annotations

from backends.mnn.modules.build import Build, type_of
from ir.base.types import I64
from ir.graph.graph import Value

FAR = 1 << 30
"""What is as large is meant to be beyond the end of any axis."""


def size(b: Build, x: Value, axis: int) -> int | Value:
    """The size of an axis: a number, or a vector of one element."""
    found = type_of(x)
    known = found.shape[axis] if found is not None and found.shape is not None else None
    return known if isinstance(known, int) else b.add("Gather", b.add("Shape", x), b.ints(axis), axis=0)


def as_value(b: Build, number: int | Value) -> Value:
    """A vector of one 64-bit integer."""
    return b.ints(number) if isinstance(number, int) else number


def at_least(b: Build, x: Value, low: int) -> Value:
    """The larger of each element and a number."""
    bound = b.scalar(low, I64)
    return b.add("Where", b.add("Greater", x, bound), x, bound)


def at_most(b: Build, x: Value, high: Value) -> Value:
    """The smaller of each element and a bound."""
    return b.add("Where", b.add("Greater", high, x), x, high)


def place(b: Build, number: int | Value, length: int | Value, low: int, past: int) -> int | Value:
    """A place that is counted from the end where it is negative, moved to lie between two bounds.

    Args:
        number: the place, a number or a vector of one element.
        length: size of the axis.
        low: the lowest place.
        past: the highest one, less the size of the axis: 0 for one place behind the last element.
    """
    if isinstance(number, int) and isinstance(length, int):
        return min(max(number + length if number < 0 else number, low), length + past)
    if isinstance(number, int) and number < -FAR:
        return low
    size_ = as_value(b, length)
    highest = b.add("Add", size_, b.ints(past)) if past else size_
    if isinstance(number, int):
        if number > FAR:
            return highest
        if number < 0:
            return at_least(b, b.add("Add", size_, b.ints(number)), low)
        return at_most(b, b.ints(number), highest)
    from_end = b.add("Add", number, size_)
    counted = b.add("Where", b.add("Less", number, b.scalar(0, I64)), from_end, number)
    return at_most(b, at_least(b, counted, low), highest)


__all__ = ["FAR", "as_value", "at_least", "at_most", "place", "size"]
