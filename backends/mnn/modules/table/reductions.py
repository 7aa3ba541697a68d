"""Reductions, positions of extremes, and running sums."""

from __future__ import annotations

from backends.mnn.modules.build import type_of
from backends.mnn.modules.table.row import FLOAT, HELD, INT, NUMBER, Right
from ir.graph.graph import Node
from ir.ops.registry import attribute


def axes_are_told(node: Node) -> str | None:
    """Axes that are named, or all; the converter reads an empty list as it comes."""
    axes = node.input(1)
    if axes is None:
        return "all axes or none are meant" if attribute(node, "noop_with_empty_axes") else None
    found = type_of(axes)
    size = found.shape[0] if found is not None and found.shape else None
    return None if isinstance(size, int) and size > 0 else "its axes may be none"


def something_is_reduced(node: Node) -> str | None:
    """The runtime dies of a mean or extreme of nothing."""
    found = type_of(node.input(0))
    if found is not None and found.shape is not None and 0 in found.shape:
        return "it is not right for no elements"
    return axes_are_told(node)


def first_place(node: Node) -> str | None:
    """The attribute that asks for the last place is not read."""
    return "it gives the first place only" if attribute(node, "select_last_index") else None


EVIDENCE = "sweep: 1 to 6 axes, each axis, each two, all; constant and computed axes; keepdims 0 and 1"

ROWS = (
    Right("ReduceSum", EVIDENCE, (NUMBER, INT), when=axes_are_told),
    Right("ReduceProd", EVIDENCE, (NUMBER, INT), when=axes_are_told),
    Right("ReduceMax", EVIDENCE, (HELD, INT), when=something_is_reduced),
    Right("ReduceMin", EVIDENCE, (HELD, INT), when=something_is_reduced),
    Right("ReduceMean", EVIDENCE, (FLOAT, INT), when=something_is_reduced),
    Right("ArgMax", "sweep: 1 to 6 axes, each axis; ties, infinities", (FLOAT,), range(1, 7), first_place),
    Right("ArgMin", "sweep: 1 to 6 axes, each axis; ties, infinities", (FLOAT,), range(1, 7), first_place),
    Right("CumSum", "sweep: 1 to 6 axes, each axis; exclusive and reverse", (NUMBER, INT), range(1, 7)),
)
"""What is right."""
