"""Convolutions in the form that the converter reads: two axes, every attribute written, a constant bias."""

from __future__ import annotations

from collections.abc import Sequence

from backends.mnn.modules.build import Build
from backends.mnn.modules.rewrites.types import Table
from backends.mnn.modules.rewrites.vision.sizes import (
    END,
    flipped,
    padded,
    product,
    reshaped,
    settled,
    size,
    sizes,
    sliced,
    squeezed,
    total,
    unsqueezed,
)
from backends.mnn.modules.rewrites.vision.windows import Window, same_widths, window, with_pads, written
from ir.graph.graph import Node, Value
from ir.ops.registry import attribute

WRITTEN = ("kernel_shape", "strides", "dilations", "pads", "group")
"""Attributes that stand at every convolution that is left."""


def kernel_of(node: Node) -> tuple[int, ...] | None:
    """The sizes of the kernel, as the weights have them; None where they are not known in numbers."""
    shape = node.operand(1).shape
    if shape is None or len(shape) < 3 or node.operand(0).rank is None:
        return None
    known = [each for each in shape if isinstance(each, int)]
    return tuple(known[2:]) if len(known) == len(shape) else None


def bias_apart(node: Node, b: Build) -> Sequence[Value] | None:
    """A bias that is computed is added afterwards."""
    x, w, bias = node.operand(0), node.operand(1), node.input(2)
    if bias is None or bias.is_const or x.rank is None:
        return None
    made = b.add(node.op, x, w, **node.attrs)
    return [b.add("Add", made, b.reshape(bias, [1, -1, *[1] * (x.rank - 2)]))]


def written_out(node: Node, b: Build) -> Sequence[Value] | None:
    """Every attribute in numbers, and what ``auto_pad`` stands for."""
    kernel = kernel_of(node)
    if kernel is None or written(node, *WRITTEN):
        return None
    found = window(node, kernel)
    x, pads = with_pads(b, node.operand(0), same_widths(b, node.operand(0), found))
    return [_conv(b, x, *node.inputs[1:], found=found, pads=pads, group=_group(node))]


def _group(node: Node) -> int:
    return int(attribute(node, "group") or 1)


def _conv(b: Build, *inputs: Value | None, found: Window, pads: Sequence[int], group: int) -> Value:
    return b.add(
        "Conv", *inputs, kernel_shape=list(found.kernel), strides=list(found.strides), dilations=list(found.dilations),
        pads=list(pads), group=group,
    )  # fmt: skip


def with_two_axes(node: Node, b: Build) -> Sequence[Value] | None:
    """One axis as the second of two, the first of length 1."""
    kernel = kernel_of(node)
    if kernel is None or len(kernel) != 1 or not written(node, *WRITTEN):
        return None
    lengthened = {"kernel_shape": 1, "strides": 1, "dilations": 1, "output_padding": 0}
    attrs = {name: [lengthened[name], *value] if name in lengthened else value for name, value in node.attrs.items()}
    before, behind = node.attrs["pads"]
    x, w = (unsqueezed(b, value, 2) for value in (node.operand(0), node.operand(1)))
    return [squeezed(b, b.add(node.op, x, w, *node.inputs[2:], **{**attrs, "pads": [0, before, 0, behind]}), 2)]


def by_planes(node: Node, b: Build) -> Sequence[Value] | None:
    """Three axes as the sum over the first axis of the kernel, each term with its planes as a batch."""
    kernel = kernel_of(node)
    if kernel is None or len(kernel) != 3 or not written(node, *WRITTEN):
        return None
    found = window(node, kernel)
    x, w, bias = node.operand(0), node.operand(1), node.input(2)
    x = settled(b, padded(b, x, {2: found.around[0]}))
    plane = Window(kernel[1:], found.strides[1:], found.dilations[1:], found.pads[1:3] + found.pads[4:], "NOTSET")
    terms = []
    batch, depth = size(b, x, 0), None
    for index in range(kernel[0]):
        start = index * found.dilations[0]
        left = (kernel[0] - 1 - index) * found.dilations[0]
        part = sliced(b, x, 2, start, -left if left else END, found.strides[0])
        _, channels, here, *rest = sizes(b, part)
        depth = here if depth is None else depth
        rows = b.add("Transpose", part, perm=[0, 2, 1, 3, 4])
        folded = reshaped(b, rows, [product(b, [batch, here]), channels, *rest])
        weight = squeezed(b, sliced(b, w, 2, index, index + 1), 2)
        terms.append(
            _conv(b, folded, weight, bias if not index else None, found=plane, pads=plane.pads, group=_group(node))
        )
    made = total(b, "Add", terms)
    assert depth is not None
    shape = [batch, depth, size(b, made, 1), size(b, made, 2), size(b, made, 3)]
    return [b.add("Transpose", reshaped(b, made, shape), perm=[0, 2, 1, 3, 4])]


# ---- transposed ----


