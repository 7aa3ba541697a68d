"""Gradients of a decoder's likelihood with respect to its last features, a piece of the vocabulary at a time.

With ``q`` the softmax of the logits, the covariance of the gradients of a token's log likelihood, the token drawn from
``q``, is ``diag(q) - q q^T``: that of ``sqrt(q) s - q <sqrt(q), s>`` with random signs ``s``, too, which needs no draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ir.tensor.base import Tensor
from ir.tensor.rearranged import transposed

TOKENS = 4096
"""Tokens of the vocabulary that are computed with at once."""


class Head:
    """A logits matrix ``[features, vocabulary]`` as constants of graphs hold it, read in pieces."""

    def __init__(self, matrix: Tensor) -> None:
        self._rows = transposed(matrix)

    def pieces(self) -> Iterator[tuple[int, np.ndarray]]:
        """The number of the first token, and float32[tokens, features]."""
        for start in range(0, self._rows.row_count, TOKENS):
            stop = min(start + TOKENS, self._rows.row_count)
            yield start, self._rows.rows(start, stop).astype(np.float32, copy=False)


class _Sums:
    """Logarithms of sums of exponentials by position, piece by piece."""

    def __init__(self, positions: int) -> None:
        self._top = np.full(positions, -np.inf)
        self._sum = np.zeros(positions)

    def add(self, logits: np.ndarray) -> None:
        new = np.maximum(self._top, logits.max(axis=1))
        terms = np.exp(logits - new[:, None].astype(np.float32)).sum(axis=1, dtype=np.float64)
        self._sum = self._sum * np.exp(self._top - new) + terms
        self._top = new

    def value(self) -> np.ndarray:
        return (self._top + np.log(self._sum)).astype(np.float32)


def _flat(features: np.ndarray) -> np.ndarray:
    return features.reshape(-1, features.shape[-1])


def normalisers(features: Sequence[np.ndarray], head: Head) -> list[np.ndarray]:
    """For each window float32[positions], the logarithm of the sum of the exponentials of all logits."""
    flat = [_flat(item) for item in features]
    sums = [_Sums(len(item)) for item in flat]
    for _, rows in head.pieces():
        for item, total in zip(flat, sums, strict=True):
            total.add(item @ rows.T)
    return [total.value() for total in sums]


def likelihood_gradients(features: Sequence[np.ndarray], head: Head, places: Sequence[int]) -> list[np.ndarray]:
    """Gradients of the log likelihood of drawn tokens with respect to the features, or what has their covariance.

    Args:
        features: last features of each window, ``[..., positions, width]``.
        head: the logits matrix.
        places: a number for each window, from which its random signs follow.
    """
    flat, totals = [_flat(item) for item in features], normalisers(features, head)
    signed = [np.zeros_like(item) for item in flat]
    level = [np.zeros_like(item) for item in flat]
    along = [np.zeros(len(item), np.float32) for item in flat]
    for start, rows in head.pieces():
        for number, (item, total) in enumerate(zip(flat, totals, strict=True)):
            likely = np.exp(item @ rows.T - total[:, None])
            signs = np.random.default_rng([places[number], start]).integers(0, 2, likely.shape, np.int8)
            roots = np.sqrt(likely) * (2 * signs - 1)
            signed[number] += roots @ rows
            level[number] += likely @ rows
            along[number] += roots.sum(axis=1)
    found = zip(signed, along, level, features, strict=True)
    return [(one - scale[:, None] * mean).reshape(like.shape) for one, scale, mean, like in found]


__all__ = ["Head", "likelihood_gradients"]
