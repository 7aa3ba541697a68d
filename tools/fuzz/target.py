"""What can be searched: a `Target` makes an input from a seed, uses it, and says what may come of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 30.0
"""How long one case may take unless its target says otherwise."""


class Broken(Exception):
    """A law that should hold for every input does not hold for this one."""


@dataclass(frozen=True)
class Case:
    """One try.

    Attributes:
        seed: everything random about the case follows from it and the target's name.
        rng: where the random choices come from.
        folder: an empty folder for the files of the case.
        samples: folder with sound files to damage, shared by all cases; see `tools.fuzz.inputs.samples`.
    """

    seed: int
    rng: random.Random
    folder: Path
    samples: Path


@dataclass(frozen=True)
class Target:
    """One thing to search.

    Attributes:
        name: what the command calls it.
        about: one line for ``--list``.
        make: the input of a case: a graph, bytes, text, the path of a folder, or anything whose ``repr`` tells
            what it is.
        check: uses the input; raises `Broken` where a law does not hold.
        refuses: a LadingError is a right answer, because the input is damaged. Otherwise it is a finding.
        seconds: a case that takes longer hangs.
    """

    name: str
    about: str
    make: Callable[[Case], Any]
    check: Callable[[Any, Case], None]
    refuses: bool = True
    seconds: float = SECONDS


def require(condition: bool, law: str) -> None:
    """Raise `Broken` unless a condition holds."""
    if not condition:
        raise Broken(law)
