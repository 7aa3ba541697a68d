"""A tensor of which nothing but the type is known: of a model that is only planned, or in place of a missing one."""

from __future__ import annotations

from typing import Any

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import DTYPES, TensorType
from ir.tensor.base import Tensor


class Supposed(Tensor):
    """A tensor without numbers; reading it is an error.

    Attributes:
        loc: what it is called.
    """

    def __init__(self, type: TensorType, loc: str) -> None:
        super().__init__(type, loc)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """LadingError F550: there are no numbers."""
        raise LadingError("F550", f"tensor {self.loc} has no numbers: only its shape is known", self.loc)

    def recipe(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """The type and the name."""
        return "supposed", (self.type.dtype.name, self.shape, self.loc), {}


def rebuild_supposed(dtype: str, shape: tuple[int, ...], loc: str) -> Supposed:
    """Inverse of `Supposed.recipe`."""
    return Supposed(TensorType(DTYPES[dtype], tuple(shape)), loc)


__all__ = ["Supposed", "rebuild_supposed"]
