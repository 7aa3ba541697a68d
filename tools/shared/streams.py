"""Standard input, output and error as they should be, whatever the caller left of them."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def ready_streams() -> None:
    """See to it that no file that is opened takes the place of a standard stream that the caller has closed.

    A file with the number of standard error would get what native libraries print there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is taken.
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def give_up_output() -> None:
    """Throw away what standard output has not taken, so that the interpreter does not fail on it when it ends."""
    with suppress(OSError, AttributeError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)


__all__ = ["give_up_output", "ready_streams"]
