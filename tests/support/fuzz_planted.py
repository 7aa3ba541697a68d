"""Targets with planted faults, loaded by the tests of the fuzz command."""

from __future__ import annotations

import os
import signal
import time

from ir.base.diag import LadingError
from tools.fuzz.target import Case, Target, require


def number(case: Case) -> int:
    """A number below 100."""
    return case.rng.randrange(100)


def raises(given: int, case: Case) -> None:
    """Fails for one number in four."""
    if given % 4 == 0:
        raise KeyError(given)


def breaks(given: int, case: Case) -> None:
    """A law that does not hold for large numbers."""
    require(given < 80, "numbers are small")


def refuses(given: int, case: Case) -> None:
    """Refuses everything."""
    raise LadingError("U900", f"{given} is refused")


def leaks(given: int, case: Case) -> None:
    """Asks for more memory than there is."""
    bytearray(1 << 45)


def dies(given: int, case: Case) -> None:
    """Kills its process at the third case."""
    if case.seed % 3 == 2:
        os.kill(os.getpid(), signal.SIGSEGV)


def hangs(given: int, case: Case) -> None:
    """Does not return from the second case."""
    if case.seed % 2 == 1:
        time.sleep(600)


def leaves(given: int, case: Case) -> None:
    """Finds its folder empty, and prints much."""
    assert not list(case.folder.iterdir())
    (case.folder / "left").write_text("x")
    print("x" * 100_000)


TARGETS = (
    Target("raises", "an exception", number, raises),
    Target("breaks", "a broken law", number, breaks, refuses=False),
    Target("refuses", "coded errors", number, refuses),
    Target("strict", "a law whose inputs are refused", number, refuses, refuses=False),
    Target("leaks", "too much memory", number, leaks),
    Target("dies", "a crash", number, dies),
    Target("hangs", "a hang", number, hangs, seconds=1.0),
    Target("leaves", "files left behind", number, leaves),
)
