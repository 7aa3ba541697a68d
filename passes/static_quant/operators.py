"""Which operators compute in 8-bit integers, as a table, and the units that they form.

A unit is computed as one: a product with the bias that is added and the bound that is put on the result before it is
rounded. What lies between the nodes of a unit is never rounded to 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np

from ir.base.types import F32, TensorType
from ir.graph.graph import Graph, Node, Value

Kind = Literal["product", "arithmetic", "passing"]
"""``product``: integers are multiplied and summed up in 32 bits. ``arithmetic``: operands with scales of their own are
computed with and rounded again. ``passing``: numbers are moved or chosen, so that operands and result have one scale."""

MOST_SMALL = 1 << 16
"""Elements of a constant up to which it is looked at."""


@dataclass(frozen=True)
class Operator:
    """One row.

    Attributes:
        op: operator.
        kind: what is done with numbers.
        operands: places of inputs that are activations; empty for all.
        weight: place of the constant matrix of a product.
        channel: axis of the weight that output channels run along.
        channels_in: axis of the weight that input channels run along.
        bias: place of a bias that is part of the node; None where there is none.
        floats_free: the sums can be had as floats without being rounded to 8 bits.
        when: what else must hold of a node.
    """

    op: str
    kind: Kind
    operands: tuple[int, ...] = (0,)
    weight: int | None = None
    channel: int = 0
    channels_in: int = 1
    bias: int | None = None
    floats_free: bool = False
    when: Callable[[Node], bool] = lambda node: True


def _plain_gemm(node: Node) -> bool:
    return (
        not node.attrs.get("transA", 0) and node.attrs.get("alpha", 1.0) == 1.0 and node.attrs.get("beta", 1.0) == 1.0
    )


def _matrix(node: Node) -> bool:
    return node.operand(1).rank == 2


def _pads_with_zero(node: Node) -> bool:
    if node.attrs.get("mode", "constant") in ("constant", b"constant"):
        value = node.input(2)
        return value is None or (value.const is not None and not np.any(value.const.load()))
    return True


def _copies(node: Node) -> bool:
    """True for a Resize that takes averages or copies, which leaves the range."""
    usual = node.attrs.get("mode", "nearest") in ("nearest", "linear", b"nearest", b"linear")
    return usual and not node.attrs.get("extrapolation_value", 0.0)


def _bounds_are_constant(node: Node) -> bool:
    return all(value is None or value.const is not None for value in node.inputs[1:])


def _no_indices(node: Node) -> bool:
    return len(node.outputs) == 1


_MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Identity", "Gather", "Split", "Expand",
          "Tile", "DepthToSpace", "SpaceToDepth")  # fmt: skip

OPERATORS: dict[str, Operator] = {
    row.op: row
    for row in (
        Operator("Conv", "product", weight=1, bias=2),
        Operator("Gemm", "product", weight=1, channel=1, channels_in=0, bias=2, floats_free=True, when=_plain_gemm),
        Operator("MatMul", "product", weight=1, channel=1, channels_in=0, floats_free=True, when=_matrix),
        Operator("Add", "arithmetic", (0, 1)),
        Operator("Mul", "arithmetic", (0, 1)),
        Operator("Relu", "arithmetic"),
        Operator("Clip", "arithmetic", when=_bounds_are_constant),
        Operator("LeakyRelu", "arithmetic"),
        Operator("Sigmoid", "arithmetic"),
        Operator("GlobalAveragePool", "arithmetic"),
        Operator("AveragePool", "passing"),
        Operator("MaxPool", "passing", when=_no_indices),
        Operator("Resize", "passing", when=_copies),
        Operator("Pad", "passing", when=_pads_with_zero),
        Operator("Concat", "passing", ()),
        *(Operator(op, "passing") for op in _MOVES),
    )
}
"""What computes in 8-bit integers, by operator."""

BOUNDS = ("Relu", "Clip")
"""Operators that put bounds on a result before it is rounded."""


def channel_axis(node: Node) -> int:
    """The axis of a product's weight that output channels run along."""
    if node.op == "Gemm":
        return 0 if node.attrs.get("transB", 0) else 1
    return OPERATORS[node.op].channel


def output_axis(node: Node) -> int:
    """The axis of a product's result that channels run along."""
    return 1 if node.op == "Conv" else (node.output.rank or 1) - 1


def operands_of(node: Node) -> Iterator[tuple[int, Value]]:
    """Place and value of every operand that is an activation, or a constant that stands for one."""
    places = OPERATORS[node.op].operands or range(len(node.inputs))
    for place in places:
        value = node.input(place)
        if value is not None:
            yield place, value


def is_floats(value: Value | None) -> bool:
    """True for a tensor of single precision."""
    return value is not None and isinstance(value.type, TensorType) and value.dtype == F32


