"""Sizes of MNN graphs, worked out while reading: exporters compute the shapes of reshapes with operators.

`Ints` stands for a small integer tensor whose elements are known, where a size that only the run decides is a `Dim`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from ir.base.types import Dim

Size = int | Dim | None
"""A known number, a size of the run, or unknown."""


@dataclass(frozen=True)
class Ints:
    """Elements of an integer tensor of rank 0 or 1; `scalar` when it has no axes."""

    items: tuple[Size, ...]
    scalar: bool = False

    @property
    def known(self) -> tuple[int, ...] | None:
        """The elements when all are plain numbers."""
        found = tuple(item for item in self.items if type(item) is int)
        return found if len(found) == len(self.items) else None


def resolve_sizes(shape: Sequence[int | Dim], wanted: Sequence[Size]) -> tuple[int | Dim, ...] | None:
    """The shape that a reshape of `shape` to `wanted` gives: zeros copied and -1 worked out; None when it cannot be
    told."""
    if any(size is None for size in wanted):
        return None
    sizes = [
        shape[place] if size == 0 and place < len(shape) else size
        for place, size in enumerate(wanted)
        if size is not None
    ]
    if -1 not in sizes:
        return tuple(sizes)
    known = [size for size in sizes if size != -1]
    left = Counter(size for size in shape if isinstance(size, Dim))
    left.subtract(Counter(size for size in known if isinstance(size, Dim)))
    if any(count < 0 for count in left.values()):
        return None
    dims = list(left.elements())
    above = prod(size for size in shape if type(size) is int)
    below = prod(size for size in known if type(size) is int)
    if not below or above % below or len(dims) > 1 or (dims and above != below):
        return None
    rest = dims[0] if dims else above // below
    return tuple(rest if size == -1 else size for size in sizes)
