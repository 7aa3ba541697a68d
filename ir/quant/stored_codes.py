"""Weights that somebody else quantized: codes, scales and zeros are taken as they are and kept bit for bit.

Such a matrix is a `QuantizedWeight` like any other, of the method ``stored``: its source is not a float matrix that is
rounded but an `Encoded`, which hands its codes out. `StoredCodes` reads one stream of unsigned numbers, most significant
bit first, and scales or (zero, scale) pairs for each block of a row; `GivenCodes` reads tensors of their own.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import BF16, F16, F32, DType, TensorType
from ir.quant.methods.base import Blocks, QuantMethod, Scratch, dequantize
from ir.quant.statistics.moments import Moments
from ir.quant.storage import Storage
from ir.quant.weight import QuantizedWeight, shared_quantized
from ir.tensor.base import Derived, Tensor, refuse

NAME = "stored"
"""Name of the method of such weights."""


class Encoded(Derived):
    """A float matrix ``f32[rows, columns]`` that exists as codes and scales only."""

    @property
    def storage(self) -> Storage:
        """How the matrix is stored."""
        raise NotImplementedError

    def stored_blocks(self, start: int, stop: int) -> Blocks:
        """Codes, scales and zeros of a row range in arrays of their own."""
        raise NotImplementedError

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Real values, ``codes * scale + zero`` in float32."""
        return dequantize(self.stored_blocks(start, stop))


class StoredCodes(Encoded):
    """A matrix whose codes are one stream, with its scales and zeros in one table."""

    name = "stored_codes"

    def __init__(self, codes: Tensor, alpha: Tensor, rows: int, columns: int, bits: int, low: int) -> None:
        self.codes, self.alpha, self.bits, self.low = codes, alpha, bits, low
        self.pairs = alpha.type.rank == 3
        super().__init__(TensorType(F32, (rows, columns)), codes, alpha, rows=rows, columns=columns, bits=bits, low=low)

    @property
    def storage(self) -> Storage:
        """How the matrix is stored, as it was read."""
        blocks = self.alpha.shape[1]
        return Storage(
            bits=self.bits,
            block=self.row_size // blocks if blocks > 1 else 0,
            symmetric=not self.pairs,
            zero="float",
            scale="f16" if self.alpha.type.dtype == F16 else "f32",
            method=NAME,
        )

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


class GivenCodes(Encoded):
    """A matrix whose codes, scales and zeros are tensors, as the constants of a dequantization are."""

    name = "given_codes"

    def __init__(self, codes: Tensor, scale: Tensor, zero: Tensor | None) -> None:
        self.codes, self.scale, self.zero = codes, scale, zero
        parts = (codes, scale) if zero is None else (codes, scale, zero)
        super().__init__(TensorType(F32, codes.type.shape), *parts)

    @property
    def storage(self) -> Storage:
        """How the matrix is stored: as it is given, with unsigned codes and their zeros shifted to signed ones.

        Scales in half precision count as float32, which every number of theirs is.
        """
        blocks = self.scale.shape[1] if self.scale.type.rank == 2 else 1
        return Storage(
            bits=self.codes.type.dtype.bits,
            block=self.row_size // blocks if blocks > 1 else 0,
            symmetric=self.zero is None and self.codes.type.dtype.kind == "i",
            zero="float" if self.zero is not None and self.zero.type.dtype.is_float else "int",
            scale="f32",
            method=NAME,
        )

    def stored_blocks(self, start: int, stop: int) -> Blocks:
        """Codes, scales and zeros of a row range in arrays of their own.

        Raises:
            LadingError: Q402 for a scale or zero that is NaN or infinite.
        """
        self._bounds(start, stop)
        scale = self._numbers(self.scale, start, stop).astype(np.float32)
        zero = self._zeros(scale.shape, start, stop)
        sound = np.isfinite(scale) if zero is None else np.isfinite(scale) & np.isfinite(zero)
        if not sound.all():
            row = start + int(np.nonzero(~sound.all(axis=1))[0][0])
            raise LadingError("Q402", f"row {row} has a scale or zero that is NaN or infinite", where=self.scale.loc)
        return Blocks(self._signed(self.codes.rows(start, stop)), scale, zero)

    def _zeros(self, shape: tuple[int, ...], start: int, stop: int) -> np.ndarray | None:
        if self.zero is not None:
            found = self._numbers(self.zero, start, stop)
            return found.astype(np.float32) if self.zero.type.dtype.is_float else self._signed(found)
        return None if self.codes.type.dtype.kind == "i" else self._signed(np.zeros(shape, np.uint8))

    def _signed(self, numbers: np.ndarray) -> np.ndarray:
        """Codes or zero points as int8; those of unsigned types move down by half their range."""
        dtype = self.codes.type.dtype
        if dtype.kind == "i":
            return numbers.astype(np.int8, order="C")
        return (numbers.astype(np.uint8, order="C") - np.uint8(1 << (dtype.bits - 1))).view(np.int8)

    @staticmethod
    def _numbers(tensor: Tensor, start: int, stop: int) -> np.ndarray:
        """Numbers of blocks ``[stop - start, blocks]``, whether given for blocks, rows or the whole matrix."""
        if tensor.type.rank == 2:
            return tensor.rows(start, stop)
        found = tensor.load().reshape(-1)
        found = np.repeat(found, stop - start) if found.size == 1 else found[start:stop]
        return found[:, None]


