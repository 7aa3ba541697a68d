"""The block formats of ggml, in which GGUF files store matrices: what a block of bytes says, in ranges of rows.

A row is cut into blocks of 32 or 256 values. Every format here comes to the same three things: a small integer for each
value, a scale for each group of 16 or 32 values, and in some formats the real value of integer 0. A `BlockType` is one
format as data; its function takes the bytes apart. Values are computed in float32 with the operations of the reference
implementation in their order, so that they are its bits: ``scale * code``, then ``+ zero``.

Formats: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ir.base.types import F32, U8, TensorType, int_type
from ir.tensor.base import Derived, Tensor, refuse


class Groups(NamedTuple):
    """What blocks say.

    Attributes:
        codes: int8[n, values].
        scale: float32[n, groups].
        zero: float32[n, groups], the real value of code 0, or None where it is zero.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None


@dataclass(frozen=True)
class BlockType:
    """One format.

    Attributes:
        name: as ggml calls it, in lower case.
        values, nbytes: numbers in a block, and its bytes.
        group: values that share a scale.
        bits: width of a code.
        low: smallest code.
        unpack: takes bytes ``u8[n, nbytes]`` apart.
    """

    name: str
    values: int
    nbytes: int
    group: int
    bits: int
    low: int
    unpack: Callable[[np.ndarray], Groups]

    @property
    def has_zero(self) -> bool:
        """True for formats whose integer 0 has a real value of its own."""
        return self.low == 0


# ---- pieces of blocks ----


def _half(raw: np.ndarray, at: int) -> np.ndarray:
    """A half-precision number at a byte of each block, float32[n, 1]."""
    return np.ascontiguousarray(raw[:, at : at + 2]).view(np.float16).astype(np.float32)


def _fields(raw: np.ndarray, run: int, bits: int, count: int) -> np.ndarray:
    """Bit fields uint8[n, all]: each run of bytes holds `count` runs of numbers, the first in the lowest bits."""
    shifts = np.arange(0, bits * count, bits, dtype=np.uint8)[None, None, :, None]
    fields = (raw.reshape(len(raw), -1, 1, run) >> shifts) & np.uint8((1 << bits) - 1)
    return fields.reshape(len(raw), -1)


def _nibbles(raw: np.ndarray, run: int = 16) -> np.ndarray:
    """Four bits of each number: runs of low nibbles, each followed by the high nibbles of the same bytes."""
    return _fields(raw, run, 4, 2)


def _signed(codes: np.ndarray, middle: int) -> np.ndarray:
    return codes.view(np.int8) - np.int8(middle)


def _fifth_bits(raw: np.ndarray) -> np.ndarray:
    """The 32 bits of each 32-bit word as 16s, uint8[n, 32]."""
    return np.unpackbits(np.ascontiguousarray(raw), axis=1, bitorder="little") << np.uint8(4)


# ---- blocks of 32 ----


def _q4_0(raw: np.ndarray) -> Groups:
    return Groups(_signed(_nibbles(raw[:, 2:]), 8), _half(raw, 0), None)


def _q4_1(raw: np.ndarray) -> Groups:
    return Groups(_nibbles(raw[:, 4:]).view(np.int8), _half(raw, 0), _half(raw, 2))


def _q5_0(raw: np.ndarray) -> Groups:
    return Groups(_signed(_nibbles(raw[:, 6:]) | _fifth_bits(raw[:, 2:6]), 16), _half(raw, 0), None)


def _q5_1(raw: np.ndarray) -> Groups:
    codes = _nibbles(raw[:, 8:]) | _fifth_bits(raw[:, 4:8])
    return Groups(codes.view(np.int8), _half(raw, 0), _half(raw, 2))


def _q8_0(raw: np.ndarray) -> Groups:
    return Groups(np.ascontiguousarray(raw[:, 2:]).view(np.int8), _half(raw, 0), None)


_FP4_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
"""Twice the numbers of the 4-bit float with two bits of exponent, by code."""


def _mxfp4(raw: np.ndarray) -> Groups:
    """Half the power of two that the first byte names, times doubled numbers."""
    scale = np.ldexp(np.float32(1), raw[:, :1].astype(np.int32) - 128).astype(np.float32)
    return Groups(_FP4_DOUBLED[_nibbles(raw[:, 1:])], scale, None)


