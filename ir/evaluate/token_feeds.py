"""What a language model is fed for windows of token ids, before and after its inputs were discovered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import TensorType
from ir.facts.inputs import DynamicInputs
from ir.graph.graph import Graph, Value
from ir.tensor.base import Tensor

Feeds = dict[str, np.ndarray]


def window_feeds(
    graph: Graph, windows: Sequence[np.ndarray], replaced: Mapping[str, Tensor] | None = None
) -> list[Feeds]:
    """Feeds of the graph for each window, all positions wanted.

    Args:
        graph: a decoder whose dynamic inputs are recorded, or one with a single integer input for token ids.
        windows: int[n] token ids each.
        replaced: other contents of constants by name; of these the embedding rows are fed.

    Raises:
        LadingError: Q437 the graph is neither, Q438 a window is empty or has an id that the vocabulary lacks.
    """
    fact = graph.fact(DynamicInputs)
    if isinstance(fact, DynamicInputs):
        table = graph.tables.get("embedding")
        _require_ids(windows, table)
        feeds = [fact.feeds(graph, window, index=0) for window in windows]
        rows = fact.find("embedding-rows")
        if table is not None and rows is not None and replaced and table.name in replaced:
            for feed, window in zip(feeds, windows, strict=True):
                feed[rows.input] = _rows(replaced[table.name], window).reshape(feed[rows.input].shape)
        return feeds
    ids = _ids_input(graph)
    _require_ids(windows, _table_of(ids))
    shape = (-1,) if ids.rank == 1 else (1, -1)
    return [{ids.name: np.asarray(window).astype(ids.dtype.numpy).reshape(shape)} for window in windows]


def _rows(table: Tensor, ids: np.ndarray) -> np.ndarray:
    """float32[len(ids), width]: rows of a table, reading no others."""
    unique, inverse = np.unique(ids, return_inverse=True)
    rows = np.concatenate([table.rows(int(row), int(row) + 1) for row in unique])
    return rows.astype(np.float32, copy=False)[inverse]


def _ids_input(graph: Graph) -> Value:
    inputs = [value for value in graph.inputs if value.use_count]
    if len(inputs) == 1 and isinstance(inputs[0].type, TensorType) and inputs[0].dtype.is_integer:
        return inputs[0]
    found = ", ".join(repr(value) for value in inputs) or "none"
    raise LadingError(
        "Q437",
        "tokens cannot be fed to this graph: its inputs are neither recorded by discover-inputs nor token ids alone",
        where=f"graph {graph.name}, inputs {found}",
        hint="run discover-inputs first",
    )


def _table_of(ids: Value) -> Value | None:
    """The constant matrix of which the ids pick rows, or None."""
    for node, index in ids.uses:
        data = node.inputs[0]
        if node.op == "Gather" and index == 1 and data is not None and data.shape is not None:
            return data
    return None


def _require_ids(windows: Sequence[np.ndarray], table: Value | None) -> None:
    count = table.shape[0] if table is not None and table.shape else None
    for place, window in enumerate(windows):
        if not len(window):
            raise LadingError("Q438", f"calibration window {place} is empty")
        low, high = int(np.min(window)), int(np.max(window))
        if low < 0 or (type(count) is int and high >= count):
            raise LadingError(
                "Q438",
                f"calibration window {place} has the token ids {low} to {high}, the model knows 0 to {count - 1}"
                if type(count) is int
                else f"calibration window {place} has the token id {low}",
                hint="tokenize the text with the tokenizer of this checkpoint",
            )


__all__ = ["Feeds", "window_feeds"]
