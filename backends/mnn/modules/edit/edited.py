"""What became of a net."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Edited:
    """What became of a net.

    Attributes:
        stored: how many convolutions keep their weights in how many bits.
        integer: names of the operators that compute with integers.
        floats: names of convolutions that keep codes of 8 bits and compute with floats nevertheless, with the reason.
        lost: convolutions whose weights were to be codes and are floats in the net, with the reason.
    """

    stored: Counter[int] = field(default_factory=Counter)
    integer: list[str] = field(default_factory=list)
    floats: dict[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)


SUFFIXES = ("__matmul_converted", "__before_tr")
"""What the converter hangs on names."""


def plain(name: str) -> str:
    """A name without what the converter hung on it."""
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name
