"""Recipes that move elements and leave them as they are: transposes, row ranges, gathers, other shapes."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from ir.base.types import I64, TensorType
from ir.tensor.base import Derived, Tensor, refuse
from ir.tensor.inline import InlineTensor

SLAB_BYTES = 16 << 20
LEAST_RANGE = 4096
"""Bytes of a part of a row, at least, for which the part alone is read and not the row."""
MOST_SPAN = 2
"""Rows for each that is picked which are read at once rather than run by run."""
TOGETHER = 64
"""Parts of rows that are turned together."""


class _Transposed(Derived):
    """Columns of the base as rows. A slab of rows is kept, since each one needs a pass over the whole base."""

    name = "transposed"

    def __init__(self, base: Tensor) -> None:
        rows, columns = base.shape
        super().__init__(TensorType(base.type.dtype, (columns, rows)), base)
        self._lock = threading.Lock()
        self._slabs: OrderedDict[int, np.ndarray] = OrderedDict()

    def rows(self, start: int, stop: int) -> np.ndarray:
        """A view of a slab of up to 16 MiB, of which two are held until `release`."""
        self._bounds(start, stop)
        if isinstance(self.base, InlineTensor):
            return self.base.load().T[start:stop]
        with self._lock:
            for first, slab in self._slabs.items():
                if first <= start and stop <= first + len(slab):
                    return slab[start - first : stop - first]
            step = SLAB_BYTES // max(1, self.row_size * self.type.dtype.numpy.itemsize)
            slab = self._columns(start, max(stop, min(self.row_count, start + step)))
            self._slabs[start] = slab
            while len(self._slabs) > 2:
                self._slabs.popitem(last=False)
        return slab[: stop - start]

    def _columns(self, start: int, stop: int) -> np.ndarray:
        out = np.empty((stop - start, self.row_size), self.type.dtype.numpy)
        width = self.row_count
        if self.base.ranged and stop - start < width and self.type.dtype.nbytes(stop - start) >= LEAST_RANGE:
            for low in range(0, self.row_size, TOGETHER):
                high = min(self.row_size, low + TOGETHER)
                parts = [self.base.elements(row * width + start, row * width + stop) for row in range(low, high)]
                out[:, low:high] = np.stack(parts).T
            return out
        for low, high, rows in self.base.pieces(1 << 20):
            out[:, low:high] = rows[:, start:stop].T
        return out

    def release(self) -> None:
        """Drop the slabs and close what is below."""
        with self._lock:
            self._slabs.clear()
        super().release()


def transposed(base: Tensor) -> Tensor:
    """The transpose of a matrix; the transpose of a transpose is the tensor itself."""
    if base.type.rank != 2:
        raise refuse("transposed", "only matrices have a transpose here", base)
    return base.base if isinstance(base, _Transposed) else _Transposed(base)


class _RowSlice(Derived):
    name = "row_slice"

    def __init__(self, base: Tensor, low: int, high: int) -> None:
        super().__init__(TensorType(base.type.dtype, (high - low, *base.shape[1:])), base, low, high)
        self.low = low
        self.high = high

    def continues(self, other: _RowSlice) -> bool:
        """True when these rows follow right after the other ones."""
        return other.base is self.base and other.high == self.low

    def rows(self, start: int, stop: int) -> np.ndarray:
        self._bounds(start, stop)
        return self.base.rows(self.low + start, self.low + stop)

    def elements(self, start: int, stop: int) -> np.ndarray:
        skip = self.low * self.row_size
        return self.base.elements(skip + start, skip + stop)


def row_slice(base: Tensor, low: int, high: int) -> Tensor:
    """Rows `low` to `high`, excluding the latter."""
    if not base.type.shape or not 0 <= low <= high <= base.row_count:
        raise refuse("row_slice", f"there are no rows {low} to {high}", base)
    if (low, high) == (0, base.row_count):
        return base
    if isinstance(base, _RowSlice):
        return _RowSlice(base.base, base.low + low, base.low + high)
    if isinstance(base, _Swapped):
        return swapped(row_slice(base.base, low, high))
    if isinstance(base, _Reshaped) and (whole := base.whole_rows(low, high)) is not None:
        return reshaped(row_slice(base.base, *whole), (high - low, *base.shape[1:]))
    return _RowSlice(base, low, high)


class _ColumnSlice(Derived):
    name = "column_slice"

    def __init__(self, base: Tensor, low: int, high: int) -> None:
        super().__init__(TensorType(base.type.dtype, (base.row_count, high - low)), base, low, high)
        self.low = low
        self.high = high

    def rows(self, start: int, stop: int) -> np.ndarray:
        self._bounds(start, stop)
        return np.ascontiguousarray(self.base.rows(start, stop)[:, self.low : self.high])


def column_slice(base: Tensor, low: int, high: int) -> Tensor:
    """Columns `low` to `high` of a matrix, excluding the latter."""
    if base.type.rank != 2 or not 0 <= low <= high <= base.row_size:
        raise refuse("column_slice", f"there are no columns {low} to {high}", base)
    return base if (low, high) == (0, base.row_size) else _ColumnSlice(base, low, high)


class _RowConcat(Derived):
    name = "row_concat"

    def __init__(self, *parts: Tensor) -> None:
        self.starts = np.concatenate([[0], np.cumsum([part.row_count for part in parts])])
        super().__init__(TensorType(parts[0].type.dtype, (int(self.starts[-1]), *parts[0].shape[1:])), *parts)

    def rows(self, start: int, stop: int) -> np.ndarray:
        self._bounds(start, stop)
        parts = self._recipe[1]
        first = int(np.searchsorted(self.starts, start, "right")) - 1
        found: list[np.ndarray] = []
        for index in range(min(first, len(parts) - 1), len(parts)):
            offset = int(self.starts[index])
            low, high = max(start - offset, 0), min(stop - offset, parts[index].row_count)
            if low < high or not found:
                found.append(parts[index].rows(low, max(low, high)))
            if stop - offset <= parts[index].row_count:
                break
        return found[0] if len(found) == 1 else np.concatenate(found)


def row_concat(parts: Sequence[Tensor] | Tensor, *more: Tensor) -> Tensor:
    """Tensors one below the other: equal element type and equal shapes but for axis 0."""
    given = [parts, *more] if isinstance(parts, Tensor) else [*parts, *more]
    if not given:
        raise ValueError("row_concat needs a tensor")
    first = given[0]
    joined: list[Tensor] = []
    for item in given:
        if not item.shape or (item.type.dtype, item.shape[1:]) != (first.type.dtype, first.shape[1:]):
            raise refuse("row_concat", "element types or row shapes differ", first, item)
        for part in item.recipe()[1] if isinstance(item, _RowConcat) else (item,):
            last = joined[-1] if joined else None
            if isinstance(part, _RowSlice) and isinstance(last, _RowSlice) and part.continues(last):
                joined[-1] = row_slice(part.base, last.low, part.high)
            elif part.row_count:
                joined.append(part)
    if len(joined) < 2:
        return joined[0] if joined else first
    return _RowConcat(*joined)


class _RowGather(Derived):
    name = "row_gather"

    def __init__(self, base: Tensor, index: Tensor) -> None:
        super().__init__(TensorType(base.type.dtype, (index.row_count, *base.shape[1:])), base, index)

    def rows(self, start: int, stop: int) -> np.ndarray:
        self._bounds(start, stop)
        index = self._recipe[1][1].load()[start:stop]
        if index.size > 1:
            low, high = int(index.min()), int(index.max()) + 1
            if high - low <= MOST_SPAN * index.size:
                return self.base.rows(low, high)[index - low]
        out = np.empty((stop - start, *self.shape[1:]), self.type.dtype.numpy)
        ends = [*(np.flatnonzero(np.diff(index) != 1) + 1).tolist(), len(index)]
        low = 0
        for high in ends:
            if low < high:
                out[low:high] = self.base.rows(int(index[low]), int(index[low]) + high - low)
            low = high
        return out


def row_gather(base: Tensor, index: Tensor | Sequence[int] | np.ndarray) -> Tensor:
    """Row ``index[i]`` of the base as row i; rows may repeat. Runs of neighbouring rows are read at once."""
    wanted = np.asarray(index.load() if isinstance(index, Tensor) else index)
    wanted = wanted.astype(np.int64) if wanted.size == 0 else wanted
    if wanted.ndim != 1 or wanted.dtype.kind not in "iu" or not base.type.shape:
        raise refuse("row_gather", "the index must be a vector of row numbers", base)
    if wanted.size and (int(wanted.min()) < 0 or int(wanted.max()) >= base.row_count):
        raise refuse("row_gather", f"row numbers {wanted.min()} to {wanted.max()} are outside the tensor", base)
    wanted = wanted.astype(np.int64)
    if isinstance(base, _RowGather):
        base, wanted = base.base, base.recipe()[1][1].load()[wanted]
    if wanted.size and bool((np.diff(wanted) == 1).all()):
        return row_slice(base, int(wanted[0]), int(wanted[-1]) + 1)
    return _RowGather(base, InlineTensor(wanted, I64))


def row_permute(base: Tensor, order: Tensor | Sequence[int] | np.ndarray) -> Tensor:
    """`row_gather` with an order that has every row exactly once."""
    wanted = np.asarray(order.load() if isinstance(order, Tensor) else order)
    if wanted.shape != (base.row_count,) or not np.array_equal(np.sort(wanted), np.arange(base.row_count)):
        raise refuse("row_permute", "the order does not have every row exactly once", base)
    return row_gather(base, wanted)


class _GroupsOf(Derived):
    name = "groups_of"

    def __init__(self, base: Tensor, groups: int) -> None:
        super().__init__(TensorType(I64, base.type.shape), base, groups)
        self.groups = groups

    def rows(self, start: int, stop: int) -> np.ndarray:
        """See `groups_of`.

        Raises:
            LadingError: T254 the index names a group that is not there.
        """
        self._bounds(start, stop)
        places = self.base.load().astype(np.int64)
        if not places.any():
            places = np.arange(len(places)) // -(-len(places) // self.groups)
        if places.size and not 0 <= int(places.min()) <= int(places.max()) < self.groups:
            message = f"groups {places.min()} to {places.max()} are not among {self.groups}"
            raise refuse("groups_of", message, self.base)
        return places[start:stop]


def groups_of(base: Tensor, groups: int) -> Tensor:
    """i64[n]: the group of each element; a vector of zeros stands for groups of equal length in order."""
    if base.type.rank != 1 or not base.type.dtype.is_integer or groups < 1:
        raise refuse("groups_of", "the group of each element is a vector of numbers", base)
    return _GroupsOf(base, groups)


class _ColumnGather(Derived):
    name = "column_gather"

    def __init__(self, base: Tensor, index: Tensor) -> None:
        super().__init__(TensorType(base.type.dtype, (base.row_count, index.row_count)), base, index)
        self.index = index

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows of the base with their columns picked.

        Raises:
            LadingError: T254 the index names a column that is not there.
        """
        self._bounds(start, stop)
        places = self.index.load()
        if places.size and not 0 <= int(places.min()) <= int(places.max()) < self.base.row_size:
            message = f"column numbers {places.min()} to {places.max()} are outside the tensor"
            raise refuse("column_gather", message, self.base, self.index)
        return self.base.rows(start, stop).take(places, axis=1)


