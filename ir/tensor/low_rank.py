"""Recipes that add a product of two thin matrices to a weight and give its rows other lengths, range by range.

This is how a low-rank adapter becomes part of a weight: ``W + s B A`` (Hu et al., "LoRA", 2021), and where directions and
lengths are trained apart, each row of the sum brought to a length of its own (Liu et al., "DoRA", 2024).

Products are computed in blocks of rows that start at multiples of `ROWS`, by one thread, so that a number depends neither
on the range that it was asked in nor on threads.
"""

from __future__ import annotations

import threading

import numpy as np

from ir.base.types import F32, F64, TensorType
from ir.tensor.base import Derived, Tensor, refuse
from ir.tensor.elementwise import cast
from ir.tensor.one_thread import one_thread

ROWS = 64
"""Rows that are computed together."""


def _wide(*tensors: Tensor) -> bool:
    return any(item.type.dtype == F64 for item in tensors)


class _LowRank(Derived):
    name = "low_rank"

    def __init__(self, base: Tensor, left: Tensor, right: Tensor, factor: float) -> None:
        dtype = F64 if _wide(base) else F32
        super().__init__(TensorType(dtype, base.type.shape), base, left, right, factor)
        self.left, self.right = cast(left, dtype), cast(right, dtype)
        self.factor = dtype.numpy.type(factor)
        self._lock = threading.Lock()
        self._held: np.ndarray | None = None

    def rows(self, start: int, stop: int) -> np.ndarray:
        """A new array; the right factor, which all rows need, is kept until `release`."""
        self._bounds(start, stop)
        out = self.base.rows(start, stop).astype(self.type.dtype.numpy)
        right = self._right()
        with one_thread():
            for first in range(start - start % ROWS, stop, ROWS):
                last = min(first + ROWS, self.row_count)
                low, high = max(first, start), min(last, stop)
                added = self.left.rows(first, last) @ right
                out[low - start : high - start] += added[low - first : high - first] * self.factor
        return out

    def _right(self) -> np.ndarray:
        with self._lock:
            if self._held is None:
                self._held = np.ascontiguousarray(self.right.load())
            return self._held

    def release(self) -> None:
        """Drop the right factor and close what is below."""
        with self._lock:
            self._held = None
        super().release()


def low_rank(base: Tensor, left: Tensor, right: Tensor, factor: float) -> Tensor:
    """``base + factor * left @ right`` for ``base[m, n]``, ``left[m, r]`` and ``right[r, n]``, in float32.

    In float64 where the base is f64. All three are matrices of a float type.
    """
    shapes = [item.shape for item in (base, left, right)]
    if (
        any(len(shape) != 2 for shape in shapes)
        or shapes[0] != (shapes[1][0], shapes[2][1])
        or (shapes[1][1] != shapes[2][0])
    ):
        raise refuse("low_rank", "the factors do not make a matrix of the base's shape", base, left, right)
    if not all(item.type.dtype.is_float for item in (base, left, right)) or not np.isfinite(factor):
        raise refuse("low_rank", f"needs float matrices and a finite factor, not {factor}", base, left, right)
    return _LowRank(base, left, right, float(factor))


class _RowLengths(Derived):
    name = "row_lengths"

    def __init__(self, base: Tensor, lengths: Tensor) -> None:
        super().__init__(base.type, base, lengths)

    def rows(self, start: int, stop: int) -> np.ndarray:
        self._bounds(start, stop)
        rows = self.base.rows(start, stop)
        found = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1))
        wanted = self.recipe()[1][1].rows(start, stop).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            return (rows * (wanted / found)[:, None]).astype(self.type.dtype.numpy)


def row_lengths(base: Tensor, lengths: Tensor) -> Tensor:
    """Each row of a matrix (f32 or f64) scaled to the Euclidean length that a float vector gives it.

    A row of zeros has no direction and becomes NaN, as in the reference implementation.
    """
    if base.type.rank != 2 or lengths.shape != base.shape[:1]:
        raise refuse("row_lengths", "there must be a length for each row of a matrix", base, lengths)
    if base.type.dtype not in (F32, F64) or not lengths.type.dtype.is_float:
        raise refuse("row_lengths", "the matrix must be f32 or f64 and the lengths floats", base, lengths)
    return _RowLengths(base, lengths)
