"""Whether a graph is a language model: integers choose rows of a table, and scores of as many tokens come out.

This is a look at the graph as it was read, whoever exported it, to choose what it is compiled for. Nothing is decided
about what a part of it computes; a graph that looks like one and is none is refused by the pass that takes it apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ir.base.types import I64, Dim, TensorType
from ir.graph.graph import Graph, Node, Value
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor

ROWS = {"Gather": (0, 1), "com.microsoft.GatherBlockQuantized": (0, 1)}
"""Operators that choose rows: place of the table and of the numbers."""

PRODUCTS = {"MatMul": 1, "Gemm": 1, "com.microsoft.MatMulNBits": 1, "com.microsoft.FusedMatMul": 1, "Einsum": 1}
"""Products with a matrix of weights, and its place."""

MIXING = ("Softmax", "Attention", "FusedAttention", "GroupQueryAttention", "MultiHeadAttention", "PagedAttention",
          "SparseAttention", "DecoderMaskedMultiHeadAttention", "LinearAttention", "SinkAttention", "GatedDeltaRule")  # fmt: skip
"""Operators, whatever their domain, without one of which no token sees another."""

KEEPING = ("Cast", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "DequantizeLinear", "Identity", "Constant", "Flatten",
           "Slice", "Clip", "Where", "Add", "Concat", "Expand")  # fmt: skip
"""Operators through which numbers of rows, and weights, are followed."""

MOST_STEPS = 64
"""Operators that lie between an input and the look-up, or the scores and their product, at most."""

ALIKE = 2
"""Times by which the table and the scores may differ in their numbers of tokens, since either is padded."""


def looks_like_one(graph: Graph) -> bool:
    """True for a graph from token ids, or from the rows that they choose, to scores of tokens that see each other."""
    if not _mixes(graph):
        return False
    tables = {rows for value in graph.inputs for rows, _ in _tables(value)}
    widths = {width for value in graph.outputs for width in _scores(value)}
    return any(_alike(rows, width) for rows in tables for width in widths) or rows_input(graph) is not None


def _alike(rows: int, width: int) -> bool:
    return width <= ALIKE * rows and rows <= ALIKE * width


@dataclass(frozen=True)
class RowsInput:
    """An input that takes the rows of an embedding that the graph does not hold.

    Attributes:
        value: the input.
        width: elements of a row.
        tokens: how many tokens the scores tell apart.
        head: the matrix that the scores are a product with, in either orientation; None where it is not stored plainly.
    """

    value: Value
    width: int
    tokens: int
    head: Tensor | None


def rows_input(graph: Graph) -> RowsInput | None:
    """The input that takes rows as wide as those that the scores are a product with; None for graphs without one, and for
    those that choose such rows from a table of their own."""
    if not _mixes(graph):
        return None
    tables = {table for value in graph.inputs for table in _tables(value)}
    wide = [
        value
        for value in graph.inputs
        if isinstance(value.type, TensorType) and value.dtype.is_float and value.rank == 3 and value.use_count
    ]
    for value in wide:
        width = value.dims[-1]
        for output in graph.outputs:
            for weight in _heads(output):
                sides = weight.shape[-2:]
                if len(sides) < 2:
                    continue
                # A vocabulary is larger than a row, where the output does not say its own size.
                last = output.shape[-1] if output.shape else None
                tokens = last if isinstance(last, int) and last in sides else max(sides)
                if not isinstance(width, int) or width != (sides[0] if sides[1] == tokens else sides[1]):
                    continue
                if any(_alike(rows, tokens) and size == width for rows, size in tables):
                    return None
                return RowsInput(value, width, tokens, weight)
    return None


def look_up_rows(graph: Graph, rows: RowsInput, table: Tensor) -> Value:
    """Take the rows from a table, by token ids that the graph takes from now on.

    Args:
        graph: the graph.
        rows: the input that goes.
        table: float[tokens, width].
    """
    given = rows.value
    ids = graph.add_input(graph.fresh_name("token_ids"), TensorType(I64, (1, graph.add_dim(Dim("seq", 1)))))
    stored = graph.add_const(graph.fresh_name("embedding.weight"), table)
    first = graph.first
    chosen = graph.add("Gather", [stored, ids], {"axis": 0}, before=first)
    # A batch of one may stand before the tokens or behind them.
    shape = [-1, 1, rows.width] if given.dims[1] == 1 else [1, -1, rows.width]
    form = graph.add_const(graph.fresh_name("embedding.form"), InlineTensor(np.array(shape, np.int64)))
    formed = graph.add("Reshape", [chosen.output, form], before=first)
    cast = graph.add("Cast", [formed.output], {"to": given.dtype.onnx}, before=first)
    graph.replace(given, cast.output)
    graph.remove_input(given)
    return ids


def _mixes(graph: Graph) -> bool:
    return any(node.op.rpartition(".")[2] in MIXING for node in _nodes(graph))


def _nodes(graph: Graph) -> Iterator[Node]:
    yield from graph.walk()
    for body in graph.functions.values():
        yield from body.walk()


def _tables(ids: Value) -> Iterator[tuple[int, int]]:
    """Rows, and numbers in a row, of the tables of floats that an integer input chooses from."""
    if not isinstance(ids.type, TensorType) or not ids.dtype.is_integer:
        return
    waiting, seen = [ids], {ids}
    while waiting and len(seen) < MOST_STEPS:
        value = waiting.pop()
        for node, index in value.uses:
            if node.op in ROWS and ROWS[node.op][1] == index:
                sizes = _sizes(node.input(ROWS[node.op][0]))
                if sizes is not None:
                    yield sizes
            elif node.op in KEEPING:
                waiting += [item for item in node.outputs if item not in seen]
                seen.update(node.outputs)


def _sizes(table: Value | None) -> tuple[int, int] | None:
    """Rows, and numbers in a row, of a matrix of weights, however it is stored; None for what is none."""
    for _ in range(MOST_STEPS):
        if table is None:
            return None
        if table.const is not None:
            shape = table.const.shape
            return (shape[0], shape[-1]) if len(shape) >= 2 and shape[0] > 1 else None
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
    for weight in _heads(value):
        yield from weight.shape[-2:]


def _heads(value: Value) -> Iterator[Tensor]:
    """The constant matrix of the product that a value comes from."""
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
                yield weight.const
            return
        found = next((item for item in node.inputs if item is not None and item.const is None), None)


__all__ = ["RowsInput", "look_up_rows", "looks_like_one", "rows_input"]