def transposed_written_out(node: Node, b: Build) -> Sequence[Value] | None:
    """Every attribute in numbers: what ``auto_pad`` and ``output_shape`` stand for.

    The sums of widths are those of the operator's specification. Where ``output_shape`` makes them negative,
    ``output_padding`` makes up for it; where ``auto_pad`` does, and with an ``output_padding`` beside it, those who compute it
    disagree.
    """
    kernel = kernel_of(node)
    if kernel is None or (written(node, *WRITTEN) and "output_shape" not in node.attrs):
        return None
    found = window(node, kernel)
    extra = [int(each) for each in attribute(node, "output_padding") or [0] * found.axes]
    wanted = attribute(node, "output_shape")
    around: list[tuple[int, int]] = []
    lengths = node.operand(0).dims[2:]
    for index in range(found.axes):
        width: int | None = None
        if wanted:
            length = lengths[index]
            if not isinstance(length, int):
                return None
            natural = (length - 1) * found.strides[index] + found.reach[index] + extra[index]
            width = natural - int(wanted[len(wanted) - found.axes + index])
        elif found.auto.startswith("SAME"):
            width = found.reach[index] - found.strides[index]
            if width < 0 or extra[index]:
                return None
        if width is None:
            around.append(found.around[index])
            continue
        if width < 0:
            extra[index] -= width
            width = 0
        half = width // 2
        around.append((half, width - half) if found.auto == "SAME_UPPER" else (width - half, half))
    if any(more >= max(found.strides[i], found.dilations[i]) for i, more in enumerate(extra)):
        return None
    return [
        b.add(
            "ConvTranspose", *node.inputs, kernel_shape=list(kernel), strides=list(found.strides),
            dilations=list(found.dilations), pads=[pair[side] for side in (0, 1) for pair in around],
            output_padding=extra, group=_group(node),
        )
    ]  # fmt: skip


def by_groups(node: Node, b: Build) -> Sequence[Value] | None:
    """Groups with computed weights one by one."""
    x, w = node.operand(0), node.operand(1)
    group = _group(node)
    kernel = kernel_of(node)
    if group == 1 or w.is_const or kernel is None or len(kernel) != 2:
        return None
    each = w.sizes[0] // group
    parts = []
    for index in range(group):
        pair = (sliced(b, value, axis, index * each, (index + 1) * each) for value, axis in ((x, 1), (w, 0)))
        parts.append(b.add("ConvTranspose", *pair, **{**node.attrs, "group": 1}))
    made = b.add("Concat", *parts, axis=1)
    bias = node.input(2)
    return [made if bias is None else b.add("Add", made, b.reshape(bias, [1, -1, 1, 1]))]


def transposed_as_conv(node: Node, b: Build) -> Sequence[Value] | None:
    """Three axes as a convolution with the kernel turned round, over elements with zeros between them."""
    kernel = kernel_of(node)
    if kernel is None or len(kernel) != 3 or not written(node, *WRITTEN):
        return None
    found = window(node, kernel)
    x, w, group = node.operand(0), node.operand(1), _group(node)
    extra = [int(each) for each in attribute(node, "output_padding") or [0, 0, 0]]
    for index, stride in enumerate(found.strides):
        x = _spread(b, x, index + 2, stride)
    around = {
        index + 2: (reach - 1 - before, reach - 1 - behind + more)
        for index, (reach, (before, behind), more) in enumerate(zip(found.reach, found.around, extra, strict=True))
    }
    x = padded(b, x, around)
    inside, outside = w.sizes[0] // group, w.sizes[1]
    turned = b.reshape(w, [group, inside, outside, kernel[0], kernel[1] * kernel[2]])
    turned = b.add("Transpose", turned, perm=[0, 2, 1, 3, 4])
    turned = b.reshape(turned, [group * outside, inside, *kernel])
    for axis in (2, 3, 4):
        turned = flipped(b, turned, axis)
    plain = Window(kernel, (1, 1, 1), found.dilations, (0,) * 6, "NOTSET")
    return [_conv(b, x, turned, node.input(2), found=plain, pads=plain.pads, group=group)]


def _spread(b: Build, x: Value, axis: int, stride: int) -> Value:
    """Zeros between the elements along an axis, ``stride - 1`` of them."""
    if stride == 1:
        return x
    before = sizes(b, x)
    lead, behind = product(b, before[:axis]), product(b, before[axis + 1 :])
    flat = reshaped(b, x, [lead, before[axis], 1, behind])
    flat = padded(b, flat, {2: (0, stride - 1)})
    length = before[axis]
    many = length * stride if isinstance(length, int) else b.add("Mul", length, b.ints(stride))
    spread = reshaped(b, flat, [*before[:axis], many, *before[axis + 1 :]])
    return sliced(b, spread, axis, 0, 1 - stride)


REWRITES: Table = {
    "Conv": (bias_apart, written_out, with_two_axes, by_planes),
    "ConvTranspose": (bias_apart, transposed_written_out, with_two_axes, transposed_as_conv, by_groups),
}
"""Rewrites by operator."""
