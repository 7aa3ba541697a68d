"""Weights that somebody else quantized: codes, scales and zeros are read from a file as they are and kept bit for bit.

Such a matrix is a `QuantizedWeight` like any other, of the method ``stored``: its source is not a float matrix that is
rounded but a `StoredCodes`, which hands its codes out. Codes lie in one stream of unsigned numbers, most significant
bit first, and scales or (zero, scale) pairs for each block of a row.
"""

from __future__ import annotations

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import F16, F32, DType, TensorType
from ir.quant.statistics.moments import Moments
from ir.quant.weight import (
    Blocks,
    QuantizedWeight,
    QuantMethod,
    QuantSpec,
    Scratch,
    shared_quantized,
)
from ir.tensor.base import Derived, Tensor

NAME = "stored"
"""Name of the method of such weights."""


class StoredCodes(Derived):
    """A float matrix ``f32[rows, columns]`` that exists as codes and scales only; `stored_blocks` gives those."""

    name = "stored_codes"

    def __init__(self, codes: Tensor, alpha: Tensor, rows: int, columns: int, bits: int, low: int) -> None:
        self.codes, self.alpha, self.bits, self.low = codes, alpha, bits, low
        self.pairs = alpha.type.rank == 3
        super().__init__(TensorType(F32, (rows, columns)), codes, alpha, rows=rows, columns=columns, bits=bits, low=low)

    def stored_blocks(self, start: int, stop: int) -> Blocks:
        """Codes, scales and zeros of a row range in arrays of their own."""
        self._bounds(start, stop)
        columns = self.row_size
        first, last = start * columns * self.bits, stop * columns * self.bits
        raw = self.codes.elements(first // 8, (last + 7) // 8)
        codes = unpack(raw, self.bits, first % 8, (stop - start) * columns)
        alpha = self.alpha.rows(start, stop).astype(np.float32)
        scale = np.ascontiguousarray(alpha[..., 1] if self.pairs else alpha)
        zero = np.ascontiguousarray(alpha[..., 0]) if self.pairs else None
        if zero is not None and self.low:
            # The stored number is the real value of code `low`; the runtime moves it to code 0 in single precision.
            zero = zero - np.float32(self.low) * scale
        return Blocks(codes.reshape(stop - start, columns), scale, zero)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Real values, ``codes * scale + zero`` in float32."""
        part = self.stored_blocks(start, stop)
        count, blocks = part.scale.shape
        wide = part.codes.reshape(count, blocks, -1).astype(np.float32) * part.scale[:, :, None]
        if part.zero is not None:
            wide += part.zero[:, :, None]
        return wide.reshape(count, -1)


def unpack(raw: np.ndarray, bits: int, skip: int, count: int) -> np.ndarray:
    """Signed codes int8[count] of a bit stream uint8 that begins `skip` bits into its first byte."""
    half = np.uint8(1 << (bits - 1))
    if bits == 8:
        return (raw - half).view(np.int8)
    if bits == 4 and not skip:
        out = np.empty((raw.size, 2), np.uint8)
        np.right_shift(raw, 4, out=out[:, 0])
        np.bitwise_and(raw, 15, out=out[:, 1])
        return (out.reshape(-1)[:count] - half).view(np.int8)
    stream = np.unpackbits(raw)[skip : skip + count * bits].reshape(count, bits)
    weights = 1 << np.arange(bits - 1, -1, -1, dtype=np.uint8)
    return (stream.dot(weights).astype(np.uint8) - half).view(np.int8)


def stored_codes(codes: Tensor, alpha: Tensor, rows: int, columns: int, bits: int, low: int = 0) -> StoredCodes:
    """The recipe ``stored_codes``.

    Args:
        codes: u8 stream of at least ``rows * columns * bits / 8`` bytes.
        alpha: f32 or f16 ``[rows, blocks]`` scales, or ``[rows, blocks, 2]`` pairs of zero and scale.
        rows, columns: shape of the matrix; the blocks divide the columns.
        bits: 2 to 8.
        low: signed code whose real value the zeros are.

    Raises:
        LadingError: T254 sizes that do not fit.
    """
    blocks = alpha.type.shape[1] if len(alpha.type.shape or ()) in (2, 3) else 0  # type: ignore[index]
    enough = codes.nbytes * 8 >= rows * columns * bits
    if not (enough and blocks and columns % blocks == 0 and alpha.row_count == rows and 2 <= bits <= 8):
        raise LadingError(
            "T254", f"{codes.type} and {alpha.type} are no {bits}-bit matrix [{rows}, {columns}]", codes.loc
        )
    return StoredCodes(codes, alpha, rows, columns, bits, low)


def stored_weight(source: StoredCodes, scale: str = "") -> QuantizedWeight:
    """The matrix as a quantized weight that is written as it was read.

    `scale` is ``f32`` or ``f16``, in which scales are written; empty keeps their type. Widening changes no number.
    """
    kind = scale or ("f16" if source.alpha.type.dtype == F16 else "f32")
    block = source.row_size // source.alpha.type.shape[1]  # type: ignore[index]
    spec = QuantSpec(source.bits, 0 if block == source.row_size else block, not source.pairs, "float", NAME, kind)
    return shared_quantized(source, spec)


class _Stored(QuantMethod):
    """The method of weights that are quantized already; it chooses nothing."""

    name = NAME
    accepts: frozenset[DType] = frozenset({F32})

    def quantize(self, rows: np.ndarray, spec: QuantSpec, scratch: Scratch, moments: Moments | None) -> Blocks:
        raise LadingError("F640", "the method 'stored' keeps codes that exist and cannot make any")


METHOD = _Stored()
"""The row of `ir.quant.spec.METHODS`."""