@dataclass(frozen=True, eq=False)
class Unit:
    """Nodes that compute as one.

    Attributes:
        nodes: a node of the table, then what is done with its result before that is rounded.
        row: the row of the first.
        bias: the node that adds a bias, and the place of the constant; None where the product has a place for one.
    """

    nodes: tuple[Node, ...]
    row: Operator
    bias: tuple[Node, int] | None = None

    @property
    def head(self) -> Node:
        """The node that computes."""
        return self.nodes[0]

    @property
    def result(self) -> Value:
        """What comes out of it."""
        return self.nodes[-1].output

    @property
    def results(self) -> tuple[Value, ...]:
        """Everything that comes out of it."""
        return self.head.outputs if self.row.kind == "passing" else (self.result,)

    def has_ranges(self, ranges: Container[str]) -> bool:
        """True when a range is known of everything that it reads and makes, constants aside."""
        values = [value for _, value in self.operands() if value.const is None]
        return all(value.name in ranges for value in (*values, *self.results))

    @property
    def name(self) -> str:
        """What plans and people call it: the name of the head's result."""
        return self.head.output.name

    @property
    def is_product(self) -> bool:
        """True for a product with a constant matrix."""
        return self.row.kind == "product"

    def operands(self) -> list[tuple[int, Value]]:
        """Activations that it reads, with their places at the head."""
        return list(operands_of(self.head))

    @property
    def weight(self) -> Value:
        """The constant matrix of a product."""
        assert self.row.weight is not None
        return self.head.operand(self.row.weight)

    def bias_value(self) -> Value | None:
        """The constant that is added to each channel of a product, or None."""
        if self.bias is not None:
            return self.bias[0].operand(self.bias[1])
        return self.head.input(self.row.bias) if self.row.bias is not None else None

    def products_per_output(self) -> int:
        """Multiplications that one element of the result takes."""
        sizes = self.weight.sizes
        return prod(sizes) // max(1, sizes[channel_axis(self.head)])


def units_of(graph: Graph) -> list[Unit]:
    """Every unit that could compute in 8-bit integers, in program order; no node is in two."""
    found = []
    taken: set[Node] = set()
    for node in graph.nodes:
        row = OPERATORS.get(node.op)
        if row is None or node in taken or not _fits(node, row):
            continue
        unit = _grown(node, row)
        taken.update(unit.nodes)
        found.append(unit)
    return found


def _fits(node: Node, row: Operator) -> bool:
    if not row.when(node) or not is_floats(node.output):
        return False
    operands = [value for _, value in operands_of(node)]
    if not operands or not all(is_floats(value) for value in operands):
        return False
    if all(value.const is not None for value in operands):
        return False
    if any(value.const is not None and prod(value.sizes) > MOST_SMALL for value in operands):
        return False
    if row.kind != "product":
        return True
    assert row.weight is not None
    weight, bias = node.input(row.weight), node.input(row.bias) if row.bias is not None else None
    if weight is None or weight.const is None or not is_floats(weight) or operands[0].const is not None:
        return False
    return bias is None or (bias.const is not None and is_floats(bias) and _is_vector(bias, node))


def _is_vector(bias: Value, node: Node) -> bool:
    """True for one number for each output channel."""
    weight = node.operand(1)
    return bias.sizes == (weight.sizes[channel_axis(node)],)


def _grown(node: Node, row: Operator) -> Unit:
    """The unit of a node, with what follows on it alone."""
    nodes = [node]
    bias: tuple[Node, int] | None = None
    if node.op == "MatMul":
        adds = only_reader(node.output, ("Add",))
        place = next((place for place in (0, 1) if adds is not None and _added(adds, place, node)), None)
        if adds is not None and place is not None:
            nodes.append(adds)
            bias = adds, place
    if row.kind != "passing":
        bound = only_reader(nodes[-1].output, BOUNDS)
        if bound is not None and bound.operand(0) is nodes[-1].output and _bounds_are_constant(bound):
            nodes.append(bound)
    return Unit(tuple(nodes), row, bias)


def _added(adds: Node, place: int, node: Node) -> bool:
    """True when the input of an Add at a place is one number for each channel of a product."""
    value = adds.operand(place)
    if value.const is None or not is_floats(value) or adds.operand(1 - place) is not node.output:
        return False
    return bool(value.sizes) and value.sizes[-1] == node.operand(1).sizes[1] == prod(value.sizes)


def only_reader(value: Value, ops: Sequence[str]) -> Node | None:
    """The one reader of a value, if it is of some operators and the graph does not return the value."""
    if value.use_count != 1 or len(value.users) != 1:
        return None
    reader = value.users[0]
    return reader if reader.op in ops and reader.graph is value.graph else None


def is_observed(value: Value) -> bool:
    """True for activations that have a range of their own to observe."""
    return value.const is None and is_floats(value)


def observed_values(units: Sequence[Unit]) -> list[Value]:
    """The activations whose ranges quantizing some units takes, in program order."""
    found: dict[Value, None] = {}
    for unit in units:
        for _, value in unit.operands():
            if is_observed(value):
                found[value] = None
        for value in unit.results:
            if is_observed(value):
                found[value] = None
    return list(found)


__all__ = [
    "BOUNDS",
    "OPERATORS",
    "Kind",
    "Operator",
    "Unit",
    "channel_axis",
    "is_floats",
    "observed_values",
    "only_reader",
    "operands_of",
    "output_axis",
    "units_of",
]
