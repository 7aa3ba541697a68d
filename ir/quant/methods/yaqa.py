"""Rounding against the second moments on both sides of a weight: of its input, and of the gradients behind its output.

An error ``D`` of a weight's rows costs about ``tr(G D H D^T)``, where ``H = E[x x^T]`` is that of what flows in and ``G
= E[g g^T]`` that of the gradients of the log likelihood with respect to what comes out (Tseng et al. 2025, YAQA). With
``G = A C A^T``, ``A`` unit upper triangular, this is the sum over rows ``k`` of ``C_k (A^T D)_k H (A^T D)_k^T``, and
``(A^T D)_k`` is the error of row ``k`` plus a combination of those of rows before it. So rows are quantized one after the
other, each by `ir.quant.methods.gptq` on a target moved by the errors before it, and costs the pivot ``C_k`` instead of
``G_kk`` for the same rounding noise. They are taken in an order that keeps the pivots alike, as features are. A group of
rows is moved by those before it alone, and rounded as a whole.

Where statistics tell of errors made before the weight, the targets of `ir.quant.methods.gptaq` take the place of the
rows: with ``G`` counted alike at all positions, the best float rows for the inputs that there are do not depend on it.
"""

from __future__ import annotations

import numpy as np

from ir.base.types import F32
from ir.quant.methods.base import Blocks, QuantMethod, Scratch, dequantize
from ir.quant.methods.gptaq import Following, targets
from ir.quant.methods.gptq import METHOD as ONE_SIDE
from ir.quant.statistics.exact_products import one_thread
from ir.quant.statistics.moments import Moments
from ir.quant.statistics.second_moments import factorize
from ir.quant.storage import Storage

TOGETHER = 1024
"""Rows that are moved by each other. Beyond, statistics take more room and time than they save: 4,864 rows would take
four times as much of both."""
GROUPS = 32
"""Groups that these rows are quantized in."""
FEWEST = 4
"""Rows of a group, at least."""


class BothSides(QuantMethod):
    """Errors are made up for along the input features, as gptq does, and from row to row."""

    name = "yaqa"
    accepts = frozenset({F32})
    needs = "both-sides"
    follows = name
    chosen_as = Following.name
    slow = True
    together = TOGETHER
    version = 2

    def quantize(self, rows: np.ndarray, storage: Storage, scratch: Scratch, moments: Moments | None) -> Blocks:
        """See `QuantMethod`."""
        if moments is None or moments.outputs is None or len(moments.outputs) != len(rows):
            raise ValueError("the method 'yaqa' cannot work without second moments of both sides of all rows")
        if not rows.size:
            return ONE_SIDE.quantize(rows, storage, scratch, moments)
        if not (moments.drift is None and moments.lag is None):
            rows = targets(rows, moments, scratch)
        codes: list[Blocks] = []
        size = max(FEWEST, -(-len(rows) // GROUPS))
        with one_thread():
            factor = factorize(moments.outputs)
            rows = rows[factor.order]
            errors = np.zeros(rows.shape, np.float32)
            for first in range(0, len(rows), size):
                group = slice(first, min(len(rows), first + size))
                target = rows[group] + moved(factor.feedback, group, errors)
                part = ONE_SIDE.rounded(target, storage, scratch, moments, alone=True)
                codes.append(part.kept())
                np.subtract(rows[group], dequantize(part), out=errors[group])
        return Blocks.below(codes).rows(np.argsort(factor.order))


def moved(feedback: np.ndarray, group: slice, errors: np.ndarray) -> np.ndarray:
    """float32, by how much a group's targets are moved so that it makes up for the errors of the rows before it."""
    if not group.start:
        return np.zeros((group.stop, errors.shape[1]), np.float32)
    inner = feedback[group, group].astype(np.float64)
    shares = np.linalg.solve(inner.T, feedback[: group.start, group].T).astype(np.float32)
    return shares @ errors[: group.start]


METHOD = BothSides()
"""The row of `ir.quant.methods.base.METHODS`."""

__all__ = ["METHOD", "TOGETHER"]
