"""Builds the ONNX nodes that take the place of one node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ir.base.types import F32, I64, DType, TensorType, ValueType
from ir.graph.graph import Graph, Node, Value
from ir.infer.engine import infer_node
from ir.ops.registry import attribute
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor


class Build:
    """Makes nodes in front of the one that they replace, with types.

    Attributes:
        node: the node that is replaced.
        graph: the graph that it stands in, which may be the body of a control-flow operator.
        made: the nodes made so far, in program order.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.graph: Graph = node.home
        self.made: list[Node] = []

    def attr(self, name: str) -> Any:
        """An attribute of the node that is replaced, its default, or None."""
        return attribute(self.node, name)

    def add(self, op: str, *inputs: Value | None, **attrs: Any) -> Value:
        """The first output of a new node."""
        return self.nodes(op, inputs, attrs)[0]

    def nodes(
        self,
        op: str,
        inputs: Sequence[Value | None],
        attrs: Mapping[str, Any] | None = None,
        outputs: int = 1,
        types: Sequence[ValueType | None] | None = None,
    ) -> tuple[Value, ...]:
        """All outputs of a new node; types are inferred unless given.

        Raises:
            TypeMismatch: the operands do not fit the operator.
        """
        stem = f"{self.node.outputs[0].name}.{op.rpartition('.')[2].lower()}"
        node = self.graph.add(
            op, inputs, {name: _frozen(item) for name, item in (attrs or {}).items() if item is not None},
            outputs=(stem,) * outputs, types=types, before=self.node, loc=self.node.loc,
        )  # fmt: skip
        self.made.append(node)
        if types is None:
            for value, found in zip(node.outputs, infer_node(node), strict=False):
                self.graph.set_type(value, found)
        return tuple(node.outputs)

    def const(self, data: np.ndarray | Tensor, name: str = "const") -> Value:
        """A constant."""
        tensor = data if isinstance(data, Tensor) else InlineTensor(data)
        return self.graph.add_const(f"{self.node.outputs[0].name}.{name}", tensor, loc=self.node.loc)

    def scalar(self, number: float, dtype: DType = F32) -> Value:
        """A constant of rank 0."""
        return self.const(np.array(number, dtype.numpy), "number")

    def like(self, number: float, value: Value) -> Value:
        """A constant of rank 0 of the element type of a value."""
        return self.scalar(number, value.dtype)

    def ints(self, *numbers: int) -> Value:
        """A constant vector of 64-bit integers."""
        return self.const(np.array(numbers, np.int64), "ints")

    def cast(self, value: Value, dtype: DType) -> Value:
        """A value in another element type."""
        return value if value.dtype == dtype else self.add("Cast", value, to=dtype.onnx)

    def reshape(self, value: Value, shape: Sequence[int]) -> Value:
        """A value in another shape; -1 for one size that follows from the others."""
        return self.add("Reshape", value, self.ints(*shape))


def _frozen(item: Any) -> Any:
    """An attribute as graphs hold it."""
    return tuple(item) if isinstance(item, list) else item


def numbers(value: Value | None) -> np.ndarray | None:
    """The elements of a constant; None for an operand that is computed or left out."""
    if value is None or value.const is None:
        return None
    return value.const.load()


def type_of(value: Value | None) -> TensorType | None:
    """The type of a tensor; None for what is no tensor, has no recorded type or is left out."""
    return value.type if value is not None and isinstance(value.type, TensorType) else None


__all__ = ["I64", "Build", "numbers", "type_of"]
