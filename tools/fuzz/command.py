"""``python -m tools.fuzz``: search for inputs that break the compiler, for as long as asked."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from ir.base.diag import LadingError, suggest
from tools.fuzz.finding import Finding
from tools.fuzz.search import Search
from tools.fuzz.target import Target
from tools.fuzz.worker import load_targets
from tools.shared.cli import EXIT_FAILED, JSON_OPTION, QUIET_OPTION, Number, Screen, command

MINUTES = 1.0


@command("fuzz")
@click.option("--minutes", type=Number(min=0, min_open=True), metavar="N",
              help=f"How long to search; default {MINUTES:g}, or until --count is reached.")  # fmt: skip
@click.option("--count", "cases", type=click.IntRange(1), metavar="N", help="Cases of each target.")
@click.option("--seed", type=click.IntRange(0), metavar="S",
              help="Seed of each target's first case; the next has S + 1, and so on. Default: a fresh one.")  # fmt: skip
@click.option("--only", metavar="NAME,...", help="Targets to search; default all.")
@click.option("--list", "listing", is_flag=True, help="List the targets and stop.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("fuzz-findings"),
              show_default=True, metavar="DIR", help="Folder for what is found, made when there is something.")  # fmt: skip
@click.option("--load", "modules", multiple=True, metavar="MODULE",
              help="Also search the targets of a Python module with a table TARGETS.")  # fmt: skip
@click.option("--in-process", is_flag=True,
              help="Run cases in this process, for a debugger; one that dies or hangs takes the command with it.")  # fmt: skip
@JSON_OPTION
@QUIET_OPTION
def main(minutes, cases, seed, only, listing, out, modules, in_process, as_json, quiet) -> int:
    """Search for inputs that break the compiler.

    Random graphs must keep what holds for all graphs, and damaged files must be refused with a coded message. Whatever
    else happens is a finding: another exception, a process that dies or hangs, a broken law, a half-written folder.
    Each finding is written to a file with its traceback, its input and the command that shows it again. Cases run in
    child processes with limits of time and memory. When stopped from the keyboard, the command reports as well.

    The exit code is 0 when nothing was found and 1 when something was.
    """
    known = {target.name: (target, module) for module in ("", *modules) for target in load_targets(module).values()}
    chosen = _chosen(known, only)
    screen = Screen(as_json, quiet)
    if listing:
        screen.data({name: target.about for name, (target, _) in chosen.items()}, _listed(chosen))
        return 0
    start = seed if seed is not None else secrets.randbelow(1 << 32)
    written: list[Path] = []

    def notify(finding: Finding) -> None:
        written.append(finding.write(out))
        if not as_json:
            click.echo(f"{finding.target}: {finding.kind}: {finding.summary}\n  {finding.command}", err=True)

    search = Search(chosen, start, not in_process, notify)
    with suppress(KeyboardInterrupt):
        search.run((minutes or MINUTES) * 60 if minutes or cases is None else None, cases)
    if as_json:
        screen.data(_data(search, start, written), "")
    elif not quiet:
        click.echo("\n".join(_report(search, start, out)))
    return EXIT_FAILED if search.findings else 0


def _chosen(known: dict[str, tuple[Target, str]], only: str | None) -> dict[str, tuple[Target, str]]:
    if only is None:
        return known
    names = [name.strip() for name in only.split(",") if name.strip()]
    for name in names:
        if name not in known:
            hint = suggest(name, list(known)) or f"there are {', '.join(known)}"
            raise LadingError("U940", f"there is no target {name!r}", hint=hint)
    if not names:
        raise LadingError("U940", "no target is named", hint=f"there are {', '.join(known)}")
    return {name: known[name] for name in names}


def _listed(chosen: dict[str, tuple[Target, str]]) -> str:
    width = max(map(len, chosen))
    return "\n".join(f"{name.ljust(width)}  {target.about}" for name, (target, _) in chosen.items())


def _data(search: Search, seed: int, written: Sequence[Path]) -> dict[str, Any]:
    findings = [
        {**item.as_dict(), "file": str(path)} for item, path in zip(search.findings.values(), written, strict=True)
    ]
    return {
        "seed": seed,
        "targets": {name: vars(tally) for name, tally in search.tallies.items()},
        "findings": findings,
    }


def _report(search: Search, seed: int, out: Path) -> list[str]:
    rows = [("target", "cases", "refused", "faults", "per second")]
    for name, tally in search.tallies.items():
        speed = f"{tally.cases / tally.seconds:.1f}" if tally.seconds else "-"
        rows.append((name, str(tally.cases), str(tally.refused), str(tally.faults), speed))
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    count = len(search.findings)
    what = f"{count} {'finding' if count == 1 else 'findings'} in {out}" if count else "nothing found"
    return [*lines, "", f"seed {seed}: {what}"]
