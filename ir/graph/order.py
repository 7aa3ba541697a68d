"""Stable topological order of a graph's nodes."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from ir.graph.graph import Graph, GraphError, Node, Value


def reads(node: Node) -> Iterator[Value]:
    """Every value a node reads: its inputs and what its subgraphs capture from outside of themselves."""
    for value in node.inputs:
        if value is not None:
            yield value
    for sub in node.subgraphs:
        yield from captured(sub)


def captured(sub: Graph) -> Iterator[Value]:
    """Every value of the graph around `sub` that `sub` or a graph inside it reads or returns, repeats included."""
    outer = sub.parent
    waiting = [sub]
    while waiting:
        graph = waiting.pop()
        for node in graph.nodes:
            for value in node.inputs:
                if value is not None and value.graph is outer:
                    yield value
            waiting.extend(node.subgraphs)
        for value in graph.outputs:
            if value.graph is outer:
                yield value


def toposort(graph: Graph) -> bool:
    """Reorder the nodes so that each follows its producers, keeping the order where it is already right.

    Returns True when the order changed. Raises `ir.graph.graph.GraphError` on a cycle.
    """
    return graph.reorder(topological(graph))


def topological(graph: Graph) -> list[Node]:
    """The nodes so that each follows its producers; among ready nodes the present order is kept.

    Raises `ir.graph.graph.GraphError` when the nodes form a cycle, naming the nodes on one.
    """
    nodes = list(graph.nodes)
    place = {node: position for position, node in enumerate(nodes)}
    waiting: list[int] = []
    readers: list[list[int]] = [[] for _ in nodes]
    for position, node in enumerate(nodes):
        producers = {place[v.producer] for v in reads(node) if v.producer is not None and v.producer in place}
        waiting.append(len(producers))
        for producer in producers:
            readers[producer].append(position)
    ready = [position for position, count in enumerate(waiting) if count == 0]
    heapify(ready)
    order: list[Node] = []
    while ready:
        position = heappop(ready)
        order.append(nodes[position])
        for reader in readers[position]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heappush(ready, reader)
    if len(order) < len(nodes):
        stuck = [repr(node) for node, count in zip(nodes, waiting, strict=True) if count]
        raise GraphError("cycle through " + "; ".join(stuck[:4]))
    return order
