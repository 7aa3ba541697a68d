"""Runs pipelines: checks needs before any work, times and counts passes, and lets instruments watch.

Whether a pass changed the graph is decided by the graph's version alone; what holds at each point follows from what
passes require, establish and break.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

from ir.base.diag import Diagnostic, LadingError
from ir.base.paused_gc import paused_collection
from ir.base.store import using_store
from ir.graph.graph import Graph
from passes.framework.base import Pass
from passes.framework.context import PassContext
from passes.framework.load import load
from passes.framework.pipeline import Pipeline, Repeat
from passes.framework.registry import Registry, default_registry
from passes.rewrite.rules import RewriteReport, RuleStat, WhyNot


@dataclass(frozen=True, slots=True)
class Step:
    """One pass about to run.

    Attributes:
        number: how many passes have run, this one included.
        path: place in the pipeline: position, and for repeated steps round and position within: ``2.1.3``.
        one: the pass.
        holds: invariants that hold once it has run.
    """

    number: int
    path: str
    one: Pass
    holds: frozenset[str]

    def __str__(self) -> str:
        return f"step {self.path} ({self.one})"


@dataclass
class PassReport:
    """What one run of a pass did.

    Attributes:
        number, path: see `Step`.
        name, text: name of the pass; its canonical text.
        changed: the graph's version moved.
        seconds: time in the pass itself, instruments not counted.
        counts: what the pass returned.
        lasting: those counts that are the same in every run, whatever earlier runs left in the store.
        diagnostics: warnings it gave.
        rules: statistics of the rules it applied, by rule name.
        why_not: with ``explain``, why rules did not fire.
        nodes: number of nodes of the outermost graph before and after.
        notes: what instruments found.
    """

    number: int
    path: str
    name: str
    text: str
    changed: bool = False
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    lasting: dict[str, int] = field(default_factory=dict)
    diagnostics: list[Diagnostic] = field(default_factory=list)
    rules: dict[str, RuleStat] = field(default_factory=dict)
    why_not: list[WhyNot] = field(default_factory=list)
    nodes: tuple[int, int] = (0, 0)
    notes: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form; empty parts are left out."""
        data = {
            "number": self.number,
            "path": self.path,
            "pass": self.text,
            "changed": self.changed,
            "seconds": round(self.seconds, 6),
            "nodes": list(self.nodes),
            "counts": dict(self.counts),
            "diagnostics": [item.as_dict() for item in self.diagnostics],
            "rules": {name: asdict(stat) for name, stat in self.rules.items()},
            "why_not": [asdict(item) for item in self.why_not],
            "notes": self.notes,
        }
        return {key: value for key, value in data.items() if value not in ({}, [])}


@dataclass
class Report:
    """What a pipeline did.

    Attributes:
        pipeline: canonical text.
        passes: one entry for each pass that ran, in order.
        seconds: wall time, instruments included.
        diagnostics: warnings about the pipeline itself.
        stopped: why the pipeline ended early; empty when it did not.
    """

    pipeline: str
    passes: list[PassReport] = field(default_factory=list)
    seconds: float = 0.0
    diagnostics: list[Diagnostic] = field(default_factory=list)
    stopped: str = ""

    @property
    def changed(self) -> bool:
        """True when any pass changed the graph."""
        return any(item.changed for item in self.passes)

    def all_diagnostics(self) -> list[Diagnostic]:
        """Warnings of the pipeline and of every pass."""
        return [*self.diagnostics, *(one for item in self.passes for one in item.diagnostics)]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "pipeline": self.pipeline,
            "seconds": round(self.seconds, 6),
            "changed": self.changed,
            "stopped": self.stopped,
            "diagnostics": [item.as_dict() for item in self.diagnostics],
            "passes": [item.as_dict() for item in self.passes],
        }


class StopPipeline(Exception):
    """Raised by an instrument to end the pipeline without error; the message says why."""


