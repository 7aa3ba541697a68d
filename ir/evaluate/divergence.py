"""Distances between distributions over a vocabulary whose logits come piece by piece and are never held whole.

With logits ``a`` of the reference and ``b`` of the other, ``KL = sum p (a - b) - (lse(a) - lse(b))`` where ``p`` is the
softmax of ``a`` and ``lse`` the logarithm of the sum of exponentials. Every sum runs in double precision, relative to
the largest logit so far.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Divergence:
    """How far the predictions of a variant are from those of the float model.

    Attributes:
        kl: mean KL(float || variant) in nats per token.
        kl_error: standard error of `kl` over positions, taken as independent.
        top1: share of positions with the same most likely token.
        nll, nll_reference: mean negative log-likelihood of the next token, of the variant and of the float model, over
            the positions that have one; NaN when none has.
        positions: number of positions.
    """

    kl: float
    kl_error: float
    top1: float
    nll: float
    nll_reference: float
    positions: int


class Tally:
    """Running sums over the vocabulary for the positions of one window.

    Attributes:
        best: int64[positions], the most likely token so far.
    """

    def __init__(self, positions: int, targets: np.ndarray) -> None:
        """`targets` are the tokens that follow, int[at most positions]."""
        self.best = np.zeros(positions, np.int64)
        self._targets = targets
        self._wanted = np.full(len(targets), np.nan)
        self._top = np.full(positions, -np.inf)
        self._sum = np.zeros(positions)

    def add(self, start: int, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Count in the logits float[positions, piece] of the tokens from `start` on.

        Returns:
            The factor by which earlier sums shrink, float64[positions], and ``exp(logits - largest so far)``.
        """
        place = logits.argmax(axis=1)
        top = logits[np.arange(len(logits)), place].astype(np.float64)
        higher = top > self._top
        self.best[higher] = start + place[higher]
        new = np.maximum(self._top, top)
        shrink = np.exp(self._top - new)
        weights = logits.astype(np.float64)
        weights -= new[:, None]
        np.exp(weights, out=weights)
        self._sum = self._sum * shrink + weights.sum(axis=1)
        self._top = new
        here = np.flatnonzero((self._targets >= start) & (self._targets < start + logits.shape[1]))
        self._wanted[here] = logits[here, self._targets[here] - start]
        return shrink, weights

    def normaliser(self) -> np.ndarray:
        """float64[positions], the logarithm of the sum of exponentials."""
        return self._top + np.log(self._sum)

    def mass(self) -> np.ndarray:
        """float64[positions], the sum of exponentials relative to the largest."""
        return self._sum

    def nll(self) -> np.ndarray:
        """float64[targets], the negative log-likelihood of each."""
        return self.normaliser()[: len(self._targets)] - self._wanted


class WindowMeter:
    """Compares several versions with the reference on one window."""

    def __init__(self, positions: int, targets: np.ndarray, versions: int) -> None:
        self._reference = Tally(positions, targets)
        self._others = [Tally(positions, targets) for _ in range(versions)]
        self._gaps = [np.zeros(positions) for _ in range(versions)]

    def add(self, start: int, reference: np.ndarray) -> PieceMeter:
        """Begin with the reference's logits of the tokens from `start` on; the versions' follow."""
        shrink, weights = self._reference.add(start, reference)
        return PieceMeter(self, start, reference, shrink, weights)

    def results(self, version: int) -> dict[str, np.ndarray]:
        """float64 ``kl`` and bool ``same`` by position, float64 ``nll`` and ``reference`` by target."""
        mine, other = self._reference, self._others[version]
        kl = self._gaps[version] / mine.mass() - (mine.normaliser() - other.normaliser())
        return {"kl": kl, "same": mine.best == other.best, "nll": other.nll(), "reference": mine.nll()}


@dataclass(frozen=True)
class PieceMeter:
    """One piece of the vocabulary, with what the reference made of it."""

    meter: WindowMeter
    start: int
    reference: np.ndarray
    shrink: np.ndarray
    weights: np.ndarray

    def add(self, version: int, logits: np.ndarray) -> None:
        """Count in a version's logits of the same tokens; every version has to be counted in for every piece."""
        self.meter._others[version].add(self.start, logits)
        gap = np.subtract(self.reference, logits, dtype=np.float64)
        gaps = self.meter._gaps[version]
        gaps *= self.shrink
        gaps += np.einsum("ij,ij->i", self.weights, gap)


def combine(windows: list[dict[str, np.ndarray]]) -> Divergence:
    """Means over the positions of all windows."""
    kl, same, nll, reference = (
        np.concatenate([item[key] for item in windows]) for key in ("kl", "same", "nll", "reference")
    )
    count = len(kl)
    error = float(kl.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan")
    mean = [float(part.mean()) if len(part) else float("nan") for part in (nll, reference)]
    return Divergence(float(kl.mean()), error, float(same.mean()), *mean, count)


__all__ = ["Divergence", "Tally", "WindowMeter", "combine"]
