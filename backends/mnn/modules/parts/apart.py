"""Take a graph with choices apart: one flat graph whose parts are joined by nothing but the names of values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ir.graph.copy import add_again, copied
from ir.graph.graph import Graph, Node, Value


@dataclass(frozen=True, eq=False)
class Side:
    """What is computed when a choice falls on it.

    Attributes:
        inputs: its own inputs, by the values outside that they hold; one that nothing reads where it reads none.
        outputs: its results.
    """

    inputs: Mapping[str, str]
    outputs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Choice:
    """One choice.

    Attributes:
        name: of the node.
        condition: the value that decides.
        results: what the choice gives; an input of the flat graph each.
        then, other: what is computed for a true and for a false condition.
    """

    name: str
    condition: str
    results: tuple[str, ...]
    then: Side
    other: Side


class _Around(dict[Value, Value]):
    """What the values of a side are in the flat graph; those around it are themselves."""

    def __missing__(self, key: Value) -> Value:
        return key


def apart(graph: Graph) -> tuple[Graph, tuple[Choice, ...]]:
    """A graph without choices, and how its parts belong together; the graph itself where it has none.

    Values that one part takes from another are outputs of the flat graph under their names, and inputs of their type. A
    result that a side hands on, or gives twice, gets an Identity.
    """
    if not any(node.op == "If" for node in graph.nodes):
        return graph, ()
    flat = copied(graph)
    ends = dict.fromkeys(flat.outputs)
    given = set(flat.inputs)
    flat.set_outputs([])
    found: list[Choice] = []
    while (node := next((each for each in flat.nodes if each.op == "If"), None)) is not None:
        found.append(_part(flat, node, ends))
    # Inputs that no node reads are lost unless they are outputs too; what joins parts is among those of the parts already.
    joints = set(flat.inputs) - given
    flat.set_outputs([value for value in ends if value not in joints or not value.uses])
    return flat, tuple(found)


def _part(flat: Graph, node: Node, ends: dict[Value, None]) -> Choice:
    """Write the sides of a choice into the flat graph as parts of their own, and inputs for its results."""
    bodies = [node.attrs[name] for name in ("then_branch", "else_branch")]
    then, other = (_side(flat, node, body, ends) for body in bodies if isinstance(body, Graph))
    condition = node.operand(0)
    ends[condition] = None
    results: list[tuple[Value, str]] = []
    for value in node.outputs:
        own = flat.add_input(flat.fresh_name(value.name), value.type, value.loc)
        flat.replace(value, own)
        ends.pop(value, None)
        results.append((own, value.name))
    flat.erase(node)
    for own, name in results:
        flat.rename(own, name)
    return Choice(node.name or results[0][1], condition.name, tuple(name for _, name in results), then, other)


def _side(flat: Graph, node: Node, body: Graph, ends: dict[Value, None]) -> Side:
    read = (value for inner in body.walk() for value in inner.inputs if value is not None and value.const is None)
    outside = [value for value in dict.fromkeys(read) if value.graph is flat]
    if not outside:
        # The runtime dies in a graph without inputs, so that it gets one that nothing reads.
        outside = [node.operand(0)]
    known = _Around()
    for value in outside:
        known[value] = flat.add_input(flat.fresh_name(f"{value.name}.{body.name}"), value.type, value.loc)
        ends.update(dict.fromkeys((value, known[value])))
    for value in body.consts.values():
        known[value] = flat.add_const(value.name, value.tensor, value.loc)
    inputs = {value.name: known[value].name for value in outside}
    inside = {value for inner in body.nodes for value in add_again(inner, flat, known, before=node).outputs}
    made: list[Value] = []
    for value in body.outputs:
        result = known[value]
        if result not in inside or result in made:
            result = flat.add("Identity", [result], types=[result.type], before=node, loc=node.loc).output
        made.append(result)
    ends.update(dict.fromkeys(made))
    return Side(inputs, tuple(value.name for value in made))


__all__ = ["Choice", "Side", "apart"]
