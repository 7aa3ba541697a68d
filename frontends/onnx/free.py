"""Tensors that an ONNX model reads and nothing in it makes: inputs with a type, or constants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from ir.base.types import BOOL, TensorType
from ir.facts.free_tensors import FreeTensor, FreeTensors
from ir.graph.graph import Graph, Value
from ir.onnx.keys import MODEL

MOST_UNREAD = 200
"""Unread tensors among which a similar name is looked for."""


def settle_free(graph: Graph, values: Sequence[Value]) -> None:
    """Give free inputs of a graph what their readers force, and record it as the fact `FreeTensors`.

    Raises:
        LadingError: F632 to F634 what is read can be no tensor.
    """
    from ir.infer.free.solve import settle

    unread = [value.name for value in _values(graph) if not value.use_count]
    made = []
    for item in settle(graph, values):
        value, demand = item.value, item.demand
        constant = value.const is not None
        made.append(
            FreeTensor(
                value.name,
                "constant" if constant else "input",
                item.readers,
                item.reason,
                str(value.type),
                demand.low if not constant and _is_whole(value) else None,
                demand.high if not constant and _is_whole(value) else None,
                _default(value, demand.default) if not constant else None,
                tuple(value.const.load().reshape(-1).tolist()) if value.const is not None else None,
                _near(value.name, unread),
            )
        )
    about = graph.metadata.setdefault(MODEL, {}).setdefault("values", {})
    for tensor in made:
        if tensor.kind == "input":
            about[tensor.name] = {**about.get(tensor.name, {}), "doc": _doc(tensor)}
    graph.set_fact(FreeTensors.name, FreeTensors(tuple(made)))


def _doc(tensor: FreeTensor) -> str:
    """What an input is, for those who read the model."""
    parts = [f"Read by {', '.join(tensor.readers[:4])}: {tensor.reason}."]
    if tensor.low is not None or tensor.high is not None:
        low, high = ("" if limit is None else limit for limit in (tensor.low, tensor.high))
        parts.append(f"Values {low}..{high}.")
    if tensor.default is not None:
        parts.append(f"Default {tensor.default}.")
    return " ".join(parts)


def _values(graph: Graph) -> Iterator[Value]:
    yield from graph.inputs
    for node in graph.nodes:
        yield from node.outputs


def _near(name: str, unread: Sequence[str]) -> str:
    """The name among those of unread tensors that is most like one."""
    return next(iter(get_close_matches(name, unread, 1)), "") if len(unread) <= MOST_UNREAD else ""


def _default(value: Value, number: float | int | None) -> float | int | None:
    return bool(number) if number is not None and value.dtype is BOOL else number


def _is_whole(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.dtype.is_integer


__all__ = ["settle_free"]
