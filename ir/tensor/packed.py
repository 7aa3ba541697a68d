"""Numbers narrower than a byte that lie packed in bytes, read in ranges without unpacking the whole."""

from __future__ import annotations

import numpy as np

from ir.base.types import DTYPES, U8, DType, TensorType
from ir.tensor.base import Derived, Tensor, refuse
from ir.tensor.inline import array_of, dtype_named
from ir.tensor.rearranged import reshaped


class _Unpacked(Derived):
    name = "unpacked"

    def __init__(self, base: Tensor, dtype: DType) -> None:
        *outer, width = base.shape
        super().__init__(TensorType(dtype, (*outer, width * (8 // dtype.bits))), base, dtype.name)

    def rows(self, start: int, stop: int) -> np.ndarray:
        self._bounds(start, stop)
        raw = np.ascontiguousarray(self.base.rows(start, stop)).reshape(-1)
        count = raw.size * (8 // self.type.dtype.bits)
        return array_of(raw, self.type.dtype, count).reshape((stop - start, *self.shape[1:]))

    def elements(self, start: int, stop: int) -> np.ndarray:
        per_byte = 8 // self.type.dtype.bits
        first = start // per_byte
        raw = np.ascontiguousarray(self.base.elements(first, -(-stop // per_byte)))
        return array_of(raw, self.type.dtype, max(0, stop - start), start - first * per_byte)


def unpacked(base: Tensor, dtype: DType | str) -> Tensor:
    """Bytes ``u8[..., n]`` as numbers of 2 or 4 bits ``[..., n * 8 / bits]``, the first in the lowest bits of its byte."""
    kind = dtype_named(dtype)
    if base.type.dtype != U8 or not base.shape or not kind.is_integer or kind.bits not in (2, 4):
        raise refuse(
            "unpacked", f"bytes are unpacked to integers of 2 or 4 bits, not {base.type.dtype} to {kind}", base
        )
    return _Unpacked(base, kind)


class _CodeRows(Derived):
    name = "code_rows"

    def __init__(self, base: Tensor, dtype: str, columns: int) -> None:
        self.columns = columns
        super().__init__(TensorType(DTYPES[dtype], (base.row_count, columns)), base, dtype, columns)

    def rows(self, start: int, stop: int) -> np.ndarray:
        self._bounds(start, stop)
        dtype = self.type.dtype
        width, count = self.base.row_size * 8 // dtype.bits, stop - start
        raw = np.ascontiguousarray(self.base.rows(start, stop)).reshape(-1)
        codes = array_of(raw, DTYPES[f"u{dtype.bits}"], count * width).view(np.uint8)
        codes = codes.reshape(count, width)[:, : self.columns]
        if dtype.kind == "i":
            return (codes - np.uint8(1 << (dtype.bits - 1))).view(np.int8).astype(dtype.numpy)
        return codes.astype(dtype.numpy)


def code_rows(base: Tensor, dtype: str, columns: int) -> Tensor:
    """The first codes of each row of bytes, the lowest bits of a byte first.

    Args:
        base: u8 ``[rows, ...]``; what is behind the first axis counts as one row of bytes.
        dtype: ``u2``, ``u4`` or ``u8`` for the codes as they are; ``i2``, ``i4`` or ``i8`` for codes of which half of
            their range has been subtracted, so that the middle one is 0.
        columns: codes of a row, at most as many as its bytes hold.
    """
    kind = dtype_named(dtype)
    if base.type.dtype != U8 or not base.shape or kind.name not in ("u2", "u4", "u8", "i2", "i4", "i8"):
        raise refuse("code_rows", f"{base.type} does not hold codes of type {dtype}", base)
    if not 0 <= columns <= base.row_size * 8 // kind.bits:
        raise refuse("code_rows", f"a row of {base.row_size} bytes does not hold {columns} codes of type {dtype}", base)
    # However the bytes of a row are arranged, equal codes have equal recipes.
    return _CodeRows(reshaped(base, (base.row_count, base.row_size)), kind.name, columns)
