"""The fact that says which nodes compute in 8-bit integers, and why the others do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from ir.graph.facts import followed
from ir.graph.graph import Fact


@dataclass(frozen=True)
class Int8Plan(Fact):
    """Which nodes compute in 8-bit integers, and how numbers are stored there; a node is named by its first output.

    Attributes:
        int8: the nodes that do.
        activations: element type of activations.
        symmetric: the zero of activations is the middle of their range.
        weight_bits: width of weights, 8 or 7.
        per_channel: each output channel of a weight has a scale of its own.
        widest: times that a range may be widened so that a concatenation need not round.
        kept: why a node that could does not, by its name.
        error: relative error of the outputs that was measured with this plan; None when nothing was.
        limit: largest error that was asked for; None for no limit.
        samples: samples that the error was measured on.
        alone: relative error of the outputs when one layer alone is quantized, by its name, as far as it was measured.
    """

    name: ClassVar[str] = "int8-plan"

    int8: tuple[str, ...]
    activations: Literal["int8", "uint8"] = "uint8"
    symmetric: bool = False
    weight_bits: int = 8
    per_channel: bool = True
    widest: float = 4.0
    kept: Mapping[str, str] = field(default_factory=dict)
    error: float | None = None
    limit: float | None = None
    samples: int = 0
    alone: Mapping[str, float] = field(default_factory=dict)

    def to_data(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "int8": list(self.int8),
            "activations": self.activations,
            "symmetric": self.symmetric,
            "weight_bits": self.weight_bits,
            "per_channel": self.per_channel,
            "widest": self.widest,
            "kept": dict(self.kept),
            "error": self.error,
            "limit": self.limit,
            "samples": self.samples,
            "alone": dict(self.alone),
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Int8Plan:
        """Inverse of `to_data`."""
        said = {**data, "int8": tuple(data["int8"]), "kept": dict(data["kept"]), "alone": dict(data["alone"])}
        return cls(**said)

    def renamed(self, old: str, new: str) -> Int8Plan:
        """The fact with a value called otherwise."""
        return self.renamed_all([(old, new)])

    def renamed_all(self, renames: Sequence[tuple[str, str]]) -> Int8Plan:
        """The fact with values called otherwise."""
        now = followed({*self.int8, *self.kept, *self.alone}, renames)
        if not now:
            return self
        return replace(
            self,
            int8=tuple(now.get(key, key) for key in self.int8),
            kept={now.get(key, key): item for key, item in self.kept.items()},
            alone={now.get(key, key): item for key, item in self.alone.items()},
        )

    def mentions(self, name: str) -> bool:
        """True for a node that the plan speaks of."""
        return name in self.int8 or name in self.kept
