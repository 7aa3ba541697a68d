"""A graph cut at some of its values, and evaluated on others in their place.

Cut at every weight product, a decoder is small whatever its size: what is left are norms, attention and tables, which
no weight is read for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ir.base.types import Dim, TensorType
from ir.evaluate.evaluator import Evaluator
from ir.graph.copy import copied
from ir.graph.graph import Graph, Node, Value
from ir.onnx.keys import UNMADE

SIZES = frozenset({"Shape", "Size"})
"""Operators through which no numbers flow."""


class Cut:
    """Values of a graph as functions of its inputs and of the values it is cut at; the graph itself is not touched."""

    def __init__(self, graph: Graph, at: Iterable[Value], wanted: Sequence[Value]) -> None:
        """Cut a graph.

        Args:
            graph: the graph.
            at: values to feed in place of what they are computed from.
            wanted: values to compute.
        """
        twin = copied(graph)
        self._fed: dict[Value, str] = {value: value.name for value in graph.inputs}
        names = [value.name for value in wanted]
        for value in twin.inputs:
            if value.loc.startswith(UNMADE) and isinstance(value.type, TensorType):
                twin.set_type(value, TensorType(value.dtype, None))
        for value in at:
            inner = twin.value(value.name)
            fed = twin.add_input(twin.fresh_name(f"{value.name}.cut"), _loose(inner, len(self._fed)))
            twin.replace(inner, fed)
            self._fed[value] = fed.name
        self._names = dict(zip(wanted, names, strict=True))
        self._evaluator = Evaluator(twin, names)
        read = {value.name for value in self._evaluator.needed}
        self.needed = frozenset(value for value, name in self._fed.items() if name in read)
        """The inputs, and values cut at, that have to be fed."""

    def run(self, feeds: Mapping[Value, np.ndarray]) -> dict[Value, np.ndarray]:
        """The wanted values; errors as for `Evaluator.run`."""
        return self.run_many([feeds])[0]

    def run_many(self, feeds: Sequence[Mapping[Value, np.ndarray]]) -> list[dict[Value, np.ndarray]]:
        """The wanted values for each set of feeds."""
        given = [{self._fed[value]: array for value, array in feed.items() if value in self.needed} for feed in feeds]
        found = self._evaluator.run_many(given)
        return [{value: result[name] for value, name in self._names.items()} for result in found]


def _loose(value: Value, number: int) -> TensorType | None:
    """The type of a value whose axes, all but the last, may be of any size."""
    if not isinstance(value.type, TensorType) or value.shape is None:
        return None
    free = (Dim(f"cut{number}_{place}") for place in range(len(value.dims) - 1))
    return TensorType(value.dtype, (*free, *value.dims[-1:]))


def upstream(wanted: Iterable[Value], stop: Iterable[Value] = ()) -> tuple[set[Node], set[Value]]:
    """The nodes that values are computed by, back to where to stop, and all values read there.

    What a value is as large as is not followed: paths through Shape carry no numbers of it.
    """
    ends = set(stop)
    nodes: set[Node] = set()
    values: set[Value] = set()
    stack = list(wanted)
    while stack:
        value = stack.pop()
        if value in values:
            continue
        values.add(value)
        node = value.producer
        if value in ends or node is None:
            continue
        nodes.add(node)
        if node.op in SIZES:
            continue
        stack.extend(item for item in node.inputs if item is not None)
        for sub in node.subgraphs:
            for inner in sub.walk():
                stack.extend(item for item in inner.inputs if item is not None and item.graph is value.graph)
    return nodes, values


def numbers_of(values: Iterable[Value], nodes: Iterable[Node] = ()) -> list[float]:
    """Single numbers among constants, and among the attributes of nodes, each once."""
    found: dict[float, None] = {}
    for value in values:
        tensor = value.const
        if (
            tensor is not None
            and tensor.type.size == 1
            and (tensor.type.dtype.is_float or tensor.type.dtype.is_integer)
        ):
            found[float(tensor.load().reshape(-1)[0])] = None
    for node in nodes:
        for item in node.attrs.values():
            if isinstance(item, int | float):
                found[float(item)] = None
    return [number for number in found if np.isfinite(number)]
