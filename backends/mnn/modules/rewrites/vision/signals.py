"""Fourier transforms as products with constant matrices.

Source: ONNX, docs/Operators.md, ``DFT`` and ``STFT``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from backends.mnn.modules.build import Build, numbers
from backends.mnn.modules.rewrites.types import Table
from backends.mnn.modules.rewrites.vision.sizes import along_last, padded, sliced, squeezed, unsqueezed
from ir.graph.graph import Node, Value
from ir.ops.registry import attribute


def _matrices(before: int, length: int, count: int, inverse: bool) -> tuple[np.ndarray, np.ndarray]:
    """Real and imaginary part of the matrix of a transform of a length, for elements of which the rest is zero."""
    turn = 2 * np.pi * (np.outer(np.arange(count), np.arange(min(before, length))) % length) / length
    if inverse:
        return np.cos(turn) / length, np.sin(turn) / length
    return np.cos(turn), -np.sin(turn)


def fourier(node: Node, b: Build) -> Sequence[Value] | None:
    """``DFT`` along an axis of known length."""
    x, wanted, along = node.operand(0), node.input(1), node.input(2)
    inverse, one_sided = bool(attribute(node, "inverse")), bool(attribute(node, "onesided"))
    chosen = numbers(along) if along is not None else np.array(-2)
    asked = numbers(wanted) if wanted is not None else None
    if x.rank is None or chosen is None or (wanted is not None and asked is None):
        return None
    axis = int(chosen.reshape(())) % x.rank
    length, parts = x.dims[axis], x.dims[-1]
    if not isinstance(length, int) or parts not in (1, 2):
        return None
    if one_sided and inverse:
        return _inverse_of_half(x, axis, length, asked, b)
    whole = int(asked.reshape(())) if asked is not None else length
    count = whole // 2 + 1 if one_sided else whole
    return [_transformed(b, x, axis, _matrices(length, whole, count, inverse))]


def _transformed(b: Build, x: Value, axis: int, matrices: tuple[np.ndarray, np.ndarray]) -> Value:
    """Elements, real or with an imaginary part along the last axis, times a complex matrix."""
    rank = len(x.dims)
    used = matrices[0].shape[1]
    x = sliced(b, x, axis, 0, used) if x.dims[axis] != used else x
    last = rank - 1
    real = squeezed(b, sliced(b, x, last, 0, 1), last)
    cosine, sine = (lambda value, matrix=matrix: along_last(b, value, axis, matrix) for matrix in matrices)
    parts = [cosine(real), sine(real)]
    if x.dims[last] == 2:
        imaginary = squeezed(b, sliced(b, x, last, 1, 2), last)
        parts = [b.add("Sub", parts[0], sine(imaginary)), b.add("Add", parts[1], cosine(imaginary))]
    return b.add("Concat", *(unsqueezed(b, part, last) for part in parts), axis=last)


def _inverse_of_half(x: Value, axis: int, length: int, asked: np.ndarray | None, b: Build) -> Sequence[Value] | None:
    """The real sequence of which half a spectrum is given."""
    whole = int(asked.reshape(())) if asked is not None else 2 * (length - 1)
    if x.dims[-1] != 2 or whole < 1:
        return None
    count = min(length, whole // 2 + 1)
    turn = 2 * np.pi * np.outer(np.arange(whole), np.arange(count)) / whole
    often = np.full(count, 2.0)
    often[0] = 1
    if whole % 2 == 0 and count == whole // 2 + 1:
        often[-1] = 1
    last = len(x.dims) - 1
    x = sliced(b, x, axis, 0, count) if x.dims[axis] != count else x
    real, imaginary = (squeezed(b, sliced(b, x, last, part, part + 1), last) for part in (0, 1))
    first = along_last(b, real, axis, np.cos(turn) * often / whole)
    second = along_last(b, imaginary, axis, np.sin(turn) * often / whole)
    return [unsqueezed(b, b.add("Sub", first, second), last)]


def by_frames(node: Node, b: Build) -> Sequence[Value] | None:
    """``STFT``: frames are gathered, weighed by the window, and transformed together."""
    x, step, shape = node.operand(0), numbers(node.input(1)), node.input(2)
    asked, given = node.input(3), numbers(shape)
    weights = given
    length = x.dims[1] if x.rank == 3 else None
    if step is None or not isinstance(length, int) or x.dims[2] not in (1, 2):
        return None
    if shape is not None and weights is None and shape.rank != 1:
        return None
    frame = numbers(asked)
    if asked is not None and frame is None:
        return None
    taps = shape.dims[0] if shape is not None else None
    width = int(frame.reshape(())) if frame is not None else taps
    if not isinstance(width, int) or (isinstance(taps, int) and taps > width) or (shape is not None and taps is None):
        return None
    hop = int(step.reshape(()))
    frames = (length - width) // hop + 1
    if frames < 1:
        return None
    places = np.arange(frames)[:, None] * hop + np.arange(width)
    parts = b.add("Gather", x, b.const(places, "places"), axis=1)
    if shape is not None:
        if isinstance(taps, int) and taps < width:
            before = (width - taps) // 2
            shape = padded(b, shape, {0: (before, width - taps - before)})
        parts = b.add("Mul", parts, b.reshape(shape, [1, 1, width, 1]))
    count = width // 2 + 1 if attribute(node, "onesided") else width
    return [_transformed(b, parts, 2, _matrices(width, width, count, False))]


REWRITES: Table = {"DFT": (fourier,), "STFT": (by_frames,)}
"""Rewrites by operator."""
