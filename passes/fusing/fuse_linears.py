"""Put constant factors around products into their weights, and write a product and a sum as one operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ir.graph.graph import Graph, Node, Value
from ir.ops.registry import attribute
from ir.tensor.inline import InlineTensor
from passes.framework.base import Pass
from passes.framework.context import PassContext
from passes.static_quant.operators import is_floats, only_reader

PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
"""Operators with constant weights that factors are put into."""
MOST_BYTES = 1 << 20
"""Largest constant factor that is looked at."""


@dataclass(frozen=True)
class FuseLinears(Pass):
    """Put constant factors around products into their weights, and write a product and a sum as one Gemm.

    A product with a constant number, or one for each channel, whose only reader is a convolution or a product of
    matrices with constant weights, goes into these, and so does one of what a product of matrices gives. A product of two
    matrices and the vector added to it become a Gemm. Results are rounded at other places; factors that are powers of two
    change nothing.
    """

    name = "fuse-linears"
    requires = ("typed",)

    def run(self, graph: Graph, ctx: PassContext) -> Mapping[str, int]:
        """See `Pass.run`."""
        counts = {"factors": 0, "gemms": 0}
        for node in graph.nodes:
            if node.graph is None:
                continue
            counts["factors"] += _into_reader(graph, node) or _into_producer(graph, node)
        for node in graph.nodes:
            counts["gemms"] += _as_gemm(graph, node)
        return {name: count for name, count in counts.items() if count}


def _factor(node: Node) -> tuple[Value, np.ndarray] | None:
    """The operand of a product with a constant, and the constant; of a quotient, what it is multiplied by."""
    if node.op not in ("Mul", "Div"):
        return None
    for place in (0, 1) if node.op == "Mul" else (0,):
        value, other = node.operand(place), node.operand(1 - place)
        if value.const is None and other.const is not None and is_floats(value) and is_floats(other):
            if value.type != node.output.type or other.tensor.nbytes > MOST_BYTES:
                return None
            array = other.tensor.load().astype(np.float64)
            if node.op == "Div":
                return (value, 1 / array) if array.all() else None
            return value, array
    return None


def _along(array: np.ndarray, rank: int, axis: int) -> np.ndarray | None:
    """float64[1] or float64[size] of a constant that is spread over a tensor along one axis alone; else None."""
    if array.ndim > rank:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    return array.reshape(-1) if all(size == 1 or at == axis for at, size in enumerate(shape)) else None


def _into_reader(graph: Graph, node: Node) -> bool:
    """Put a factor into the weights of the product that reads it."""
    found = _factor(node)
    reader = only_reader(node.output, PRODUCTS) if found is not None else None
    if found is None or reader is None or reader.operand(0) is not node.output:
        return False
    value, array = found
    weight, rank = _weight(reader), value.rank
    if weight is None or not rank:
        return False
    channels = reader.op in ("Conv", "ConvTranspose")
    factor = _along(array, rank, 1 if channels else rank - 1)
    scaled = _scaled_in(reader, weight.tensor.load(), factor) if factor is not None else None
    if scaled is None:
        return False
    graph.set_const(weight, InlineTensor(scaled, loc=weight.loc))
    _bypass(graph, node, value)
    return True


def _weight(product: Node) -> Value | None:
    """The constant weight that a product alone reads."""
    weight = product.input(1)
    if weight is None or weight.const is None or weight.use_count != 1 or weight.graph is not product.graph:
        return None
    return weight if is_floats(weight) and (product.op[:4] == "Conv" or weight.rank == 2) else None


def _scaled_in(product: Node, weight: np.ndarray, factor: np.ndarray) -> np.ndarray | None:
    """A weight with the factor of each input channel multiplied in."""
    wide = weight.astype(np.float64)
    if factor.size == 1:
        return _rounded(wide * factor)
    if product.op == "Conv":
        group = attribute(product, "group") or 1
        if factor.size != weight.shape[1] * group or weight.shape[0] % group:
            return None
        rows = np.repeat(factor.reshape(group, -1), weight.shape[0] // group, axis=0)
        return _rounded(wide * rows.reshape(weight.shape[:2] + (1,) * (weight.ndim - 2)))
    axis = 1 if product.op == "Gemm" and attribute(product, "transB") else 0
    if factor.size != weight.shape[axis] or (product.op == "Gemm" and attribute(product, "transA")):
        return None
    shape = [1] * weight.ndim
    shape[axis] = factor.size
    return _rounded(wide * factor.reshape(shape))


def _rounded(wide: np.ndarray) -> np.ndarray | None:
    """Single precision, if no number becomes infinite."""
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    return narrow if np.isfinite(narrow).all() else None


def _into_producer(graph: Graph, node: Node) -> bool:
    """Put a factor into the weights of the product of matrices that it scales."""
    found = _factor(node)
    if found is None:
        return False
    value, array = found
    product = value.producer
    if (
        product is None
        or product.op != "MatMul"
        or product.graph is not graph
        or only_reader(value, (node.op,)) is None
    ):
        return False
    weight, rank = _weight(product), value.rank
    factor = _along(array, rank, rank - 1) if rank and weight is not None and product.operand(0).rank else None
    if weight is None or factor is None or factor.size not in (1, weight.tensor.shape[1]):
        return False
    scaled = _rounded(weight.tensor.load().astype(np.float64) * factor)
    if scaled is None:
        return False
    graph.set_const(weight, InlineTensor(scaled, loc=weight.loc))
    _bypass(graph, node, value)
    return True


def _bypass(graph: Graph, node: Node, value: Value) -> None:
    """Let the readers of a node read a value in the place of its result, under its name where the graph returns it."""
    old, name = node.output, node.output.name
    rest = [one for one in node.inputs if one is not None and one.const is not None]
    is_output = old.is_output
    graph.replace(old, value)
    graph.erase(node)
    for one in dict.fromkeys(rest):
        if one.graph is graph and not one.use_count:
            graph.erase_const(one)
    if is_output:
        graph.rename(value, name)


def _as_gemm(graph: Graph, node: Node) -> bool:
    """Write a product of two matrices and the vector added to it as one operator."""
    if node.op != "MatMul" or node.graph is not graph:
        return False
    left, right = node.operand(0), node.operand(1)
    reader = only_reader(node.output, ("Add",))
    if reader is None or left.rank != 2 or right.rank != 2 or right.const is None or not is_floats(left):
        return False
    bias = reader.operand(1 if reader.operand(0) is node.output else 0)
    columns = right.tensor.shape[1]
    if bias.const is None or not is_floats(bias) or bias.tensor.shape not in ((columns,), (1, columns)):
        return False
    result = reader.output
    made = graph.add("Gemm", [left, right, bias], types=[result.type], before=reader, name=node.name, loc=node.loc)
    name = result.name
    graph.replace(result, made.output)
    graph.erase(reader)
    graph.erase(node)
    graph.rename(made.output, name)
    return True


__all__ = ["FuseLinears"]
