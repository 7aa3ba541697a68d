"""Analyses behind `passes.inputs.discover_inputs`: they look at a graph and change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import Dim, TensorType
from ir.graph.graph import Graph, Node, Value
from ir.ops import registry as ops


def token_input(graph: Graph) -> Value:
    """The graph input that holds token ids: the integer input that indexes a constant float table.

    Raises:
        LadingError: P351 when no input or more than one qualifies.
    """
    found = [
        value
        for value in graph.inputs
        if isinstance(value.type, TensorType) and value.dtype.is_integer and _gathers(value)
    ]
    if len(found) == 1:
        return found[0]
    what = "no input of the graph" if not found else "more than one input: " + ", ".join(v.name for v in found)
    raise LadingError(
        "P351",
        f"{what} looks up rows of a constant embedding table",
        where=f"graph {graph.name}, inputs {', '.join(repr(value) for value in graph.inputs) or 'none'}",
        hint="discover-inputs takes a decoder that starts from token ids",
    )


def embedding_gather(graph: Graph, ids: Value) -> Node:
    """The only look-up of the token ids in a table.

    Raises:
        LadingError: P352 when the ids index several tables.
    """
    found = _gathers(ids)
    if len(found) != 1:
        raise LadingError(
            "P352",
            f"the token ids index {len(found)} tables and the runtime feeds the rows of one",
            where=", ".join(node.loc or repr(node) for node in found),
        )
    return found[0]


def _gathers(ids: Value) -> list[Node]:
    """Gathers of rows of a weight by these ids, looking through casts."""
    from ir.quant.stored_weight import is_weight

    found: list[Node] = []
    for node, index in ids.uses:
        if node.op == "Cast":
            found += _gathers(node.output)
        elif node.op == "Gather" and index == 1 and node.attrs.get("axis", 0) == 0 and is_weight(node.inputs[0]):
            found.append(node)
    return found


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


def find_positions(graph: Graph, ids: Value) -> Value | None:
    """The value that equals 0..seq-1 at every length and follows from shapes alone; None when the graph has none.

    A range from 0 in steps of 1 as long as the sequence is known to be it; other values are evaluated at two lengths.
    Raises P358 when positions are computed at several places, since the history would have to be added at each.
    """
    region = shape_only_values(graph, ids)
    candidates = [value for value in region.values if _could_be_positions(value, ids)]
    matching = {value for value in candidates if _is_counting_range(value, ids)}
    others = [value for value in candidates if value not in matching and not _reads_any(value, matching)]
    matching |= _evaluating_to_positions(graph, ids, others)
    roots = [value for value in candidates if value in matching and not _reads_any(value, matching)]
    if len(roots) > 1:
        raise LadingError(
            "P358",
            "positions are computed at several places: " + ", ".join(value.name for value in roots),
            where=graph.name,
            hint="run cse first, so that equal computations become one",
        )
    return roots[0] if roots else None


def _is_counting_range(value: Value, ids: Value) -> bool:
    node = value.producer
    if node is None or node.op != "Range" or value.shape != (ids.shape[-1],):
        return False
    start, _, step = node.inputs
    return all(
        operand.is_const and operand.const.load().item() == wanted for operand, wanted in ((start, 0), (step, 1))
    )


def _evaluating_to_positions(graph: Graph, ids: Value, candidates: Sequence[Value]) -> set[Value]:
    if not candidates:
        return set()
    from ir.evaluate.evaluator import evaluate

    matching = set(candidates)
    for length in (3, 8):
        feeds = {ids.name: np.zeros((*_ones(ids.shape[:-1]), length), dtype=ids.dtype.numpy)}
        got = evaluate(graph, feeds, outputs=[value.name for value in candidates])
        for value in candidates:
            array = got[value.name]
            if array.size != length or not np.array_equal(array.reshape(-1), np.arange(length)):
                matching.discard(value)
    return matching


def _could_be_positions(value: Value, ids: Value) -> bool:
    if not isinstance(value.type, TensorType) or value.shape is None or not value.dtype.is_integer:
        return False
    return len(value.shape) >= 1 and all(dim == 1 for dim in value.shape[:-1]) and isinstance(value.shape[-1], Dim)


def _reads_any(value: Value, wanted: set[Value]) -> bool:
    """True when the value is computed from one of the wanted ones."""
    seen: set[Value] = set()
    stack = [item for item in value.producer.inputs if item is not None]  # type: ignore[union-attr]
    while stack:
        item = stack.pop()
        if item in wanted:
            return True
        if item in seen or item.producer is None:
            continue
        seen.add(item)
        stack.extend(other for other in item.producer.inputs if other is not None)
    return False


def _ones(shape: Sequence[int | Dim]) -> tuple[int, ...]:
    return tuple(dim if isinstance(dim, int) else 1 for dim in shape)


def causal_windows(graph: Graph, ids: Value) -> dict[Node, int]:
    """Window of every attention node: 0 for full causal attention, else the number of visible tokens, self included.

    Raises:
        LadingError: P357 when an attention is not causal in a way the runtime can do.
    """
    found: dict[Node, int] = {}
    for node in graph.nodes:
        if node.op != "Attention":
            continue
        mask = node.input(3)
        if mask is None and node.attrs.get("is_causal", 0) and node.input(4) is None:
            found[node] = 0
        elif mask is not None and mask.producer is not None and mask.producer.op == "lading.SlidingWindowMask":
            found[node] = int(mask.producer.attrs["window"])
        else:
            raise LadingError(
                "P357",
                "this attention is neither plainly causal nor windowed, and the runtime has no other kind",
                where=f"{node.loc or node.name}\n{node!r}",
            )
    return found


def row_cut(graph: Graph, logits: Value, place: str) -> Value:
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
    if place == "earliest":
        return inner[-1]
    before_norm = [value for value in inner if any(node.op in ops.NORMS for node in value.users)]
    return before_norm[0] if before_norm else inner[0]


def _single_cuts(graph: Graph, logits: Value) -> list[Value]:
    """Values that alone carry everything the logits need, from the logits towards the inputs."""
    place = {node: index for index, node in enumerate(graph.nodes)}
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
    from ir.quant.stored_weight import is_weight

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
