"""Numbers narrower than a byte that lie packed in bytes, read in ranges without unpacking the whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ir.base.types import DTYPES, U8, DType, TensorType, int_type
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


class _BitCodes(Derived):
    name = "bit_codes"

    def __init__(
        self, base: Tensor, bits: int, count: int, axis: int, order: tuple[int, ...], plus: int, unsigned: bool
    ) -> None:
        shape = (base.row_count, count) if axis else (count, base.row_size)
        kind = DTYPES[f"u{bits}"] if unsigned else int_type(bits)
        super().__init__(TensorType(kind, shape), base, bits, count, axis, order, plus, unsigned)
        self.bits, self.axis, self.order, self.plus, self.unsigned = bits, axis, order, plus, unsigned

    def rows(self, start: int, stop: int) -> np.ndarray:
        self._bounds(start, stop)
        if self.axis:
            return self._numbers(self.base.rows(start, stop), self.row_size)
        word = self.base.type.dtype.bits
        # The least run of rows that begins and ends with a word of the packed rows.
        run = word * (self.bits if word % self.bits else 1)
        each = run // self.bits
        first, last = start // each, -(-stop // each)
        packed = self.base.rows(first * run // word, min(self.base.row_count, last * run // word))
        count = min(self.row_count, last * each) - first * each
        codes = self._numbers(np.ascontiguousarray(packed.T), count).T
        return np.ascontiguousarray(codes[start - first * each : stop - first * each])

    def _numbers(self, words: np.ndarray, count: int) -> np.ndarray:
        """The first numbers of each row of words, as this tensor holds them."""
        stream = np.ascontiguousarray(words).view(np.uint8).reshape(len(words), -1)
        codes = bits_of(stream, self.bits)
        if self.order:
            codes = codes.reshape(len(words), -1, len(self.order))[:, :, self.order].reshape(len(words), -1)
        codes = codes[:, :count]
        if self.plus:
            codes = (codes + np.uint8(self.plus)) & np.uint8((1 << self.bits) - 1)
        if self.unsigned:
            return codes.astype(self.type.dtype.numpy, copy=False)
        return (codes - np.uint8(1 << (self.bits - 1))).view(np.int8).astype(self.type.dtype.numpy, copy=False)


def bits_of(stream: np.ndarray, bits: int) -> np.ndarray:
    """Numbers ``u8[n, width * 8 // bits]`` of rows ``u8[n, width]`` that are streams of bits, the lowest bits first."""
    count, width = stream.shape
    if bits == 8:
        return stream
    if bits in (1, 2, 4):
        mask, shifts = np.uint8((1 << bits) - 1), range(0, 8, bits)
        return np.stack([(stream >> np.uint8(shift)) & mask for shift in shifts], axis=-1).reshape(count, -1)
    # Eight numbers lie in as many bytes as a number has bits.
    whole = np.zeros((count, -(-width // bits), 8), np.uint8)
    padded = np.zeros((count, whole.shape[1] * bits), np.uint8)
    padded[:, :width] = stream
    whole[:, :, :bits] = padded.reshape(count, -1, bits)
    words = whole.view("<u8")
    numbers = np.empty(whole.shape, np.uint8)
    for place in range(8):
        np.right_shift(words[:, :, 0], np.uint64(place * bits), out=numbers[:, :, place], casting="unsafe")
    numbers &= np.uint8((1 << bits) - 1)
    return numbers.reshape(count, -1)[:, : width * 8 // bits]


def bit_codes(
    base: Tensor,
    bits: int,
    count: int,
    axis: int = 1,
    order: Sequence[int] = (),
    plus: int = 0,
    unsigned: bool = False,
) -> Tensor:
    """Numbers of some bits that lie in words without gaps, the lowest bits of a word first.

    Args:
        base: integers ``[rows, words]`` of 8 to 64 bits that are packed along the axis.
        bits: width of a number, 2 to 8.
        count: numbers along the axis; what is behind them fills up the last word.
        axis: 1 for ``[rows, count]``, 0 for ``[count, columns]``.
        order: where in each run of that many numbers the first, second, ... of the result lie; empty for as they lie.
        plus: added to every number, modulo its range.
        unsigned: give unsigned numbers of 2, 4 or 8 bits; else numbers less by half of their range, so that the middle
            one is 0.
    """
    word = base.type.dtype
    if base.type.rank != 2 or not word.is_integer or word.bits < 8 or not 2 <= bits <= 8 or axis not in (0, 1):
        raise refuse("bit_codes", f"{base.type} does not hold numbers of {bits} bits", base)
    if unsigned and bits not in (2, 4, 8):
        raise refuse("bit_codes", f"there is no unsigned type of {bits} bits", base)
    room = base.shape[axis] * word.bits // bits
    given = tuple(int(place) for place in order)
    if not 0 <= count <= room or sorted(given) != list(range(len(given))) or (given and room % len(given)):
        raise refuse("bit_codes", f"{base.shape[axis]} words do not hold {count} numbers of {bits} bits", base)
    return _BitCodes(base, bits, count, axis, given, plus, unsigned)


class _LookedUp(Derived):
    name = "looked_up"

    def __init__(self, base: Tensor, table: Tensor) -> None:
        super().__init__(TensorType(table.type.dtype, base.type.shape), base, table)
        self.table = table

    @property
    def ranged(self) -> bool:
        """As the base."""
        return self.base.ranged

    def rows(self, start: int, stop: int) -> np.ndarray:
        self._bounds(start, stop)
        return self._numbers(self.base.rows(start, stop))

    def elements(self, start: int, stop: int) -> np.ndarray:
        return self._numbers(self.base.elements(start, stop))

    def _numbers(self, places: np.ndarray) -> np.ndarray:
        bits = places.view(np.uint8) if places.dtype.kind not in "iu" and places.itemsize == 1 else places
        return self.table.load()[bits.astype(np.uint8, copy=False)]


def looked_up(base: Tensor, table: Tensor) -> Tensor:
    """Element ``table[i]`` for each number i of at most 8 bits; the table has one for each.

    Floats of 8 bits count as the integers that their bits are.
    """
    kind = base.type.dtype
    fits = (kind.kind == "u" and kind.bits <= 8) or (kind.is_float and kind.bits == 8)
    if not fits or table.shape != (1 << kind.bits,):
        raise refuse("looked_up", f"{table.type} does not have a number for each of {kind}", base, table)
    return _LookedUp(base, table)
