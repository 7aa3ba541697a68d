"""What a node demands of one of its operands, and the table of rules that tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ir.base.types import Dim, DType, TensorType
from ir.graph.graph import Graph, Node, Value
from ir.infer.symbolic import Extent
from ir.onnx.keys import is_unknown
from ir.ops.registry import attribute

UNTOLD = "?"
"""How the names of dimensions begin that nobody gave."""
Extents = tuple[Extent | None, ...]
"""A shape of known rank; None for an extent that is not known."""


@dataclass(frozen=True)
class Demand:
    """What is known of an operand.

    Attributes:
        shape: its shape; None where the rank is not known.
        dtype: its element type; None leaves that to the declaration of the operator.
        low, high: legal values of its elements.
        default: a value that is right when nothing better is known.
        values: the possible contents of an operand that is no matter of choice, such as the axes of a Slice whose result
            is declared; one is the answer, several are a doubt. None for an operand that may be fed.
        words: what forces it, for people.
        loose: the shape is one of several that would do.
        least: axes that it has at least, where the shape is not known.
    """

    shape: Extents | None = None
    dtype: DType | None = None
    low: int | None = None
    high: int | None = None
    default: float | int | None = None
    values: tuple[tuple[int, ...], ...] | None = None
    words: str = ""
    loose: bool = False
    least: int = 0


@dataclass(frozen=True)
class At:
    """One operand of a node, and what a rule may ask of the others.

    Attributes:
        node: the node.
        index: which operand.
        known: shapes of values as far as they are known, by recorded types and by what other readers demand.
        element: element types likewise.
        numbers: the elements of small integer tensors, where they are known.
        least: how many axes a value has at least, by what its readers demand.
    """

    node: Node
    index: int
    known: Callable[[Value], Extents | None]
    element: Callable[[Value], DType | None]
    numbers: Callable[[Value | None], tuple[int, ...] | None]
    least: Callable[[Value], int]

    def shape(self, index: int) -> Extents | None:
        """The shape of an operand."""
        value = self.node.input(index)
        return self.known(value) if value is not None else None

    def out(self, index: int = 0) -> Extents | None:
        """The shape of a result."""
        return self.known(self.node.outputs[index]) if index < len(self.node.outputs) else None

    def ints(self, index: int) -> tuple[int, ...] | None:
        """The elements of an operand of a few integers, where they are known."""
        return self.numbers(self.node.input(index))

    def attr(self, name: str) -> Any:
        """An attribute or its default."""
        return attribute(self.node, name)

    def has(self, index: int) -> bool:
        """True when an operand is there."""
        return self.node.input(index) is not None


Rule = Callable[[At], "Demand | None"]

RULES: dict[str, Rule] = {}


def demands(*names: str) -> Callable[[Rule], Rule]:
    """Decorator: the function says what these operators demand of the operand `At.index`, or None."""

    def add(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return add


def is_known(extent: Extent | None) -> bool:
    """True for an extent that is a number or has a name of its own."""
    if not isinstance(extent, Dim):
        return extent is not None
    return not extent.name.startswith(UNTOLD) and not is_unknown(extent.name)


def finer(a: Extents | None, b: Extents | None) -> Extents | None:
    """What two shapes of one value say together; the first where they disagree."""
    if a is None or b is None or len(a) != len(b):
        return a if a is not None else b
    return tuple(_finer(x, y) for x, y in zip(a, b, strict=True))


def _finer(a: Extent | None, b: Extent | None) -> Extent | None:
    if a is None or (isinstance(b, int) and not isinstance(a, int)) or (is_known(b) and not is_known(a)):
        return b
    return a


def agree(a: Extents | None, b: Extents | None) -> bool:
    """False when two shapes cannot be of one value."""
    if a is None or b is None:
        return True
    return len(a) == len(b) and all(
        not (isinstance(x, int) and isinstance(y, int)) or x == y for x, y in zip(a, b, strict=True)
    )


def joined(found: Sequence[Demand]) -> Demand:
    """What several readers demand of one value together; where they disagree, the first."""
    first, *others = found
    for item in others:
        low = max((x for x in (first.low, item.low) if x is not None), default=None)
        high = min((x for x in (first.high, item.high) if x is not None), default=None)
        values = first.values if item.values is None else item.values
        if first.values is not None and item.values is not None:
            values = tuple(one for one in first.values if one in item.values)
        first = replace(
            first,
            shape=finer(first.shape, item.shape),
            dtype=first.dtype or item.dtype,
            low=low,
            high=high,
            default=first.default if first.default is not None else item.default,
            values=values,
            least=max(first.least, item.least),
            words="; ".join(dict.fromkeys(part for part in (first.words, item.words) if part)),
        )
    return first


def shape_of(value: Value) -> Extents | None:
    """The recorded shape of a value."""
    return value.shape if isinstance(value.type, TensorType) else None


def subgraph(node: Node, name: str) -> Graph | None:
    """The graph that an attribute of a node holds."""
    found = node.attrs.get(name)
    return found if isinstance(found, Graph) else None


__all__ = [
    "RULES",
    "UNTOLD",
    "At",
    "Demand",
    "Extents",
    "agree",
    "demands",
    "finer",
    "is_known",
    "joined",
    "shape_of",
    "subgraph",
]
