"""What a compilation is shown as: tables for people, one JSON object for programs."""

from __future__ import annotations

from dataclasses import asdict
from math import prod
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from backends.verdict import NO_CHECKPOINT, ONLY_FULL
from tools.shared.cli import megabytes
from tools.shared.stored import bits_per_weight, grouped
from tools.shared.tables import Column, show_table

if TYPE_CHECKING:
    from backends.backend import Figures, Rejected
    from backends.contract import Contract
    from backends.verdict import Verdict
    from passes.framework.manager import Report
    from tools.compile.job import Result

FOREIGN = ("lift-decoder", "newest-opset")
"""Pipelines that run on graphs of others alone."""

NAMED = ("mnn-module",)
"""Pipelines that are told by their name."""

COLOURS = {"passed": "bold green", "passed with warnings": "bold yellow", "not verified": "bold yellow"}
"""Colour of each outcome."""


def result_data(result: Result) -> dict[str, Any]:
    """The result as JSON-able data."""
    return {
        "out": str(result.out),
        "pipeline": result.report.pipeline,
        "bytes": sum(item.bytes for item in result.contract.files),
        "bits_per_weight": bits_per_weight(result.contract.weights),
        "seconds": {key: round(value, 3) for key, value in result.seconds.items()},
        "passes": [item.as_dict() for item in result.report.passes],
        "plan": asdict(plan) if (plan := _outcome(result)) is not None else None,
        "verified": [item.to_json() for item in result.contract.verified],
        "sample": {"prompt": result.sample[0], "continuation": result.sample[1]} if result.sample else None,
        "warnings": [item.as_dict() for item in result.warnings],
        "verdict": asdict(result.verdict) if result.verdict is not None else None,
    }


def rejected_data(error: Rejected, command: str) -> dict[str, Any]:
    """What was measured of a result that was refused, and the command to try, as JSON-able data."""
    figures = error.figures
    names = () if figures is None else figures.columns
    return {
        "measurements": [dict(zip(names, row, strict=True)) for row in (figures.rows if figures else ())],
        "worst_weights": [{"name": name, "storage": how, "error": off} for name, how, off in error.worst],
        "try": command or None,
    }


def show_rejected(console: Console, error: Rejected) -> None:
    """Print what was measured, and the worst weights."""
    if error.figures is not None:
        console.print(Text(error.figures.title, style="italic"))
        _show_measurements(console, error.figures)
    if error.worst:
        columns = [Column("weights farthest off", right=False), Column("stored as", right=False), Column("error")]
        show_table(console, columns, [(name, how, f"{off:.1%}") for name, how, off in error.worst])


def show_verdict(console: Console, verdict: Verdict) -> None:
    """Print the line that a compilation ends with."""
    console.print(Text(verdict.text, style=COLOURS[verdict.outcome]))


def _outcome(result: Result) -> Any:
    """What was measured of the precision plan; None where there is none or it was not measured."""
    plan = result.facts.get("precision-plan")
    return plan.outcome if plan is not None else None


def show_result(console: Console, result: Result, *, timing: bool = False) -> None:
    """Print the summary."""
    console.print(_summary(result))
    if result.figures is not None:
        console.print(Text(f"\n{result.figures.title}", style="italic"))
        _show_measurements(console, result.figures)
    if timing:
        console.print(_timing(result))
    if result.sample is not None:
        prompt, continuation = result.sample
        text = Text.assemble((prompt, "dim"), continuation)
        console.print(
            Panel(text, title=f"{result.runtime} continues the first prompt", title_align="left", border_style="dim")
        )
    for item in result.warnings:
        console.print(Text(str(item), style="yellow"))
    if result.verdict is not None:
        show_verdict(console, result.verdict)
    console.print(Text.assemble("written to ", (str(result.out), "bold")))


