"""Digests of what a value of a graph is computed from, so that work on it can be kept between runs.

Two values with one digest have the same numbers for the same feeds: operators, attributes and constants below them are
the same, whatever they are called. Constants in files count by place, size and time of the last change, not by content,
which would mean to read the whole checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from ir.graph.graph import Graph, Node, Value
from ir.graph.order import reads
from ir.tensor.base import Tensor
from ir.tensor.identity import joined_digest, tensor_identity


def value_digests(graph: Graph, values: Iterable[Value], describe_input: Callable[[Value], str]) -> dict[Value, str]:
    """Digest (hex) of each value.

    Args:
        graph: the root graph that holds them.
        values: what to identify.
        describe_input: says for an input of the graph what it is fed.

    Raises:
        LadingError: T252 a file of a constant cannot be found.
    """
    work = Digests(graph, describe_input)
    return {value: work.value(value) for value in values}


class Digests:
    """Digests of the values of a graph, found when they are asked for; arguments and errors as for `value_digests`."""

    def __init__(self, graph: Graph, describe_input: Callable[[Value], str]) -> None:
        self._graph = graph
        self._describe = describe_input
        self._known: dict[Value, str] = {}
        self._seed = repr(sorted(graph.opsets.items()))
        self._tensor = cache(tensor_identity)

    def count_as(self, value: Value, digest: str) -> None:
        """Give a constant another digest, before any value that follows from it is asked for."""
        self._known[value] = digest

    def value(self, value: Value) -> str:
        """Digest of a value of the root graph or of one around a subgraph."""
        waiting = [value]
        while waiting:
            item = waiting[-1]
            if item in self._known:
                waiting.pop()
                continue
            needed = [] if item.producer is None else [v for v in reads(item.producer) if v not in self._known]
            if needed:
                waiting += needed
                continue
            waiting.pop()
            self._set(item, self._known)
        return self._known[value]

    def _set(self, value: Value, known: dict[Value, str]) -> None:
        if value.const is not None:
            known[value] = self._tensor(value.const)
        elif value.producer is None:
            known[value] = joined_digest("input", str(value.type), self._describe(value))
        else:
            self._set_results(value.producer, known)

    def _set_results(self, node: Node, known: dict[Value, str]) -> None:
        inputs = ["" if value is None else known[value] for value in node.inputs]
        attributes = [f"{name}={self._attribute(item, known)}" for name, item in sorted(node.attrs.items())]
        body = self._graph.functions.get(node.op)
        function = "" if body is None else self._body(body, {})
        parts = (self._seed, node.op, node.overload, function, *inputs, "attributes", *attributes)
        for place, value in enumerate(node.outputs):
            known[value] = joined_digest(*parts, f"output {place}")

    def _attribute(self, item: Any, known: Mapping[Value, str]) -> str:
        if isinstance(item, Tensor):
            return self._tensor(item)
        if isinstance(item, Graph):
            return self._body(item, known)
        if isinstance(item, tuple):
            return "(" + ",".join(self._attribute(part, known) for part in item) + ")"
        return f"{type(item).__name__}:{item!r}"

    def _body(self, body: Graph, outer: Mapping[Value, str]) -> str:
        """Digest of a graph inside a node or of a function: its inputs count by place."""
        known = dict(outer)
        for place, value in enumerate(body.inputs):
            known[value] = joined_digest("argument", str(place))
        for value in body.consts.values():
            self._set(value, known)
        for node in body.nodes:
            self._set_results(node, known)
        return joined_digest("body", *(known[value] for value in body.outputs))


__all__ = ["Digests", "value_digests"]
