"""Type inference that records nothing: what the verifier compares recorded types with."""

from __future__ import annotations

from collections.abc import Set
from typing import NamedTuple

from ir.base.types import Dim, TensorType, ValueType
from ir.graph.graph import Graph, Node, Value
from ir.infer.inference import Inference, conflict, elements_agree
from ir.infer.rule_table import TypeMismatch
from ir.infer.rules import rule_of, value_rule_of


class Finding(NamedTuple):
    """One disagreement: code, message, node, and the output concerned if it is about one."""

    code: str
    message: str
    node: Node
    output: int | None


class _Recheck(Inference):
    """A run over a graph that compares instead of merging."""

    def __init__(self, graph: Graph, skip: Set[Node]) -> None:
        super().__init__(graph)
        self.skip = skip
        self.found: list[Finding] = []

    def graph(self, graph: Graph) -> None:
        """Compare every node that is not to be skipped."""
        for node in graph.nodes:
            if node in self.skip or _has_untyped_bodies(node):
                continue
            try:
                result = rule_of(node.op, self.opset)(self, node)
            except (TypeMismatch, ArithmeticError) as error:
                inputs = ", ".join("_" if value is None else str(value.type) for value in node.inputs)
                self.found.append(Finding("T212", f"{node.op}({inputs}): {error}", node, None))
                continue
            for value, found in zip(node.outputs, result if type(result) is tuple else (result,), strict=False):
                if found is not None and value.type is not None and found is not value.type:
                    self._merge(node, value, found)
            value_rule = value_rule_of(node.op)
            if value_rule is not None:
                self._follow(node, value_rule)

    def _merge(self, node: Node, value: Value, found: ValueType) -> None:
        recorded = value.type
        if found == recorded:
            return
        problem = "the kinds differ"
        if type(found) is TensorType and type(recorded) is TensorType:
            problem = conflict(recorded, found)
            if not problem:
                # What the recorded names stand for is needed further down.
                self._merged_shape(found.shape, recorded.shape)
                return
        elif elements_agree(recorded, found):
            return
        message = f"{node.op} gives {found} for %{value.name}, recorded is {recorded}: {problem}"
        self.found.append(Finding("T210", message, node, value.index))

    def _name(self, pending: Dim) -> Dim:
        return self.table.bind(pending)


def _has_untyped_bodies(node: Node) -> bool:
    # The rules of control flow give untyped body inputs a type, which a check must not.
    return any(value.type is None for sub in node.subgraphs for value in sub.inputs)


def recheck(graph: Graph, skip: Set[Node] = frozenset()) -> list[Finding]:
    """T210 for each recorded type that inference contradicts, T212 for each node whose inputs do not fit its operator.

    The graph must be well formed otherwise (links, names, order), and `skip` name the nodes whose operator, arity or
    attributes are wrong.
    """
    run = _Recheck(graph, skip)
    run.scan_names()
    run.graph(graph)
    return run.found


__all__ = ["Finding", "recheck"]
