"""The method that aims at the float model's outputs with the quantized model's inputs, against its formulas."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from ir.quant.methods.base import METHODS, Scratch, dequantize, real_zero
from ir.quant.methods.gptaq import targets
from ir.quant.statistics.drift import DriftSums
from ir.quant.statistics.moments import Moments, MomentStore
from ir.quant.statistics.second_moments import damped
from ir.quant.storage import Storage
from ir.quant.weight import QuantizedWeight
from ir.tensor.inline import InlineTensor

f32 = np.float32
TOKENS = 4000


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LADING_CACHE", str(tmp_path / "cache"))


class Given:
    """Inputs of a weight in both models, what its outputs are added to in both, and statistics of them."""

    def __init__(self, size: int, rows: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        mix = rng.standard_normal((size, size)) / np.sqrt(size)
        self.wanted = rng.standard_normal((TOKENS, size)) @ (np.eye(size) + mix)
        self.x = self.wanted @ (np.eye(size) + 0.15 * rng.standard_normal((size, size)) / np.sqrt(size))
        self.x += 0.05 * rng.standard_normal(self.x.shape)
        self.rows = rng.standard_normal((rows, size)).astype(f32)
        self.beside = (self.x - self.wanted) @ rng.standard_normal((size, rows)) / size
        self.second = (self.x.T @ self.x / TOKENS).astype(f32)
        self.key = f"given {size} {rows} {seed}"

    def moments(self, **more: np.ndarray) -> Moments:
        ends = np.zeros(len(self.second), f32)
        made = {name: item.astype(f32) for name, item in more.items()}
        return Moments(self.key, TOKENS, self.second, ends, ends, ends, **made)

    @property
    def drift(self) -> np.ndarray:
        return (self.wanted - self.x).T @ self.x / TOKENS

    @property
    def lag(self) -> np.ndarray:
        error = (self.wanted - self.x) @ self.rows.T.astype(np.float64) + self.beside
        return error.T @ self.x / TOKENS

    def loss(self, stored: np.ndarray, beside: bool = False) -> np.ndarray:
        """Mean squared error of each output, against the float model's."""
        error = self.wanted @ self.rows.T - self.x @ stored.T + (self.beside if beside else 0)
        return np.square(error).mean(axis=0)


@pytest.mark.parametrize(("size", "rows"), [(8, 1), (96, 7), (300, 40)])
def test_targets_are_those_of_the_formula(size, rows):
    """``w + E[(z - w x) x^T] H^-1`` in double precision."""
    given = Given(size, rows)
    inverse = np.linalg.inv(damped(given.second, TOKENS).astype(np.float64))
    for moments, error in (
        (given.moments(drift=given.drift), given.rows @ given.drift),
        (given.moments(lag=given.lag), given.lag),
    ):
        want = given.rows + error @ inverse
        assert np.abs(want - given.rows).max() > 0.02
        np.testing.assert_allclose(targets(given.rows, moments, Scratch()), want, atol=2e-5)


def test_without_damping_targets_are_the_least_squares_fit():
    """Against numpy's solver on the samples themselves; damping draws the fit to the weight, here by little."""
    given = Given(24, 5)
    want = np.linalg.lstsq(given.x, given.wanted @ given.rows.T.astype(np.float64) + given.beside, rcond=None)[0].T
    found = targets(given.rows, given.moments(lag=given.lag), Scratch())
    assert np.abs(found - want).max() < 0.25 * np.abs(want - given.rows).max()
    assert given.loss(given.rows, beside=True).sum() > given.loss(found, beside=True).sum()


@pytest.mark.parametrize("kind", ["drift", "lag"])
def test_a_row_comes_out_as_it_does_beside_others(kind):
    given = Given(160, 330)
    moments = given.moments(**{kind: getattr(given, kind)})
    whole = targets(given.rows, moments, Scratch())
    for places in (range(3, 9), range(329, 330), np.array([200, 7, 31])):
        np.testing.assert_array_equal(
            targets(given.rows[list(places)], moments.for_rows(places), Scratch()), whole[list(places)]
        )


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("kind", ["drift", "lag"])
def test_it_is_closer_to_the_float_model_than_gptq(bits, kind):
    given = Given(128, 48)
    moments = given.moments(**{kind: getattr(given, kind)})
    storage = Storage(bits=bits, block=32, zero="float")
    beside = kind == "lag"
    plain, following = (
        given.loss(dequantize(METHODS[name].quantize(given.rows, storage, Scratch(), moments)), beside).sum()
        for name in ("gptq", "gptaq")
    )
    assert following < 0.97 * plain


