"""Order and visibility of names in ONNX graph messages, before there is a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from heapq import heapify, heappop, heappush

import onnx


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs that a node's attributes hold."""
    found: list[onnx.GraphProto] = []
    for attribute in node.attribute:
        if attribute.HasField("g"):
            found.append(attribute.g)
        found.extend(attribute.graphs)
    return found


def defined(graph: onnx.GraphProto) -> set[str]:
    """Every name that a graph defines at its own level."""
    names = {item.name for item in graph.input}
    names.update(item.name for item in graph.initializer)
    names.update(item.values.name for item in graph.sparse_initializer)
    for node in graph.node:
        names.update(node.output)
    names.discard("")
    return names


def captured(graph: onnx.GraphProto) -> dict[str, None]:
    """The names that a graph or one inside it reads from around itself, in order."""
    reads: dict[str, None] = {}
    for node in graph.node:
        reads.update(dict.fromkeys(read_by(node)))
    reads.update((item.name, None) for item in graph.output)
    own = defined(graph)
    return {name: None for name in reads if name and name not in own}


def read_by(node: onnx.NodeProto) -> list[str]:
    """The names that a node reads: inputs that are not left out, and what its subgraphs capture."""
    names = [name for name in node.input if name]
    for graph in subgraphs(node):
        names.extend(captured(graph))
    return names


def every_name(graphs: Iterable[onnx.GraphProto]) -> set[str]:
    """Every name used anywhere in graphs and the graphs inside them."""
    names: set[str] = set()
    waiting = list(graphs)
    while waiting:
        graph = waiting.pop()
        names |= defined(graph)
        names.update(item.name for item in graph.output)
        for node in graph.node:
            names.update(node.input)
            waiting.extend(subgraphs(node))
    return names


def sort_nodes(
    nodes: Sequence[onnx.NodeProto], is_known: Callable[[str], bool]
) -> tuple[list[onnx.NodeProto], list[str], list[onnx.NodeProto]]:
    """Nodes so that each follows its producers, the given order kept among nodes that are ready.

    Args:
        nodes: nodes of one level.
        is_known: tells whether a name that none of the nodes produces is defined before them.

    Returns:
        The order, the names that nobody produces, and the nodes on cycles or behind them.
    """
    producer = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    readers: list[list[int]] = [[] for _ in nodes]
    waiting: list[int] = []
    missing: dict[str, None] = {}
    for index, node in enumerate(nodes):
        before: set[int] = set()
        for name in read_by(node):
            if name in producer:
                before.add(producer[name])
            elif not is_known(name):
                missing[name] = None
        waiting.append(len(before))
        for other in before:
            readers[other].append(index)
    ready = [index for index, count in enumerate(waiting) if not count]
    heapify(ready)
    order: list[onnx.NodeProto] = []
    while ready:
        index = heappop(ready)
        order.append(nodes[index])
        for reader in readers[index]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heappush(ready, reader)
    stuck = [node for node, count in zip(nodes, waiting, strict=True) if count]
    return order, list(missing), stuck


__all__ = ["captured", "defined", "every_name", "read_by", "sort_nodes", "subgraphs"]
