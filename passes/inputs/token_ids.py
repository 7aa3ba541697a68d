"""Which input holds token ids: the integer input that indexes a constant table of floats."""

from __future__ import annotations

from ir.base.diag import LadingError
from ir.base.types import TensorType
from ir.graph.graph import Graph, Node, Value
from ir.quant.stored_weight import is_weight
from passes.inputs.finding import Finding


def find(graph: Graph) -> Finding:
    """The graph input that holds token ids.

    Raises:
        LadingError: P351 when no input or more than one qualifies.
    """
    found = [
        value
        for value in graph.inputs
        if isinstance(value.type, TensorType) and value.dtype.is_integer and look_ups(value)
    ]
    if len(found) == 1 and not found[0].shape:
        raise LadingError(
            "P351",
            f"the graph does not say which axes its token ids have: {found[0]!r}",
            where=f"graph {graph.name}",
            hint="declare the input as [1, seq]",
        )
    if len(found) == 1:
        return Finding(found[0], "runtime-feeds", "it chooses rows of a constant table", found[0].loc or found[0].name)
    what = "no input of the graph" if not found else "more than one input: " + ", ".join(v.name for v in found)
    raise LadingError(
        "P351",
        f"{what} looks up rows of a constant embedding table",
        where=f"graph {graph.name}, inputs {', '.join(repr(value) for value in graph.inputs) or 'none'}",
        hint="discover-inputs takes a decoder that starts from token ids",
    )


def look_ups(ids: Value) -> list[Node]:
    """Gathers of rows of a weight by these ids, looking through casts."""
    found: list[Node] = []
    for node, index in ids.uses:
        if node.op == "Cast":
            found += look_ups(node.output)
        elif node.op == "Gather" and index == 1 and node.attrs.get("axis", 0) == 0 and is_weight(node.operand(0)):
            found.append(node)
    return found
