"""Round to nearest, the method that needs nothing: as fast as memory allows, one pass over the bits of the weights."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import NamedTuple

import numpy as np

from ir.base.types import BF16, F16, F32
from ir.quant.methods.base import Blocks, NotFinite, OutOfScale, QuantMethod, Scratch
from ir.quant.statistics.moments import Moments
from ir.quant.storage import Storage
from ir.tensor.elementwise import widen_halves
from ir.tensor.native import native

LONG_BLOCK = 512
F32_MAX = np.finfo(np.float32).max
F32_TINY = np.float32(2.0**-126)
F16_TINY = np.float32(2.0**-24)


class RoundToNearest(QuantMethod):
    """Scale and zero from the extremes of a block, codes by rounding.

    All arithmetic is float32, one rounding per operation. With ``lo``, ``hi`` the extremes of a block (for integer zero
    points and symmetric blocks widened to contain 0), ``span = 2^bits - 1``, ``half = 2^(bits-1)``::

        zero "int":   scale = hi/span - lo/span, or hi/(half-1) when hi = -lo
                      zero  = clip(rint(-half - lo * (1/scale)))
                      shift = zero + half + 0.5
        zero "float": scale = hi/span - lo/span, at least max(|lo|, |hi|) * 2^-18
                      zero  = (lo/half + scale) * half, finite
                      shift = half + 0.5 - zero * (1/scale)
        symmetric:    scale = max(m / half, k / (half - 0.5)) with m, k the larger and smaller of hi and -lo,
                      or hi/(half-1) when hi = -lo; negative when hi > -lo, so that m falls on code -half
                      shift = half + 0.5
        codes = clip(trunc(w * (1/scale) + shift), 0, span) - half

    Scales are at least 2^-126 in magnitude (2^-24 when stored as f16). No weight is off by more than about half a step.
    The exception hi = -lo keeps binary and ternary weights exact. Signed symmetric scales have about 22 % less mean
    squared error than ``max|w| / (half-1)`` at 4 bits and block 64, for Gaussian and for trained weights alike.
    """

    name = "rtn"
    accepts = frozenset({F32, F16, BF16})

    def quantize(self, rows: np.ndarray, storage: Storage, scratch: Scratch, moments: Moments | None = None) -> Blocks:
        """See `QuantMethod`."""
        count, length = rows.shape
        per_row = storage.blocks(length)
        if not rows.size:
            zero = (
                None
                if storage.symmetric
                else np.zeros((count, per_row), np.int8 if storage.zero == "int" else np.float32)
            )
            return Blocks(np.zeros((count, length), np.int8), np.ones((count, per_row), np.float32), zero)
        loops = native()
        arranged = _Layout if loops is None else partial(_Compiled, loops)
        layout = arranged(np.ascontiguousarray(rows), length // per_row, scratch)
        low, high = layout.extremes(with_zero=storage.symmetric or storage.zero == "int")
        with np.errstate(over="ignore", invalid="ignore"):
            numbers = block_numbers(low, high, storage)
        require_finite(numbers, low, high, per_row)
        codes = layout.codes(numbers.inverse, numbers.shift, storage)
        shape = (count, per_row)
        zero = numbers.zero
        if zero is not None:
            zero = zero.reshape(shape) if storage.zero == "float" else zero.astype(np.int8).reshape(shape)
        return Blocks(codes.reshape(count, length), numbers.scale.reshape(shape), zero)


class BlockNumbers(NamedTuple):
    """float32 numbers of each block; see `RoundToNearest`."""

    scale: np.ndarray
    zero: np.ndarray | None
    inverse: np.ndarray
    shift: np.ndarray | np.float32


def block_numbers(low: np.ndarray, high: np.ndarray, storage: Storage) -> BlockNumbers:
    half, top, span = np.float32(-storage.low), np.float32(storage.high), np.float32(storage.high - storage.low)
    middle = half + np.float32(0.5)
    one = np.float32(1)
    if not storage.symmetric and storage.zero == "float":
        scale = np.maximum(high / span - low / span, np.maximum(np.abs(high), np.abs(low)) * np.float32(2.0**-18))
        scale = stored_scale(scale, storage)
        zero = stored(np.minimum(low / half + scale, F32_MAX / half) * half, storage)
        inverse = one / scale
        return BlockNumbers(scale, zero, inverse, middle - zero * inverse)
    below = np.negative(low)
    if storage.symmetric:
        scale = np.maximum(np.maximum(high, below) / half, np.minimum(high, below) / (half - np.float32(0.5)))
    else:
        scale = high / span + below / span
    np.divide(high, top, out=scale, where=high == below)
    scale = stored_scale(scale, storage)
    if storage.symmetric:
        np.negative(scale, out=scale, where=high > below)
        return BlockNumbers(scale, None, one / scale, middle)
    inverse = one / scale
    zero = np.rint(below * inverse - half)
    np.clip(zero, -half, top, out=zero)
    return BlockNumbers(scale, zero, inverse, zero + middle)


def require_finite(numbers: BlockNumbers, low: np.ndarray, high: np.ndarray, per_row: int) -> None:
    good = np.isfinite(numbers.scale)
    if numbers.zero is not None:
        good &= np.isfinite(numbers.zero)
    if good.all():
        return
    given = np.isfinite(low) & np.isfinite(high)
    if not given.all():
        raise NotFinite(int(np.argmin(given)) // per_row)
    raise OutOfScale(int(np.argmin(good)) // per_row)


def stored_scale(scale: np.ndarray, storage: Storage) -> np.ndarray:
    return np.maximum(stored(scale, storage), F16_TINY if storage.scale == "f16" else F32_TINY)


def stored(values: np.ndarray, storage: Storage) -> np.ndarray:
    return values if storage.scale == "f32" else values.astype(np.float16).astype(np.float32)


class _Compiled:
    """As `_Layout`, by compiled loops, which need no arranging."""

    def __init__(self, loops: ModuleType, rows: np.ndarray, block: int, scratch: Scratch) -> None:
        self.loops = loops
        self.kind = rows.dtype
        self.scratch = scratch
        self.words = rows.view(f"u{rows.itemsize}").reshape(rows.size // block, block)

    def extremes(self, with_zero: bool) -> tuple[np.ndarray, np.ndarray]:
        """See `_Layout`."""
        low, high = np.empty((2, len(self.words)), self.words.dtype)
        self.loops.block_extremes(self.words, low, high, with_zero)
        return _to_float(low, self.kind), _to_float(high, self.kind)

    def codes(self, inverse: np.ndarray, shift: np.ndarray | np.float32, storage: Storage) -> np.ndarray:
        """See `_Layout`."""
        codes = self.scratch.take("codes", self.words.shape, np.int8)
        kind = {F32.numpy: "f32", F16.numpy: "f16", BF16.numpy: "bf16"}[self.kind]
        self.loops.block_codes(self.words, inverse, np.atleast_1d(shift), codes, kind, storage.bits)
        return codes


class _Layout:
    """A piece of rows arranged so that every pass runs over long contiguous vectors.

    Short blocks are transposed in units of up to 16 bytes to ``[groups, blocks * lanes]``: reductions then run down
    axis 0 with one block's lane per column, and a block's numbers apply to whole columns. Long blocks stay as they are,
    ``[blocks, block]``.
    """

    def __init__(self, rows: np.ndarray, block: int, scratch: Scratch) -> None:
        self.kind = rows.dtype
        self.scratch = scratch
        self.block = block
        self.count = rows.size // block
        self.unsigned = np.dtype(f"u{rows.itemsize}")
        self.long = block >= LONG_BLOCK
        self.lanes = 1
        raw = rows.view(self.unsigned).reshape(self.count, block)
        if self.long:
            self.words = raw
            return
        unit = next(size for size in (16, 8, 4, 2) if block * rows.itemsize % size == 0)
        self.lanes = unit // rows.itemsize
        self.words = scratch.take("a", (block // self.lanes, self.count * self.lanes), self.unsigned)
        _transpose_units(raw, self.words, unit)

    def extremes(self, with_zero: bool) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest number of each block, float32[blocks], widened to contain 0 if so asked.

        Works on bit patterns: as signed integers positive floats are in order and above the negative ones; as unsigned
        integers the negative ones are above, the most negative highest. Infinity and NaN come out as themselves.
        """
        sign = self.unsigned.type(1 << (8 * self.unsigned.itemsize - 1))
        signed = np.dtype(f"i{self.unsigned.itemsize}")
        high = self._reduce(np.maximum, signed)
        low = self._reduce(np.maximum, self.unsigned)
        if with_zero:
            np.maximum(high, 0, out=high)
            np.maximum(low, sign, out=low)
        else:
            least = self._reduce(np.minimum, self.unsigned)
            np.copyto(high, least.view(signed), where=high < 0)
            np.copyto(low, least, where=low < sign)
        return _to_float(low, self.kind), _to_float(high, self.kind)

    def _reduce(self, operation: np.ufunc, kind: np.dtype) -> np.ndarray:
        words = self.words.view(kind)
        if self.long:
            return operation.reduce(words, axis=1)
        columns = operation.reduce(words, axis=0)
        if self.lanes == 1:
            return columns
        across = self.scratch.take("b", (self.lanes, self.count), kind)
        np.copyto(across, columns.reshape(self.count, self.lanes).T)
        return operation.reduce(across, axis=0)

    def codes(self, inverse: np.ndarray, shift: np.ndarray | np.float32, storage: Storage) -> np.ndarray:
        """int8[blocks, block]: ``clip(trunc(w * inverse + shift), 0, span) - half``, in scratch memory."""
        shape = self.words.shape
        wide = self._widened()
        wide = np.multiply(wide, self._per_element(inverse), out=self.scratch.take("b", shape, np.float32))
        np.add(wide, self._per_element(shift) if isinstance(shift, np.ndarray) else shift, out=wide)
        whole = self.scratch.take("a" if not self.long else "c", shape, np.int16)
        np.copyto(whole, wide, casting="unsafe")
        np.clip(whole, 0, storage.high - storage.low, out=whole)
        small = self.scratch.take("b", shape, np.int8)
        np.copyto(small, whole, casting="unsafe")
        np.add(small, np.int8(storage.low), out=small)
        if self.long:
            return small
        codes = self.scratch.take("codes", (self.count, self.block), np.int8)
        _untranspose_units(small, codes, self.lanes)
        return codes

    def _widened(self) -> np.ndarray:
        if self.kind == F32.numpy:
            return self.words.view(np.float32)
        wide = self.scratch.take("b", self.words.shape, np.float32)
        if self.kind == F16.numpy:
            widen_halves(self.words.view(np.int16), wide)
        else:
            np.copyto(wide, self.words.view(self.kind))
        return wide

    def _per_element(self, numbers: np.ndarray) -> np.ndarray:
        """One number per block, repeated so that it broadcasts against the words."""
        return numbers[:, None] if self.long else np.repeat(numbers, self.lanes)


def _to_float(words: np.ndarray, kind: np.dtype) -> np.ndarray:
    return words.view(kind).astype(np.float32, copy=False)


def _transpose_units(rows: np.ndarray, out: np.ndarray, unit: int) -> None:
    """Copy ``[blocks, block]`` to ``[groups, blocks * lanes]`` moving `unit` bytes at a time."""
    kind = {16: "c16", 8: "u8", 4: "u4", 2: "u2"}[unit]
    source = rows.view(kind)
    np.copyto(out.view(kind).reshape(source.shape[::-1]), source.T)


def _untranspose_units(words: np.ndarray, out: np.ndarray, unit: int) -> None:
    """The way back of `_transpose_units` for one byte per element, `unit` lanes at a time."""
    kind = {8: "u8", 4: "u4", 2: "u2", 1: "u1"}[unit]
    target = out.view(kind)
    np.copyto(target, words.view(kind).reshape(target.shape[::-1]).T)


METHOD = RoundToNearest()
"""The row of `ir.quant.methods.base.METHODS`."""
