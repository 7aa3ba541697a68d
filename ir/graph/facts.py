"""Facts: decisions recorded on a graph, such as a precision plan, that no analysis could recompute.

A fact is printed, parsed and checked with its graph and survives every rewrite. The registry maps a fact's name to its
class so that the text form can rebuild it; a name nobody registered is kept as raw data and comes out as it went in.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ir.base.diag import Diagnostic, LadingError

if TYPE_CHECKING:
    from ir.graph.graph import Graph


class Fact(ABC):
    """Base of recorded decisions; subclasses are best frozen dataclasses.

    Attributes:
        name: key in ``Graph.facts`` and in the text form, such as ``precision-plan``.
    """

    name: str

    @abstractmethod
    def to_data(self) -> dict[str, Any]:
        """The fact as JSON-able data: dicts with string keys, lists, strings, numbers, booleans, None."""

    @classmethod
    @abstractmethod
    def from_data(cls, data: Mapping[str, Any]) -> Fact:
        """Inverse of `to_data`; KeyError, TypeError or ValueError when the data cannot be such a fact."""

    def check(self, graph: Graph) -> list[Diagnostic]:
        """Every way in which the fact disagrees with the graph it is recorded on."""
        return []

    def renamed(self, old: str, new: str) -> Fact:
        """The fact with the value `old` called `new`; the fact itself when it does not speak of `old`.

        `Graph.rename` calls it for values of the graph that holds the fact.
        """
        return self


class RawFact(Fact):
    """A fact of a name that nobody registered, kept as data so that it survives a round trip."""

    def __init__(self, name: str, data: Mapping[str, Any]) -> None:
        self.name = name
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


FACTS: dict[str, type[Fact] | str] = {
    "dynamic-inputs": "ir.facts.precision:DynamicInputs",
    "precision-plan": "ir.facts.precision:PrecisionPlan",
    "sensitivity": "ir.facts.precision:Sensitivity",
    "calibration": "ir.quant.statistics.moments:Calibration",
}
"""Fact classes by name; a string ``module:Class`` is imported when it is first needed."""


def register(fact: type[Fact]) -> type[Fact]:
    """Make a class known under its `name`; a class decorator. ValueError when another class has the name."""
    known = FACTS.get(fact.name)
    spelled = f"{fact.__module__}:{fact.__qualname__}"
    if known is not None and known is not fact and known != spelled:
        raise ValueError(f"two fact classes are named {fact.name!r}: {known} and {spelled}")
    FACTS[fact.name] = fact
    return fact


def fact_class(name: str) -> type[Fact] | None:
    """The class registered under a name, imported if need be, or None."""
    found = FACTS.get(name)
    if not isinstance(found, str):
        return found
    module, _, attribute = found.partition(":")
    loaded: type[Fact] = getattr(import_module(module), attribute)
    FACTS[name] = loaded
    return loaded


def build(name: str, data: Any) -> Fact:
    """The fact of a name and its data: of the registered class, else a `RawFact`.

    Raises LadingError I107 when the data does not fit the class.
    """
    cls = fact_class(name)
    if not isinstance(data, Mapping):
        raise LadingError("I107", f"fact {name!r} must be an object, not {type(data).__name__}")
    if cls is None:
        return RawFact(name, data)
    try:
        return cls.from_data(data)
    except (KeyError, TypeError, ValueError) as error:
        raise LadingError("I107", f"the data of fact {name!r} does not fit {cls.__name__}: {error!r}") from error


def data_of(fact: Any) -> dict[str, Any]:
    """Plain JSON data of a fact or of a mapping recorded as one; TypeError for anything else."""
    data = fact.to_data() if isinstance(fact, Fact) else fact
    if not isinstance(data, Mapping):
        raise TypeError(f"a fact is a Fact or a mapping, not {type(fact).__name__}")
    # One pass through JSON makes tuples lists, so that recorded and reread facts compare equal.
    return json.loads(json.dumps(data))


__all__ = ["FACTS", "Fact", "RawFact", "build", "data_of", "fact_class", "register"]
