"""Two models evaluated side by side, spread over machines: windows of text at the same time, segments in turn.

Each segment is computed by jobs that have some of the windows, once the weights that it reads are quantized. They keep
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

INPUTS = -1
"""The place of statistics of what is fed."""


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


@dataclass(frozen=True)
class WindowsJob:
    """Compute one segment of both models for some windows.

    Attributes:
        setting: see there.
        place: the segment.
        windows: their numbers.
        wanted: keys of the statistics that are missing behind it, those at inputs among them for the first.
    """

    setting: Setting
    place: int
    windows: tuple[int, ...]
    wanted: frozenset[str]

    alone = True

    def run(self) -> bool:
        """False when live values cannot be kept."""
        with EVALUATING, using_store(self.setting.store):
            models = _opened(self.setting)
            states = {number: self.setting.bookmark(number).load() for number in self.windows}
            todo = [n for n in self.windows if (found := states[n]) is None or found[0] <= self.place]
            if not todo:
                return True
            tracks = models.tracks([models.windows[number] for number in todo])
            for turn, track in enumerate(tracks if self.place else ()):
                kept = [states[number] for number in todo]
                values = [item[1][turn] for item in kept if item is not None and item[0] == self.place]
                if not models.evaluator.restore(track, self.place, values):
                    raise gone(self.setting.bookmark(todo[0]).name)
            if not self.place:
                self._keep(models, models.at_inputs, tracks, todo)
            models.evaluator.advance(self.place, tracks)
            self._keep(models, models.places[self.place], tracks, todo)
            live = [models.evaluator.live(track) for track in tracks]
            if live[0] is None or live[1] is None:
                return False
            for number, first, second in zip(todo, live[0], live[1], strict=True):
                self.setting.bookmark(number).save(self.place + 1, [first, second])
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
        place: the segment that they are behind.
        key: their name.
    """

    setting: Setting
    place: int
    key: str

    alone = True

    def run(self) -> bool:
        """True."""
        with using_store(self.setting.store):
            models = _opened(self.setting)
            steps = models.at_inputs if self.place == INPUTS else models.places[self.place]
            step = next(step for step in steps if step.key == self.key)
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
        place = self._start()
        keep_all(models.rows().values(), self._executor)
        while place < steps and models.missing:
            self._progress(place, steps)
            keep_all(models.stored_in(place), self._executor)
            if not self._segment(place):
                return False
            place += 1
        self._progress(steps, steps)
        for number in range(self._windows):
            self._setting.bookmark(number).remove()
        self._setting.store.remove(self._setting.work)
        return True

    def _segment(self, place: int) -> bool:
        """Windows, and then sums, of which some may be there."""
        found = [(place, step) for step in self._models.places[place]]
        if not place:
            found += [(INPUTS, step) for step in self._models.at_inputs]
        wanted = {step.key: at for at, step in found if step.key in self._models.missing}
        store = self._setting.store
        for number in range(self._windows):
            store.hold(self._setting.bookmark(number).name)
            for key in wanted:
                store.hold(self._setting.part(key, number))
        if not all(run_jobs(self._executor, _run, self._windows_jobs(place, frozenset(wanted)))):
            return False
        for _ in run_jobs(self._executor, _run, [SumsJob(self._setting, at, key) for key, at in wanted.items()]):
            pass
        for key in wanted:
            for number in range(self._windows):
                store.remove(self._setting.part(key, number))
        self._models.missing.difference_update(wanted)
        return True

    def _windows_jobs(self, place: int, wanted: frozenset[str]) -> Iterator[WindowsJob]:
        """One job for each that can run at once."""
        edges = np.linspace(0, self._windows, min(self._windows, self._executor.width) + 1).astype(int).tolist()
        for first, last in pairwise(edges):
            yield WindowsJob(self._setting, place, tuple(range(first, last)), wanted)

    def _start(self) -> int:
        """The segment to begin with: what some window has not computed, or statistics were not added up of."""
        found = [self._setting.bookmark(number).place() or 0 for number in range(self._windows)]
        missing = [
            (place, step.key)
            for place, steps in enumerate(self._models.places)
            for step in ([*self._models.at_inputs, *steps] if not place else steps)
            if step.key in self._models.missing
        ]
        parts = (
            self._setting.part(key, number) for number, end in enumerate(found) for place, key in missing if place < end
        )
        if all(self._setting.store.find(name) is not None for name in parts):
            return min([*found, *(place for place, _ in missing)])
        for number in range(self._windows):
            self._setting.bookmark(number).remove()
        return 0


__all__ = ["INPUTS", "Models", "Setting", "Spreading"]
