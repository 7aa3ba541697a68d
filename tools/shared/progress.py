"""Progress for people: drawn in place on a terminal, and elsewhere a plain line now and then.

Both say the phase being worked on, how far it is where that is known, how long it has taken and about how long it still
takes. Short runs print nothing that stays.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from tools.compile.job import Listener

if TYPE_CHECKING:
    from rich.console import Console

PAUSES = ((60.0, 10.0), (600.0, 30.0), (float("inf"), 60.0))
"""Up to how many seconds of a run a plain line comes after how many."""
SETTLED = 2.0
"""Seconds of a phase after which its speed says something about the time that is left."""
MOST_STEPS = 99_999
"""More steps than this are numbers of weights, and told in percent only."""


class State(Listener):
    """What is being done, and how far it is."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.part = self.what = ""
        self.done = self.total = 0
        self._first, self._since = 0, clock()

    def begin(self, number: int, total: int, what: str) -> None:
        """See `Listener.begin`."""
        self.part = f"{number + 1} of {total}: {what}" if total > 1 else what
        self.phase("")

    def phase(self, what: str) -> None:
        """See `Listener.phase`."""
        self.what = what
        self._count(0, 0)

    def weights(self, done: int, total: int) -> None:
        """See `Listener.weights`."""
        self._count(done, total)

    def step(self, done: int, total: int, what: str) -> None:
        """See `Listener.step`."""
        self.what = what or self.what
        self._count(done, total)

    def _count(self, done: int, total: int) -> None:
        """Note how far it is; what is counted otherwise, or from the beginning, has a speed of its own."""
        if total != self.total or done < self.done:
            self._first, self._since = done, self._clock()
        self.done, self.total = done, total

    @property
    def words(self) -> str:
        """Part and phase."""
        return ", ".join(filter(None, (self.part, self.what)))

    def figures(self) -> str:
        """How far the phase is and about how long it still takes, as far as that is known."""
        if self.total <= 1:
            return ""
        share = min(1.0, self.done / self.total)
        counted = f"{self.done} of {self.total}, " if self.total <= MOST_STEPS else ""
        taken, counts = self._clock() - self._since, self.done - self._first
        left = taken * (self.total - self.done) / counts if counts and taken > SETTLED else None
        return f"{counted}{100 * share:.0f}%" + (f", about {span(left)} left" if left else "")


def span(seconds: float) -> str:
    """A time for people, such as ``40 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@contextmanager
def plain_progress(say: Callable[[str], Any], clock: Callable[[], float] = time.monotonic) -> Iterator[State]:
    """A listener whose state is told from time to time, the first time after ten seconds."""
    state, ended, started = State(clock), threading.Event(), clock()

    def tell() -> None:
        while not ended.wait(next(pause for until, pause in PAUSES if clock() - started < until)):
            line = ", ".join(filter(None, (state.words, state.figures())))
            with suppress(OSError, ValueError):
                say(f"[{span(clock() - started)}] {line}")

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        ended.set()
        thread.join()


@contextmanager
def drawn_progress(console: Console) -> Iterator[State]:
    """A listener that draws one line on a terminal and leaves nothing behind."""
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TimeElapsedColumn
    from rich.table import Column
    from rich.text import Text

    state = State()

    class Words(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(state.words)

    class Bar(BarColumn):
        def render(self, task: Any) -> Any:
            return super().render(task) if state.total > 1 else Text("")

    class Figures(ProgressColumn):
        def render(self, task: Any) -> Text:
            task.completed, task.total = state.done, state.total if state.total > 1 else None
            return Text(state.figures(), style="dim")

    words = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    columns = (SpinnerColumn(), Words(words), Bar(bar_width=10), Figures(Column(no_wrap=True)), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, expand=True) as progress:
        progress.add_task("", total=None)
        yield state
