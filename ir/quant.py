"""Block quantization of weights: the arithmetic, and the lazy recipe that backends evaluate row range by row range.

A row of input features is cut into blocks; each block has a scale, and a zero when asymmetric. Codes are signed,
``-2^(bits-1)`` to ``2^(bits-1)-1``. Rows never depend on each other, so pieces and threads cannot change a byte.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, Protocol
from weakref import WeakValueDictionary

import numpy as np

from ir.diag import LadingError, suggest
from ir.tensor import Derived, Tensor, convert, widen_halves
from ir.types import BF16, F16, F32, DType, TensorType, int_type

PIECE_WEIGHTS = 1 << 19
LONG_BLOCK = 512
F32_MAX = np.finfo(np.float32).max
F32_TINY = np.float32(2.0**-126)
F16_TINY = np.float32(2.0**-24)


@dataclass(frozen=True, slots=True)
class QuantSpec:
    """How a weight matrix is quantized.

    Attributes:
        bits: width of a code, 2 to 8.
        block: input features that share a scale; 0 for one block per row. It must divide the row length.
        symmetric: without a zero, ``w = q * scale``; the scale may be negative.
        zero: ``int`` for an integer zero point, ``w = (q - zero) * scale``; ``float`` for the real value of code 0,
            ``w = q * scale + zero``. Ignored when symmetric.
        method: key of `METHODS`.
        scale: storage of scale and real zero; with ``f16`` they are rounded to half precision before codes are chosen.
    """

    bits: int = 4
    block: int = 64
    symmetric: bool = False
    zero: Literal["int", "float"] = "int"
    method: str = "rtn"
    scale: Literal["f32", "f16"] = "f32"

    def __post_init__(self) -> None:
        if self.bits not in range(2, 9) or self.block < 0:
            raise LadingError("Q400", f"bits={self.bits} block={self.block}: bits are 2 to 8, blocks not negative")
        if self.zero not in ("int", "float") or self.scale not in ("f32", "f16"):
            raise LadingError("Q400", f"zero={self.zero} scale={self.scale}: zero is int or float, scale is f32 or f16")

    @property
    def low(self) -> int:
        """Smallest code."""
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """Largest code."""
        return (1 << (self.bits - 1)) - 1

    def blocks(self, length: int) -> int:
        """Blocks in a row of `length` input features.

        Raises:
            LadingError: Q401 when the block does not divide the row.
        """
        block = self.block or max(1, length)
        if length % block:
            usable = fit_block(length, block)
            hint = f"use block={usable}" if usable else "use block=0, one scale per row"
            raise LadingError("Q401", f"block {block} does not divide the {length} input features", hint=hint)
        return length // block


def fit_block(length: int, wanted: int) -> int:
    """Largest usable block up to `wanted`: a multiple of 32 that divides, else 16, 8 or 4, else 0 (a whole row)."""
    for block in (*range(wanted // 32 * 32, 0, -32), 16, 8, 4):
        if block <= wanted and length and length % block == 0:
            return block
    return 0


class Blocks(NamedTuple):
    """Quantized rows; the arrays may lie in scratch memory and are then valid until its next use.

    Attributes:
        codes: int8[n, length].
        scale: float32[n, blocks].
        zero: int8 zero points or float32 zeros [n, blocks], None when symmetric.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None


class Scratch:
    """Buffers that are reused from piece to piece; one per thread."""

    def __init__(self) -> None:
        self._held: dict[str, np.ndarray] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An uninitialized array over the buffer `name`, which grows as needed."""
        kind = np.dtype(dtype)
        count = kind.itemsize
        for size in shape:
            count *= size
        held = self._held.get(name)
        if held is None or held.size < count:
            held = self._held[name] = np.empty(count, np.uint8)
        return held[:count].view(kind).reshape(shape)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(held.size for held in self._held.values())


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.scratch = Scratch()


_PER_THREAD = _PerThread()


def thread_scratch() -> Scratch:
    """The scratch memory of the calling thread."""
    return _PER_THREAD.scratch


class NotFinite(ValueError):
    """Raised by methods for rows with NaN or infinity; `row` counts from the first row given."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} is not finite")
        self.row = row


