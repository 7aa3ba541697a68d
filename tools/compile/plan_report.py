"""What a plan is shown as in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tools.shared.cli import megabytes
from tools.shared.tables import Column, show_table

if TYPE_CHECKING:
    from backends.plan import Planned, PlannedWeights
    from tools.compile.plan import Effort, ModelPlan, ReleasePlan

PRODUCED = "tokenizer and configuration"
"""What is written besides the files that are planned."""


def show_plan(console: Console, plan: ModelPlan) -> None:
    """Print a plan."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column("", style="cyan")
    table.add_column("", overflow="fold")
    for word, text in _rows(plan):
        table.add_row(word, Text(text))
    console.print(Text.assemble((plan.card.title or plan.model, "bold"), f" for the target {plan.target}, as planned"))
    console.print(table)
    if plan.planned is not None:
        _show_weights(console, plan.planned)
        _show_memory(console, plan.planned)
    for item in plan.warnings:
        console.print(Text(str(item), style="yellow"))
    if plan.refused is not None:
        console.print(Text(str(plan.refused), style="red"))
    console.print(Text(f"planned in {plan.seconds:.1f} s; no weight was read and nothing was written"))


def _rows(plan: ModelPlan) -> list[tuple[str, str]]:
    card, planned = plan.card, plan.planned
    known = [card.family or "", f"{card.layers} layers", f"{card.parameters:,} weights" if card.parameters else ""]
    read = f"{megabytes(plan.stored_bytes)} of weights" if plan.stored_bytes is not None else "the configuration alone"
    rows = [("model", ", ".join(filter(None, known))), ("read from", read)]
    if planned is not None:
        files = [
            f"{name} {'' if item.exact else 'about '}{megabytes(item.bytes)}" for name, item in planned.files.items()
        ]
        rows.append(("size", f"{megabytes(planned.bytes)} and {PRODUCED}: {', '.join(files)}"))
        rows.append(("per token", _token_text(planned)))
        rows += [
            ("keeps", f"{item.kind}: {item.layers} layers, {_kept(item.per_token, item.fixed)}")
            for item in planned.caches
        ]
    if plan.effort is not None:
        rows.append(("compiling", _effort_text(plan.effort)))
    rows += _release_rows(plan.releases)
    return rows


def _token_text(planned: Planned) -> str:
    grown = sum(item.per_token for item in planned.caches)
    return f"{megabytes(planned.streamed)} of weights are read, and {megabytes(grown)} kept"


def _kept(per_token: int, fixed: int) -> str:
    parts = [f"{megabytes(per_token)} a token" if per_token else "", f"{megabytes(fixed)} in all" if fixed else ""]
    return " and ".join(filter(None, parts))


def _effort_text(effort: Effort) -> str:
    threads = "1 thread" if effort.threads == 1 else f"{effort.threads} threads"
    return (
        f"about {_span(effort.seconds)} and {megabytes(effort.memory)} of memory with {threads} of this machine, the disk "
        f"not counted; quick verification about {_span(effort.verify_seconds)} and {megabytes(effort.verify_memory)} more"
    )


def _span(seconds: float) -> str:
    return f"{max(seconds, 1):.0f} s" if seconds < 300 else f"{seconds / 60:.0f} min"


def _release_rows(releases: Sequence[ReleasePlan]) -> list[tuple[str, str]]:
    """Releases that can run the model; others with the reason, those with one reason together."""
    runs = [item.release for item in releases if item.runs]
    rows = [("runs on", ", ".join(runs) or "no release")] if releases else []
    others = [item for item in releases if not item.runs]
    for reason, items in groupby(others, key=lambda item: (item.code, item.reason)):
        rows.append(("not on", f"{', '.join(item.release for item in items)}: {reason[0]}, {reason[1]}"))
    return rows


def _short(item: PlannedWeights) -> str:
    """A name without what all have in common."""
    return item.name.removeprefix("model.").removeprefix("layers.*.").removesuffix(".weight")


def _show_weights(console: Console, planned: Planned) -> None:
    columns = [Column("weights", right=False), Column("number"), Column("stored as", right=False), Column("on disk"),
               Column("a token")]  # fmt: skip
    rows = [
        (_short(item), f"{item.count:,}", item.storage, *map(megabytes, (item.bytes, item.streamed)))
        for item in planned.weights
    ]
    show_table(console, columns, rows)


def _show_memory(console: Console, planned: Planned) -> None:
    columns = [Column("tokens"), Column("weights"), Column("cache"), Column("activations"), Column("memory")]
    rows = [
        (f"{item.tokens:,}", *map(megabytes, (item.weights, item.cache, item.activations, item.total)))
        for item in planned.memory
    ]
    show_table(console, columns, rows)


__all__ = ["show_plan"]
