"""``Resize`` as a gather or a product with a constant matrix along each axis.

Source: ONNX, docs/Operators.md, ``Resize``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backends.mnn.modules.build import Build, numbers
from backends.mnn.modules.rewrites.types import Table
from backends.mnn.modules.rewrites.vision.sizes import along_last
from ir.graph.graph import Node, Value
from ir.ops.registry import attribute


@dataclass(frozen=True)
class Stretch:
    """How one axis is resized.

    Attributes:
        length: of the axis before.
        made: of the axis behind.
        scale: their ratio as the node gives it; it may be a little more than ``made / length``.
        part: start and end that are looked at, as parts of the axis.
    """

    axis: int
    length: int
    made: int
    scale: float
    part: tuple[float, float]


WHOLE = 1e-4
"""How far a length may be off a whole number of elements, which scales in single precision make of it."""


def text(node: Node, name: str) -> str:
    """An attribute that is text."""
    found = attribute(node, name)
    return found.decode() if isinstance(found, bytes) else str(found)


def stretches(node: Node) -> list[Stretch] | None:
    """The axes that are resized; None where sizes are not known in numbers, and where corners are aligned of an axis that
    is no whole number of elements long: ONNX's definition divides by that number, and onnxruntime by the whole one."""
    x = node.operand(0)
    if x.shape is None:
        return None
    rank = len(x.shape)
    axes = [int(axis) % rank for axis in attribute(node, "axes") or range(rank)]
    scales, wanted, part = numbers(node.input(2)), numbers(node.input(3)), numbers(node.input(1))
    crops = text(node, "coordinate_transformation_mode") == "tf_crop_and_resize"
    aligned = text(node, "coordinate_transformation_mode") == "align_corners"
    if crops and (part is None or part.size != 2 * len(axes)):
        return None
    if scales is not None and scales.size:
        ratios = [float(each) for each in scales]
        given = None
    elif wanted is not None and wanted.size:
        given = [int(each) for each in wanted]
        ratios = []
    else:
        return None
    lengths = [x.shape[axis] for axis in axes]
    found = []
    policy = text(node, "keep_aspect_ratio_policy")
    if given is not None and policy != "stretch":
        known = [length for length in lengths if isinstance(length, int)]
        if len(known) < len(lengths):
            return None
        each = [size / length for size, length in zip(given, known, strict=True)]
        ratio = min(each) if policy == "not_larger" else max(each)
        ratios = [ratio] * len(axes)
        given = [int(np.floor(ratio * length + 0.5)) for length in known]
    for index, axis in enumerate(axes):
        length = lengths[index]
        if given is None and ratios[index] == 1 and not crops:
            continue
        if not isinstance(length, int):
            return None
        made = given[index] if given is not None else int(np.floor(np.float32(length) * np.float32(ratios[index])))
        scale = ratios[index] if ratios else made / length
        ends = (float(part[index]), float(part[index + len(axes)])) if crops and part is not None else (0.0, 1.0)
        if aligned and abs(scale * length - made) > WHOLE:
            return None
        if made != length or scale != 1 or crops:
            found.append(Stretch(axis, length, made, scale, ends))
    return found


def places(node: Node, one: Stretch) -> np.ndarray:
    """Where each new element lies in the old axis, in single precision as runtimes compute it."""
    mode = text(node, "coordinate_transformation_mode")
    at = np.arange(one.made, dtype=np.float32)
    half, scale = np.float32(0.5), np.float32(one.scale)
    length, made = np.float32(one.length), np.float32(one.made)
    if mode == "asymmetric":
        return at / scale
    if mode == "align_corners":
        return at * (length - 1) / (made - 1) if one.made > 1 else np.zeros_like(at)
    if mode == "tf_half_pixel_for_nn":
        return (at + half) / scale
    if mode == "tf_crop_and_resize":
        start, end = (np.float32(each) for each in one.part)
        if one.made == 1:
            return half * (start + end) * (length - 1) + np.zeros_like(at)
        return start * (length - 1) + at * (end - start) * (length - 1) / (made - 1)
    if mode == "pytorch_half_pixel" and one.made == 1:
        return np.zeros_like(at)
    offset = np.float32(0)
    if mode == "half_pixel_symmetric":
        offset = length / 2 * (1 - made / (scale * length))
    return offset + (at + half) / scale - half


