"""Gradients through the logits matrix, piece by piece, have the covariance that whole logits give."""

from __future__ import annotations

import numpy as np
import pytest

from ir.evaluate.backward import head as module
from ir.evaluate.backward.head import Head, likelihood_gradients
from ir.tensor.inline import InlineTensor

RNG = np.random.default_rng(0)
WIDTH, VOCABULARY = 24, 90
MATRIX = RNG.standard_normal((WIDTH, VOCABULARY)).astype(np.float32) / 3
FEATURES = [RNG.standard_normal((1, count, WIDTH)).astype(np.float32) for count in (7, 11)]


@pytest.fixture(autouse=True)
def pieces(monkeypatch):
    monkeypatch.setattr(module, "TOKENS", 32)


def test_gradients_of_the_likelihood_have_the_covariance_of_drawn_tokens():
    """``W (diag(q) - q q^T) W^T`` at each position, on average over signs."""
    draws = 4000
    features = np.repeat(FEATURES[0][:, :1], draws, axis=1)
    (found,) = likelihood_gradients([features], Head(InlineTensor(MATRIX)), [3])
    logits = (FEATURES[0][0, 0] @ MATRIX).astype(np.float64)
    likely = np.exp(logits - logits.max())
    likely /= likely.sum()
    wanted = MATRIX @ (np.diag(likely) - np.outer(likely, likely)) @ MATRIX.T
    covariance = found[0].T @ found[0] / draws
    assert np.linalg.norm(covariance - wanted) < 0.1 * np.linalg.norm(wanted)
    (again,) = likelihood_gradients([features], Head(InlineTensor(MATRIX)), [3])
    assert np.array_equal(found, again)
