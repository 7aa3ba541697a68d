"""Scales and zeros that are moved: gradients against differences, and what comes out can be stored."""

from __future__ import annotations

import numpy as np
import pytest

from ir.quant.methods.base import METHODS, dequantize, thread_scratch
from ir.quant.storage import Storage
from ir.quant.tuned import Scales

FORMS = {
    "real": Storage(bits=4, block=32, zero="float"),
    "point": Storage(bits=3, block=16),
    "symmetric": Storage(bits=4, block=0, symmetric=True),
    "half": Storage(bits=2, block=32, zero="float", scale="f16"),
}
RNG = np.random.default_rng(4)
ROWS = RNG.standard_normal((6, 64)).astype(np.float32)
GRADIENT = RNG.standard_normal((6, 64)).astype(np.float32)


def quantized(storage):
    found = METHODS["rtn"].quantize(ROWS, storage, thread_scratch(), None)
    return type(found)(*(None if part is None else part.copy() for part in found))


@pytest.mark.parametrize("storage", FORMS.values(), ids=FORMS)
def test_untouched_numbers_stay(storage):
    before = quantized(storage)
    after = Scales(before, storage).blocks(before)
    for kept, found in zip(before, after, strict=True):
        assert kept is found is None or np.array_equal(kept, found)


@pytest.mark.parametrize("storage", FORMS.values(), ids=FORMS)
def test_slopes_are_differences(storage):
    before = quantized(storage)
    scales = Scales(before, storage)
    scales.add(GRADIENT)
    slopes = [slope.copy() for slope in scales._slopes]
    assert len(slopes) == (2 if storage.zero == "float" and not storage.symmetric else 1)
    for place, slope in enumerate(slopes):
        for row, block in ((0, 0), (5, slope.shape[1] - 1)):
            values = []
            for move in (-1e-2, 1e-2):
                state = scales.state()
                state[place][row, block] = move
                scales.restore(state)
                values.append(float((scales.rows().astype(np.float64) * GRADIENT).sum()))
                state[place][row, block] = 0
                scales.restore(state)
            assert (values[1] - values[0]) / 2e-2 == pytest.approx(float(slope[row, block]), rel=2e-3, abs=1e-4)


def least_loss(before, storage, wanted) -> float:
    """What the best real numbers for the codes leave, by least squares block by block."""
    total = 0.0
    blocks = before.scale.shape[1]
    for row, codes in enumerate(before.codes.astype(np.float64).reshape(6, blocks, -1)):
        for block, numbers in enumerate(codes):
            point = 0 if before.zero is None else before.zero[row, block]
            real = storage.zero == "float" and not storage.symmetric
            basis = np.stack([numbers, np.ones_like(numbers)], 1) if real else (numbers - point)[:, None]
            goal = wanted[row].reshape(blocks, -1)[block].astype(np.float64)
            best = np.linalg.lstsq(basis, goal, rcond=None)[0]
            total += float(np.square(basis @ best - goal).sum())
    return total


@pytest.mark.parametrize("storage", FORMS.values(), ids=FORMS)
def test_steps_lower_a_loss_and_can_be_stored(storage):
    """Adam on the squared distance from other rows comes to the numbers that least squares finds for the codes."""
    before = quantized(storage)
    wanted = ROWS * np.float32(1.2)
    scales = Scales(before, storage)
    for _ in range(200):
        scales.add(2 * (scales.rows() - wanted))
        scales.step(0.005)
    after = scales.blocks(before)
    assert np.array_equal(after.codes, before.codes)
    if after.zero is not None and after.zero.dtype == np.int8:
        assert np.array_equal(after.zero, before.zero)
    if storage.scale == "f16":
        assert np.array_equal(after.scale, after.scale.astype(np.float16))
        assert np.array_equal(after.zero, after.zero.astype(np.float16))
    lost, found = least_loss(before, storage, wanted), float(np.square(dequantize(after) - wanted).sum())
    assert found < float(np.square(dequantize(before) - wanted).sum())
    assert found < 1.03 * lost + 1e-3
    assert dequantize(after) == pytest.approx(scales.rows(), abs=4e-3)
