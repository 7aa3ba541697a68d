"""The fact that says what was tried with quantized weights after their widths were chosen, and what it gained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

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
    """Steps that were tried, in order."""

    name: ClassVar[str] = "tuning"

    steps: tuple[Step, ...] = ()

    def to_data(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"steps": [asdict(step) for step in self.steps]}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Tuning:
        """Inverse of `to_data`."""
        return cls(tuple(Step(**step) for step in data["steps"]))


def with_step(graph: Graph, step: Step) -> None:
    """Record a step on a graph."""
    found = graph.fact(Tuning) or Tuning()
    graph.set_fact(Tuning.name, Tuning((*found.steps, step)))


__all__ = ["Step", "Tuning", "with_step"]
