"""Rounding against the second moments on both sides of a weight: of its input, and of the gradients behind its output.

An error ``D`` of a weight's rows costs about ``tr(G D H D^T)``, where ``H = E[x x^T]`` is that of what flows in and ``G
= E[g g^T]`` that of the gradients of the log likelihood with respect to what comes out (Tseng et al. 2025, YAQA). With
``G = L C L^T``, ``L`` unit lower triangular, this is the sum over rows ``k`` of ``C_k (L^T D)_k H (L^T D)_k^T``, and
``(L^T D)_k`` is the error of row ``k`` plus a combination of those of later rows. So rows are quantized from the last to
the first, each by `ir.quant.methods.gptq` on a target moved by the errors behind it, and costs the pivot ``C_k`` instead
of ``G_kk`` for the same rounding noise. A group of rows is moved by those behind it alone, and rounded as a whole.
"""

from __future__ import annotations

import numpy as np

from ir.base.types import F32
from ir.quant.methods.base import Blocks, QuantMethod, Scratch, dequantize
from ir.quant.methods.gptaq import targets
from ir.quant.methods.gptq import METHOD as ONE_SIDE
from ir.quant.statistics.exact_products import one_thread
from ir.quant.statistics.moments import Moments
from ir.quant.storage import Storage

TOGETHER = 1024
"""Rows that are moved by each other. Beyond, statistics take more room and time than they save: 4,864 rows would take
four times as much of both."""
GROUPS = 16
"""Groups that these rows are quantized in."""
FEWEST = 8
"""Rows of a group, at least."""


class BothSides(QuantMethod):
    """Errors are made up for along the input features, as gptq does, and from row to row."""

    name = "yaqa"
    accepts = frozenset({F32})
    needs = "both-sides"
    follows = name
    slow = True
    together = TOGETHER

    def quantize(self, rows: np.ndarray, storage: Storage, scratch: Scratch, moments: Moments | None) -> Blocks:
        """See `QuantMethod`."""
        if moments is None or moments.outputs is None or len(moments.outputs) != len(rows):
            raise ValueError("the method 'yaqa' cannot work without second moments of both sides of all rows")
        if not rows.size:
            return ONE_SIDE.quantize(rows, storage, scratch, moments)
        if not (moments.drift is None and moments.lag is None):
            rows = targets(rows, moments, scratch)
        errors = np.zeros(rows.shape, np.float32)
        found: list[Blocks] = []
        size = max(FEWEST, -(-len(rows) // GROUPS))
        with one_thread():
            factor = unit_factor(moments.outputs)
            for first in reversed(range(0, len(rows), size)):
                group = slice(first, min(len(rows), first + size))
                target = rows[group] + moved(factor, group, errors)
                part = ONE_SIDE.quantize(target, storage, scratch, moments)
                found.append(part.kept())
                np.subtract(dequantize(part), rows[group], out=errors[group])
        return Blocks.below(found[::-1])


def unit_factor(outputs: np.ndarray) -> np.ndarray:
    """float64[rows, rows], the unit lower triangular ``L`` with ``G = L C L^T``."""
    root = np.linalg.cholesky(outputs.astype(np.float64))
    return root / np.diagonal(root)


def moved(factor: np.ndarray, group: slice, errors: np.ndarray) -> np.ndarray:
    """float32, by how much a group's targets are moved so that it makes up for the errors of the rows behind it."""
    behind = factor[group.stop :, group]
    if not len(behind):
        return np.zeros((group.stop - group.start, errors.shape[1]), np.float32)
    shares = np.linalg.solve(factor[group, group].T, behind.T).astype(np.float32)
    return -(shares @ errors[group.stop :])


METHOD = BothSides()
"""The row of `ir.quant.methods.base.METHODS`."""

__all__ = ["METHOD", "TOGETHER"]
