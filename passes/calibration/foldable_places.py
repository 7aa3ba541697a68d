"""Where a graph can be changed without changing what it computes: linear layers, and what stands before and behind
them.

A linear layer is a MatMul by a constant matrix with, perhaps, the Add of a constant vector. Scaling or turning its
input features and undoing that where they come from gives the same numbers up to rounding; this module finds the
places where both sides can be folded into constants, and does the folding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ir.graph.graph import Graph, Node, Value
from ir.tensor.base import Tensor, same_tensor
from ir.tensor.elementwise import multiplied
from ir.tensor.rearranged import transposed
from ir.tensor.rotated import rotated
from passes.precision.planned_weights import bias_of


@dataclass(frozen=True)
class Linear:
    """One linear layer ``output = x @ weight + bias``.

    Attributes:
        node: the MatMul.
        weight: constant ``[inputs, outputs]``.
        bias: constant vector that is added, or None.
        output: the product, or the sum when there is a bias.
    """

    node: Node
    weight: Value
    bias: Value | None
    output: Value

    @property
    def inputs(self) -> int:
        """Input features."""
        return self.weight.sizes[0]

    @property
    def outputs(self) -> int:
        """Output features."""
        return self.weight.sizes[1]

    @property
    def rows(self) -> Tensor:
        """The weight output-major, ``[outputs, inputs]``."""
        return transposed(self.weight.tensor)


@dataclass(frozen=True)
class NormGroup:
    """An RMS norm whose only readers are linear layers: ``x / rms(x) * gain`` goes into each of them."""

    norm: Node
    gain: Value
    readers: tuple[Linear, ...]


@dataclass(frozen=True)
class GatedPair:
    """``up`` times an elementwise partner goes into `readers` alone: a feature of one is a feature of the others."""

    up: Linear
    readers: tuple[Linear, ...]


@dataclass(frozen=True)
class ValuePair:
    """The values of an attention and what reads the mixed values; mixing is linear in each feature of a head.

    Attributes:
        value: the projection to values, ``kv_heads * head_dim`` features.
        readers: layers that read ``heads * head_dim`` mixed features.
        heads, kv_heads: heads of queries, and of keys and values.
    """

    value: Linear
    readers: tuple[Linear, ...]
    heads: int
    kv_heads: int

    @property
    def head_dim(self) -> int:
        """Features of one head."""
        return self.value.outputs // self.kv_heads


def linear_of(node: Node) -> Linear | None:
    """The linear layer of a MatMul by a float constant matrix that nothing else reads, else None."""
    weight = node.input(1)
    if node.op != "MatMul" or weight is None or weight.const is None or weight.use_count != 1:
        return None
    if weight.rank != 2 or not weight.dtype.is_float:
        return None
    return Linear(node, weight, *bias_of(node))


def readers_of(value: Value) -> tuple[Linear, ...] | None:
    """The linear layers that read a value as their input features, or None when something else reads it."""
    found = [linear_of(node) if index == 0 else None for node, index in value.uses]
    linears = tuple(linear for linear in found if linear is not None)
    return linears if linears and value.use_count == len(found) == len(linears) else None


def maker_of(value: Value | None) -> Linear | None:
    """The linear layer whose output a value is, when one place alone reads it, else None."""
    node = value.producer if value is not None and value.use_count == 1 else None
    if node is not None and node.op == "Add":
        node = next((item.producer for item in node.inputs if item is not None and item.producer is not None), None)
    linear = linear_of(node) if node is not None else None
    return linear if linear is not None and linear.output is value else None


def is_last_axis_norm(node: Node) -> bool:
    """True for an RMS norm over the last axis with a constant gain."""
    gain = node.input(1)
    x = node.input(0) if node.op == "RMSNormalization" else None
    rank = x.rank if x is not None else None
    return (
        rank is not None
        and gain is not None
        and gain.const is not None
        and gain.rank == 1
        and gain.sizes != (1,)
        and node.attrs.get("axis", -1) in (-1, rank - 1)
    )


def norm_group(node: Node) -> NormGroup | None:
    """The group that begins at a norm, else None."""
    readers = readers_of(node.output) if is_last_axis_norm(node) else None
    return NormGroup(node, node.operand(1), readers) if readers else None


def gated_pair(node: Node) -> GatedPair | None:
    """The pair that meets at a product of two values of one type, else None."""
    readers = readers_of(node.output) if node.op == "Mul" else None
    if not readers or any(value is None or value.type != node.output.type for value in node.inputs):
        return None
    up = next((linear for value in reversed(node.inputs) if (linear := maker_of(value)) is not None), None)
    return GatedPair(up, readers) if up is not None else None


def value_pair(node: Node) -> ValuePair | None:
    """The pair around an attention without a cache of its own, else None."""
    readers = readers_of(node.output) if node.op == "Attention" and len(node.outputs) == 1 else None
    value = maker_of(node.input(2))
    if not readers or value is None or node.input(4) is not None or node.input(5) is not None:
        return None
    heads, kv_heads = node.attrs.get("q_num_heads"), node.attrs.get("kv_num_heads")
    if not heads or not kv_heads or heads % kv_heads or value.outputs % kv_heads or value.output.rank != 3:
        return None
    fits = all(linear.inputs == heads * (value.outputs // kv_heads) for linear in readers)
    return ValuePair(value, readers, heads, kv_heads) if fits else None


def is_tied(graph: Graph, linear: Linear) -> bool:
    """True when a weight holds the numbers of a table or of another constant that rows are looked up in."""
    tables = [value.const for value in graph.tables.values()]
    looked_up = (node.input(0) for node in graph.nodes if node.op == "Gather")
    tables += [value.const for value in looked_up if value is not None]
    return any(table is not None and same_tensor(table, linear.rows) for table in tables)


def scale_inputs(graph: Graph, linear: Linear, factors: Tensor) -> None:
    """Multiply the weights of input feature i by factor i."""
    graph.set_const(linear.weight, transposed(multiplied(linear.rows, factors, 1)))


def scale_outputs(graph: Graph, linear: Linear, factors: Tensor) -> None:
    """Multiply output feature i by factor i."""
    graph.set_const(linear.weight, transposed(multiplied(linear.rows, factors, 0)))
    _change_bias(graph, linear, lambda bias: multiplied(bias, factors, 0))


def turn_inputs(graph: Graph, linear: Linear, size: int, seed: int) -> None:
    """Make a layer expect ``Q^T x`` in place of x; see `ir.tensor.rotated.rotated`."""
    graph.set_const(linear.weight, transposed(rotated(linear.rows, 1, size, seed)))


def turn_outputs(graph: Graph, linear: Linear, size: int, seed: int) -> None:
    """Make a layer give ``Q^T y`` in place of y."""
    graph.set_const(linear.weight, transposed(rotated(linear.rows, 0, size, seed)))
    _change_bias(graph, linear, lambda bias: rotated(bias, 0, size, seed))


def set_gain(graph: Graph, norm: Node, gain: Tensor) -> None:
    """Give a norm another gain; a gain that other nodes read too stays as it is for them."""
    change_const(graph, norm, 1, gain)


def change_const(graph: Graph, node: Node, index: int, tensor: Tensor) -> None:
    """Give a node another constant input without changing what other nodes read."""
    value = node.operand(index)
    if value.use_count == 1:
        graph.set_const(value, tensor)
        return
    graph.set_input(node, index, graph.add_const(f"{value.name}.own", tensor, loc=value.loc))


def _change_bias(graph: Graph, linear: Linear, change: Callable[[Tensor], Tensor]) -> None:
    adder = linear.output.producer
    if linear.bias is None or adder is None:
        return
    change_const(graph, adder, adder.inputs.index(linear.bias), change(linear.bias.tensor))
