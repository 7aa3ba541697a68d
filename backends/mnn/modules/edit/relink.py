"""Exchange operators of a FlatBuffer without touching the rest of it.

MNN's JSON form prints floats with six decimals, so a net that went through it is another net. Here the file that the
converter wrote is kept byte for byte, and what is new is put in front of it: a new root, a new list of operators, and
the operators that are exchanged. Everything else is referred to where it stands. References of FlatBuffers point
forward only, which is why the new part comes first. Format: https://flatbuffers.dev/internals/
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from backends.mnn.read.flatbuffer import Buffer, Table
from ir.base.diag import LadingError

ALIGNMENT = 16
"""The old file begins at a multiple of this, so that its numbers stay where their sizes want them."""

LIMIT = 1 << 31
"""Bytes that a FlatBuffer may have."""


@dataclass(frozen=True)
class Scalar:
    """A number of `struct` kind `kind`."""

    kind: str
    value: int | float | bool


@dataclass(frozen=True)
class Old:
    """Something that stands in the old file, at this position."""

    position: int


@dataclass(frozen=True)
class Text:
    """A string."""

    value: str


@dataclass(frozen=True, eq=False)
class Vector:
    """A vector of numbers."""

    array: np.ndarray


@dataclass(frozen=True)
class Objects:
    """A vector of tables, or of strings."""

    items: tuple[New | Old | Text, ...]


@dataclass(frozen=True)
class New:
    """A table to be written: fields by slot."""

    fields: Mapping[int, Item]


Item: TypeAlias = Scalar | Old | Text | Vector | Objects | New


def reference(table: Table, slot: int) -> Old | None:
    """What a field of an old table refers to."""
    target = table.target(slot)
    return Old(target) if target else None


def copied(table: Table, kinds: Sequence[str], changes: Mapping[int, Item | None]) -> New:
    """A table like an old one, with some fields exchanged.

    Args:
        table: the old table.
        kinds: `struct` kind of each slot, or empty for a reference.
        changes: fields by slot; None leaves one out.
    """
    fields: dict[int, Item] = {}
    for slot in table.slots():
        if slot in changes:
            continue
        kind = kinds[slot] if slot < len(kinds) else ""
        if kind:
            number = table.number(slot, kind)
            assert number is not None
            fields[slot] = Scalar(kind, number)
        else:
            found = reference(table, slot)
            assert found is not None
            fields[slot] = found
    fields.update({slot: item for slot, item in changes.items() if item is not None})
    return New(fields)


def relink(buffer: Buffer, root: New) -> bytes:
    """The file with a new root.

    Raises:
        LadingError: B791 the file would be larger than a FlatBuffer can be.
    """
    writer = _Writer()
    writer.root(root)
    return writer.joined(bytes(buffer.data))


class _Writer:
    """The new part: tables in front of what they refer to."""

    def __init__(self) -> None:
        self.out = bytearray(4)
        self.old: list[tuple[int, int]] = []

    def root(self, table: New) -> None:
        self._table(0, table)

    def joined(self, data: bytes) -> bytes:
        """The new part, and the old file behind it."""
        start = -(-len(self.out) // ALIGNMENT) * ALIGNMENT
        if start + len(data) >= LIMIT:
            message = f"the model would take {start + len(data):,} bytes, and one file of MNN holds {LIMIT:,}"
            raise LadingError("B791", message, hint="keep the weights in a file of their own")
        self.out.extend(bytes(start - len(self.out)))
        for place, position in self.old:
            struct.pack_into("<I", self.out, place, start + position - place)
        return bytes(self.out) + data

    def _align(self, size: int, ahead: int = 0) -> None:
        self.out.extend(bytes(-(len(self.out) + ahead) % size))

    def _refer(self, place: int, item: Item) -> None:
        """Write an object and let the reference at `place` point at it."""
        if isinstance(item, Old):
            self.old.append((place, item.position))
        elif isinstance(item, New):
            self._table(place, item)
        elif isinstance(item, Text):
            raw = item.value.encode("utf-8", "replace")
            self._begin(place, 4)
            self.out.extend(struct.pack("<I", len(raw)) + raw + b"\0")
        elif isinstance(item, Vector):
            array = np.ascontiguousarray(item.array)
            self._begin(place, max(array.itemsize, 4), 4)
            self.out.extend(struct.pack("<I", array.size))
            self.out.extend(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        else:
            assert isinstance(item, Objects)
            self._begin(place, 4)
            self.out.extend(struct.pack("<I", len(item.items)))
            first = len(self.out)
            self.out.extend(bytes(4 * len(item.items)))
            for index, each in enumerate(item.items):
                self._refer(first + 4 * index, each)

    def _begin(self, place: int, size: int, ahead: int = 0) -> None:
        self._align(size, ahead)
        struct.pack_into("<I", self.out, place, len(self.out) - place)

    def _table(self, place: int, table: New) -> None:
        fields = sorted(table.fields.items())
        count = fields[-1][0] + 1 if fields else 0
        slots = [0] * count
        offset = 4
        order = sorted(fields, key=lambda pair: -_size(pair[1]))
        for slot, item in order:
            size = _size(item)
            # the table begins four bytes before a multiple of eight, so eight-byte numbers come first
            offset += -(offset + 4) % size if size == 8 else -offset % size
            slots[slot] = offset
            offset += size
        vtable = struct.pack(f"<HH{count}H", 4 + 2 * count, offset, *slots)
        self._align(2)
        where = len(self.out)
        self.out.extend(vtable)
        self._align(8, 4)
        begin = len(self.out)
        struct.pack_into("<I", self.out, place, begin - place)
        self.out.extend(bytes(offset))
        struct.pack_into("<i", self.out, begin, begin - where)
        for slot, item in fields:
            if isinstance(item, Scalar):
                struct.pack_into("<" + item.kind, self.out, begin + slots[slot], item.value)
        for slot, item in fields:
            if not isinstance(item, Scalar):
                self._refer(begin + slots[slot], item)


def _size(item: Item) -> int:
    return struct.calcsize("<" + item.kind) if isinstance(item, Scalar) else 4


def vector(values: Sequence[Any] | np.ndarray, dtype: str) -> Vector:
    """A vector of numbers."""
    return Vector(np.asarray(values, dtype))


__all__ = ["Item", "New", "Objects", "Old", "Scalar", "Text", "Vector", "copied", "reference", "relink", "vector"]
