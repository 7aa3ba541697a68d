"""The fact that says what was done to quantized weights after their widths were chosen, and what it gained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from ir.base.diag import Diagnostic
from ir.graph.facts import followed
from ir.graph.graph import Fact, Graph


@dataclass(frozen=True)
class Step:
    """One step that was tried.

    Attributes:
        step: name of the pass.
        tokens: positions of calibration text that it looked at.
        before, after: KL divergence from the float model on held-out text without and with it, nats per token.
        positions: held-out positions.
        kept: False when it gained nothing there, so that it was left out.
    """

    step: str
    tokens: int
    before: float
    after: float
    positions: int
    kept: bool


@dataclass(frozen=True)
class Tuning(Fact):
    """Steps that were tried, in order, and the numbers that were tuned.

    Attributes:
        steps: what was tried.
        tuned: name in the store of the codes, scales and zeros of a weight, by its name.
    """

    name: ClassVar[str] = "tuning"

    steps: tuple[Step, ...] = ()
    tuned: Mapping[str, str] = field(default_factory=dict)

    def to_data(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"steps": [asdict(step) for step in self.steps], "tuned": dict(self.tuned)}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Tuning:
        """Inverse of `to_data`."""
        return cls(tuple(Step(**step) for step in data["steps"]), dict(data["tuned"]))

    def check(self, graph: Graph) -> list[Diagnostic]:
        """Every tuned weight is still there."""
        return [
            Diagnostic("I192", f"tuned numbers are of {name!r}, which the graph does not hold", graph.name)
            for name in self.tuned
            if not graph.has(name)
        ]

    def renamed(self, old: str, new: str) -> Tuning:
        """The fact with a weight called otherwise."""
        return self.renamed_all([(old, new)])

    def renamed_all(self, renames: Sequence[tuple[str, str]]) -> Tuning:
        """The fact with weights called otherwise."""
        now = followed(self.tuned, renames)
        return replace(self, tuned={now.get(key, key): item for key, item in self.tuned.items()}) if now else self

    def mentions(self, name: str) -> bool:
        """True for a weight with tuned numbers."""
        return name in self.tuned


def with_step(graph: Graph, step: Step, tuned: Mapping[str, str] | None = None) -> None:
    """Record a step on a graph."""
    found = graph.fact(Tuning) or Tuning()
    more = {**found.tuned, **(tuned or {})}
    graph.set_fact(Tuning.name, Tuning((*found.steps, step), more))


__all__ = ["Step", "Tuning", "with_step"]
