"""Pools in the form that the converter reads: two axes, every attribute written, no dilation, results counted downwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Literal

import numpy as np

from backends.mnn.modules.build import Build
from backends.mnn.modules.rewrites.types import Table
from backends.mnn.modules.rewrites.vision.sizes import (
    END,
    Size,
    padded,
    product,
    reshaped,
    settled,
    sizes,
    sliced,
    squeezed,
    total,
    unsqueezed,
    vector,
)
from backends.mnn.modules.rewrites.vision.windows import Window, same_widths, window, with_pads, written
from ir.base.types import I64
from ir.graph.graph import Node, Value
from ir.ops.registry import attribute

WRITTEN = ("kernel_shape", "strides", "pads")
"""Attributes that stand at every pool that is left."""
LOWEST = float(np.finfo(np.float32).min)
"""What no element is less than."""


def window_of(node: Node) -> Window | None:
    """The window of a pool; None where the number of axes is not known."""
    kernel = attribute(node, "kernel_shape")
    rank = node.operand(0).rank
    if rank is None or not kernel or rank != len(kernel) + 2:
        return None
    return window(node, [int(each) for each in kernel])


def _widths(node: Node, b: Build, found: Window) -> list[tuple[Size, Size]] | None:
    """What is put around so that counting downwards gives all results; None where that depends on sizes at run time, or
    where those who compute it disagree: windows shorter than their strides with ``auto_pad``, and results that the recorded
    shape has not.

    Counting upwards adds a last window that is partly outside, unless it begins behind the last element.
    """
    if found.auto.startswith("SAME"):
        shorter = any(one < other for one, other in zip(found.reach, found.strides, strict=True))
        return None if shorter else same_widths(b, node.operand(0), found)
    up = bool(attribute(node, "ceil_mode"))
    made: list[tuple[Size, Size]] = []
    for axis, (before, behind) in enumerate(found.around):
        stride, reach = found.strides[axis], found.reach[axis]
        length = node.operand(0).dims[axis + 2]
        recorded = node.outputs[0].dims[axis + 2] if node.outputs[0].rank is not None else None
        if isinstance(length, int):
            room = length + before + behind - reach
            count = (-(-room // stride) if up else room // stride) + 1
            count -= up and (count - 1) * stride >= length + before
            if count < 1 or (isinstance(recorded, int) and recorded != count):
                return None
            made.append((before, max((count - 1) * stride + reach - length - before, 0) if up else behind))
        elif not up:
            made.append((before, behind))
        elif behind + stride <= reach:
            made.append((before, behind + stride - 1))
        else:
            return None
    return made


def is_plain(node: Node) -> bool:
    """Whether a pool is as the converter reads it, but for the number of axes."""
    found = window_of(node)
    return (
        found is not None
        and written(node, *WRITTEN)
        and not attribute(node, "ceil_mode")
        and max(found.dilations) == 1
        and len(node.outputs) == 1
        and not (attribute(node, "count_include_pad") and any(found.pads))
    )


def is_same_upper(node: Node) -> bool:
    """Whether a pool has ``auto_pad`` of the kind that the converter reads as it is meant."""
    found = window_of(node)
    return (
        found is not None
        and found.auto == "SAME_UPPER"
        and "strides" in node.attrs
        and not attribute(node, "ceil_mode")
        and max(found.dilations) == 1
        and len(node.outputs) == 1
        and not attribute(node, "count_include_pad")
        and all(one >= other for one, other in zip(found.kernel, found.strides, strict=True))
    )


def _pool(b: Build, op: str, x: Value, found: Window, pads: Sequence[int]) -> Value:
    dilations = {"dilations": list(found.dilations)} if max(found.dilations) > 1 else {}
    return b.add(
        op, x, kernel_shape=list(found.kernel), strides=list(found.strides), pads=list(pads), **dilations
    )  # fmt: skip


def written_out(node: Node, b: Build) -> Sequence[Value | None] | None:
    """Every attribute in numbers; what counts as an element, though it is outside, is put there."""
    found = window_of(node)
    if found is None or is_plain(node) or max(found.dilations) > 1 or _wants_places(node):
        return None
    if node.op == "AveragePool" and not attribute(node, "count_include_pad") and _waits_for_sizes(node, found):
        return None
    widths = _widths(node, b, found)
    if widths is None:
        return None
    x = node.operand(0)
    if attribute(node, "count_include_pad"):
        kept = found.around if not found.auto.startswith("SAME") else widths
        x, left = with_pads(b, x, kept)
        inside = [(left[axis], left[axis + found.axes]) for axis in range(found.axes)]
        x = padded(b, x, {axis + 2: pair for axis, pair in enumerate(inside)})
        beyond = [
            max(behind - known, 0) if isinstance(behind, int) and not found.auto.startswith("SAME") else 0
            for (_, behind), (_, known) in zip(widths, inside, strict=True)
        ]
        return [_pool(b, node.op, x, found, [*[0] * found.axes, *beyond])]
    x, pads = with_pads(b, x, widths, LOWEST if node.op == "MaxPool" else 0.0)
    made = _pool(b, node.op, x, found, pads)
    return [made, *[None] * (len(node.outputs) - 1)]


def _waits_for_sizes(node: Node, found: Window) -> bool:
    """Whether what ``auto_pad`` puts around depends on sizes that are known at run time."""
    lengths = zip(node.operand(0).dims[2:], found.strides, strict=True)
    return found.auto.startswith("SAME") and any(not isinstance(size, int) and stride > 1 for size, stride in lengths)


def _wants_places(node: Node) -> bool:
    return len(node.outputs) > 1 and node.outputs[1].use_count > 0


def with_two_axes(node: Node, b: Build) -> Sequence[Value | None] | None:
    """One axis as the second of two, the first of length 1."""
    found = window_of(node)
    if found is None or found.axes != 1:
        return None
    lengthened = {"kernel_shape": 1, "strides": 1, "dilations": 1}
    attrs = {name: [lengthened[name], *value] if name in lengthened else value for name, value in node.attrs.items()}
    if "pads" in attrs:
        before, behind = node.attrs["pads"]
        attrs["pads"] = [0, before, 0, behind]
    made = b.nodes(node.op, [unsqueezed(b, node.operand(0), 2)], attrs, len(node.outputs))
    return [squeezed(b, value, 2) for value in made]


def by_two_pools(node: Node, b: Build) -> Sequence[Value] | None:
    """Three axes as a pool over the last two and one over the first.

    The largest is the largest of the largest. A mean is the mean of means, since what is counted in a box is the product of
    what is counted along its edges.
    """
    found = window_of(node)
    if found is None or found.axes != 3 or not is_plain(node):
        return None
    before = sizes(b, node.operand(0))
    batch, channels, depth, height, width = before
    x = reshaped(b, node.operand(0), [batch, product(b, [channels, depth]), height, width])
    pads = found.pads
    x = _pool(b, node.op, x, replace(found, kernel=found.kernel[1:], strides=found.strides[1:],
                                     dilations=(1, 1)), [*pads[1:3], *pads[4:]])  # fmt: skip
    _, _, rows, columns = sizes(b, x)
    x = reshaped(b, x, [batch, channels, depth, product(b, [rows, columns])])
    x = _pool(b, node.op, x, replace(found, kernel=(found.kernel[0], 1), strides=(found.strides[0], 1),
                                     dilations=(1, 1)), [pads[0], 0, pads[3], 0])  # fmt: skip
    planes = sizes(b, x)[2]
    return [reshaped(b, x, [batch, channels, planes, rows, columns])]


def _parts(b: Build, x: Value, axis: int, count: int, dilation: int, stride: int) -> list[Value]:
    """For each place in a window, the elements of all windows that stand there."""
    return [
        sliced(b, x, axis, index * dilation, -left if (left := (count - 1 - index) * dilation) else END, stride)
        for index in range(count)
    ]


def by_places(node: Node, b: Build) -> Sequence[Value | None] | None:
    """Windows with gaps axis by axis, from one slice for each place in a window; places of the largest elements too."""
    found = window_of(node)
    if found is None or (max(found.dilations) == 1 and not _wants_places(node)) or _waits_for_sizes(node, found):
        return None
    widths = _widths(node, b, found)
    if widths is None:
        return None
    known = [pair for pair in widths if isinstance(pair[0], int) and isinstance(pair[1], int)]
    if len(known) < len(widths):
        return None
    around = {axis + 2: (int(pair[0]), int(pair[1])) for axis, pair in enumerate(known)}  # type: ignore[arg-type]
    if node.op == "MaxPool" and _wants_places(node):
        return _largest_and_where(node, b, found, around)
    if node.op == "MaxPool":
        return [_joined(b, settled(b, padded(b, node.operand(0), around, LOWEST)), found, "Max")]
    counts = _counts(node, found, around)
    if counts is None:
        return None
    made = _joined(b, settled(b, padded(b, node.operand(0), around)), found, "Add")
    return [b.add("Div", made, b.const(counts, "counts"))]


def _joined(b: Build, x: Value, found: Window, op: str) -> Value:
    for axis in reversed(range(found.axes)):
        parts = _parts(b, x, axis + 2, found.kernel[axis], found.dilations[axis], found.strides[axis])
        x = total(b, op, parts)
    return x


def _counts(node: Node, found: Window, around: dict[int, tuple[int, int]]) -> np.ndarray | None:
    """How many elements each window counts; None where that depends on sizes at run time."""
    whole = bool(attribute(node, "count_include_pad"))
    given = {axis + 2: pair for axis, pair in enumerate(found.around)}
    if found.auto.startswith("SAME"):
        given = around
    if not any(map(any, around.values())) or (whole and given == around):
        return np.array(prod(found.kernel), np.float32)
    counts = np.ones((1, 1, *[1] * found.axes), np.float32)
    for axis in range(found.axes):
        length = node.operand(0).dims[axis + 2]
        if not isinstance(length, int):
            return None
        before, behind = around[axis + 2]
        row = np.zeros(before + length + behind, np.float32)
        start, end = (before - given[axis + 2][0], before + length + given[axis + 2][1]) if whole else (
            before, before + length)  # fmt: skip
        row[start:end] = 1
        reach, stride = found.reach[axis], found.strides[axis]
        steps = range(0, len(row) - reach + 1, stride)
        line = np.array([row[start : start + reach : found.dilations[axis]].sum() for start in steps], np.float32)
        counts = counts * line.reshape([-1 if other == axis + 2 else 1 for other in range(found.axes + 2)])
    return counts


def _largest_and_where(
    node: Node, b: Build, found: Window, around: dict[int, tuple[int, int]]
) -> Sequence[Value] | None:
    """The largest elements, and where they stand in the whole tensor; the first of several, as the elements lie in memory."""
    x = node.operand(0)
    lengths = [each for each in x.dims[2:] if isinstance(each, int)]
    if len(lengths) < found.axes:
        return None
    order: Literal["F", "C"] = "F" if attribute(node, "storage_order") else "C"
    places = np.reshape(np.arange(prod(lengths), dtype=np.int32), lengths, order=order)
    spread = np.pad(places, [around[axis + 2] for axis in range(found.axes)])
    where = b.const(spread.reshape(1, 1, *spread.shape), "places")
    best = settled(b, padded(b, x, around, LOWEST))
    for axis in reversed(range(found.axes)):
        step = (axis + 2, found.kernel[axis], found.dilations[axis], found.strides[axis])
        values, marks = _parts(b, best, *step), _parts(b, where, *step)
        best, where = values[0], marks[0]
        for value, mark in zip(values[1:], marks[1:], strict=True):
            larger = b.add("Greater", value, best)
            best = b.add("Where", larger, value, best)
            where = b.add("Where", larger, mark, where)
    batch, channels = sizes(b, x)[:2]
    count = product(b, [batch, channels])
    if isinstance(count, int) and isinstance(channels, int):
        first = b.const(np.arange(count, dtype=np.int64).reshape(-1, channels, *[1] * found.axes) * prod(lengths))
    else:
        end = b.add("Squeeze", vector(b, [count]), b.ints(0))
        ranged = b.add("Range", b.scalar(0, I64), end, b.scalar(1, I64))
        ranged = b.add("Mul", ranged, b.scalar(prod(lengths), I64))
        first = reshaped(b, ranged, [batch, channels, *[1] * found.axes])
    return [best, b.add("Add", b.cast(where, node.outputs[1].dtype), first)]


def norm_of_windows(node: Node, b: Build) -> Sequence[Value] | None:
    """``LpPool``: the root of the sum of powers."""
    found = window_of(node)
    if found is None:
        return None
    widths = _widths(node, b, found)
    if widths is None:
        return None
    order = int(attribute(node, "p"))
    x, pads = with_pads(b, _power(b, node.operand(0), order), widths)
    x = padded(b, x, {axis + 2: (pads[axis], pads[axis + found.axes]) for axis in range(found.axes)})
    mean = _pool(b, "AveragePool", x, found, [0] * (2 * found.axes))
    return [_root(b, b.add("Mul", mean, b.like(prod(found.kernel), x)), order)]


def _power(b: Build, x: Value, order: int) -> Value:
    if order == 2:
        return b.add("Mul", x, x)
    x = b.add("Abs", x)
    return x if order == 1 else b.add("Pow", x, b.like(order, x))


def _root(b: Build, x: Value, order: int) -> Value:
    if order == 1:
        return x
    return b.add("Sqrt", x) if order == 2 else b.add("Pow", x, b.like(1 / order, x))


def over_all(node: Node, b: Build) -> Sequence[Value] | None:
    """A pool over all of the axes behind the second as a reduction."""
    x = node.operand(0)
    if x.rank is None:
        return None
    axes = b.ints(*range(2, x.rank))
    if node.op != "GlobalLpPool":
        return [b.add("ReduceMean" if node.op == "GlobalAveragePool" else "ReduceMax", x, axes, keepdims=1)]
    order = int(attribute(node, "p"))
    return [_root(b, b.add("ReduceSum", _power(b, x, order), axes, keepdims=1), order)]


def unpooled(node: Node, b: Build) -> Sequence[Value] | None:
    """``MaxUnpool``: elements are put into zeros, as long as the size of the result is that of the attributes."""
    found = window_of(node)
    shape = node.operand(0).shape
    if found is None or shape is None or node.input(2) is not None:
        return None
    known = [each for each in shape if isinstance(each, int)]
    if len(known) < len(shape):
        return None
    lengths = [
        (length - 1) * found.strides[axis] + found.kernel[axis] - sum(found.around[axis])
        for axis, length in enumerate(known[2:])
    ]
    whole = [*known[:2], *lengths]
    zeros = b.const(np.zeros(prod(whole), np.float32), "zeros")
    flat = [b.reshape(value, [-1]) for value in (node.operand(1), node.operand(0))]
    return [b.reshape(b.add("ScatterElements", zeros, *flat, axis=0), whole)]


REWRITES: Table = {
    "MaxPool": (with_two_axes, written_out, by_two_pools, by_places),
    "AveragePool": (with_two_axes, written_out, by_two_pools, by_places),
    "LpPool": (with_two_axes, norm_of_windows),
    "GlobalAveragePool": (over_all,),
    "GlobalMaxPool": (over_all,),
    "GlobalLpPool": (over_all,),
    "MaxUnpool": (unpooled,),
}
"""Rewrites by operator."""
