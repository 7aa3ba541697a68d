"""Random feeds that are legal for a graph: shapes within the declared ranges, ids within tables, rising positions."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import MOST_AXES, Dim, TensorType
from ir.dialects.experts import COMBINE, DISPATCH
from ir.facts.free_tensors import FreeTensor, FreeTensors
from ir.graph.graph import Graph, Node, Value
from ir.ops.registry import has_trait

DEFAULT_SIZE = 4
"""Size of a symbolic dimension that is not given, where its range allows it."""
MOST_ELEMENTS = 1 << 28
"""Elements that an input may have."""
_POSITIONAL = frozenset({"Cos", "Sin", "lading.SlidingWindowMask"})


def sample_feeds(graph: Graph, sizes: Mapping[str, int] | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """One array for each input of a graph.

    Floats are normally distributed. Integers that pick rows of a table are drawn from its rows, of one whose rows the run
    counts they pick the last, integers from which
    angles or windows are computed count up from 0, others are 1, booleans are true. Of what nothing in the model makes,
    integers are drawn from the range that their readers allow, or are its default. A graph with the recorded fact
    ``dynamic-inputs`` and an embedding table is fed what its runtime would feed for random tokens.

    Args:
        graph: the graph.
        sizes: sizes of symbolic dimensions by name; others are `DEFAULT_SIZE` or the nearest legal size.
        seed: of the generator; equal seeds give equal feeds.

    Raises:
        LadingError: T226 a size outside the range of its dimension, T225 an input that is not a tensor of numbers, T227
            one of more than `MOST_ELEMENTS`.
    """
    rng = np.random.default_rng(seed)
    shapes = {value: _shape(value, sizes or {}) for value in graph.inputs}
    fact = graph.facts.get("dynamic-inputs")
    table = graph.tables.get("embedding")
    if fact is not None and table is not None and hasattr(fact, "find"):
        fact.require(graph)
        rows = fact.find("embedding-rows")
        if rows is not None:
            length = shapes[graph.value(rows.input)][0]
            return fact.feeds(graph, rng.integers(0, table.sizes[0], length))
    free = graph.fact(FreeTensors)
    return {
        value.name: _array(value, shape, rng, free.find(value.name) if free is not None else None)
        for value, shape in shapes.items()
    }


def _shape(value: Value, sizes: Mapping[str, int]) -> tuple[int, ...]:
    type_ = value.type
    if not isinstance(type_, TensorType) or type_.shape is None or type_.dtype.kind not in "fiub":
        raise LadingError("T225", f"no feed can be made for input {value.name!r} of type {type_}", value.graph.name)
    shape = tuple(dim if isinstance(dim, int) else _size(dim, sizes) for dim in type_.shape)
    # An axis of size 0 leaves nothing to fill, but arrays count the others all the same.
    size = prod(max(dim, 1) for dim in shape)
    if size > MOST_ELEMENTS or len(shape) > MOST_AXES:
        message = f"input {value.name!r} has {size:,} elements; at most {MOST_ELEMENTS:,} are made up"
        raise LadingError("T227", message, value.graph.name, "give smaller sizes")
    return shape


def _size(dim: Dim, sizes: Mapping[str, int]) -> int:
    wanted = sizes.get(dim.name)
    if wanted is None:
        wanted = legal_size(dim, DEFAULT_SIZE)
    if not dim.accepts(wanted):
        high = "any" if dim.high is None else dim.high
        raise LadingError("T226", f"{dim} = {wanted} is not in {dim.low}..{high}, multiples of {dim.multiple_of}")
    return wanted


def legal_size(dim: Dim, wanted: int) -> int:
    """The size that a dimension accepts next to the one that is wanted, rather larger than smaller."""
    wanted = max(dim.low, wanted) if dim.high is None else min(max(dim.low, wanted), dim.high)
    step = dim.multiple_of
    found = -(-wanted // step) * step
    return found if dim.accepts(found) else found // step * step - step


def _array(value: Value, shape: tuple[int, ...], rng: np.random.Generator, free: FreeTensor | None) -> np.ndarray:
    dtype = value.dtype
    if dtype.is_float:
        return rng.standard_normal(shape).astype(np.float32).astype(dtype.numpy)
    if not dtype.is_integer:
        return np.ones(shape, dtype.numpy)
    if free is not None and free.low is not None and free.high is not None:
        return rng.integers(free.low, free.high + 1, shape).astype(dtype.numpy)
    if free is not None and free.default is not None:
        return np.full(shape, free.default, dtype.numpy)
    rows = _table_rows(value)
    if rows is not None:
        return rng.integers(0, max(rows, 1), shape).astype(dtype.numpy)
    if _picks_open_rows(value):
        return np.full(shape, -1, dtype.numpy) if dtype.kind == "i" else np.zeros(shape, dtype.numpy)
    if _is_position(value):
        return np.broadcast_to(np.arange(shape[-1] if shape else 1), shape or (1,)).reshape(shape).astype(dtype.numpy)
    return np.ones(shape, dtype.numpy)


def _arranges(node: Node) -> bool:
    """True when the elements of the result are those of the first input, arranged or of another type."""
    return node.op == "Expand" or has_trait(node, "positional") or has_trait(node, "conversion")


def _table_rows(value: Value) -> int | None:
    """Rows of the smallest table that a value picks from, or experts that it chooses, looking through operators that
    rearrange."""
    found: list[int] = []
    for node, index in value.uses:
        if index == 0 and _arranges(node):
            inner = _table_rows(node.outputs[0])
            found += [] if inner is None else [inner]
        elif node.op in ("Gather", "GatherElements") and index == 1:
            data, axis = node.inputs[0], node.attrs.get("axis", 0)
            extent = _extent(data, axis)
            found += [extent] if type(extent) is int else []
        elif node.op == DISPATCH and index == 1:
            found.append(len(node.outputs))
        elif node.op == COMBINE and index == 0:
            found.append(len(node.inputs) - 2)
        elif node.op == "RotaryEmbedding" and index == 3:
            extent = _extent(node.inputs[1], 0)
            found += [extent] if type(extent) is int else []
    return min(found) if found else None


def _picks_open_rows(value: Value) -> bool:
    """True when a value picks rows of what has as many as the run says: the last of them is always there."""
    for node, index in value.uses:
        if index == 0 and _arranges(node):
            if _picks_open_rows(node.outputs[0]):
                return True
        elif node.op in ("Gather", "GatherElements") and index == 1:
            return not isinstance(_extent(node.inputs[0], node.attrs.get("axis", 0)), int)
    return False


def _extent(value: Value | None, axis: int) -> int | Dim | None:
    """The size of an axis, or None when the value has no such axis or it is not known."""
    shape = value.shape if value is not None else None
    return shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None


def _is_position(value: Value) -> bool:
    """True when angles or attention windows are computed from a value."""
    seen: set[Node] = set()
    waiting = [value]
    while waiting and len(seen) < 256:
        for node in waiting.pop().users:
            if node.op in _POSITIONAL:
                return True
            if node not in seen and not has_trait(node, "mixing"):
                seen.add(node)
                waiting.extend(node.outputs)
    return False


__all__ = ["DEFAULT_SIZE", "MOST_ELEMENTS", "legal_size", "sample_feeds"]
