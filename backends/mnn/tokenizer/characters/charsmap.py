"""The `Precompiled` normalizer of SentencePiece vocabularies, unpacked into literal replacements.

The table is base64 of: u32 size of a double-array trie in bytes, the trie's u32 units, then the replacements, each
ended by a NUL. Layout of a unit as in Darts-clone (darts.h, `DoubleArrayUnit`): bits 0-7 label, bit 8 "a value hangs
below", bit 9 "offset is in units of 256", bits 10-30 offset to the children, bit 31 set in units that hold a value,
which is the position of the replacement.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np

from ir.base.diag import LadingError

_LABEL = np.uint32(0x800000FF)
_LONGEST_SEQUENCE = 5
_MOST_NODES = 1 << 20
MARKS = "a combining mark after a character that the normalization table replaces is kept"


def charsmap_rules(encoded: Any, where: str) -> tuple[list[tuple[bytes, bytes]], list[str]]:
    """Replacements in the order in which they must be applied, and what they leave out.

    The tokenizers library looks up whole graphemes below six bytes first, then single characters.

    Raises:
        LadingError: B643 for a damaged table.
    """
    entries = _entries(encoded, where)
    single = {key: value for key, value in entries.items() if _is_character(key)}
    longer = [key for key in entries if key not in single and len(key) <= _LONGEST_SEQUENCE]
    longer.sort(key=len, reverse=True)
    rules = [(key, entries[key]) for key in longer] + list(single.items())
    return rules, [MARKS] if rules else []


def _entries(encoded: Any, where: str) -> dict[bytes, bytes]:
    """Every key of the trie with its replacement, both UTF-8."""
    try:
        blob = base64.b64decode(encoded or "", validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise LadingError("B643", f"the precompiled table is not base64: {error}", where=where) from error
    if not blob:
        return {}
    size = int.from_bytes(blob[:4], "little")
    if len(blob) < 4 or size % 4 or size == 0 or size + 4 > len(blob):
        raise LadingError("B643", "the precompiled table is shorter than it says", where=where)
    units = np.frombuffer(blob, "<u4", size // 4, 4)
    texts = blob[4 + size :]
    found: dict[bytes, bytes] = {}
    for key, position in _walk(units, where):
        end = texts.find(b"\0", position)
        if position >= len(texts) or end < 0:
            raise LadingError("B643", f"the precompiled table has no text for the key {key!r}", where=where)
        found[key] = texts[position:end]
    return found


def _walk(units: np.ndarray, where: str) -> list[tuple[bytes, int]]:
    """(key, value) of each entry, level by level; all children of a level are looked up at once.

    Keys with the same end and replacement may share units, so that there are more nodes than units; `_MOST_NODES` bounds
    the walk through a damaged table.
    """
    found: list[tuple[bytes, int]] = []
    keys = [b""]
    bases = np.array([0], np.int64) ^ _offsets(units[:1])
    labels = np.arange(1, 256, dtype=np.int64)
    total = 0
    while total <= _MOST_NODES:
        children = bases[:, None] ^ labels
        inside = children < len(units)
        hit = inside & ((units[np.where(inside, children, 0)] & _LABEL) == labels)
        parents, which = np.nonzero(hit)
        if not len(parents):
            return found
        total += len(parents)
        nodes = children[parents, which]
        keys = [keys[parent] + bytes((label + 1,)) for parent, label in zip(parents, which.tolist(), strict=True)]
        bases = nodes ^ _offsets(units[nodes])
        valued = (units[nodes] >> np.uint32(8)) & np.uint32(1) == 1
        if np.any(bases[valued] >= len(units)):
            break
        for index in np.nonzero(valued)[0].tolist():
            found.append((keys[index], int(units[bases[index]]) & 0x7FFFFFFF))
    raise LadingError("B643", "the precompiled table is damaged", where=where)


def _offsets(units: np.ndarray) -> np.ndarray:
    wide = units.astype(np.int64)
    return (wide >> 10) << ((wide & 512) >> 6)


def _is_character(key: bytes) -> bool:
    try:
        return len(key.decode()) == 1
    except UnicodeDecodeError:
        return False
