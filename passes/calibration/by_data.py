"""Calibration spread over machines: windows of text side by side, layers one after the other.

For each segment of the graph a job evaluates some windows and keeps, in the store, the values that the next segment
needs and the positions that flow into each weight. Another kind of job adds up the positions of one weight input,
window by window in the order of the text, as one process would: the statistics have the same bytes. These jobs run
beside the next segment.

Whatever is finished stays, for each window by itself, so that a job that is done again does not do again what it
finished, and a run that was stopped goes on with any number of workers.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from ir.base.diag import LadingError
from ir.base.executor import JobExecutor, here, run_jobs
from ir.base.store import UNFINISHED, Store
from ir.evaluate.evaluator import Evaluator, Track
from ir.evaluate.token_feeds import window_feeds
from ir.graph.graph import Graph
from ir.quant.statistics.moments import MomentStore, entry_of
from ir.quant.statistics.sums import MomentSums
from ir.text.parser import parse
from ir.text.printer import print_graph
from passes.calibration.bookmark import Bookmark

INPUTS = -1
"""The place of values that are fed, before the first segment."""
EVALUATING = threading.Lock()


@dataclass(frozen=True)
class Sums:
    """Statistics that are wanted.

    Attributes:
        key: their name in the `MomentStore`.
        values: names of the values whose positions are counted.
        weights: names of the weights, for messages.
        features: length of a position.
    """

    key: str
    values: tuple[str, ...]
    weights: tuple[str, ...]
    features: int


@dataclass(frozen=True)
class Setting:
    """What all jobs of a calibration share; plain data.

    Attributes:
        store: where the graph, live values, positions and statistics are.
        run: part of the names of all that is of use in this run only.
        memory: bytes of weights, and again of sums, that a segment may need.
        threads: of the evaluation.
    """

    store: Store
    run: str
    memory: int
    threads: int

    @property
    def work(self) -> str:
        """Entry with the graph and the statistics that are wanted."""
        return f"{UNFINISHED}/{self.run}.work"

    def bookmark(self, window: int) -> Bookmark:
        """Where a window has come to."""
        return Bookmark(self.store, f"{self.run}.{window}")

    def rows(self, key: str, place: int, window: int) -> str:
        """Entry with what a window adds to statistics in a segment."""
        return f"{UNFINISHED}/{self.run}.{key}.{place}.{window}"


class Work:
    """A graph, the statistics that are wanted of it, and the plan of its evaluation, the same on all machines.

    Attributes:
        readers: the statistics that each value counts for, by its name.
    """

    def __init__(self, graph: Graph, sums: Sequence[Sums], setting: Setting) -> None:
        self.graph = graph
        self.sums = sums
        self.readers: dict[str, list[Sums]] = {}
        for item in sums:
            for value in item.values:
                self.readers.setdefault(value, []).append(item)
        self.evaluator = Evaluator(
            graph,
            list(self.readers),
            memory_limit=setting.memory,
            threads=setting.threads,
            keep=False,
            reserve={value: MomentSums.nbytes(found[0].features) for value, found in self.readers.items()},
        )

    def save(self, setting: Setting) -> None:
        """Put it where jobs find it."""
        rows = [[item.key, item.values, item.weights, item.features] for item in self.sums]
        text = json.dumps({"sums": rows, "graph": print_graph(self.graph)})
        with setting.store.put(setting.work, "Q431", "the work of a calibration") as scratch:
            scratch.write_text(text, encoding="utf-8")


# ---- the worker's side ----


@lru_cache(maxsize=1)
def _opened(setting: Setting) -> Work:
    kept = setting.store.find(setting.work)
    if kept is None:
        raise gone(setting.work)
    data = json.loads(kept.read())
    sums = [Sums(key, tuple(values), tuple(weights), size) for key, values, weights, size in data["sums"]]
    return Work(parse(data["graph"]), sums, setting)


def gone(entry: str) -> LadingError:
    message = "a part of a calibration that is not finished is no longer in the cache folder"
    return LadingError("Q430", message, where=entry, hint="run the same command again")


@dataclass(frozen=True)
class WindowsJob:
    """Evaluate one segment for some windows.

    Attributes:
        setting: see there.
        place: the segment.
        windows: number and token ids of each.
        wanted: keys of the statistics that miss positions of this segment.
    """

    setting: Setting
    place: int
    windows: tuple[tuple[int, np.ndarray], ...]
    wanted: frozenset[str]

    alone = True

    def run(self) -> bool:
        """False when the live values cannot be kept."""
        with EVALUATING:
            work = _opened(self.setting)
            states = {number: self.setting.bookmark(number).load() for number, _ in self.windows}
            todo = [(n, ids) for n, ids in self.windows if (found := states[n]) is None or found[0] <= self.place]
            if not todo:
                return True
            track = work.evaluator.track(window_feeds(work.graph, [ids for _, ids in todo]))
            for state, (number, _) in zip(track.states, todo, strict=True):
                found = states[number]
                values = found[1] if found is not None and found[0] == self.place else []
                if self.place and not work.evaluator.restore(Track([state]), self.place, values):
                    raise gone(self.setting.bookmark(number).name)
            keeper = _Keeper(self.setting, work, self.wanted, [number for number, _ in todo])
            if not self.place:
                keeper.observe_inputs(track)
            keeper.place = self.place
            work.evaluator.advance(self.place, [track], keeper.observe)
            keeper.flush()
            live = work.evaluator.live(track)
            if live is None:
                return False
            for arrays, (number, _) in zip(live, todo, strict=True):
                self.setting.bookmark(number).save(self.place + 1, [arrays])
            return True


class _Keeper:
    """Keeps the positions that flow into weights, a file for each window and statistics."""

    def __init__(self, setting: Setting, work: Work, wanted: frozenset[str], numbers: Sequence[int]) -> None:
        self.setting = setting
        self.place = INPUTS
        self._work = work
        self._wanted = wanted
        self._numbers = numbers
        self._now = 0
        self._rows: dict[str, list[np.ndarray]] = {}

    def observe_inputs(self, track: Track) -> None:
        """Weights that meet an input of the graph."""
        inputs = [value for value in map(self._work.graph.value, self._work.readers) if value.is_input]
        for number, state in enumerate(track.states):
            for value in inputs:
                self.observe(track, number, value.name, state[value])
        self.flush()

    def observe(self, track: Track, number: int, name: str, array: np.ndarray) -> None:
        """See `ir.evaluate.evaluator.Observer`."""
        if number != self._now:
            self.flush()
            self._now = number
        for item in self._work.readers[name]:
            if item.key in self._wanted:
                self._rows.setdefault(item.key, []).append(np.array(array).reshape(-1, item.features))

    def flush(self) -> None:
        """Put what one window gave into the store."""
        for key, parts in self._rows.items():
            name = self.setting.rows(key, self.place, self._numbers[self._now])
            with self.setting.store.put(name, "Q431", "calibration positions") as scratch, scratch.open("wb") as file:
                np.save(file, np.concatenate(parts), allow_pickle=False)
        self._rows.clear()


@dataclass(frozen=True)
class SumsJob:
    """Add up the positions of one weight input, and keep the statistics.

    Attributes:
        setting: see there.
        sums: what for.
        places: segments in which its positions are made.
        windows: how many there are.
    """

    setting: Setting
    sums: Sums
    places: tuple[int, ...]
    windows: int

    alone = True

    def run(self) -> bool:
        """True."""
        moments = MomentStore(self.setting.store)
        if moments.has(self.sums.key):
            return True
        added = MomentSums(self.sums.features, here())
        for name in self.entries():
            kept = self.setting.store.find(name)
            if kept is None:
                raise gone(name)
            added.add(np.load(kept.path, allow_pickle=False))
        save_sums(moments, self.sums.key, self.sums.weights, added)
        return True

    def entries(self) -> Iterator[str]:
        """Where the positions are, in the order in which one process would count them."""
        for place in self.places:
            for window in range(self.windows):
                yield self.setting.rows(self.sums.key, place, window)


def save_sums(store: MomentStore, key: str, weights: Sequence[str], sums: MomentSums) -> None:
    """Keep what was added up for the input of some weights.

    Raises:
        LadingError: Q431 no room or no permission, Q436 not finite.
    """
    if not sums.tokens:
        store.save_even(key, sums.features, 1.0)
        return
    if not sums.is_finite:
        raise LadingError(
            "Q436",
            "what flows into a weight is not finite on the calibration text",
            where="\n".join(weights),
            hint="check the checkpoint with --verify; text of another kind does not help",
        )
    store.save_sums(key, sums)


def _run(job: WindowsJob | SumsJob) -> bool:
    return job.run()


# ---- the side that sends ----


class Spreading:
    """One calibration spread over an executor.

    Args:
        work, setting: what to evaluate, and for which statistics; those that are kept already are left alone.
        windows: token ids of the windows.
        executor: runs the jobs.
        progress: called with (segments done, all of them).
    """

    def __init__(
        self,
        work: Work,
        setting: Setting,
        windows: Sequence[np.ndarray],
        executor: JobExecutor,
        progress: Callable[[int, int], None],
    ) -> None:
        self._setting = setting
        self._work = work
        self._windows = windows
        self._executor = executor
        self._progress = progress
        self._places = _places_of(work)
        moments = MomentStore(setting.store)
        self._missing = {item.key: item for item in work.sums if not moments.has(item.key)}

    def run(self) -> bool:
        """Evaluate from where an earlier run was stopped; False when live values cannot be kept, and nothing is done."""
        start, steps = self._start(), len(self._work.evaluator.segments)
        self._work.save(self._setting)
        for place in range(start, steps + 1):
            self._progress(place, steps)
            evaluating = list(self._windows_jobs(place))
            ready = [self._sums_job(item) for item in self._missing.values() if self._places[item.key][-1] < place]
            # A segment waits for all jobs of the one before: sums wait until there are enough for everybody.
            if evaluating and len(ready) < self._executor.width:
                ready.clear()
            jobs: list[WindowsJob | SumsJob] = [*evaluating, *ready]
            if not all(run_jobs(self._executor, _run, jobs)):
                return False
            for job in ready:
                del self._missing[job.sums.key]
                for name in job.entries():
                    self._setting.store.remove(name)
            if not self._missing:
                break
        for number in range(len(self._windows)):
            self._setting.bookmark(number).remove()
        self._setting.store.remove(self._setting.work)
        return True

    def _start(self) -> int:
        """The segment that some window has to be evaluated in next, where all that came before is there."""
        found = [self._setting.bookmark(number).place() for number in range(len(self._windows))]
        start = min(place or 0 for place in found)
        if start and all(self._is_there(item, start) for item in self._missing.values()):
            return start
        for number in range(len(self._windows)):
            self._setting.bookmark(number).remove()
        return 0

    def _is_there(self, item: Sums, start: int) -> bool:
        """True when positions that the evaluation from a segment on does not make are kept."""
        before = tuple(place for place in self._places[item.key] if place < start)
        names = SumsJob(self._setting, item, before, len(self._windows)).entries()
        return all(self._setting.store.find(name) is not None for name in names)

    def _sums_job(self, item: Sums) -> SumsJob:
        job = SumsJob(self._setting, item, self._places[item.key], len(self._windows))
        self._setting.store.hold(entry_of(item.key))
        return job

    def _windows_jobs(self, place: int) -> Iterator[WindowsJob]:
        """Jobs of a segment, if anything is missing from it or behind it, one for each that can run at once."""
        wanted = [
            key for key in self._missing if place in self._places[key] or (not place and INPUTS in self._places[key])
        ]
        if all(self._places[key][-1] < place for key in self._missing):
            return
        for number in range(len(self._windows)):
            self._setting.store.hold(self._setting.bookmark(number).name)
            for key in wanted:
                self._setting.store.hold(self._setting.rows(key, place, number))
        count = len(self._windows)
        edges = np.linspace(0, count, min(count, self._executor.width) + 1).astype(int).tolist()
        for first, last in pairwise(edges):
            chosen = tuple((number, self._windows[number]) for number in range(first, last))
            yield WindowsJob(self._setting, place, chosen, frozenset(wanted))


def _places_of(work: Work) -> dict[str, tuple[int, ...]]:
    """The segments in which positions of each statistics are made, in order."""
    made = {value.name: place for place, segment in enumerate(work.evaluator.segments) for value in segment.outputs}
    return {item.key: tuple(sorted({made.get(value, INPUTS) for value in item.values})) for item in work.sums}


__all__ = ["Setting", "Spreading", "Sums", "Work", "save_sums"]
