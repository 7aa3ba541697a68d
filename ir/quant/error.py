"""What quantization does to the output of a weight, row by row: the measure that methods lower and plans weigh."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ir.base.types import F32
from ir.quant.spec import Needs, dequantize
from ir.quant.statistics.exact_products import Tiles, one_thread
from ir.quant.statistics.moments import Moments
from ir.quant.weight import QuantizedWeight
from ir.tensor.base import Tensor
from ir.tensor.elementwise import convert

STEP = 256

Pair = tuple[Tensor, Tensor]


def quantization_error(
    weight: QuantizedWeight | Pair,
    moments: Moments | None,
    rows: Sequence[int] | np.ndarray | None = None,
    measure: Needs = "second-moments",
) -> np.ndarray:
    """Mean squared error of each output, ``(w - v) E[x x^T] (w - v)^T``.

    Args:
        weight: a quantized weight, or a float matrix and what stands for it, both ``[out, in]``.
        moments: statistics of the input features; None counts plain squared differences of weights.
        rows: which rows, each quantized by itself when the weight is slow to quantize; all when None.
        measure: ``diagonal`` takes the features for uncorrelated, ``nothing`` leaves the statistics out.

    Returns:
        float64[rows], not negative.

    Raises:
        LadingError: what reading and quantizing raise.
    """
    if isinstance(weight, QuantizedWeight):
        source, count = weight.source, weight.shape[0]
    else:
        source, count = weight[0], weight[0].row_count
    chosen = np.arange(count) if rows is None else np.asarray(rows, np.int64)
    out = np.empty(len(chosen), np.float64)
    with one_thread():
        for start in range(0, len(chosen), STEP):
            part = chosen[start : start + STEP]
            before = rows_of(source, part)
            difference = before - _restored(weight, before, part, whole=rows is None)
            out[start : start + STEP] = _squares(difference, moments, measure)
    return out


def _restored(weight: QuantizedWeight | Pair, before: np.ndarray, part: np.ndarray, whole: bool) -> np.ndarray:
    if not isinstance(weight, QuantizedWeight):
        return rows_of(weight[1], part)
    if whole or not weight.is_slow:
        return rows_of(weight.dequantized(), part)
    return dequantize(weight.quantize_rows(before, part))


def rows_of(tensor: Tensor, chosen: np.ndarray) -> np.ndarray:
    """The chosen rows as float32, runs of neighbours read together."""
    cuts = np.flatnonzero(np.diff(chosen) != 1) + 1
    runs = [tensor.rows(int(run[0]), int(run[-1]) + 1) for run in np.split(chosen, cuts) if len(run)]
    return convert(np.concatenate(runs), F32, tensor.loc)


def _squares(difference: np.ndarray, moments: Moments | None, measure: Needs) -> np.ndarray:
    if moments is None or measure == "nothing":
        return np.square(difference, dtype=np.float64).sum(axis=1)
    if measure == "diagonal":
        return (np.square(difference, dtype=np.float64) * moments.diagonal).sum(axis=1)
    tiles = Tiles(len(difference))
    columns = np.zeros((difference.shape[1], tiles.width), np.float32)
    columns[:, tiles.places] = difference.T
    products = np.empty_like(columns)
    tiles.product(moments.second, columns, products)
    # The row-wise copy makes sums run along rows, alike for any number of them.
    moved = np.ascontiguousarray(products[:, tiles.places].T)
    return np.maximum((moved.astype(np.float64) * difference).sum(axis=1), 0)
