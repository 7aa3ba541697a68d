"""Signals that ask this process to end: from the keyboard, from whoever started it, from a terminal that is closed.

A command turns all of them into one exception (`raising_signals`), so that everything that tidies up after an interrupt
does so after the others as well. A block that must not be left in its middle holds them back (`held_interrupts`): what
puts files in their places, and imports of native modules, some of which crash when they are interrupted.

Libraries do not install handlers: in another program only the keyboard raises, as that program chose.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""The signals that ask for an end and can be answered."""


class Stopped(KeyboardInterrupt):
    """A signal other than that of the keyboard asked for an end.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def _exception_of(number: int) -> KeyboardInterrupt:
    """What a signal is as an exception."""
    return KeyboardInterrupt() if number == signal.SIGINT else Stopped(number)


@contextmanager
def raising_signals() -> Iterator[None]:
    """While the block runs, signals that ask for an end raise KeyboardInterrupt or `Stopped` in the main thread.

    What else the block raises after such a signal is that signal too: native modules that are interrupted while they are
    imported make an ImportError of it. Signals that whoever started us had ignored, as nohup does, stay ignored, and
    handlers of other programs stay.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []

    def answer(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        raise _exception_of(number)

    usual = (signal.SIG_DFL, signal.default_int_handler)
    replaced = {number: before for number in ENDING if (before := signal.getsignal(number)) in usual}
    for number in replaced:
        signal.signal(number, answer)
    try:
        yield
    except Exception as error:
        if seen:
            raise _exception_of(seen[0]) from error
        raise
    finally:
        for number, before in replaced.items():
            signal.signal(number, before)


@contextmanager
def held_interrupts(firmly: bool = False) -> Iterator[None]:
    """Raise for a signal during the block at its end; do nothing outside the main thread or where signals are ignored.

    Args:
        firmly: a second signal waits as well; for blocks of milliseconds. Otherwise it ends the block at once.
    """
    answered: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        found = {number: signal.getsignal(number) for number in ENDING}
        answered = {number: handler for number, handler in found.items() if callable(handler)}
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if seen and not firmly:
            answered[number](number, frame)
        seen.append(number)

    for number in answered:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, before in answered.items():
            signal.signal(number, before)
    if seen:
        answered[seen[0]](seen[0], None)


__all__ = ["ENDING", "Stopped", "held_interrupts", "raising_signals"]
