"""Results that took long, kept on disk: a weight is quantized once, and every later reader maps the file.

An entry of the store is named by a digest of everything its bytes follow from. Statistics that were read lately are held
in memory, since neighbouring weights share them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ir.base.diag import LadingError
from ir.base.store import Store
from ir.quant.held import Held
from ir.quant.methods.base import Blocks
from ir.quant.statistics.moments import Moments, MomentStore
from ir.quant.statistics.second_moments import damped
from ir.quant.storage import Storage

FORMAT = "quantized 2"
"""Part of every key; another one when files are laid out otherwise."""
CHUNK_WEIGHTS = 1 << 21
"""Weights that one thread quantizes at a time."""
HELD_MOMENTS = 128 << 20
"""Bytes of statistics held in memory; the last one read is held whatever its size."""

_MOMENTS: Held[Moments] = Held(HELD_MOMENTS, lambda item: item.nbytes)


def loaded_moments(key: str) -> Moments:
    """The statistics of a key, from memory when they were read lately.

    Raises:
        LadingError: Q430 they are not there or damaged.
    """
    found = MomentStore()
    return _MOMENTS.get((found.store, key), lambda: found.load(key))


_OUTPUTS: Held[np.ndarray] = Held(HELD_MOMENTS, lambda item: item.nbytes)


def loaded_outputs(key: str) -> np.ndarray:
    """float32[rows, rows], the damped second moments of gradients behind a run of rows; errors as for `loaded_moments`."""
    found = MomentStore()

    def load() -> np.ndarray:
        moments = found.load(key)
        return damped(moments.second, moments.tokens)

    return _OUTPUTS.get((found.store, key), load)


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
    text = json.dumps([FORMAT, source, how, version])
    return blake2b(text.encode(), digest_size=20).hexdigest()


def ranges_of(shape: Shape, workers: int, together: int = 0) -> list[tuple[int, int]]:
    """The rows of a weight in ranges that are quantized at a time, at least one for each worker.

    With `together`, as many rows as that are quantized at a time, whoever works.
    """
    step = together or max(1, min(CHUNK_WEIGHTS // max(1, shape.columns), -(-shape.rows // workers)))
    return [(start, min(shape.rows, start + step)) for start in range(0, shape.rows, step)]


def find_blocks(store: Store, key: str, shape: Shape) -> Blocks | None:
    """A whole quantized weight, mapped from disk; None when the store has no sound one.

    Args:
        store: where it is kept.
        key: from `result_key`.
        shape: sizes of the result.
    """
    kept = store.find(_name(key))
    if kept is None or kept.size != shape.nbytes:
        return None
    try:
        data = np.memmap(kept.path, np.uint8, "r", shape=(kept.size,))
    except (OSError, ValueError):
        return None
    return shape.split(np.asarray(data))


def make_blocks(store: Store, key: str, shape: Shape, fill: Callable[[Path], None]) -> Blocks:
    """Quantize a whole weight and keep it.

    Args:
        store, key, shape: as for `find_blocks`.
        fill: writes to a file of the right size that holds zeros.

    Raises:
        LadingError: Q441 no room or no permission, and what `fill` raises.
    """
    with store.holding():
        with store.put(_name(key), "Q441", "a quantized weight") as scratch:
            with scratch.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, shape.nbytes)
            fill(scratch)
        found = find_blocks(store, key, shape)
    if found is None:
        raise LadingError("Q441", "a quantized weight vanished or changed while it was written", where=_name(key))
    return found


def write_rows(path: Path, shape: Shape, start: int, part: Blocks) -> None:
    """Put quantized rows, from row `start` on, to their places in the file of the whole weight."""
    stop = start + len(part.codes)
    data = np.memmap(path, np.uint8, "r+", shape=(shape.nbytes,))
    out = shape.split(np.asarray(data))
    out.codes[start:stop] = part.codes
    out.scale[start:stop] = part.scale
    if out.zero is not None:
        out.zero[start:stop] = part.zero


def _name(key: str) -> str:
    return f"quantized/{key}"
