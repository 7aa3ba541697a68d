"""All rows of the table, by operator."""

from __future__ import annotations

from collections.abc import Iterable

from backends.mnn.modules.table import arithmetic, choice, control, products, reductions, shapes, vision
from backends.mnn.modules.table.row import by_operator
from ir.graph.graph import Node

ROWS = by_operator(
    (*arithmetic.ROWS, *choice.ROWS, *control.ROWS, *products.ROWS, *reductions.ROWS, *shapes.ROWS, *vision.ROWS),
)
"""What is right, by operator."""


def why_not(node: Node, releases: Iterable[str]) -> str | None:
    """Why a node is not known to be right on some releases of MNN; None when it is on all."""
    rows = ROWS.get(node.op, ())
    if not rows:
        return "nothing shows that MNN computes it right"
    for release in releases:
        reasons = [row.why_not(node, release) for row in rows]
        if None not in reasons:
            return reasons[0]
    return None


__all__ = ["ROWS", "why_not"]
