"""Operators that look at shapes, change them, and cut and join tensors, in other terms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from backends.mnn.modules.build import Build, numbers, type_of
from backends.mnn.modules.rewrites.sizes import as_value, at_least, place, size
from backends.mnn.modules.rewrites.types import Table
from backends.mnn.modules.table.shapes import starts_inside
from ir.base.types import I64
from ir.graph.graph import Node, Value

END = (1 << 31) - 1
"""The end of a slice that reaches to the end of its axis."""


def shape_in_part(node: Node, b: Build) -> Sequence[Value] | None:
    """Some sizes are cut out of all of them."""
    given = type_of(node.input(0))
    if given is None or given.rank is None or not (b.attr("start") or b.attr("end") is not None):
        return None
    places = list(range(given.rank))[slice(b.attr("start") or 0, b.attr("end"))]
    if not places:
        return [b.const(np.zeros(0, np.int64), "nothing")]
    return [b.add("Slice", b.add("Shape", node.operand(0)), b.ints(places[0]), b.ints(places[-1] + 1))]


def reshape_with_zeros(node: Node, b: Build) -> Sequence[Value] | None:
    """A shape without zeros means the same whatever zeros mean."""
    sizes = numbers(node.input(1))
    if not b.attr("allowzero") or sizes is None or not sizes.all():
        return None
    return [b.add("Reshape", node.operand(0), node.operand(1))]


def split_evenly(node: Node, b: Build) -> Sequence[Value] | None:
    """The sizes of parts written down: equal ones, the last one smaller where they do not fit."""
    if node.input(1) is not None:
        return None
    x, axis, count = node.operand(0), int(b.attr("axis")), int(b.attr("num_outputs") or len(node.outputs))
    length = size(b, x, axis)
    if isinstance(length, int):
        part = -(-length // count)
        parts = [max(min(part, length - part * index), 0) for index in range(count)]
        return b.nodes("Split", [x, b.ints(*parts)], {"axis": axis}, count)
    part_ = b.add("Div", b.add("Add", length, b.ints(count - 1)), b.ints(count))
    last = b.add("Sub", length, b.add("Mul", part_, b.ints(count - 1)))
    return b.nodes("Split", [x, b.add("Concat", *[part_] * (count - 1), last, axis=0)], {"axis": axis}, count)


def split_off_nothing(node: Node, b: Build) -> Sequence[Value] | None:
    """Parts without elements are cut out by themselves."""
    x, axis, parts = node.operand(0), int(b.attr("axis")), numbers(node.input(1))
    if parts is None or parts.all():
        return None
    sizes = [int(part) for part in parts.reshape(-1)]
    kept = [part for part in sizes if part]
    found = iter(b.nodes("Split", [x, b.ints(*kept)], {"axis": axis}, len(kept)) if len(kept) > 1 else [x])
    return [next(found) if part else _nothing(b, x, axis) for part in sizes]


def _nothing(b: Build, x: Value, axis: int) -> Value:
    return b.add("Slice", x, b.ints(0), b.ints(0), b.ints(axis))


def slice_by_axes(node: Node, b: Build) -> Sequence[Value] | None:
    """Starts that lie before the first element are moved there; what runs backwards is gathered."""
    given, steps_, axes_ = type_of(node.input(0)), node.input(4), node.input(3)
    if given is None or given.rank is None or starts_inside(node) is None:
        return None
    if (steps_ is not None and steps_.const is None) or (axes_ is not None and axes_.const is None):
        return None
    count = _length(node.operand(1))
    if axes_ is None and count is None:
        return None
    axes = [int(axis) % given.rank for axis in _numbers(axes_, list(range(count or 0)))]
    steps = _numbers(steps_, [1] * len(axes))
    starts, ends = (_each(b, node.operand(index), len(axes)) for index in (1, 2))
    x = node.operand(0)
    for axis, step, start, end in zip(axes, steps, starts, ends, strict=True):
        x = _forwards(b, x, axis, step, start, end) if step > 0 else _backwards(b, x, axis, step, start, end)
    return [x]


def _numbers(value: Value | None, default: list[int]) -> list[int]:
    found = numbers(value)
    return default if found is None else [int(number) for number in found.reshape(-1)]


def _length(value: Value) -> int | None:
    sizes = value.shape
    return sizes[0] if sizes is not None and len(sizes) == 1 and isinstance(sizes[0], int) else None


def _each(b: Build, value: Value, count: int) -> list[int | Value]:
    known = numbers(value)
    if known is not None:
        return [int(number) for number in known.reshape(-1)]
    whole = b.cast(value, I64)
    return [whole] if count == 1 else [b.add("Gather", whole, b.ints(index), axis=0) for index in range(count)]


def _forwards(b: Build, x: Value, axis: int, step: int, start: int | Value, end: int | Value) -> Value:
    length = size(b, x, axis)
    if not isinstance(start, int) or start < (-length if isinstance(length, int) else -1):
        if isinstance(start, int) and isinstance(length, int):
            start = 0
        else:
            moved = b.add("Add", as_value(b, length), as_value(b, start))
            if not isinstance(start, int):
                moved = b.add("Where", b.add("Less", start, b.scalar(0, I64)), moved, start)
            start = at_least(b, moved, 0)
    return b.add("Slice", x, as_value(b, start), as_value(b, end), b.ints(axis), b.ints(step))


def _backwards(b: Build, x: Value, axis: int, step: int, start: int | Value, end: int | Value) -> Value:
    length = size(b, x, axis)
    first, last = place(b, start, length, 0, -1), place(b, end, length, -1, -1)
    if isinstance(first, int) and isinstance(last, int):
        places = list(range(first, last, step))
        return b.add("Gather", x, b.ints(*places), axis=axis) if places else _nothing(b, x, axis)
    ends = [b.reshape(as_value(b, number), []) for number in (first, last)]
    return b.add("Gather", x, b.add("Range", *ends, b.scalar(step, I64)), axis=axis)


REWRITES: Table = {
    "Reshape": (reshape_with_zeros,),
    "Shape": (shape_in_part,),
    "Slice": (slice_by_axes,),
    "Split": (split_evenly, split_off_nothing),
}
"""Rewrites by operator."""
