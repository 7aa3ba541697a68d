"""Distances between distributions over a vocabulary: of logits held whole, and of logits that come piece by piece.

Piece by piece, with logits ``a`` of the reference and ``b`` of the other, ``KL = sum p (a - b) - (lse(a) - lse(b))``
where ``p`` is the softmax of ``a`` and ``lse`` the logarithm of the sum of exponentials. Every sum runs in double
precision, relative to the largest logit so far.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

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

    def add(self, version: int, logits: np.ndarray) -> PieceMeter:
        """Count in a version's logits of the same tokens; every version has to be counted in for every piece."""
        self.meter._others[version].add(self.start, logits)
        gap = np.subtract(self.reference, logits, dtype=np.float64)
        gaps = self.meter._gaps[version]
        gaps *= self.shrink
        gaps += np.einsum("ij,ij->i", self.weights, gap)
        return self


def combine(windows: list[dict[str, np.ndarray]]) -> Divergence:
    """Means over the positions of all windows."""
    kl, same, nll, reference = (
        np.concatenate([item[key] for item in windows]) for key in ("kl", "same", "nll", "reference")
    )
    count = len(kl)
    error = float(kl.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan")
    mean, base = (float(part.mean()) if len(part) else float("nan") for part in (nll, reference))
    return Divergence(float(kl.mean()), error, float(same.mean()), mean, base, count)


# ---- logits held whole ----


@dataclass(frozen=True)
class Distance:
    """Distance of measured logits from reference logits over a number of positions.

    Attributes:
        positions: rows compared.
        max_abs: largest absolute difference of a logit.
        max_logit: largest absolute reference logit, for scale.
        kl: mean Kullback-Leibler divergence KL(reference || measured) in nats per position.
        top1: share of positions at which both put the same token first.
    """

    positions: int
    max_abs: float
    max_logit: float
    kl: float
    top1: float

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self)


class DistanceMeter:
    """Accumulates a `Distance` over pairs of float32[rows, vocabulary]."""

    def __init__(self) -> None:
        self.positions = 0
        self.max_abs = 0.0
        self.max_logit = 0.0
        self.kl_sum = 0.0
        self.hits = 0

    def add(self, reference: np.ndarray, measured: np.ndarray) -> None:
        """Compare two arrays of the same shape; NaN in either counts as an infinite distance."""
        if reference.shape != measured.shape:
            raise ValueError(f"shapes differ: {reference.shape} and {measured.shape}")
        for wanted, got in zip(reference, measured, strict=True):
            gap = float(np.abs(wanted - got).max())
            self.max_abs = max(self.max_abs, gap if np.isfinite(gap) else np.inf)
            self.max_logit = max(self.max_logit, float(np.abs(wanted).max()))
            log_p, log_q = log_softmax(wanted), log_softmax(got)
            kl = float(np.sum(np.exp(log_p) * (log_p - log_q)))
            self.kl_sum += kl if np.isfinite(kl) else np.inf
            self.hits += int(wanted.argmax() == got.argmax())
            self.positions += 1

    def result(self) -> Distance:
        """The distance so far; ValueError when nothing was compared."""
        if not self.positions:
            raise ValueError("nothing was compared")
        return Distance(
            self.positions, self.max_abs, self.max_logit, self.kl_sum / self.positions, self.hits / self.positions
        )


def log_softmax(row: np.ndarray) -> np.ndarray:
    """Natural logarithm of the softmax of one row of logits, in double precision."""
    wide = row.astype(np.float64)
    shifted = wide - wide.max()
    return shifted - np.log(np.exp(shifted).sum())


class PerplexityMeter:
    """Accumulates the perplexity of a text: exp of the mean negative log-likelihood of each next token."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.tokens = 0

    def add(self, logits: np.ndarray, ids: np.ndarray) -> None:
        """Logits float32[rows, vocabulary] of a window and its token ids int[rows]; row i predicts token i + 1."""
        for row, following in zip(logits[:-1], ids[1:], strict=True):
            self.loss -= float(log_softmax(row)[int(following)])
            self.tokens += 1

    def result(self) -> float:
        """The perplexity so far; ValueError when no token was predicted."""
        if not self.tokens:
            raise ValueError("no token was predicted")
        return float(np.exp(self.loss / self.tokens))


def divergences(reference: np.ndarray, *measured: np.ndarray) -> np.ndarray:
    """float64[arrays, rows], KL(reference || measured) in nats of each row of arrays float32[rows, vocabulary]."""
    found = np.empty((len(measured), len(reference)))
    for row, wanted in enumerate(reference):
        log_p = log_softmax(wanted)
        p = np.exp(log_p)
        for number, logits in enumerate(measured):
            found[number, row] = np.sum(p * (log_p - log_softmax(logits[row])))
    return np.where(np.isfinite(found), found, np.inf)


@dataclass(frozen=True)
class PairedLoss:
    """One loss, measured and predicted at the same positions.

    Attributes:
        positions: rows compared.
        measured, predicted: mean KL divergence in nats from a common reference.
        error: standard error of the mean difference of both.
    """

    positions: int
    measured: float
    predicted: float
    error: float


class PairedLossMeter:
    """Accumulates a `PairedLoss` over triples of float32[rows, vocabulary]."""

    def __init__(self) -> None:
        self.measured: list[np.ndarray] = []
        self.predicted: list[np.ndarray] = []

    def add(self, reference: np.ndarray, measured: np.ndarray, predicted: np.ndarray) -> None:
        """Compare two arrays with a reference of the same shape."""
        if not reference.shape == measured.shape == predicted.shape:
            raise ValueError(f"shapes differ: {reference.shape}, {measured.shape} and {predicted.shape}")
        first, second = divergences(reference, measured, predicted)
        self.measured.append(first)
        self.predicted.append(second)

    def result(self) -> PairedLoss:
        """The losses so far; ValueError when nothing was compared."""
        if not self.measured:
            raise ValueError("nothing was compared")
        measured, predicted = np.concatenate(self.measured), np.concatenate(self.predicted)
        count = len(measured)
        error = float((measured - predicted).std() / np.sqrt(count)) if np.isfinite(measured).all() else np.inf
        return PairedLoss(count, float(measured.mean()), float(predicted.mean()), error)


__all__ = [
    "Distance",
    "DistanceMeter",
    "Divergence",
    "PairedLoss",
    "PairedLossMeter",
    "PerplexityMeter",
    "Tally",
    "WindowMeter",
    "combine",
    "divergences",
    "log_softmax",
]
