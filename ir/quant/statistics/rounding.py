"""What it costs to round activations to 8 bits on their way into a product, by row and by block.

Runtimes that compute with codes round the other side of the product, too: every position by one step for its whole row,
``max |x| / 127``, or each block of features by a step of its own, ``(max - min) / 255``. The error of a feature is then
spread evenly over a step, so that its mean square is a twelfth of the step's square; the extremes are met exactly. Errors
of features have nothing to do with each other, and so the outputs of a weight ``W`` are off by ``sum(W ** 2)`` times that
mean square.
"""

from __future__ import annotations

import numpy as np

BLOCKS = (0, 32, 64, 128)
"""Features that share a step; 0 is a whole row."""


class RoundingSums:
    """Running sums of the mean square error of a feature, for each of `BLOCKS`."""

    def __init__(self, features: int) -> None:
        self.features = features
        self._sums = dict.fromkeys((block for block in BLOCKS if not block or features % block == 0), 0.0)

    def add(self, x: np.ndarray) -> None:
        """Count in positions, float32 ``[n, features]``."""
        high = low = x
        for block in sorted(self._sums, key=lambda block: block or self.features):
            # Extremes of a block are those of the smaller blocks that it consists of.
            count = self.features // (block or self.features)
            high, low = high.reshape(len(x), count, -1).max(axis=2), low.reshape(len(x), count, -1).min(axis=2)
            step = (high - low) / 255 if block else np.maximum(high, -low) / 127
            inexact = 1 - (2 / block if block else 1 / self.features)
            self._sums[block] += float(np.square(step, dtype=np.float64).mean(axis=1).sum()) / 12 * inexact

    def means(self, tokens: int) -> dict[int, float]:
        """Mean square error of a feature by block, over so many positions."""
        return {block: total / max(1, tokens) for block, total in self._sums.items()}


__all__ = ["BLOCKS", "RoundingSums"]
