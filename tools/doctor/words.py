"""How the doctor's report is told to people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from backends.mnn.doctor.causes import CAUSES
from backends.mnn.doctor.graph import REPAIR
from backends.mnn.doctor.onnx.examine import COMPILE
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
    if report.kind == "onnx":
        return _of_onnx(report, found)
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


def _of_onnx(report: Report, found: Remedy | None) -> str:
    """What an ONNX file is, what stands between it and MNN, and whether it can be compiled."""
    lost = list(report.needs["lost"])
    what = "a language model in ONNX" if report.needs["language_model"] else "an ONNX model"
    reads = ""
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        reads = f" that reads {lost[0]!r}{more}, which nothing makes"
    line = f"{report.subject} is {what}{reads}."
    if found is None or not found.command:
        return f"{line} It cannot be compiled for MNN: {found.reason if found is not None else ''}."
    return f"{line} MNN loads no ONNX; this compiles it for MNN {span(found.releases)}:"


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
    onnx = report.kind == "onnx"
    heads = ("MNN", "converted as it is" if onnx else "verdict", "because of", *(["run"] if report.runs else []))
    for head in heads:
        table.add_column(head)
    for versions, (verdict, codes, ran) in _rows(report):
        style = "green" if verdict == "healthy" else "red" if codes else ""
        table.add_row(versions, Text(verdict, style), codes, *([ran] if report.runs else []))
    console.print(table)
    mending = found is not None and bool(found.command)
    by_fix: dict[str, list[Finding]] = {}
    for item in report.findings:
        if item.code == "B732":
            continue
        told = item.fix in (REPAIR, COMPILE) or (mending and item.mended)
        by_fix.setdefault("" if told else item.fix, []).append(item)
    for fix, findings in by_fix.items():
        for item in findings:
            _show_finding(console, item, report.subject)
        if fix:
            console.print(Text(f"  fix: {fix}"))


def _rows(report: Report) -> list[tuple[str, tuple[str, str, str]]]:
    """Releases with their verdict, the codes of what is wrong, and what happened; of an ONNX file equal rows are one."""
    rows: list[tuple[list[str], tuple[str, str, str]]] = []
    for release in report.releases:
        version, onnx = release.version, report.kind == "onnx"
        codes = dict.fromkeys(item.code for item in report.problems(version) if not (onnx and item.code == "B732"))
        verdict = report.needs["converted_as_it_is"][version] if onnx else "broken" if codes else "healthy"
        row = (verdict, ", ".join(codes), report.runs.get(version, ""))
        if onnx and rows and rows[-1][1] == row:
            rows[-1][0].append(version)
        else:
            rows.append(([version], row))
    return [(span(versions), row) for versions, row in rows]


def _show_finding(console: Console, item: Finding, subject: str) -> None:
    from rich.text import Text

    style = "red" if item.severity == "error" else "yellow"
    console.print()
    console.print(Text.assemble((f"{item.code} ", style), (f"on {span(item.releases)}  ", "dim"), item.message))
    if item.where and item.where != subject:
        console.print(Text(f"  at {item.where}", "dim"))


def _needs(report: Report) -> str:
    needs = report.needs
    if not needs:
        return ""
    if report.kind == "onnx":
        return _signature(needs)
    parts = [f"inputs {', '.join(needs['inputs'])}"]
    if needs.get("layers"):
        parts.append(f"{needs['layers']} attention layers")
    if needs.get("bits"):
        parts.append(f"{'/'.join(map(str, needs['bits']))} bits in blocks of {'/'.join(map(str, needs['blocks']))}")
    if needs.get("made_by"):
        parts.append(f"converted by MNN {needs['made_by']}")
    return "; ".join(parts)


def _signature(needs: Mapping[str, Any]) -> str:
    """Inputs and outputs of an ONNX file in one paragraph."""
    ports = needs["raised"]["inputs"] if needs["raised"] is not None else ()
    roles = {item["name"]: f" ({item['kind'].replace('-', ' ')})" for item in ports}
    inputs = [f"{name} {type_}{roles.get(name, '')}" for name, type_ in needs["inputs"].items()]
    opsets = ", ".join(f"{domain} {version}" for domain, version in needs["opsets"].items())
    return f"{needs['nodes']:,} nodes, {opsets}; {_some(inputs)} -> {_some(needs['outputs'])}"


def _some(names: Sequence[str]) -> str:
    """The first few of some names."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
