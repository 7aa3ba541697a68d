"""The mean square error of activations that are rounded to 8 bits, against rounding them."""

from __future__ import annotations

import numpy as np
import pytest

from ir.quant.statistics.rounding import BLOCKS, RoundingSums
from ir.quant.statistics.sums import MomentSums


def rounded(x, block):
    """The features after rounding: by row symmetrically, by block between its extremes."""
    parts = x.reshape(len(x), -1, block or x.shape[1]).astype(np.float64)
    if not block:
        step = np.abs(parts).max(axis=2, keepdims=True) / 127
        return (np.rint(parts / step) * step).reshape(x.shape)
    low, high = parts.min(axis=2, keepdims=True), parts.max(axis=2, keepdims=True)
    step = (high - low) / 255
    return (np.rint((parts - low) / step) * step + low).reshape(x.shape)


@pytest.mark.parametrize("block", BLOCKS)
def test_the_error_foretold_is_that_of_rounding(block):
    x = np.random.default_rng(3).standard_t(4, (400, 256)).astype(np.float32)
    sums = RoundingSums(256)
    sums.add(x[:150])
    sums.add(x[150:])
    found = sums.means(400)[block]
    assert found == pytest.approx(np.square(rounded(x, block) - x).mean(), rel=0.05)


def test_sums_of_moments_bring_it_and_small_blocks_cost_less():
    x = np.random.default_rng(4).standard_t(4, (3000, 128)).astype(np.float32)
    moments = MomentSums(128)
    moments.add(x)
    found = moments.rounding()
    assert list(found) == [0, 32, 64, 128] and found[32] < found[64] < found[128] < found[0]
    assert list(RoundingSums(96).means(1)) == [0, 32]
