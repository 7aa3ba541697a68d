"""Tensors that a model reads and nothing in it makes: what they were taken to be, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from ir.base.diag import Diagnostic
from ir.base.types import DTYPES
from ir.graph.graph import Fact, Graph


@dataclass(frozen=True)
class FreeTensor:
    """One tensor that is read and never made.

    Attributes:
        name: its name.
        kind: an ``input`` that somebody has to feed, or a ``constant`` that the rest of the graph determines.
        readers: the nodes that read it, in words.
        reason: what forces its type, shape and values, one sentence for people.
        type: its type in the words of the text form; empty where nothing forces it.
        low, high: legal values of its elements (inclusive); None means unbounded.
        default: a value that is right when nothing better is known.
        value: the elements of a ``constant``, row by row.
        near: a tensor of a similar name that nothing reads, which may be meant; empty when there is none.
    """

    name: str
    kind: Literal["input", "constant"]
    readers: tuple[str, ...]
    reason: str = ""
    type: str = ""
    low: int | None = None
    high: int | None = None
    default: float | int | None = None
    value: tuple[float | int, ...] | None = None
    near: str = ""

    @property
    def dtype(self) -> str:
        """Name of its element type."""
        return self.type.partition("[")[0]

    @property
    def sizes(self) -> tuple[str, ...]:
        """Its axes, as numbers and names in words."""
        inside = self.type.partition("[")[2].removesuffix("]")
        return tuple(inside.split(", ")) if inside else ()

    @property
    def array(self) -> np.ndarray:
        """A constant as an array; ValueError for an input."""
        if self.value is None:
            raise ValueError(f"{self.name!r} is no constant")
        return np.array(self.value, DTYPES[self.dtype].numpy).reshape([int(size) for size in self.sizes])


@dataclass(frozen=True)
class FreeTensors(Fact):
    """Every tensor of a model that was read and never made."""

    name: ClassVar[str] = "free-tensors"

    tensors: tuple[FreeTensor, ...]

    def to_data(self) -> dict[str, Any]:
        """JSON-able form."""
        made = [asdict(item) for item in self.tensors]
        for item in made:
            item["readers"] = list(item["readers"])
            item["value"] = None if item["value"] is None else list(item["value"])
        return {"tensors": made}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> FreeTensors:
        """Inverse of `to_data`."""
        return cls(
            tuple(
                FreeTensor(
                    **{
                        **item,
                        "readers": tuple(item["readers"]),
                        "value": None if item["value"] is None else tuple(item["value"]),
                    }
                )
                for item in data["tensors"]
            )
        )

    def renamed(self, old: str, new: str) -> FreeTensors:
        """The fact with a tensor called otherwise."""
        if self.find(old) is None:
            return self
        return FreeTensors(tuple(replace(item, name=new) if item.name == old else item for item in self.tensors))

    def find(self, name: str) -> FreeTensor | None:
        """The tensor of a name, or None."""
        return next((item for item in self.tensors if item.name == name), None)


def free_notes(graph: Graph) -> Iterator[Diagnostic]:
    """A note for each tensor that nothing makes: what it was taken to be, and why."""
    fact = graph.fact(FreeTensors)
    for item in fact.tensors if fact is not None else ():
        readers = ", ".join(item.readers[:3]) + (f" and {len(item.readers) - 3} more" if len(item.readers) > 3 else "")
        what = f"the constant {list(item.value)}" if item.value is not None else f"an input {item.type}"
        yield Diagnostic(
            "F631",
            f"nothing makes {item.name!r}; it is taken as {what}",
            f"{graph.name}, read by {readers}: {item.reason}",
            f"if {item.near!r} is meant, which nothing reads, name that" if item.near else "",
            severity="note",
        )
