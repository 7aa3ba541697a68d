"""Operators that read images at computed places, or take them apart."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from backends.mnn.modules.build import Build, numbers
from backends.mnn.modules.rewrites.types import Table
from backends.mnn.modules.rewrites.vision.resizing import text
from backends.mnn.modules.rewrites.vision.sizes import (
    Size,
    product,
    reshaped,
    size,
    sizes,
    sliced,
    squeezed,
    total,
    unsqueezed,
)
from ir.base.types import F32
from ir.graph.graph import Node, Value
from ir.ops.registry import attribute

CUBIC = -0.75
"""The constant of cubic interpolation in ``GridSample``."""


def reflected(node: Node, b: Build) -> Sequence[Value] | None:
    """Places beyond the border are turned back into the image, which lies between -1 and 1."""
    if text(node, "padding_mode") != "reflection" or text(node, "mode") == "cubic":
        return None
    grid = _reflected(b, node.operand(1))
    return [b.add("GridSample", node.operand(0), grid, **{**node.attrs, "padding_mode": "border"})]


def _reflected(b: Build, grid: Value) -> Value:
    one, two, four = (b.like(each, grid) for each in (1, 2, 4))
    moved = b.add("Add", grid, one)
    turns = b.add("Floor", b.add("Div", moved, four))
    within = b.add("Sub", moved, b.add("Mul", turns, four))
    turned = b.add("Sub", one, b.add("Abs", b.add("Sub", within, two)))
    return b.add("Where", b.add("Greater", b.add("Abs", grid), one), turned, grid)


def cubic_samples(node: Node, b: Build) -> Sequence[Value] | None:
    """Cubic interpolation from the sixteen elements around, each read by itself."""
    x, grid = node.operand(0), node.operand(1)
    if text(node, "mode") != "cubic" or x.rank != 4:
        return None
    aligned = bool(attribute(node, "align_corners"))
    padding = text(node, "padding_mode")
    if aligned and any(not isinstance(length, int) or length < 2 for length in x.dims[2:]):
        return None
    if padding == "reflection":
        grid = _reflected(b, grid)
    ways = []
    for place, axis in ((0, 3), (1, 2)):
        at = squeezed(b, sliced(b, grid, 3, place, place + 1), 3)
        length = _number(b, size(b, x, axis))
        ways.append(_Way(b, at, length, aligned))
    attrs = {"mode": "linear", "padding_mode": "border" if padding == "border" else "zeros",
             "align_corners": int(aligned)}  # fmt: skip
    rows = []
    for vertical in range(4):
        terms = []
        for horizontal in range(4):
            pair = [unsqueezed(b, way.place(step), 3) for way, step in zip(ways, (horizontal, vertical), strict=True)]
            tap = b.add("Concat", *pair, axis=3)
            if padding == "reflection":
                tap = _reflected(b, tap)
            read = b.add("GridSample", x, tap, **attrs)
            terms.append(b.add("Mul", read, unsqueezed(b, ways[0].weight(horizontal), 1)))
        rows.append(b.add("Mul", total(b, "Add", terms), unsqueezed(b, ways[1].weight(vertical), 1)))
    return [total(b, "Add", rows)]


def nearest_samples(node: Node, b: Build) -> Sequence[Value] | None:
    """The nearest elements by a linear sample of rounded places; the runtime rounds halves away from zero, not to even."""
    x, grid = node.operand(0), node.operand(1)
    if text(node, "mode") != "nearest" or text(node, "padding_mode") == "reflection" or x.rank not in (4, 5):
        return None
    aligned = bool(attribute(node, "align_corners"))
    if aligned and any(not isinstance(length, int) or length < 2 for length in x.dims[2:]):
        return None
    last = x.rank - 1
    ways = []
    for place in range(x.rank - 2):
        at = squeezed(b, sliced(b, grid, last, place, place + 1), last)
        way = _Way(b, at, _number(b, size(b, x, last - place)), aligned)
        ways.append(unsqueezed(b, way.nearest(), last))
    return [b.add("GridSample", x, b.add("Concat", *ways, axis=last), **{**node.attrs, "mode": "linear"})]


def _number(b: Build, length: Size) -> Value:
    if isinstance(length, int):
        return b.scalar(length)
    return b.add("Squeeze", b.cast(length, F32), b.ints(0))


class _Way:
    """Places and weights of four elements along one axis."""

    def __init__(self, b: Build, at: Value, length: Value, aligned: bool) -> None:
        self._b, self._aligned = b, aligned
        one, half = b.scalar(1), b.scalar(0.5)
        self._last = b.add("Sub", length, one)
        self._length = length
        moved = b.add("Add", at, one)
        if aligned:
            where = b.add("Mul", b.add("Mul", moved, half), self._last)
        else:
            where = b.add("Sub", b.add("Mul", b.add("Mul", moved, length), half), half)
        self._where = where
        self._first = b.add("Floor", where)
        self._rest = b.add("Sub", where, self._first)

    def place(self, step: int) -> Value:
        """Where the element at a step from the first of four lies, between -1 and 1."""
        return self._between(self._b.add("Add", self._first, self._b.scalar(step - 1)))

    def nearest(self) -> Value:
        """Where the nearest element lies, between -1 and 1."""
        return self._between(self._b.add("Round", self._where))

    def _between(self, at: Value) -> Value:
        b = self._b
        two, one = b.scalar(2), b.scalar(1)
        if self._aligned:
            return b.add("Sub", b.add("Div", b.add("Mul", at, two), self._last), one)
        return b.add("Sub", b.add("Div", b.add("Add", b.add("Mul", at, two), one), self._length), one)

    def weight(self, step: int) -> Value:
        """What the element at a step counts."""
        b = self._b
        distance = b.add("Abs", b.add("Sub", self._rest, b.scalar(step - 1)))
        near, far = (CUBIC + 2, -(CUBIC + 3), 0.0, 1.0), (CUBIC, -5 * CUBIC, 8 * CUBIC, -4 * CUBIC)
        factors = near if step in (1, 2) else far
        found = b.scalar(factors[0])
        for factor in factors[1:]:
            found = b.add("Mul", found, distance)
            found = b.add("Add", found, b.scalar(factor)) if factor else found
        return found


def columns_to_image(node: Node, b: Build) -> Sequence[Value] | None:
    """``Col2Im`` as a transposed convolution whose kernel puts each place of a block where it belongs."""
    image, block = numbers(node.input(1)), numbers(node.input(2))
    x = node.operand(0)
    if image is None or block is None or x.rank != 3:
        return None
    axes = len(block)
    kernel = [int(each) for each in block]
    strides = [int(each) for each in attribute(node, "strides") or [1] * axes]
    dilations = [int(each) for each in attribute(node, "dilations") or [1] * axes]
    pads = [int(each) for each in attribute(node, "pads") or [0] * (2 * axes)]
    reach = [(count - 1) * step + 1 for count, step in zip(kernel, dilations, strict=True)]
    room = [int(image[axis]) + pads[axis] + pads[axis + axes] - reach[axis] for axis in range(axes)]
    counts = [space // stride + 1 for space, stride in zip(room, strides, strict=True)]
    places = prod(kernel)
    batch, rows = size(b, x, 0), x.dims[1]
    if not isinstance(rows, int):
        return None
    flat = product(b, [batch, rows // places])
    parts = reshaped(b, x, [flat, places, *counts])
    weight = np.eye(places, dtype=np.float32).reshape(places, 1, *kernel)
    made = b.add(
        "ConvTranspose", parts, b.const(weight, "kernel"), kernel_shape=kernel, strides=strides, dilations=dilations,
        pads=pads, group=1, output_padding=[space % stride for space, stride in zip(room, strides, strict=True)],
    )  # fmt: skip
    return [reshaped(b, made, [batch, rows // places, *(int(each) for each in image)])]


def channels_last_blocks(node: Node, b: Build) -> Sequence[Value] | None:
    """``SpaceToDepth`` and ``DepthToSpace`` as a transposition of blocks."""
    x = node.operand(0)
    if x.rank != 4:
        return None
    block = int(attribute(node, "blocksize"))
    batch, channels, height, width = sizes(b, x)
    if not all(isinstance(each, int) for each in (channels, height, width)):
        return None
    assert isinstance(channels, int) and isinstance(height, int) and isinstance(width, int)
    column = (text(node, "mode") if "mode" in node.attrs else "DCR") == "CRD"
    if node.op == "SpaceToDepth":
        # without its outermost axis the batch keeps to six
        parts = reshaped(b, x, [product(b, [batch, channels]), height // block, block, width // block, block])
        parts = b.add("Transpose", parts, perm=[0, 2, 4, 1, 3])
        area = [height // block, width // block]
        if not column:
            parts = reshaped(b, parts, [batch, channels, block * block, prod(area)])
            parts = b.add("Transpose", parts, perm=[0, 2, 1, 3])
        return [reshaped(b, parts, [batch, channels * block * block, *area])]
    return None


def deformed(node: Node, b: Build) -> Sequence[Value] | None:
    """``DeformConv``: every place of the kernel is read by a bilinear sample, then weighed by a convolution with one place."""
    x, w, offset, bias, mask = (node.input(index) for index in range(5))
    assert x is not None and w is not None and offset is not None
    if any(value.type is None or value.shape is None or not all(isinstance(each, int) for each in value.shape)
           for value in (x, w, offset)) or len(x.dims) != 4:  # fmt: skip
        return None
    batch, channels, height, width = x.sizes
    outside, inside, *kernel = w.sizes
    rows, columns = offset.sizes[2:]
    strides = [int(each) for each in attribute(node, "strides") or (1, 1)]
    dilations = [int(each) for each in attribute(node, "dilations") or (1, 1)]
    pads = [int(each) for each in attribute(node, "pads") or (0, 0, 0, 0)]
    groups, parts = int(attribute(node, "group")), int(attribute(node, "offset_group"))
    places, each = prod(kernel), channels // parts
    base = np.stack(np.meshgrid(np.arange(rows) * strides[0] - pads[0], np.arange(columns) * strides[1] - pads[1],
                                indexing="ij")).astype(np.float32)  # fmt: skip
    read = []
    for part in range(parts):
        image = sliced(b, x, 1, part * each, (part + 1) * each)
        for place in range(places):
            step = (place // kernel[1] * dilations[0], place % kernel[1] * dilations[1])
            grid = []
            for way, length in ((1, width), (0, height)):
                at = sliced(b, offset, 1, index := 2 * (part * places + place) + way, index + 1)
                at = b.add("Add", at, b.const((base[way] + step[way]).reshape(1, 1, rows, columns), "base"))
                at = b.add("Mul", b.add("Add", at, b.scalar(0.5)), b.scalar(2 / length))
                grid.append(b.reshape(b.add("Sub", at, b.scalar(1)), [batch, rows, columns, 1]))
            sample = b.add("GridSample", image, b.add("Concat", *grid, axis=3), mode="linear",
                           padding_mode="zeros", align_corners=0)  # fmt: skip
            if mask is not None:
                at_mask = part * places + place
                sample = b.add("Mul", sample, sliced(b, mask, 1, at_mask, at_mask + 1))
            read.append(b.reshape(sample, [batch, each, 1, rows * columns]))
    grouped = [b.add("Concat", *read[part * places : (part + 1) * places], axis=2) for part in range(parts)]
    whole = b.add("Concat", *grouped, axis=1) if parts > 1 else grouped[0]
    whole = b.reshape(whole, [batch, channels * places, rows, columns])
    weight = b.reshape(w, [outside, inside * places, 1, 1])
    made = b.add("Conv", whole, weight, kernel_shape=[1, 1], strides=[1, 1], dilations=[1, 1], pads=[0] * 4,
                 group=groups)  # fmt: skip
    return [made if bias is None else b.add("Add", made, b.reshape(bias, [1, -1, 1, 1]))]


REWRITES: Table = {
    "Col2Im": (columns_to_image,),
    "DeformConv": (deformed,),
    "GridSample": (reflected, nearest_samples, cubic_samples),
    "SpaceToDepth": (channels_last_blocks,),
}
"""Rewrites by operator."""
