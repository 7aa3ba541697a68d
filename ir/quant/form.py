"""The numbers that a block can have: scale and zero as they are stored, whatever a search would like them to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ir.quant.methods.base import Blocks, Scratch
from ir.quant.methods.rtn import block_numbers, require_finite, stored, stored_scale
from ir.quant.storage import Storage


class Numbers(NamedTuple):
    """Numbers of blocks as they are stored; all float32 of one shape.

    Attributes:
        scale: as stored.
        zero: real value of code 0, as the runtime computes it.
        point: integer zero point, None for other kinds of zero.
    """

    scale: np.ndarray
    zero: np.ndarray
    point: np.ndarray | None

    def rows(self, chosen: slice | np.ndarray) -> Numbers:
        """Those of some rows."""
        return self.each(lambda part: part[chosen])

    def each(self, change: Callable[[np.ndarray], np.ndarray]) -> Numbers:
        """These with every array changed."""
        return Numbers(change(self.scale), change(self.zero), None if self.point is None else change(self.point))

    def where(self, better: np.ndarray, other: Numbers) -> Numbers:
        """The numbers of `other` where `better`, these elsewhere."""
        point = None if self.point is None or other.point is None else np.where(better, other.point, self.point)
        return Numbers(np.where(better, other.scale, self.scale), np.where(better, other.zero, self.zero), point)


class Form:
    """What a storage lets the numbers of a block be."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.low = np.float32(storage.low)
        self.high = np.float32(storage.high)
        self.kind = "symmetric" if storage.symmetric else storage.zero

    def nearest(self, low: np.ndarray, high: np.ndarray, per_row: int) -> Numbers:
        """What round to nearest takes for blocks with these extremes, float32 vectors of blocks, `per_row` to a row.

        Raises:
            NotFinite, OutOfScale: as methods do.
        """
        if self.kind != "float":
            low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
        with np.errstate(over="ignore", invalid="ignore"):
            found = block_numbers(low, high, self.storage)
        require_finite(found, low, high, per_row)
        if found.zero is None:
            return Numbers(found.scale, np.zeros_like(found.scale), None)
        if self.kind == "int":
            return Numbers(found.scale, np.negative(found.zero * found.scale), found.zero)
        return Numbers(found.scale, found.zero, None)

    def project(self, scale: np.ndarray, zero: np.ndarray) -> Numbers:
        """The storable numbers next to wished ones; what cannot be stored comes out infinite."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            size = stored_scale(np.abs(scale).astype(np.float32, copy=False), self.storage)
            if self.kind == "symmetric":
                return Numbers(np.copysign(size, scale).astype(np.float32), np.zeros_like(size), None)
            if self.kind == "float":
                return Numbers(size, stored(zero.astype(np.float32, copy=False), self.storage), None)
            point = np.clip(np.rint(-zero / size), self.low, self.high).astype(np.float32, copy=False)
            return Numbers(size, np.negative(point * size), point)

    def round(self, values: np.ndarray, numbers: Numbers, out: np.ndarray) -> np.ndarray:
        """Nearest codes of values, as floats, in `out`; the numbers broadcast."""
        np.subtract(values, numbers.zero, out=out)
        np.divide(out, numbers.scale, out=out)
        np.rint(out, out=out)
        return np.clip(out, self.low, self.high, out=out)

    def rounded(self, rows: np.ndarray, numbers: Numbers, scratch: Scratch) -> Blocks:
        """Rows ``[n, length]`` by nearest codes for numbers ``[n, blocks]``."""
        if not rows.size:
            return self.blocks(np.zeros(rows.shape, np.int8), numbers)
        wide = rows.reshape(*numbers.scale.shape, -1)
        expanded = Numbers(numbers.scale[..., None], numbers.zero[..., None], None)
        codes = self.round(wide, expanded, scratch.take("codes", wide.shape, np.float32))
        return self.blocks(codes.reshape(rows.shape), numbers)

    def blocks(self, codes: np.ndarray, numbers: Numbers) -> Blocks:
        """Codes ``[n, length]`` of any type and numbers ``[n, blocks]`` as they are stored."""
        zero = None
        if self.kind == "int":
            assert numbers.point is not None
            zero = numbers.point.astype(np.int8)
        elif self.kind == "float":
            zero = np.ascontiguousarray(numbers.zero)
        return Blocks(codes.astype(np.int8, copy=False), np.ascontiguousarray(numbers.scale), zero)
