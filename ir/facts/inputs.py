"""The reconciliation of a graph's inputs with a calling convention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from ir.base.diag import Diagnostic, LadingError
from ir.graph.graph import Fact, Graph

Why = Literal[
    "runtime-feeds",
    "dangling",
    "declared",
    "frozen-by-tracing",
    "shape-computed",
    "whole-sequence",
    "kv-cache",
    "renamed",
]
"""What a graph did before an input was declared: leave it to the runtime, read what nothing makes (``dangling``), take it
as an input of its own (``declared``), hold a constant, compute it from shapes, return every row, keep no history, or call
it otherwise."""


@dataclass(frozen=True)
class Discovery:
    """Why one input was declared.

    Attributes:
        input: name of the declared graph input.
        kind: meaning, one of the kinds of `ir.target.signature`; of a graph without a convention ``free`` for what nothing
            made and ``given`` for what the model declared.
        why: what the graph did before.
        reason: one sentence for people.
        node: node or value of the original graph where it was found; empty when nowhere in particular.
        default: value to feed when nothing better is known.
        shapes: every shape that the runtime may feed, as ints and dimension names.
        low, high: legal values of an integer input.
        meaning: what the runtime feeds.
        given: inputs of the original graph in whose place it stands.
    """

    input: str
    kind: str
    why: Why
    reason: str
    node: str = ""
    default: float | int | None = None
    shapes: tuple[tuple[int | str, ...], ...] = ()
    low: int | None = None
    high: int | None = None
    meaning: str = ""
    given: tuple[str, ...] = ()


@dataclass(frozen=True)
class DynamicInputs(Fact):
    """The reconciliation of a graph with a calling convention, or with none: then whoever runs it feeds it."""

    name: ClassVar[str] = "dynamic-inputs"

    signature: str
    """The convention; empty for a graph that is no language model, whose inputs are its own."""
    discoveries: tuple[Discovery, ...]
    keeps_cache: bool = True
    windows: tuple[int, ...] = ()
    """Distinct attention windows of the graph (0 for full attention), in the order of the mask planes."""

    def to_data(self) -> dict[str, Any]:
        """JSON-able form."""
        data = asdict(self)
        data["discoveries"] = [
            {**item, "shapes": [list(s) for s in item["shapes"]], "given": list(item["given"])}
            for item in data["discoveries"]
        ]
        data["windows"] = list(self.windows)
        return data

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> DynamicInputs:
        """Inverse of `to_data`."""
        found = tuple(
            Discovery(
                **{
                    **item,
                    "shapes": tuple(tuple(shape) for shape in item["shapes"]),
                    "given": tuple(item.get("given", ())),
                }
            )
            for item in data["discoveries"]
        )
        return cls(data["signature"], found, data["keeps_cache"], tuple(data["windows"]))

    def renamed(self, old: str, new: str) -> DynamicInputs:
        """The fact with an input called otherwise."""
        if all(item.input != old for item in self.discoveries):
            return self
        found = tuple(replace(item, input=new) if item.input == old else item for item in self.discoveries)
        return replace(self, discoveries=found)

    def find(self, kind: str) -> Discovery | None:
        """The discovery of a kind, or None."""
        return next((item for item in self.discoveries if item.kind == kind), None)

    def check(self, graph: Graph) -> list[Diagnostic]:
        """Every discovered input is still declared, and rows have an axis of tokens."""
        declared = {value.name: value for value in graph.inputs}
        problems = [
            Diagnostic("I190", f"the discovered input {item.input!r} is not an input of the graph", graph.name)
            for item in self.discoveries
            if item.input not in declared
        ]
        rows = declared.get(found.input) if (found := self.find("embedding-rows")) is not None else None
        if rows is not None and rows.shape == ():
            message = f"the input {rows.name!r} is recorded as rows of the embedding and has no axis of tokens"
            problems.append(Diagnostic("I133", message, graph.name, "run discover-inputs"))
        return problems

    def require(self, graph: Graph) -> None:
        """Raise LadingError I190 where a discovered input is not one of the graph."""
        problems = self.check(graph)
        if problems:
            raise LadingError.of(problems)

    def feeds(self, graph: Graph, ids: np.ndarray, *, index: int = 0) -> dict[str, np.ndarray]:
        """What the runtime feeds for a fresh prefill of token ids (int[seq]), for evaluation.

        `index` is the value of ``logits_index``: 0 for all rows, -1 for the last.
        """
        ids = np.asarray(ids).reshape(-1)
        seq = len(ids)
        made: dict[str, np.ndarray] = {}
        for value in graph.inputs:
            found = next((item for item in self.discoveries if item.input == value.name), None)
            if found is None:
                raise _unknown(f"input {value.name!r} was not discovered", graph)
            if found.kind == "embedding-rows":
                rows = table_rows(graph, "embedding", ids)
                made[value.name] = np.ascontiguousarray(rows.reshape(seq, 1, -1))
            elif found.kind == "positions":
                made[value.name] = np.arange(seq, dtype=np.int32).reshape(1, seq)
            elif found.kind == "output-rows":
                made[value.name] = np.array([index], dtype=np.int32)
            elif found.kind == "attention-mask":
                made[value.name] = self._mask(value.rank, seq)
            else:
                raise _unknown(f"input {value.name!r} is of the unknown kind {found.kind!r}", graph)
        return made

    def adapt_feeds(self, feeds: Mapping[str, np.ndarray], graph: Graph) -> dict[str, np.ndarray]:
        """Feeds of the graph with declared inputs that mean the same as token ids did before, the same rows wanted."""
        rows, chosen = self.find("embedding-rows"), self.find("output-rows")
        whole = next(array for array in feeds.values() if np.issubdtype(array.dtype, np.integer))
        ids = next((feeds[name] for name in (rows.given if rows is not None else ()) if name in feeds), whole)
        index = -1 if chosen is not None and chosen.why == "frozen-by-tracing" else 0
        if chosen is not None and chosen.given and chosen.given[0] in feeds:
            index = int(feeds[chosen.given[0]].reshape(-1)[0])
        return self.feeds(graph, ids, index=index)

    def adapt_outputs(self, outputs: Mapping[str, np.ndarray], graph: Graph) -> dict[str, np.ndarray]:
        """The same outputs under the names that the runtime reads, of chosen rows in the form of all rows."""
        made = {}
        for value, array in zip(graph.outputs, outputs.values(), strict=True):
            flat = value.rank is not None and 0 < array.ndim < value.rank
            made[value.name] = array.reshape((1,) * (value.rank - 2) + (-1, array.shape[-1])) if flat else array  # type: ignore[operator]
        return made

    def _mask(self, rank: int | None, seq: int) -> np.ndarray:
        if rank == 0:
            return np.zeros((), dtype=np.float32)
        gap = np.arange(seq)[:, None] - np.arange(seq)[None, :]
        low = np.finfo(np.float32).min
        window = max(self.windows, default=0) or seq
        full = np.where(gap >= 0, 0.0, low).astype(np.float32)
        near = np.where((gap >= 0) & (gap < window), 0.0, low).astype(np.float32)
        return np.stack([full, near])[:, None, None]


def _unknown(message: str, graph: Graph) -> LadingError:
    return LadingError("I133", f"nothing can be fed: {message}", graph.name, "run discover-inputs on the original")


def table_rows(graph: Graph, name: str, ids: np.ndarray) -> np.ndarray:
    """Rows of a table of the graph as float32[len(ids), width], reading no others.

    The table may be a constant or the output of a blocked dequantization or a Cast of constants.
    """
    value = graph.tables.get(name)
    if value is None:
        raise _unknown(f"there is no table {name!r}", graph)
    unique, inverse = np.unique(ids, return_inverse=True)
    from ir.quant.stored_weight import obstacle, storage_of

    weight = storage_of(value)
    if weight is None:
        raise _unknown(f"the table {name!r} is no stored weight: {obstacle(value)}", graph)
    rows = np.concatenate([weight.dequantized_rows(int(i), int(i) + 1) for i in unique])
    return rows[inverse]
