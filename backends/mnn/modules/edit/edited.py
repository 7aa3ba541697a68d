"""What became of a net."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ir.base.diag import Diagnostic
from ir.quant.storage import Storage


@dataclass(frozen=True)
class Place:
    """Where the numbers of a weight lie.

    Attributes:
        name: that of the constant, with the number of the group where a convolution was taken apart.
        file: 0 for the net, 1 for the weight file.
        offset, bytes: where header, codes and scales lie.
        shape: rows and columns.
        storage: how they are stored.
    """

    name: str
    file: int
    offset: int
    bytes: int
    shape: tuple[int, int]
    storage: Storage


@dataclass
class Edited:
    """What became of a net.

    Attributes:
        stored: how many convolutions keep their weights in how many bits.
        integer: names of the operators that compute with integers.
        floats: names of convolutions that keep codes of 8 bits and compute with floats nevertheless, with the reason.
        weights: name, shape and storage of what each operator stores.
        widths: bits that weights were rounded to, stored so or not.
        places: where the stored ones lie.
        lost: convolutions whose weights were to be codes and are floats in the net, with the reason.
    """

    weights: dict[str, tuple[str, tuple[int, int], Storage]] = field(default_factory=dict)
    widths: set[int] = field(default_factory=set)
    places: list[Place] = field(default_factory=list)
    stored: Counter[int] = field(default_factory=Counter)
    integer: list[str] = field(default_factory=list)
    floats: dict[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)


MOST_NAMED = 4
"""Operators that are told by name."""


def warnings_of(edited: Edited) -> list[Diagnostic]:
    """What the user should know of a net that was edited."""
    found = []
    for code, places, what in (
        ("Q487", edited.lost, "weights are stored as floats"),
        ("Q488", edited.floats, "convolutions compute with floats"),
    ):
        if places:
            named = [f"{name}: {reason}" for name, reason in list(places.items())[:MOST_NAMED]]
            more = [f"and {len(places) - MOST_NAMED} more"] if len(places) > MOST_NAMED else []
            found.append(Diagnostic(code, f"{len(places)} {what}", "\n".join([*named, *more]), severity="warning"))
    return found


SUFFIXES = ("__matmul_converted", "__before_tr")
"""What the converter hangs on names."""


def plain(name: str) -> str:
    """A name without what the converter hung on it."""
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name
