"""Codes, scales and zeros of other people's weights, followed through what stands between them and their use.

`Coded` is a dequantized constant of any rank that may have been transposed and reshaped. Its axes are products of
*factors*: sizes along which the scales change with every element, or not at all. Transposes and reshapes move and split
factors, so that at the end it can be said whether the scales are those of blocks along the rows of a matrix, as
`ir.quant.stored_weight` reads them, and codes, scales and zeros can be laid out so without changing a number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ir.base.types import DTYPES, F32, DType, TensorType, int_type
from ir.quant.ggml_blocks import GgmlBlocks
from ir.tensor.base import Derived, Tensor, refuse
from ir.tensor.elementwise import cast, convert
from ir.tensor.inline import dtype_named
from ir.tensor.rearranged import reshaped, transposed


@dataclass(frozen=True, eq=False)
class Factor:
    """A part of an axis; two are the same only when they are one object.

    Attributes:
        size: elements.
        scaled: True when the scales change along it with every element, False when they do not change; None for an
            axis whose last block is shorter than the others.
    """

    size: int
    scaled: bool | None


class Parts(NamedTuple):
    """A matrix in codes: ``[rows, columns]``, with scales and zeros ``[rows, blocks]``, or one for the whole, ``[]``."""

    codes: Tensor
    scale: Tensor
    zero: Tensor | None


@dataclass(frozen=True)
class Coded:
    """A dequantized constant seen in another shape.

    Attributes:
        given: codes, scales and zeros as they lie; scales and zeros have the rank of the codes.
        tile: elements of each axis of the codes that share a scale.
        stored: the factors of the codes, in the order in which they lie.
        axes: those of each axis of what is seen.
        affine: zeros are real values that are added, not zero points.
    """

    given: Parts
    tile: tuple[int, ...]
    stored: tuple[Factor, ...]
    axes: tuple[tuple[Factor, ...], ...]
    affine: bool

    def transposed(self, order: Sequence[int]) -> Coded:
        """With its axes in another order."""
        return replace(self, axes=tuple(self.axes[axis] for axis in order))

    def reshaped(self, shape: Sequence[int]) -> Coded | None:
        """In another shape; None where an axis would begin within what is neither whole nor evenly cut."""
        split: dict[Factor, tuple[Factor, Factor]] = {}
        waiting = [factor for axis in self.axes for factor in axis][::-1]
        axes: list[tuple[Factor, ...]] = []
        for size in shape:
            axis: list[Factor] = []
            while size > 1:
                factor = waiting.pop() if waiting else None
                if factor is None or size % math.gcd(size, factor.size) or math.gcd(size, factor.size) == 1:
                    return None
                common = math.gcd(size, factor.size)
                if common < factor.size:
                    if common < size or factor.scaled is None:
                        return None
                    outer, inner = Factor(common, factor.scaled), Factor(factor.size // common, factor.scaled)
                    split[factor] = (outer, inner)
                    waiting.append(inner)
                    factor = outer
                axis.append(factor)
                size //= common
            axes.append(tuple(axis))
        if waiting:
            return None
        return replace(self, axes=tuple(axes), stored=tuple(_cut(self.stored, split)))

    def matrix(self, features: int) -> Parts | str:
        """As rows of input features, which lie along the axis `features`; or why its scales are not those of blocks of
        a row."""
        kind = self.given.codes.type.dtype
        if kind.is_float or kind.bits > 8:
            return f"its codes are {kind}, no integers of at most 8 bits"
        if len(self.axes) != 2:
            return f"it is used as an array of {len(self.axes)} axes, not as a matrix"
        rows, columns = self.axes[1 - features], self.axes[features]
        if any(factor.scaled is None for factor in (*rows, *columns)):
            return "the blocks do not divide the axis along which they lie"
        scaled = [bool(factor.scaled) for factor in columns]
        if not any(factor.scaled for factor in (*rows, *columns)):
            blocks: tuple[int, ...] = ()
        elif not all(factor.scaled for factor in rows):
            return "scales are shared by several rows, not by blocks of a row"
        elif scaled != sorted(scaled, reverse=True):
            return "weights that share a scale do not lie side by side in a row"
        else:
            blocks = (_size(rows), _size(factor for factor in columns if factor.scaled))
        order = (*rows, *columns)
        codes = _arranged(self.given.codes, self.stored, order, (_size(rows), _size(columns)))
        numbers = [None if part is None else self._of_blocks(part, order, blocks) for part in self.given[1:]]
        if codes is None or numbers[0] is None or (numbers[1] is None) != (self.given.zero is None):
            return "its axes are in an order that no transpose of a matrix gives"
        return Parts(codes, numbers[0], numbers[1])

    def _of_blocks(self, part: Tensor, order: Sequence[Factor], shape: tuple[int, ...]) -> Tensor | None:
        """Scales or zeros in the order of the factors along which they change."""
        return _arranged(part, [f for f in self.stored if f.scaled], [f for f in order if f.scaled], shape)

    def numbers(self) -> Tensor | None:
        """The real values as they are seen, f32; None where no recipe brings them into that order."""
        codes, scale, zero = self.given
        real = decoded(codes, scale, *(() if zero is None else (zero,)), tile=self.tile, affine=self.affine)
        order = [factor for axis in self.axes for factor in axis]
        return _arranged(real, self.stored, order, tuple(map(_size, self.axes)))


def coded(
    codes: Tensor, scale: Tensor, zero: Tensor | None, axis: int, block: int, *, affine: bool = False
) -> Coded | str:
    """What ``DequantizeLinear`` makes of constants, or of ``lading.AffineDequantize`` when `affine`; or why it is none.

    Scales of narrower floats become float32, which holds them exactly.
    """
    shape, rank, kind = codes.shape, codes.type.rank or 0, codes.type.dtype
    narrow = kind.bits <= 8 if kind.is_float else kind.is_integer and 2 <= kind.bits <= 16
    if not narrow or not rank or not codes.type.size:
        return f"codes of type {codes.type} are no array of narrow numbers"
    if not scale.type.dtype.is_float or scale.type.dtype.bits > 32 or scale.type.dtype.bits < 16:
        return f"scales are {scale.type.dtype}, not f32, f16 or bf16"
    wanted = F32 if affine else kind
    if zero is not None and (zero.type.size != scale.type.size or zero.type.dtype != wanted):
        return f"zeros of type {zero.type} do not fit codes of type {codes.type} and scales of type {scale.type}"
    if kind.is_float and not affine:
        # Floats have no zero points but 0.
        zero = None
    if scale.type.size == 1:
        sizes, tile = (1,) * rank, shape
    elif scale.type.rank == 1 and not block and scale.shape == shape[axis % rank : axis % rank + 1]:
        sizes = tuple(size if place == axis % rank else 1 for place, size in enumerate(shape))
        tile = tuple(1 if place == axis % rank else size for place, size in enumerate(shape))
    elif block and scale.type.rank == rank:
        sizes = scale.shape
        tile = tuple(block if place == axis % rank else 1 for place in range(rank))
    else:
        return f"scales of type {scale.type} do not fit codes of type {codes.type}"
    if any(count != -(-size // each) for count, size, each in zip(sizes, shape, tile, strict=True)):
        return f"scales of type {scale.type} are not those of blocks of {block} of {codes.type}"
    given = Parts(codes, reshaped(cast(scale, F32), sizes), None if zero is None else reshaped(zero, sizes))
    return in_tiles(given, tile, affine)


def in_tiles(given: Parts, tile: tuple[int, ...], affine: bool) -> Coded:
    """Codes with scales and zeros of tiles, which are cut finer where they do not divide an axis."""
    shape = given.codes.shape
    finer = tuple(_even(size, each) for size, each in zip(shape, tile, strict=True))
    if finer != tile:
        zeros = None if given.zero is None else _refined(given.zero, shape, tile, finer)
        given, tile = Parts(given.codes, _refined(given.scale, shape, tile, finer), zeros), finer
    axes = tuple(_factors(size, each) for size, each in zip(shape, tile, strict=True))
    return Coded(given, tile, tuple(factor for part in axes for factor in part), axes, affine)


def tiled(codes: Tensor, scale: Tensor, zero: Tensor | None) -> Coded | None:
    """``(codes - zero) * scale`` with scales and zeros that numpy spreads over the codes; None where it does not.

    Zeros have the type of the codes.
    """
    rank, parts = codes.type.rank or 0, [scale] if zero is None else [scale, zero]
    if not codes.type.size or any((part.type.rank or 0) > rank for part in parts):
        return None
    shapes = [(1,) * (rank - len(part.shape)) + part.shape for part in parts]
    if any(size not in (1, whole) for shape in shapes for size, whole in zip(shape, codes.shape, strict=True)):
        return None
    sizes = tuple(max(found) for found in zip(*shapes, strict=True))
    spread = [_widened(reshaped(part, shape), sizes) for part, shape in zip(parts, shapes, strict=True)]
    tile = tuple(whole // size for whole, size in zip(codes.shape, sizes, strict=True))
    axes = tuple(_factors(whole, each) for whole, each in zip(codes.shape, tile, strict=True))
    given = Parts(codes, cast(spread[0], F32), spread[1] if zero is not None else None)
    return Coded(given, tile, tuple(factor for part in axes for factor in part), axes, False)


def _widened(part: Tensor, sizes: Sequence[int]) -> Tensor:
    """A tensor with its axes of one element repeated to sizes."""
    for axis, size in enumerate(sizes):
        if part.shape[axis] != size:
            part = repeated(part, axis, size, size)
    return part


LEAST_BLOCK = 16
"""Elements of a block, at least, into which blocks are cut that do not divide their axis; below, scales outweigh codes."""


def _even(size: int, tile: int) -> int:
    """A block that divides an axis and is a part of the given one; the given one where there is none of use."""
    common = math.gcd(size, tile)
    return common if size % max(tile, 1) and common >= LEAST_BLOCK else tile


def _refined(part: Tensor, shape: Sequence[int], tile: Sequence[int], finer: Sequence[int]) -> Tensor:
    """Numbers of tiles as numbers of smaller ones, of which each takes that of the tile it lies in."""
    for axis, (size, old, new) in enumerate(zip(shape, tile, finer, strict=True)):
        if old != new:
            part = repeated(part, axis, old // new, size // new)
    return part


def _factors(size: int, tile: int) -> tuple[Factor, ...]:
    if size % max(tile, 1):
        return (Factor(size, None),)
    return tuple(item for item in (Factor(size // max(tile, 1), True), Factor(tile, False)) if item.size != 1)


def _cut(stored: Sequence[Factor], split: dict[Factor, tuple[Factor, Factor]]) -> list[Factor]:
    """Factors with those that were split replaced by their parts, which may have been split again."""
    found: list[Factor] = []
    waiting = list(stored)[::-1]
    while waiting:
        factor = waiting.pop()
        if factor in split:
            waiting += reversed(split[factor])
        else:
            found.append(factor)
    return found


def _size(factors: Iterable[Factor]) -> int:
    return math.prod(factor.size for factor in factors)


def _arranged(
    tensor: Tensor, stored: Sequence[Factor], wanted: Sequence[Factor], shape: tuple[int, ...]
) -> Tensor | None:
    """A tensor of some factors with them in another order, as an array of a shape; None unless one transpose does it."""
    stored, wanted = list(stored), list(wanted)
    if stored == wanted:
        return reshaped(tensor, shape)
    first = stored.index(wanted[0])
    if stored[first:] + stored[:first] != wanted:
        return None
    matrix = (_size(stored[:first]), _size(stored[first:]))
    return reshaped(transposed(reshaped(tensor, matrix)), shape)


# ---- recipes ----


class _Signed(Derived):
    name = "signed_codes"

    @property
    def ranged(self) -> bool:
        """As the base."""
        return self.base.ranged

    def __init__(self, base: Tensor) -> None:
        super().__init__(TensorType(int_type(base.type.dtype.bits), base.type.shape), base)

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self._moved(self.base.rows(start, stop))

    def elements(self, start: int, stop: int) -> np.ndarray:
        return self._moved(self.base.elements(start, stop))

    def _moved(self, numbers: np.ndarray) -> np.ndarray:
        half = np.uint8(1 << (self.type.dtype.bits - 1))
        return (numbers.astype(np.uint8) - half).view(np.int8).astype(self.type.dtype.numpy, copy=False)


def signed_codes(base: Tensor) -> Tensor:
    """Unsigned codes as signed ones: every number less by half the range of its type."""
    if base.type.dtype.kind != "u" or not 2 <= base.type.dtype.bits <= 8:
        raise refuse("signed_codes", "codes are unsigned integers of 2 to 8 bits", base)
    return _Signed(base)


class _Repeated(Derived):
    name = "repeated"

    def __init__(self, base: Tensor, axis: int, times: int, size: int) -> None:
        shape = tuple(size if place == axis else given for place, given in enumerate(base.shape))
        super().__init__(TensorType(base.type.dtype, shape), base, axis, times, size)
        self.axis, self.times = axis, times

    def rows(self, start: int, stop: int) -> np.ndarray:
        self._bounds(start, stop)
        if self.axis:
            found = np.repeat(self.base.rows(start, stop), self.times, self.axis)
            return np.ascontiguousarray(found.take(range(self.shape[self.axis]), self.axis))
        first = start // self.times
        found = np.repeat(self.base.rows(first, -(-stop // self.times)), self.times, 0)
        return found[start - first * self.times : stop - first * self.times]


def repeated(base: Tensor, axis: int, times: int, size: int) -> Tensor:
    """Every element along an axis as many times as said, cut to a size."""
    if not 0 <= axis < len(base.shape) or times < 1 or not 0 < size <= base.shape[axis] * times:
        raise refuse("repeated", f"axis {axis} has no {size} elements when each is there {times} times", base)
    return base if times == 1 and size == base.shape[axis] else _Repeated(base, axis, times, size)


class _Wide(Derived):
    name = "wide_codes"

    @property
    def ranged(self) -> bool:
        """As the base."""
        return self.base.ranged

    def __init__(self, base: Tensor, dtype: DType) -> None:
        super().__init__(TensorType(dtype, base.type.shape), base, dtype.name)

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.base.rows(start, stop).astype(self.type.dtype.numpy)

    def elements(self, start: int, stop: int) -> np.ndarray:
        return self.base.elements(start, stop).astype(self.type.dtype.numpy)


def wide_codes(base: Tensor, dtype: DType | str) -> Tensor:
    """The same integers in a wider type of the same kind."""
    kind = dtype_named(dtype)
    if base.type.dtype == kind:
        return base
    if not base.type.dtype.is_integer or kind.kind != base.type.dtype.kind or kind.bits < base.type.dtype.bits:
        raise refuse("wide_codes", f"{base.type.dtype} codes do not fit {kind}", base)
    return _Wide(base, kind)


class _Decoded(Derived):
    name = "decoded"

    def __init__(self, codes: Tensor, scale: Tensor, *zero: Tensor, tile: tuple[int, ...], affine: bool) -> None:
        super().__init__(TensorType(F32, codes.type.shape), codes, scale, *zero, tile=tile, affine=affine)
        self.scale, self.zero = scale, zero[0] if zero else None
        self.tile, self.affine = tile, affine

    def rows(self, start: int, stop: int) -> np.ndarray:
        self._bounds(start, stop)
        codes, scale = self.base.rows(start, stop), _spread(self, self.scale, start, stop)
        # Codes and zeros have at most 16 bits, so that their difference is exact.
        numbers = convert(codes, F32) if self.base.type.dtype.is_float else codes.astype(np.float32)
        if self.zero is None:
            return numbers * scale.astype(np.float32)
        zero = _spread(self, self.zero, start, stop).astype(np.float32)
        return numbers * scale + zero if self.affine else (numbers - zero) * scale.astype(np.float32)


def _spread(of: _Decoded | _Rounded, part: Tensor, start: int, stop: int) -> np.ndarray:
    """Numbers of tiles for each element of a row range."""
    tall = max(1, of.tile[0])
    found = part.rows(start // tall, -(-stop // tall))
    for axis, each in enumerate(of.tile):
        found = np.repeat(found, each, axis) if each > 1 and found.shape[axis] > 1 else found
    skip = start - start // tall * tall if found.shape[0] > 1 else 0
    cut = [slice(skip, skip + stop - start), *(slice(0, size) for size in of.shape[1:])]
    return found[tuple(cut)]


def decoded(codes: Tensor, scale: Tensor, *zero: Tensor, tile: Sequence[int], affine: bool = False) -> Tensor:
    """f32: ``(codes - zero) * scale``, or ``codes * scale + zero`` when `affine`, with a scale for every tile.

    Codes, scales and zeros have the same rank; `tile` says how many codes of each axis share a scale.
    """
    counts = tuple(-(-size // max(1, each)) for size, each in zip(codes.shape, tile, strict=True))
    if not codes.shape or any(part.shape != counts for part in (scale, *zero)) or len(zero) > 1:
        raise refuse("decoded", f"scales and zeros are not those of tiles {list(tile)}", codes, scale, *zero)
    return _Decoded(codes, scale, *zero, tile=tuple(tile), affine=affine)


class _Rounded(Derived):
    name = "rounded_codes"

    def __init__(self, base: Tensor, scale: Tensor, *zero: Tensor, tile: tuple[int, ...], dtype: str) -> None:
        super().__init__(TensorType(DTYPES[dtype], base.type.shape), base, scale, *zero, tile=tile, dtype=dtype)
        self.scale, self.zero, self.tile = scale, zero[0] if zero else None, tile

    def rows(self, start: int, stop: int) -> np.ndarray:
        self._bounds(start, stop)
        dtype = self.type.dtype
        numbers = self.base.rows(start, stop).astype(np.float32)
        codes = np.rint(numbers / _spread(self, self.scale, start, stop))
        if self.zero is not None:
            codes += _spread(self, self.zero, start, stop).astype(np.float32)
        return np.clip(codes, dtype.low, dtype.high).astype(dtype.numpy)


def rounded_codes(base: Tensor, scale: Tensor, *zero: Tensor, tile: Sequence[int], dtype: str) -> Tensor:
    """Integers ``round(base / scale) + zero`` within the range of a type, with a scale for every tile, ties to even."""
    counts = tuple(-(-size // max(1, each)) for size, each in zip(base.shape, tile, strict=True))
    if not base.shape or any(part.shape != counts for part in (scale, *zero)) or len(zero) > 1:
        raise refuse("rounded_codes", f"scales and zeros are not those of tiles {list(tile)}", base, scale, *zero)
    return _Rounded(base, scale, *zero, tile=tuple(tile), dtype=dtype)


def rounded(base: Tensor, scale: Tensor, zero: Tensor | None, dtype: DType, axis: int, block: int) -> Tensor | None:
    """The codes that ``QuantizeLinear`` makes of constant floats; None where scales do not fit them."""
    if not dtype.is_integer or not 2 <= dtype.bits <= 8 or not base.type.dtype.is_float:
        return None
    seen = coded(_shaped_like(base, dtype), scale, zero, axis, block)
    if isinstance(seen, str):
        return None
    parts = seen.given
    more = () if parts.zero is None else (parts.zero,)
    return rounded_codes(base, parts.scale, *more, tile=seen.tile, dtype=dtype.name)


def _shaped_like(base: Tensor, dtype: DType) -> Tensor:
    """Codes of the shape of a tensor, of which only the type is looked at."""
    return _Rounded(base, base, tile=(1,) * len(base.shape), dtype=dtype.name)


MOVING = ("transposed", "reshaped", "cast", "row_slice", "row_gather", "swapped")
"""Recipes that give numbers of one tensor in another order or type."""


def decoded_from(tensor: Tensor) -> Tensor | None:
    """The codes that a tensor is the decoded numbers of, in whatever order; None when it is made otherwise.

    Codes that are places in a table are those places, and not what the table holds.
    """
    while tensor.recipe()[0] in MOVING:
        tensor = tensor.inputs[0]
    if isinstance(tensor, GgmlBlocks):
        return tensor.parts()[0]
    if not isinstance(tensor, _Decoded):
        return None
    codes = tensor.base
    while codes.recipe()[0] in (*MOVING, "looked_up"):
        codes = codes.inputs[0]
    return codes


def decoded_parts(tensor: Tensor) -> tuple[Tensor, Tensor, Tensor | None, tuple[int, ...], bool]:
    """Codes, scales, zeros, tile and whether zeros are real, of what `decoded` made."""
    assert isinstance(tensor, _Decoded)
    return tensor.base, tensor.scale, tensor.zero, tensor.tile, tensor.affine


def unsigned_type(bits: int) -> DType:
    """The unsigned integer type of a width of 2 to 8 bits."""
    return DTYPES[f"u{bits}"]


__all__ = [
    "Coded",
    "Factor",
    "Parts",
    "coded",
    "decoded",
    "decoded_from",
    "decoded_parts",
    "in_tiles",
    "repeated",
    "rounded",
    "rounded_codes",
    "signed_codes",
    "tiled",
    "unsigned_type",
    "wide_codes",
]
