"""How far one set of logits is from another."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


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
