"""The fact that says within which range each activation lies, and how that was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, ClassVar

from ir.graph.facts import followed
from ir.graph.graph import Fact


@dataclass(frozen=True)
class ActivationRange:
    """What was observed of one value.

    Attributes:
        low, high: the range to quantize, chosen by the method.
        smallest, largest: the extremes that occurred.
        elements: elements of the value for one sample, on average.
    """

    low: float
    high: float
    smallest: float
    largest: float
    elements: int


@dataclass(frozen=True)
class ActivationRanges(Fact):
    """Ranges of activations over calibration data.

    Attributes:
        digest: digest of the samples.
        samples: how many there were.
        method: how a range follows from what occurred, such as ``minmax``.
        ranges: by name of the value.
    """

    name: ClassVar[str] = "activation-ranges"

    digest: str
    samples: int
    method: str
    ranges: Mapping[str, ActivationRange] = field(default_factory=dict)

    def to_data(self) -> dict[str, Any]:
        """JSON-able form."""
        ranges = {
            name: [item.low, item.high, item.smallest, item.largest, item.elements]
            for name, item in self.ranges.items()
        }
        return {"digest": self.digest, "samples": self.samples, "method": self.method, "ranges": ranges}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> ActivationRanges:
        """Inverse of `to_data`; ValueError for a range that is upside down or without end."""
        ranges = {}
        for name, (low, high, smallest, largest, elements) in data["ranges"].items():
            ranges[name] = ActivationRange(float(low), float(high), float(smallest), float(largest), elements)
        if any(not -inf < item.low <= item.high < inf for item in ranges.values()):
            raise ValueError("a range is upside down, or has no end")
        return cls(data["digest"], data["samples"], data["method"], ranges)

    def renamed(self, old: str, new: str) -> ActivationRanges:
        """The fact with a value called otherwise."""
        return self.renamed_all([(old, new)])

    def renamed_all(self, renames: Sequence[tuple[str, str]]) -> ActivationRanges:
        """The fact with values called otherwise."""
        now = followed(self.ranges, renames)
        if not now:
            return self
        return replace(self, ranges={now.get(key, key): item for key, item in self.ranges.items()})

    def mentions(self, name: str) -> bool:
        """True for a value whose range is known."""
        return name in self.ranges
