"""Element types, symbolic dimensions and tensor types: plain values, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

import ml_dtypes
import numpy as np


@dataclass(frozen=True, slots=True)
class DType:
    """One element type.

    Attributes:
        name: spelling in the text form, such as ``f32`` or ``i4``.
        bits: storage width of one element in bits.
        kind: ``f`` float, ``i`` signed, ``u`` unsigned integer, ``b`` boolean, ``s`` string.
        numpy: the numpy dtype that holds one element of this type (wider for widths numpy lacks).
        onnx: number of the type in ``onnx.TensorProto.DataType``; for widths that ONNX lacks
            (3, 5, 6, 7 bits) the next wider ONNX type, which represents every value.
    """

    name: str
    bits: int
    kind: str
    numpy: np.dtype
    onnx: int

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"DType({self.name})"

    @property
    def is_integer(self) -> bool:
        """True for signed and unsigned integers (not booleans)."""
        return self.kind in "iu"

    @property
    def is_float(self) -> bool:
        """True for floating point types of any width."""
        return self.kind == "f"

    @property
    def low(self) -> int:
        """Smallest value of an integer type."""
        return -(1 << (self.bits - 1)) if self.kind == "i" else 0

    @property
    def high(self) -> int:
        """Largest value of an integer type."""
        return (1 << (self.bits - 1)) - 1 if self.kind == "i" else (1 << self.bits) - 1

    def nbytes(self, count: int) -> int:
        """Bytes of `count` densely packed elements (sub-byte types packed, rounded up)."""
        return (count * self.bits + 7) // 8


def _rows() -> list[DType]:
    npd = np.dtype
    return [
        DType("f32", 32, "f", npd("float32"), 1),
        DType("u8", 8, "u", npd("uint8"), 2),
        DType("i8", 8, "i", npd("int8"), 3),
        DType("u16", 16, "u", npd("uint16"), 4),
        DType("i16", 16, "i", npd("int16"), 5),
        DType("i32", 32, "i", npd("int32"), 6),
        DType("i64", 64, "i", npd("int64"), 7),
        DType("str", 0, "s", npd("object"), 8),
        DType("bool", 8, "b", npd("bool"), 9),
        DType("f16", 16, "f", npd("float16"), 10),
        DType("f64", 64, "f", npd("float64"), 11),
        DType("u32", 32, "u", npd("uint32"), 12),
        DType("u64", 64, "u", npd("uint64"), 13),
        DType("c64", 64, "c", npd("complex64"), 14),
        DType("c128", 128, "c", npd("complex128"), 15),
        DType("bf16", 16, "f", npd(ml_dtypes.bfloat16), 16),
        DType("f8e4m3fn", 8, "f", npd(ml_dtypes.float8_e4m3fn), 17),
        DType("f8e4m3fnuz", 8, "f", npd(ml_dtypes.float8_e4m3fnuz), 18),
        DType("f8e5m2", 8, "f", npd(ml_dtypes.float8_e5m2), 19),
        DType("f8e5m2fnuz", 8, "f", npd(ml_dtypes.float8_e5m2fnuz), 20),
        DType("u4", 4, "u", npd(ml_dtypes.uint4), 21),
        DType("i4", 4, "i", npd(ml_dtypes.int4), 22),
        DType("f4e2m1", 4, "f", npd(ml_dtypes.float4_e2m1fn), 23),
        DType("f8e8m0", 8, "f", npd(ml_dtypes.float8_e8m0fnu), 24),
        DType("u2", 2, "u", npd(ml_dtypes.uint2), 25),
        DType("i2", 2, "i", npd(ml_dtypes.int2), 26),
        DType("i3", 3, "i", npd("int8"), 22),
        DType("i5", 5, "i", npd("int8"), 3),
        DType("i6", 6, "i", npd("int8"), 3),
        DType("i7", 7, "i", npd("int8"), 3),
    ]


DTYPES: dict[str, DType] = {row.name: row for row in _rows()}
F32, F16, BF16, F64 = DTYPES["f32"], DTYPES["f16"], DTYPES["bf16"], DTYPES["f64"]
I4, I8, I32, I64, BOOL = DTYPES["i4"], DTYPES["i8"], DTYPES["i32"], DTYPES["i64"], DTYPES["bool"]
U8 = DTYPES["u8"]
_BY_ONNX = {row.onnx: row for row in reversed(_rows())} | {3: DTYPES["i8"], 22: DTYPES["i4"]}
_BY_NUMPY = {row.numpy: row for row in reversed(_rows())} | {np.dtype("int8"): DTYPES["i8"]}


def dtype_of_onnx(code: int) -> DType:
    """The element type of an ``onnx.TensorProto.DataType`` number; KeyError when there is none."""
    return _BY_ONNX[code]


def dtype_of_numpy(dtype: np.dtype | type) -> DType:
    """The element type of a numpy (or ml_dtypes) dtype; KeyError when there is none."""
    return _BY_NUMPY[np.dtype(dtype)]


def int_type(bits: int) -> DType:
    """The signed integer type of a width of 2 to 8 bits."""
    return DTYPES[f"i{bits}"]


@dataclass(frozen=True, slots=True)
class Dim:
    """A symbolic dimension: equal to another only by name.

    The inclusive range ``low..high`` and `multiple_of` say which run-time sizes are legal;
    `high` None means unbounded.
    """

    name: str
    low: int = 0
    high: int | None = None
    multiple_of: int = 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dim) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __str__(self) -> str:
        return self.name

    def accepts(self, size: int) -> bool:
        """True when a run-time size lies in the range and is a multiple of `multiple_of`."""
        return size >= self.low and (self.high is None or size <= self.high) and size % self.multiple_of == 0


Shape = tuple["int | Dim", ...]


MOST_AXES = 64
"""numpy's limit."""