class OutOfScale(ValueError):
    """Raised by methods when scale or zero of a row do not fit the storage type."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} does not fit")
        self.row = row


class QuantMethod(Protocol):
    """A way to choose codes. Rows must be treated independently and without randomness.

    Attributes:
        name: key in `METHODS`.
        accepts: element types that `quantize` takes as they are; rows of any other type come as float32.
    """

    name: str
    accepts: frozenset[DType]

    def quantize(self, rows: np.ndarray, spec: QuantSpec, scratch: Scratch) -> Blocks:
        """Quantize rows ``[n, length]`` whose length is a multiple of the block; `NotFinite` for NaN or infinity."""


METHODS: dict[str, QuantMethod] = {}


def register_method(method: QuantMethod) -> None:
    """Add a method; a name taken twice is a mistake of the author."""
    if METHODS.setdefault(method.name, method) is not method:
        raise ValueError(f"the quantization method {method.name!r} is taken")


class RoundToNearest:
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
    accepts: ClassVar[frozenset[DType]] = frozenset({F32, F16, BF16})

    def quantize(self, rows: np.ndarray, spec: QuantSpec, scratch: Scratch) -> Blocks:
        """See `QuantMethod`."""
        count, length = rows.shape
        per_row = spec.blocks(length)
        if not rows.size:
            zero = None if spec.symmetric else np.zeros((count, per_row), np.int8 if spec.zero == "int" else np.float32)
            return Blocks(np.zeros((count, length), np.int8), np.ones((count, per_row), np.float32), zero)
        layout = _Layout(np.ascontiguousarray(rows), length // per_row, scratch)
        low, high = layout.extremes(with_zero=spec.symmetric or spec.zero == "int")
        with np.errstate(over="ignore", invalid="ignore"):
            numbers = _numbers(low, high, spec)
        _require_finite(numbers, low, high, per_row)
        codes = layout.codes(numbers.inverse, numbers.shift, spec)
        shape = (count, per_row)
        zero = numbers.zero
        if zero is not None:
            zero = zero.reshape(shape) if spec.zero == "float" else zero.astype(np.int8).reshape(shape)
        return Blocks(codes.reshape(count, length), numbers.scale.reshape(shape), zero)


register_method(RoundToNearest())


class _Numbers(NamedTuple):
    """float32 numbers of each block; see `RoundToNearest`."""

    scale: np.ndarray
    zero: np.ndarray | None
    inverse: np.ndarray
    shift: np.ndarray | np.float32


def _numbers(low: np.ndarray, high: np.ndarray, spec: QuantSpec) -> _Numbers:
    half, top, span = np.float32(-spec.low), np.float32(spec.high), np.float32(spec.high - spec.low)
    middle = half + np.float32(0.5)
    one = np.float32(1)
    if not spec.symmetric and spec.zero == "float":
        scale = np.maximum(high / span - low / span, np.maximum(np.abs(high), np.abs(low)) * np.float32(2.0**-18))
        scale = _stored_scale(scale, spec)
        zero = _stored(np.minimum(low / half + scale, F32_MAX / half) * half, spec)
        inverse = one / scale
        return _Numbers(scale, zero, inverse, middle - zero * inverse)
    below = np.negative(low)
    if spec.symmetric:
        scale = np.maximum(np.maximum(high, below) / half, np.minimum(high, below) / (half - np.float32(0.5)))
    else:
        scale = high / span + below / span
    np.divide(high, top, out=scale, where=high == below)
    scale = _stored_scale(scale, spec)
    if spec.symmetric:
        np.negative(scale, out=scale, where=high > below)
        return _Numbers(scale, None, one / scale, middle)
    inverse = one / scale
    zero = np.rint(below * inverse - half)
    np.clip(zero, -half, top, out=zero)
    return _Numbers(scale, zero, inverse, zero + middle)


def _require_finite(numbers: _Numbers, low: np.ndarray, high: np.ndarray, per_row: int) -> None:
    good = np.isfinite(numbers.scale)
    if numbers.zero is not None:
        good &= np.isfinite(numbers.zero)
    if good.all():
        return
    given = np.isfinite(low) & np.isfinite(high)
    if not given.all():
        raise NotFinite(int(np.argmin(given)) // per_row)
    raise OutOfScale(int(np.argmin(good)) // per_row)


def _stored_scale(scale: np.ndarray, spec: QuantSpec) -> np.ndarray:
    return np.maximum(_stored(scale, spec), F16_TINY if spec.scale == "f16" else F32_TINY)


def _stored(values: np.ndarray, spec: QuantSpec) -> np.ndarray:
    return values if spec.scale == "f32" else values.astype(np.float16).astype(np.float32)


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
        return self._to_float(low), self._to_float(high.view(self.unsigned))

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

    def _to_float(self, words: np.ndarray) -> np.ndarray:
        return words.view(self.kind).astype(np.float32, copy=False)

    def codes(self, inverse: np.ndarray, shift: np.ndarray | np.float32, spec: QuantSpec) -> np.ndarray:
        """int8[blocks, block]: ``clip(trunc(w * inverse + shift), 0, span) - half``, in scratch memory."""
        shape = self.words.shape
        wide = self._widened()
        wide = np.multiply(wide, self._per_element(inverse), out=self.scratch.take("b", shape, np.float32))
        np.add(wide, self._per_element(shift) if isinstance(shift, np.ndarray) else shift, out=wide)
        whole = self.scratch.take("a" if not self.long else "c", shape, np.int16)
        np.copyto(whole, wide, casting="unsafe")
        np.clip(whole, 0, spec.high - spec.low, out=whole)
        small = self.scratch.take("b", shape, np.int8)
        np.copyto(small, whole, casting="unsafe")
        np.add(small, np.int8(spec.low), out=small)
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


# --- the lazy recipe --------------------------------------------------------------------------------------------------


class QuantizedWeight:
    """A float matrix ``[out, in]`` and how it is quantized; codes, scales and zeros are evaluated together, on demand.

    Attributes:
        source: the float matrix.
        spec: how it is quantized.
        blocks: blocks per row.
    """

    def __init__(self, source: Tensor, spec: QuantSpec) -> None:
        """Raises LadingError: Q401 block, Q404 unknown method, Q405 not a float matrix."""
        if source.type.rank != 2 or not source.type.dtype.is_float:
            raise LadingError("Q405", f"only float matrices can be quantized, not {source.type}", where=source.loc)
        if spec.method not in METHODS:
            hint = suggest(spec.method, list(METHODS)) or f"known: {', '.join(sorted(METHODS))}"
            raise LadingError("Q404", f"unknown quantization method {spec.method!r}", hint=hint)
        self.source = source
        self.spec = spec
        self.blocks = _blocks_of(source, spec)

    def __repr__(self) -> str:
        return f"<QuantizedWeight {self.source.type} {self.spec} {self.source.loc}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return shared_quantized, (self.source, self.spec)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and input features."""
        return self.source.type.shape  # type: ignore[return-value]

    @cached_property
    def codes(self) -> Tensor:
        """i{bits}[out, in]."""
        return _Codes(self, TensorType(int_type(self.spec.bits), self.shape))

    @cached_property
    def scale(self) -> Tensor:
        """f32[out, blocks], already rounded when stored as f16."""
        return _Scale(self, TensorType(F32, (self.shape[0], self.blocks)))

    @cached_property
    def zero_point(self) -> Tensor | None:
        """i{bits}[out, blocks] zero points, f32[out, blocks] real zeros, or None when symmetric."""
        if self.spec.symmetric:
            return None
        kind = int_type(self.spec.bits) if self.spec.zero == "int" else F32
        return _Zero(self, TensorType(kind, (self.shape[0], self.blocks)))

    def dequantized(self) -> Tensor:
        """f32[out, in] as MNN computes it: ``codes * scale + zero`` in float32, with ``zero = -zero_point * scale``."""
        return _Dequantized(self, TensorType(F32, self.shape))

    def pieces(self, start: int, stop: int, multiple: int = 1) -> Iterator[tuple[int, int, Blocks]]:
        """Cache-sized runs of the rows `start` to `stop` as ``(first, last, blocks)``.

        The arrays lie in the thread's scratch memory: use them before asking for the next. Every run but the last has a
        multiple of `multiple` rows.

        Raises:
            LadingError: Q402 for NaN or infinity, Q403 for a scale beyond half precision, and what the source raises.
        """
        if not 0 <= start <= stop <= self.shape[0]:
            raise IndexError(f"rows {start} to {stop} of {self.source.type}")
        step = max(1, PIECE_WEIGHTS // max(1, self.shape[1]) // multiple) * multiple
        method = METHODS[self.spec.method]
        for first in range(start, stop, step):
            last = min(stop, first + step)
            if (stored := getattr(self.source, "stored_blocks", None)) is not None:
                yield first, last, stored(first, last)
                continue
            rows = self.source.rows(first, last)
            if self.source.type.dtype not in method.accepts:
                rows = convert(rows, F32, self.source.loc)
            yield first, last, self._quantized(method, rows, first)

    def _quantized(self, method: QuantMethod, rows: np.ndarray, first: int) -> Blocks:
        try:
            return method.quantize(rows, self.spec, thread_scratch())
        except NotFinite as error:
            message = f"row {first + error.row} has NaN or infinity"
            hint = "the checkpoint is damaged, or keep this weight in 16 bits"
            raise LadingError("Q402", message, where=self.source.loc, hint=hint) from error
        except OutOfScale as error:
            message = f"row {first + error.row} needs a scale or zero that half precision cannot hold"
            raise LadingError("Q403", message, where=self.source.loc, hint="store scales as f32") from error

    def rows(self, start: int, stop: int) -> Blocks:
        """Codes, scale and zero of a row range in arrays of their own; errors as for `pieces`."""
        count = stop - start
        codes = np.empty((count, self.shape[1]), np.int8)
        scale = np.empty((count, self.blocks), np.float32)
        zero = None
        if not self.spec.symmetric:
            zero = np.empty(scale.shape, np.int8 if self.spec.zero == "int" else np.float32)
        for first, last, part in self.pieces(start, stop):
            codes[first - start : last - start] = part.codes
            scale[first - start : last - start] = part.scale
            if zero is not None:
                zero[first - start : last - start] = part.zero
        return Blocks(codes, scale, zero)


def _blocks_of(source: Tensor, spec: QuantSpec) -> int:
    try:
        return spec.blocks(source.type.shape[1])  # type: ignore[index,arg-type]
    except LadingError as error:
        found = error.diagnostics[0]
        raise LadingError(found.code, found.message, where=source.loc, hint=found.hint) from error


def real_zero(scale: np.ndarray, zero: np.ndarray | None) -> np.ndarray | None:
    """float32 value of signed code 0: ``-zero_point * scale`` for integer zero points, real zeros as they are."""
    if zero is None or zero.dtype == np.float32:
        return zero
    return np.negative(zero.astype(np.float32) * scale)


class _Part(Derived):
    """One of the tensors of a quantized weight."""

    def __init__(self, parent: QuantizedWeight, type: TensorType) -> None:
        super().__init__(type, parent.source, **asdict(parent.spec))
        self.quantized = parent

    def rows(self, start: int, stop: int) -> np.ndarray:
        self._bounds(start, stop)
        out = np.empty((stop - start, self.row_size), self.type.dtype.numpy)
        for first, last, part in self.quantized.pieces(start, stop):  # type: ignore[union-attr]
            out[first - start : last - start] = self._pick(part)
        return out

    def _pick(self, part: Blocks) -> np.ndarray:
        raise NotImplementedError


class _Codes(_Part):
    name = "quantized_codes"

    def _pick(self, part: Blocks) -> np.ndarray:
        return part.codes.astype(self.type.dtype.numpy, copy=False)


class _Scale(_Part):
    name = "quantized_scale"

    def _pick(self, part: Blocks) -> np.ndarray:
        return part.scale


class _Zero(_Part):
    name = "quantized_zero_point"

    def _pick(self, part: Blocks) -> np.ndarray:
        return part.zero.astype(self.type.dtype.numpy, copy=False)  # type: ignore[union-attr]


class _Dequantized(_Part):
    name = "quantized_dequantized"

    def _pick(self, part: Blocks) -> np.ndarray:
        count, blocks = part.scale.shape
        wide = part.codes.reshape(count, blocks, -1).astype(np.float32)
        wide *= part.scale[:, :, None]
        zero = real_zero(part.scale, part.zero)
        if zero is not None:
            wide += zero[:, :, None]
        return wide.reshape(count, -1)


_SHARED: WeakValueDictionary[tuple[str, QuantSpec], QuantizedWeight] = WeakValueDictionary()


def shared_quantized(source: Tensor, spec: QuantSpec) -> QuantizedWeight:
    """The quantization of an equal source by the same spec that is alive, or a new one.

    Parts rebuilt one by one, such as those of a parsed graph, get one parent this way.
    """
    key = (source.fingerprint(), spec)
    found = _SHARED.get(key)
    if found is None:
        found = _SHARED[key] = QuantizedWeight(source, spec)
    return found


def rebuild_codes(source: Tensor, **spec: Any) -> Tensor:
    """The recipe ``quantized_codes``."""
    return shared_quantized(source, QuantSpec(**spec)).codes


def rebuild_scale(source: Tensor, **spec: Any) -> Tensor:
    """The recipe ``quantized_scale``."""
    return shared_quantized(source, QuantSpec(**spec)).scale


def rebuild_zero_point(source: Tensor, **spec: Any) -> Tensor:
    """The recipe ``quantized_zero_point``; Q400 when the spec is symmetric and so has none."""
    found = shared_quantized(source, QuantSpec(**spec)).zero_point
    if found is None:
        raise LadingError("Q400", "a symmetric weight has no zero point", where=source.loc)
    return found


def rebuild_dequantized(source: Tensor, **spec: Any) -> Tensor:
    """The recipe ``quantized_dequantized``."""
    return shared_quantized(source, QuantSpec(**spec)).dequantized()
