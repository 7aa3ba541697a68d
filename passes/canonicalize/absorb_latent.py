"""Let attention over a compressed history keep what it compresses to, one vector for all heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np

from ir.base.types import Dim, TensorType
from ir.graph.graph import Graph, Node, Value
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor
from ir.tensor.rearranged import row_slice, transposed
from passes.framework.base import Pass, Result
from passes.framework.context import PassContext
from passes.framework.options import option

_SPREADING = ("Expand", "Tile", "Reshape", "Unsqueeze", "Identity")
"""Operators that give one vector to every head."""


@dataclass(frozen=True)
class AbsorbLatent(Pass):
    """Move the matrices that make keys and values of a latent vector to the other side of attention.

    In latent attention (DeepSeek-V2, 2024) the keys and values of all heads are products with one latent vector, beside a
    part of the keys that is turned and shared. A score is the same whether the key is made or the query is taken to where
    the latent vector is, and so is a mix of values. Each head multiplies its query by its matrix of keys and its result by
    its matrix of values, and all heads attend to one sequence of vectors: latent and turned part. The history then holds
    that instead of keys and values of every head, 13 to 21 times less in known models. As many numbers of weights are read
    for a token. No product of two matrices is stored: it would have three to four times their numbers.

    Matrices of values keep their rows, and with them codes that they came with; matrices of keys are read across, so that
    blocks of their codes do not survive and they are quantized anew. Every head's matrix is a weight of its own. The pass
    comes before raise-weights, and knows attention as families are built with it.
    """

    name = "absorb-latent"

    latent: Literal["absorbed", "expanded"] = option(
        "absorbed", help="what the history of latent attention holds: latent vectors, or keys and values of each head"
    )

    def run(self, graph: Graph, ctx: PassContext) -> Result:
        """See `Pass.run`."""
        if self.latent == "expanded":
            return None
        found = [item for node in graph.nodes if (item := _find(node)) is not None]
        for item in found:
            _absorb(graph, item)
        return {"absorbed": len(found)} if found else None


@dataclass(frozen=True)
class _Latent:
    """Latent attention: heads are ``shared | own`` or ``own | shared`` elements of a key."""

    node: Node
    latent: Value
    shared: Value
    keys: Node
    values: Node
    heads: int
    shared_first: bool


def _find(node: Node) -> _Latent | None:
    """What an attention is made of where its keys and values are products with one vector, else None."""
    heads = node._attrs.get("q_num_heads")
    if node.op != "Attention" or not heads or heads != node._attrs.get("kv_num_heads") or len(node.outputs) > 1:
        return None
    if any(value is not None for value in node.inputs[4:]) or node.operand(0).rank != 3:
        return None
    values, joined = _product(node.operand(2)), _behind(node.operand(1), "Reshape")
    parts = joined.inputs if joined is not None and joined.op == "Concat" else ()
    if values is None or joined is None or len(parts) != 2 or joined._attrs.get("axis") not in (3, -1):
        return None
    for place, part in enumerate(parts):
        apart = None if part is None else part.producer
        keys = _product(apart.operand(0)) if apart is not None and apart.op == "Reshape" else None
        other = parts[1 - place]
        shared = None if other is None else _shared(other)
        if keys is not None and shared is not None and keys.operand(0) is values.operand(0):
            return _Latent(node, keys.operand(0), shared, keys, values, heads, place == 1)
    return None


def _product(value: Value) -> Node | None:
    """The product with a constant matrix that alone makes a value which is read once."""
    node = value.producer
    if node is None or node.op != "MatMul" or value.use_count != 1:
        return None
    weight = node.operand(1)
    return node if weight.is_const and weight.rank == 2 and weight.use_count == 1 else None


def _behind(value: Value, op: str) -> Node | None:
    """What makes the operand of the operator that makes a value, where that is `op` and both are read once."""
    node = value.producer
    if node is None or node.op != op or value.use_count != 1 or node.operand(0).use_count != 1:
        return None
    return node.operand(0).producer


def _shared(value: Value) -> Value | None:
    """The ``[1, seq, size]`` that every head of ``[1, seq, heads, size]`` is a copy of, or None."""
    size = value.shape[-1] if value.shape is not None else None
    while value.producer is not None and value.producer.op in _SPREADING and value.rank != 3:
        value = value.producer.operand(0)
    return value if value.rank == 3 and value.dims[0] == 1 and value.dims[2] == size else None


def _size(value: Value, axis: int) -> int:
    size = value.dims[axis]
    assert isinstance(size, int), value
    return size


# ---- the other form ----


def _absorb(graph: Graph, found: _Latent) -> None:
    node, heads = found.node, found.heads
    build = _Builder(graph, node)
    query, latent, shared = node.operand(0), found.latent, found.shared
    width, rank, turned = _size(query, 2) // heads, _size(latent, 2), _size(shared, 2)
    own, size = width - turned, _size(found.values.output, 2) // heads
    key_rows, value_rows = (transposed(made.operand(1).tensor) for made in (found.keys, found.values))
    names = [made.operand(1).name.removesuffix(".weight") for made in (found.keys, found.values)]

    apart = build.reshape(query, (heads, width))
    order = (turned, own) if found.shared_first else (own, turned)
    parts = build.split(apart, order, 3)
    rest, mine = parts if found.shared_first else reversed(parts)
    taken = build.by_heads(
        build.reshape(mine, (heads * own,)), heads, names[0], lambda h: row_slice(key_rows, h * own, (h + 1) * own)
    )
    queries = build.join([rest, build.reshape(taken, (heads, rank))], 3)
    keys = build.join([shared, latent], 2)
    scale = float(node._attrs.get("scale", 1 / sqrt(width)))
    attrs = {**node._attrs, "kv_num_heads": 1, "scale": scale}
    inputs = [build.reshape(queries, (heads * (turned + rank),)), keys, latent, *node.inputs[3:]]
    mixed = build.add("Attention", inputs, (heads * rank,), attrs)
    result = build.by_heads(
        mixed, heads, names[1], lambda h: transposed(row_slice(value_rows, h * size, (h + 1) * size))
    )
    name = node.output.name
    graph.replace(node.output, result)
    _sweep(graph, node)
    graph.rename(result, name)


class _Builder:
    """Adds nodes before one that they take the place of; shapes are given behind ``[1, seq``."""

    def __init__(self, graph: Graph, node: Node) -> None:
        self.graph = graph
        self.node = node
        self.outer: tuple[int | Dim, ...] = node.operand(0).dims[:2]

    def add(self, op: str, inputs: Sequence[Value | None], shape: Sequence[int], attrs: dict | None = None) -> Value:
        type_ = TensorType(self.node.output.dtype, (*self.outer, *shape))
        return self.graph.add(op, inputs, attrs, types=[type_], before=self.node, loc=self.node.loc).output

    def ints(self, *numbers: int) -> Value:
        return self.graph.add_const("sizes", InlineTensor(np.array(numbers, np.int64)))

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        return self.add("Reshape", [x, self.ints(0, 0, *shape)], shape)

    def join(self, values: Sequence[Value], axis: int) -> Value:
        outer = [_size(values[0], place) for place in range(2, axis)]
        return self.add("Concat", values, (*outer, sum(_size(value, axis) for value in values)), {"axis": axis})

    def split(self, x: Value, sizes: Sequence[int], axis: int) -> tuple[Value, ...]:
        types = [TensorType(x.dtype, (*x.dims[:axis], size)) for size in sizes]
        return self.graph.add(
            "Split", [x, self.ints(*sizes)], {"axis": axis}, outputs=[f"{x.name}.part"] * len(sizes), types=types,
            before=self.node, loc=self.node.loc,
        ).outputs  # fmt: skip

    def by_heads(self, x: Value, heads: int, stem: str, matrix: Callable[[int], Tensor]) -> Value:
        """Each head of ``[1, seq, heads * size]`` times a matrix of its own, joined again."""
        size = _size(x, 2) // heads
        found = []
        for head, part in enumerate(self.split(x, (size,) * heads, 2)):
            weight = self.graph.add_const(f"{stem}.{head}.weight", matrix(head))
            found.append(self.add("MatMul", [part, weight], (_size(weight, 1),)))
        return self.join(found, 2)


def _sweep(graph: Graph, node: Node) -> None:
    """Erase a node and what made its operands for it alone."""
    waiting = [node]
    while waiting:
        found = waiting.pop()
        if found.graph is None or any(value.use_count for value in found.outputs):
            continue
        inputs = {value for value in found.inputs if value is not None}
        graph.erase(found)
        for value in inputs:
            if value.is_const and not value.use_count:
                graph.erase_const(value)
            elif value.producer is not None:
                waiting.append(value.producer)
