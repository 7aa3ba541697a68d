"""Search for the scale and zero of each block that lose least, errors weighed by how large each input feature is."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from ir.base.types import F32
from ir.quant.columns import Columns, search_blocks
from ir.quant.form import Form, Numbers
from ir.quant.methods.base import Blocks, QuantMethod, Scratch
from ir.quant.statistics.moments import Moments
from ir.quant.storage import Storage

LEAST_RANGE = {2: 0.35, 3: 0.5, 4: 0.6, 5: 0.7}
"""How far ranges are shrunk, by width; 0.85 where it says nothing."""
SIDES = np.array([0.97, 0.94, 0.9], np.float32)
"""Factors of a range that is shrunk on one side."""
REFINEMENTS = 4


class ClipSearch(QuantMethod):
    """Scale and zero of least weighted squared error, by a grid over shrunken ranges and least squares.

    The range of a block, from its smallest to its largest weight, is shrunk by common factors and then on one side
    alone. From the best, codes for given numbers and numbers for given codes are found in turn, as in Lloyd's
    algorithm. Numbers are rounded to their storage before they are judged, and nothing worse than round to nearest is
    ever taken. Errors are weighed by the mean squares of the input features, where they are known.
    """

    name = "clip"
    accepts = frozenset({F32})
    needs = "diagonal"
    slow = True

    def quantize(self, rows: np.ndarray, storage: Storage, scratch: Scratch, moments: Moments | None) -> Blocks:
        """See `QuantMethod`."""
        form = Form(storage)
        weights = None if moments is None else moments.diagonal
        numbers = search(rows, form, weights, scratch, sides=True)
        return form.rounded(rows, numbers, scratch)


def search(rows: np.ndarray, form: Form, weights: np.ndarray | None, scratch: Scratch, sides: bool = False) -> Numbers:
    """Numbers ``[n, blocks]`` for float32 rows ``[n, length]``; `weights` are float32[length], all alike when None.

    With `sides` ranges are also shrunk on one side, which fits given weights better; where later errors are fed back it
    does not help.

    Raises:
        NotFinite, OutOfScale: as methods do.
    """
    return search_blocks(rows, form, weights, scratch, partial(_search, sides))


def _search(sides: bool, columns: Columns, start: Numbers) -> Numbers:
    form = columns.form
    best, error = start, columns.error(start)
    for scale, zero in _shrunken(form, start):
        best, error = columns.better(best, error, form.project(scale, zero))
    if sides and form.kind != "symmetric":
        for factor in SIDES:
            for end in (form.low, form.high):
                scale = best.scale * factor
                shifted = best.zero + (best.scale - scale) * end
                best, error = columns.better(best, error, form.project(scale, shifted))
    for turn in range(REFINEMENTS):
        form.round(columns.values, best, columns.codes)
        found = columns.least_squares(best, free=form.kind == "float" or (form.kind == "int" and turn % 2 == 0))
        best, error = columns.better(best, error, form.project(*found))
    return best


def _shrunken(form: Form, start: Numbers) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    steps = 8 if form.storage.bits > 4 else 16
    least = LEAST_RANGE.get(form.storage.bits, 0.85)
    for factor in np.linspace(1, least, steps + 1, dtype=np.float32)[1:]:
        yield start.scale * factor, start.zero * factor
        if form.kind == "symmetric":
            yield start.scale * -factor, start.zero


METHOD = ClipSearch()
"""The row of `ir.quant.methods.base.METHODS`."""
