"""Two models evaluated side by side, spread over machines: windows of text at the same time, the model in stretches.

Each stretch is computed by jobs that have some of the windows, once the weights that it reads are quantized. They keep
what they find at the inputs of the next weights, a file for each window, and one job for each of those inputs adds the
files up, window by window in the order of the text, as one process does. A window that is finished is not done again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from ir.base.executor import JobExecutor, here, run_jobs
from ir.base.store import UNFINISHED, Store, using_store
from ir.evaluate.evaluator import Evaluator, Track
from ir.quant.weight import keep_all
from ir.tensor.base import Tensor
from passes.calibration.bookmark import Bookmark
from passes.calibration.by_data import EVALUATING, gone

INPUTS = range(0)
"""The stretch before the first segment, behind which statistics of what is fed are gathered."""


class Step(Protocol):
    """Statistics to gather at one place of the models."""

    @property
    def key(self) -> str:
        """Their name in the store."""
        ...


class Models(Protocol):
    """Both models, and what is gathered of them; the same on all machines."""

    @property
    def evaluator(self) -> Evaluator:
        """The evaluation of both."""
        ...

    @property
    def windows(self) -> Sequence[np.ndarray]:
        """Token ids, on the worker's side."""
        ...

    @property
    def at_inputs(self) -> Sequence[Step]:
        """What is gathered at inputs of the graph."""
        ...

    @property
    def places(self) -> Sequence[Sequence[Step]]:
        """What is gathered behind each segment."""
        ...

    @property
    def missing(self) -> set[str]:
        """Keys of what is not there yet."""
        ...

    def stretches(self) -> Sequence[range]:
        """Runs of segments, none of which reads weights that are quantized by what is gathered in the same run."""
        ...

    def tracks(self, windows: Sequence[np.ndarray]) -> tuple[Track, Track]:
        """Both models before the first segment."""
        ...

    def rows(self) -> Mapping[str, Tensor]:
        """Quantized tables that are read to feed windows."""
        ...

    def stored_in(self, place: int) -> Iterable[Tensor]:
        """Quantized weights that a segment reads."""
        ...

    def errors(self, step: Any, tracks: tuple[Track, Track]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What is gathered of each window."""
        ...

    def save(self, step: Any, parts: Iterable[tuple[np.ndarray, np.ndarray]], executor: Executor) -> None:
        """Add up what was gathered of all windows, and keep it."""
        ...


@dataclass(frozen=True)
class Setting:
    """What all jobs share; plain data.

    Attributes:
        store: where models, live values and statistics are.
        run: part of the names of all that is of use in this run only.
        open: makes the models of the data that was kept for it; a function of a module.
    """

    store: Store
    run: str
    open: Callable[[Mapping[str, Any], Store], Models]

    @property
    def work(self) -> str:
        """Entry with the data that the models are made of."""
        return f"{UNFINISHED}/{self.run}.work"

    def bookmark(self, window: int) -> Bookmark:
        """Where a window has come to."""
        return Bookmark(self.store, f"{self.run}.{window}")

    def part(self, key: str, window: int) -> str:
        """Entry with what a window adds to statistics."""
        return f"{UNFINISHED}/{self.run}.{key}.{window}"


@lru_cache(maxsize=1)
def _opened(setting: Setting) -> Models:
    kept = setting.store.find(setting.work)
    if kept is None:
        raise gone(setting.work)
    return setting.open(json.loads(kept.read()), setting.store)


# ---- the worker's side ----

State = tuple[int, list[dict[str, np.ndarray]]]
"""The segment that a window has come to, and its live values in both models."""


@dataclass(frozen=True)
class WindowsJob:
    """Compute a stretch of both models for some windows.

    Attributes:
        setting: see there.
        stretch: the segments.
        windows: their numbers.
        wanted: keys of the statistics that are missing behind them.
    """

    setting: Setting
    stretch: range
    windows: tuple[int, ...]
    wanted: frozenset[str]

    alone = True

    def run(self) -> bool:
        """False when live values cannot be kept."""
        with EVALUATING, using_store(self.setting.store):
            models = _opened(self.setting)
            if self.stretch == INPUTS:
                tracks = models.tracks([models.windows[number] for number in self.windows])
                self._keep(models, models.at_inputs, tracks, self.windows)
                return True
            states = {number: self.setting.bookmark(number).load() for number in self.windows}
            todo = [n for n in self.windows if (found := states[n]) is None or found[0] < self.stretch.stop]
            return not todo or self._advance(models, todo, [states[number] for number in todo])

    def _advance(self, models: Models, todo: Sequence[int], kept: Sequence[State | None]) -> bool:
        first = self.stretch.start
        tracks = models.tracks([models.windows[number] for number in todo])
        for turn, track in enumerate(tracks if first else ()):
            values = [item[1][turn] for item in kept if item is not None and item[0] == first]
            if not models.evaluator.restore(track, first, values):
                raise gone(self.setting.bookmark(todo[0]).name)
        for place in self.stretch:
            models.evaluator.advance(place, tracks)
            self._keep(models, models.places[place], tracks, todo)
        live = [models.evaluator.live(track) for track in tracks]
        if live[0] is None or live[1] is None:
            return False
        for number, one, other in zip(todo, live[0], live[1], strict=True):
            self.setting.bookmark(number).save(self.stretch.stop, [one, other])
        return True

    def _keep(self, models: Models, steps: Sequence[Step], tracks: tuple[Track, Track], numbers: Sequence[int]) -> None:
        store = self.setting.store
        for step in steps:
            if step.key not in self.wanted:
                continue
            for number, (error, x) in zip(numbers, models.errors(step, tracks), strict=True):
                name = self.setting.part(step.key, number)
                with store.put(name, "Q431", "calibration positions") as scratch, scratch.open("wb") as file:
                    np.savez(file, error=error, x=x)


@dataclass(frozen=True)
class SumsJob:
    """Add up what the windows gave to statistics, and keep them.

    Attributes:
        setting: see there.
        stretch: the segments that they are behind.
        key: their name.
    """

    setting: Setting
    stretch: range
    key: str

    alone = True

    def run(self) -> bool:
        """True."""
        with using_store(self.setting.store):
            models = _opened(self.setting)
            step = next(step for step in _behind(models, self.stretch) if step.key == self.key)
            models.save(step, self._parts(len(models.windows)), here())
            return True

    def _parts(self, windows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for number in range(windows):
            name = self.setting.part(self.key, number)
            kept = self.setting.store.find(name)
            if kept is None:
                raise gone(name)
            with np.load(kept.path, allow_pickle=False) as held:
                yield held["error"], held["x"]


def _behind(models: Models, stretch: range) -> list[Step]:
    """What is gathered behind a stretch."""
    return list(models.at_inputs) if stretch == INPUTS else [step for place in stretch for step in models.places[place]]


def _run(job: WindowsJob | SumsJob) -> bool:
    return job.run()


# ---- the side that sends ----


class Spreading:
    """One evaluation of both models spread over an executor.

    Args:
        models, setting: what to evaluate.
        windows: how many there are.
        executor: runs the jobs.
        progress: called with (segments done, all of them).
    """

    def __init__(
        self,
        models: Models,
        setting: Setting,
        windows: int,
        executor: JobExecutor,
        progress: Callable[[int, int], None],
    ) -> None:
        self._models, self._setting, self._windows = models, setting, windows
        self._executor, self._progress = executor, progress

    def run(self, work: str) -> bool:
        """Evaluate from where an earlier run was stopped; False when live values cannot be kept, and nothing is done.

        `work` is the JSON that the models are made of elsewhere.
        """
        models, steps = self._models, len(self._models.places)
        with self._setting.store.put(self._setting.work, "Q431", "the work of a calibration") as scratch:
            scratch.write_text(work, encoding="utf-8")
        keep_all(models.rows().values(), self._executor)
        start = self._start()
        for stretch in (INPUTS, *models.stretches()):
            if not models.missing:
                break
            if start >= stretch.stop and models.missing.isdisjoint(step.key for step in _behind(models, stretch)):
                continue
            self._progress(stretch.start, steps)
            keep_all((tensor for place in stretch for tensor in models.stored_in(place)), self._executor)
            if not self._compute(stretch):
                return False
        self._progress(steps, steps)
        for number in range(self._windows):
            self._setting.bookmark(number).remove()
        self._setting.store.remove(self._setting.work)
        return True

    def _compute(self, stretch: range) -> bool:
        """Windows, and then sums, of which some may be there."""
        behind = [step.key for step in _behind(self._models, stretch)]
        wanted = [key for key in dict.fromkeys(behind) if key in self._models.missing]
        store = self._setting.store
        for number in range(self._windows):
            store.hold(self._setting.bookmark(number).name)
            for key in wanted:
                store.hold(self._setting.part(key, number))
        if not all(run_jobs(self._executor, _run, self._windows_jobs(stretch, frozenset(wanted)))):
            return False
        for _ in run_jobs(self._executor, _run, [SumsJob(self._setting, stretch, key) for key in wanted]):
            pass
        for key in wanted:
            for number in range(self._windows):
                store.remove(self._setting.part(key, number))
        self._models.missing.difference_update(wanted)
        return True

    def _windows_jobs(self, stretch: range, wanted: frozenset[str]) -> Iterator[WindowsJob]:
        """One job for each that can run at once."""
        edges = np.linspace(0, self._windows, min(self._windows, self._executor.width) + 1).astype(int).tolist()
        for first, last in pairwise(edges):
            yield WindowsJob(self._setting, stretch, tuple(range(first, last)), wanted)

    def _start(self) -> int:
        """The segment that every window has come to, where what was gathered on the way is there; else none has."""
        found = [self._setting.bookmark(number).place() or 0 for number in range(self._windows)]
        for stretch in self._models.stretches():
            keys = [step.key for step in _behind(self._models, stretch) if step.key in self._models.missing]
            parts = (self._setting.part(key, n) for n, end in enumerate(found) if end >= stretch.stop for key in keys)
            if any(self._setting.store.find(name) is None for name in parts):
                for number in range(self._windows):
                    self._setting.bookmark(number).remove()
                return 0
        return min(found, default=0)


__all__ = ["INPUTS", "Models", "Setting", "Spreading"]
