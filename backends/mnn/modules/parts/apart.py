"""Take a graph with choices and loops apart: one flat graph whose parts are joined by nothing but the names of values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ir.base.types import I32
from ir.graph.copy import add_again, copied
from ir.graph.graph import Graph, Node, Value
from ir.tensor.inline import InlineTensor

NESTING = frozenset({"If", "Loop"})
"""Operators whose bodies become parts."""


@dataclass(frozen=True, eq=False)
class Part:
    """A body.

    Attributes:
        inputs: what it is given: values outside, each with the input of the part that holds it.
        outputs: its results.
    """

    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Choice:
    """One of two parts is computed.

    Attributes:
        name: of the node.
        condition: the value that decides.
        results: what the choice gives; an input of the flat graph each.
        then, other: what is computed for a true and for a false condition.
    """

    name: str
    condition: str
    results: tuple[str, ...]
    then: Part
    other: Part

    @property
    def parts(self) -> tuple[Part, ...]:
        """Both sides."""
        return self.then, self.other


@dataclass(frozen=True, eq=False)
class Loop:
    """A part is computed again and again.

    Attributes:
        name: of the node.
        results: last states, among them what the body reads from outside and hands on, and what the steps gave.
        body: its inputs are the number of the step, which holds the limit of steps outside, whether the loop goes on, and
            the states; its outputs whether it goes on, the states, and what the step gives.
    """

    name: str
    results: tuple[str, ...]
    body: Part

    @property
    def parts(self) -> tuple[Part, ...]:
        """The body."""
        return (self.body,)


Joint = Choice | Loop


class _Around(dict[Value, Value]):
    """What the values of a body are in the flat graph; those around it are themselves."""

    def __missing__(self, key: Value) -> Value:
        return key


def apart(graph: Graph) -> tuple[Graph, tuple[Joint, ...]]:
    """A graph without choices and loops, and how its parts belong together; the graph itself where it has none.

    Values that one part takes from another are outputs of the flat graph under their names, and inputs of their type. A
    result that a body hands on, or gives twice, gets an Identity.
    """
    if not any(node.op in NESTING for node in graph.nodes):
        return graph, ()
    work = _Apart(copied(graph))
    return work.flat, work.run()


class _Apart:
    def __init__(self, flat: Graph) -> None:
        self.flat = flat
        self._ends = dict.fromkeys(flat.outputs)
        self._given = set(flat.inputs)
        self._found: list[Joint] = []

    def run(self) -> tuple[Joint, ...]:
        """Flatten the graph."""
        self.flat.set_outputs([])
        while (node := next((each for each in self.flat.nodes if each.op in NESTING), None)) is not None:
            self._found.append(self._choice(node) if node.op == "If" else self._loop(node))
        # Inputs that no node reads are lost unless they are outputs too; what joins parts is an output of one already.
        joints = set(self.flat.inputs) - self._given
        self.flat.set_outputs([value for value in self._ends if value not in joints or not value.uses])
        return tuple(self._found)

    def _choice(self, node: Node) -> Choice:
        condition = node.operand(0)
        self._ends[condition] = None
        sides = []
        for key in ("then_branch", "else_branch"):
            body = _body(node, key)
            # The runtime dies in a graph without inputs, so that it gets one that nothing reads.
            read = _outside(body, self.flat) or [condition]
            sides.append(self._part(node, body, [(value, value) for value in read], body.outputs))
        return Choice(_name(node), condition.name, self._results(node, len(node.outputs), ()), *sides)

    def _loop(self, node: Node) -> Loop:
        body = _body(node, "body")
        given = [
            node.input(0) or self._constant(node, np.array(I32.high, np.int64)),
            node.input(1) or self._constant(node, np.array(True)),
            *(node.operand(place) for place in range(2, len(node.inputs))),
        ]
        read = _outside(body, self.flat)
        held = [*zip(map(self._computed, [node] * len(given), given), body.inputs, strict=True)]
        states = len(given) - 1
        outputs = [*body.outputs[:states], *read, *body.outputs[states:]]
        part = self._part(node, body, [*held, *((value, value) for value in read)], outputs)
        return Loop(_name(node), self._results(node, states - 1, read), part)

    def _part(self, node: Node, body: Graph, given: Iterable[tuple[Value, Value]], outputs: Iterable[Value]) -> Part:
        """Write a body into the flat graph.

        Args:
            node: what the body belongs to.
            body: it.
            given: values outside, each with the value that stands for it in the body.
            outputs: what the part gives.
        """
        flat, known = self.flat, _Around()
        inputs: list[tuple[str, str]] = []
        for value, inner in given:
            own = flat.add_input(flat.fresh_name(f"{inner.name}.{body.name}"), inner.type, inner.loc)
            known[inner] = own
            self._ends.update(dict.fromkeys((value, own)))
            inputs.append((value.name, own.name))
        for value in body.consts.values():
            known[value] = flat.add_const(value.name, value.tensor, value.loc)
        inside = {value for each in body.nodes for value in add_again(each, flat, known, before=node).outputs}
        made: list[Value] = []
        for value in outputs:
            result = known[value]
            if result not in inside or result in made:
                result = self._handed_on(node, result)
            made.append(result)
        self._ends.update(dict.fromkeys(made))
        return Part(tuple(inputs), tuple(value.name for value in made))

    def _results(self, node: Node, place: int, more: Sequence[Value]) -> tuple[str, ...]:
        """Inputs of the flat graph in the place of the results of a node, which is erased, and more of them at a place."""
        flat = self.flat
        results: list[tuple[Value, str]] = []
        for value in node.outputs:
            own = flat.add_input(flat.fresh_name(value.name), value.type, value.loc)
            flat.replace(value, own)
            self._ends.pop(value, None)
            results.append((own, value.name))
        flat.erase(node)
        for own, name in results:
            flat.rename(own, name)
        unread = [flat.add_input(flat.fresh_name(f"{value.name}.last"), value.type, value.loc).name for value in more]
        names = [name for _, name in results]
        return (*names[:place], *unread, *names[place:])

    def _computed(self, node: Node, value: Value) -> Value:
        """A value that is a tensor of the net: of a constant what hands it on."""
        return value if value.const is None else self._handed_on(node, value)

    def _constant(self, node: Node, array: np.ndarray) -> Value:
        return self._handed_on(node, self.flat.add_const(f"{_name(node)}.begin", InlineTensor(array)))

    def _handed_on(self, node: Node, value: Value) -> Value:
        return self.flat.add("Identity", [value], types=[value.type], before=node, loc=node.loc).output


def _name(node: Node) -> str:
    return node.name or node.outputs[0].name


def _body(node: Node, key: str) -> Graph:
    body = node.attrs[key]
    assert isinstance(body, Graph)
    return body


def _outside(body: Graph, flat: Graph) -> list[Value]:
    """What a body reads of the values of the flat graph, but for constants."""
    read = (value for inner in body.walk() for value in inner.inputs if value is not None and value.const is None)
    results = (value for one in body.graphs() for value in one.outputs if value.const is None)
    return [value for value in dict.fromkeys((*read, *results)) if value.graph is flat]


__all__ = ["NESTING", "Choice", "Joint", "Loop", "Part", "apart"]
