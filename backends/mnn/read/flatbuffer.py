"""Read FlatBuffers without generated code, safe against files that lie.

Every offset is checked against the buffer before it is followed, and the amount of data read is bounded by the size of
the file, so that tables that point at each other cannot blow up. Format: https://flatbuffers.dev/internals/
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from ir.base.diag import LadingError

MAX_DEPTH = 64
"""Nesting of tables that is followed."""


class Buffer:
    """A FlatBuffer held in memory or mapped; `name` is for messages."""

    def __init__(self, data: bytes | memoryview, name: str = "") -> None:
        self.data = memoryview(data)
        self.size = self.data.nbytes
        self.name = name
        # A table takes four bytes at least and is pointed at once; nothing honest reads more than this.
        self._budget = 4 * self.size + 64

    def error(self, what: str) -> LadingError:
        """The error for a malformed buffer."""
        return LadingError("B710", f"not a readable FlatBuffer: {what}", where=self.name)

    def read(self, kind: str, at: int) -> int | float:
        """One little-endian number of `struct` kind `kind`."""
        size = struct.calcsize("<" + kind)
        if at < 0 or at + size > self.size:
            raise self.error(f"offset {at} lies outside the {self.size:,} bytes")
        return struct.unpack_from("<" + kind, self.data, at)[0]

    def spend(self, nbytes: int) -> None:
        """Count what is read; more than the file could hold means that parts of it are read again and again."""
        self._budget -= nbytes
        if self._budget < 0:
            raise self.error("its tables overlap")

    def root(self) -> Table:
        """The root table."""
        if self.size < 8:
            raise self.error(f"{self.size} bytes are too few")
        return Table(self, int(self.read("I", 0)), 0)


class Table:
    """One table: fields by slot number; an absent field is None or empty."""

    __slots__ = ("_buffer", "_depth", "_fields", "_pos", "_vtable")

    def __init__(self, buffer: Buffer, pos: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise buffer.error(f"tables are nested deeper than {MAX_DEPTH}")
        self._buffer, self._pos, self._depth = buffer, pos, depth
        self._vtable = pos - int(buffer.read("i", pos))
        size = int(buffer.read("H", self._vtable))
        if size < 4 or size % 2 or self._vtable + size > buffer.size:
            raise buffer.error(f"the field list at {self._vtable} has {size} bytes")
        self._fields = (size - 4) // 2
        buffer.spend(4)

    def place(self, slot: int) -> int:
        """Absolute position of a field, 0 when it is absent."""
        if slot >= self._fields:
            return 0
        offset = int(self._buffer.read("H", self._vtable + 4 + 2 * slot))
        return self._pos + offset if offset else 0

    def slots(self) -> Iterator[int]:
        """Numbers of the fields that are there."""
        return (slot for slot in range(self._fields) if self.place(slot))

    def number(self, slot: int, kind: str) -> int | float | None:
        """A number of `struct` kind `kind`, or None."""
        at = self.place(slot)
        return self._buffer.read(kind, at) if at else None

    @property
    def position(self) -> int:
        """Where the table stands."""
        return self._pos

    def target(self, slot: int) -> int:
        """Absolute position of what a field refers to, 0 when it is absent."""
        at = self.place(slot)
        return self._target(at) if at else 0

    def _target(self, at: int) -> int:
        offset = int(self._buffer.read("I", at))
        if not offset:
            raise self._buffer.error(f"the reference at {at} points nowhere")
        return at + offset

    def table(self, slot: int) -> Table | None:
        """A table, or None."""
        at = self.place(slot)
        return Table(self._buffer, self._target(at), self._depth + 1) if at else None

    def text(self, slot: int) -> str | None:
        """A string, or None; bytes that are not UTF-8 are replaced."""
        at = self.place(slot)
        return self._text(self._target(at)) if at else None

    def _text(self, at: int) -> str:
        length = int(self._buffer.read("I", at))
        start = self._span(at, length, 1)
        return bytes(self._buffer.data[start : start + length]).decode("utf-8", "replace")

    def _span(self, at: int, count: int, size: int) -> int:
        start = at + 4
        if start + count * size > self._buffer.size:
            raise self._buffer.error(f"a vector of {count:,} at {at} is longer than the file")
        self._buffer.spend(count * size)
        return start

    def array(self, slot: int, dtype: str) -> np.ndarray | None:
        """A vector of numbers as a read-only view, or None."""
        at = self.place(slot)
        if not at:
            return None
        place = self._target(at)
        count = int(self._buffer.read("I", place))
        start = self._span(place, count, np.dtype(dtype).itemsize)
        return np.frombuffer(self._buffer.data, dtype, count, start)

    def _references(self, slot: int) -> list[int] | None:
        found = self.array(slot, "<u4")
        if found is None:
            return None
        at = self._target(self.place(slot)) + 4
        if (found == 0).any():
            raise self._buffer.error(f"a reference in the vector at {at} points nowhere")
        return [at + 4 * index + int(offset) for index, offset in enumerate(found)]

    def texts(self, slot: int) -> list[str] | None:
        """A vector of strings, or None."""
        places = self._references(slot)
        return None if places is None else [self._text(place) for place in places]

    def tables(self, slot: int) -> list[Table] | None:
        """A vector of tables, or None."""
        places = self._references(slot)
        return None if places is None else [Table(self._buffer, place, self._depth + 1) for place in places]
