"""``python -m tools.opt``: run any pipeline on any graph, and find out what each pass did to it."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ir.base.diag import LadingError
from tools.shared.cli import command

if TYPE_CHECKING:
    from ir.graph.graph import Graph
    from passes.framework.instruments import RuleStats, Timing
    from passes.framework.manager import Report

EXIT_CRASHED = 3
"""A pass raised an ordinary exception, which is a mistake in the pass; its traceback is printed."""

MOST_REASONS = 4
"""Reasons printed for each rule that did not fire."""


@command("opt")
@click.argument("source", metavar="INPUT")
@click.option("--passes", "pipeline", required=True, metavar="PIPELINE",
              help="Name or text of a pipeline, or path of a TOML file.")  # fmt: skip
@click.option("-o", "--out", default="-", metavar="FILE", help="Where to write; default standard output, as text.")
@click.option("--from", "frontend", metavar="NAME", help="Frontend that reads INPUT; default by suffix.")
@click.option("--to", "backend", metavar="NAME", help="Backend that writes the result; default by suffix.")
@click.option("--verify-each", is_flag=True, help="Check the IR after each pass.")
@click.option("--check-numbers", is_flag=True, help="Evaluate the IR after each pass and name the first that drifts.")
@click.option("--timing", is_flag=True, help="Print the time of each pass.")
@click.option("--stats", is_flag=True, help="Print what each pass and each rewrite rule did.")
@click.option("--explain-rules", is_flag=True, help="Print why rules did not fire.")
@click.option("--dump-ir", type=click.Path(path_type=Path), metavar="DIR",
              help="Write the IR before the first and after each pass.")  # fmt: skip
@click.option("--stop-after", type=click.IntRange(1), metavar="N", help="End after N passes, to bisect.")
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE", help="Write what was done as JSON.")
@click.option("--keep/--no-keep", default=True, show_default=True,
              help="Keep the last good IR on disk while a pass runs.")  # fmt: skip
def main(source, pipeline, out, frontend, backend, stats, timing, explain_rules, **options) -> int:
    """Run a pipeline on INPUT and write the result.

    INPUT is a text form (.lading, or - for standard input), an .onnx file, a checkpoint folder or hub name, or whatever
    a plugin reads. When a pass fails, the last good IR stays on disk, and the command that reproduces the failure from
    it is printed. A pass that raises an ordinary exception gives exit code 3 and its traceback.
    """
    from ir.facts.free_tensors import free_notes
    from passes.framework.context import PassContext
    from passes.framework.instruments import RuleStats, Timing
    from passes.framework.load import load
    from passes.framework.manager import PassManager
    from tools.shared.formats import Formats

    formats = Formats()
    chosen = load(pipeline, formats.registry)
    formats.backend(backend or formats.backend_for(out))
    graph = formats.read(source, frontend)
    for item in free_notes(graph):
        click.echo(str(item), err=True)
    times, rules = Timing(), RuleStats()
    folder = options["dump_ir"] or Path(tempfile.gettempdir()) / f"lading-opt-{_stem(source)}"
    instruments = [times, rules, *_instruments(folder, options)]
    manager = PassManager(chosen, instruments, registry=formats.registry)
    try:
        report = manager.run(graph, PassContext(explain=explain_rules))
    except LadingError:
        raise
    except Exception:
        click.echo(traceback.format_exc().rstrip(), err=True)
        return EXIT_CRASHED
    if options["keep"] and options["dump_ir"] is None:
        with suppress(OSError):
            folder.rmdir()
    _check(graph)
    formats.write(graph, out, backend)
    for item in report.all_diagnostics():
        click.echo(str(item), err=True)
    parts = [_times(times, report)] * timing + [_stats(report, rules)] * stats + [_why(report)] * explain_rules
    if parts:
        click.echo("\n\n".join(parts), err=True)
    return 0


def _instruments(folder: Path, options) -> list:
    from passes.framework.check_numbers import CheckNumbers
    from passes.framework.instruments import DumpIR, JsonReport, KeepLastGood, StopAfter, VerifyEach

    found: list = []
    if options["dump_ir"] is not None:
        found.append(DumpIR(options["dump_ir"], only_changed=False))
    if options["keep"]:
        found.append(KeepLastGood(folder, reproducing(options["verify_each"], options["check_numbers"])))
    if options["verify_each"]:
        found.append(VerifyEach())
    if options["check_numbers"]:
        found.append(CheckNumbers(memory_limit=256 << 20))
    if options["report"] is not None:
        found.append(JsonReport(options["report"]))
    if options["stop_after"] is not None:
        found.append(StopAfter(options["stop_after"]))
    return found


def _stem(source: str) -> str:
    name = "stdin" if source == "-" else Path(os.path.expanduser(source)).resolve().stem
    return f"{name}-{os.getpid()}"


def reproducing(verify_each: bool, check_numbers: bool) -> str:
    """The command line, for `KeepLastGood`, that fails as this one did."""
    from passes.framework.instruments import COMMAND

    words = ["lading"] if Path(sys.argv[0]).name == "lading" else [shlex.quote(sys.executable), "-m", "lading"]
    flags = [" --verify-each"] * verify_each + [" --check-numbers"] * check_numbers
    return " ".join(words) + COMMAND.removeprefix("lading") + "".join(flags)


def _check(graph: Graph) -> None:
    from ir.verify.stages import verify

    problems = [item for item in verify(graph) if item.severity == "error"]
    if problems:
        raise LadingError.of(problems)


# ---- what was done ----


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, numbers to the right; the first column to the left."""
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    lines = []
    for first, *rest in (head, *rows):
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _times(times: Timing, report: Report) -> str:
    rows = [(name, str(calls), f"{seconds:.4f}") for name, calls, seconds in times.rows()]
    rows.append(("whole pipeline", str(len(report.passes)), f"{report.seconds:.4f}"))
    return _table(("pass", "runs", "seconds"), rows)


def _stats(report: Report, rules: RuleStats) -> str:
    steps = []
    for item in report.passes:
        before, after = item.nodes
        counts = ", ".join(f"{name} {count}" for name, count in item.counts.items()) or "-"
        steps.append((f"{item.path} {item.text}", f"{before} -> {after}", counts))
    parts = [_table(("step", "nodes", "counts"), steps)]
    rows = [
        (f"{one}: {rule}", str(tries), str(hits), f"{seconds:.4f}")
        for one, rule, tries, hits, seconds in rules.rows()
        if tries
    ]
    if rows:
        parts.append(_table(("rule", "tries", "hits", "seconds"), rows))
    if report.stopped:
        parts.append(report.stopped)
    return "\n\n".join(parts)


def _why(report: Report) -> str:
    found: dict[tuple[str, str], list[str]] = {}
    for item in report.passes:
        for why in item.why_not:
            found.setdefault((item.name, why.rule), []).append(f"{why.node}: {why.reason}")
    lines = []
    for (one, rule), reasons in found.items():
        lines.append(f"{one}: {rule} left {len(reasons)} {'node' if len(reasons) == 1 else 'nodes'}")
        distinct = list(dict.fromkeys(reasons))
        lines += [f"    {text}" for text in distinct[:MOST_REASONS]]
        if len(distinct) > MOST_REASONS:
            lines.append(f"    and {len(distinct) - MOST_REASONS} more")
    return "\n".join(lines) or "no rule was tried in vain"


if __name__ == "__main__":
    main()
