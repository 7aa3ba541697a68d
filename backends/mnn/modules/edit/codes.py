"""What is recorded of tensors that stand for 8-bit integers, and the weights that stand for codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from ir.base.types import F16
from ir.graph.facts import followed
from ir.graph.graph import Fact
from ir.quant.weight import QuantizedWeight, quantized_of
from ir.tensor.base import Tensor


@dataclass(frozen=True)
class CodeRange:
    """The signed 8-bit integers that stand for the numbers of a tensor: ``(code - zero) * scale``.

    Attributes:
        low, high: the smallest and largest code that the tensor may hold.
    """

    scale: float
    zero: int
    low: int = -128
    high: int = 127

    def alike(self, other: CodeRange) -> bool:
        """The same code stands for the same number in both."""
        return (self.scale, self.zero) == (other.scale, other.zero)


@dataclass(frozen=True)
class ActivationCodes(Fact):
    """The codes of tensors that a pair of QuantizeLinear and DequantizeLinear rounded, by name of the value."""

    name: ClassVar[str] = "activation-codes"

    ranges: Mapping[str, CodeRange] = field(default_factory=dict)

    def to_data(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"ranges": {name: asdict(item) for name, item in self.ranges.items()}}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> ActivationCodes:
        """Inverse of `to_data`."""
        return cls({name: CodeRange(**item) for name, item in data["ranges"].items()})

    def renamed(self, old: str, new: str) -> ActivationCodes:
        """With a value called otherwise."""
        return self.renamed_all([(old, new)])

    def renamed_all(self, renames: Sequence[tuple[str, str]]) -> ActivationCodes:
        """With values called otherwise."""
        now = followed(self.ranges, renames)
        return replace(self, ranges={now.get(key, key): item for key, item in self.ranges.items()}) if now else self

    def mentions(self, name: str) -> bool:
        """True for a tensor whose codes are recorded."""
        return name in self.ranges


MOVING = ("transposed", "reshaped")
"""Recipes that leave numbers as they are."""


def codes_of(tensor: Tensor) -> QuantizedWeight | None:
    """The codes that a constant is the decoded numbers of, as rows of output channels; None for other constants."""
    found = _moved(tensor)
    weight = quantized_of(found)
    return weight if weight is not None and found.type.dtype.is_float and found.shape == weight.shape else None


def is_half(tensor: Tensor) -> bool:
    """True for numbers that were half floats."""
    found = _moved(tensor)
    name, args, _ = found.recipe()
    return found.type.dtype == F16 or (name == "cast" and args[0].type.dtype == F16)


def _moved(tensor: Tensor) -> Tensor:
    while tensor.recipe()[0] in MOVING:
        tensor = tensor.inputs[0]
    return tensor


__all__ = ["ActivationCodes", "CodeRange", "codes_of", "is_half"]
