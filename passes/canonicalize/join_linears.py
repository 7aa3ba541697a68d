"""Multiply once where several matrices share their operand: queries, keys and values, as a rule."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ir.base.types import Dim, TensorType
from ir.facts.precision import PrecisionPlan
from ir.graph.graph import Graph, Node, Value
from ir.quant.stored_weight import DEQUANTIZE, storage_of
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor
from ir.tensor.rearranged import row_concat, transposed
from passes.framework.base import Pass, Result
from passes.framework.context import PassContext
from passes.framework.options import option
from passes.precision.planned_weights import bias_of


@dataclass(frozen=True)
class JoinLinears(Pass):
    """Join products of one value with several constant matrices into one product, and split its result.

    Runtimes start one operator where they started several, and quantize the operand once. It pays where a matrix is
    narrow, as those of keys and values are; wide ones gain nothing and their results have to be copied. Every row of
    the joined matrix is a row of one of the matrices, so numbers stay as they were.

    Behind insert-qdq, matrices are joined that are stored alike: rules and plans name each by itself, and one that they
    store otherwise stays alone. Before precision is assigned, the joined weight has a name of its own and one precision.
    """

    name = "join-linears"
    requires = ("typed",)
    establishes = ("typed",)

    narrow: int = option(1024, help="join only where the narrowest of the matrices has at most so many outputs", low=1)
    unit: int = option(1, help="join only matrices whose number of outputs is a multiple of this", low=1)

    def run(self, graph: Graph, ctx: PassContext) -> Result:
        """See `Pass.run`."""
        found = _groups(graph, self.unit)
        groups = [group for group in found if min(_columns(node) for node in group) <= self.narrow]
        for group in groups:
            _join(graph, group)
        return {"joined": sum(map(len, groups)), "products": len(groups)}


def _groups(graph: Graph, unit: int) -> Iterator[list[Node]]:
    """Products of one value with different constant matrices that are stored alike and that nothing else uses, in program
    order."""
    by_operand: dict[tuple[Value, Hashable], list[Node]] = {}
    tables = set(graph.tables.values())
    for node in graph.nodes:
        x, weight = (node.input(0), node.input(1)) if node.op == "MatMul" else (None, None)
        if x is None or weight is None or weight.use_count != 1 or weight in tables:
            continue
        kind = _kind(weight)
        if (
            kind
            and weight.rank == 2
            and x.rank is not None
            and x.rank == node.output.rank
            and not _columns(node) % unit
        ):
            by_operand.setdefault((x, kind), []).append(node)
    yield from (group for group in by_operand.values() if len(group) > 1)


def _kind(weight: Value) -> Hashable:
    """What matrices have in common that can be one below the other; None for what is no constant matrix."""
    if weight.is_const:
        return weight.dtype
    node = weight.producer
    if node is None or node.op not in ("Cast", *DEQUANTIZE):
        return None
    parts = [value for value in node.inputs if value is not None]
    if any(not value.is_const or value.rank != 2 or value.use_count != 1 for value in parts):
        return None
    stored = storage_of(weight, matmul=True)
    if stored is None:
        return None
    return (node.op, tuple(sorted(node.attrs.items())), stored.storage, *(value.dtype for value in parts))


def _columns(node: Node) -> int:
    return node.operand(1).sizes[1]


def _join(graph: Graph, group: Sequence[Node]) -> None:
    first = group[0]
    names = [node.operand(1).name for node in group]
    stem = _stem(names)
    sizes = [_columns(node) for node in group]
    loc = " + ".join(dict.fromkeys(node.operand(1).loc or node.operand(1).name for node in group))
    weight = _joined_weight(graph, group, f"{stem}.weight", loc)
    adds = [_addition(node) for node in group]
    results = [node.output if add is None else add.output for node, add in zip(group, adds, strict=True)]
    biased = any(add is not None for add in adds)
    total = _node(graph, first, "MatMul", [first.operand(0), weight], f"{stem}.matmul" if biased else stem, sum(sizes))
    if biased:
        bias = graph.add_const(f"{stem}.bias", InlineTensor(_joined_bias(group, adds)), loc=loc)
        total = _node(graph, first, "Add", [total, bias], stem, sum(sizes))
    cut = graph.add_const(f"{stem}.sizes", InlineTensor(np.array(sizes, np.int64)))
    parts = graph.add(
        "Split", [total, cut], {"axis": -1}, outputs=[f"{stem}.part"] * len(group), types=[v.type for v in results],
        before=first, loc=loc,
    )  # fmt: skip
    for old, new in zip(results, parts.outputs, strict=True):
        _take_over(graph, old, new)
    _sweep(graph, group, adds)
    _record(graph, names, weight.name)


def _joined_weight(graph: Graph, group: Sequence[Node], name: str, loc: str) -> Value:
    """The matrices side by side ``[in, out]``, stored as each of them is."""
    first = group[0].operand(1).producer
    if first is None:
        return graph.add_const(name, _side_by_side([node.operand(1) for node in group]), loc=loc)
    stored = [_stored(node.operand(1)) for node in group]
    inputs = []
    for place, value in enumerate(first.inputs):
        tensor = _side_by_side([node.operand(place) for node in stored])
        word = value.name.rpartition(".")[2] if value is not None else "part"
        inputs.append(graph.add_const(f"{name}.{word}", tensor, loc=loc))
    columns = sum(node.output.sizes[1] for node in stored)
    type_ = TensorType(first.output.dtype, (first.output.sizes[0], columns))
    return graph.add(
        first.op, inputs, first.attrs, outputs=[name], types=[type_], before=graph.first, loc=loc
    ).output  # fmt: skip


def _stored(weight: Value) -> Node:
    assert weight.producer is not None
    return weight.producer


def _side_by_side(matrices: Sequence[Value]) -> Tensor:
    return transposed(row_concat([transposed(value.tensor) for value in matrices]))


def _record(graph: Graph, names: Sequence[str], joined: str) -> None:
    """Note in the plan what has become of the weights that it names."""
    plan = graph.fact(PrecisionPlan)
    mine = {name: joined for name in names if plan is not None and name in plan.storage}
    if plan is not None and mine:
        graph.set_fact(PrecisionPlan.name, replace(plan, joined={**plan.joined, **mine}))


def _node(graph: Graph, first: Node, op: str, inputs: Sequence[Value], name: str, width: int) -> Value:
    shape: tuple[int | Dim, ...] = (*(first.output.shape or ())[:-1], width)
    type_ = TensorType(first.output.dtype, shape)
    return graph.add(op, inputs, outputs=[name], types=[type_], before=first, loc=inputs[1].loc).output


def _addition(node: Node) -> Node | None:
    """The addition of a bias that alone reads a product and gives its type."""
    bias, result = bias_of(node)
    return result.producer if bias is not None and result.type == node.output.type else None


def _joined_bias(group: Sequence[Node], adds: Sequence[Node | None]) -> np.ndarray:
    parts = []
    for node, add in zip(group, adds, strict=True):
        bias = None if add is None else next(value for value in add.inputs if value is not node.output)
        zeros = np.zeros(_columns(node), node.output.dtype.numpy)
        parts.append(zeros if bias is None else bias.tensor.load())
    return np.concatenate(parts)


def _stem(names: Sequence[str]) -> str:
    """``layer.attn.q_proj.weight`` and its neighbours as ``layer.attn.q_proj+k_proj+v_proj``."""
    parts = [name.removesuffix(".weight").rpartition(".") for name in names]
    module = parts[0][0]
    same = all(part[0] == module for part in parts)
    words = [part[2] if same else "".join(part) for part in parts]
    return f"{module}.{'+'.join(words)}" if same and module else "+".join(words)


def _take_over(graph: Graph, old: Value, new: Value) -> None:
    name = old.name
    graph.replace(old, new)
    graph.rename(old, graph.fresh_name(f"{name}.old"))
    graph.rename(new, name)


def _sweep(graph: Graph, group: Sequence[Node], adds: Sequence[Node | None]) -> None:
    for node in (*(add for add in adds if add is not None), *group):
        inputs = [value for value in node.inputs if value is not None]
        graph.erase(node)
        for value in inputs:
            _drop(graph, value)


def _drop(graph: Graph, value: Value) -> None:
    """Erase a constant, or what dequantizes constants, that nothing reads any more."""
    if value.use_count:
        return
    if value.is_const:
        graph.erase_const(value)
    elif value.producer is not None and value.producer.op in ("Cast", *DEQUANTIZE):
        _sweep(graph, [value.producer], [])
