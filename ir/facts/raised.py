"""What the parts of a decoder that somebody else exported were found to compute, and by what evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from ir.graph.graph import Fact

PortKind = Literal[
    "token-ids", "embedding-rows", "attention-mask", "positions", "history", "row-choice", "length", "unused",
    "logits", "new-history", "other",
]  # fmt: skip
RegionKind = Literal["attention", "norm", "activation", "linear", "table", "positions", "mask"]


@dataclass(frozen=True)
class Port:
    """The role of an input or output of the graph as it was read.

    Attributes:
        name: its name in the file.
        kind: what it holds.
        evidence: how that is known, one sentence for people.
        dtype: element type.
        shape: its shape, dimensions by size or name.
        role: what it was fed when everything fitted, a key of `passes.raising.feeds.ROLES`; empty for other kinds.
    """

    name: str
    kind: PortKind
    evidence: str
    dtype: str
    shape: tuple[int | str, ...] = ()
    role: str = ""


@dataclass(frozen=True)
class Region:
    """A part of the graph that was replaced by standard operators.

    Attributes:
        kind: what it computes.
        where: node of the file that it ends in.
        nodes: how many nodes it had.
        finding: what it computes in words: ``4 heads of 64 on 2, half rope of 64, scale 0.125``.
        parameters: the same for programs.
        difference: largest difference between the region and its replacement, relative to the largest value.
        probes: what it was evaluated on: ``13 tokens``, ``5 tokens after 7``.
    """

    kind: RegionKind
    where: str
    nodes: int
    finding: str
    parameters: Mapping[str, Any]
    difference: float
    probes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Raised(Fact):
    """The evidence by which a graph was raised.

    Attributes:
        inputs: what the graph took.
        outputs: what it gave.
        regions: what was replaced, in program order.
    """

    name: ClassVar[str] = "raised"

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    regions: tuple[Region, ...]

    def to_data(self) -> dict[str, Any]:
        """JSON-able form."""
        data = asdict(self)
        for port in (*data["inputs"], *data["outputs"]):
            port["shape"] = list(port["shape"])
        for region in data["regions"]:
            region["probes"] = list(region["probes"])
            region["parameters"] = dict(region["parameters"])
        return {key: list(value) for key, value in data.items()}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Raised:
        """Inverse of `to_data`."""
        inputs, outputs = (
            tuple(Port(**{**item, "shape": tuple(item["shape"])}) for item in data[side])
            for side in ("inputs", "outputs")
        )
        regions = tuple(Region(**{**item, "probes": tuple(item["probes"])}) for item in data["regions"])
        return cls(inputs, outputs, regions)

    def port(self, kind: PortKind) -> Port | None:
        """The first input of a kind, or None."""
        return next((item for item in self.inputs if item.kind == kind), None)
