"""Type inference: element type and shape of every value, with symbolic dimensions that keep their names.

The rules live in `ir.infer.numeric` (numeric operators), `ir.infer.shapes` (shape manipulation), `ir.infer.values` (the
integer tensors that shapes are computed with) and `ir.ops.registry` (own operators). Operators without a rule go to
ONNX's own inference, one node at a time. What no rule can tell stays unknown, and every dimension that cannot be named
gets a fresh name, so that two unknown dimensions are never equal by accident.
"""

from __future__ import annotations

from collections.abc import Mapping

from ir.base.diag import Diagnostic
from ir.base.types import ValueType
from ir.graph.describe import describe
from ir.graph.graph import Graph, Node, Value
from ir.infer.inference import Forms, Inference
from ir.infer.rule_table import TypeMismatch
from ir.infer.rules import rule_of

MOST_SHOWN = 3
"""Recorded types that gave way, of which a warning shows both sides."""


def infer_types(graph: Graph) -> list[Diagnostic]:
    """Infer and record the type of every value of a graph, subgraphs included.

    Recorded types are refined, never contradicted: where the recorded type cannot be true the value keeps it and the
    disagreement is reported. Types that are hints (`Graph.hinted`) are the exception: they give way, which one warning
    tells of all, and what is left is recorded for good. A second run changes nothing.

    Returns:
        T210 for each recorded type that disagrees, one T211 (a warning) for all hints that do, T212 for each node whose
        inputs do not fit, T201 to T204 for nodes that their operator does not allow and that therefore have no types.
    """
    run = Inference(graph)
    run.scan_names()
    run.graph(graph)
    if not graph.hinted:
        return run.problems
    graph.hinted = False
    return [*run.problems, *_overruled(run.overruled)]


def _overruled(found: Mapping[Value, str]) -> list[Diagnostic]:
    """One warning for all recorded types that gave way."""
    if not found:
        return []
    shown = "; ".join(list(found.values())[:MOST_SHOWN])
    more = f"; and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
    verb, were = ("types cannot", "were") if len(found) > 1 else ("type cannot", "was")
    first = next(iter(found))
    where = describe(first.producer) if first.producer is not None else f"input %{first.name}"
    return [
        Diagnostic(
            "T211",
            f"{len(found)} recorded {verb} be true and {were} overruled: {shown}{more}",
            where,
            severity="warning",
        )
    ]


def infer_node(node: Node) -> list[ValueType | None]:
    """Types of the outputs of one node from those of its inputs; what is recorded for them is neither read nor set.

    A dimension that cannot be known is given as a `Dim` of a fresh name, which is declared in the graph's `dims`.

    Raises:
        TypeMismatch: the inputs do not fit the operator, or the node breaks its declaration.
    """
    run = Inference(node.home, lazy=True)
    flaws = Forms(run.root).flaws(node)
    if flaws:
        raise TypeMismatch(flaws[0].message)
    try:
        result = rule_of(node.op, run.opset)(run, node)
    except ArithmeticError as error:
        raise TypeMismatch(str(error)) from error
    results = result if type(result) is tuple else (result,)
    return [run.named(found) for found in results]


__all__ = [
    "infer_node",
    "infer_types",
]
