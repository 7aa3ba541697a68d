"""How the doctor's report is told to people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from backends.mnn.doctor.causes import CAUSES
from backends.mnn.doctor.graph import REPAIR
from backends.mnn.target.releases import VERSIONS

if TYPE_CHECKING:
    from rich.console import Console

    from backends.mnn.doctor.findings import Finding, Report
    from backends.mnn.doctor.remedy import Remedy


def span(versions: Sequence[str]) -> str:
    """Versions in few words: runs of releases as ``3.4.0 to 3.6.0``."""
    runs: list[list[str]] = []
    for version in versions:
        if runs and VERSIONS.index(runs[-1][-1]) + 1 == VERSIONS.index(version):
            runs[-1].append(version)
        else:
            runs.append([version])
    parts = [run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]


def sentence(report: Report, found: Remedy | None) -> str:
    """What is wrong, on which releases, and whether it can be mended."""
    healthy = [release.version for release in report.releases if report.healthy_on(release.version)]
    broken = [release.version for release in report.releases if release.version not in healthy]
    if not broken:
        graph = "" if report.kind == "directory" else "; only the graph was looked at, give the folder for the rest"
        return f"{report.subject} is healthy on MNN {span(healthy)}{graph}."
    causes = list(dict.fromkeys(CAUSES.get(item.code, item.message) for item in _worst_first(report)))
    more = f", and {len(causes) - 1} more" if len(causes) > 1 else ""
    verdict = (
        f"is healthy on MNN {span(healthy)}, broken on {span(broken)}"
        if healthy
        else f"is broken on MNN {span(broken)}"
    )
    return f"{report.subject} {verdict}: {causes[0]}{more}.{_mending(report, found, broken)}"


def _worst_first(report: Report) -> list[Finding]:
    """What nobody can mend, then what concerns most releases."""
    errors = [item for item in report.findings if item.severity == "error"]
    rank = {code: place for place, code in enumerate(_DEEPEST)}
    return sorted(errors, key=lambda item: (item.mended, rank.get(item.code, len(rank)), -len(item.releases)))


_DEEPEST = ("B783", "B780", "B723", "B711", "B710", "B730", "B781", "B782")
"""What may be why other things are wrong too: files that are not there, or not what they should be."""


def _mending(report: Report, found: Remedy | None, broken: Sequence[str]) -> str:
    if found is None:
        return " The command repair takes the whole folder of a model." if report.kind == "mnn" else ""
    if not found.command:
        return f" It cannot be mended: {found.reason}."
    left = [version for version in broken if version not in found.releases]
    return f" This mends it for {span(found.releases)}:" if left else " This mends it:"


def show(console: Console, report: Report, found: Remedy | None) -> None:
    """Print a report for people."""
    import click
    from rich.table import Table
    from rich.text import Text

    click.echo(sentence(report, found))
    if found is not None and found.command:
        click.echo(f"\n  {found.command}\n")
    if needs := _needs(report):
        console.print(Text(needs, "dim"))
    table = Table(box=None, pad_edge=False, show_edge=False)
    for head in ("MNN", "verdict", "because of", *(["run"] if report.runs else [])):
        table.add_column(head)
    for release in report.releases:
        codes = ", ".join(dict.fromkeys(item.code for item in report.problems(release.version)))
        verdict = Text("healthy", "green") if not codes else Text("broken", "red")
        cells = [release.version, verdict, codes]
        table.add_row(*cells, *([report.runs.get(release.version, "")] if report.runs else []))
    console.print(table)
    mending = found is not None and bool(found.command)
    by_fix: dict[str, list[Finding]] = {}
    for item in report.findings:
        told = item.fix == REPAIR or (mending and item.mended)
        by_fix.setdefault("" if told else item.fix, []).append(item)
    for fix, findings in by_fix.items():
        for item in findings:
            _show_finding(console, item)
        if fix:
            console.print(Text(f"  fix: {fix}"))


def _show_finding(console: Console, item: Finding) -> None:
    from rich.text import Text

    style = "red" if item.severity == "error" else "yellow"
    console.print()
    console.print(Text.assemble((f"{item.code} ", style), (f"on {span(item.releases)}  ", "dim"), item.message))
    if item.where:
        console.print(Text(f"  at {item.where}", "dim"))


def _needs(report: Report) -> str:
    needs = report.needs
    if not needs:
        return ""
    parts = [f"inputs {', '.join(needs['inputs'])}"]
    if needs.get("layers"):
        parts.append(f"{needs['layers']} attention layers")
    if needs.get("bits"):
        parts.append(f"{'/'.join(map(str, needs['bits']))} bits in blocks of {'/'.join(map(str, needs['blocks']))}")
    if needs.get("made_by"):
        parts.append(f"converted by MNN {needs['made_by']}")
    return "; ".join(parts)
