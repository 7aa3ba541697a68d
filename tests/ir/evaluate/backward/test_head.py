"""Losses through the logits matrix, piece by piece, are those of torch on whole logits."""

from __future__ import annotations

import numpy as np
import pytest

from ir.evaluate.backward import head as module
from ir.evaluate.backward.head import Head, Target, likelihood_gradients
from ir.tensor.inline import InlineTensor

RNG = np.random.default_rng(0)
WIDTH, VOCABULARY = 24, 90
MATRIX = RNG.standard_normal((WIDTH, VOCABULARY)).astype(np.float32) / 3
OTHER = MATRIX + RNG.standard_normal(MATRIX.shape).astype(np.float32) / 20
FEATURES = [RNG.standard_normal((1, count, WIDTH)).astype(np.float32) for count in (7, 11)]
MOVED = [item + RNG.standard_normal(item.shape).astype(np.float32) / 10 for item in FEATURES]


@pytest.fixture(autouse=True)
def pieces(monkeypatch):
    monkeypatch.setattr(module, "TOKENS", 32)


def test_divergence_and_its_gradient_are_those_of_torch():
    import torch

    target = Target(FEATURES, Head(InlineTensor(MATRIX)))
    found, gradients = target.gradients([1, 0], MOVED[::-1], Head(InlineTensor(OTHER)))
    total = torch.zeros(())
    leaves = [torch.from_numpy(item).requires_grad_() for item in MOVED]
    for item, leaf in zip(FEATURES, leaves, strict=True):
        reference = torch.log_softmax(torch.from_numpy(item) @ torch.from_numpy(MATRIX), -1)
        other = torch.log_softmax(leaf @ torch.from_numpy(OTHER), -1)
        total = total + (reference.exp() * (reference - other)).sum()
    total.backward()
    assert found == pytest.approx(total.item(), rel=1e-5)
    assert target.divergence([1, 0], MOVED[::-1], Head(InlineTensor(OTHER))) == pytest.approx(found)
    for leaf, gradient in zip(leaves, gradients[::-1], strict=True):
        assert np.abs(leaf.grad.numpy() - gradient).max() < 1e-5


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
