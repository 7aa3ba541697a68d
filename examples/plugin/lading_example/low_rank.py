"""The tensor recipe ``example_low_rank``: a matrix that is stored as two thin ones and multiplied when it is read."""

from __future__ import annotations

import numpy as np

from ir.base.types import F32, TensorType
from ir.tensor.base import Derived, Tensor


class _LowRank(Derived):
    """Rows are computed when somebody asks for them; the product is never held as a whole."""

    name = "example_low_rank"

    def __init__(self, left: Tensor, right: Tensor) -> None:
        rows, columns = left.type.shape[0], right.type.shape[1]
        super().__init__(TensorType(F32, (rows, columns)), left, right)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """float32[stop - start, columns]."""
        left, right = self.inputs
        return (left.rows(start, stop) @ right.load()).astype(np.float32, copy=False)


def low_rank(left: Tensor, right: Tensor) -> Tensor:
    """The product of two float32 matrices; ValueError when they do not fit."""
    fits = all(item.type.rank == 2 and item.type.dtype == F32 for item in (left, right))
    if not fits or left.type.shape[1] != right.type.shape[0]:
        raise ValueError(f"cannot multiply {left.type} and {right.type}")
    return _LowRank(left, right)
