"""A second graph that equals the first, to be kept while the first is changed; constants are shared, not copied."""

from __future__ import annotations

from typing import Any

from ir.graph.graph import Graph, Node, Value


def copied(graph: Graph) -> Graph:
    """A graph with nodes and values of its own, subgraphs and functions included."""
    twin = Graph(graph.name, graph.opsets)
    twin.foreign, twin.hinted = graph.foreign, graph.hinted
    _fill(graph, twin, {})
    twin.functions = {name: copied(body) for name, body in graph.functions.items()}
    return twin


def _fill(graph: Graph, twin: Graph, known: dict[Value, Value]) -> None:
    """Make everything of a graph again; `known` maps the values of the graphs around it."""
    twin.dims, twin.opsets, twin.metadata = dict(graph.dims), dict(graph.opsets), dict(graph.metadata)
    for value in graph.inputs:
        known[value] = twin.add_input(value.name, value.type, value.loc)
    for value in graph.consts.values():
        known[value] = twin.add_const(value.name, value.const, value.loc)  # type: ignore[arg-type]
    for node in graph.nodes:
        add_again(node, twin, known)
    twin.set_outputs([known[value] for value in graph.outputs])
    for name, value in graph.tables.items():
        twin.set_table(name, known[value])
    for name, fact in graph.facts.items():
        twin.set_fact(name, fact)


def add_again(node: Node, twin: Graph, known: dict[Value, Value], *, before: Node | None = None) -> Node:
    """A node like another, with bodies of its own, in another graph.

    Args:
        node: what is made again.
        twin: the graph that gets it.
        known: what stands for the values that the node reads, those of its bodies included; its results are added.
        before: the node of the graph that it is put in front of; None for the end.
    """
    made = twin.add(
        node.op,
        [known[value] if value is not None else None for value in node.inputs],
        {key: item for key, item in node.attrs.items() if not _holds_graph(item)},
        outputs=[value.name for value in node.outputs],
        types=[value.type for value in node.outputs],
        before=before,
        name=node.name,
        loc=node.loc,
    )
    made.overload = node.overload
    made.metadata.update(node.metadata)
    for value, again in zip(node.outputs, made.outputs, strict=True):
        twin.set_loc(again, value.loc)
    inner = {key: _again(item, made, known) for key, item in node.attrs.items() if _holds_graph(item)}
    if inner:
        # In the order of the original, which texts and messages follow.
        attrs = {key: inner.get(key, item) for key, item in node.attrs.items()}
        twin.set_attrs(made, **dict.fromkeys(made.attrs))
        twin.set_attrs(made, **attrs)
    known.update(zip(node.outputs, made.outputs, strict=True))
    return made


def _holds_graph(item: Any) -> bool:
    return isinstance(item, Graph) or (isinstance(item, tuple) and any(isinstance(part, Graph) for part in item))


def _again(item: Any, owner: Node, known: dict[Value, Value]) -> Any:
    if isinstance(item, tuple):
        return tuple(_again(part, owner, known) for part in item)
    body = Graph(item.name, owner=owner)
    # Values of a subgraph are not seen outside of it.
    _fill(item, body, type(known)(known))
    return body


__all__ = ["add_again", "copied"]
