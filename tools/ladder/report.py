"""What a ladder is shown as: a table and two sentences in the terminal, JSON; the HTML page is `tools.ladder.page`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ir.base.diag import LadingError
from ir.base.whole_files import write_whole
from tools.compile.job import EXAMPLE
from tools.ladder.rungs import FLOOR, change, divergence, front, measured, recommend, small
from tools.shared.cli import megabytes
from tools.shared.tables import Column, show_table

if TYPE_CHECKING:
    from rich.console import Console

    from tools.ladder.climb import Job, Ladder

FORMAT = "lading-ladder"
VERSION = 1


def ladder_data(ladder: Ladder) -> dict[str, Any]:
    """The whole report as JSON-able data; `docs/ladder.md` has its fields."""
    from backends.version import compiler_version
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
        "model": {"source": job.model, **first.get("model", {"name": job.path.name})},
        "target": job.target,
        "releases": first.get("releases", []),
        "release": first.get("release"),
        "text": job.text.as_dict(),
        "calibration": None if job.calibration is None else job.calibration.name,
        "prompt": job.prompt,
        "reference": {"perplexity": first.get("perplexity_reference"), "positions": first.get("positions")},
        "verify": job.verify,
        "rule": job.rule.as_dict(),
        "recommendation": {**(found := recommend(ladder.rungs, job.rule)), **way_to(job, found["rung"])},
        "rungs": rungs,
        "seconds": round(ladder.seconds, 1),
    }


def way_to(job: Job, name: str | None) -> dict[str, str | None]:
    """Where a rung lies, where it was kept, and the command that compiles it alone; None for no rung."""
    from tools.ladder.climb import calibration_of

    spec = next((item for item in job.specs if item.name == name), None)
    if spec is None:
        return {"folder": None, "command": None}
    out = job.out.with_name(f"{_name(job)}-{spec.slug}")
    parts = ["lading", "compile", str(job.folder if job.model == EXAMPLE.name else job.model), "-o", str(out)]
    parts += ["--tokenizer", str(job.folder)] if job.file is not None else []
    parts += ["--passes", spec.pipeline, "--target", job.target, "--threads", str(job.threads)]
    calibration = calibration_of(job, spec)
    parts += ["--calibration", str(calibration)] if calibration is not None else []
    return {"folder": str(job.place(spec)) if job.keep else None, "command": shlex.join(parts)}


def _name(job: Job) -> str:
    if job.file is None:
        return job.folder.resolve().name
    from frontends.onnx.beside import title_of

    return title_of(job.file)


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


def speed_with_spread(rung: Mapping[str, Any], what: str) -> str:
    """Tokens a second of ``prefill`` or ``decode``: the median, and the slowest and fastest repetition."""
    rate, spread = rung[f"{what}_tokens_per_s"], rung[f"{what}_spread"]
    if rate is None:
        return "?"
    median, low, high = (f"{value:,.0f}" if rate >= 100 else f"{value:.1f}" for value in (rate, *(spread or (0, 0))))
    return f"{median} ({low}-{high})" if spread else median


COLUMNS: tuple[tuple[str, Cell], ...] = (
    ("folder", lambda rung: megabytes(rung["bytes"])),
    ("bits", lambda rung: f"{rung['bits_per_weight']:.2f}"),
    ("KL", lambda rung: divergence(rung["kl"])),
    ("±", deviation),
    ("top-1", lambda rung: f"{rung['top1']:.1%}"),
    ("perplexity", lambda rung: f"{rung['perplexity']:.3f}"),
    ("change", lambda rung: change(rung["perplexity_rise"])),
    ("decode/s", lambda rung: speed_with_spread(rung, "decode")),
    ("prefill/s", lambda rung: speed_with_spread(rung, "prefill")),
    ("load", lambda rung: f"{rung['load_s']:.2f} s"),
    ("read", lambda rung: megabytes(next(iter(rung["streamed"].values()))) if rung["streamed"] else "?"),
    ("memory", lambda rung: f"{rung['peak_rss'] / 1e6:,.0f} MB" if rung["peak_rss"] else "?"),
)
"""Columns behind the name: head, and the text of a cell."""

NAME_WIDTH = 24
"""Names of rungs up to this length stay on one line."""


def show_ladder(console: Console, data: Mapping[str, Any]) -> None:
    """Print the table, failures, and the recommendation with its folder and command."""
    from rich.text import Text

    chosen = data["recommendation"]["rung"]
    rows: list[list[str | Text]] = []
    styles = []
    for rung in data["rungs"]:
        mark = "▶ " if rung["name"] == chosen else "  "
        name = Text(f"{mark}{rung['name']}", style="bold green" if rung["name"] == chosen else "")
        ready = rung["status"] == "ok"
        cells = [cell(rung) for _, cell in COLUMNS] if ready else [Text(f"failed {rung['error']['code']}", style="red")]
        rows.append([name, *cells])
        styles.append("" if not ready or rung["on_front"] else "dim")
    columns = [Column("rung", right=False, most=NAME_WIDTH + 2), *(Column(name) for name, _ in COLUMNS)]
    show_table(console, columns, rows, styles=styles)
    for rung in data["rungs"]:
        if rung["status"] != "ok":
            console.print(Text(f"{rung['name']}: [{rung['error']['code']}] {rung['error']['message']}", style="red"))
    console.print(Text(data["recommendation"]["why"], style="bold" if chosen else "yellow"))
    for word in ("folder", "command"):
        if data["recommendation"].get(word):
            console.print(Text(f"{word}: {data['recommendation'][word]}"), soft_wrap=True)
    console.print(Text(measured_on(data), style="dim"))


def measured_on(data: Mapping[str, Any]) -> str:
    """One sentence on how the numbers came about."""
    text = data["text"]
    if data["release"] is None:
        return f"No rung could be measured on {text['name']}."
    return (
        f"Measured on MNN {data['release']} with the settings that each rung ships, against the float model, on "
        f"{text['tokens']:,} tokens of {text['name']}."
    )
