"""Lists that the steps of a loop append to, as what the steps give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ir.base.types import TensorType
from ir.graph.graph import Graph, Node, Value
from ir.ops.registry import attribute, rank_of
from ir.tensor.inline import InlineTensor
from passes.canonicalize.infer_types import typed
from passes.framework.base import Pass, Result
from passes.framework.context import PassContext


@dataclass(frozen=True)
class StackLists(Pass):
    """Let a loop give its steps' results as one tensor in place of a list that every step appends to.

    Exporters write a list of a program that way (`SequenceEmpty`, `SequenceInsert` in a loop, `ConcatFromSequence`), and
    runtimes without lists know what the steps of a loop give (ONNX, Loop: scan outputs). Lists of which something else
    is asked stay.
    """

    name = "stack-lists"
    requires = ("typed",)

    def run(self, graph: Graph, ctx: PassContext) -> Result:
        """See `Pass.run`."""
        count = 0
        for node in [node for node in graph.walk() if node.op == "Loop"]:
            places = _lists(node)
            if places:
                _stack(node, places)
                count += len(places)
        if not count:
            return None
        typed(graph)
        return {"lists": count}


def _lists(node: Node) -> list[int]:
    """Which states of a loop are lists that begin empty, get one tensor in each step, and are joined behind it."""
    body = node.attrs.get("body")
    if (
        not isinstance(body, Graph)
        or len(body.inputs) != len(node.inputs)
        or len(body.outputs) - 1 != len(node.outputs)
    ):
        return []
    return [place for place in range(len(node.inputs) - 2) if _is_list(node, body, place)]


def _is_list(node: Node, body: Graph, place: int) -> bool:
    begin, held, last = node.input(2 + place), body.inputs[2 + place], body.outputs[1 + place]
    made, result = last.producer, node.outputs[place]
    return (
        begin is not None
        and begin.producer is not None
        and begin.producer.op == "SequenceEmpty"
        and made is not None
        and made.op == "SequenceInsert"
        and made.graph is body
        and made.input(0) is held
        and made.input(2) is None
        and held.use_count == 1
        and last.use_count == 1
        and rank_of(made.input(1)) is not None
        and not result.is_output
        and all(user.op == "ConcatFromSequence" for user in result.users)
    )


def _stack(node: Node, places: Sequence[int]) -> None:
    """Put a loop in the place of one whose states are lists at some places."""
    graph, body, states = node.home, node.attrs["body"], len(node.inputs) - 2
    assert isinstance(body, Graph)
    gone = set(places)
    kept = [place for place in range(states) if place not in gone]
    inserted = [body.outputs[1 + place].producer for place in places]
    given: list[Value] = []
    for insert in inserted:
        if insert is not None:
            given.append(_own(body, insert.operand(1), given))
    lists = [body.inputs[2 + place] for place in places]
    last = [body.outputs[1 + place] for place in kept]
    body.set_outputs([body.outputs[0], *last, *body.outputs[1 + states :], *given])
    for insert in inserted:
        if insert is not None:
            body.erase(insert)
    for value in lists:
        body.remove_input(value)
    begins = [node.operand(2 + place) for place in places]
    results = [node.outputs[place] for place in kept] + list(node.outputs[states:])
    attrs = dict(node.attrs)
    made = graph.add(
        "Loop",
        [node.input(0), node.input(1), *(node.operand(2 + place) for place in kept)],
        attrs,
        outputs=[*(value.name for value in results), *(node.outputs[place].name for place in places)],
        types=[*(value.type for value in results), *(_stacked(value) for value in given)],
        before=node,
        name=node.name,
        loc=node.loc,
    )
    for old, new in zip(results, made.outputs, strict=False):
        graph.replace(old, new)
    for place, value, new in zip(places, given, made.outputs[len(results) :], strict=True):
        for reader in node.outputs[place].users:
            _join(reader, new, 1 + (rank_of(value) or 0))
    names = [value.name for value in results]
    graph.erase(node)
    for new, name in zip(made.outputs, names, strict=False):
        graph.rename(new, name)
    for value in begins:
        if value.producer is not None and not value.use_count:
            value.graph.erase(value.producer)


def _own(body: Graph, value: Value, given: Sequence[Value]) -> Value:
    """A value that a body may give besides its other results: made in it, and no result yet."""
    if value.graph is body and value.producer is not None and not value.is_output and value not in given:
        return value
    return body.add("Identity", [value], types=[value.type], outputs=(f"{value.name}.given",)).output


def _stacked(value: Value) -> TensorType | None:
    return TensorType(value.type.dtype) if isinstance(value.type, TensorType) else None


def _join(node: Node, stacked: Value, rank: int) -> None:
    """Put what a `ConcatFromSequence` gives in its place, made of a tensor of so many axes whose first one are the steps."""
    graph = node.home
    fresh = bool(attribute(node, "new_axis"))
    axis = int(attribute(node, "axis")) % (rank if fresh else max(rank - 1, 1))
    result = stacked
    if axis:
        perm = [place for place in range(1, rank)]
        perm.insert(axis, 0)
        result = _add(node, "Transpose", [result], perm=tuple(perm))
    if not fresh:
        sizes = _add(node, "Shape", [result])
        ends = [_ints(node, 0), _ints(node, axis), _ints(node, axis + 2), _ints(node, rank)]
        parts = [_add(node, "Slice", [sizes, *ends[place : place + 2]]) for place in (0, 2)]
        result = _add(node, "Reshape", [result, _add(node, "Concat", [parts[0], _ints(node, -1), parts[1]], axis=0)])
    if result is stacked:
        result = _add(node, "Identity", [result])
    old, name = node.output, node.output.name
    graph.set_type(result, old.type)
    graph.replace(old, result)
    graph.erase(node)
    graph.rename(result, name)


def _add(node: Node, op: str, inputs: Sequence[Value], **attrs: object) -> Value:
    return node.home.add(
        op, inputs, attrs, outputs=(f"{node.output.name}.{op.lower()}",), before=node, loc=node.loc
    ).output


def _ints(node: Node, *numbers: int) -> Value:
    return node.home.add_const(f"{node.output.name}.ints", InlineTensor(np.array(numbers, np.int64)), node.loc)


__all__ = ["StackLists"]
