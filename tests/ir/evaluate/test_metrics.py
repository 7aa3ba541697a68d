"""Distances and perplexity against plain formulas."""

from __future__ import annotations

import numpy as np
import pytest

from ir.evaluate.divergence import DistanceMeter, PerplexityMeter, log_softmax


def softmax(rows):
    wide = np.exp(rows.astype(np.float64) - rows.max(axis=-1, keepdims=True))
    return wide / wide.sum(axis=-1, keepdims=True)


def test_distance_follows_its_definition():
    rng = np.random.default_rng(0)
    wanted = rng.normal(size=(7, 11)).astype(np.float32) * 4
    got = wanted + rng.normal(size=(7, 11)).astype(np.float32)
    meter = DistanceMeter()
    meter.add(wanted[:3], got[:3])
    meter.add(wanted[3:], got[3:])
    found = meter.result()
    p, q = softmax(wanted), softmax(got)
    assert found.positions == 7
    assert found.kl == pytest.approx(float((p * np.log(p / q)).sum(axis=1).mean()))
    assert found.max_abs == pytest.approx(float(np.abs(wanted - got).max()))
    assert found.max_logit == pytest.approx(float(np.abs(wanted).max()))
    assert found.top1 == pytest.approx(float((wanted.argmax(1) == got.argmax(1)).mean()))


def test_equal_logits_have_no_distance():
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    meter = DistanceMeter()
    meter.add(rows, rows)
    found = meter.result()
    assert (found.max_abs, found.kl, found.top1) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_infinitely_far(bad):
    wanted = np.zeros((1, 3), np.float32)
    meter = DistanceMeter()
    with np.errstate(all="ignore"):
        meter.add(wanted, np.array([[0, bad, 0]], np.float32))
    assert meter.result().max_abs == np.inf and not meter.result().kl <= 1e9


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="shapes differ"):
        DistanceMeter().add(np.zeros((1, 3), np.float32), np.zeros((1, 4), np.float32))


def test_empty_meters_refuse():
    with pytest.raises(ValueError, match="nothing was compared"):
        DistanceMeter().result()
    with pytest.raises(ValueError, match="no token"):
        PerplexityMeter().result()


def test_perplexity_of_certainty_and_of_a_coin():
    sure = np.full((3, 2), -1e9, np.float32)
    sure[0, 1] = sure[1, 0] = 0
    meter = PerplexityMeter()
    meter.add(sure, np.array([0, 1, 0]))
    assert meter.result() == pytest.approx(1.0)
    coin = PerplexityMeter()
    coin.add(np.zeros((5, 2), np.float32), np.array([0, 1, 1, 0, 1]))
    assert coin.result() == pytest.approx(2.0)


def test_log_softmax_of_large_logits_is_finite():
    got = log_softmax(np.array([1e4, 0], np.float32))
    assert got[0] == 0 and got[1] == pytest.approx(-1e4)
