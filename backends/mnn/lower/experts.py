"""Mixtures of experts in MNN's form: what lies between the hand-over of the rows and their sum becomes one operator with a
graph for each expert, so nothing else may lead in or out."""

from __future__ import annotations

from backends.mnn.dialect.experts import ROWS_OF_EXPERTS, nodes_of_experts, source_of
from backends.mnn.lower.lowering import Lowering
from ir.base.diag import LadingError
from ir.base.types import F32, TensorType
from ir.graph.graph import Node, Value


def lower_dispatch(node: Node, low: Lowering) -> None:
    """The rows of each expert, which are ``[n, H]`` in the runtime."""
    hidden, choices = low.floats(node.operand(0)), low.plain(node.operand(1))
    if low.dims(hidden)[0] != 1:
        raise _refused(node, f"the runtime hands over the tokens of one sequence, and these are {hidden.type}")
    flat = low.reshape(hidden, low.dims(hidden)[1:])
    types = [TensorType(F32, low.dims(value)[1:]) for value in node.outputs]
    names = [f"{value.name}.rows" for value in node.outputs]
    given = low.graph.add(
        ROWS_OF_EXPERTS, [flat, choices], {"experts": len(types)}, outputs=names, types=types, before=node, loc=node.loc
    )
    for old, new in zip(node.outputs, given.outputs, strict=True):
        low.replace(old, low.reshape(new, (1, *low.dims(new))))


def lower_combine(node: Node, low: Lowering) -> None:
    """The operator itself, behind the experts.

    Raises:
        LadingError: P374 experts that share what they compute, or read what is computed outside of them.
    """
    source = source_of(node, ROWS_OF_EXPERTS)
    if source is None or source.inputs[1] is not low.plain(node.operand(0)):
        raise _refused(node, "its choices are not those by which the rows were handed over")
    try:
        nodes_of_experts(source, node)
    except ValueError as error:
        raise _refused(node, str(error)) from error
    weights = low.floats(node.operand(1))
    best = low.size(low.dims(weights)[2])
    parts = [_part(low, value, given) for value, given in zip(node.inputs[2:], source.outputs, strict=True)]
    one, seq, width = low.dims(node.output)
    attrs = {"layer": low.mixtures, "best": best}
    low.mixtures += 1
    total = low.add("MoE", [source.operand(1), weights, *parts], TensorType(F32, (seq, width)), attrs)
    low.replace(node.output, low.reshape(total, (one, seq, width)))


def _part(low: Lowering, value: Value | None, given: Value) -> Value:
    """What an expert makes, as ``[n, H]``; an expert that changes nothing is given something to compute."""
    assert value is not None
    flat = low.reshape(value, low.dims(value)[1:])
    made = flat.producer
    passed = made is not None and made.op == "mnn.Reshape" and made.operand(0).producer is given.producer
    return low.copied(flat) if passed else flat


def _refused(node: Node, why: str) -> LadingError:
    return LadingError(
        "P374",
        f"MNN runs each expert as a graph of its own: {why}",
        where=f"{node.loc or node.name}\n{node!r}",
        hint="compile with --to onnx: onnxruntime computes it",
    )


__all__ = ["lower_combine", "lower_dispatch"]
