"""What a compilation is shown as: tables for people, one JSON object for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tools.shared.cli import megabytes

if TYPE_CHECKING:
    from backends.mnn.verify.logits import Measurement
    from tools.compile.job import Result


def result_data(result: Result) -> dict[str, Any]:
    """The result as JSON-able data."""
    return {
        "out": str(result.out),
        "pipeline": result.report.pipeline,
        "bytes": sum(item.bytes for item in result.contract.files),
        "bits_per_weight": bits_per_weight(result),
        "seconds": {key: round(value, 3) for key, value in result.seconds.items()},
        "passes": [item.as_dict() for item in result.report.passes],
        "plan": asdict(plan) if (plan := result.facts["precision-plan"].outcome) is not None else None,
        "verified": [item.to_json() for item in result.contract.verified],
        "sample": {"prompt": result.sample[0], "continuation": result.sample[1]} if result.sample else None,
        "warnings": [item.as_dict() for item in result.warnings],
    }


def bits_per_weight(result: Result) -> float:
    """Stored bits of all matrices, scales and zeros included, per weight; matrices stored once count once."""
    own = [item for item in result.contract.weights if item.shared_with is None]
    weights = sum(item.shape[0] * item.shape[1] for item in own)
    return 8 * sum(item.bytes for item in own) / weights


def show_result(console: Console, result: Result, *, timing: bool = False) -> None:
    """Print the summary."""
    console.print(_summary(result))
    if result.verification is not None:
        console.print(_measurements(result))
    if timing:
        console.print(_timing(result))
    if result.sample is not None:
        prompt, continuation = result.sample
        text = Text.assemble((prompt, "dim"), continuation)
        console.print(Panel(text, title="MNN continues the first prompt", title_align="left", border_style="dim"))
    for item in result.warnings:
        console.print(Text(str(item), style="yellow"))
    console.print(Text.assemble("written to ", (str(result.out), "bold")))


def _summary(result: Result) -> Group:
    contract, layout = result.contract, result.emission.layout
    title = Text.assemble((contract.model.name, "bold"), f" for MNN {_span(contract.target.releases)}")
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column("", style="cyan")
    table.add_column("", overflow="fold")
    size = sum(item.bytes for item in contract.files)
    model = contract.model
    table.add_row("model", f"{model.family}, {model.layers} layers, {model.parameters:,} weights")
    table.add_row("passes", Text(result.report.pipeline.replace(",", ", ")))
    table.add_row("stored as", _storages(result))
    plan = result.facts["precision-plan"].outcome
    if plan is not None:
        kept = f"{plan.limit}: KL {plan.measured:.2g} on {plan.positions:,} held-out tokens, {plan.predicted:.2g} predicted"
        table.add_row("measured", Text(kept))
    table.add_row("size", f"{megabytes(size)}, {bits_per_weight(result):.2f} bits per weight")
    inputs = [f"{item.name} {item.dtype}{item.shapes[0]}" for item in contract.signature.inputs]
    table.add_row("inputs", Text("\n".join(inputs)))
    table.add_row("tokenizer", _tokenizer(result))
    rate = sum(m.weight.rows * m.weight.columns for m in layout.matrices.values()) / max(result.seconds["write"], 1e-9)
    steps = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result.seconds.items() if name != "total")
    table.add_row("time", f"{result.seconds['total']:.2f} s ({steps}); {rate / 1e6:,.0f} M weights/s written")
    return Group(title, table)


def _storages(result: Result) -> str:
    kinds: dict[str, int] = {}
    for item in result.contract.weights:
        storage = item.storage
        block = f" in blocks of {storage.block}" if storage.block else ", one scale a row" if storage.bits <= 8 else ""
        kind = f"{storage.bits} bits{block}" if storage.bits <= 8 else storage.layout
        kinds[kind] = kinds.get(kind, 0) + 1
    return "; ".join(f"{count} x {kind}" for kind, count in kinds.items())


def _tokenizer(result: Result) -> str:
    tokenizer = result.contract.tokenizer
    if tokenizer is None:
        return "none"
    lines = []
    for item in tokenizer.files:
        inexact = next((row for row in tokenizer.inexact if set(row.releases) == set(item.releases)), None)
        note = "exact" if inexact is None else "exact but for rare characters"
        if item.file.endswith(".txt") and inexact is not None:
            note = "approximate"
            if inexact.of:
                note = f"other ids for {inexact.differing} of {inexact.of} test strings"
        lines.append(f"{item.file} for {_span(item.releases or result.contract.target.releases)}: {note}")
    return "\n".join(lines)


def _measurements(result: Result) -> Table:
    release = result.verification.measurements[0].release
    table = Table(
        title=f"\nrun on MNN {release}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for name in ("memory", "against", "rows", "max error", "KL", "top-1", "greedy", "perplexity"):
        table.add_column(name, justify="left" if name in ("memory", "against") else "right", no_wrap=True)
    rows: list[tuple[str, ...]] = []
    for item in result.verification.measurements:
        distance = item.distance
        row = (
            item.settings["memory"],
            _AGAINST[item.reference],
            str(distance.positions),
            f"{distance.max_abs:.1e}",
            f"{distance.kl:.1e}",
            f"{distance.top1:.1%}",
            _greedy(item),
            "" if item.perplexity is None else f"{item.perplexity:.2f} ({item.perplexity_reference:.2f})",
        )
        # Without stored integers the shipped settings are those of exact arithmetic.
        if row not in rows:
            rows.append(row)
            table.add_row(*row)
    return table


_AGAINST = {"float": "float model", "decoded weights": "its weights", "runtime model": "prediction"}
"""What a measurement compares with, in two words."""


def _greedy(item: Measurement) -> str:
    """Decoded tokens that the reference would have chosen too; left out where quantization made texts part ways."""
    if item.reference != "decoded weights" and item.decode_equal < item.decode_tokens:
        return ""
    return f"{item.decode_equal}/{item.decode_tokens}"


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
