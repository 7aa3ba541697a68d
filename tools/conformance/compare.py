"""Whether what MNN computed is what a case expects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

RTOL = 1e-3
ATOL = 1e-4
ROUGH = {"float16": (2.0**-9, 1e-3), "bfloat16": (2.0**-7, 1e-2)}
"""Relative and absolute tolerance for results that are stored as half floats: two units in the last place.

Floats of 8 and 4 bits have none of their own: nothing is computed in them, a value is rounded to one of a few, and one
that was not is off by far more than `RTOL`."""


def differs(found: Sequence[np.ndarray], wanted: Sequence[Any]) -> str:
    """Why outputs are not the wanted ones; empty when they are.

    Element types are not compared, as the runtime holds few; integers and truth values have to be the very same.
    """
    if len(found) != len(wanted):
        return f"{len(found)} outputs instead of {len(wanted)}"
    for index, (one, other) in enumerate(zip(found, wanted, strict=True)):
        reason = _differ(one, np.asarray(other))
        if reason:
            return f"output {index}: {reason}"
    return ""


def same_shapes(found: Sequence[np.ndarray], wanted: Sequence[Any]) -> bool:
    """Whether outputs have the wanted shapes, whatever is in them."""
    return [item.shape for item in found] == [np.shape(item) for item in wanted]


def _differ(found: np.ndarray, wanted: np.ndarray) -> str:
    if found.shape != wanted.shape:
        same = found.size == wanted.size and not _numbers(found.reshape(-1), wanted.reshape(-1))
        return f"shape {list(found.shape)} instead of {list(wanted.shape)}{', values right' if same else ''}"
    return _numbers(found, wanted)


def _numbers(found: np.ndarray, wanted: np.ndarray) -> str:
    if wanted.dtype.kind in "biu" or wanted.dtype.name in ("int4", "uint4", "int2", "uint2"):
        one, other = found.astype(np.float64), wanted.astype(np.float64)
        wrong = one != other
    else:
        rtol, atol = ROUGH.get(wanted.dtype.name, (RTOL, ATOL))
        one, other = found.astype(np.float64), wanted.astype(np.float64)
        wrong = ~np.isclose(one, other, rtol, atol, equal_nan=True)
    if not wrong.any():
        return ""
    place = tuple(int(axis) for axis in np.argwhere(wrong)[0])
    return f"{int(wrong.sum())} of {wanted.size} differ, the first at {list(place)}: {one[place]:.6g}, not {other[place]:.6g}"


__all__ = ["ATOL", "ROUGH", "RTOL", "differs", "same_shapes"]
