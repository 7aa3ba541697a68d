"""What a ladder is shown as: a table and two sentences in the terminal, JSON; the HTML page is `tools.ladder.page`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ir.base.diag import LadingError
from ir.base.whole_files import write_whole
from tools.ladder.rungs import FLOOR, change, divergence, front, measured, recommend, small
from tools.shared.cli import megabytes

if TYPE_CHECKING:
    from rich.console import Console

    from tools.ladder.climb import Ladder

FORMAT = "lading-ladder"
VERSION = 1


def ladder_data(ladder: Ladder) -> dict[str, Any]:
    """The whole report as JSON-able data; `docs/ladder.md` has its fields."""
    from backends.described import compiler_version
    from tools.matrix.cell import this_platform

    job = ladder.job
    ready = measured(ladder.rungs)
    best = front(ladder.rungs)
    shared = {"model", "releases", "release", "perplexity_reference", "positions"}
    rungs = [
        {key: value for key, value in rung.items() if key not in shared} | {"on_front": rung["name"] in best}
        for rung in ladder.rungs
    ]
    first: Mapping[str, Any] = ready[0] if ready else {}
    return {
        "format": FORMAT,
        "version": VERSION,
        "ok": ladder.ok,
        "compiler": compiler_version(),
        "platform": this_platform(),
        "model": {"source": job.model, **first.get("model", {"name": job.folder.name})},
        "target": job.target,
        "releases": first.get("releases", []),
        "release": first.get("release"),
        "text": job.text.as_dict(),
        "calibration": None if job.calibration is None else job.calibration.name,
        "prompt": job.prompt,
        "reference": {"perplexity": first.get("perplexity_reference"), "positions": first.get("positions")},
        "verify": job.verify,
        "rule": job.rule.as_dict(),
        "recommendation": recommend(ladder.rungs, job.rule),
        "rungs": rungs,
        "seconds": round(ladder.seconds, 1),
    }


# ---- files ----


def write_report(place: Path, text: str) -> None:
    """Write a report; its folder is made.

    Raises:
        LadingError: U935 it cannot be written.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(place) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        message = f"the report cannot be written: {error.strerror}"
        raise LadingError("U935", message, where=str(place), hint="choose another file or folder") from error


def as_json(data: Mapping[str, Any]) -> str:
    """The report as text of a JSON file."""
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


# ---- the terminal ----

Cell = Callable[[Mapping[str, Any]], str]


def deviation(rung: Mapping[str, Any]) -> str:
    """The standard error of a rung's divergence for people; empty where the divergence itself is rounding."""
    return "" if rung["kl"] < FLOOR else small(rung["kl_error"])


def speed(rate: float | None) -> str:
    """Tokens a second for people."""
    return "?" if rate is None else f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.1f}/s"


COLUMNS: tuple[tuple[str, int, Cell], ...] = (
    ("size", 0, lambda rung: megabytes(rung["bytes"])),
    ("bits", 0, lambda rung: f"{rung['bits_per_weight']:.2f}"),
    ("KL", 0, lambda rung: divergence(rung["kl"])),
    ("±", 6, deviation),
    ("top-1", 0, lambda rung: f"{rung['top1']:.1%}"),
    ("perplexity", 3, lambda rung: f"{rung['perplexity']:.3f}"),
    ("change", 0, lambda rung: change(rung["perplexity_rise"])),
    ("load", 5, lambda rung: f"{rung['load_s']:.2f} s"),
    ("prefill", 4, lambda rung: speed(rung["prefill_tokens_per_s"])),
    ("decode", 1, lambda rung: speed(rung["decode_tokens_per_s"])),
    ("memory", 2, lambda rung: megabytes(rung["peak_rss"]) if rung["peak_rss"] else "?"),
)
"""Columns behind the name: head, how soon it goes where the terminal is narrow (0 for never), and the text of a
cell."""

NAME_WIDTH = 24
"""Names of rungs up to this length stay on one line."""


def show_ladder(console: Console, data: Mapping[str, Any]) -> None:
    """Print the table, failures, and the recommendation."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    longest = max((len(rung["name"]) for rung in data["rungs"]), default=0)
    name_width = min(NAME_WIDTH, longest) + 2
    columns = _fitting(data, console.width - name_width - 2)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("rung", overflow="fold", min_width=name_width)
    for name, _, _ in columns:
        table.add_column(name, justify="right", no_wrap=True)
    chosen = data["recommendation"]["rung"]
    for rung in data["rungs"]:
        mark = "▶ " if rung["name"] == chosen else "  "
        name = Text(f"{mark}{rung['name']}", style="bold green" if rung["name"] == chosen else "")
        if rung["status"] == "ok":
            table.add_row(name, *(cell(rung) for _, _, cell in columns), style="" if rung["on_front"] else "dim")
        else:
            table.add_row(name, Text(f"failed {rung['error']['code']}", style="red"))
    console.print(table)
    for rung in data["rungs"]:
        if rung["status"] != "ok":
            console.print(Text(f"{rung['name']}: [{rung['error']['code']}] {rung['error']['message']}", style="red"))
    console.print(Text(data["recommendation"]["why"], style="bold" if chosen else "yellow"))
    console.print(Text(measured_on(data), style="dim"))


def _fitting(data: Mapping[str, Any], room: int) -> list[tuple[str, int, Cell]]:
    """The columns that fit into so many characters, the least needed ones left out."""
    measured = [rung for rung in data["rungs"] if rung["status"] == "ok"]
    # Two blanks stand between columns.
    widths = {name: 2 + max(map(len, [name, *map(cell, measured)])) for name, _, cell in COLUMNS}
    left = list(COLUMNS)
    while sum(widths[name] for name, _, _ in left) > room and any(rank for _, rank, _ in left):
        left.remove(max(left, key=lambda column: column[1]))
    return left


def measured_on(data: Mapping[str, Any]) -> str:
    """One sentence on how the numbers came about."""
    text = data["text"]
    if data["release"] is None:
        return f"No rung could be measured on {text['name']}."
    return (
        f"Measured on MNN {data['release']} with the settings that each rung ships, against the float model, on "
        f"{text['tokens']:,} tokens of {text['name']}."
    )
