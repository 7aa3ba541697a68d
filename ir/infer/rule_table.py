"""The tables of inference rules, and what rules are told of values and raise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ir.graph.graph import Node
from ir.infer.symbolic import Extent
from ir.ops.registry import lookup

OLDEST_OPSET = 7
"""First opset that the rules are written for."""

ValueRule = Callable[[Any, Node], "Known | None"]
"""Tells the contents of a small integer tensor; called with the `ir.infer.inference.Inference` and the node."""

VALUE_RULES: dict[str, ValueRule] = {}
"""Rules that follow contents, by operator; filled by `follows` and read through `value_rule_of`."""


def follows(*names: str) -> Callable[[ValueRule], ValueRule]:
    """Decorator: the function tells the contents of what these operators give, or None."""

    def add(function: ValueRule) -> ValueRule:
        VALUE_RULES.update(dict.fromkeys(names, function))
        return function

    return add


KNOWN_LIMIT = 256
"""Integer tensors of at most this many elements are followed element by element."""


Rule = Callable[[Any, Node], Any]
"""Infers result types; called with the `ir.infer.inference.Inference` and the node. See `rule`."""

ANY_OPERATOR = "*"
"""Key of the rule for operators without one of their own."""


class TypeMismatch(Exception):
    """The inputs of a node do not fit its operator; the message says why."""


class Known(NamedTuple):
    """What is known of a small integer or boolean tensor of rank 0 or 1: an extent, or None, for each element."""

    rank: int
    entries: tuple[Extent | None, ...]

    @property
    def ints(self) -> tuple[int, ...] | None:
        """The elements as numbers, or None when one is not a number."""
        return self.entries if all(type(entry) is int for entry in self.entries) else None  # type: ignore[return-value]


def known_array(array: np.ndarray) -> Known | None:
    """`Known` of a numpy array of rank 0 or 1, else None."""
    if array.ndim > 1 or array.size > KNOWN_LIMIT:
        return None
    return Known(array.ndim, tuple(int(entry) for entry in array.reshape(-1)))


RULES: dict[str, Rule] = {}
"""Inference rules by name of an ONNX operator; filled by `rule`, read through `rule_of`."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Decorator: the function infers the result types of these operators.

    A rule returns a type, None for unknown, or a tuple of these. A dimension it cannot tell is None, one that is known
    to differ from every other is a pending dimension of `Inference.table`. It raises `TypeMismatch` or ArithmeticError
    when the inputs do not fit.
    """

    def add(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return add


def rule_of(op: str, opset: int) -> Rule:
    """The rule of an operator in a graph of an ONNX opset; operators of other domains bring theirs in their
    definition."""
    found = None
    if opset >= OLDEST_OPSET:
        found = RULES.get(op)
        if found is None:
            definition = lookup(op)
            found = definition.infer if definition is not None else None
    return found if found is not None else RULES[ANY_OPERATOR]


def value_rule_of(op: str) -> ValueRule | None:
    """The rule that follows contents through an operator, or None."""
    found = VALUE_RULES.get(op)
    if found is None and "." in op:
        definition = lookup(op)
        return definition.follow if definition is not None else None
    return found