def test_without_errors_before_it_gives_the_bytes_of_gptq():
    given = Given(64, 9)
    storage = Storage(bits=3, block=32, zero="float")
    for moments in (given.moments(), given.moments(drift=np.zeros((64, 64))), given.moments(lag=np.zeros((9, 64)))):
        one, other = (METHODS[name].quantize(given.rows, storage, Scratch(), moments) for name in ("gptq", "gptaq"))
        for first, second in zip(one, other, strict=True):
            np.testing.assert_array_equal(first, second)


def test_few_codes_are_about_the_best_of_all():
    """Every combination of codes with the scales and zeros found, by the error measured on the samples."""
    given = Given(5, 30, seed=3)
    moments = given.moments(drift=given.drift)
    found = METHODS["gptaq"].quantize(given.rows, Storage(bits=2, block=0, zero="float"), Scratch(), moments)
    combinations = np.array(list(product(range(-2, 2), repeat=5)), f32)
    zero = real_zero(found.scale, found.zero)
    assert zero is not None
    best = [_least(given, combinations * found.scale[row, 0] + zero[row, 0], row) for row in range(30)]
    assert given.loss(dequantize(found)).sum() == pytest.approx(sum(best), rel=0.02)


def _least(given: Given, candidates: np.ndarray, row: int) -> float:
    """The least error of an output over candidate rows."""
    error = (given.wanted @ given.rows[row])[:, None] - given.x @ candidates.T
    return float(np.square(error).mean(axis=0).min())


def test_huge_weights_are_left_as_they_are():
    given = Given(32, 3)
    given.rows[1, 4] = 1e30
    found = targets(given.rows, given.moments(drift=given.drift), Scratch())
    np.testing.assert_array_equal(found[1], given.rows[1])
    assert np.isfinite(found).all() and (found[0] != given.rows[0]).any()


@pytest.mark.parametrize("kind", ["drift", "lag", None])
def test_statistics_are_kept_with_what_they_know_of_errors(kind):
    given = Given(40, 12)
    moments = given.moments(**({kind: getattr(given, kind)} if kind else {}))
    MomentStore().save(moments)
    found = MomentStore().load(given.key)
    assert found.tokens == TOKENS and (found.drift is None, found.lag is None) == (kind != "drift", kind != "lag")
    np.testing.assert_array_equal(np.tril(found.second), np.tril(moments.second))
    if kind:
        np.testing.assert_array_equal(getattr(found, kind), getattr(moments, kind))
    assert MomentStore().summary(given.key)[1] == pytest.approx(np.diagonal(given.second).mean(), rel=1e-5)


def test_a_weight_reads_the_lag_of_its_own_rows():
    given = Given(64, 70)
    moments = given.moments(lag=given.lag)
    MomentStore().save(moments)
    storage = Storage(bits=4, block=32, zero="float", method="gptaq")
    weight = QuantizedWeight(InlineTensor(given.rows), storage, given.key)
    moments = MomentStore().load(given.key)
    whole = METHODS["gptaq"].quantize(given.rows, storage, Scratch(), moments)
    np.testing.assert_array_equal(weight.rows(50, 64).codes, whole.codes[50:64])
    some = weight.quantize_rows(given.rows[[69, 2]], [69, 2])
    np.testing.assert_array_equal(some.codes, whole.codes[[69, 2]])


def test_sums_are_means_over_all_positions():
    given = Given(33, 4)
    sums = DriftSums(33, 4)
    error = (given.wanted - given.x) @ given.rows.T
    for start in range(0, TOKENS, 1500):
        part = slice(start, start + 1500)
        sums.add(error[part].astype(f32), given.x[part].astype(f32))
    sums.add(np.zeros((0, 4), f32), np.zeros((0, 33), f32))
    assert sums.moments.tokens == TOKENS and sums.is_finite
    np.testing.assert_allclose(sums.products(), error.T @ given.x / TOKENS, atol=1e-4)
    sums.add(np.full((1, 4), np.inf, f32), np.ones((1, 33), f32))
    assert not sums.is_finite
