"""What an expansion works with: the node in question, and what to put in its place."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NoReturn

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import TensorType
from ir.graph.graph import OPSET, Node, Value
from ir.infer.inference import conflict
from ir.infer.rule_table import TypeMismatch
from ir.ops.opset import ONNX
from ir.ops.registry import attribute, lookup, opsets_of
from ir.tensor.base import Tensor
from ir.tensor.rearranged import reshaped
from passes.rewrite.patterns import Match, Op, Rest
from passes.rewrite.rules import Replacement, Rewriter, Rule, rule

MOST_SHARED = 64
"""Elements of a constant that is made once for all."""
MOST_SHOWN = 2
"""Nodes of an operator that a warning names."""


class Stays(Exception):
    """The node has no equivalent in standard operators; the message says why."""


class Left:
    """The nodes that were not expanded, and why, by operator.

    Attributes:
        nodes: the reasons.
        made: what expansions have built, so that what layers have in common, such as masks, is built once.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, dict[Node, str]] = {}
        self.made: dict[Hashable, Sequence[Value]] = {}

    def add(self, node: Node, reason: str) -> None:
        """Note a node; the last reason counts."""
        self.nodes.setdefault(node.op, {})[node] = reason


class Site:
    """A node to be expanded and the means to do it.

    Attributes:
        node: the node.
        opset: version of ONNX's operators that may be used.
    """

    def __init__(self, node: Node, rewriter: Rewriter) -> None:
        self.node = node
        self.opset = opsets_of(node.graph).get(ONNX, OPSET)
        self._rewriter = rewriter
        self._made: dict[Hashable, Sequence[Value]] = rewriter.env.made if isinstance(rewriter.env, Left) else {}

    # ---- the node ----

    def attr(self, name: str) -> Any:
        """An attribute, or its default."""
        return attribute(self.node, name)

    def input(self, index: int) -> Value | None:
        """An input, or None where it is left out."""
        return self.node.input(index)

    def operand(self, index: int) -> Value:
        """An input that the operator needs; `Stays` where it is left out all the same."""
        value = self.node.input(index)
        if value is None:
            self.stay(f"input {index} is left out")
        return value

    def wants(self, index: int) -> bool:
        """True when something reads an output."""
        return index < len(self.node.outputs) and self.node.outputs[index].use_count > 0

    def stay(self, reason: str) -> NoReturn:
        """Leave the node as it is."""
        raise Stays(reason)

    def need(self, condition: bool, reason: str) -> None:
        """Leave the node as it is unless something holds."""
        if not condition:
            raise Stays(reason)

    def need_opset(self, version: int) -> None:
        """Leave the node as it is in graphs of an older opset."""
        self.need(self.opset >= version, f"its equivalent needs opset {version}, the graph has {self.opset}")

    def type_of(self, value: Value) -> TensorType:
        """The type of a tensor; `Stays` when it is unknown."""
        if not isinstance(value.type, TensorType):
            self.stay(f"the type of %{value.name} is unknown")
        return value.type

    def rank(self, value: Value) -> int:
        """The rank of a tensor; `Stays` when it is unknown."""
        found = self.type_of(value).rank
        if found is None:
            self.stay(f"the rank of %{value.name} is unknown")
        return found

    def size(self, value: Value, axis: int) -> int:
        """Length of an axis in numbers; `Stays` when it is not known so."""
        shape = value.shape
        found = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
        if not isinstance(found, int):
            self.stay(f"axis {axis} of %{value.name} is not known in numbers")
        return found

    def constant(self, value: Value | None) -> Tensor | None:
        """The contents of a constant, also behind reshapes of one; None for what is computed from inputs."""
        if value is None:
            return None
        if value.const is not None:
            return value.const
        node = value.producer
        if node is None or node.op not in ("Reshape", "Identity", "Flatten", "Squeeze", "Unsqueeze"):
            return None
        base = self.constant(node.input(0))
        sizes = value.type.sizes if isinstance(value.type, TensorType) else None
        return reshaped(base, sizes) if base is not None and sizes is not None else None

    # ---- its replacement ----

    def op(self, op: str, *inputs: Value | None, **attrs: Any) -> Value:
        """The output of a node in front of this one."""
        return self.ops(op, *inputs, outputs=1, **attrs)[0]

    def ops(self, op: str, *inputs: Value | None, outputs: int, **attrs: Any) -> Sequence[Value]:
        """The outputs of a node in front of this one: a new one, or an equal one that an expansion before has built."""
        given = list(inputs)
        while given and given[-1] is None:
            given.pop()
        present = {name: value for name, value in attrs.items() if value is not None}
        key = (self.node.graph, op, tuple(given), tuple(sorted(present.items())), outputs)
        found = self._known(key)
        if found is None:
            made = self._rewriter.op(op, *given, attrs=present, outputs=outputs)
            found = self._made[key] = (made,) if outputs == 1 else made
        return found

    def const(self, data: np.ndarray | Tensor, name: str = "") -> Value:
        """A constant; of small arrays one for all."""
        if isinstance(data, Tensor) or data.size > MOST_SHARED:
            return self._rewriter.const(data, name)
        key = (self.node.graph, data.dtype, data.shape, data.tobytes())
        found = self._known(key)
        if found is None:
            found = self._made[key] = (self._rewriter.const(data, name),)
        return found[0]

    def _known(self, key: Hashable) -> Sequence[Value] | None:
        """What was built before, if it is still there."""
        found = self._made.get(key)
        return found if found is not None and all(value.graph.holds(value) for value in found) else None

    def ints(self, *numbers: int) -> Value:
        """An int64 vector."""
        return self.const(np.array(numbers, np.int64))

    def scalar(self, number: int) -> Value:
        """An int64 scalar."""
        return self.const(np.array(number, np.int64))

    def like(self, number: float, value: Value) -> Value:
        """A scalar of the element type of a value."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self.const(np.array(number).astype(self.type_of(value).dtype.numpy))

    def sum_of(self, *values: Value | None) -> Value:
        """The sum of what is given, from left to right."""
        present = [value for value in values if value is not None]
        total = present[0]
        for value in present[1:]:
            total = self.op("Add", total, value)
        return total

    def length(self, value: Value, axis: int) -> Value:
        """Length of an axis as an int64 vector of one element."""
        rank, shape = self.rank(value), value.shape
        self.need(shape is not None and -rank <= axis < rank, f"%{value.name} has no axis {axis}")
        size = shape[axis] if shape is not None else None
        if isinstance(size, int):
            return self.ints(size)
        # Axes of one name are of one length, so that what follows from it is the same for all layers.
        key = (self.node.graph, "length", size)
        found = self._known(key) if size is not None else None
        if found is None:
            place = axis % rank
            found = self._made[key] = (self.op("Shape", value, start=place, end=place + 1),)
        return found[0]


Expansion = Callable[[Site], "Value | Sequence[Value | None]"]
"""Builds what stands in for the outputs of a node, or raises `Stays`."""


def expansion(*ops: str) -> Callable[[Expansion], Rule]:
    """Make a rewrite rule of a function that says what operators are in standard terms.

    It returns as many values as it can tell; outputs that it does not tell must not be read.
    """

    def make(function: Expansion) -> Rule:
        def applied(m: Match, rw: Rewriter) -> Replacement:
            try:
                return _result(m.root, function(_sound(m.root, rw)))
            except (Stays, TypeMismatch, ArithmeticError) as error:
                reason = str(error)
            except LadingError as error:
                reason = error.diagnostics[0].message
            # What does not fit here does not fit for onnxruntime either, which then says so.
            if isinstance(rw.env, Left):
                rw.env.add(m.root, reason)
            return m.skip(reason)

        applied.__name__, applied.__doc__ = function.__name__, function.__doc__
        return rule(Op("|".join(ops), Rest("inputs")))(applied)

    return make


def _sound(node: Node, rewriter: Rewriter) -> Site:
    """The site of a node that has nothing its operator does not declare."""
    definition = lookup(node.op, opsets_of(node.graph))
    known = definition.attrs if definition is not None else {}
    unknown = sorted(node.attrs.keys() - known.keys())
    if unknown:
        raise Stays(f"nobody knows its attribute {unknown[0]}")
    if definition is not None and len(node.inputs) > definition.max_inputs:
        raise Stays(f"it has {len(node.inputs)} inputs, of which {definition.max_inputs} are known")
    return Site(node, rewriter)


def _result(node: Node, found: Value | Sequence[Value | None]) -> Sequence[Value | None]:
    told = (found,) if isinstance(found, Value) else tuple(found)
    told += (None,) * (len(node.outputs) - len(told))
    for index, (value, output) in enumerate(zip(told, node.outputs, strict=False)):
        if value is None and output.use_count:
            raise Stays(f"nothing standard computes its output {index}")
        made, wanted = value.type if value is not None else None, output.type
        if isinstance(made, TensorType) and isinstance(wanted, TensorType) and conflict(wanted, made):
            raise Stays(f"its operands make {made} of output {index}, which is {wanted}")
    return told[: len(node.outputs)]
