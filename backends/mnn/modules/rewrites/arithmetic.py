"""Element-wise operators, comparisons, logic, conversions and reductions."""

from __future__ import annotations

from collections.abc import Sequence

from backends.mnn.modules.build import Build
from backends.mnn.modules.rewrites.types import Table
from ir.graph.graph import Node, Value


def less(node: Node, b: Build) -> Sequence[Value]:
    """``a < b`` as ``b > a``: on x86 the runtime compares negative numbers by their bits."""
    return [b.add("Greater", node.operand(1), node.operand(0))]


REWRITES: Table = {"Less": (less,)}
"""Rewrites by operator."""
