"""Instruments: what can be watched about a pipeline from outside. `passes.framework.check_numbers` has the numeric one.

==================  ===================================================================================
`Timing`            seconds by pass
`RuleStats`         tries, hits and seconds by rewrite rule
`VerifyEach`        the graph is well-formed and every claimed invariant holds after each pass
`DumpIR`            the graph as text after each pass
`KeepLastGood`      the last good graph and the command that reproduces a failure
`StopAfter`         end after n passes, to bisect
`KeepOriginal`      what the result is compared with
`Journal`           which steps touched a value
`JsonReport`        the report as a file
==================  ===================================================================================
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ir.base.diag import Diagnostic, LadingError
from ir.base.whole_files import write_whole
from ir.graph.copy import copied
from ir.graph.graph import Edit, Graph, Value
from passes.framework.manager import Instrument, PassReport, Report, Step, StopPipeline
from passes.rewrite.rules import RuleStat

COMMAND = "lading opt {file} --passes {passes}"
"""The command that reproduces a failure."""


class Timing(Instrument):
    """Adds up the seconds of each pass."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}

    def after(self, step: Step, graph: Graph, report: PassReport) -> None:
        """See `Instrument.after`."""
        self.seconds[report.name] = self.seconds.get(report.name, 0.0) + report.seconds
        self.calls[report.name] = self.calls.get(report.name, 0) + 1

    def rows(self) -> list[tuple[str, int, float]]:
        """Pass name, calls and seconds, the slowest first."""
        found = [(name, self.calls[name], seconds) for name, seconds in self.seconds.items()]
        return sorted(found, key=lambda row: -row[2])


class RuleStats(Instrument):
    """Adds up the statistics of each rewrite rule."""

    def __init__(self) -> None:
        self.stats: dict[tuple[str, str], RuleStat] = {}

    def after(self, step: Step, graph: Graph, report: PassReport) -> None:
        """See `Instrument.after`."""
        for name, stat in report.rules.items():
            total = self.stats.setdefault((report.name, name), RuleStat())
            total.tries += stat.tries
            total.hits += stat.hits
            total.seconds += stat.seconds

    def rows(self) -> list[tuple[str, str, int, int, float]]:
        """Pass, rule, tries, hits and seconds, the slowest first."""
        found = [(*key, stat.tries, stat.hits, stat.seconds) for key, stat in self.stats.items()]
        return sorted(found, key=lambda row: -row[4])


class VerifyEach(Instrument):
    """Verifies the graph before the first pass and after each, and what passes claim to establish."""

    def __init__(self) -> None:
        self._verified: int | None = None

    def before(self, step: Step, graph: Graph) -> None:
        """See `Instrument.before`."""
        if self._verified is not None:
            return
        problems = _errors(graph)
        if problems:
            raise LadingError.of(problems)
        self._verified = graph.version

    def after(self, step: Step, graph: Graph, report: PassReport) -> None:
        """See `Instrument.after`."""
        problems = _errors(graph) if graph.version != self._verified else []
        names = step.holds if report.changed else step.one.establishes
        for name in sorted(names):
            broken = _broken(graph, name)
            if broken:
                said = "does not establish" if name in step.one.establishes else "breaks"
                problems.append(Diagnostic("P360", f"{step.one.name} {said} {name}", str(step)))
                problems += [item for item in broken if item not in problems]
        if not problems:
            self._verified = graph.version
            return
        first = Diagnostic("P360", f"{step.one.name} left the graph malformed", str(step))
        raise LadingError.of(problems if problems[0].code == "P360" else [first, *problems])


def _errors(graph: Graph) -> list[Diagnostic]:
    from ir.verify.stages import verify

    return [item for item in verify(graph) if item.severity == "error"]


def _broken(graph: Graph, invariant: str) -> list[Diagnostic]:
    from ir.verify.stages import INVARIANTS

    check = INVARIANTS.get(invariant)
    if check is not None:
        return [item for item in check(graph) if item.severity == "error"]
    if invariant in graph.facts or invariant not in _fact_names():
        return []
    return [Diagnostic("P360", f"the fact {invariant} is not recorded", graph.name)]


def _fact_names() -> set[str]:
    from ir.graph.facts import FACTS

    return set(FACTS)


def write_graph(graph: Graph, path: Path, *, durable: bool = False) -> None:
    """Write a graph as text, its inline bytes to a file beside it, both at once; LadingError P364 when that is not
    possible. With `durable` wait until they are on the disk."""
    from ir.text.printer import save_graph

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_graph(graph, path, base=path.parent, durable=durable)
    except OSError as error:
        raise LadingError("P364", f"cannot write the graph: {error.strerror}", str(path)) from None


