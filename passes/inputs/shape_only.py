"""What a graph computes from shapes and constants alone, which is where frozen and computed inputs hide."""

from __future__ import annotations

from dataclasses import dataclass, field

from ir.graph.graph import Graph, Node, Value


@dataclass
class ShapeOnly:
    """Values that follow from the shapes of inputs and from constants, and the nodes that compute them."""

    values: dict[Value, None] = field(default_factory=dict)
    nodes: dict[Node, None] = field(default_factory=dict)


def shape_only_values(graph: Graph, ids: Value) -> ShapeOnly:
    """Everything that depends on the shape of `ids` and constants alone, in program order."""
    found = ShapeOnly()
    for node in graph.nodes:
        if node.op in ("Shape", "Size"):
            known = node.inputs[0] is ids or node.inputs[0] in found.values
        else:
            varying = [value for value in node.inputs if value is not None and not value.is_const]
            known = bool(varying) and all(value in found.values for value in varying) and not node.subgraphs
        if known:
            found.nodes[node] = None
            found.values.update(dict.fromkeys(node.outputs))
    return found
