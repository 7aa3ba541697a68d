"""Multiply once where several matrices share their operand: queries, keys and values, as a rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ir.base.types import Dim, TensorType
from ir.graph.graph import Graph, Node, Value
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
    the joined matrix is a row of one of the matrices and is quantized by itself, so numbers stay as they were. The
    joined weight has a name of its own and one precision, so the pass comes before precision is assigned.
    """

    name = "join-linears"
    requires = ("typed",)
    establishes = ("typed",)

    narrow: int = option(1024, help="join only where the narrowest of the matrices has at most so many outputs", low=1)

    def run(self, graph: Graph, ctx: PassContext) -> Result:
        """See `Pass.run`."""
        groups = [group for group in _groups(graph) if min(_columns(node) for node in group) <= self.narrow]
        for group in groups:
            _join(graph, group)
        return {"joined": sum(map(len, groups)), "products": len(groups)}


def _groups(graph: Graph) -> Iterator[list[Node]]:
    """Products of one value with different constant matrices that nothing else uses, in program order."""
    by_operand: dict[Value, list[Node]] = {}
    tables = set(graph.tables.values())
    for node in graph.nodes:
        if node.op != "MatMul":
            continue
        x, weight = node.input(0), node.input(1)
        if x is None or weight is None:
            continue
        alone = weight.is_const and weight.use_count == 1 and weight not in tables
        if alone and weight.rank == 2 and x.rank is not None and x.rank == node.output.rank:
            by_operand.setdefault(x, []).append(node)
    for group in by_operand.values():
        if len(group) > 1 and len({node.operand(1).dtype for node in group}) == 1:
            yield group


def _columns(node: Node) -> int:
    return node.operand(1).sizes[1]


def _join(graph: Graph, group: Sequence[Node]) -> None:
    first = group[0]
    stem = _stem([node.operand(1).name for node in group])
    rows = row_concat([transposed(node.operand(1).tensor) for node in group])
    loc = " + ".join(dict.fromkeys(node.operand(1).loc or node.operand(1).name for node in group))
    weight = graph.add_const(f"{stem}.weight", transposed(rows), loc=loc)
    adds = [_addition(node) for node in group]
    results = [node.output if add is None else add.output for node, add in zip(group, adds, strict=True)]
    biased = any(add is not None for add in adds)
    total = _node(
        graph, first, "MatMul", [first.operand(0), weight], f"{stem}.matmul" if biased else stem, rows.row_count
    )
    if biased:
        bias = graph.add_const(f"{stem}.bias", InlineTensor(_joined_bias(group, adds)), loc=loc)
        total = _node(graph, first, "Add", [total, bias], stem, rows.row_count)
    sizes = [_columns(node) for node in group]
    cut = graph.add_const(f"{stem}.sizes", InlineTensor(np.array(sizes, np.int64)))
    parts = graph.add(
        "Split", [total, cut], {"axis": -1}, outputs=[f"{stem}.part"] * len(group), types=[v.type for v in results],
        before=first, loc=loc,
    )  # fmt: skip
    for old, new in zip(results, parts.outputs, strict=True):
        _take_over(graph, old, new)
    _sweep(graph, group, adds)


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
        inputs = [value for value in node.inputs if value is not None and value.is_const]
        graph.erase(node)
        for value in inputs:
            if value.use_count == 0:
                graph.erase_const(value)
