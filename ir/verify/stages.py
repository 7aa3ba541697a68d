"""What may exist at each stage of compilation, and the invariants that passes require and establish."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ir.base.diag import Diagnostic, suggest
from ir.base.plugins import rows_of
from ir.base.tables import Table
from ir.base.types import TensorType, ValueType
from ir.graph.facts import Fact, data_of
from ir.graph.graph import Graph, Node
from ir.ops.registry import DIALECTS, NO_RUNTIMES, opdef
from ir.verify.structure import circle, facts, operators, place_of_value, structure, types, where

LARGE_WEIGHT = 1024
"""Elements from which a float matrix counts as a weight that the precision plan has to speak of."""


def verify(graph: Graph, stage: str | None = None) -> list[Diagnostic]:
    """Every problem of a root graph, its subgraphs and functions; empty when it is well formed. Changes nothing.

    Args:
        graph: a root graph.
        stage: also check what this stage of `STAGES` demands.

    Raises:
        KeyError: there is no such stage.
    """
    for whole in (graph, *graph.functions.values()):
        endless = circle(whole)
        if endless is not None:
            return [endless]
    found = list(structure(graph))
    is_sound = not found
    misused = operators(graph)
    found += [problem for _, problem in misused]
    for function in graph.functions.values():
        found += structure(function)
        found += [problem for _, problem in operators(function)]
    if is_sound:
        found += types(graph, {node for node, problem in misused if problem.severity == "error"})
        found += facts(graph)
    if stage is not None:
        found += at_stage(graph, stage)
    return found


@dataclass(frozen=True)
class Rule:
    """One row about operators at a stage; the first row of a stage whose pattern matches an operator decides.

    Attributes:
        op: pattern for operator names, such as ``lading.*``; ``*`` stands for any characters.
        when: the row counts only for nodes for which this is true.
    """

    op: str
    when: Callable[[Node], bool] | None = None

    def matches(self, node: Node) -> bool:
        """True when the row decides about this node."""
        return fnmatchcase(node.op, self.op) and (self.when is None or self.when(node))


@dataclass(frozen=True)
class Allow(Rule):
    """Nodes that match are legal at the stage."""


@dataclass(frozen=True)
class Forbid(Rule):
    """Nodes that match are reported at the stage.

    Attributes:
        code: code of the diagnostic.
        hint: what to do.
    """

    code: str = "I130"
    hint: str = ""


@dataclass(frozen=True)
class Stage:
    """A stage of compilation.

    Attributes:
        invariants: names of `INVARIANTS` that hold from there on.
        rules: what may exist; a node that no row matches is legal.
    """

    invariants: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()


def on_constants(node: Node) -> bool:
    """True when a node reads nothing but constants."""
    return bool(node.inputs) and all(value is None or value.const is not None for value in node.inputs)


def of_a_runtime(node: Node) -> bool:
    """True for an operator of a domain that a runtime brought."""
    return node.domain not in NO_RUNTIMES and node.domain in DIALECTS


STAGES: Table[Stage] = Table(
    "stage",
    {
        "float": Stage(
            rules=(
                Forbid("QuantizeLinear", hint="quantization comes in with insert-qdq"),
                Forbid("DequantizeLinear", hint="quantization comes in with insert-qdq"),
                Forbid("*", of_a_runtime, hint="operators of a runtime come in when the graph is legalized for it"),
            )
        ),
        "typed": Stage(("typed",)),
        "signature": Stage(("typed", "signature")),
        "planned": Stage(("typed", "signature", "precision-plan"), (Forbid("lading.AffineDequantize"),)),
        "quantized": Stage(("typed", "signature", "precision-plan", "quantized")),
    },
    rows_of("stages"),
)
"""Stages of compilation by name. Open to plugins."""


def stage_rules(graph: Graph, stage: str) -> list[Diagnostic]:
    """What the rows of a stage find."""
    rows = STAGES[stage].rules
    found = []
    for node in graph.walk():
        row = next((row for row in rows if row.matches(node)), None)
        if isinstance(row, Forbid):
            message = f"{node.op} is not allowed at stage {stage}"
            found.append(Diagnostic(row.code, message, where(node), row.hint))
    return found


def at_stage(graph: Graph, stage: str) -> list[Diagnostic]:
    """What a stage demands: its rows and its invariants; KeyError when there is no such stage."""
    if stage not in STAGES:
        raise KeyError(f"there is no stage {stage!r} {suggest(stage, list(STAGES))}".rstrip())
    found = stage_rules(graph, stage)
    for name in STAGES[stage].invariants:
        found += [item for item in INVARIANTS[name](graph) if item not in found]
    return found


def typed(graph: Graph) -> list[Diagnostic]:
    """Values without a type whose operator and inputs are known."""
    found = []
    for node in graph.walk():
        if all(value.type is not None for value in node.outputs) or opdef(node) is None:
            continue
        if any(value is not None and value.type is None for value in node.inputs):
            continue
        for index, value in enumerate(node.outputs):
            if value.type is None:
                place = where(node, output=index)
                found.append(Diagnostic("T272", f"%{value.name} has no type", place, "run infer-types"))
    for value in graph.inputs:
        if value.type is None:
            found.append(Diagnostic("T272", f"input %{value.name} has no type", place_of_value(value)))
    return found


def signature(graph: Graph) -> list[Diagnostic]:
    """Inputs that the dynamic-inputs fact does not speak of, and a missing fact."""
    fact = graph.facts.get("dynamic-inputs")
    if fact is None:
        message = "the inputs of the graph have not been reconciled with a calling convention"
        return [Diagnostic("I133", message, f"graph {graph.name}", "run discover-inputs")]
    found = fact.check(graph) if isinstance(fact, Fact) else []
    mentioned = {item["input"] for item in data_of(fact)["discoveries"]}
    found += [
        Diagnostic(
            "I133", f"nothing is recorded about input %{value.name}", place_of_value(value), "run discover-inputs"
        )
        for value in graph.inputs
        if value.name not in mentioned
    ]
    return found


def precision_plan(graph: Graph) -> list[Diagnostic]:
    """A missing precision plan, or one that disagrees with the graph."""
    fact = graph.facts.get("precision-plan")
    if fact is None:
        return [Diagnostic("I134", "the graph has no precision plan", f"graph {graph.name}", "run assign-precision")]
    return fact.check(graph) if isinstance(fact, Fact) else []


def quantized(graph: Graph) -> list[Diagnostic]:
    """Large float constants that a MatMul multiplies by, unless the plan keeps them in that type."""
    fact = graph.facts.get("precision-plan")
    plan = data_of(fact) if fact is not None else {"storage": {}}
    planned: dict[str, Any] = plan["storage"]
    planned |= {matrix: planned[part] for part, matrix in plan.get("joined", {}).items() if part in planned}
    found = []
    for node in graph.walk():
        if node.op not in ("MatMul", "Gemm"):
            continue
        for index, value in enumerate(node.inputs[:2]):
            if value is None or value.const is None or not _is_large_float(value.type):
                continue
            wanted = planned.get(value.name, {}).get("bits")
            if wanted != value.dtype.bits:
                said = f"the plan stores it in {wanted} bits" if wanted else "the plan does not speak of it"
                place = where(node, operand=index)
                found.append(Diagnostic("I131", f"@{value.name} is {value.type}, {said}", place, "run insert-qdq"))
    return found


def _is_large_float(type: ValueType | None) -> bool:
    return (
        isinstance(type, TensorType)
        and type.dtype.is_float
        and type.rank is not None
        and type.rank >= 2
        and (type.size or 0) >= LARGE_WEIGHT
    )


Invariant = Callable[[Graph], list[Diagnostic]]
"""Finds the ways in which a graph breaks an invariant."""

INVARIANTS: Table[Invariant] = Table(
    "invariant",
    {"typed": typed, "signature": signature, "precision-plan": precision_plan, "quantized": quantized},
    rows_of("invariants"),
)
"""The names in ``Pass.requires`` and ``Pass.establishes``, and what checks them. Open to plugins."""

__all__ = ["INVARIANTS", "STAGES", "Allow", "Forbid", "Invariant", "Rule", "Stage", "at_stage", "verify"]
