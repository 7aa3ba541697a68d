"""Which value counts the positions of a sequence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import Dim, TensorType
from ir.graph.graph import Graph, Value
from passes.inputs.finding import Finding
from passes.inputs.shape_only import shape_only_values


def find(graph: Graph, ids: Value) -> Finding | None:
    """The value that equals 0..seq-1 at every length and follows from shapes alone; None when the graph has none.

    A range from 0 in steps of 1 as long as the sequence is known to be it; other values are evaluated at two lengths.

    Raises:
        LadingError: P358 when positions are computed at several places, since the history would have to be added at
            each.
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
    if not roots:
        return None
    (value,) = roots
    reason = f"the graph computes %{value.name} = 0..seq-1 from shapes alone"
    made = value.producer
    return Finding(value, "shape-computed", reason, (made.loc if made is not None else "") or value.name)


def _is_counting_range(value: Value, ids: Value) -> bool:
    node = value.producer
    if node is None or node.op != "Range" or value.shape != (ids.dims[-1],):
        return False
    start, step = node.operand(0), node.operand(2)
    return all(
        operand.const is not None and operand.const.load().item() == wanted
        for operand, wanted in ((start, 0), (step, 1))
    )


def _evaluating_to_positions(graph: Graph, ids: Value, candidates: Sequence[Value]) -> set[Value]:
    if not candidates:
        return set()
    from ir.evaluate.evaluator import evaluate

    matching = set(candidates)
    for length in (3, 8):
        feeds = {ids.name: np.zeros((*_ones(ids.dims[:-1]), length), dtype=ids.dtype.numpy)}
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
    made = value.producer
    stack = [item for item in (made.inputs if made is not None else ()) if item is not None]
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
