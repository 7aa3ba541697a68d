"""Builds the nodes that stand for one node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ir.base.types import F32, DType, TensorType
from ir.graph.graph import Graph, Node, Value
from ir.infer.engine import infer_node
from ir.tensor.base import Tensor
from ir.tensor.elementwise import cast
from ir.tensor.inline import InlineTensor


class Builder(Protocol):
    """What makes nodes and constants."""

    def add(self, op: str, *inputs: Value | None, **attrs: Any) -> Value:
        """The output of a new node."""

    def const(self, data: np.ndarray | Tensor, name: str = ...) -> Value:
        """A constant."""


class Steps:
    """Makes typed nodes in front of a node, which they are then put in the place of.

    Attributes:
        node: the node.
        made: the nodes made so far.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.made: list[Node] = []
        self._graph: Graph = node.home
        self._last: Node | None = None

    def add(self, op: str, *inputs: Value | None, **attrs: Any) -> Value:
        """The output of a new node, with its type."""
        given = {name: value for name, value in attrs.items() if value is not None}
        stem = f"{self.node.outputs[0].name}.{op.lower()}"
        node = self._graph.add(op, inputs, given, outputs=(stem,), loc=self.node.loc, **self._place())
        self.made.append(node)
        if self._last is not None:
            self._last = node
        for value, found in zip(node.outputs, infer_node(node), strict=True):
            self._graph.set_type(value, found)
        return node.output

    def const(self, data: np.ndarray | Tensor, name: str = "const") -> Value:
        """A constant."""
        tensor = data if isinstance(data, Tensor) else InlineTensor(data)
        return self._graph.add_const(
            self._graph.fresh_name(f"{self.node.outputs[0].name}.{name}"), tensor, loc=self.node.loc
        )

    def after(self) -> Steps:
        """From here on nodes are put behind the node, so that they can read what it gives."""
        self._last = self.node
        return self

    def put(self, results: Sequence[Value | None]) -> None:
        """Let what reads the outputs of the node read these values, under the old names, and erase the node."""
        names = [(new, old.name) for old, new in zip(self.node.outputs, results, strict=False) if new is not None]
        fresh = {value for node in self.made for value in node.outputs}
        renamed = []
        for old, new in zip(self.node.outputs, results, strict=False):
            if new is not None:
                new = new if new in fresh else self.add("Identity", new)
                fresh.discard(new)
                self._graph.replace(old, new)
                renamed.append(new)
        self._graph.erase(self.node)
        for new, (_, name) in zip(renamed, names, strict=True):
            self._graph.rename(new, name)

    def put_behind(self, index: int, value: Value) -> None:
        """Let what reads one output of the node read what was made of it, under the old name."""
        old = self.node.outputs[index]
        ours = set(self.made)
        inner = [(user, place) for user, place in old.uses if user in ours]
        self._graph.replace(old, value)
        for user, place in inner:
            self._graph.set_input(user, place, old)
        name = old.name
        self._graph.rename(old, self._graph.fresh_name(f"{name}.wide"))
        self._graph.rename(value, name)

    def _place(self) -> dict[str, Any]:
        return {"before": self.node} if self._last is None else {"after": self._last}


def like(b: Builder, number: float, value: Value) -> Value:
    """A constant of rank 0 of the element type of a value."""
    return b.const(np.array(number, value.dtype.numpy), "number")


def ints(b: Builder, *numbers: int) -> Value:
    """A constant vector of 64-bit integers."""
    return b.const(np.array(numbers, np.int64), "ints")


def converted(b: Builder, value: Value, dtype: DType) -> Value:
    """A value in another element type; of a constant the recipe for it, which reads nothing, where that is a float type."""
    if value.dtype == dtype:
        return value
    if value.const is not None and dtype.is_float:
        return b.const(cast(value.const, dtype), "cast")
    return b.add("Cast", value, to=dtype.onnx)


def as_float(b: Builder, value: Value) -> Value:
    """A value in single precision."""
    return converted(b, value, F32)


def tensor_type(value: Value | None) -> TensorType | None:
    """The type of a tensor, or None."""
    return value.type if value is not None and isinstance(value.type, TensorType) else None


__all__ = ["Builder", "Steps", "as_float", "converted", "ints", "like", "tensor_type"]
