"""Operators that look at shapes, change them, and cut and join tensors, in other terms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from backends.mnn.modules.build import Build, numbers, type_of
from backends.mnn.modules.known import all_not_negative
from backends.mnn.modules.rewrites.sizes import as_value, at_least, place, size
from backends.mnn.modules.rewrites.types import Table
from backends.mnn.modules.table.shapes import padded_rightly, starts_inside
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


def pad_by_number(node: Node, b: Build) -> Sequence[Value] | None:
    """Pads of all axes, none of them negative: what is cut off instead is sliced off beforehand."""
    given, axes = type_of(node.input(0)), node.input(3)
    if given is None or given.rank is None or (axes is not None and axes.const is None):
        return None
    x, pads, rank = node.operand(0), node.operand(1), given.rank
    if axes is None and all_not_negative(pads):
        return None
    places = [int(axis) % rank for axis in _numbers(axes, list(range(rank)))]
    known = numbers(pads)
    attrs = {"mode": b.attr("mode")}
    if known is not None:
        ends = known.reshape(2, -1).astype(np.int64)
        whole = np.zeros((2, rank), np.int64)
        whole[:, places] = ends
        if (whole < 0).any():
            x = _cut(b, x, -np.minimum(whole, 0))
        return [b.add("Pad", x, b.ints(*np.maximum(whole, 0).reshape(-1).tolist()), node.input(2), **attrs)]
    if axes is not None:
        parts = [b.add("Gather", pads, b.ints(index), axis=0) for index in range(2 * len(places))]
        filled = [
            parts[half * len(places) + places.index(axis)] if axis in places else b.ints(0)
            for half in (0, 1)
            for axis in range(rank)
        ]
        return [b.add("Pad", x, b.add("Concat", *filled, axis=0), node.input(2), **attrs)]
    off = at_least(b, b.add("Neg", pads), 0)
    first, second = (b.add("Slice", off, b.ints(half * rank), b.ints((half + 1) * rank)) for half in (0, 1))
    kept = b.add("Slice", x, first, b.add("Sub", b.add("Shape", x), second), b.ints(*range(rank)))
    return [b.add("Pad", kept, at_least(b, pads, 0), node.input(2), **attrs)]


def _cut(b: Build, x: Value, off: np.ndarray) -> Value:
    """Without some elements at the start and at the end of each axis."""
    for axis, (first, last) in enumerate(off.T.tolist()):
        if first or last:
            end = END if not last else -last
            x = b.add("Slice", x, b.ints(first), b.ints(end), b.ints(axis))
    return x


def pad_one_by_one(node: Node, b: Build) -> Sequence[Value] | None:
    """One axis after the other; an axis that goes round is gathered."""
    given, pads, mode = type_of(node.input(0)), numbers(node.input(1)), b.attr("mode")
    if given is None or given.rank is None or pads is None or node.input(3) is not None or (pads < 0).any():
        return None
    if padded_rightly(node) is None:
        return None
    x, rank = node.operand(0), given.rank
    for axis, (first, last) in enumerate(pads.reshape(2, -1).T.astype(int).tolist()):
        if mode == "wrap" and (first or last):
            x = _round(b, x, axis, first, last)
        elif first or last:
            one = [0] * 2 * rank
            one[axis], one[axis + rank] = first, last
            x = b.add("Pad", x, b.ints(*one), node.input(2), mode=mode)
    return [x]


def _round(b: Build, x: Value, axis: int, first: int, last: int) -> Value:
    """An axis that begins with its last elements and ends with its first ones."""
    length = size(b, x, axis)
    if isinstance(length, int):
        return b.add("Gather", x, b.ints(*(np.arange(-first, length + last) % length).tolist()), axis=axis)
    end = b.reshape(b.add("Add", length, b.ints(last)), [])
    places = b.add("Range", b.scalar(-first, I64), end, b.scalar(1, I64))
    return b.add("Gather", x, b.add("Mod", places, length), axis=axis)


REWRITES: Table = {
    "Pad": (pad_by_number, pad_one_by_one),
    "Reshape": (reshape_with_zeros,),
    "Shape": (shape_in_part,),
    "Slice": (slice_by_axes,),
    "Split": (split_evenly, split_off_nothing),
}
"""Rewrites by operator."""
