"""Numbers narrower than a byte that lie packed in bytes, read in ranges without unpacking the whole."""

from __future__ import annotations

import numpy as np

from ir.base.types import U8, DType, TensorType
from ir.tensor.base import Derived, Tensor, refuse
from ir.tensor.inline import array_of, dtype_named


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
