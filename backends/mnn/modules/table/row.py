"""One row of the table: an operator with the element types, ranks and attributes for which it is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from backends.mnn.modules.build import type_of
from backends.mnn.target.releases import VERSIONS
from ir.base.types import BOOL, F32, F64, I32, I64, DType
from ir.graph.graph import Node

FLOAT = frozenset({F32, F64})
"""What MNN holds in single precision."""
INT = frozenset({I32, I64})
"""What MNN holds as 32-bit integers."""
NUMBER = FLOAT | INT
HELD = NUMBER | {BOOL}
"""Element types that MNN's tensors hold, each as one of its own."""

MOST_AXES = 6
"""Axes of a tensor for which operators were shown to be right, unless a row says otherwise."""

Why = Callable[[Node], "str | None"]
"""None for a node that is right, else the reason why it is not known to be."""


def always(node: Node) -> None:
    """Nothing more is asked for."""


@dataclass(frozen=True)
class Right:
    """An operator as the opset of today defines it, in the forms that were shown to be right.

    Attributes:
        op: the operator.
        evidence: conformance cases that passed, or the sweep that showed it.
        types: element types of operands and results; a sequence of sets gives them by operand, the last one for all that
            follow, and those of results are not asked for then.
        ranks: numbers of axes of the first operand; None where it need not be known.
        when: what else is asked for.
        since: the first release of which this was shown.
    """

    op: str
    evidence: str
    types: frozenset[DType] | Sequence[frozenset[DType]] = HELD
    ranks: range | None = range(MOST_AXES + 1)
    when: Why = always
    since: str = "3.4.0"

    def why_not(self, node: Node, release: str) -> str | None:
        """Why this row does not show that a release computes a node right; None when it does."""
        if VERSIONS.index(release) < VERSIONS.index(self.since):
            return f"it is right from MNN {self.since} on"
        return self._types(node) or self._ranks(node) or self.when(node)

    def _types(self, node: Node) -> str | None:
        by_place = not isinstance(self.types, frozenset)
        for index, value in enumerate((*node.inputs, *(() if by_place else node.outputs))):
            found = type_of(value)
            if value is None:
                continue
            allowed = (
                self.types[min(index, len(self.types) - 1)] if not isinstance(self.types, frozenset) else self.types
            )
            if found is None:
                return f"%{value.name} is of type {value.type}"
            if found.dtype not in allowed:
                return f"it is not right for {found.dtype}"
        return None

    def _ranks(self, node: Node) -> str | None:
        found = type_of(node.input(0))
        if self.ranks is None or found is None:
            return None
        if found.rank is None:
            return f"the number of axes of %{node.operand(0).name} is not known"
        return None if found.rank in self.ranks else f"it is not right for {found.rank} axes"


def by_operator(rows: Sequence[Right]) -> Mapping[str, tuple[Right, ...]]:
    """Rows by their operator."""
    found: dict[str, list[Right]] = {}
    for row in rows:
        found.setdefault(row.op, []).append(row)
    return {op: tuple(each) for op, each in found.items()}


__all__ = ["FLOAT", "HELD", "INT", "MOST_AXES", "NUMBER", "Right", "always", "by_operator"]
