"""Where a node is, in words for diagnostics."""

from __future__ import annotations

from ir.graph.graph import Node


def describe(node: Node) -> str:
    """Where a node is, for diagnostics: the node, its name and its source location."""
    parts = [repr(node)]
    if node.name:
        parts.append(f"node {node.name!r}")
    if node.loc:
        parts.append(f"from {node.loc}")
    return "\n".join(parts)
