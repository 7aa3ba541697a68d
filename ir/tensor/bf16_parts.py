"""Exact storage of wide floats as sums of bfloat16 parts, for runtimes that read embedding rows in bfloat16 only."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from ir.base.types import BF16, F16, TensorType
from ir.tensor.base import Derived, Tensor


class _Bf16Parts(Derived):
    name = "bf16_parts"

    def __init__(self, base: Tensor, parts: int) -> None:
        rows, columns = base.shape
        super().__init__(TensorType(BF16, (rows, parts * columns)), base, parts)

    def rows(self, start: int, stop: int) -> np.ndarray:
        self._bounds(start, stop)
        rest = self.base.rows(start, stop).astype(np.float32)
        found = []
        for _ in range(self.recipe()[1][1]):
            part = rest.astype(ml_dtypes.bfloat16)
            rest = rest - part.astype(np.float32)
            found.append(part)
        return np.concatenate(found, axis=1)


def bf16_parts(base: Tensor, parts: int) -> Tensor:
    """bf16[rows, parts * columns]: each row of a float matrix as `parts` rows whose float32 sum is the row exactly.

    A bfloat16 carries 8 significant bits, so one part holds a bfloat16 source, two a half float and three a single
    float (Dekker, "A floating-point technique for extending the available precision", 1971). Sum the parts in order.
    """
    return _Bf16Parts(base, parts)


def parts_needed(tensor: Tensor) -> int:
    """How many bfloat16 parts hold a float tensor exactly, from the type it was stored with."""
    name, args, _ = tensor.recipe()
    while name in ("cast", "transposed"):
        tensor = args[0]
        name, args, _ = tensor.recipe()
    return {BF16: 1, F16: 2}.get(tensor.type.dtype, 3)
