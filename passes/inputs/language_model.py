"""Whether a graph is a language model: integers choose rows of a table, and scores of as many tokens come out.

This is a look at the graph as it was read, whoever exported it, to choose what it is compiled for. Nothing is decided
about what a part of it computes; a graph that looks like one and is none is refused by the pass that takes it apart.
"""

from __future__ import annotations

from collections.abc import Iterator

from ir.base.types import TensorType
from ir.graph.graph import Graph, Node, Value

ROWS = {"Gather": (0, 1), "com.microsoft.GatherBlockQuantized": (0, 1)}
"""Operators that choose rows: place of the table and of the numbers."""

PRODUCTS = {"MatMul": 1, "Gemm": 1, "com.microsoft.MatMulNBits": 1, "com.microsoft.FusedMatMul": 1, "Einsum": 1}
"""Products with a matrix of weights, and its place."""

MIXING = ("Softmax", "Attention", "FusedAttention", "GroupQueryAttention", "MultiHeadAttention", "PagedAttention",
          "SparseAttention", "DecoderMaskedMultiHeadAttention", "LinearAttention")  # fmt: skip
"""Operators, whatever their domain, without one of which no token sees another."""

KEEPING = ("Cast", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "DequantizeLinear", "Identity", "Constant", "Flatten",
           "Slice", "Clip", "Where", "Add", "Concat", "Expand")  # fmt: skip
"""Operators through which numbers of rows, and weights, are followed."""

MOST_STEPS = 64
"""Operators that lie between an input and the look-up, or the scores and their product, at most."""

ALIKE = 2
"""Times by which the table and the scores may differ in their numbers of tokens, since either is padded."""


def looks_like_one(graph: Graph) -> bool:
    """True for a graph from token ids to scores of tokens, with tokens that see each other."""
    tables = {rows for value in graph.inputs for rows in _tables(value)}
    if not tables or not any(node.op.rpartition(".")[2] in MIXING for node in _nodes(graph)):
        return False
    widths = {width for value in graph.outputs for width in _scores(value)}
    return any(width <= ALIKE * rows and rows <= ALIKE * width for rows in tables for width in widths)


def _nodes(graph: Graph) -> Iterator[Node]:
    yield from graph.walk()
    for body in graph.functions.values():
        yield from body.walk()


def _tables(ids: Value) -> Iterator[int]:
    """Rows of the tables of floats that an integer input chooses from."""
    if not isinstance(ids.type, TensorType) or not ids.dtype.is_integer:
        return
    waiting, seen = [ids], {ids}
    while waiting and len(seen) < MOST_STEPS:
        value = waiting.pop()
        for node, index in value.uses:
            if node.op in ROWS and ROWS[node.op][1] == index:
                rows = _rows(node.input(ROWS[node.op][0]))
                if rows is not None:
                    yield rows
            elif node.op in KEEPING:
                waiting += [item for item in node.outputs if item not in seen]
                seen.update(node.outputs)


def _rows(table: Value | None) -> int | None:
    """Rows of a matrix of weights, however it is stored; None for what is none."""
    for _ in range(MOST_STEPS):
        if table is None:
            return None
        if table.const is not None:
            shape = table.const.shape
            return shape[0] if len(shape) >= 2 and shape[0] > 1 else None
        node = table.producer
        if node is None or node.op not in KEEPING:
            return None
        table = node.input(0)
    return None


def _scores(value: Value) -> Iterator[int]:
    """Numbers of columns that an output may be scores of: of its own type, or of the product it comes from."""
    if not isinstance(value.type, TensorType) or not value.dtype.is_float:
        return
    last = value.shape[-1] if value.shape else None
    if isinstance(last, int):
        yield last
    found: Value | None = value
    for _ in range(MOST_STEPS):
        node = found.producer if found is not None else None
        if node is None:
            return
        if node.op in PRODUCTS:
            weight = node.input(PRODUCTS[node.op])
            while weight is not None and weight.const is None and weight.producer is not None:
                weight = weight.producer.input(0)
            if weight is not None and weight.const is not None:
                yield from weight.const.shape[-2:]
            return
        found = next((item for item in node.inputs if item is not None and item.const is None), None)


__all__ = ["looks_like_one"]
