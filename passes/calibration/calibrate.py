"""Gather statistics of what flows into every weight matrix, for quantizers that know which features matter.

The graph is evaluated once on the calibration windows, a segment of about one layer at a time. What is finished stays
on
disk: statistics under a key that says what they depend on, and the live values after the last finished segment, from
which a run that was stopped goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from ir.base.diag import LadingError
from ir.base.executor import JobExecutor
from ir.dialects.experts import DISPATCH
from ir.evaluate.evaluator import Evaluator, Track
from ir.evaluate.token_feeds import window_feeds
from ir.facts.calibration import Calibration, StandIn
from ir.facts.inputs import DynamicInputs
from ir.graph.digests import value_digests
from ir.graph.graph import Graph, Value
from ir.quant.statistics.moments import CalibrationText, MomentStore, windows_digest
from ir.quant.statistics.sums import MomentSums
from ir.tensor.identity import tensor_identity
from passes.calibration.bookmark import Bookmark
from passes.calibration.by_data import Setting, Spreading, Sums, Work, save_sums
from passes.framework.base import Pass
from passes.framework.context import PassContext
from passes.framework.options import option
from passes.precision.mixtures import seats_of
from passes.precision.planned_weights import weights_of

FORMAT = "moments 4"
"""Part of every key; another one when the numbers are computed otherwise."""


@dataclass(frozen=True)
class Entry:
    """One set of statistics: of the values that meet the same weights.

    Attributes:
        key: its name in the store.
        values: the values whose positions are counted; more than one where a weight is read in several places.
        weights: names of the weights.
        features: length of a position.
    """

    key: str
    values: tuple[Value, ...]
    weights: tuple[str, ...]
    features: int


@dataclass(frozen=True)
class Calibrate(Pass):
    """Gather statistics of what flows into every weight that a MatMul multiplies by.

    The calibration windows of the run are fed, before or after `discover-inputs`; all positions count. Statistics stay
    in the cache folder (``$LADING_CACHE``, else ``~/.cache/lading``), and are not computed again while graph, weights
    and windows are the same. The logits themselves are not computed.
    """

    name = "calibrate"
    requires = ("typed",)
    establishes = ("calibration",)
    passing = frozenset({"computed", "cached"})

    memory: int = option(256, help="MiB of weights, and again of sums, to hold at once", low=1)
    threads: int = option(0, help="threads of the evaluation; 0 for one per processor", low=0)

    def run(self, graph: Graph, ctx: PassContext) -> Mapping[str, int]:
        windows = ctx.get(CalibrationText).calibration
        if not windows:
            raise LadingError("Q433", "there are no calibration windows", hint="give the run a longer text")
        feeds = window_feeds(graph, windows)
        entries = entries_of(graph, windows)
        store = MomentStore(ctx.store)
        missing = [entry for entry in entries if not store.has(entry.key)]
        if missing and not self._spread(graph, entries, windows, ctx):
            _Gathering(graph, entries, store, self, ctx).run(feeds, sum(map(len, windows)))
        keys = {name: entry.key for entry in entries for name in entry.weights}
        reached, instead = _unreached(graph, entries, keys, store)
        _tell(ctx, graph, reached, instead)
        digest = windows_digest(windows)
        graph.set_fact(Calibration.name, Calibration(digest, sum(map(len, windows)), keys, reached, instead))
        return {"weights": len(keys), "computed": len(missing), "cached": len(entries) - len(missing)}

    def _spread(self, graph: Graph, entries: Sequence[Entry], windows: Sequence[np.ndarray], ctx: PassContext) -> bool:
        """Gather on other machines, where the executor has some that share files; False when nothing was done."""
        executor = ctx.executor
        if not isinstance(executor, JobExecutor) or not executor.shares_files:
            return False
        state = blake2b(digest_size=16)
        for part in (FORMAT, str(self.memory), windows_digest(windows), *(entry.key for entry in entries)):
            state.update(part.encode() + b"\0")
        sums = [
            Sums(entry.key, tuple(value.name for value in entry.values), entry.weights, entry.features)
            for entry in entries
        ]
        setting = Setting(ctx.store, state.hexdigest(), self.memory << 20, self.threads or executor.threads)
        what = f"calibrating on {sum(map(len, windows))} tokens"
        work = Work(graph, sums, setting)
        return Spreading(work, setting, windows, executor, lambda done, total: ctx.progress(done, total, what)).run()


def entries_of(graph: Graph, windows: Sequence[np.ndarray]) -> list[Entry]:
    """The statistics that the weights of a graph need, in program order."""
    readers: dict[tuple[Value, ...], list[str]] = {}
    for weight in weights_of(graph):
        if weight.role == "embedding":
            continue
        reads = [n.operand(0) for n, index in weight.value.uses if n.op == "MatMul" and index == 1]
        readers.setdefault(tuple(dict.fromkeys(reads)), []).append(weight.value.name)
    values = [value for group in readers for value in group]
    digests = value_digests(graph, values, lambda value: fed_digest(graph, value))
    text = windows_digest(windows)
    found = []
    for group, names in readers.items():
        state = blake2b(digest_size=16)
        for part in (FORMAT, text, *(digests[value] for value in group)):
            state.update(part.encode() + b"\0")
        found.append(Entry(state.hexdigest(), group, tuple(names), graph.value(names[0]).sizes[0]))
    return found


def _unreached(
    graph: Graph, entries: Sequence[Entry], keys: dict[str, str], store: MomentStore
) -> tuple[dict[str, int], dict[str, StandIn]]:
    """How many positions reached each weight of an expert, and what stands in for the statistics of those that none did.

    A matrix that reads the rows that the expert is given gets the statistics of everything that enters the layer, which
    is what it would see. One behind it reads features that no other expert has, so all of them count the same, with the
    mean square that the same matrices of the layer's other experts meet. `keys` is brought up to date.
    """
    seats = {value.name: seat for value, seat in seats_of(graph).items()}
    own = [entry for entry in entries if entry.weights[0] in seats]
    found = {entry.key: store.summary(entry.key) for entry in own}
    levels: dict[str, list[float]] = {}
    for entry in own:
        tokens, level = found[entry.key]
        if tokens:
            levels.setdefault(seats[entry.weights[0]].group, []).append(level)
    whole = {entry.values: entry.key for entry in entries}
    reached = {name: found[entry.key][0] for entry in own for name in entry.weights}
    instead: dict[str, StandIn] = {}
    for entry in own:
        if found[entry.key][0]:
            continue
        makers = [value.producer for value in entry.values]
        entering = tuple(node.operand(0) for node in makers if node is not None and node.op == DISPATCH)
        key = whole.get(entering)
        if key is None:
            others = levels.get(seats[entry.weights[0]].group)
            key = entry.key if others is None else _even(store, entry, sum(others) / len(others))
            instead.update(dict.fromkeys(entry.weights, "even"))
        else:
            instead.update(dict.fromkeys(entry.weights, "layer"))
        keys.update(dict.fromkeys(entry.weights, key))
    return reached, instead


def _even(store: MomentStore, entry: Entry, level: float) -> str:
    """Key of even statistics of a level, which are written unless they are there."""
    level = float(np.float32(level))
    key = blake2b(f"{FORMAT} {entry.features} {level.hex()}".encode(), digest_size=16).hexdigest()
    if not store.has(key):
        store.save_even(key, entry.features, level)
    return key


def _tell(ctx: PassContext, graph: Graph, reached: Mapping[str, int], instead: Mapping[str, str]) -> None:
    """Say which experts the text did not reach."""
    seats = {value.name: seat for value, seat in seats_of(graph).items()}
    experts = {(seat.group.rpartition(" ")[0], seat.expert) for seat in seats.values()}
    lacking = {(seats[name].group.rpartition(" ")[0], seats[name].expert) for name in instead}
    if not lacking:
        return
    even = sum(word == "even" for word in instead.values())
    ctx.warn(
        "Q482",
        f"the calibration text reaches {len(experts) - len(lacking)} of {len(experts)} experts; of the others, "
        f"{len(instead) - even} matrices are quantized by what enters their layer, and {even} as if all features "
        "counted the same",
        where=next(iter(instead)),
        hint="give more text, or text of more kinds: --calibration",
    )


def fed_digest(graph: Graph, value: Value) -> str:
    """What an input is fed, windows aside."""
    fact = graph.fact(DynamicInputs)
    found = next((item for item in fact.discoveries if item.input == value.name), None) if fact is not None else None
    if fact is None or found is None:
        return "ids"
    table = graph.tables.get("embedding")
    rows = ""
    if found.kind == "embedding-rows" and table is not None:
        node = table.producer
        tensors = [table.const] if node is None else [v.const for v in node.inputs if v is not None]
        rows = " ".join(tensor_identity(item) for item in tensors if item is not None)
    return json.dumps([found.kind, list(fact.windows), rows])


class _Gathering:
    """One evaluation that fills the store."""

    def __init__(
        self, graph: Graph, entries: Sequence[Entry], store: MomentStore, settings: Calibrate, ctx: PassContext
    ) -> None:
        self.graph = graph
        self.store = store
        self.ctx = ctx
        self.entries = entries
        self.by_value: dict[str, list[Entry]] = {}
        for entry in entries:
            for value in entry.values:
                self.by_value.setdefault(value.name, []).append(entry)
        limit = settings.memory << 20
        self.evaluator = Evaluator(
            graph,
            list(self.by_value),
            memory_limit=limit,
            threads=settings.threads or None,
            keep=False,
            reserve={name: MomentSums.nbytes(found[0].features) for name, found in self.by_value.items()},
        )
        self.sums: dict[str, MomentSums] = {}
        self.seen: dict[str, int] = {}
        self.missing = {entry.key for entry in entries if not store.has(entry.key)}
        state = blake2b("\n".join([FORMAT, str(limit), *(entry.key for entry in entries)]).encode(), digest_size=16)
        self.bookmark = Bookmark(store.store, state.hexdigest())

    def run(self, feeds: Sequence[Mapping[str, np.ndarray]], tokens: int) -> None:
        """Evaluate from where an earlier run was stopped until nothing is missing."""
        track = self.evaluator.track(feeds)
        what, steps = f"calibrating on {tokens} tokens", len(self.evaluator.segments)
        place = self._resume(track)
        if not place:
            self._observe_inputs(track)
        while place < steps and self.missing:
            self.ctx.progress(place, steps, what)
            self.evaluator.advance(place, [track], self._observe)
            place += 1
            if self.missing and not self.sums and self.bookmark.is_due:
                self._remember(place, track)
        self.ctx.progress(steps, steps, what)
        self.bookmark.remove()

    def _resume(self, track: Track) -> int:
        """The segment to begin with, the values before it put back."""
        found = self.bookmark.load()
        if found is None:
            return 0
        place, values = found
        made = {value.name for segment in self.evaluator.segments[place:] for value in segment.outputs}
        ahead = all(all(value.name in made for value in e.values) for e in self.entries if e.key in self.missing)
        return place if ahead and self.evaluator.restore(track, place, values) else 0

    def _remember(self, place: int, track: Track) -> None:
        values = self.evaluator.live(track)
        if values is not None:
            self.bookmark.save(place, values)

    def _observe_inputs(self, track: Track) -> None:
        """Weights that meet an input of the graph."""
        for name in self.by_value:
            value = self.graph.value(name)
            if value.is_input:
                for number, state in enumerate(track.states):
                    self._observe(track, number, name, state[value])

    def _observe(self, track: Track, number: int, name: str, array: np.ndarray) -> None:
        for entry in self.by_value[name]:
            if entry.key not in self.missing:
                continue
            sums = self.sums.setdefault(entry.key, MomentSums(entry.features, self.ctx.executor))
            sums.add(array)
            self.seen[entry.key] = self.seen.get(entry.key, 0) + 1
            if self.seen[entry.key] == len(entry.values) * len(track.states):
                self._save(entry, self.sums.pop(entry.key))

    def _save(self, entry: Entry, sums: MomentSums) -> None:
        save_sums(self.store, entry.key, entry.weights, sums)
        self.missing.discard(entry.key)
