"""The decisions that passes record for the backend and the contract: dynamic inputs and the precision plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from ir.base.diag import Diagnostic
from ir.graph.facts import followed
from ir.graph.graph import Fact, Graph
from ir.quant.storage import Storage


@dataclass(frozen=True)
class Outcome:
    """What is known of a plan that was chosen by measurement.

    Attributes:
        limit: what was asked for, such as ``budget=4.5bpw``.
        bytes: size of the weight file and of embedding rows kept in a file of their own.
        bits_per_weight: stored bits of the planned weights, scales and zeros included, for each of them.
        predicted: KL divergence from the float model that was predicted before it was measured, nats per token.
        measured: KL divergence on held-out text; None until the pass recalibrate has measured it, where the codes of a large
            model are made but once.
        top1: share of held-out positions whose most likely token is that of the float model; None likewise.
        positions: held-out positions that are measured on.
        streamed: bytes that `device` reads for each token.
        speed: predicted speed of decoding there, for that of its fastest uniform width.
        device: whose kernels that was foretold of.
        rounding: KL divergence that rounding of activations adds on the runtime, predicted; `predicted` and `measured` are
            without it.
    """

    limit: str
    bytes: int
    bits_per_weight: float
    predicted: float
    measured: float | None
    top1: float | None
    positions: int
    streamed: int = 0
    speed: float = 0.0
    device: str = ""
    rounding: float = 0.0


@dataclass(frozen=True)
class PrecisionPlan(Fact):
    """Storage of every planned constant, by constant name; what was predicted and measured when it was measured."""

    name: ClassVar[str] = "precision-plan"

    storage: Mapping[str, Storage] = field(default_factory=dict)
    tied: bool = False
    """True when the embedding rows are read from the stored logits matrix."""
    outcome: Outcome | None = None
    """What was measured of the plan; None when it was chosen by policy."""
    rules: Mapping[str, str] = field(default_factory=dict)
    """Which rule chose the storage of a constant, for people, by constant name."""
    exact: bool = False
    """True when floats were asked for, so that weights which came quantized are to be computed with exactly, too."""
    joined: Mapping[str, str] = field(default_factory=dict)
    """The matrix of which a planned constant has become rows, by constant name."""

    def to_data(self) -> dict[str, Any]:
        """JSON-able form."""
        data: dict[str, Any] = {
            "tied": self.tied,
            "storage": {key: {**asdict(item), "rule": self.rules.get(key, "")} for key, item in self.storage.items()},
        }
        if self.exact:
            data["exact"] = True
        if self.joined:
            data["joined"] = dict(self.joined)
        if self.outcome is not None:
            data["outcome"] = asdict(self.outcome)
        return data

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> PrecisionPlan:
        """Inverse of `to_data`."""
        outcome = Outcome(**data["outcome"]) if "outcome" in data else None
        storage, rules = {}, {}
        for name, item in data["storage"].items():
            said = dict(item)
            rules[name] = said.pop("rule", "")
            storage[name] = Storage(**said)
        return cls(storage, data["tied"], outcome, rules, data.get("exact", False), data.get("joined", {}))

    def check(self, graph: Graph) -> list[Diagnostic]:
        """Every planned constant is still there, has become a stored one, or rows of one."""
        return [
            Diagnostic("I191", f"the plan speaks of {name!r}, which the graph does not hold", graph.name)
            for name in self.storage
            if not graph.has(self.joined.get(name, name))
        ]

    def renamed(self, old: str, new: str) -> PrecisionPlan:
        """The plan with a weight called otherwise."""
        return self.renamed_all([(old, new)])

    def renamed_all(self, renames: Sequence[tuple[str, str]]) -> PrecisionPlan:
        """The plan with weights called otherwise."""
        matrices = followed(set(self.joined.values()), renames)
        now = followed(self.storage, renames)
        if not now and not matrices:
            return self
        storage = {now.get(key, key): item for key, item in self.storage.items()}
        rules = {now.get(key, key): rule for key, rule in self.rules.items()}
        joined = {now.get(key, key): matrices.get(matrix, matrix) for key, matrix in self.joined.items()}
        return replace(self, storage=storage, rules=rules, joined=joined)

    def mentions(self, name: str) -> bool:
        """True for a planned weight and for a matrix that some have become."""
        return name in self.storage or name in self.joined.values()
