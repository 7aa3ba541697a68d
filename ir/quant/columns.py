"""Blocks laid out for searching: as columns, in pieces that stay in the cache, with what all searches compute."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ir.quant.form import Form, Numbers
from ir.quant.methods.base import Scratch
from ir.tensor.native import native

PIECE = 1 << 16
"""Weights searched at a time: several arrays of them fit the second-level cache."""
LANES = 16
"""Blocks searched together are a multiple of it, since sums over a single block would be taken in another order."""


class Columns:
    """Blocks as columns, so that every pass runs over long contiguous vectors; all arrays are float32[block, n].

    Attributes:
        values: the weights.
        share: what their errors count.
        codes: the codes last tried.
        work: free for any use between calls.
    """

    def __init__(self, values: np.ndarray, share: np.ndarray, form: Form, scratch: Scratch) -> None:
        self.form = form
        self.loops = native()
        shape = values.shape
        self.values = scratch.take("clip-values", shape, np.float32)
        np.copyto(self.values, values)
        self.share = scratch.take("clip-share", shape, np.float32)
        np.copyto(self.share, share)
        self.codes = scratch.take("clip-codes", shape, np.float32)
        self.work = scratch.take("clip-work", shape, np.float32)

    def error(self, numbers: Numbers) -> np.ndarray:
        """Weighted squared error of each block, float32; leaves the codes behind."""
        if self.loops is not None:
            found = np.empty(self.values.shape[1], np.float32)
            scale, zero = np.ascontiguousarray(numbers.scale), np.ascontiguousarray(numbers.zero)
            form = self.form
            self.loops.column_errors(self.values, self.share, scale, zero, self.codes, found, form.low, form.high)
            return found
        self.form.round(self.values, numbers, self.codes)
        np.multiply(self.codes, numbers.scale, out=self.work)
        np.add(self.work, numbers.zero, out=self.work)
        np.subtract(self.work, self.values, out=self.work)
        np.square(self.work, out=self.work)
        np.multiply(self.work, self.share, out=self.work)
        return np.add.reduce(self.work, axis=0)

    def better(self, best: Numbers, error: np.ndarray, other: Numbers) -> tuple[Numbers, np.ndarray]:
        """The better of two for each block, with its error."""
        found = self.error(other)
        better = found < error
        return best.where(better, other), np.where(better, found, error)

    def least_squares(self, now: Numbers, free: bool) -> tuple[np.ndarray, np.ndarray]:
        """Best real scale and zero, float64, for the codes at hand; unless `free` the zero point stays as it is."""
        first, product, square = self._sums(None if free else now.point)
        with np.errstate(divide="ignore", invalid="ignore"):
            if not free:
                scale = np.where(square > 0, product / square, now.scale)
                return scale, 0 * scale if now.point is None else -now.point * scale
            total = _sum(self.share)
            value = _sum(np.multiply(self.share, self.values, out=self.work))
            spread = total * square - first * first
            scale = np.where(spread > 1e-9 * total * square, (total * product - first * value) / spread, now.scale)
            return scale, (value - scale * first) / total

    def _sums(self, point: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weighted sums, float64, of the codes, of their products with the weights and of their squares.

        The codes are those less `point`, where there is one. They are lost.
        """
        codes, work = self.codes, self.work
        if self.loops is not None:
            first, product, square = np.empty((3, codes.shape[1]), np.float32)
            moved = np.empty(0, np.float32) if point is None else np.ascontiguousarray(point)
            self.loops.column_sums(self.values, self.share, codes, moved, first, product, square)
            return first.astype(np.float64), product.astype(np.float64), square.astype(np.float64)
        if point is not None:
            np.subtract(codes, point, out=codes)
        np.multiply(codes, self.share, out=work)
        first = _sum(work)
        product = _sum(np.multiply(work, self.values))
        return first, product, _sum(np.multiply(work, codes, out=work))


def _sum(columns: np.ndarray) -> np.ndarray:
    return np.add.reduce(columns, axis=0).astype(np.float64)


def search_blocks(
    rows: np.ndarray,
    form: Form,
    weights: np.ndarray | None,
    scratch: Scratch,
    search: Callable[[Columns, Numbers], Numbers],
) -> Numbers:
    """Numbers of every block, found piece by piece.

    Args:
        rows: float32[n, length].
        form: what the numbers can be.
        weights: float32[length], what errors of each feature count; all alike when None.
        scratch: memory of the calling thread.
        search: gives better numbers for some blocks than those of round to nearest.

    Returns:
        Numbers ``[n, blocks]``.

    Raises:
        NotFinite, OutOfScale: as methods do.
    """
    count, length = rows.shape
    per_row = form.storage.blocks(length)
    block = length // per_row if per_row else 1
    values = rows.reshape(count * per_row, block)
    if not values.size:
        empty = np.ones((count, per_row), np.float32)
        return Numbers(empty, np.zeros_like(empty), np.zeros_like(empty) if form.kind == "int" else None)
    start = form.nearest(values.min(axis=1), values.max(axis=1), per_row)
    share = _shares(weights, per_row, block)
    step = max(LANES, PIECE // block // LANES * LANES)
    found = [np.empty(count * per_row, np.float32) for part in start if part is not None]
    for first in range(0, count * per_row, step):
        last = min(count * per_row, first + step)
        places = np.minimum(np.arange(first, first + -(-(last - first) // LANES) * LANES), last - 1)
        piece = start.rows(places)
        with np.errstate(over="ignore", invalid="ignore"):
            best = search(Columns(values[places].T, share[:, places % per_row], form, scratch), piece)
        for out, part in zip(found, [part for part in best if part is not None], strict=True):
            out[first:last] = part[: last - first]
    shaped = [part.reshape(count, per_row) for part in found]
    return Numbers(shaped[0], shaped[1], shaped[2] if form.kind == "int" else None)


def _shares(weights: np.ndarray | None, per_row: int, block: int) -> np.ndarray:
    """float32[block, per_row]: weights of the features, about 1 in each block; all 1 where the whole block is 0."""
    if weights is None:
        return np.ones((block, per_row), np.float32)
    table = weights.reshape(per_row, block).T.astype(np.float64)
    mean = table.mean(axis=0)
    share = np.where(mean > 0, table / np.where(mean > 0, mean, 1), 1)
    # Features that are almost never there still count a little, so that their weights do not decide by rounding.
    return np.maximum(share, 1e-4).astype(np.float32)
