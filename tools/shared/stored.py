"""How weights are stored, in words, and grouped so that a few lines say it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from tools.shared.cli import megabytes

if TYPE_CHECKING:
    from backends.contract import Storage, WeightEntry

MOST_GROUPS = 6
"""Lines that say how the weights of a model are stored."""


@dataclass(frozen=True)
class Group:
    """Weights that are stored alike.

    Attributes:
        text: how, in words.
        count: how many weights.
        shared: how many of them have no bytes of their own, being those of another one.
        bytes: what they take in the files, scales and zeros included.
    """

    text: str
    count: int
    shared: int
    bytes: int

    def __str__(self) -> str:
        plural = "" if self.count == 1 else "s"
        shared = f" ({self.shared} shared)" if self.shared else ""
        return f"{self.text}: {self.count} weight{plural}{shared}, {megabytes(self.bytes)}"


def storage_text(storage: Storage) -> str:
    """Width and block of a storage, such as ``4 bits in blocks of 64``, and whether the codes are those that came."""
    width = width_text(storage)
    if storage.bits > 8:
        return width
    kept = ", kept" if storage.method == "stored" else ""
    return f"{width} in blocks of {storage.block}{kept}" if storage.block else f"{width}, one scale a row{kept}"


def width_text(storage: Storage) -> str:
    """What one number is stored as: ``4 bits``, ``float16``, ``bfloat16``, ``float32``."""
    if storage.bits <= 8:
        return f"{storage.bits} bits"
    if storage.bits == 16:
        return "bfloat16" if "bf16" in storage.layout else "float16"
    return f"float{storage.bits}"


def grouped(weights: Sequence[WeightEntry], most: int = MOST_GROUPS) -> list[Group]:
    """Groups of weights that are stored alike, most weights first; by width alone where that leaves too many."""
    exact = _groups(weights, storage_text)
    if len(exact) <= most:
        return exact
    blocks: dict[str, set[int]] = {}
    for item in weights:
        blocks.setdefault(width_text(item.storage), set()).add(item.storage.block)

    def by_width(storage: Storage) -> str:
        width = width_text(storage)
        found = sorted(blocks[width] - {0})
        if storage.bits > 8:
            return width
        rows = " or a row" if found and 0 in blocks[width] else ""
        return f"{width} in blocks of {', '.join(map(str, found))}{rows}" if found else f"{width}, one scale a row"

    wide = _groups(weights, by_width)
    if len(wide) <= most:
        return wide
    rest = wide[most - 1 :]
    sums = (sum(item.count for item in rest), sum(item.shared for item in rest), sum(item.bytes for item in rest))
    return [*wide[: most - 1], Group(f"{len(rest)} other kinds", *sums)]


def _groups(weights: Sequence[WeightEntry], key: Callable[[Storage], str]) -> list[Group]:
    found: dict[str, list[WeightEntry]] = {}
    for item in weights:
        found.setdefault(key(item.storage), []).append(item)
    groups = []
    for text, items in found.items():
        own = [item for item in items if item.shared_with is None]
        groups.append(Group(text, len(items), len(items) - len(own), sum(item.bytes for item in own)))
    return sorted(groups, key=lambda group: (-group.count, group.text))


def bits_per_weight(weights: Sequence[WeightEntry]) -> float | None:
    """Stored bits of all weights, scales and zeros included, per weight; weights stored once count once. None without
    weights."""
    own = [item for item in weights if item.shared_with is None]
    count = sum(prod(item.shape) for item in own)
    return 8 * sum(item.bytes for item in own) / count if count else None
