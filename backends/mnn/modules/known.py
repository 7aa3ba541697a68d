"""What is known of the numbers in a tensor without computing them."""

from __future__ import annotations

from backends.mnn.modules.build import numbers
from ir.graph.graph import Node, Value

DEPTH = 12
"""How many operators back is looked."""

_SAME_NUMBERS = frozenset(
    {"Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Unsqueeze"}
)
"""Operators whose results hold nothing but elements of their first operand (of all operands: Concat)."""


def all_not_negative(value: Value, depth: int = DEPTH) -> bool:
    """True when no element of a tensor of integers can be below 0: sizes, and what is made of them."""
    known = numbers(value) if value.const is not None and value.tensor.type.size is not None else None
    if known is not None:
        return bool((known >= 0).all())
    node = value.producer
    if node is None or depth == 0:
        return False
    if node.op in ("Shape", "Size", "NonZero", "ArgMax", "ArgMin"):
        return True
    if node.op in _SAME_NUMBERS:
        parts = node.inputs if node.op == "Concat" else node.inputs[:1]
        return all(part is not None and all_not_negative(part, depth - 1) for part in parts)
    if node.op in ("ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin"):
        return all_not_negative(node.operand(0), depth - 1)
    if node.op in ("Add", "Mul", "Div", "Min"):
        return all(part is not None and all_not_negative(part, depth - 1) for part in node.inputs)
    if node.op == "Max":
        return any(part is not None and all_not_negative(part, depth - 1) for part in node.inputs)
    return node.op == "Where" and _choice(node, depth)


def _choice(node: Node, depth: int) -> bool:
    """Either of two, or the larger one of them."""
    test, x, y = node.operand(0).producer, node.operand(1), node.operand(2)
    sides = [all_not_negative(side, depth - 1) for side in (x, y)]
    larger = test is not None and test.op == "Greater" and test.inputs == (x, y)
    return any(sides) if larger else all(sides)


__all__ = ["all_not_negative"]
