"""The fact that says where the statistics of each weight's inputs are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from ir.base.diag import Diagnostic
from ir.graph.facts import followed
from ir.graph.graph import Fact, Graph

StandIn = Literal["layer", "even"]
"""What stands in for the statistics of a weight that nothing reached."""
T = TypeVar("T")


@dataclass(frozen=True)
class Calibration(Fact):
    """Which statistics belong to which weight; the numbers themselves are in the `MomentStore`.

    Attributes:
        digest: digest of the calibration windows.
        tokens: positions seen.
        keys: key of the statistics by name of the weight; weights that read the same value share one.
        reached: positions that reached the weight, by name, for weights of experts, which see some positions only.
        instead: what the statistics are of, by name, for weights of experts that no position reached: ``layer`` for
            those of all that enters the layer, ``even`` for features that all count the same.
        behind: names of the weights whose statistics are of the model with the weights before them quantized.
    """

    name: ClassVar[str] = "calibration"

    digest: str
    tokens: int
    keys: Mapping[str, str] = field(default_factory=dict)
    reached: Mapping[str, int] = field(default_factory=dict)
    instead: Mapping[str, StandIn] = field(default_factory=dict)
    behind: tuple[str, ...] = ()

    def to_data(self) -> dict[str, Any]:
        """JSON-able form."""
        found: dict[str, Any] = {"digest": self.digest, "tokens": self.tokens, "keys": dict(self.keys)}
        if self.reached:
            found |= {"reached": dict(self.reached), "instead": dict(self.instead)}
        if self.behind:
            found["behind"] = list(self.behind)
        return found

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Calibration:
        """Inverse of `to_data`."""
        return cls(
            data["digest"],
            data["tokens"],
            dict(data["keys"]),
            dict(data.get("reached", {})),
            dict(data.get("instead", {})),
            tuple(data.get("behind", ())),
        )

    def check(self, graph: Graph) -> list[Diagnostic]:
        """Every weight with statistics is still there."""
        return [
            Diagnostic("I192", f"statistics speak of {name!r}, which the graph does not hold", graph.name)
            for name in self.keys
            if not graph.has(name)
        ]

    def renamed(self, old: str, new: str) -> Calibration:
        """The fact with a weight called otherwise."""
        return self.renamed_all([(old, new)])

    def renamed_all(self, renames: Sequence[tuple[str, str]]) -> Calibration:
        """The fact with weights called otherwise."""
        now = followed(self.keys, renames)
        if not now:
            return self

        def moved(table: Mapping[str, T]) -> dict[str, T]:
            return {now.get(key, key): item for key, item in table.items()}

        behind = tuple(now.get(name, name) for name in self.behind)
        return Calibration(self.digest, self.tokens, moved(self.keys), moved(self.reached), moved(self.instead), behind)

    def mentions(self, name: str) -> bool:
        """True for a weight with statistics."""
        return name in self.keys
