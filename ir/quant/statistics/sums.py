"""Sums over positions of what flows into a weight: products of pairs of features, sums and extremes.

Products are summed in single precision over `CHUNK` positions, by the fastest kernel there is on one thread, so that
bits do not depend on threads, and the sums of the chunks in double precision. Only the lower triangle is held, in slabs
of rows, so that a matrix of features never exists in double precision as a whole square.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from itertools import repeat

import numpy as np

from ir.base.executor import SERIAL
from ir.quant.statistics.rounding import RoundingSums
from ir.tensor.one_thread import one_thread

CHUNK = 2048
"""Positions that are summed in single precision."""
SLAB = 1024
"""Rows of the triangle that are held and computed as one matrix."""


class MomentSums:
    """Running sums for one weight input.

    Attributes:
        features: length of a position.
    """

    def __init__(self, features: int, executor: Executor = SERIAL, *, rounding: bool = True) -> None:
        """`executor` computes several slabs at the same time; without `rounding` nothing is told of that."""
        self.features = features
        self._executor = executor
        self._tokens = 0
        self._low = np.full(features, np.inf, np.float32)
        self._high = np.full(features, -np.inf, np.float32)
        self._total = np.zeros(features, np.float64)
        self._slabs = [np.zeros((stop - start, stop), np.float64) for start, stop in _slab_ranges(features)]
        self._chunk = np.empty((CHUNK, features), np.float32)
        self._filled = 0
        self._rounding = RoundingSums(features) if rounding else None

    @staticmethod
    def nbytes(features: int) -> int:
        """Bytes that the sums of so many features take."""
        triangle = sum((stop - start) * stop for start, stop in _slab_ranges(features))
        return 8 * triangle + 4 * CHUNK * features

    def add(self, x: np.ndarray) -> None:
        """Count in positions: any shape whose last axis is the features; the array is copied."""
        rows = x.reshape(-1, self.features)
        start = 0
        while start < len(rows):
            count = min(CHUNK - self._filled, len(rows) - start)
            self._chunk[self._filled : self._filled + count] = rows[start : start + count]
            self._filled += count
            start += count
            if self._filled == CHUNK:
                self._sum_chunk()

    @property
    def tokens(self) -> int:
        """Positions seen."""
        return self._tokens + self._filled

    def vectors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean, least and largest of each feature, float32[features]."""
        self._sum_chunk()
        return (self._total / self._tokens).astype(np.float32), self._low, self._high

    def second(self) -> Iterator[np.ndarray]:
        """Row by row float32[row + 1], the mean products of a feature with those before it and with itself."""
        self._sum_chunk()
        for (start, _), slab in self._pairs():
            for place, row in enumerate(slab):
                yield (row[: start + place + 1] / self._tokens).astype(np.float32)

    def rounding(self) -> dict[int, float]:
        """Mean square error of a feature when positions are rounded to 8 bits, by block; see `RoundingSums`."""
        self._sum_chunk()
        return self._rounding.means(self._tokens) if self._rounding is not None else {}

    @property
    def is_finite(self) -> bool:
        """False when NaN or infinity was seen, or a sum has become infinite."""
        self._sum_chunk()
        ends = [np.diagonal(slab[:, start:]) for (start, _), slab in self._pairs()]
        return all(bool(np.isfinite(part).all()) for part in (self._low, self._high, *ends))

    def _pairs(self) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
        return zip(_slab_ranges(self.features), self._slabs, strict=True)

    def _sum_chunk(self) -> None:
        x = self._chunk[: self._filled]
        if not len(x):
            return
        np.minimum(self._low, x.min(axis=0), out=self._low)
        np.maximum(self._high, x.max(axis=0), out=self._high)
        self._total += x.sum(axis=0, dtype=np.float64)
        if self._rounding is not None:
            self._rounding.add(x)
        starts, stops = zip(*_slab_ranges(self.features), strict=True)
        with one_thread():
            products = self._executor.map(_products, repeat(x), starts, stops)
            for start, slab, (before, own) in zip(starts, self._slabs, products, strict=True):
                slab[:, :start] += before
                slab[:, start:] += own
        self._tokens += len(x)
        self._filled = 0


def _products(x: np.ndarray, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Products of some features with those before them, and with each other."""
    mine = x[:, start:stop]
    with one_thread(), np.errstate(over="ignore", invalid="ignore"):
        # A matrix times its own transpose is computed with half the work.
        return mine.T @ x[:, :start], mine.T @ mine


def _slab_ranges(features: int) -> Iterator[tuple[int, int]]:
    for start in range(0, features, SLAB):
        yield start, min(start + SLAB, features)


__all__ = ["CHUNK", "SLAB", "MomentSums"]
