"""Gather statistics anew for weights that make up for errors made before them: float and quantized model side by side.

Both are evaluated on the calibration windows, up to the input of one weight after the other. Once the statistics of an
input are there, the weights that it meets are quantized by them, and the quantized model goes on with what they are
stored as. The keys of all statistics follow from the graph and the plan, so that they are known before anything is
evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np

from ir.base.diag import LadingError
from ir.base.executor import SERIAL, JobExecutor, run_jobs, shares_memory
from ir.base.store import Store
from ir.evaluate.evaluator import Evaluator, Track
from ir.evaluate.replaced_weights import Variant
from ir.evaluate.token_feeds import window_feeds
from ir.facts.calibration import Calibration
from ir.facts.precision import PrecisionPlan
from ir.facts.tuning import Tuning, with_step
from ir.graph.digests import Digests
from ir.graph.graph import Graph, Node, Value
from ir.quant.methods.base import METHODS
from ir.quant.statistics.drift import DriftSums
from ir.quant.statistics.moments import CalibrationText, MomentStore, input_of, joined, parts_of, windows_digest
from ir.quant.weight import keep_all, let_go
from ir.tensor.base import Tensor
from ir.tensor.identity import joined_digest, tensor_identity
from ir.tensor.one_thread import one_thread
from ir.text.parser import parse
from ir.text.printer import print_graph
from passes.calibration.bookmark import Bookmark
from passes.calibration.calibrate import Entry, entries_of, fed_digest
from passes.calibration.planned import judged, measured_now, stored_as_planned
from passes.calibration.side_by_side import Setting, Spreading
from passes.framework.base import Pass
from passes.framework.context import PassContext
from passes.framework.options import option
from passes.precision.mixtures import Seat, seats_of
from passes.precision.planned_weights import Weight, bias_of, moments_for, same_matrix, weights_of

FORMAT = "drift 2"
"""Part of every key; another one when the numbers are computed otherwise."""
TOGETHER = 4
"""Windows whose errors are held at the same time."""


@dataclass(frozen=True)
class Step:
    """Statistics to gather at one place of the model.

    Attributes:
        key: their name in the store.
        entry: the input and the weights that meet it.
        plain: key of the statistics of the float model.
        weight: the one weight whose outputs are looked at; None where the inputs are.
        beside: what the outputs of `weight` are added to, if it is known before them.
        needs: values that have to be computed later, so that what the statistics need is still there.
        seat: the place in an expert, for weights of one.
    """

    key: str
    entry: Entry
    plain: str
    weight: Weight | None
    beside: Value | None
    needs: tuple[Value, ...]
    seat: Seat | None

    @property
    def value(self) -> Value:
        """What flows into the weights."""
        return self.entry.values[0]


@dataclass(frozen=True)
class Recalibrate(Pass):
    """Gather statistics of what flows into weights once those before them are quantized, for methods that follow them.

    The float model and the model as it is planned are evaluated side by side on the calibration windows, from one weight
    to the next. Weights whose method follows what lies before (`gptaq`, `yaqa`) are quantized on the way, by statistics
    of the quantized model's inputs and of what the float model makes of its own. Weights that are read in several places
    and a logits matrix that is the embedding, too, keep the statistics that they have, since errors before them would
    follow from themselves. A plan that was measured, when it was chosen or by calibrate-outputs, is measured again, and
    keeps the statistics of the float model, with a method that uses those, where it was better as it was. Does nothing
    where no method follows. Statistics stay in the cache folder as those of calibrate do.
    """

    name = "recalibrate"
    requires = ("typed", "precision-plan")
    passing = frozenset({"computed", "cached"})

    memory: int = option(256, help="MiB of weights to hold at once", low=1)
    threads: int = option(0, help="threads of the evaluation; 0 for one per processor", low=0)
    drift: float = option(0.75, help="share of the error in the inputs that weights make up for", low=0.0, high=1.0)
    residual: float = option(
        0.5, help="share of the error in what outputs are added to that weights make up for", low=0.0, high=1.0
    )

    def run(self, graph: Graph, ctx: PassContext) -> Mapping[str, int]:
        """See `Pass.run`."""
        plan = graph.required_fact(PrecisionPlan)
        names = {name for name, item in plan.storage.items() if item.bits <= 8 and METHODS[item.method].follows}
        fact = graph.fact(Calibration)
        if not names or fact is None:
            return {"weights": 0, "computed": 0, "cached": 0}
        windows = ctx.get(CalibrationText).calibration
        if windows_digest(windows) != fact.digest:
            raise LadingError(
                "Q491",
                "the calibration text is not the one that calibrate has seen",
                graph.name,
                "run both passes with the same text",
            )
        work = _Planned(graph, plan, fact, windows, self)
        store = MomentStore(ctx.store)
        missing = [step for step in work.steps if not store.has(step.key)]
        if missing:
            following = _Following(graph, work, store, self)
            if not self._spread(graph, following, windows, ctx):
                following.run(windows, ctx)
        before = stored_as_planned(graph, plan)
        graph.set_fact(Calibration.name, replace(fact, keys=work.keys, behind=tuple(sorted(names))))
        if not self._gains(graph, ctx, fact.tokens, before, work.replaced):
            plain = {
                name: replace(plan.storage[name], method=METHODS[plan.storage[name].method].follows) for name in names
            }
            graph.set_fact(Calibration.name, fact)
            graph.set_fact(PrecisionPlan.name, replace(plan, storage={**plan.storage, **plain}))
        weights = sum(len(step.entry.weights) for step in work.steps)
        return {"weights": weights, "computed": len(missing), "cached": len(work.steps) - len(missing)}

    def _gains(self, graph: Graph, ctx: PassContext, tokens: int, before: Variant, after: Variant) -> bool:
        """False where what was measured of the plan before was better than what comes out now.

        Nothing is measured where nothing was measured before, or there is no text to measure with; of a plan that waits for
        its codes, what comes out now is.
        """
        outcome = graph.required_fact(PrecisionPlan).outcome
        if (outcome is None and graph.fact(Tuning) is None) or not ctx.get(CalibrationText).held_out:
            return True
        if outcome is not None and outcome.measured is None:
            measured_now(graph, ctx, after)
            return True
        step = judged(graph, ctx, self.name, tokens, before, after)
        with_step(graph, step)
        if not step.kept:
            ctx.note(
                "Q492",
                f"with errors of earlier weights made up for, the plan has a KL divergence of {step.after:.2e} on held-out "
                f"text, and {step.before:.2e} without: it is stored without",
                graph.name,
                "give more text: --calibration",
            )
        return step.kept

    def _spread(self, graph: Graph, following: _Following, windows: Sequence[np.ndarray], ctx: PassContext) -> bool:
        """Gather on other machines, where the executor has some that share files; False when nothing was done."""
        executor = ctx.executor
        if not isinstance(executor, JobExecutor) or not executor.shares_files:
            return False
        settings = replace(self, threads=self.threads or executor.threads)
        text = json.dumps(
            {"graph": print_graph(graph), "windows": [window.tolist() for window in windows], **asdict(settings)}
        )
        setting = Setting(ctx.store, f"{following.bookmark.key}.beside", _reopened)
        what = f"following {len(following.work.steps)} inputs"
        spreading = Spreading(following, setting, len(windows), executor, partial(ctx.progress, what=what))
        return spreading.run(text)


def _reopened(data: Mapping[str, Any], store: Store) -> _Following:
    """What `Recalibrate` has made, on another machine."""
    names = {item.name for item in fields(Recalibrate)}
    settings = Recalibrate(**{name: value for name, value in data.items() if name in names})
    graph = parse(data["graph"])
    windows = [np.array(window, np.int32) for window in data["windows"]]
    plan, fact = graph.required_fact(PrecisionPlan), graph.required_fact(Calibration)
    return _Following(graph, _Planned(graph, plan, fact, windows, settings), MomentStore(store), settings, windows)


class _Planned:
    """What is to be gathered, in program order, and what every planned weight is stored as.

    Attributes:
        steps: statistics to gather.
        keys: key of the statistics of each weight.
        replaced: what runtimes compute with instead of each planned weight, by name.
    """

    def __init__(
        self, graph: Graph, plan: PrecisionPlan, fact: Calibration, windows: Sequence[np.ndarray], settings: Recalibrate
    ) -> None:
        weights = weights_of(graph)
        pair = same_matrix(weights)
        self._plan = plan
        self._weights = {weight.name: weight for weight in weights}
        self._tied = {weight.name for weight in pair} if plan.tied and pair is not None else set()
        self._order = {node: place for place, node in enumerate(graph.nodes)}
        self._settings = settings
        self.keys = dict(fact.keys)
        self.replaced: dict[str, Tensor] = {}
        self.steps: list[Step] = []
        table = graph.tables.get("embedding")
        head = next((name for name in self._tied if table is None or name != table.name), "")
        entries = entries_of(graph, windows)
        shared = {name for entry in entries for name in entry.weights if len(entry.values) > 1}
        for name, weight in self._weights.items():
            if weight.role == "embedding" or name in self._tied | shared:
                self._store(weight, self.keys.get(head if name in self._tied else name, ""))
        rows = "" if table is None or table.name not in self.replaced else tensor_identity(self.replaced[table.name])
        float_ = Digests(graph, lambda value: fed_digest(graph, value))
        stored = Digests(graph, lambda value: fed_digest(graph, value) + rows)
        for name in self.replaced:
            self._count(stored, name)
        seats = {value.name: seat for value, seat in seats_of(graph).items()}
        text = windows_digest(windows)
        for entry in entries:
            if entry.weights[0] not in self.replaced:
                self._add(entry, seats.get(entry.weights[0]), text, float_, stored)

    def _add(self, entry: Entry, seat: Seat | None, text: str, float_: Digests, stored: Digests) -> None:
        """Plan the weights that meet one input."""
        weights = [self._weights[name] for name in entry.weights]
        if any(self._follows(weight.name) for weight in weights):
            alone = weights[0] if len(weights) == 1 and weights[0].rows <= weights[0].columns else None
            beside = self._beside(alone, entry.values[0]) if alone is not None else None
            parts = [FORMAT, text, repr(self._settings.drift)]
            parts += [digests.value(entry.values[0]) for digests in (float_, stored)]
            if alone is not None:
                parts.append(tensor_identity(alone.source))
            if beside is not None:
                parts += [repr(self._settings.residual), float_.value(beside), stored.value(beside)]
            key = joined_digest(*parts)
            needs = () if beside is None else tuple(user.output for user in beside.users)
            if seat is not None:
                needs += tuple(
                    value for user in choices_of(weights[0].value.graph, seat).users for value in user.outputs
                )
            plain = input_of(self.keys[entry.weights[0]])
            self.steps.append(Step(key, entry, plain, alone, beside, needs, seat))
            for name in filter(self._follows, entry.weights):
                self.keys[name] = joined(key, parts_of(self.keys[name])[1:])
        for weight in weights:
            self._store(weight, self.keys.get(weight.name, ""))
            if weight.name in self.replaced:
                self._count(stored, weight.name)

    def _follows(self, name: str) -> bool:
        storage = self._plan.storage.get(name)
        return storage is not None and storage.bits <= 8 and METHODS[storage.method].follows != ""

    def _store(self, weight: Weight, key: str) -> None:
        storage = self._plan.storage.get(weight.name)
        if storage is not None and storage.bits < 32:
            self.replaced[weight.name] = weight.restored(storage, moments_for(storage, key))

    def _count(self, digests: Digests, name: str) -> None:
        storage = self._plan.storage[name]
        weight = self._weights[name]
        key = moments_for(storage, self.keys.get(name, ""))
        version = str(METHODS[storage.method].version) if storage.bits <= 8 else ""
        how = joined_digest(tensor_identity(weight.source), json.dumps(asdict(storage)), key, version)
        digests.count_as(weight.value, how)

    def _beside(self, weight: Weight, x: Value) -> Value | None:
        """What the outputs of a weight are added to, where that is made before its input is."""
        node = weight.value.users[0]
        after = bias_of(node)[1]
        add = after.users[0] if after.use_count == 1 and after.users else None
        if add is None or add.op != "Add":
            return None
        other = next((value for value in add.inputs if value is not after), None)
        if other is None or other.is_const or other.shape is None or other.shape != after.shape:
            return None
        return other if self._place(other.producer) < self._place(x.producer) else None

    def _place(self, node: Node | None) -> int:
        return -1 if node is None else self._order[node]


def choices_of(graph: Graph, seat: Seat) -> Value:
    """The numbers of the experts that each position is sent to, ``[1, positions, K]``."""
    dispatch = graph.value(seat.group.rpartition(" ")[0]).producer
    assert dispatch is not None, seat
    return dispatch.operand(1)


class _Following:
    """One evaluation of both models that fills the store; see `passes.calibration.side_by_side.Models`."""

    def __init__(
        self,
        graph: Graph,
        work: _Planned,
        store: MomentStore,
        settings: Recalibrate,
        windows: Sequence[np.ndarray] = (),
    ) -> None:
        self.graph, self.work, self.store, self.settings, self.windows = graph, work, store, settings, windows
        self.missing = {step.key for step in work.steps if not store.has(step.key)}
        names = list(dict.fromkeys(step.value.name for step in work.steps))
        self.evaluator = Evaluator(
            graph,
            list(dict.fromkeys([*names, *(value.name for step in work.steps for value in step.needs)])),
            memory_limit=settings.memory << 20,
            threads=settings.threads or None,
            keep=False,
            replaceable=list(work.replaced),
            ends=names,
        )
        made = "\n".join([FORMAT, str(settings.memory), *(step.key for step in work.steps)])
        self.bookmark = Bookmark(store.store, blake2b(made.encode(), digest_size=16).hexdigest())
        by_value: dict[Value, list[Step]] = {}
        for step in work.steps:
            by_value.setdefault(step.value, []).append(step)
        self.at_inputs = [step for step in work.steps if step.value.is_input]
        self.places = [
            [step for value in segment.outputs for step in by_value.get(value, ())]
            for segment in self.evaluator.segments
        ]

    def tracks(self, windows: Sequence[np.ndarray]) -> tuple[Track, Track]:
        """The float model and the one that is stored, before the first segment."""
        rows = self.rows()
        return (
            self.evaluator.track(window_feeds(self.graph, windows)),
            self.evaluator.track(window_feeds(self.graph, windows, rows), self.work.replaced),
        )

    def rows(self) -> dict[str, Tensor]:
        """The tables that embedding rows are fed from, as they are stored."""
        tables = {value.name for value in self.graph.tables.values()}
        return {name: tensor for name, tensor in self.work.replaced.items() if name in tables}

    def stretches(self) -> list[range]:
        """The segments in runs that can be computed in one go: none needs statistics of what the same run makes."""
        found = [range(0)]
        made: set[str] = set()
        for place, steps in enumerate(self.places):
            keys = (self.work.keys.get(value.name, "") for value in self.evaluator.segments[place].constants)
            if not made.isdisjoint(input_of(key) for key in keys if key):
                found.append(range(place, place))
                made.clear()
            found[-1] = range(found[-1].start, place + 1)
            made.update(step.key for step in steps)
        return found

    def stored_in(self, place: int) -> list[Tensor]:
        """What the stored model computes with in a segment instead of weights."""
        constants = self.evaluator.segments[place].constants
        return [self.work.replaced[value.name] for value in constants if value.name in self.work.replaced]

    def run(self, windows: Sequence[np.ndarray], ctx: PassContext) -> None:
        """Evaluate from where an earlier run was stopped until nothing is missing."""
        tracks = self.tracks(windows)
        what, count = f"following {len(self.work.steps)} inputs", len(self.places)
        place = self._resume(tracks)
        if not place:
            self._gather(self.at_inputs, tracks, ctx.executor)
        while place < count and self.missing:
            ctx.progress(place, count, what)
            keep_all(self.stored_in(place), ctx.executor)
            self.evaluator.advance(place, tracks)
            let_go(self.stored_in(place))
            self._gather(self.places[place], tracks, ctx.executor)
            place += 1
            if self.missing and self.bookmark.is_due:
                self._remember(place, tracks)
        ctx.progress(count, count, what)
        self.bookmark.remove()

    def _resume(self, tracks: tuple[Track, Track]) -> int:
        """The segment to begin with, the values before it put back."""
        found = self.bookmark.load()
        if found is None:
            return 0
        place, values = found
        made = {value for segment in self.evaluator.segments[place:] for value in segment.outputs}
        ahead = all(step.value in made for step in self.work.steps if step.key in self.missing)
        half = len(values) // 2
        parts = (values[:half], values[half:])
        fits = ahead and len(values) == 2 * len(tracks[0].states)
        return place if fits and all(map(self.evaluator.restore, tracks, (place, place), parts)) else 0

    def _remember(self, place: int, tracks: tuple[Track, Track]) -> None:
        values = [self.evaluator.live(track) for track in tracks]
        if values[0] is not None and values[1] is not None:
            self.bookmark.save(place, [*values[0], *values[1]])

    def _gather(self, steps: Sequence[Step], tracks: tuple[Track, Track], executor: Executor) -> None:
        """Statistics of the inputs that were just computed, of one after the other."""
        for step in steps:
            if step.key in self.missing:
                self.save(step, self.errors(step, tracks, executor), executor)
                self.missing.discard(step.key)

    def errors(
        self, step: Step, tracks: tuple[Track, Track], executor: Executor = SERIAL
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each window errors, and the inputs of the quantized model that they belong to; threads of an executor compute
        some windows at the same time."""
        weight = None if step.weight is None else step.weight.source.load().astype(np.float32)
        workers, count = executor if shares_memory(executor) else SERIAL, len(tracks[0].states)
        for first in range(0, count, TOGETHER):
            numbers = range(first, min(count, first + TOGETHER))
            yield from run_jobs(workers, partial(self._errors, step, weight, tracks), numbers)

    def _errors(
        self, step: Step, weight: np.ndarray | None, tracks: tuple[Track, Track], number: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """What `errors` gives of a window."""
        wanted, x = (self._rows(track, number, step.value) for track in tracks)
        if step.seat is not None:
            first, second = self._common(step.seat, tracks, number)
            wanted, x = wanted[first], x[second]
        error = (wanted - x) * np.float32(self.settings.drift)
        if weight is not None:
            with one_thread():
                error = error @ weight.T
        if step.beside is not None:
            before, now = (self._rows(track, number, step.beside) for track in tracks)
            error += (before - now) * np.float32(self.settings.residual)
        return error, x

    def _rows(self, track: Track, number: int, value: Value) -> np.ndarray:
        """float32[positions, features] of a value that was computed."""
        found = self.evaluator.peek(track, number, value.name)
        assert found is not None, value
        return found.reshape(-1, found.shape[-1]).astype(np.float32, copy=False)

    def _common(self, seat: Seat, tracks: tuple[Track, Track], number: int) -> tuple[np.ndarray, np.ndarray]:
        """Which rows of an expert are of positions that both models send to it, in either model."""
        choices = choices_of(self.graph, seat)
        tokens = []
        for track in tracks:
            chosen = self.evaluator.peek(track, number, choices.name)
            assert chosen is not None, choices
            tokens.append(np.flatnonzero(chosen.reshape(-1) == seat.expert) // chosen.shape[-1])
        _, first, second = np.intersect1d(*tokens, return_indices=True)
        return first, second

    def save(self, step: Step, parts: Iterable[tuple[np.ndarray, np.ndarray]], executor: Executor) -> None:
        """Add up what `errors` gave of all windows, and keep it as statistics."""
        errors = step.entry.features if step.weight is None else step.weight.rows
        sums = DriftSums(step.entry.features, errors, executor)
        for error, x in parts:
            sums.add(error, x)
        if not sums.moments.tokens:
            # No position in common: what is known of the float model has to do.
            plain = self.store.load(step.plain)
            self.store.save(replace(plain, key=step.key))
            return
        if not sums.is_finite:
            raise LadingError(
                "Q436",
                "what flows into a weight is not finite on the calibration text once weights before it are quantized",
                where="\n".join(step.entry.weights),
                hint="store the weights before it wider, or use method=gptq",
            )
        self.store.save_sums(step.key, sums.moments, sums.products(), lags=step.weight is not None)


__all__ = ["Recalibrate"]
