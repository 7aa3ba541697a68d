"""Codes that make up for errors made before the weight, too: the quantized model's inputs, the float model's outputs.

With ``x`` what flows into a weight once those before it are quantized, and ``z`` what its outputs should be, the error
of a row ``w`` stored as ``v`` is ``E[(z - v x)^2]``. Up to a constant that is ``(t - v) H (t - v)^T`` with ``H = E[x
x^T]`` and the target ``t = w + E[(z - w x) x^T] H^-1``: the best float row for these inputs (Li et al. 2025, GPTAQ;
Zhang et al. 2025, Qronos, whose first step is the same). So the target takes the place of the weight, and everything
else is `ir.quant.methods.gptq`. The target is found with the damped second moments, which draw it to the weight where
the text says little.
"""

from __future__ import annotations

import numpy as np

from ir.quant.methods.base import Blocks, Scratch
from ir.quant.methods.gptq import BATCH, LARGEST, WIDTH, SecondOrder
from ir.quant.statistics.exact_products import Tiles, one_thread
from ir.quant.statistics.moments import Moments
from ir.quant.statistics.second_moments import Factor, factor_of
from ir.quant.storage import Storage


class Following(SecondOrder):
    """`SecondOrder` for the targets; for the weights themselves where statistics know nothing of errors before."""

    name = "gptaq"
    follows = SecondOrder.name

    def quantize(self, rows: np.ndarray, storage: Storage, scratch: Scratch, moments: Moments | None) -> Blocks:
        """See `QuantMethod`."""
        if moments is not None and rows.size and not (moments.drift is None and moments.lag is None):
            rows = targets(rows, moments, scratch)
        return super().quantize(rows, storage, scratch, moments)


def targets(rows: np.ndarray, moments: Moments, scratch: Scratch) -> np.ndarray:
    """float32[n, in]: the rows that lose least for the inputs of the quantized model.

    Rows with very large weights are left as they are. Every row comes out as it does beside any others.

    Args:
        rows: float32[n, in].
        moments: with `drift`, or with a `lag` that has a row for each of these.
        scratch: memory to work in.
    """
    found = rows.copy()
    with one_thread(), np.errstate(over="ignore", invalid="ignore"):
        factor = factor_of(moments)
        step = Tiles.capacity(WIDTH)
        for first in range(0, len(rows), step):
            part = slice(first, min(len(rows), first + step))
            change = _change(rows[part], moments, part, factor, scratch)
            small = np.abs(rows[part]).max(axis=1, initial=0) <= LARGEST
            found[part][small] += change[small]
    return found


def _change(rows: np.ndarray, moments: Moments, part: slice, factor: Factor, scratch: Scratch) -> np.ndarray:
    """What is added to the rows of a part."""
    tiles, length = Tiles(len(rows)), rows.shape[1]
    columns = scratch.take("gptaq-columns", (length, tiles.width), np.float32)
    columns[:] = 0
    columns[:, tiles.places] = rows.T if moments.lag is None else moments.lag[part].T
    if moments.lag is None:
        assert moments.drift is not None
        moved = scratch.take("gptaq-moved", columns.shape, np.float32)
        tiles.product(moments.drift, columns, moved)
    else:
        moved = columns
    sorted_ = moved[factor.order]
    _solve(sorted_, factor, tiles, scratch)
    columns[factor.order] = sorted_
    return columns[:, tiles.places].T


def _solve(columns: np.ndarray, factor: Factor, tiles: Tiles, scratch: Scratch) -> None:
    """``H^-1`` times columns ``[in, width]`` in the order of the factor, in place: ``H = A D A^T``, batch by batch."""
    size = len(columns)
    upper, pivots = factor.feedback, factor.pivots[factor.order]
    starts = range(0, size, BATCH)
    inverses = {at: np.linalg.inv(upper[at : at + BATCH, at : at + BATCH].astype(np.float64)) for at in starts}
    own = scratch.take("gptaq-own", (BATCH, columns.shape[1]), np.float32)
    far = scratch.take("gptaq-far", columns.shape, np.float32)
    for start in reversed(starts):
        stop = min(size, start + BATCH)
        solved = own[: stop - start]
        tiles.product(np.ascontiguousarray(inverses[start].T, np.float32), columns[start:stop], solved)
        columns[start:stop] = solved
        if start:
            tiles.product(np.ascontiguousarray(upper[:start, start:stop].T), solved, far[:start])
            columns[:start] -= far[:start]
    columns /= pivots[:, None]
    for start in starts:
        stop = min(size, start + BATCH)
        solved = own[: stop - start]
        tiles.product(np.ascontiguousarray(inverses[start], np.float32), columns[start:stop], solved)
        columns[start:stop] = solved
        if stop < size:
            tiles.product(np.ascontiguousarray(upper[start:stop, stop:]), solved, far[stop:])
            columns[stop:] -= far[stop:]


METHOD = Following()
"""The row of `ir.quant.methods.base.METHODS`."""

__all__ = ["METHOD", "Following", "targets"]