# ---- blocks of 256 ----


def _six_bit_pairs(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eight scales and eight minima of six bits each out of 12 bytes, float32[n, 8].

    The first four of either are the low bits of bytes 0 to 3 and 4 to 7; the others have their low nibbles in bytes 8
    to 11 and their two high bits above the first four.
    """
    first, second, nibbles = raw[:, 0:4], raw[:, 4:8], raw[:, 8:12]
    scales = [first & 0x3F, (nibbles & 0x0F) | ((first >> 2) & 0x30)]
    minima = [second & 0x3F, (nibbles >> 4) | ((second >> 2) & 0x30)]
    return np.concatenate(scales, 1).astype(np.float32), np.concatenate(minima, 1).astype(np.float32)


def _q2_k(raw: np.ndarray) -> Groups:
    pairs, codes = raw[:, :16], _fields(raw[:, 16:80], 32, 2, 4)
    scale = _half(raw, 80) * (pairs & 0x0F).astype(np.float32)
    return Groups(codes.view(np.int8), scale, -(_half(raw, 82) * (pairs >> 4).astype(np.float32)))


def _q3_k(raw: np.ndarray) -> Groups:
    """Scales of six bits around 32: eight bytes of nibbles, four of the two bits above; a clear mask bit means minus 4."""
    nibbles, twos = _fields(raw[:, 96:104], 8, 4, 2), _fields(raw[:, 104:108], 4, 2, 4)
    scales = _signed(nibbles | (twos << np.uint8(4)), 32).astype(np.float32)
    above = _fields(raw[:, :32], 32, 1, 8)
    codes = _signed(_fields(raw[:, 32:96], 32, 2, 4) | (above << np.uint8(2)), 4)
    return Groups(codes, _half(raw, 108) * scales, None)


def _q4_k(raw: np.ndarray) -> Groups:
    scales, minima = _six_bit_pairs(raw[:, 4:16])
    return Groups(_nibbles(raw[:, 16:], 32).view(np.int8), _half(raw, 0) * scales, -(_half(raw, 2) * minima))


def _q5_k(raw: np.ndarray) -> Groups:
    scales, minima = _six_bit_pairs(raw[:, 4:16])
    codes = _nibbles(raw[:, 48:], 32) | (_fields(raw[:, 16:48], 32, 1, 8) << np.uint8(4))
    return Groups(codes.view(np.int8), _half(raw, 0) * scales, -(_half(raw, 2) * minima))


def _q6_k(raw: np.ndarray) -> Groups:
    codes = _nibbles(raw[:, :128], 64) | (_fields(raw[:, 128:192], 32, 2, 4) << np.uint8(4))
    scales = np.ascontiguousarray(raw[:, 192:208]).view(np.int8).astype(np.float32)
    return Groups(_signed(codes, 32), _half(raw, 208) * scales, None)


BLOCK_TYPES: dict[str, BlockType] = {
    row.name: row
    for row in (
        BlockType("q4_0", 32, 18, 32, 4, -8, _q4_0),
        BlockType("q4_1", 32, 20, 32, 4, 0, _q4_1),
        BlockType("q5_0", 32, 22, 32, 5, -16, _q5_0),
        BlockType("q5_1", 32, 24, 32, 5, 0, _q5_1),
        BlockType("q8_0", 32, 34, 32, 8, -128, _q8_0),
        BlockType("mxfp4", 32, 17, 32, 5, -16, _mxfp4),
        BlockType("q2_k", 256, 84, 16, 2, 0, _q2_k),
        BlockType("q3_k", 256, 110, 16, 3, -4, _q3_k),
        BlockType("q4_k", 256, 144, 32, 4, 0, _q4_k),
        BlockType("q5_k", 256, 176, 32, 5, 0, _q5_k),
        BlockType("q6_k", 256, 210, 16, 6, -32, _q6_k),
    )
}
"""The formats by name."""


_LAST = threading.local()
"""Codes, scales and zeros of one row range: they are asked for one after the other."""


class GgmlBlocks(Derived):
    """A matrix whose rows are blocks of a format of ggml."""

    name = "ggml_blocks"

    def __init__(self, raw: Tensor, kind: BlockType) -> None:
        self.kind = kind
        self._own = object()
        columns = raw.row_size // kind.nbytes * kind.values
        super().__init__(TensorType(F32, (raw.row_count, columns)), raw, kind.name)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Real values, float32[stop - start, columns], those of the reference implementation bit for bit."""
        codes, scale, zero = self._unpacked(start, stop)
        out = codes.reshape(*scale.shape, -1).astype(np.float32)
        out *= scale[:, :, None]
        if zero is not None:
            out += zero[:, :, None]
        return out.reshape(stop - start, self.row_size)

    def groups(self, start: int, stop: int) -> Groups:
        """What the blocks of a row range say, a block a row; what was taken apart last is kept for each thread."""
        key = (self._own, start, stop)
        if getattr(_LAST, "key", None) != key:
            _LAST.groups, _LAST.key = self._unpacked(start, stop), key
        return _LAST.groups

    def release(self) -> None:
        """Drop what was kept for this thread and close the file."""
        _LAST.__dict__.clear()
        super().release()

    def _unpacked(self, start: int, stop: int) -> Groups:
        self._bounds(start, stop)
        raw = np.ascontiguousarray(self.base.rows(start, stop))
        return self.kind.unpack(raw.reshape(-1, self.kind.nbytes))

    def parts(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Signed codes ``[rows, columns]``, and scales and real zeros ``[rows, columns / group]`` of the matrix.

        Codes of formats with zeros are moved down by half their range, and their zeros up by as many scales, which is
        rounded once where a zero is much smaller or larger than that.
        """
        zero = _Part(self, "zero") if self.kind.has_zero else None
        return _Part(self, "codes"), _Part(self, "scale"), zero


class _Part(Derived):
    """Codes, scales or zeros of such a matrix."""

    name = "ggml_part"

    def __init__(self, matrix: GgmlBlocks, part: str) -> None:
        self.matrix, self.part = matrix, part
        rows, columns = matrix.shape
        codes = part == "codes"
        shape = (rows, columns if codes else columns // matrix.kind.group)
        super().__init__(TensorType(int_type(matrix.kind.bits) if codes else F32, shape), matrix, part)

    def rows(self, start: int, stop: int) -> np.ndarray:
        self._bounds(start, stop)
        codes, scale, zero = self.matrix.groups(start, stop)
        middle = 1 << (self.matrix.kind.bits - 1)
        if self.part == "scale":
            found = scale
        elif self.part == "zero":
            assert zero is not None
            found = (zero.astype(np.float64) + middle * scale.astype(np.float64)).astype(np.float32)
        else:
            codes = codes if zero is None else codes - np.int8(middle)
            found = codes.astype(self.type.dtype.numpy, copy=False)
        return found.reshape(stop - start, self.row_size)


def ggml_blocks(raw: Tensor, kind: str) -> Tensor:
    """The recipe ``ggml_blocks``.

    Args:
        raw: u8 ``[rows, bytes of a row]``, whole blocks.
        kind: key of `BLOCK_TYPES`.

    Raises:
        LadingError: T254 bytes that are no rows of such blocks.
    """
    if kind not in BLOCK_TYPES:
        raise refuse("ggml_blocks", f"there is no block format {kind!r}", raw)
    row = BLOCK_TYPES[kind]
    if raw.type.dtype != U8 or raw.type.rank != 2 or raw.row_size % row.nbytes:
        raise refuse("ggml_blocks", f"not rows of blocks of {row.nbytes} bytes", raw)
    return GgmlBlocks(raw, row)


def ggml_part(matrix: Tensor, part: str) -> Tensor:
    """The recipe ``ggml_part``: ``codes``, ``scale`` or ``zero`` of a matrix of `ggml_blocks`."""
    if not isinstance(matrix, GgmlBlocks) or part not in ("codes", "scale", "zero")[: 3 if matrix.kind.has_zero else 2]:
        raise refuse("ggml_part", f"there is no part {part!r}", matrix)
    return _Part(matrix, part)


__all__ = ["BLOCK_TYPES", "BlockType", "GgmlBlocks", "Groups", "ggml_blocks", "ggml_part"]
