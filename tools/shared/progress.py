"""Progress on a terminal: the phase being worked on, and a bar while weights are written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from tools.compile.job import Listener


class _Drawn(Listener):
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def phase(self, what: str) -> None:
        if self._task is not None:
            self._progress.update(self._task, visible=False)
        self._task = self._progress.add_task(what, total=None)

    def weights(self, done: int, total: int) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total)

    def step(self, done: int, total: int, what: str) -> None:
        if self._task is not None:
            self._progress.update(self._task, description=what or None, completed=done, total=total)


def drawing(console: Console, bar: int = 0) -> Progress:
    """What draws tasks on a console and leaves nothing behind: spinner, text, a bar of that width or none, and time."""
    bars = [BarColumn(bar_width=bar)] if bar else []
    columns = SpinnerColumn(), TextColumn("{task.description}"), *bars, TimeElapsedColumn()
    return Progress(*columns, console=console, transient=True)


@contextmanager
def drawn_progress() -> Iterator[Listener]:
    """A listener that draws on standard error and leaves nothing behind."""
    with drawing(Console(stderr=True), bar=30) as progress:
        yield _Drawn(progress)
