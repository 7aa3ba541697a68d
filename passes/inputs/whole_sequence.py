"""Makes a graph that returns the logits of some rows return those of all."""

from __future__ import annotations

import numpy as np

from ir.base.types import TensorType
from ir.graph.graph import Graph, Node, Value
from ir.graph.order import reads
from ir.infer.engine import infer_types
from ir.ops import registry as ops
from ir.tensor.inline import InlineTensor
from ir.tensor.rearranged import transposed
from passes.inputs.chosen_rows import ChosenRows

_LAYOUT = frozenset({"Squeeze", "Unsqueeze", "Reshape", "Flatten", "Identity"})


def undo(graph: Graph, chosen: ChosenRows) -> None:
    """Let everything behind a choice of rows work on all of them, and drop what chose."""
    made, every = chosen.made, chosen.value
    moved = {made}
    behind = [node for node in chosen.behind if _follows(node, moved)]
    kept = made.rank == every.rank and _same_layout(made, every)
    if not kept:
        for node in behind:
            _fit(graph, node)
    graph.replace(made, every)
    # What lays rows out anew has nothing left to do; what remains has its old type, which is that of the chosen rows.
    for node in behind:
        if node.graph is None:
            continue
        if not kept and node.op in _LAYOUT:
            graph.replace(node.output, node.operand(0))
            graph.erase(node)
        else:
            for value in node.outputs:
                graph.set_type(value, TensorType(value.dtype) if isinstance(value.type, TensorType) else None)
    _sweep(graph, made)
    infer_types(graph)


def _follows(node: Node, moved: set[Value]) -> bool:
    if not any(value in moved for value in reads(node)):
        return False
    moved.update(node.outputs)
    return True


def _same_layout(made: Value, every: Value) -> bool:
    """True when the chosen rows lie along the axis that all rows lie along."""
    if made.shape is None or every.shape is None:
        return False
    return all(
        a == b for place, (a, b) in enumerate(zip(made.dims, every.dims, strict=True)) if place != len(made.dims) - 2
    )


def _fit(graph: Graph, node: Node) -> None:
    """Make a node work row by row whatever the rank of its rows; where it names an axis, that is the last one."""
    if node.op == "Gemm":
        _unfold_gemm(graph, node)
    elif node.op not in _LAYOUT and node.attrs.get("axis", -1) >= 0:
        graph.set_attrs(node, axis=-1)


def _unfold_gemm(graph: Graph, node: Node) -> None:
    """Gemm, which takes matrices only, as a product and a sum."""
    weight, bias = node.operand(1), node.input(2)
    alpha, beta = (float(ops.attribute(node, name)) for name in ("alpha", "beta"))
    if ops.attribute(node, "transB"):
        weight = _matrix(graph, node, weight)
    product = _add(graph, node, "MatMul", node.operand(0), weight)
    if alpha != 1:
        product = _add(graph, node, "Mul", product, _number(graph, node, alpha))
    if bias is not None:
        offset = bias if beta == 1 else _add(graph, node, "Mul", bias, _number(graph, node, beta))
        product = _add(graph, node, "Add", product, offset)
    name = node.output.name
    graph.replace(node.output, product)
    graph.erase(node)
    graph.rename(product, name)


def _matrix(graph: Graph, node: Node, weight: Value) -> Value:
    """The matrix of a weight that lies on its side."""
    if weight.const is not None:
        return graph.add_const(weight.name, transposed(weight.const))
    return graph.add("Transpose", [weight], {"perm": (1, 0)}, before=node, loc=node.loc).output


def _number(graph: Graph, node: Node, number: float) -> Value:
    kind = node.output.dtype.numpy if isinstance(node.output.type, TensorType) else np.dtype(np.float32)
    return graph.add_const(f"{node.output.name}.factor", InlineTensor(np.array(number, kind)))


def _add(graph: Graph, node: Node, op: str, *operands: Value) -> Value:
    return graph.add(op, list(operands), before=node, loc=node.loc).output


def _sweep(graph: Graph, dropped: Value) -> None:
    """Erase what computed a value that nothing reads any more."""
    waiting = [dropped]
    while waiting:
        node = waiting.pop().producer
        if node is None or node.graph is not graph or any(value.use_count for value in node.outputs):
            continue
        waiting += list(reads(node))
        graph.erase(node)


__all__ = ["undo"]