@dataclass(frozen=True)
class TensorType:
    """Element type and shape; a shape of None means unknown rank."""

    dtype: DType
    shape: Shape | None = None

    @cached_property
    def is_static(self) -> bool:
        """True when every dimension is an integer."""
        return self.shape is not None and all(isinstance(dim, int) for dim in self.shape)

    @property
    def sizes(self) -> tuple[int, ...] | None:
        """The shape of a static type, else None."""
        return self.shape if self.is_static else None  # type: ignore[return-value]

    @property
    def rank(self) -> int | None:
        """Number of dimensions, or None when unknown."""
        return None if self.shape is None else len(self.shape)

    @property
    def size(self) -> int | None:
        """Number of elements of a static type, else None."""
        sizes = self.sizes
        return None if sizes is None else prod(sizes)

    @property
    def is_countable(self) -> bool:
        """True for a static type that an array can have, whether or not there is memory for it: at most 64 axes, and
        addresses that fit 62 bits even where an axis of size 0 leaves nothing to address."""
        sizes = self.sizes
        if sizes is None or len(sizes) > MOST_AXES or min(sizes, default=0) < 0:
            return False
        return prod(max(size, 1) for size in sizes) * 16 < 1 << 62

    @property
    def nbytes(self) -> int | None:
        """Packed size in bytes of a static type, else None."""
        size = self.size
        return None if size is None else self.dtype.nbytes(size)

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype}[*]"
        return f"{self.dtype}[{', '.join(str(dim) for dim in self.shape)}]"


@dataclass(frozen=True)
class SequenceType:
    """An ONNX sequence of one element type."""

    element: ValueType

    def __str__(self) -> str:
        return f"seq<{self.element}>"


@dataclass(frozen=True)
class OptionalType:
    """An ONNX optional of one element type."""

    element: ValueType

    def __str__(self) -> str:
        return f"optional<{self.element}>"


@dataclass(frozen=True)
class MapType:
    """An ONNX map from a scalar key type to a value type."""

    key: DType
    value: ValueType

    def __str__(self) -> str:
        return f"map<{self.key}, {self.value}>"


ValueType = TensorType | SequenceType | OptionalType | MapType
"""What a value can hold."""