def column_gather(base: Tensor, index: Tensor) -> Tensor:
    """Column ``index[i]`` of a matrix as column i; the index is read with the rows, and columns may repeat."""
    if base.type.rank != 2 or index.type.rank != 1 or not index.type.dtype.is_integer:
        raise refuse("column_gather", "the index must be a vector of column numbers of a matrix", base, index)
    return _ColumnGather(base, index)


class _Swapped(Derived):
    name = "swapped"

    def __init__(self, base: Tensor) -> None:
        first, rows, columns = base.shape
        super().__init__(TensorType(base.type.dtype, (first, columns, rows)), base)

    def rows(self, start: int, stop: int) -> np.ndarray:
        self._bounds(start, stop)
        return np.ascontiguousarray(self.base.rows(start, stop).swapaxes(1, 2))


def swapped(base: Tensor) -> Tensor:
    """Each matrix of a stack ``[n, rows, columns]`` transposed."""
    if base.type.rank != 3:
        raise refuse("swapped", "only a stack of matrices has transposes here", base)
    return base.base if isinstance(base, _Swapped) else _Swapped(base)


class _Reshaped(Derived):
    name = "reshaped"

    def __init__(self, base: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__(TensorType(base.type.dtype, shape), base, shape)

    def whole_rows(self, low: int, high: int) -> tuple[int, int] | None:
        """The rows of the base that rows `low` to `high` are made of, where those are whole ones."""
        width, of_base = self.row_size, self.base.row_size
        if not self.base.type.shape or not of_base or low * width % of_base or high * width % of_base:
            return None
        return low * width // of_base, high * width // of_base

    @property
    def ranged(self) -> bool:
        """As the base."""
        return self.base.ranged

    def rows(self, start: int, stop: int) -> np.ndarray:
        self._bounds(start, stop)
        width = self.row_size
        return self.base.elements(start * width, stop * width).reshape((stop - start, *self.shape[1:]))

    def elements(self, start: int, stop: int) -> np.ndarray:
        return self.base.elements(start, stop)


def reshaped(base: Tensor, shape: Sequence[int]) -> Tensor:
    """The same row-major elements under another shape; rows stay readable on their own."""
    wanted = tuple(int(size) for size in shape)
    base = base.base if isinstance(base, _Reshaped) else base
    if wanted == base.type.shape:
        return base
    if min(wanted, default=0) < 0 or math.prod(wanted) != base.type.size:
        raise refuse("reshaped", f"{list(wanted)} has another number of elements", base)
    if isinstance(base, _Swapped) and base.row_count == 1 and wanted == base.shape[1:]:
        return transposed(reshaped(base.base, wanted[::-1]))
    return _Reshaped(base, wanted)