def _summary(result: Result) -> Group:
    contract = result.contract
    title = Text.assemble((contract.model.name, "bold"), f" for {result.runtime} {_span(contract.target.releases)}")
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column("", style="cyan")
    table.add_column("", overflow="fold")
    table.add_row("model", _model(result))
    for adapter in contract.model.adapters:
        times = "" if adapter.weight == 1 else f" times {adapter.weight:g}"
        table.add_row("adapter", Text(f"{adapter.name}{times}, rank {adapter.rank}, in {adapter.tensors} tensors"))
    table.add_row("passes", Text(_passes(result.report).replace(",", ", ")))
    if contract.weights:
        table.add_row("stored as", "\n".join(map(str, grouped(contract.weights))))
    plan = _outcome(result)
    if plan is not None:
        found = f"{plan.measured:.2g} on {plan.positions:,} held-out tokens, " if plan.measured is not None else ""
        kept = f"{plan.limit}: KL {found}{plan.predicted:.2g} predicted"
        if plan.device:
            kept += f"; {plan.speed:.2f} of the fastest uniform speed on {plan.device}"
        table.add_row("measured", Text(kept))
    table.add_row("size", size_text(contract))
    inputs = [f"{item.name} {item.dtype}{item.shapes[0]}" for item in contract.signature.inputs]
    table.add_row("inputs", Text("\n".join(inputs)))
    for word, text in result.lines:
        table.add_row(word, Text(text))
    if result.verdict is not None and result.verdict.original_note not in ("", ONLY_FULL, NO_CHECKPOINT):
        table.add_row("original", _original(result.verdict))
    table.add_row("time", _time(result))
    return Group(title, table)


def _passes(report: Report) -> str:
    """The pipeline; what runs on graphs of others alone by its name, where it ran, and else only what had work to do."""
    from passes.framework.load import load
    from passes.framework.pipeline import Repeat
    from passes.framework.registry import default_registry

    text = report.pipeline
    for name in NAMED:
        if name in default_registry().pipelines:
            text = text.replace(str(load(name)), name)
    ran = any("." in item.path for item in report.passes)
    busy = {item.text for item in report.passes if item.changed}
    for name in FOREIGN:
        pipeline = load(name)
        useful = [str(one) for one in pipeline.items if not isinstance(one, Repeat) and str(one) in busy]
        text = text.replace(f"{pipeline},", "".join(f"{one}," for one in ([name] if ran else useful)))
    return text


def _original(verdict: Verdict) -> str:
    if verdict.original:
        return f"logits of {verdict.original}, {verdict.original_note}"
    return f"not compared with the original implementation: {verdict.original_note}"


def _model(result: Result) -> str:
    model = result.contract.model
    known = [model.family or "", f"{model.layers} layers" if model.layers else ""]
    known.append(f"{model.parameters:,} weights" if model.parameters else "")
    return ", ".join(filter(None, known)) or model.name


def _time(result: Result) -> str:
    steps = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result.seconds.items() if name != "total")
    weights = sum(prod(item.shape) for item in result.contract.weights)
    seconds = result.seconds.get("write", 0.0)
    rate = f"; {weights / seconds / 1e6:,.0f} M weights/s written" if weights and seconds else ""
    return f"{result.seconds['total']:.2f} s ({steps}){rate}"


def size_text(contract: Contract) -> str:
    """What the folder takes, what the weight file in it, and bits per weight."""
    parts = [f"folder {megabytes(sum(item.bytes for item in contract.files))}"]
    weights = sum(item.bytes for item in contract.files if item.role == "weights")
    if weights:
        parts.append(f"weight file {megabytes(weights)}")
    bits = bits_per_weight(contract.weights)
    return ", ".join([*parts, *([f"{bits:.2f} bits per weight"] if bits is not None else [])])


def _show_measurements(console: Console, figures: Figures) -> None:
    columns = [Column(name, right=name not in figures.left) for name in figures.columns]
    show_table(console, columns, figures.rows, keys=len(figures.left))


def _timing(result: Result) -> Table:
    table = Table(title="\npasses", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("pass", "seconds", "nodes", "counts"):
        table.add_column(name, justify="right" if name in ("seconds", "nodes") else "left", overflow="fold")
    for item in result.report.passes:
        counts = ", ".join(f"{key} {value}" for key, value in item.counts.items() if value)
        table.add_row(item.text, f"{item.seconds:.4f}", f"{item.nodes[0]} -> {item.nodes[1]}", counts)
    return table


def _span(releases) -> str:
    return releases[0] if len(releases) == 1 else f"{releases[0]} to {releases[-1]}"
