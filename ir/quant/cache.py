"""Results that took long, kept on disk: a weight is quantized once, and every later reader maps the file.

A file is named by a digest of everything its bytes follow from, appears complete or not at all, and carries a checksum;
one that is damaged is made again. Statistics that were read lately are held in memory, since neighbouring weights share
them.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from ir.base.cache import cache_folder, whole_file
from ir.base.diag import LadingError
from ir.quant.methods.base import Blocks
from ir.quant.statistics.moments import Moments, MomentStore
from ir.quant.storage import Storage

HEADER = 64
MAGIC = b"LADINGQ1"
CHUNK_WEIGHTS = 1 << 21
"""Weights that one thread quantizes at a time."""
HELD_MOMENTS = 256 << 20
"""Bytes of statistics held in memory; the last one read is held whatever its size."""

Item = TypeVar("Item")


class Held(Generic[Item]):
    """The things used last, up to a number of bytes; made once even when several threads ask at the same time."""

    def __init__(self, limit: int, size: Callable[[Item], int]) -> None:
        self._limit, self._size = limit, size
        self._items: OrderedDict[Any, Item] = OrderedDict()
        self._busy: dict[Any, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: Any, make: Callable[[], Item]) -> Item:
        """The thing of a key, made when it is not held; what `make` raises is passed on and nothing is held."""
        with self._lock:
            busy = self._busy.setdefault(key, threading.Lock())
        with busy:
            with self._lock:
                found = self._items.get(key)
                if found is not None:
                    self._items.move_to_end(key)
                    return found
            made = make()
            with self._lock:
                self._items[key] = made
                self._busy.pop(key, None)
                while len(self._items) > 1 and sum(map(self._size, self._items.values())) > self._limit:
                    self._items.popitem(last=False)
            return made

    def clear(self) -> None:
        """Hold nothing."""
        with self._lock:
            self._items.clear()


_MOMENTS: Held[Moments] = Held(HELD_MOMENTS, lambda item: item.second.nbytes)


def loaded_moments(key: str) -> Moments:
    """The statistics of a key, from memory when they were read lately.

    Raises:
        LadingError: Q430 they are not there or damaged.
    """
    store = MomentStore()
    return _MOMENTS.get((str(store.folder), key), lambda: store.load(key))


class Shape(NamedTuple):
    """Sizes of a quantized weight.

    Attributes:
        rows, columns, blocks: rows, input features and blocks of a row.
        zero: element type of the zeros, None when symmetric.
    """

    rows: int
    columns: int
    blocks: int
    zero: np.dtype | None

    @property
    def nbytes(self) -> int:
        """Bytes of the file without its header."""
        zero = self.zero.itemsize if self.zero is not None else 0
        return self.rows * (self.columns + self.blocks * (4 + zero))

    def split(self, data: np.ndarray) -> Blocks:
        """Views of the parts in bytes ``uint8[nbytes]``: scales, real zeros, codes, zero points."""
        count = self.rows * self.blocks
        scale, rest = data[: 4 * count].view(np.float32), data[4 * count :]
        zero = None
        if self.zero == np.float32:
            zero, rest = rest[: 4 * count].view(np.float32), rest[4 * count :]
        codes, rest = rest[: self.rows * self.columns].view(np.int8), rest[self.rows * self.columns :]
        if self.zero == np.int8:
            zero = rest.view(np.int8)
        table = (self.rows, self.blocks)
        return Blocks(
            codes.reshape(self.rows, self.columns),
            scale.reshape(table),
            zero.reshape(table) if zero is not None else None,
        )


def shape_of(rows: int, columns: int, storage: Storage) -> Shape:
    """Sizes of a matrix that is stored so."""
    zero = None if storage.symmetric else np.dtype(np.int8 if storage.zero == "int" else np.float32)
    return Shape(rows, columns, storage.blocks(columns), zero)


def result_key(source: str, storage: Storage, moments: str, version: int) -> str:
    """Name of a result: digest of the numbers quantized (`source` is theirs), how, and by which version of the method.

    `moments` is the key of the statistics, empty for none.
    """
    how = [storage.bits, storage.block, storage.symmetric, storage.zero, storage.method, storage.scale, moments]
    text = json.dumps([MAGIC.decode(), source, how, version])
    return blake2b(text.encode(), digest_size=20).hexdigest()


_WORKING = threading.Lock()


def kept_blocks(key: str, shape: Shape, quantize: Callable[[int, int], Blocks]) -> Blocks:
    """A whole quantized weight, mapped from disk; made first when no sound file is there.

    One weight is quantized at a time, which bounds memory, its rows in as many threads as there are processors. Who
    asks for one that is being made waits.

    Args:
        key: from `result_key`.
        shape: sizes of the result.
        quantize: gives a range of rows; called from several threads.

    Raises:
        LadingError: Q441 no room or no permission, and what `quantize` raises.
    """
    path = cache_folder() / "quantized" / f"{key}.bin"
    found = _read(path, shape)
    if found is not None:
        return shape.split(found)
    with _WORKING:
        found = _read(path, shape)
        if found is None:
            _write(path, shape, quantize)
            found = _read(path, shape)
    if found is None:
        raise LadingError("Q441", "a quantized weight changed while it was written", where=str(path))
    return shape.split(found)


def _read(path: Path, shape: Shape) -> np.ndarray | None:
    """The bytes of a result, or None when there is no such file or it is not whole."""
    try:
        data = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError):
        return None
    if data.size != HEADER + shape.nbytes or data[: len(MAGIC)].tobytes() != MAGIC:
        return None
    body = np.asarray(data)[HEADER:]
    return body if zlib.crc32(body) == int(data[8:12].view("<u4")[0]) else None


def _write(path: Path, shape: Shape, quantize: Callable[[int, int], Blocks]) -> None:
    with whole_file(path, "Q441", "a quantized weight") as scratch:
        with scratch.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, HEADER + shape.nbytes)
        data = np.memmap(scratch, np.uint8, "r+")
        body = np.asarray(data)[HEADER:]
        _fill(shape, shape.split(body), quantize)
        data[: len(MAGIC)] = np.frombuffer(MAGIC, np.uint8)
        data[8:12].view("<u4")[0] = zlib.crc32(body)
        data.flush()


def _fill(shape: Shape, out: Blocks, quantize: Callable[[int, int], Blocks]) -> None:
    processors = len(os.sched_getaffinity(0))
    step = max(1, min(CHUNK_WEIGHTS // max(1, shape.columns), -(-shape.rows // processors)))

    def work(start: int) -> None:
        stop = min(shape.rows, start + step)
        part = quantize(start, stop)
        out.codes[start:stop] = part.codes
        out.scale[start:stop] = part.scale
        if out.zero is not None:
            out.zero[start:stop] = part.zero

    starts = range(0, shape.rows, step)
    workers = min(len(starts), processors)
    if workers < 2:
        for start in starts:
            work(start)
        return
    with ThreadPoolExecutor(workers, "quantize") as executor:
        for done in [executor.submit(work, start) for start in starts]:
            done.result()
