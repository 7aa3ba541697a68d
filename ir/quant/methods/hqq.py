"""Half-quadratic quantization: zeros that fit most weights of a block well, without any data (Badri & Shaji, 2023).

Squared errors let the few largest weights of a block decide. Here errors count by their square root, so that a few may
be large while the others become small.
"""

from __future__ import annotations

import numpy as np

from ir.base.types import F32
from ir.quant.columns import Columns, search_blocks
from ir.quant.form import Form, Numbers
from ir.quant.methods.base import Blocks, QuantMethod, Scratch
from ir.quant.statistics.moments import Moments
from ir.quant.storage import Storage

ROUNDS = 12
BETA = 4.0
GROWTH = 1.15
"""Strength of the quadratic term at first, in steps of the block, and its growth in each round."""


class HalfQuadratic(QuantMethod):
    """Zeros by half-quadratic splitting; symmetric blocks, which have none, get their scale that way.

    Minimizes the sum of ``sqrt(|error|)``. In turn, errors are split into a sparse part, by the shrinkage that belongs
    to the root, and a small rest; codes are rounded; and zero (or scale) is set to fit all but the sparse part. The
    best numbers met, as they are stored, are taken.
    """

    name = "hqq"
    accepts = frozenset({F32})
    slow = True

    def quantize(self, rows: np.ndarray, storage: Storage, scratch: Scratch, moments: Moments | None = None) -> Blocks:
        """See `QuantMethod`."""
        form = Form(storage)
        return form.rounded(rows, search_blocks(rows, form, None, scratch, _search), scratch)


def _search(columns: Columns, start: Numbers) -> Numbers:
    form, now = columns.form, start
    best, least = start, np.full(start.scale.shape, np.inf, np.float32)
    for turn in range(ROUNDS + 1):
        form.round(columns.values, now, columns.codes)
        stored = columns.codes * now.scale + now.zero
        error = columns.values - stored
        size = np.abs(error) / np.abs(now.scale)
        root = np.sqrt(size)
        found = np.add.reduce(root, axis=0)
        best, least = best.where(found < least, now), np.minimum(found, least)
        if turn == ROUNDS:
            return best
        with np.errstate(divide="ignore"):
            kept = np.maximum(size - 1 / (np.float32(BETA * GROWTH**turn) * root), 0)
        sparse = np.copysign(kept, error) * np.abs(now.scale)
        now = _fitted(columns, form, now, columns.values - sparse)
    return best


def _fitted(columns: Columns, form: Form, now: Numbers, targets: np.ndarray) -> Numbers:
    """Numbers that fit the targets best for the codes at hand: another zero, or another scale where there is no
    zero."""
    count = np.float32(len(targets))
    if form.kind != "symmetric":
        return form.project(now.scale, np.add.reduce(targets - columns.codes * now.scale, axis=0) / count)
    below = np.add.reduce(np.square(columns.codes), axis=0)
    above = np.add.reduce(columns.codes * targets, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return form.project(np.where(below > 0, above / below, now.scale), now.zero)


METHOD = HalfQuadratic()
"""The row of `ir.quant.methods.base.METHODS`."""
