"""Tensors whose numbers are in files, read in ranges through a small cache of open descriptors."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import TensorType
from ir.tensor.base import PIECE_BYTES, Tensor
from ir.tensor.inline import array_of, dtype_named


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
            done = self._get(path).read_into(out.data, offset)
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

    @property
    def ranged(self) -> bool:
        """True."""
        return True

    def rows(self, start: int, stop: int) -> np.ndarray:
        """A new array.

        Raises:
            LadingError: T252, T253 when the file cannot be read or is too short.
        """
        self._bounds(start, stop)
        width = self.row_size
        return self.elements(start * width, stop * width).reshape((stop - start, *self.shape[1:]))

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
            state.update(FILES.read(self.path, self.offset + start, min(PIECE_BYTES, self.nbytes - start)).data)
        return state.hexdigest()

    @cached_property
    def _fingerprint(self) -> str:
        place = [os.path.abspath(self.path), self.key, self.offset, str(self.type)]
        return "file:" + hashlib.sha256(json.dumps(place).encode()).hexdigest()


def rebuild_file(path: str, key: str, offset: int, dtype: str, shape: Sequence[int]) -> FileTensor:
    return FileTensor(path, offset, TensorType(dtype_named(dtype), tuple(shape)), key)


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
