"""Recipes that change each element on its own: other float types, factors and offsets, by element, row or column."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import DTYPES, F16, F32, F64, DType, TensorType, dtype_of_numpy
from ir.tensor.base import Derived, Tensor, refuse
from ir.tensor.inline import dtype_named


class _Elementwise(Derived):
    """Recipes that change each element on its own."""

    @property
    def ranged(self) -> bool:
        """As the base."""
        return self.base.ranged

    def rows(self, start: int, stop: int) -> np.ndarray:
        self._bounds(start, stop)
        return self._apply(self.base.rows(start, stop))

    def elements(self, start: int, stop: int) -> np.ndarray:
        return self._apply(self.base.elements(start, stop))

    @abstractmethod
    def _apply(self, array: np.ndarray) -> np.ndarray: ...


class _Cast(_Elementwise):
    name = "cast"

    def __init__(self, base: Tensor, dtype: DType) -> None:
        super().__init__(TensorType(dtype, base.type.shape), base, dtype.name)

    def _apply(self, array: np.ndarray) -> np.ndarray:
        return convert(array, self.type.dtype, self.loc)


_EIGHT_BIT = frozenset({"f8e4m3fn", "f8e4m3fnuz", "f8e5m2", "f8e5m2fnuz", "f4e2m1"})
_HELD_EXACTLY = {
    "f16": _EIGHT_BIT,
    "bf16": _EIGHT_BIT,
    "f32": _EIGHT_BIT | {"f16", "bf16", "f8e8m0"},
    "f64": _EIGHT_BIT | {"f16", "bf16", "f8e8m0", "f32"},
}


def cast(base: Tensor, dtype: DType | str) -> Tensor:
    """Another float type, rounded to nearest even; floats, integers and booleans can be cast.

    A finite number that does not fit half precision is error T255 when it is read, not an infinity.
    """
    target = dtype_named(dtype)
    if target == base.type.dtype:
        return base
    if not target.is_float or base.type.dtype.kind not in "fiub":
        raise refuse("cast", f"{base.type.dtype} cannot be cast to {target}; only to a float type", base)
    if isinstance(base, _Cast) and base.base.type.dtype.name in _HELD_EXACTLY.get(base.type.dtype.name, ()):
        return cast(base.base, target)
    return _Cast(base, target)


def convert(array: np.ndarray, dtype: DType, loc: str = "") -> np.ndarray:
    """An array in a float type, bit for bit as numpy converts but faster; the array itself when it has the type."""
    if array.dtype == dtype.numpy:
        return array
    kind = dtype_of_numpy(array.dtype)
    if kind.is_float and kind.bits <= 8:
        return _code_table(kind.name, dtype.name)[array.view(np.uint8)]
    if kind == F16 and dtype == F32 and not _has_special(array):
        out = np.empty(array.shape, np.float32)
        widen_halves(array.view(np.int16), out)
        return out
    return _in_range(lambda: array.astype(dtype.numpy), dtype, loc)


def _in_range(compute: Callable[[], np.ndarray], dtype: DType, loc: str) -> np.ndarray:
    try:
        with np.errstate(over="raise", invalid="ignore"):
            return compute()
    except FloatingPointError as error:
        raise LadingError("T255", f"a value does not fit {dtype}", where=loc) from error


@lru_cache(maxsize=32)
def _code_table(source: str, target: str) -> np.ndarray:
    return np.arange(256, dtype=np.uint8).view(DTYPES[source].numpy).astype(DTYPES[target].numpy)


def _has_special(half: np.ndarray) -> bool:
    return bool(((half.view(np.uint16) & 0x7C00) == 0x7C00).any())


def widen_halves(bits: np.ndarray, out: np.ndarray) -> None:
    """Half precision (int16 bit patterns) to float32, exact for finite values; infinities and NaN come out finite.

    The exponent and mantissa are moved into place as integers and the bias corrected by one exact multiplication.
    """
    word = out.view(np.int32)
    np.copyto(word, bits)
    np.left_shift(word, 13, out=word)
    np.bitwise_and(word, np.int32(-0x70002000), out=word)
    np.multiply(out, np.float32(2.0**112), out=out)


class _Scaled(_Elementwise):
    name = "scaled"

    def __init__(self, base: Tensor, factor: float) -> None:
        super().__init__(base.type, base, factor)
        self.factor = _working(base).type(factor)

    def _apply(self, array: np.ndarray) -> np.ndarray:
        return _compute(np.multiply, array, self.factor, self)


class _Shifted(_Elementwise):
    name = "shifted"

    def __init__(self, base: Tensor, offset: float) -> None:
        super().__init__(base.type, base, offset)
        self.offset = _working(base).type(offset)

    def _apply(self, array: np.ndarray) -> np.ndarray:
        return _compute(np.add, array, self.offset, self)


def _working(base: Tensor) -> np.dtype:
    return np.dtype(np.float64 if base.type.dtype == F64 else np.float32)


def _compute(operation: np.ufunc, array: np.ndarray, other: Any, tensor: Derived) -> np.ndarray:
    wide = F64 if tensor.type.dtype == F64 else F32
    result = _in_range(lambda: operation(convert(array, wide), other), wide, tensor.loc)
    return convert(result, tensor.type.dtype, tensor.loc)


def _float_number(name: str, base: Tensor, number: float) -> float:
    with np.errstate(over="ignore"):
        usable = base.type.dtype.is_float and math.isfinite(_working(base).type(number))
    if not usable:
        raise refuse(name, f"needs a float tensor and a finite number, not {number}", base)
    return float(number)


def scaled(base: Tensor, factor: float) -> Tensor:
    """Every element times a number, computed in float32 (float64 for f64) and rounded to the type of the base."""
    factor = _float_number("scaled", base, factor)
    return base if factor == 1.0 else _Scaled(base, factor)


def shifted(base: Tensor, offset: float) -> Tensor:
    """Every element plus a number, computed in float32 (float64 for f64) and rounded to the type of the base."""
    offset = _float_number("shifted", base, offset)
    return base if offset == 0.0 else _Shifted(base, offset)


class _Multiplied(Derived):
    name = "multiplied"

    def __init__(self, base: Tensor, vector: Tensor, axis: int) -> None:
        super().__init__(base.type, base, vector, axis)
        self.axis = axis

    def rows(self, start: int, stop: int) -> np.ndarray:
        self._bounds(start, stop)
        vector = self._recipe[1][1]
        factors = vector.rows(start, stop) if self.axis == 0 else vector.rows(0, vector.row_count)
        shape = [1] * len(self.shape)
        shape[self.axis] = -1
        factors = factors.astype(_working(self.base)).reshape(shape)
        return _compute(np.multiply, self.base.rows(start, stop), factors, self)


def multiplied(base: Tensor, vector: Tensor, axis: int) -> Tensor:
    """Row i (axis 0) or column i (axis 1) times element i of a float vector; rounded as in `scaled`."""
    shape = base.shape
    if axis not in (0, 1) or len(shape) <= axis or vector.shape != (shape[axis],):
        raise refuse("multiplied", f"the vector does not run along axis {axis}", base, vector)
    if not base.type.dtype.is_float or not vector.type.dtype.is_float:
        raise refuse("multiplied", "both must be float tensors", base, vector)
    return _Multiplied(base, vector, axis)