class Instrument:
    """Watches a pipeline from outside; every method may be left as it is. Passes never see instruments."""

    def before(self, step: Step, graph: Graph) -> None:
        """Called before each pass."""

    def after(self, step: Step, graph: Graph, report: PassReport) -> None:
        """Called after each pass that succeeded; may raise `LadingError` or `StopPipeline`."""

    def failed(self, step: Step, graph: Graph, error: Exception) -> None:
        """Called when a pass, or the `after` of an instrument, raised; the error is raised again afterwards."""

    def finished(self, graph: Graph, report: Report) -> None:
        """Called once, after the last pass or an early stop."""


def check_needs(
    pipeline: Pipeline, graph: Graph | None = None, given: Iterable[str] = (), registry: Registry | None = None
) -> None:
    """Raise P320 for every pass that needs what neither the graph, nor `given`, nor an earlier pass provides.

    Args:
        pipeline: what would run.
        graph: the input; facts recorded on it hold, and other invariants are tested on it when they are needed.
        given: invariants known to hold at the beginning.
        registry: where to look for a pass that would help.
    """
    walk = _Needs(graph, set(given), registry)
    walk.items(pipeline.items, "")
    if walk.problems:
        raise LadingError.of(walk.problems)


class _Needs:
    def __init__(self, graph: Graph | None, given: set[str], registry: Registry | None) -> None:
        self.graph = graph
        self.holds = given | (set(graph.facts) if graph is not None else set())
        self.registry = registry
        self.broken_by: dict[str, str] = {}
        self.problems: list[Diagnostic] = []

    def items(self, items: Sequence[Pass | Repeat], prefix: str) -> None:
        for position, item in enumerate(items, start=1):
            path = f"{prefix}{position}"
            if isinstance(item, Repeat):
                # The second round starts from what the first one left.
                for round_ in range(1, min(item.max, 2) + 1):
                    self.items(item.body.items, f"{path}.{round_}.")
                continue
            for need in item.requires:
                if not self.met(need):
                    self.problems.append(self.problem(item, need, path))
                    self.holds.add(need)
            self.holds = (self.holds - set(item.breaks)) | set(item.establishes)
            self.broken_by.update(dict.fromkeys(item.breaks, f"{item.name} (step {path})"))

    def met(self, need: str) -> bool:
        if need in self.holds:
            return True
        if self.graph is None or need in self.broken_by or not holds_on(self.graph, need):
            return False
        self.holds.add(need)
        return True

    def problem(self, item: Pass, need: str, path: str) -> Diagnostic:
        givers = (self.registry or default_registry()).giving(need)
        help_ = f"; {' or '.join(givers)} gives it" if givers else ""
        if need in self.broken_by:
            message = f"{item.name} needs {need}, which {self.broken_by[need]} breaks{help_}"
        else:
            message = f"{item.name} needs {need}{help_}"
        hint = f"put {givers[0]} before {item.name}" if givers else ""
        return Diagnostic("P320", message, f"step {path} of the pipeline", hint)


def holds_on(graph: Graph, invariant: str) -> bool:
    """True when an invariant is recorded as a fact of the graph, or has a check that the graph passes."""
    from ir.verify.stages import INVARIANTS

    if invariant in graph.facts:
        return True
    check = INVARIANTS.get(invariant)
    return check is not None and not check(graph)


class PassManager:
    """Runs one pipeline on graphs.

    Args:
        pipeline: a `Pipeline`, or anything that ``passes.framework.load.load`` reads.
        instruments: who watches, in order.
        registry: where names are looked up.
    """

    def __init__(
        self,
        pipeline: Pipeline | str,
        instruments: Sequence[Instrument] = (),
        *,
        registry: Registry | None = None,
    ) -> None:
        self.registry = registry
        self.pipeline = load(pipeline, registry) if isinstance(pipeline, str) else pipeline
        self.instruments = tuple(instruments)

    def run(self, graph: Graph, ctx: PassContext | None = None, given: Iterable[str] = ()) -> Report:
        """Run every pass on the graph, which is edited in place.

        Args:
            graph: the graph.
            ctx: settings for passes.
            given: invariants known to hold, besides facts and what the graph itself shows.

        Raises:
            LadingError: unmet needs (P320) and unreadable files (P313) before any pass runs; what passes and
                instruments raise, with a note that names the step.
        """
        check_needs(self.pipeline, graph, given, self.registry)
        prepared = {one: one.prepare() for one in self.pipeline.passes()}
        run = _Run(graph, ctx or PassContext(), self.instruments, prepared, set(given), Report(str(self.pipeline)))
        start = perf_counter()
        store = run.ctx.store
        try:
            with using_store(store), store.holding():
                run.items(self.pipeline.items, "")
        except StopPipeline as stop:
            run.report.stopped = str(stop)
        run.report.seconds = perf_counter() - start
        for instrument in self.instruments:
            instrument.finished(graph, run.report)
        return run.report


