"""Read-only views of a graph for algorithms: numbered (`flow`) and as a networkx graph (`dataflow`).

Both have a vertex for every node and every value, constants included, and an edge for every read and every result. They
are computed when first asked for and kept until the graph's version moves. Edits go to the graph, never to a view.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ir.graph.graph import Graph, GraphError, Node, Value
from ir.graph.order import captured

if TYPE_CHECKING:
    import networkx as nx

Vertex = Node | Value
Result = TypeVar("Result")


def cached(graph: Graph, key: Hashable, compute: Callable[[], Result]) -> Result:
    """The result kept under `key` for the graph's present version, else what `compute` returns.

    The results live on the graph itself, so they die with it, and all of them are dropped at the first request after an
    edit. Do not change a cached result.
    """
    version, results = graph.analyses
    if version != graph.version:
        results = {}
        graph.analyses = (graph.version, results)
    if key not in results:
        results[key] = compute()
    return results[key]


@dataclass(frozen=True, slots=True)
class Flow:
    """The dataflow of one graph with vertices numbered in topological order.

    Attributes:
        items: node or value by number: inputs, constants, then each node followed by its outputs. A value captured from
            an outer graph comes just before the first node that reads it.
        index: number by node or value.
        preds, succs: numbers of the vertices before and after each vertex, without repeats. A node that holds
            subgraphs also reads what they capture.
    """

    items: list[Vertex]
    index: dict[Vertex, int]
    preds: list[list[int]]
    succs: list[list[int]]

    def numbers(self, items: Iterable[Vertex]) -> list[int]:
        """Numbers of nodes or values, in the order given; KeyError when one is not part of the graph."""
        return [self.index[item] for item in items]


def flow(graph: Graph) -> Flow:
    """The numbered dataflow; GraphError when the program order is not topological."""
    return cached(graph, "flow", lambda: _flow(graph))


def _flow(graph: Graph) -> Flow:
    items: list[Vertex] = [*graph.inputs, *graph.consts.values()]
    index: dict[Vertex, int] = {value: number for number, value in enumerate(items)}
    preds: list[list[int]] = [[] for _ in items]
    succs: list[list[int]] = [[] for _ in items]

    def add(item: Vertex, before: list[int]) -> int:
        number = len(items)
        items.append(item)
        index[item] = number
        preds.append(before)
        succs.append([])
        for pred in before:
            succs[pred].append(number)
        return number

    for node in graph.nodes:
        values = [value for value in node.inputs if value is not None]
        for sub in node.subgraphs:
            values.extend(captured(sub))
        for value in values:
            if value not in index:
                if value.graph is graph:
                    raise GraphError(f"{node!r} comes before {value!r}, which it reads: call toposort")
                add(value, [])
        number = add(node, list(dict.fromkeys([index[value] for value in values])))
        for value in node.outputs:
            add(value, [number])
    return Flow(items, index, preds, succs)


def dataflow(graph: Graph) -> nx.DiGraph:
    """The dataflow as a frozen ``networkx.DiGraph`` whose vertices are the `Node` and `Value` objects.

    An edge from a value to a node carries ``index``, the tuple of input positions at which the node reads it (empty
    when only a subgraph of the node captures it); an edge from a node to a value carries ``index``, a tuple with the
    output position. Vertices are added in topological order.
    """
    return cached(graph, "dataflow", lambda: _dataflow(graph))


def _dataflow(graph: Graph) -> nx.DiGraph:
    import networkx as nx

    numbered = flow(graph)
    view = nx.DiGraph()
    view.add_nodes_from(numbered.items)
    for node in graph.nodes:
        positions: dict[Value, tuple[int, ...]] = {}
        for at, value in enumerate(node.inputs):
            if value is not None:
                positions[value] = (*positions.get(value, ()), at)
        for sub in node.subgraphs:
            for value in captured(sub):
                positions.setdefault(value, ())
        view.add_edges_from((value, node, {"index": at}) for value, at in positions.items())
        view.add_edges_from((node, value, {"index": (value.index,)}) for value in node.outputs)
    return nx.freeze(view)


__all__ = ["Flow", "Vertex", "cached", "dataflow", "flow"]
