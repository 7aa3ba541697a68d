"""What is known of how operands are stretched to a common shape."""

from __future__ import annotations

from backends.mnn.modules.build import type_of
from ir.graph.graph import Value


def is_single(value: Value | None) -> bool:
    """True for a tensor that is known to have one element."""
    found = type_of(value)
    return found is not None and found.shape is not None and all(size == 1 for size in found.shape)


def covers(value: Value, other: Value) -> bool:
    """True when a value is known to have the common shape of both, so that at most the other one is stretched."""
    if value.producer is not None and value.producer.op == "Expand" and _shape_of(value.producer.input(1), other):
        return True
    wide, narrow = value.shape, other.shape
    if wide is None or narrow is None or len(narrow) > len(wide):
        return False
    ends = zip(reversed(wide), reversed(narrow), strict=False)
    return all(there == 1 or here == there or (isinstance(here, int) and here != 1) for here, there in ends)


def _shape_of(value: Value | None, other: Value) -> bool:
    """True for what Shape gives of a value."""
    node = value.producer if value is not None else None
    return node is not None and node.op == "Shape" and node.input(0) is other and not node.attrs


__all__ = ["covers", "is_single"]
