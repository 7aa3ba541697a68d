"""Interrupts from the keyboard that wait for a short phase to end.

Native extension modules do not survive being interrupted while they are imported: some crash, some stay half made. So a
phase that imports them holds the first interrupt back until it is done; a second one ends it at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def held_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt for an interrupt during the block at its end; do nothing outside the main
    thread or where interrupts are ignored."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield
        return
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if seen:
        raise KeyboardInterrupt
