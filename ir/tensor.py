"""Lazy tensors: type and place are free, bytes are read in row ranges, derived tensors are recipes over others.

A checkpoint is larger than memory, so nothing above this module asks for a whole weight: it asks for rows. Every tensor
can say how it was made (`Tensor.recipe`), which is how graphs are printed, parsed, compared and sent to workers.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import stat
import threading
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ir.diag import LadingError
from ir.types import BOOL, DTYPES, F16, F32, F64, I64, DType, TensorType, dtype_of_numpy

if TYPE_CHECKING:
    from ir.quant import QuantizedWeight

PIECE_BYTES = 4 << 20
SLAB_BYTES = 16 << 20
RECIPES: dict[str, Callable[..., Tensor]] = {}
"""Name of a recipe -> function that rebuilds the tensor from the arguments `Tensor.recipe` gives. Open to plugins."""


class Tensor(ABC):
    """An array that is not there yet.

    Attributes:
        type: element type and static shape.
        loc: where the numbers come from, such as ``model.safetensors:model.norm.weight``; the same for equal tensors.
        quantized: the shared recipe when the tensor is one part of a quantized weight, else None.
    """

    quantized: QuantizedWeight | None = None

    def __init__(self, type: TensorType, loc: str) -> None:
        if not type.is_static:
            raise ValueError(f"a tensor has a static shape, not {type}")
        self.type = type
        self.loc = loc

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.type} {self.loc}>"

    @property
    def nbytes(self) -> int:
        """Packed size in bytes (sub-byte types packed)."""
        return self.type.nbytes  # type: ignore[return-value]

    @property
    def row_count(self) -> int:
        """Length of axis 0; 1 for rank 0."""
        return self.type.shape[0] if self.type.shape else 1  # type: ignore[index,return-value]

    @property
    def row_size(self) -> int:
        """Elements of one row."""
        return math.prod(self.type.shape[1:])  # type: ignore[index,arg-type]

    @abstractmethod
    def rows(self, start: int, stop: int) -> np.ndarray:
        """Elements ``[stop - start, *shape[1:]]`` of the rows `start` to `stop`; the caller must not write to them."""

    @abstractmethod
    def recipe(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """Name, arguments and keywords with which `RECIPES` rebuilds an equal tensor.

        Arguments are tensors, numbers, strings, booleans or tuples of numbers or strings.
        """

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The tensors among the arguments of the recipe."""
        return tuple(item for item in self.recipe()[1] if isinstance(item, Tensor))

    def elements(self, start: int, stop: int) -> np.ndarray:
        """A range of the row-major elements as a vector."""
        if start >= stop:
            return np.empty(0, self.type.dtype.numpy)
        width = self.row_size
        first = start // width
        flat = self.rows(first, -(-stop // width)).reshape(-1)
        return flat[start - first * width : stop - first * width]

    def pieces(self, budget: int = PIECE_BYTES) -> Iterator[tuple[int, int, np.ndarray]]:
        """All rows in order as ``(start, stop, rows)`` of about `budget` bytes, each checked against the type."""
        count = self.row_count
        step = max(1, budget // max(1, self.row_size * self.type.dtype.numpy.itemsize))
        for start in range(0, count, step):
            stop = min(count, start + step)
            yield start, stop, self._checked(self.rows(start, stop), start, stop)

    def load(self) -> np.ndarray:
        """The whole array.

        Raises:
            LadingError: T250 when the rows do not have the declared type.
        """
        out = np.empty(self.type.shape, self.type.dtype.numpy)  # type: ignore[arg-type]
        table = out.reshape((self.row_count, *self.type.shape[1:]))  # type: ignore[index]
        for start, stop, rows in self.pieces():
            table[start:stop] = rows
        return out

    def digest(self) -> str:
        """SHA-256 (hex) of the type and the packed little-endian bytes; of the recipe and its sources when derived."""
        return self._digest

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the recipe, with files named and not read and inline data by value."""
        return self._fingerprint

    def release(self) -> None:
        """Give back what is held open or cached below this tensor; reading it again takes it up again."""
        for item in self.inputs:
            item.release()

    @cached_property
    def _digest(self) -> str:
        return _combine(self.recipe(), Tensor.digest)

    @cached_property
    def _fingerprint(self) -> str:
        return _combine(self.recipe(), Tensor.fingerprint)

    def _checked(self, rows: np.ndarray, start: int, stop: int) -> np.ndarray:
        shape = (stop - start, *self.type.shape[1:])  # type: ignore[index]
        if rows.shape == shape and rows.dtype == self.type.dtype.numpy:
            return rows
        found = f"{rows.dtype}{list(rows.shape)}"
        message = f"recipe {self.recipe()[0]!r} declares {self.type} but rows {start} to {stop} are {found}"
        raise LadingError("T250", message, where=self.loc)

    def _bounds(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.row_count:
            raise IndexError(f"rows {start} to {stop} of {self.type}")


def _combine(recipe: tuple[str, tuple[Any, ...], dict[str, Any]], identify: Callable[[Tensor], str]) -> str:
    def plain(item: Any) -> list[str]:
        return ["tensor", identify(item)] if isinstance(item, Tensor) else [type(item).__name__, repr(item)]

    name, args, kwargs = recipe
    parts = [name, [plain(item) for item in args], {key: plain(item) for key, item in kwargs.items()}]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def same_tensor(a: Tensor, b: Tensor) -> bool:
    """True when both have the same type and recipe: files compare by path and place, inline data by value."""
    return a is b or (a.type == b.type and a.fingerprint() == b.fingerprint())


def find_source(tensor: Tensor) -> list[FileTensor]:
    """The file tensors below a recipe, each once, in order of first use."""
    found: dict[str, FileTensor] = {}
    pending = [tensor]
    while pending:
        item = pending.pop()
        if isinstance(item, FileTensor):
            found.setdefault(item.fingerprint(), item)
        pending += reversed(item.inputs)
    return list(found.values())


def register_recipe(name: str, build: Callable[..., Tensor]) -> None:
    """Make a recipe known to the text form; a name taken twice is a mistake of the author."""
    if RECIPES.setdefault(name, build) is not build:
        raise ValueError(f"the tensor recipe {name!r} is taken")


# --- inline data ------------------------------------------------------------------------------------------------------


class InlineTensor(Tensor):
    """An array in memory. It is shared, not copied: do not write to it afterwards."""

    def __init__(self, array: Any, dtype: DType | str | None = None, loc: str = "inline") -> None:
        """Hold `array`; `dtype` names the element type where numpy has none of its own (``i3``, ``i5``...)."""
        array = np.asarray(array, order="C")
        if array.dtype.kind in "US":
            array = array.astype(object)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        kind = _dtype(dtype) if dtype is not None else dtype_of_numpy(array.dtype)
        if array.dtype != kind.numpy or (kind.is_integer and kind.bits < 8):
            array = _fit(array, kind)
        self._array = array.view()
        self._array.flags.writeable = False
        super().__init__(TensorType(kind, array.shape), loc)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """None."""
        return ()

    def rows(self, start: int, stop: int) -> np.ndarray:
        """A view of the array."""
        self._bounds(start, stop)
        return self._array.reshape((self.row_count, *self.type.shape[1:]))[start:stop]  # type: ignore[index]

    def elements(self, start: int, stop: int) -> np.ndarray:
        """A view of the array."""
        return self._array.reshape(-1)[start:stop]

    def load(self) -> np.ndarray:
        """The array itself, read-only."""
        return self._array

    def recipe(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """The data as base64 of the packed little-endian bytes."""
        data = base64.b64encode(bytes_of(self._array, self.type.dtype)).decode()
        return "inline", (data,), {"dtype": self.type.dtype.name, "shape": self.type.shape}

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(f"{self.type}\n".encode() + bytes_of(self._array, self.type.dtype)).hexdigest()

    @cached_property
    def _fingerprint(self) -> str:
        return "inline:" + self._digest


def _fit(array: np.ndarray, kind: DType) -> np.ndarray:
    if kind.is_integer and array.size:
        low, high = int(array.min()), int(array.max())
        if low < kind.low or high > kind.high:
            raise LadingError("T251", f"values {low} to {high} do not fit {kind}")
    return array.astype(kind.numpy, copy=False)


def _dtype(dtype: DType | str) -> DType:
    return DTYPES[dtype] if isinstance(dtype, str) else dtype


def _inline(data: str, dtype: str, shape: Sequence[int]) -> InlineTensor:
    kind = _dtype(dtype)
    raw = base64.b64decode(data)
    if kind.kind == "s":
        return InlineTensor(np.array(json.loads(raw), object).reshape(shape), kind)
    return InlineTensor(array_of(raw, kind, math.prod(shape)).reshape(shape), kind)


def bytes_of(array: np.ndarray, dtype: DType) -> bytes:
    """Little-endian bytes as files hold them: types below one byte packed, the first element in the lowest bits.

    Widths that do not divide a byte take one byte per element; strings become a JSON list.
    """
    if dtype.kind == "s":
        return json.dumps([str(item) for item in array.reshape(-1)]).encode()
    if dtype.bits not in (2, 4):
        return np.ascontiguousarray(array).tobytes()
    per_byte = 8 // dtype.bits
    codes = np.ascontiguousarray(array).reshape(-1).view(np.uint8) & ((1 << dtype.bits) - 1)
    codes = np.concatenate([codes, np.zeros(-codes.size % per_byte, np.uint8)]).reshape(-1, per_byte)
    packed = np.zeros(len(codes), np.uint8)
    for place in range(per_byte):
        packed |= codes[:, place] << (place * dtype.bits)
    return packed.tobytes()


def array_of(raw: bytes | np.ndarray, dtype: DType, count: int, skip: int = 0) -> np.ndarray:
    """`count` elements from little-endian bytes: the inverse of `bytes_of`, after `skip` elements of the first byte."""
    data = np.frombuffer(raw, np.uint8)
    if dtype == BOOL:
        return data[:count] != 0
    if dtype.bits not in (2, 4):
        return data[: count * dtype.numpy.itemsize].view(dtype.numpy)
    mask = (1 << dtype.bits) - 1
    codes = np.stack([(data >> shift) & mask for shift in range(0, 8, dtype.bits)], axis=1).reshape(-1)
    codes = np.ascontiguousarray(codes[skip : skip + count])
    return codes.view(dtype.numpy)


# --- files ------------------------------------------------------------------------------------------------------------


class _OpenFile:
    """A descriptor that closes itself when nobody uses it any more."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self.fd)
        found = os.fstat(self.fd)
        self.identity = (found.st_dev, found.st_ino)
        self.lock = threading.Lock()

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill a buffer from an offset; returns how many bytes there were."""
        done = 0
        while done < len(view):
            got = self._read_some(view[done : done + (1 << 30)], offset + done)
            if got == 0:
                break
            done += got
        return done

    def _read_some(self, view: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self.fd, [view], offset)
        with self.lock:
            os.lseek(self.fd, offset, os.SEEK_SET)
            data = os.read(self.fd, len(view))
        view[: len(data)] = data
        return len(data)


class Files:
    """A small cache of open files, shared by all threads.

    Rows are read into fresh buffers and not mapped: as fast as a mapping on a warm page cache, resident memory stays at
    the size of the pieces, and a file cut short while it is read is an error instead of a signal.
    """

    def __init__(self, limit: int = 32) -> None:
        self._open: OrderedDict[str, _OpenFile] = OrderedDict()
        self._lock = threading.Lock()
        self._limit = limit

    def read(self, path: str, offset: int, count: int) -> np.ndarray:
        """`count` bytes at an offset as a new uint8 vector.

        Raises:
            LadingError: T252 when the file cannot be read, T253 when it ends before the range does.
        """
        out = np.empty(count, np.uint8)
        try:
            done = self._get(path).read_into(memoryview(out), offset)
        except OSError as error:
            raise LadingError("T252", f"cannot read: {error.strerror or error}", where=path) from error
        if done < count:
            message = f"the file ends {count - done} bytes before the {count} bytes at offset {offset}"
            raise LadingError("T253", message, where=path, hint="the file is truncated; fetch it again")
        return out

    def forget(self, path: str) -> None:
        """Close a file as soon as running reads are done."""
        with self._lock:
            self._open.pop(path, None)

    def clear(self) -> None:
        """Close every file as soon as running reads are done."""
        with self._lock:
            self._open.clear()

    def paths(self) -> list[str]:
        """Paths that are open, least recently used first."""
        with self._lock:
            return list(self._open)

    def _get(self, path: str) -> _OpenFile:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise LadingError("T252", "cannot read: not a regular file", where=path)
        with self._lock:
            held = self._open.pop(path, None)
            if held is None or held.identity != (found.st_dev, found.st_ino):
                held = _OpenFile(path)
            self._open[path] = held
            while len(self._open) > self._limit:
                self._open.popitem(last=False)
        return held


FILES = Files()


class FileTensor(Tensor):
    """Raw little-endian row-major bytes in a file; 2- and 4-bit types have the first element in the lowest bits.

    Reading is safe from any number of threads.
    """

    def __init__(self, path: str | os.PathLike[str], offset: int, type: TensorType, key: str = "") -> None:
        self.path = os.fspath(path)
        self.offset = offset
        self.key = key
        if type.dtype.bits not in (2, 4) and type.dtype.bits != 8 * type.dtype.numpy.itemsize:
            raise ValueError(f"{type.dtype} has no layout in files")
        super().__init__(type, f"{os.path.basename(self.path)}:{key or offset}")

    def rows(self, start: int, stop: int) -> np.ndarray:
        """A new array.

        Raises:
            LadingError: T252, T253 when the file cannot be read or is too short.
        """
        self._bounds(start, stop)
        width = self.row_size
        return self.elements(start * width, stop * width).reshape((stop - start, *self.type.shape[1:]))

    def elements(self, start: int, stop: int) -> np.ndarray:
        """A new vector; errors as for `rows`."""
        bits = self.type.dtype.bits
        first = start * bits // 8
        raw = FILES.read(self.path, self.offset + first, (stop * bits + 7) // 8 - first)
        return array_of(raw, self.type.dtype, stop - start, start - first * 8 // bits)

    def recipe(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """Path, key and layout."""
        layout = {"offset": self.offset, "dtype": self.type.dtype.name, "shape": self.type.shape}
        return "file", (self.path, self.key), layout

    def release(self) -> None:
        """Close the file; other tensors of it open it again when they are read."""
        FILES.forget(self.path)

    @cached_property
    def _digest(self) -> str:
        state = hashlib.sha256(f"{self.type}\n".encode())
        for start in range(0, self.nbytes, PIECE_BYTES):
            state.update(FILES.read(self.path, self.offset + start, min(PIECE_BYTES, self.nbytes - start)))
        return state.hexdigest()

    @cached_property
    def _fingerprint(self) -> str:
        place = [os.path.abspath(self.path), self.key, self.offset, str(self.type)]
        return "file:" + hashlib.sha256(json.dumps(place).encode()).hexdigest()


def _file(path: str, key: str, offset: int, dtype: str, shape: Sequence[int]) -> FileTensor:
    return FileTensor(path, offset, TensorType(_dtype(dtype), tuple(shape)), key)


# --- recipes ----------------------------------------------------------------------------------------------------------


class Derived(Tensor):
    """Base of recipes: arguments are kept as given and say everything about the tensor."""

    name: ClassVar[str]

    def __init__(self, type: TensorType, *args: Any, **kwargs: Any) -> None:
        places = list(dict.fromkeys(item.loc for item in args if isinstance(item, Tensor) and item.loc != "inline"))
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        super().__init__(type, (places[0] if places else "inline") + more)
        self._recipe = (self.name, args, kwargs)

    @property
    def base(self) -> Tensor:
        """The first argument."""
        return self._recipe[1][0]

    def recipe(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """Name and arguments as given."""
        return self._recipe

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, self._recipe


def _rebuild(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return RECIPES[name](*args, **kwargs)


def _refuse(name: str, why: str, *tensors: Tensor) -> LadingError:
    return LadingError("T254", f"{name}: {why}", where="\n".join(f"{item.loc}: {item.type}" for item in tensors[:4]))


class _Transposed(Derived):
    """Columns of the base as rows. A slab of rows is kept, since each one needs a pass over the whole base."""

    name = "transposed"

    def __init__(self, base: Tensor) -> None:
        rows, columns = base.type.shape  # type: ignore[misc]
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
        raise _refuse("transposed", "only matrices have a transpose here", base)
    return base.base if isinstance(base, _Transposed) else _Transposed(base)


class _RowSlice(Derived):
    name = "row_slice"

    def __init__(self, base: Tensor, low: int, high: int) -> None:
        super().__init__(TensorType(base.type.dtype, (high - low, *base.type.shape[1:])), base, low, high)
        self.low = low
        self.high = high

    def rows(self, start: int, stop: int) -> np.ndarray:
        self._bounds(start, stop)
        return self.base.rows(self.low + start, self.low + stop)

    def elements(self, start: int, stop: int) -> np.ndarray:
        skip = self.low * self.row_size
        return self.base.elements(skip + start, skip + stop)


def row_slice(base: Tensor, low: int, high: int) -> Tensor:
    """Rows `low` to `high`, excluding the latter."""
    if not base.type.shape or not 0 <= low <= high <= base.row_count:
        raise _refuse("row_slice", f"there are no rows {low} to {high}", base)
    if (low, high) == (0, base.row_count):
        return base
    if isinstance(base, _RowSlice):
        return _RowSlice(base.base, base.low + low, base.low + high)
    return _RowSlice(base, low, high)


class _RowConcat(Derived):
    name = "row_concat"

    def __init__(self, *parts: Tensor) -> None:
        self.starts = np.concatenate([[0], np.cumsum([part.row_count for part in parts])])
        super().__init__(TensorType(parts[0].type.dtype, (int(self.starts[-1]), *parts[0].type.shape[1:])), *parts)

    def rows(self, start: int, stop: int) -> np.ndarray:
        self._bounds(start, stop)
        parts = self._recipe[1]
        first = int(np.searchsorted(self.starts, start, "right")) - 1
        found = []
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
        if not item.type.shape or (item.type.dtype, item.type.shape[1:]) != (first.type.dtype, first.type.shape[1:]):
            raise _refuse("row_concat", "element types or row shapes differ", first, item)
        for part in item.recipe()[1] if isinstance(item, _RowConcat) else (item,):
            if joined and _continues(joined[-1], part):
                joined[-1] = row_slice(part.base, joined[-1].low, part.high)  # type: ignore[attr-defined]
            elif part.row_count:
                joined.append(part)
    if len(joined) < 2:
        return joined[0] if joined else first
    return _RowConcat(*joined)


def _continues(last: Tensor, part: Tensor) -> bool:
    both = isinstance(last, _RowSlice) and isinstance(part, _RowSlice)
    return both and last.base is part.base and last.high == part.low  # type: ignore[attr-defined]


class _RowGather(Derived):
    name = "row_gather"

    def __init__(self, base: Tensor, index: Tensor) -> None:
        super().__init__(TensorType(base.type.dtype, (index.row_count, *base.type.shape[1:])), base, index)

    def rows(self, start: int, stop: int) -> np.ndarray:
        self._bounds(start, stop)
        index = self._recipe[1][1].load()[start:stop]
        out = np.empty((stop - start, *self.type.shape[1:]), self.type.dtype.numpy)
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
        raise _refuse("row_gather", "the index must be a vector of row numbers", base)
    if wanted.size and (int(wanted.min()) < 0 or int(wanted.max()) >= base.row_count):
        raise _refuse("row_gather", f"row numbers {wanted.min()} to {wanted.max()} are outside the tensor", base)
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
        raise _refuse("row_permute", "the order does not have every row exactly once", base)
    return row_gather(base, wanted)


class _Reshaped(Derived):
    name = "reshaped"

    def __init__(self, base: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__(TensorType(base.type.dtype, shape), base, shape)

    def rows(self, start: int, stop: int) -> np.ndarray:
        self._bounds(start, stop)
        width = self.row_size
        return self.base.elements(start * width, stop * width).reshape((stop - start, *self.type.shape[1:]))

    def elements(self, start: int, stop: int) -> np.ndarray:
        return self.base.elements(start, stop)


def reshaped(base: Tensor, shape: Sequence[int]) -> Tensor:
    """The same row-major elements under another shape; rows stay readable on their own."""
    wanted = tuple(int(size) for size in shape)
    base = base.base if isinstance(base, _Reshaped) else base
    if wanted == base.type.shape:
        return base
    if min(wanted, default=0) < 0 or math.prod(wanted) != base.type.size:
        raise _refuse("reshaped", f"{list(wanted)} has another number of elements", base)
    return _Reshaped(base, wanted)


class _Elementwise(Derived):
    """Recipes that change each element on its own."""

    def rows(self, start: int, stop: int) -> np.ndarray:
        self._bounds(start, stop)
        return self._apply(self.base.rows(start, stop))

    def elements(self, start: int, stop: int) -> np.ndarray:
        return self._apply(self.base.elements(start, stop))

    @abstractmethod
    def _apply(self, array: np.ndarray) -> np.ndarray: ...


class _Cast(_Elementwise):
    name = "cast"

    def __init__(self, base: Tensor, dtype: DType) -> None:
        super().__init__(TensorType(dtype, base.type.shape), base, dtype.name)

    def _apply(self, array: np.ndarray) -> np.ndarray:
        return convert(array, self.type.dtype, self.loc)


_EIGHT_BIT = frozenset({"f8e4m3fn", "f8e4m3fnuz", "f8e5m2", "f8e5m2fnuz", "f4e2m1"})
_HELD_EXACTLY = {
    "f16": _EIGHT_BIT,
    "bf16": _EIGHT_BIT,
    "f32": _EIGHT_BIT | {"f16", "bf16", "f8e8m0"},
    "f64": _EIGHT_BIT | {"f16", "bf16", "f8e8m0", "f32"},
}


def cast(base: Tensor, dtype: DType | str) -> Tensor:
    """Another float type, rounded to nearest even; floats, integers and booleans can be cast.

    A finite number that does not fit half precision is error T255 when it is read, not an infinity.
    """
    target = _dtype(dtype)
    if target == base.type.dtype:
        return base
    if not target.is_float or base.type.dtype.kind not in "fiub":
        raise _refuse("cast", f"{base.type.dtype} cannot be cast to {target}; only to a float type", base)
    if isinstance(base, _Cast) and base.base.type.dtype.name in _HELD_EXACTLY.get(base.type.dtype.name, ()):
        return cast(base.base, target)
    return _Cast(base, target)


def convert(array: np.ndarray, dtype: DType, loc: str = "") -> np.ndarray:
    """An array in a float type, bit for bit as numpy converts but faster; the array itself when it has the type."""
    if array.dtype == dtype.numpy:
        return array
    kind = dtype_of_numpy(array.dtype)
    if kind.is_float and kind.bits <= 8:
        return _code_table(kind.name, dtype.name)[array.view(np.uint8)]
    if kind == F16 and dtype == F32 and not _has_special(array):
        out = np.empty(array.shape, np.float32)
        widen_halves(array.view(np.int16), out)
        return out
    return _in_range(lambda: array.astype(dtype.numpy), dtype, loc)


def _in_range(compute: Callable[[], np.ndarray], dtype: DType, loc: str) -> np.ndarray:
    try:
        with np.errstate(over="raise", invalid="ignore"):
            return compute()
    except FloatingPointError as error:
        raise LadingError("T255", f"a value does not fit {dtype}", where=loc) from error


@lru_cache(maxsize=32)
def _code_table(source: str, target: str) -> np.ndarray:
    return np.arange(256, dtype=np.uint8).view(DTYPES[source].numpy).astype(DTYPES[target].numpy)


def _has_special(half: np.ndarray) -> bool:
    return bool(((half.view(np.uint16) & 0x7C00) == 0x7C00).any())


def widen_halves(bits: np.ndarray, out: np.ndarray) -> None:
    """Half precision (int16 bit patterns) to float32, exact for finite values; infinities and NaN come out finite.

    The exponent and mantissa are moved into place as integers and the bias corrected by one exact multiplication.
    """
    word = out.view(np.int32)
    np.copyto(word, bits)
    np.left_shift(word, 13, out=word)
    np.bitwise_and(word, np.int32(-0x70002000), out=word)
    np.multiply(out, np.float32(2.0**112), out=out)


class _Scaled(_Elementwise):
    name = "scaled"

    def __init__(self, base: Tensor, factor: float) -> None:
        super().__init__(base.type, base, factor)
        self.factor = _working(base).type(factor)

    def _apply(self, array: np.ndarray) -> np.ndarray:
        return _compute(np.multiply, array, self.factor, self)


class _Shifted(_Elementwise):
    name = "shifted"

    def __init__(self, base: Tensor, offset: float) -> None:
        super().__init__(base.type, base, offset)
        self.offset = _working(base).type(offset)

    def _apply(self, array: np.ndarray) -> np.ndarray:
        return _compute(np.add, array, self.offset, self)


def _working(base: Tensor) -> np.dtype:
    return np.dtype(np.float64 if base.type.dtype == F64 else np.float32)


def _compute(operation: np.ufunc, array: np.ndarray, other: Any, tensor: Derived) -> np.ndarray:
    wide = F64 if tensor.type.dtype == F64 else F32
    result = _in_range(lambda: operation(convert(array, wide), other), wide, tensor.loc)
    return convert(result, tensor.type.dtype, tensor.loc)


def _float_number(name: str, base: Tensor, number: float) -> float:
    with np.errstate(over="ignore"):
        usable = base.type.dtype.is_float and math.isfinite(_working(base).type(number))
    if not usable:
        raise _refuse(name, f"needs a float tensor and a finite number, not {number}", base)
    return float(number)


def scaled(base: Tensor, factor: float) -> Tensor:
    """Every element times a number, computed in float32 (float64 for f64) and rounded to the type of the base."""
    factor = _float_number("scaled", base, factor)
    return base if factor == 1.0 else _Scaled(base, factor)


def shifted(base: Tensor, offset: float) -> Tensor:
    """Every element plus a number, computed in float32 (float64 for f64) and rounded to the type of the base."""
    offset = _float_number("shifted", base, offset)
    return base if offset == 0.0 else _Shifted(base, offset)


class _Multiplied(Derived):
    name = "multiplied"

    def __init__(self, base: Tensor, vector: Tensor, axis: int) -> None:
        super().__init__(base.type, base, vector, axis)
        self.axis = axis

    def rows(self, start: int, stop: int) -> np.ndarray:
        self._bounds(start, stop)
        vector = self._recipe[1][1]
        factors = vector.rows(start, stop) if self.axis == 0 else vector.rows(0, vector.row_count)
        shape = [1] * len(self.type.shape)  # type: ignore[arg-type]
        shape[self.axis] = -1
        factors = factors.astype(_working(self.base)).reshape(shape)
        return _compute(np.multiply, self.base.rows(start, stop), factors, self)


def multiplied(base: Tensor, vector: Tensor, axis: int) -> Tensor:
    """Row i (axis 0) or column i (axis 1) times element i of a float vector; rounded as in `scaled`."""
    shape = base.type.shape
    if axis not in (0, 1) or len(shape) <= axis or vector.type.shape != (shape[axis],):  # type: ignore[arg-type,index]
        raise _refuse("multiplied", f"the vector does not run along axis {axis}", base, vector)
    if not base.type.dtype.is_float or not vector.type.dtype.is_float:
        raise _refuse("multiplied", "both must be float tensors", base, vector)
    return _Multiplied(base, vector, axis)


def _from_quant(name: str) -> Callable[..., Tensor]:
    def build(*args: Any, **kwargs: Any) -> Tensor:
        from ir import quant

        return getattr(quant, name)(*args, **kwargs)

    return build


def _stored_codes(*args: Any, **kwargs: Any) -> Tensor:
    from ir.packed import stored_codes

    return stored_codes(*args, **kwargs)


for _function in (transposed, row_slice, row_concat, row_gather, reshaped, cast, scaled, shifted, multiplied):
    register_recipe(_function.__name__, _function)
register_recipe("inline", _inline)
register_recipe("file", _file)
register_recipe("stored_codes", _stored_codes)
for _part in ("codes", "scale", "zero_point", "dequantized"):
    register_recipe(f"quantized_{_part}", _from_quant(f"rebuild_{_part}"))
