"""Rounding against both sides: what it lowers, what it comes to without correlations, and what it asks for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ir.base.diag import LadingError
from ir.quant.methods.base import METHODS, dequantize, thread_scratch
from ir.quant.statistics.moments import Moments, joined, parts_of
from ir.quant.storage import Storage
from ir.quant.weight import QuantizedWeight
from ir.tensor.inline import InlineTensor

ROWS, COLUMNS = 48, 96


def correlated(size: int, seed: int) -> np.ndarray:
    """float32[size, size], second moments of few strong directions and a little of everything."""
    rng = np.random.default_rng(seed)
    few = rng.standard_normal((size, max(2, size // 6)))
    return (few @ few.T / few.shape[1] + 0.05 * np.eye(size)).astype(np.float32)


def moments(outputs: np.ndarray | None) -> Moments:
    ends = np.zeros(COLUMNS, np.float32)
    return Moments("yaqa test", 100_000, correlated(COLUMNS, 1), ends, ends, ends, outputs=outputs)


def cost(rows: np.ndarray, found, given: Moments, outputs: np.ndarray) -> float:
    error = (dequantize(found) - rows).astype(np.float64)
    return float(np.einsum("ij,ij", outputs @ error @ given.second.astype(np.float64), error))


@pytest.mark.parametrize(
    "storage",
    [
        Storage(bits=4, block=32, zero="float", method="yaqa"),
        Storage(bits=2, block=32, method="yaqa"),
        Storage(bits=3, block=0, symmetric=True, method="yaqa"),
        Storage(bits=3, block=48, zero="float", scale="f16", method="yaqa"),
    ],
    ids=str,
)
def test_errors_that_the_predictions_feel_are_smaller(storage):
    rows = np.random.default_rng(2).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    outputs = correlated(ROWS, 3)
    given = moments(outputs)
    both = METHODS["yaqa"].quantize(rows, storage, thread_scratch(), given)
    one = METHODS["gptq"].quantize(rows, replace(storage, method="gptq"), thread_scratch(), given)
    assert cost(rows, both, given, outputs) < 0.6 * cost(rows, one, given, outputs)


def test_rows_without_correlations_are_rounded_as_by_gptq():
    """But for the last bits of products, which a group of few rows is computed in otherwise."""
    rows = np.random.default_rng(2).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    outputs = np.diag(np.linspace(0.1, 3, ROWS)).astype(np.float32)
    given = moments(outputs)
    storage = Storage(bits=3, block=32, zero="float", method="gptq")
    both = METHODS["yaqa"].quantize(rows, storage, thread_scratch(), given).kept()
    one = METHODS["gptq"].quantize(rows, storage, thread_scratch(), given)
    assert np.mean(both.codes == one.codes) > 0.99
    assert cost(rows, both, given, outputs) == pytest.approx(cost(rows, one, given, outputs), rel=1e-3)


@pytest.mark.parametrize("given_as", ["drift", "lag"])
def test_errors_of_weights_before_are_made_up_for(given_as):
    """Counted over samples: what the outputs should be, and what they are for the inputs that there are."""
    rng = np.random.default_rng(4)
    rows = rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    wanted = rng.standard_normal((4000, COLUMNS)) @ np.linalg.cholesky(correlated(COLUMNS, 1)).T
    turned = np.eye(COLUMNS) + 0.2 * rng.standard_normal((COLUMNS, COLUMNS)) / np.sqrt(COLUMNS)
    x = wanted @ turned
    outputs = correlated(ROWS, 3)
    plain = replace(moments(outputs), key="behind", tokens=len(x), second=(x.T @ x / len(x)).astype(np.float32))
    drift = (wanted - x).T @ x / len(x)
    more = drift if given_as == "drift" else rows @ drift
    behind = replace(plain, **{given_as: more.astype(np.float32)})

    def felt(name: str, given: Moments) -> float:
        storage = Storage(bits=3, block=32, zero="float", method=name)
        stored = dequantize(METHODS[name].quantize(rows, storage, thread_scratch(), given))
        error = wanted @ rows.T - x @ stored.T
        return float(np.einsum("ij,ij", error @ outputs, error) / len(x))

    assert felt("yaqa", behind) < 0.8 * min(felt("yaqa", plain), felt("gptaq", behind))


def test_statistics_of_both_sides_are_needed():
    rows = np.zeros((ROWS, COLUMNS), np.float32)
    with pytest.raises(ValueError, match="both sides"):
        METHODS["yaqa"].quantize(rows, Storage(bits=4, method="yaqa"), thread_scratch(), moments(None))
    with pytest.raises(LadingError) as caught:
        QuantizedWeight(InlineTensor(rows), Storage(bits=4, method="yaqa"))
    assert caught.value.code == "Q440"


def test_keys_of_both_sides_are_one():
    assert parts_of(joined("a", ["b", "c"])) == ["a", "b", "c"]
    assert parts_of("") == []
