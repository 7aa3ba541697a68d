"""Arrays in the element types in which MNN holds them."""

from __future__ import annotations

import numpy as np


class Unfit(Exception):
    """A value that the held type has no number for."""


def as_held(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """An array in another element type, every number the same but for rounding.

    Raises:
        Unfit: a number that is out of the type's range, or text.
    """
    if array.dtype.kind in "OUS":
        raise Unfit("text has no numbers")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        wide = array.astype(np.int64) if array.dtype.kind not in "biu" else array
        low, high = (int(wide.min(initial=0)), int(wide.max(initial=0)))
        if low < limits.min or high > limits.max:
            raise Unfit(f"{low if low < limits.min else high} is no {dtype.name}")
        return wide.astype(dtype)
    with np.errstate(over="ignore"):
        made = array.astype(dtype)
    lost = np.isinf(made) & ~np.isinf(array.astype(np.float64))
    if lost.any():
        raise Unfit(f"{array[lost].reshape(-1)[0]} is no {dtype.name}")
    return made


__all__ = ["Unfit", "as_held"]