class DumpIR(Instrument):
    """Writes ``000-input.lading`` and, after each pass, ``NNN-name.lading`` into a folder.

    Args:
        folder: where to; made if need be.
        only_changed: leave out passes that changed nothing.
    """

    def __init__(self, folder: str | Path, only_changed: bool = True) -> None:
        self.folder = Path(folder)
        self.only_changed = only_changed

    def before(self, step: Step, graph: Graph) -> None:
        """See `Instrument.before`."""
        if step.number == 1:
            write_graph(graph, self.folder / "000-input.lading")

    def after(self, step: Step, graph: Graph, report: PassReport) -> None:
        """See `Instrument.after`."""
        if report.changed or not self.only_changed:
            write_graph(graph, self.folder / f"{step.number:03d}-{step.one.name}.lading")


class KeepLastGood(Instrument):
    """Keeps the graph before the running pass in a folder, for as long as it takes to succeed.

    After a failure ``last-good.lading`` remains, also when the process died, and the error says how to reproduce it.

    Args:
        folder: where to; made if need be.
        command: with ``{file}`` and ``{passes}`` to be filled in.
    """

    def __init__(self, folder: str | Path, command: str = COMMAND) -> None:
        self.path = Path(folder) / "last-good.lading"
        self.command = command
        self._kept: int | None = None

    def before(self, step: Step, graph: Graph) -> None:
        """See `Instrument.before`."""
        if graph.version != self._kept:
            write_graph(graph, self.path)
            self._kept = graph.version

    def failed(self, step: Step, graph: Graph, error: Exception) -> None:
        """See `Instrument.failed`."""
        if self._kept is None:
            return
        command = self.command.format(file=shlex.quote(str(self.path)), passes=shlex.quote(str(step.one)))
        error.add_note(f"the graph before it is {self.path}; reproduce with: {command}")

    def finished(self, graph: Graph, report: Report) -> None:
        """See `Instrument.finished`."""
        for path in (self.path, self.path.with_suffix(".bin")):
            path.unlink(missing_ok=True)


class StopAfter(Instrument):
    """Ends the pipeline after its n-th pass, repeated ones counted each time."""

    def __init__(self, count: int) -> None:
        self.count = count

    def after(self, step: Step, graph: Graph, report: PassReport) -> None:
        """See `Instrument.after`."""
        if step.number >= self.count:
            raise StopPipeline(f"stopped after pass {step.number}, {step.one.name}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One edit of a value: the step, its pass and the kind of edit (a method name of `Graph`)."""

    number: int
    one: str
    kind: str


class KeepOriginal(Instrument):
    """Keeps the model that the result is compared with: as it was read, or, of a graph that somebody else made, as it is
    once the inputs that a runtime feeds are found. Nothing before that rounds anything.

    Attributes:
        graph: the kept model.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = copied(graph)

    def after(self, step: Step, graph: Graph, report: PassReport) -> None:
        """See `Instrument.after`."""
        if graph.foreign and "signature" in step.one.establishes:
            self.graph = copied(graph)


class Journal(Instrument):
    """Remembers which steps edited a value or the node that makes it, under every name it ever had."""

    def __init__(self) -> None:
        self._entries: dict[Value, list[Entry]] = {}
        self._named: dict[str, dict[Value, None]] = {}
        self._stop: Callable[[], None] | None = None
        self._step: Step | None = None

    def before(self, step: Step, graph: Graph) -> None:
        """See `Instrument.before`."""
        self._step = step
        if self._stop is None:
            self._stop = graph.listen(self._note)

    def finished(self, graph: Graph, report: Report) -> None:
        """See `Instrument.finished`."""
        self._close()

    def failed(self, step: Step, graph: Graph, error: Exception) -> None:
        """See `Instrument.failed`."""
        self._close()

    def _close(self) -> None:
        if self._stop is not None:
            self._stop()
            self._stop = None

    def _note(self, edit: Edit) -> None:
        values: tuple[Value, ...] = edit.node.outputs if edit.node is not None else ()
        if edit.value is not None and edit.kind != "set_input":
            values = (*values, edit.value)
        step = self._step
        if step is None:
            return
        for value in dict.fromkeys(values):
            entry = Entry(step.number, str(step.one), edit.kind)
            entries = self._entries.setdefault(value, [])
            if not entries or entries[-1] != entry:
                entries.append(entry)
            self._named.setdefault(value.name, {})[value] = None

    def of(self, name: str) -> list[Entry]:
        """What happened to the values of a name, in order."""
        found = [entry for value in self._named.get(name, ()) for entry in self._entries[value]]
        return sorted(found, key=lambda entry: entry.number)


class JsonReport(Instrument):
    """Writes the report as JSON.

    Args:
        path: the file; LadingError P364 when it cannot be written.
        extra: further entries of the outermost object.
    """

    def __init__(self, path: str | Path, **extra: Any) -> None:
        self.path = Path(path)
        self.extra = extra

    def finished(self, graph: Graph, report: Report) -> None:
        """See `Instrument.finished`."""
        text = json.dumps({**self.extra, **report.as_dict()}, indent=2) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with write_whole(self.path) as part:
                part.write_text(text, encoding="utf-8")
        except OSError as error:
            raise LadingError("P364", f"cannot write the report: {error.strerror}", str(self.path)) from None
