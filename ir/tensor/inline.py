"""Tensors whose numbers are in memory, and the packed little-endian bytes that files and texts hold."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import BOOL, DTYPES, DType, TensorType, dtype_of_numpy
from ir.tensor.base import Tensor


class InlineTensor(Tensor):
    """An array in memory. It is shared, not copied: do not write to it afterwards."""

    def __init__(self, array: Any, dtype: DType | str | None = None, loc: str = "inline") -> None:
        """Hold `array`; `dtype` names the element type where numpy has none of its own (``i3``, ``i5``...)."""
        array = np.asarray(array, order="C")
        if array.dtype.kind in "US":
            array = array.astype(object)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        kind = dtype_named(dtype) if dtype is not None else dtype_of_numpy(array.dtype)
        if array.dtype != kind.numpy or (kind.is_integer and kind.bits < 8):
            array = _fit(array, kind)
        self._array = array.view()
        self._array.flags.writeable = False
        super().__init__(TensorType(kind, array.shape), loc)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """None."""
        return ()

    def rows(self, start: int, stop: int) -> np.ndarray:
        """A view of the array."""
        self._bounds(start, stop)
        return self._array.reshape((self.row_count, *self.shape[1:]))[start:stop]

    def elements(self, start: int, stop: int) -> np.ndarray:
        """A view of the array."""
        return self._array.reshape(-1)[start:stop]

    def load(self) -> np.ndarray:
        """The array itself, read-only."""
        return self._array

    def recipe(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """The data as base64 of the packed little-endian bytes."""
        data = base64.b64encode(bytes_of(self._array, self.type.dtype)).decode()
        return "inline", (data,), {"dtype": self.type.dtype.name, "shape": self.type.shape}

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(f"{self.type}\n".encode() + bytes_of(self._array, self.type.dtype)).hexdigest()

    @cached_property
    def _fingerprint(self) -> str:
        return "inline:" + self._digest


def _fit(array: np.ndarray, kind: DType) -> np.ndarray:
    if kind.is_integer and array.size:
        low, high = int(array.min()), int(array.max())
        if low < kind.low or high > kind.high:
            raise LadingError("T251", f"values {low} to {high} do not fit {kind}")
    return array.astype(kind.numpy, copy=False)


def dtype_named(dtype: DType | str) -> DType:
    return DTYPES[dtype] if isinstance(dtype, str) else dtype


def rebuild_inline(data: str, dtype: str, shape: Sequence[int]) -> InlineTensor:
    kind = dtype_named(dtype)
    raw = base64.b64decode(data)
    if kind.kind == "s":
        return InlineTensor(np.array(json.loads(raw), object).reshape(shape), kind)
    return InlineTensor(array_of(raw, kind, math.prod(shape)).reshape(shape), kind)


def bytes_of(array: np.ndarray, dtype: DType) -> bytes:
    """Little-endian bytes as files hold them: types below one byte packed, the first element in the lowest bits.

    Widths that do not divide a byte take one byte per element; strings become a JSON list.
    """
    if dtype.kind == "s":
        return json.dumps([str(item) for item in array.reshape(-1)]).encode()
    if dtype.bits not in (2, 4):
        return np.ascontiguousarray(array).tobytes()
    per_byte = 8 // dtype.bits
    codes = np.ascontiguousarray(array).reshape(-1).view(np.uint8) & ((1 << dtype.bits) - 1)
    codes = np.concatenate([codes, np.zeros(-codes.size % per_byte, np.uint8)]).reshape(-1, per_byte)
    packed = np.zeros(len(codes), np.uint8)
    for place in range(per_byte):
        packed |= codes[:, place] << (place * dtype.bits)
    return packed.tobytes()


def array_of(raw: bytes | np.ndarray, dtype: DType, count: int, skip: int = 0) -> np.ndarray:
    """`count` elements from little-endian bytes: the inverse of `bytes_of`, after `skip` elements of the first byte."""
    data = np.frombuffer(raw, np.uint8)
    if dtype == BOOL:
        return data[:count] != 0
    if dtype.bits not in (2, 4):
        return data[: count * dtype.numpy.itemsize].view(dtype.numpy)
    mask = (1 << dtype.bits) - 1
    codes = np.stack([(data >> shift) & mask for shift in range(0, 8, dtype.bits)], axis=1).reshape(-1)
    codes = np.ascontiguousarray(codes[skip : skip + count])
    return codes.view(dtype.numpy)
