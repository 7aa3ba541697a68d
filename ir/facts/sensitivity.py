"""What was measured to choose a precision plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from ir.graph.facts import followed
from ir.graph.graph import Fact


@dataclass(frozen=True)
class CurvePoint:
    """One way to store a weight, and what it costs.

    Attributes:
        bits, block, symmetric, method: as in `Storage`.
        bytes: size in the weight file.
        error: expected squared error of the weight's outputs, ``tr((W - W') E[x x^T] (W - W')^T)``; for embedding rows
            the squared error of the rows.
        loss: predicted KL divergence from the float model when only this weight is stored so, nats per token.
    """

    bits: int
    block: int
    symmetric: bool
    method: str
    bytes: int
    error: float
    loss: float


@dataclass(frozen=True)
class WeightSensitivity:
    """How much the model minds errors of one weight.

    Attributes:
        name: the weight.
        role: ``layer``, ``logits`` or ``embedding``.
        layer, kind: place in the model as the name tells; None and the last word of the name outside layers.
        elements: numbers in the weight.
        probe: storage in which this weight alone was measured, such as ``3 bits, block 64``; empty when it was not.
        kl: KL divergence from the float model that was measured then, nats per token.
        kl_per_error: KL divergence for each unit of error at the chosen point.
        factor: correction of the predicted losses by what was measured of whole plans.
        curve: the ways to store it that were weighed, by size; losses without `factor`.
        chosen: index into `curve` of what the plan takes; None when it takes something else, such as single precision.
    """

    name: str
    role: str
    layer: int | None
    kind: str
    elements: int
    probe: str
    kl: float
    kl_per_error: float
    factor: float
    curve: tuple[CurvePoint, ...]
    chosen: int | None


@dataclass(frozen=True)
class TriedPlan:
    """A whole plan that was measured on held-out text.

    Attributes:
        name: how it came about, such as ``mixed, round 2`` or ``uniform 4 bits, block 64``.
        bytes: size of all weights.
        bits_per_weight: stored bits of the planned weights for each of them.
        predicted: KL divergence that was predicted, nats per token.
        measured: KL divergence that was measured, and its standard error.
        top1: share of positions whose most likely token is that of the float model.
        taken: True for the plan that was chosen.
    """

    name: str
    bytes: int
    bits_per_weight: float
    predicted: float
    measured: float
    measured_error: float
    top1: float
    taken: bool = False


@dataclass(frozen=True)
class Sensitivity(Fact):
    """What was measured to choose a precision plan.

    Attributes:
        limit: the limit asked for, such as ``budget=4.5bpw``.
        tokens: positions of held-out text on which single weights and whole plans were measured.
        weights: each planned weight, in program order.
        plans: each plan measured, in the order of measuring.
    """

    name: ClassVar[str] = "sensitivity"

    limit: str
    tokens: tuple[int, int]
    weights: tuple[WeightSensitivity, ...]
    plans: tuple[TriedPlan, ...]

    def to_data(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Sensitivity:
        """Inverse of `to_data`."""
        weights = tuple(
            WeightSensitivity(**{**item, "curve": tuple(CurvePoint(**point) for point in item["curve"])})
            for item in data["weights"]
        )
        plans = tuple(TriedPlan(**item) for item in data["plans"])
        single, whole = data["tokens"]
        return cls(data["limit"], (single, whole), weights, plans)

    def renamed(self, old: str, new: str) -> Sensitivity:
        """The fact with a weight called otherwise."""
        return self.renamed_all([(old, new)])

    def renamed_all(self, renames: Sequence[tuple[str, str]]) -> Sensitivity:
        """The fact with weights called otherwise."""
        now = followed(self._names, renames)
        if not now:
            return self
        weights = tuple(replace(item, name=now[item.name]) if item.name in now else item for item in self.weights)
        return replace(self, weights=weights)

    def mentions(self, name: str) -> bool:
        """True for a weight that was measured."""
        return name in self._names

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(item.name for item in self.weights)
