"""Operators that take elements by their places, or put them there, in other terms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from backends.mnn.modules.build import Build, numbers, type_of
from backends.mnn.modules.known import all_not_negative
from backends.mnn.modules.rewrites.sizes import as_value, at_least, size
from backends.mnn.modules.rewrites.types import Table
from backends.mnn.modules.table.choice import has_elements, vectors_of_few
from backends.mnn.modules.table.row import FLOAT
from ir.base.types import BOOL, F32, I32, I64
from ir.graph.graph import Node, Value
from ir.tensor.inline import InlineTensor

MOST_COMPARED = 1 << 22
"""Elements that a comparison of all places with all others may have."""


def _counted(b: Build, indices: Value, sizes: int | Value, *, keep_below: bool = False) -> Value:
    """Indices counted from the start, where negative ones count from the end.

    Args:
        sizes: what they are counted to.
        keep_below: those that lie before the first element stay there.
    """
    if all_not_negative(indices):
        return indices
    wide = b.cast(indices, I64)
    known = numbers(indices)
    if known is not None and (isinstance(sizes, int) or sizes.const is not None):
        length = sizes if isinstance(sizes, int) else numbers(sizes)
        return b.const(np.where(known < 0, known + length, known).astype(np.int64), "places")
    length_ = b.scalar(sizes, I64) if isinstance(sizes, int) else sizes
    from_end = b.add("Add", wide, length_)
    chosen = b.add("Where", b.add("Less", wide, b.scalar(0, I64)), from_end, wide)
    return chosen if keep_below else at_least(b, chosen, 0)


def gather_elements(node: Node, b: Build) -> Sequence[Value] | None:
    """Indices counted from the start."""
    given = type_of(node.input(0))
    if given is None or not given.rank or all_not_negative(node.operand(1)):
        return None
    axis = int(b.attr("axis")) % given.rank
    places = _counted(b, node.operand(1), size(b, node.operand(0), axis))
    return [b.add("GatherElements", node.operand(0), places, axis=axis)]


def gather_nd(node: Node, b: Build) -> Sequence[Value] | None:
    """Vectors of indices counted from the start; behind batches they become one number for each place."""
    data, indices, batches = node.operand(0), node.operand(1), int(b.attr("batch_dims"))
    given, vectors = type_of(data), type_of(indices)
    if given is None or vectors is None or not given.rank or not vectors.shape:
        return None
    if vectors_of_few(node) is None:
        return None
    width = vectors.shape[-1]
    if not isinstance(width, int):
        return None
    sizes = b.add("Shape", data)
    chosen = _part(b, data, batches, batches + width)
    places = _counted(b, indices, chosen)
    if not batches or width == 1:
        return [b.add("GatherND", data, places, batch_dims=batches)]
    flat = _flattened(b, places, chosen)
    kept = b.add("Slice", sizes, b.ints(0), b.ints(batches))
    rest = b.add("Slice", sizes, b.ints(batches + width), b.ints(given.rank))
    shape = b.add("Concat", kept, b.add("ReduceProd", chosen, keepdims=1), rest, axis=0)
    return [b.add("GatherND", b.add("Reshape", data, shape), flat, batch_dims=batches)]


def _flattened(b: Build, vectors: Value, sizes: Value) -> Value:
    """The number of the place that each vector of indices names; the last axis becomes 1."""
    width, known = sizes.sizes[0], numbers(sizes)
    if known is not None:
        strides = b.const(np.append(np.cumprod(known[:0:-1])[::-1], 1).astype(np.int64), "strides")
    else:
        rests = [b.add("Slice", sizes, b.ints(index), b.ints(width)) for index in range(1, width)]
        parts = [b.add("ReduceProd", rest, keepdims=1) for rest in rests]
        strides = b.add("Concat", *parts, b.ints(1), axis=0)
    return b.add("ReduceSum", b.add("Mul", vectors, strides), b.ints(-1), keepdims=1)


def scatter_elements(node: Node, b: Build) -> Sequence[Value] | None:
    """Indices counted from the start; a reduction along the first axis."""
    given, reduction = type_of(node.input(0)), b.attr("reduction") or "none"
    if given is None or not given.rank:
        return None
    data, axis = node.operand(0), int(b.attr("axis")) % given.rank
    if reduction == "none":
        if all_not_negative(node.operand(1)):
            return None
        places = _counted(b, node.operand(1), size(b, data, axis))
        return [b.add("ScatterElements", data, places, node.operand(2), axis=axis)]
    order = [axis, *(place for place in range(given.rank) if place != axis)]
    back = [order.index(place) for place in range(given.rank)]
    places = _counted(b, node.operand(1), size(b, data, axis))
    turned = [b.add("Transpose", x, perm=tuple(order)) if axis else x for x in (data, places, node.operand(2))]
    found = _reduced(b, turned, reduction)
    if found is None:
        return None
    return [b.add("Transpose", found, perm=tuple(back)) if axis else found]


def _reduced(b: Build, operands: Sequence[Value], reduction: str) -> Value | None:
    """Elements put along the first axis, where each place is met any number of times."""
    data, places, updates = operands
    if reduction in ("add", "mul") and data.dtype in FLOAT:
        return b.add("ScatterElements", data, places, updates, reduction=reduction)
    return _compared(b, data, places, updates, reduction)


def _compared(b: Build, data: Value, places: Value, updates: Value, reduction: str) -> Value | None:
    """Every place compared with every index, and what is equal reduced: exact for integers, and for extremes."""
    given, put = type_of(data), type_of(places)
    if given is None or put is None or given.sizes is None or put.sizes is None or data.dtype == BOOL:
        return None
    rows, rest = given.sizes[0], given.sizes[1:]
    if rows * int(np.prod(put.sizes)) > MOST_COMPARED:
        return None
    fill = {
        "add": 0,
        "mul": 1,
        "max": -np.inf if data.dtype.is_float else data.dtype.low,
        "min": np.inf if data.dtype.is_float else data.dtype.high,
    }
    op, step = {
        "add": ("ReduceSum", "Add"),
        "mul": ("ReduceProd", "Mul"),
        "max": ("ReduceMax", "Max"),
        "min": ("ReduceMin", "Min"),
    }[reduction]
    each = b.const(np.arange(rows).reshape(rows, *[1] * len(put.sizes)), "rows")
    whole = (rows, *put.sizes)
    met = b.add("Equal", b.add("Expand", b.add("Unsqueeze", places, b.ints(0)), b.ints(*whole)), each)
    spread = b.add("Expand", b.add("Unsqueeze", updates, b.ints(0)), b.ints(*whole))
    found = b.add(op, b.add("Where", met, spread, b.like(fill[reduction], data)), b.ints(1), keepdims=0)
    covered = put.sizes[1:]
    if covered == rest:
        return b.add(step, data, found)
    # Indices may cover a part of the other axes: the rest stays as it is.
    pads = [0] * given.rank + [0, *(all_ - part for all_, part in zip(rest, covered, strict=True))]  # type: ignore[operator]
    neutral = b.like(fill[reduction], data)
    return b.add(step, data, b.add("Pad", found, b.ints(*pads), neutral, mode="constant"))


def scatter_nd(node: Node, b: Build) -> Sequence[Value] | None:
    """Vectors of indices become one number each, and what they name one axis."""
    data, indices, updates = (node.operand(index) for index in range(3))
    given, vectors = type_of(data), type_of(indices)
    if (
        given is None
        or vectors is None
        or not given.rank
        or not vectors.shape
        or not isinstance(vectors.shape[-1], int)
    ):
        return None
    width, reduction = vectors.shape[-1], b.attr("reduction") or "none"
    sizes = b.add("Shape", data)
    named, rest = _part(b, data, 0, width), _part(b, data, width, given.rank)
    flat = b.reshape(_flattened(b, _counted(b, indices, named), named), (-1, 1))
    rows, columns = b.add("ReduceProd", named, keepdims=1), _product(b, rest)
    table = b.add("Reshape", data, b.add("Concat", rows, columns, axis=0))
    put = b.add(
        "Reshape", updates, b.add("Concat", b.add("Slice", b.add("Shape", flat), b.ints(0), b.ints(1)), columns, axis=0)
    )
    if reduction == "none":
        found: Value | None = b.add("ScatterND", table, flat, put)
    else:
        found = _reduced(b, [table, b.add("Expand", flat, b.add("Shape", put)), put], reduction)
    return None if found is None else [b.add("Reshape", found, sizes)]


def _part(b: Build, x: Value, start: int, end: int) -> Value:
    found = type_of(x)
    sizes = found.shape[start:end] if found is not None and found.shape is not None else ()
    if all(isinstance(each, int) for each in sizes):
        return b.ints(*[each for each in sizes if isinstance(each, int)])
    return b.add("Slice", b.add("Shape", x), b.ints(start), b.ints(end))


def _product(b: Build, sizes: Value) -> Value:
    known = numbers(sizes)
    return b.ints(int(known.prod())) if known is not None else b.add("ReduceProd", sizes, keepdims=1)


def compress(node: Node, b: Build) -> Sequence[Value] | None:
    """The places where the condition holds, gathered."""
    x, axis = node.operand(0), b.attr("axis")
    places = b.reshape(b.add("NonZero", node.operand(1)), [-1])
    return [b.add("Gather", b.reshape(x, [-1]) if axis is None else x, places, axis=0 if axis is None else int(axis))]


def one_hot(node: Node, b: Build) -> Sequence[Value] | None:
    """Places compared with each number below the depth; the converter reads a depth of floats as if it were integers."""
    given = type_of(node.input(0))
    if given is None or given.rank is None or type_of(node.input(2)) is None:
        return None
    indices, depth, values = (node.operand(index) for index in range(3))
    axis = int(b.attr("axis")) % (given.rank + 1)
    count, known = b.cast(b.reshape(depth, [1]), I64), numbers(depth)
    if known is not None:
        count = b.ints(int(known.reshape(-1)[0]))
    wide = b.add("Unsqueeze", _counted(b, b.cast(indices, I64), count, keep_below=True), b.ints(axis))
    shape = [-1 if place == axis else 1 for place in range(given.rank + 1)]
    places = b.reshape(_range(b, count), shape)
    whole = b.add("Concat", *_around(b, indices, count, axis), axis=0)
    met = b.add("Equal", b.add("Expand", wide, whole), places)
    off, on = (b.reshape(b.add("Gather", values, b.ints(place), axis=0), []) for place in (0, 1))
    return [b.add("Where", met, on, off)]


def _around(b: Build, indices: Value, count: Value, axis: int) -> list[Value]:
    """The shape of indices with one more size."""
    rank = len(indices.dims)
    parts = [_part(b, indices, 0, axis), count, _part(b, indices, axis, rank)]
    return [part for part in parts if part.shape != (0,)]


def _range(b: Build, count: Value) -> Value:
    """The numbers from 0 up to a vector of one element."""
    known = numbers(count)
    if known is not None:
        return b.const(np.arange(int(known[0])), "places")
    return b.add("Range", b.scalar(0, I64), b.reshape(count, []), b.scalar(1, I64))


def top_k(node: Node, b: Build) -> Sequence[Value | None] | None:
    """Places by value: of equal elements the first is taken first, as many times as the value is met.

    The runtime takes any of them. Every value is compared with all elements of its axis.
    """
    given = type_of(node.input(0))
    if given is None or not given.rank or not node.outputs[1].use_count:
        return None
    x, last = node.operand(0), given.rank - 1
    axis = int(b.attr("axis")) % given.rank
    order = list(range(given.rank))
    order[axis], order[last] = last, axis
    if axis != last:
        x = b.add("Transpose", x, perm=tuple(order))
    attrs = {"axis": last, "largest": b.attr("largest"), "sorted": 1}
    values = b.nodes("TopK", [x, node.operand(1)], attrs, 2)[0]
    row, column = b.add("Unsqueeze", values, b.ints(-2)), b.add("Unsqueeze", values, b.ints(-1))
    every = b.add("Unsqueeze", x, b.ints(-2))
    number = b.cast(b.add("Equal", column, row), I32)
    before = b.add("ReduceSum", b.add("Trilu", number, b.scalar(-1, I64), upper=0), b.ints(-1), keepdims=1)
    same = b.cast(b.add("Equal", column, every), I32)
    met = b.add("CumSum", same, b.scalar(given.rank, I64))
    this = b.add("Mul", same, b.cast(b.add("Equal", met, b.add("Add", before, b.scalar(1, I32))), I32))
    places = b.add("ArgMax", b.cast(this, F32), axis=-1, keepdims=0)
    if axis != last:
        values, places = (b.add("Transpose", each, perm=tuple(order)) for each in (values, places))
    return [values, places]


def eye_like(node: Node, b: Build) -> Sequence[Value] | None:
    """Like the operand in the element type of the result."""
    made, given = type_of(node.output), type_of(node.input(0))
    if made is None or given is None or made.dtype == given.dtype:
        return None
    sizes = given.sizes
    if sizes is not None:
        return [b.const(np.eye(sizes[0], sizes[1], int(b.attr("k")), dtype=made.dtype.numpy), "eye")]
    x = b.add("Expand", b.like(0, node.output), b.add("Shape", node.operand(0)))
    return [b.add("EyeLike", x, k=b.attr("k"), dtype=made.dtype.onnx)]


def constant_of_shape(node: Node, b: Build) -> Sequence[Value] | None:
    """Zeros, said by name."""
    if node.attrs.get("value") is not None:
        return None
    return [b.add("ConstantOfShape", node.operand(0), value=InlineTensor(np.zeros(1, np.float32)))]


def reverse_sequence(node: Node, b: Build) -> Sequence[Value] | None:
    """Each place of a sequence counted from its end, gathered: the runtime fails, or mixes up channels."""
    given = type_of(node.input(0))
    if given is None or given.rank is None or given.rank < 2:
        return None
    x, time, batch = node.operand(0), int(b.attr("time_axis")), int(b.attr("batch_axis"))

    def along(value: Value, axis: int) -> Value:
        return b.reshape(value, [-1 if place == axis else 1 for place in range(given.rank or 0)])

    places = along(_range(b, as_value(b, size(b, x, time))), time)
    lengths = along(b.cast(node.operand(1), I64), batch)
    turned = b.add("Sub", b.add("Sub", lengths, b.scalar(1, I64)), places)
    inside = b.add("Greater", lengths, places)
    chosen = b.add("Where", inside, turned, b.add("Expand", places, b.add("Shape", turned)))
    covering = b.add("Expand", at_least(b, chosen, 0), b.add("Shape", x))
    return [b.add("GatherElements", x, covering, axis=time)]


def trilu_of_nothing(node: Node, b: Build) -> Sequence[Value] | None:
    """What has no elements stays as it is."""
    return [b.add("Identity", node.operand(0))] if has_elements(node) is not None else None


def suppressed(node: Node, b: Build) -> Sequence[Value] | None:
    """No boxes where none are asked for; boxes by their corners."""
    if node.input(2) is None:
        return [b.const(np.zeros((0, 3), np.int64), "nothing")]
    if not b.attr("center_point_box"):
        return None
    x, y, wide, high = b.nodes("Split", [node.operand(0), b.ints(1, 1, 1, 1)], {"axis": 2}, 4)
    half = b.scalar(0.5)
    wide, high = b.add("Mul", wide, half), b.add("Mul", high, half)
    sides = [
        b.add(op, *pair)
        for op, pair in (("Sub", (y, high)), ("Sub", (x, wide)), ("Add", (y, high)), ("Add", (x, wide)))
    ]
    return [b.add("NonMaxSuppression", b.add("Concat", *sides, axis=2), *node.inputs[1:])]


REWRITES: Table = {
    "NonMaxSuppression": (suppressed,),
    "Trilu": (trilu_of_nothing,),
    "Compress": (compress,),
    "ConstantOfShape": (constant_of_shape,),
    "EyeLike": (eye_like,),
    "GatherElements": (gather_elements,),
    "GatherND": (gather_nd,),
    "OneHot": (one_hot,),
    "ReverseSequence": (reverse_sequence,),
    "ScatterElements": (scatter_elements,),
    "ScatterND": (scatter_nd,),
    "TopK": (top_k,),
}
"""Rewrites by operator."""
