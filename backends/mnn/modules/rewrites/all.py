"""Every rewrite, by operator, in the order in which they are tried."""

from __future__ import annotations

from backends.mnn.modules.rewrites import (
    arithmetic,
    bits,
    choice,
    comparisons,
    control,
    einsum,
    products,
    reductions,
    shapes,
    vision,
)
from backends.mnn.modules.rewrites.types import Rewrite, Table


def _joined(*tables: Table) -> Table:
    found: dict[str, tuple[Rewrite, ...]] = {}
    for table in tables:
        for op, rewrites in table.items():
            found[op] = (*found.get(op, ()), *rewrites)
    return found


REWRITES = _joined(
    arithmetic.REWRITES,
    bits.REWRITES,
    choice.REWRITES,
    comparisons.REWRITES,
    control.REWRITES,
    einsum.REWRITES,
    products.REWRITES,
    reductions.REWRITES,
    shapes.REWRITES,
    vision.REWRITES,
)
"""Rewrites by operator."""

__all__ = ["REWRITES"]
