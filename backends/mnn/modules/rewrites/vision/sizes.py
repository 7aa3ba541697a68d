"""Sizes of axes that are known in numbers or only at run time, and what is done along axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from backends.mnn.modules.build import Build
from ir.graph.graph import Value
from ir.tensor.rearranged import reshaped as reshaped_tensor

Size = int | Value
"""A number, or a vector of one 64-bit integer."""

END = (1 << 31) - 1
"""As an end of a slice: all there is."""


def size(b: Build, value: Value, axis: int) -> Size:
    """The length of an axis."""
    known = value.dims[axis]
    return known if isinstance(known, int) else b.add("Shape", value, start=axis, end=axis + 1)


def sizes(b: Build, value: Value) -> list[Size]:
    """The lengths of all axes."""
    return [size(b, value, axis) for axis in range(len(value.dims))]


def vector(b: Build, parts: Sequence[Size]) -> Value:
    """Sizes as one vector of 64-bit integers."""
    if not any(isinstance(part, Value) for part in parts):
        return b.ints(*(part for part in parts if isinstance(part, int)))
    pieces = [part if isinstance(part, Value) else b.ints(part) for part in parts]
    return b.add("Concat", *pieces, axis=0)


def computed(b: Build, op: str, first: Size, second: Size) -> Size:
    """``Add``, ``Sub``, ``Mul``, ``Max`` or ``Div`` (rounded down) of sizes that are not negative."""
    if isinstance(first, int) and isinstance(second, int):
        return {
            "Add": first + second,
            "Sub": first - second,
            "Mul": first * second,
            "Max": max(first, second),
            "Div": first // second if second else 0,
        }[op]
    return b.add(op, *(part if isinstance(part, Value) else b.ints(part) for part in (first, second)))


def product(b: Build, parts: Sequence[Size]) -> Size:
    """Sizes multiplied."""
    found: Size = prod(part for part in parts if isinstance(part, int))
    for part in parts:
        if isinstance(part, Value):
            found = part if found == 1 else computed(b, "Mul", found, part)
    return found


def reshaped(b: Build, value: Value, parts: Sequence[Size]) -> Value:
    """A value in another shape; one size that is not known in numbers is left to follow from the others."""
    unknown = [index for index, part in enumerate(parts) if isinstance(part, Value)]
    if len(unknown) == 1 and 0 not in parts:
        parts = [-1 if index in unknown else part for index, part in enumerate(parts)]
    return b.add("Reshape", value, vector(b, parts))


def unsqueezed(b: Build, value: Value, *axes: int) -> Value:
    """A value with axes of length 1 at the given places; a constant of any size stays one."""
    if value.const is not None:
        shape = np.expand_dims(np.broadcast_to(0, value.sizes), axes).shape
        return b.const(reshaped_tensor(value.const, shape), "wide")
    return b.add("Unsqueeze", value, b.ints(*axes))


def squeezed(b: Build, value: Value, *axes: int) -> Value:
    """A value without some axes of length 1."""
    return b.add("Squeeze", value, b.ints(*axes))


def sliced(b: Build, value: Value, axis: int, start: int, end: int = END, step: int = 1) -> Value:
    """A part of a value along an axis."""
    if (start, end, step) == (0, END, 1):
        return value
    return b.add("Slice", value, b.ints(start), b.ints(end), b.ints(axis), b.ints(step))


def flipped(b: Build, value: Value, axis: int) -> Value:
    """A value with an axis in reverse order."""
    return sliced(b, value, axis, -1, -END, -1)


def padded(b: Build, value: Value, around: Mapping[int, tuple[int, int]], number: float = 0.0) -> Value:
    """A value with a number before and behind it along axes; negative widths cut off."""
    for axis, (before, behind) in around.items():
        value = sliced(b, value, axis, max(0, -before), behind if behind < 0 else END)
    kept = {axis: (max(before, 0), max(behind, 0)) for axis, (before, behind) in around.items()}
    if not any(any(pair) for pair in kept.values()):
        return value
    rank = len(value.dims)
    widths = [kept.get(axis, (0, 0))[side] for side in (0, 1) for axis in range(rank)]
    return b.add("Pad", value, b.ints(*widths), b.like(number, value), mode="constant")


def settled(b: Build, value: Value) -> Value:
    """A value of which slices with steps may be taken: the runtime joins what pads, and a slice with steps of it, to one copy
    that reads the wrong places; a maximum between them, with what no number is less than, keeps them apart."""
    return b.add("Max", value, b.like(float("-inf"), value))


def total(b: Build, op: str, values: Sequence[Value]) -> Value:
    """Values joined by an operator of two operands, in pairs."""
    rest = [*values]
    while len(rest) > 1:
        pairs = zip(rest[::2], rest[1::2], strict=False)
        rest = [b.add(op, *pair) for pair in pairs] + (rest[-1:] if len(rest) % 2 else [])
    return rest[0]


def along_last(b: Build, value: Value, axis: int, matrix: np.ndarray) -> Value:
    """A value whose axis is multiplied by a matrix.

    Args:
        value: of any shape.
        axis: of length n.
        matrix: m rows of n numbers.

    Returns:
        The value with the axis of length m.
    """
    rank = len(value.dims)
    factor = b.const(np.ascontiguousarray(matrix.T.astype(np.float32)), "matrix")
    if axis == rank - 1:
        return b.add("MatMul", value, factor)
    if axis == rank - 2:
        return b.add("MatMul", b.const(np.ascontiguousarray(matrix.astype(np.float32)), "matrix"), value)
    order = [*range(axis), *range(axis + 1, rank), axis]
    back = [*range(axis), rank - 1, *range(axis, rank - 1)]
    moved = b.add("MatMul", b.add("Transpose", value, perm=order), factor)
    return b.add("Transpose", moved, perm=back)


__all__ = [
    "END",
    "Size",
    "along_last",
    "computed",
    "flipped",
    "padded",
    "product",
    "reshaped",
    "settled",
    "size",
    "sizes",
    "sliced",
    "squeezed",
    "total",
    "unsqueezed",
    "vector",
]
