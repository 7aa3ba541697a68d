"""Loops whose number of steps is known, written out."""

from __future__ import annotations

from collections.abc import Sequence

from backends.mnn.modules.build import Build, type_of
from backends.mnn.modules.rewrites.types import Table
from backends.mnn.modules.table.control import MOST_NODES, steps_written_out
from ir.base.types import BOOL, I64
from ir.graph.copy import add_again
from ir.graph.graph import Graph, Node, Value
from ir.infer.engine import infer_node


class _Known(dict[Value, Value]):
    """What the values of a body are where it is written out; those of the graphs around it are themselves."""

    def __missing__(self, key: Value) -> Value:
        return key


def _body(node: Node, name: str = "body") -> Graph | None:
    found = node.attrs.get(name)
    return found if isinstance(found, Graph) else None


def _size(body: Graph) -> int:
    return sum(1 for _ in body.walk())


def _constants(b: Build, body: Graph) -> dict[Value, Value]:
    return {value: b.const(value.tensor, value.name) for value in body.consts.values()}


def _written(b: Build, body: Graph, inputs: Sequence[Value], constants: dict[Value, Value]) -> list[Value]:
    """The results of a body for some inputs: its nodes in front of the node that holds it."""
    known = _Known(constants)
    known.update(zip(body.inputs, inputs, strict=True))
    for inner in body.nodes:
        made = add_again(inner, b.graph, known, before=b.node)
        b.made.append(made)
        for value, found in zip(made.outputs, infer_node(made), strict=False):
            if found is not None:
                b.graph.set_type(value, found)
    return [known[value] for value in body.outputs]


def scan(node: Node, b: Build) -> Sequence[Value] | None:
    """One copy of the body for each element of the axes that are gone through."""
    body, count = _body(node), int(b.attr("num_scan_inputs") or 0)
    held = len(node.inputs) - count
    if body is None or held < 0 or len(body.inputs) != len(node.inputs) or None in node.inputs:
        return None
    sequences = [node.operand(held + index) for index in range(count)]
    outputs = len(node.outputs) - held
    axes = [_axis(value, axis) for value, axis in zip(sequences, _list(b, "scan_input_axes", count), strict=True)]
    steps = _steps(sequences, axes)
    if steps is None or not 0 < steps * _size(body) <= MOST_NODES:
        return None
    turned = [bool(each) for each in _list(b, "scan_input_directions", count)]
    constants = _constants(b, body)
    states = [node.operand(index) for index in range(held)]
    parts: list[list[Value]] = [[] for _ in range(outputs)]
    for step in range(steps):
        given = [
            b.add("Gather", value, b.scalar(steps - 1 - step if backwards else step, I64), axis=axis)
            for value, axis, backwards in zip(sequences, axes, turned, strict=True)
        ]
        made = _written(b, body, [*states, *given], constants)
        states = made[:held]
        for part, value in zip(parts, made[held:], strict=True):
            part.append(value)
    backwards = [bool(each) for each in _list(b, "scan_output_directions", outputs)]
    places = _list(b, "scan_output_axes", outputs)
    joined = [
        _joined(b, part[::-1] if turn else part, place)
        for part, turn, place in zip(parts, backwards, places, strict=True)
    ]
    return [*states, *joined]


def _list(b: Build, name: str, count: int) -> list[int]:
    found = b.attr(name)
    return [int(each) for each in found] if found else [0] * count


def _axis(value: Value, axis: int) -> int:
    found = type_of(value)
    return axis % found.rank if found is not None and found.rank else 0


def _steps(sequences: Sequence[Value], axes: Sequence[int]) -> int | None:
    """The size of the axes that are gone through; None where it is not known."""
    found = {value.shape[axis] if value.shape else None for value, axis in zip(sequences, axes, strict=True)}
    one = next(iter(found)) if len(found) == 1 else None
    return one if isinstance(one, int) else None


def _joined(b: Build, parts: Sequence[Value], axis: int) -> Value:
    """Results of the steps side by side along a new axis."""
    wide = [b.add("Unsqueeze", part, b.ints(axis)) for part in parts]
    return b.add("Concat", *wide, axis=axis) if len(wide) > 1 else wide[0]


def loop(node: Node, b: Build) -> Sequence[Value] | None:
    """One copy of the body for each step of a loop that goes on for a known number of steps."""
    body, steps = _body(node), steps_written_out(node)
    if body is None or steps is None or None in node.inputs[2:] or len(body.inputs) != max(len(node.inputs), 2):
        return None
    held = len(node.inputs) - 2
    constants, condition = _constants(b, body), b.scalar(True, BOOL)
    states = [node.operand(2 + index) for index in range(held)]
    parts: list[list[Value]] = [[] for _ in node.outputs[held:]]
    for step in range(steps):
        made = _written(b, body, [b.scalar(step, I64), condition, *states], constants)[1:]
        states = made[:held]
        for part, value in zip(parts, made[held:], strict=True):
            part.append(value)
    return [*states, *(_joined(b, part, 0) for part in parts)]


REWRITES: Table = {"Loop": (loop,), "Scan": (scan,)}
"""Rewrites by operator."""
