"""Where the rows whose logits are wanted can be cut out of the sequence."""

from __future__ import annotations

from ir.base.diag import LadingError
from ir.graph.graph import Graph, Node, Value
from ir.ops import registry as ops
from ir.quant.stored_weight import is_weight
from passes.inputs.finding import Finding


def find(graph: Graph, logits: Value, place: str) -> Finding:
    """The value to cut rows from: every path to the logits leads through it and each row behind it is on its own.

    Args:
        graph: the graph that computes `logits`.
        logits: the output, its rows along the axis before the last.
        place: ``norm`` takes the one that the last normalisation reads; ``earliest`` the one nearest to the inputs.

    Raises:
        LadingError: P359 when not even the producer of the logits works row by row.
    """
    cuts = _single_cuts(graph, logits)
    inner = [value for value in cuts if value is not logits]
    if not inner:
        raise LadingError(
            "P359", "the node that computes the logits mixes positions, so no row can be cut out", where=repr(logits)
        )
    cut = inner[-1] if place == "earliest" else _before_norm(inner)
    if len(cut.shape or ()) < 2:
        raise LadingError("P359", "the value that rows would be cut out of has no known rows", where=repr(cut))
    reason = f"the graph returns the logits of every position; rows are cut out of %{cut.name}"
    return Finding(cut, "whole-sequence", reason, cut.loc or cut.name)


def _before_norm(cuts: list[Value]) -> Value:
    """The cut that the last normalisation reads, or the last one where none does."""
    read = [value for value in cuts if any(node.op in ops.NORMS for node in value.users)]
    return read[0] if read else cuts[0]


def _single_cuts(graph: Graph, logits: Value) -> list[Value]:
    """Values that alone carry everything the logits need, from the logits towards the inputs."""
    place: dict[Node | None, int] = {node: index for index, node in enumerate(graph.nodes)}
    front = {logits}
    cuts: list[Value] = []
    while front:
        latest = max(front, key=lambda value: place.get(value.producer, -1))
        if len(front) == 1:
            cuts.append(latest)
        if latest.producer is None or not is_rowwise(latest.producer):
            return cuts
        front.remove(latest)
        front.update(value for value in latest.producer.inputs if value is not None and _has_rows(value))
    return cuts


def _has_rows(value: Value) -> bool:
    """True when a value varies along the sequence; constants and their dequantization do not."""
    return not value.is_const and not is_weight(value)


def is_rowwise(node: Node) -> bool:
    """True when a node computes each row (all but the last axis) of its result from the same row of its operands."""
    definition = ops.opdef(node)
    if definition is None:
        return False
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        if _has_rows(value):
            if not ops.is_rowwise(node, index):
                return False
        elif definition.has("elementwise") and not _broadcasts_rows(value):
            return False
    return True


def _broadcasts_rows(value: Value) -> bool:
    return value.shape is not None and all(dim == 1 for dim in value.shape[:-1])