def given_codes(codes: Tensor, scale: Tensor, zero: Tensor | None = None) -> GivenCodes:
    """The recipe ``given_codes``.

    Args:
        codes: integers of 2 to 8 bits ``[rows, columns]``.
        scale: f32, f16 or bf16: one number, ``[rows]`` or ``[rows, blocks]``; the blocks divide the columns.
        zero: of the shape of the scales: zero points of the type of the codes, or for signed codes real values of code
            0 as float32; None for codes without zeros.

    Raises:
        LadingError: T254 types or shapes that do not fit.
    """
    kind, given = codes.type.dtype, [item for item in (codes, scale, zero) if item is not None]
    if codes.type.rank != 2 or not kind.is_integer or not 2 <= kind.bits <= 8:
        raise refuse("given_codes", "codes are a matrix of integers of 2 to 8 bits", *given)
    if scale.type.dtype not in (F32, F16, BF16):
        raise refuse("given_codes", "scales are f32, f16 or bf16", *given)
    rows, columns = codes.row_count, codes.row_size
    shape = scale.shape
    blocked = len(shape) == 2 and shape[0] == rows and shape[1] > 0 and columns % shape[1] == 0
    if not blocked and shape not in ((), (1,), (rows,)):
        raise refuse("given_codes", "scales are for blocks of equal length along the rows, rows or the whole", *given)
    if zero is not None and zero.type.shape != shape:
        raise refuse("given_codes", "zeros have the shape of the scales", *given)
    if zero is not None and zero.type.dtype != kind and not (zero.type.dtype == F32 and kind.kind == "i"):
        raise refuse("given_codes", "zeros have the type of the codes, or are real values beside signed codes", *given)
    return GivenCodes(codes, scale, zero)


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
    blocks = alpha.shape[1] if len(alpha.shape) in (2, 3) else 0
    enough = codes.nbytes * 8 >= rows * columns * bits
    if not (enough and blocks and columns % blocks == 0 and alpha.row_count == rows and 2 <= bits <= 8):
        raise LadingError(
            "T254", f"{codes.type} and {alpha.type} are no {bits}-bit matrix [{rows}, {columns}]", codes.loc
        )
    return StoredCodes(codes, alpha, rows, columns, bits, low)


def stored_weight(source: Encoded, scale: str = "") -> QuantizedWeight:
    """The matrix as a quantized weight that is written as it was read.

    `scale` is ``f32`` or ``f16``, in which scales are written; empty keeps their type. Widening changes no number.
    """
    how = source.storage
    return shared_quantized(source, replace(how, scale=scale) if scale else how)  # type: ignore[arg-type]


class _Stored(QuantMethod):
    """The method of weights that are quantized already; it chooses nothing."""

    name = NAME
    accepts: frozenset[DType] = frozenset({F32})

    def quantize(self, rows: np.ndarray, storage: Storage, scratch: Scratch, moments: Moments | None) -> Blocks:
        raise LadingError("F640", "the method 'stored' keeps codes that exist and cannot make any")


METHOD = _Stored()
"""The row of `ir.quant.methods.base.METHODS`."""