@dataclass
class _Run:
    graph: Graph
    ctx: PassContext
    instruments: tuple[Instrument, ...]
    prepared: dict[Pass, Any]
    holds: set[str]
    report: Report
    idle_at: dict[Pass, int] = field(default_factory=dict)

    def items(self, items: Sequence[Pass | Repeat], prefix: str) -> None:
        for position, item in enumerate(items, start=1):
            path = f"{prefix}{position}"
            if isinstance(item, Repeat):
                self.repeat(item, path)
            elif not prefix or self.idle_at.get(item) != self.graph.version:
                self.step(item, path)

    def repeat(self, item: Repeat, path: str) -> None:
        if item.foreign and not self.graph.foreign:
            return
        for round_ in range(1, item.max + 1):
            version = self.graph.version
            with paused_collection():
                self.items(item.body.items, f"{path}.{round_}.")
            if self.graph.version == version or item.max == 1:
                return
        message = f"the graph still changed in round {item.max} of {item}"
        self.report.diagnostics.append(Diagnostic("P322", message, f"step {path}", severity="warning"))

    def step(self, one: Pass, path: str) -> None:
        """Run one pass between its instruments."""
        self.holds = (self.holds - set(one.breaks)) | set(one.establishes)
        step = Step(len(self.report.passes) + 1, path, one, frozenset(self.holds))
        try:
            for instrument in self.instruments:
                instrument.before(step, self.graph)
            report = self.execute(step)
            self.report.passes.append(report)
            for instrument in self.instruments:
                instrument.after(step, self.graph, report)
        except StopPipeline:
            raise
        except Exception as error:
            error.add_note(f"in {step} of the pipeline {self.report.pipeline}")
            for instrument in self.instruments:
                instrument.failed(step, self.graph, error)
            raise

    def execute(self, step: Step) -> PassReport:
        """Run the pass itself, measured by version and clock."""
        ctx, graph, one = self.ctx, self.graph, step.one
        ctx.running, ctx.prepared, ctx.rewrites, ctx.diagnostics = one.name, self.prepared[one], [], []
        report = PassReport(step.number, step.path, one.name, str(one))
        version, nodes = graph.version, len(graph.nodes)
        start = perf_counter()
        with paused_collection():
            counts = one.run(graph, ctx)
        report.seconds = perf_counter() - start
        report.counts = dict(counts or {})
        report.lasting = {name: count for name, count in report.counts.items() if name not in one.passing}
        report.changed = graph.version != version
        report.nodes = (nodes, len(graph.nodes))
        report.diagnostics = [*ctx.diagnostics, *ctx.store.take_warnings()]
        report.rules = _merged(ctx.rewrites)
        report.why_not = [item for done in ctx.rewrites for item in done.why_not]
        if not report.changed:
            self.idle_at[one] = version
        return report


def _merged(reports: Sequence[RewriteReport]) -> dict[str, RuleStat]:
    merged: dict[str, RuleStat] = {}
    for report in reports:
        for name, stat in report.stats.items():
            total = merged.setdefault(name, RuleStat())
            total.tries += stat.tries
            total.hits += stat.hits
            total.seconds += stat.seconds
    return merged


def run_passes(
    graph: Graph,
    pipeline: Pipeline | str,
    *settings: object,
    instruments: Sequence[Instrument] = (),
    given: Iterable[str] = (),
) -> Report:
    """Run a pipeline on a graph in one call: ``run_passes(graph, "fold,dce")``. Settings are those of `PassContext`."""
    return PassManager(pipeline, instruments).run(graph, PassContext(*settings), given)
