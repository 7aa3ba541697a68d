"""Sums over positions of how far the inputs or outputs of a weight have moved since weights before it were quantized."""

from __future__ import annotations

from concurrent.futures import Executor
from functools import partial

import numpy as np

from ir.base.executor import SERIAL, shares_memory
from ir.quant.statistics.sums import MomentSums
from ir.tensor.one_thread import one_thread

SLAB = 256
"""Rows of the products that are computed as one matrix."""


class DriftSums:
    """Running sums for one input of weights: second moments of ``x`` and the products of errors with ``x``.

    Attributes:
        moments: sums of ``x``, what flows in once the weights before are quantized.
    """

    def __init__(self, features: int, errors: int, executor: Executor = SERIAL) -> None:
        """`errors` is the length of an error: as many as features, or as outputs; `executor` computes several slabs at the
        same time."""
        self.moments = MomentSums(features, executor, rounding=False)
        self._products = np.zeros((errors, features), np.float32)
        self._executor = executor if shares_memory(executor) else SERIAL
        self._slabs = [slice(start, min(errors, start + SLAB)) for start in range(0, errors, SLAB)]

    def add(self, error: np.ndarray, x: np.ndarray) -> None:
        """Count in positions: float32 ``[n, errors]`` and ``[n, features]``."""
        if len(x):
            self.moments.add(x)
            for _ in self._executor.map(partial(self._count, error, x), self._slabs):
                pass

    def _count(self, error: np.ndarray, x: np.ndarray, slab: slice) -> None:
        with one_thread(), np.errstate(over="ignore", invalid="ignore"):
            self._products[slab] += error[:, slab].T @ x

    @property
    def is_finite(self) -> bool:
        """False when NaN or infinity was seen, or a sum has become infinite."""
        return self.moments.is_finite and bool(np.isfinite(self._products).all())

    def products(self) -> np.ndarray:
        """float32[errors, features]: the mean of ``error x^T``."""
        return self._products / np.float32(max(1, self.moments.tokens))


__all__ = ["DriftSums"]