def nearest(node: Node, where: np.ndarray, length: int) -> np.ndarray:
    """Indices of the elements next to places."""
    mode = text(node, "nearest_mode")
    if mode == "floor":
        found = np.floor(where)
    elif mode == "ceil":
        found = np.ceil(where)
    elif mode == "round_prefer_ceil":
        found = np.floor(where + np.float32(0.5))
    else:
        found = np.ceil(where - np.float32(0.5))
    return np.clip(found, 0, length - 1).astype(np.int64)


def weights(node: Node, where: np.ndarray, one: Stretch) -> np.ndarray:
    """The matrix of an interpolation, one row for each new element."""
    cubic = text(node, "mode") == "cubic"
    squeeze = min(one.scale, 1.0) if attribute(node, "antialias") else 1.0
    reach = (2 if cubic else 1) / squeeze
    drops = bool(attribute(node, "exclude_outside"))
    matrix = np.zeros((len(where), one.length))
    for row, place in enumerate(where.astype(np.float64)):
        at = np.arange(int(np.floor(place - reach)), int(np.ceil(place + reach)) + 1)
        distance = np.abs(at - place) * squeeze
        value = _cubic(distance, float(attribute(node, "cubic_coeff_a"))) if cubic else np.clip(1 - distance, 0, None)
        if drops:
            value = np.where((at >= 0) & (at < one.length), value, 0)
        if drops or squeeze < 1:
            value = value / value.sum()
        np.add.at(matrix[row], np.clip(at, 0, one.length - 1), value)
    return matrix


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


def axis_by_axis(node: Node, b: Build) -> Sequence[Value] | None:
    """A gather or a product for each axis whose sizes are known in numbers.

    The nearest elements around a middle that is rounded itself are left: which they are depends on the order of operations.
    """
    found = stretches(node)
    symmetric = text(node, "coordinate_transformation_mode") == "half_pixel_symmetric"
    if found is None or (symmetric and text(node, "mode") == "nearest"):
        return None
    x = node.operand(0)
    outside: np.ndarray | None = None
    rank = len(x.dims)
    for one in found:
        where = places(node, one)
        if text(node, "mode") == "nearest":
            x = b.add("Gather", x, b.const(nearest(node, where, one.length), "places"), axis=one.axis)
        else:
            x = along_last(b, x, one.axis, weights(node, where, one))
        if text(node, "coordinate_transformation_mode") == "tf_crop_and_resize":
            beyond = (where < 0) | (where > one.length - 1)
            line = beyond.reshape([-1 if axis == one.axis else 1 for axis in range(rank)])
            outside = line if outside is None else outside | line
    if outside is not None and outside.any():
        value = b.like(float(attribute(node, "extrapolation_value")), x)
        x = b.add("Where", b.const(outside, "outside"), value, x)
    return [x]


def without_axes(node: Node, b: Build) -> Sequence[Value] | None:
    """Scales for all axes, where those given for some leave the first two as they are."""
    axes, scales = attribute(node, "axes"), numbers(node.input(2))
    rank = node.operand(0).rank
    if not axes or scales is None or not scales.size or rank is None:
        return None
    whole = np.ones(rank, np.float32)
    whole[[int(axis) % rank for axis in axes]] = scales
    attrs = {name: value for name, value in node.attrs.items() if name != "axes"}
    return [b.add("Resize", node.operand(0), None, b.const(whole, "scales"), **attrs)]


REWRITES: Table = {"Resize": (axis_by_axis, without_axes)}
"""Rewrites by operator."""
