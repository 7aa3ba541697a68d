"""Facts: decisions recorded on a graph, such as a precision plan, that no analysis could recompute.

A fact is printed, parsed and checked with its graph and survives every rewrite. The registry maps a fact's name to its
class so that the text form can rebuild it; a name nobody registered is kept as raw data and comes out as it went in.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from typing import Any

from ir.base.diag import LadingError
from ir.base.plugins import rows_of
from ir.base.tables import Table
from ir.graph.fact_types import misfit
from ir.graph.graph import Fact


def followed(names: Container[str], renames: Sequence[tuple[str, str]]) -> dict[str, str]:
    """What those of `names` that renames (old, new) touch are called in the end."""
    now: dict[str, str] = {}
    gone: set[str] = set()
    for old, new in renames:
        if old in now:
            now[new] = now.pop(old)
        elif old in names and old not in gone:
            gone.add(old)
            now[new] = old
    return {first: last for last, first in now.items()}


class RawFact(Fact):
    """A fact of a name that nobody registered, kept as data so that it survives a round trip."""

    def __init__(self, name: str, data: Mapping[str, Any]) -> None:
        self.name = name  # type: ignore[misc]
        self.data = dict(data)

    def to_data(self) -> dict[str, Any]:
        """The data as it was read."""
        return self.data

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> RawFact:
        """Not possible: raw data does not say its name; use the constructor."""
        raise TypeError("a raw fact is made with RawFact(name, data)")

    def __repr__(self) -> str:
        return f"RawFact({self.name!r}, {self.data!r})"


FACTS: Table[type[Fact]] = Table(
    "fact",
    {
        "dynamic-inputs": "ir.facts.inputs:DynamicInputs",
        "precision-plan": "ir.facts.precision:PrecisionPlan",
        "sensitivity": "ir.facts.sensitivity:Sensitivity",
        "calibration": "ir.facts.calibration:Calibration",
        "tuning": "ir.facts.tuning:Tuning",
        "activation-ranges": "ir.facts.activation_ranges:ActivationRanges",
        "int8-plan": "ir.facts.int8_plan:Int8Plan",
        "model-card": "ir.facts.model_card:ModelCard",
        "raised": "ir.facts.raised:Raised",
        "free-tensors": "ir.facts.free_tensors:FreeTensors",
    },
    rows_of("facts"),
)
"""Classes of facts by name. Open to plugins."""


def build(name: str, data: Any) -> Fact:
    """The fact of a name and its data: of the registered class, else a `RawFact`.

    Raises LadingError I107 when the data does not fit the class.
    """
    cls = FACTS.get(name)
    if not isinstance(data, Mapping):
        raise LadingError("I107", f"fact {name!r} must be an object, not {type(data).__name__}")
    if cls is None:
        return RawFact(name, data)
    try:
        found = cls.from_data(data)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise LadingError("I107", f"the data of fact {name!r} does not fit {cls.__name__}: {error!r}") from error
    wrong = misfit(found)
    if wrong:
        raise LadingError("I107", f"the data of fact {name!r} does not fit {cls.__name__}: {wrong}")
    return found


def data_of(fact: Any) -> dict[str, Any]:
    """Plain JSON data of a fact or of a mapping recorded as one; TypeError for anything else."""
    data = fact.to_data() if isinstance(fact, Fact) else fact
    if not isinstance(data, Mapping):
        raise TypeError(f"a fact is a Fact or a mapping, not {type(fact).__name__}")
    # One pass through JSON makes tuples lists, so that recorded and reread facts compare equal.
    return json.loads(json.dumps(data))


__all__ = ["FACTS", "RawFact", "build", "data_of"]
