"""The meaning of operators of other domains, in ONNX operators."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any

import numpy as np

from ir.graph.graph import OPSET, Graph, Node, Value
from ir.ops.registry import attribute, opdef, opsets_of, rank_of
from ir.tensor.inline import InlineTensor

OLDEST = 13
"""First opset in which operators of other domains can be defined."""


class Body:
    """Builds the meaning of one node with ONNX operators.

    Attributes:
        node: the node that is defined; its attributes and the element types and ranks of its inputs may be used.
        graph: the body, whose inputs stand for those of the node.
        inputs: the body's inputs; None where the node leaves an input out.
        opset: version of the ONNX operators, that of the node's graph; `OLDEST` or later.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.opset = opsets_of(node.graph).get("", OPSET)
        if self.opset < OLDEST:
            raise ValueError(f"it needs opset {OLDEST} or later, the graph has {self.opset}")
        self.graph = Graph(node.op_type, {"": self.opset})
        self.inputs: list[Value | None] = []
        for index, value in enumerate(node.inputs):
            declared = None if value is None else self.graph.add_input(f"in{index}", value.type)
            self.inputs.append(declared)

    def attr(self, name: str) -> Any:
        """An attribute of the node, or its default."""
        return attribute(self.node, name)

    def operand(self, index: builtins.int) -> Value:
        """Input `index` of the body; ValueError when the node leaves it out."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            raise ValueError(f"{self.node.op} cannot be defined without input {index}")
        return value

    def op(self, op: str, *inputs: Value | None, **attrs: Any) -> Value:
        """Apply an ONNX operator and return its first output."""
        return self.graph.add(op, inputs, attrs).output

    def reduce(self, op: str, x: Value, axes: Sequence[int], keep: bool = True) -> Value:
        """Apply a reduction; no axes mean all of them."""
        if not axes:
            return self.op(op, x, keepdims=int(keep))
        if self.opset >= (13 if op == "ReduceSum" else 18):
            return self.op(op, x, self.ints(*axes), keepdims=int(keep))
        return self.op(op, x, axes=tuple(axes), keepdims=int(keep))

    def ints(self, *numbers: int) -> Value:
        """An int64 vector."""
        return self.graph.add_const("ints", InlineTensor(np.array(numbers, np.int64)))

    def int(self, number: int) -> Value:
        """An int64 scalar."""
        return self.graph.add_const("int", InlineTensor(np.array(number, np.int64)))

    def like(self, number: float, value: Value) -> Value:
        """A scalar of the element type of a value with a recorded type."""
        return self.graph.add_const("number", InlineTensor(np.array(number, value.dtype.numpy), value.dtype))

    def rank(self, index: builtins.int) -> builtins.int:
        """Rank of an input; ValueError when it is unknown."""
        rank = rank_of(self.node.input(index))
        if rank is None:
            raise ValueError(f"{self.node.op} cannot be defined before the rank of input {index} is known")
        return rank


def define(node: Node) -> Graph:
    """The meaning of a node of another domain as a graph of ONNX operators over its inputs.

    Depends on the operator, the attributes and the element types and ranks of the inputs alone.

    Raises:
        KeyError: the operator has no definition.
        ValueError: an input type that the definition needs is unknown, or the graph's opset is too old.
    """
    definition = opdef(node)
    if definition is None or definition.define is None:
        raise KeyError(node.op)
    body = Body(node)
    body.graph.set_outputs(definition.define(body))
    return body.graph
