"""What a ladder is shown as: a table and two sentences in the terminal, JSON; the HTML page is `tools.ladder.page`."""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
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
        "recommendation": {
            **(found := recommend(ladder.rungs, job.rule)),
            **way_to(job, found["rung"], _chosen(ladder.settings, found["rung"])),
        },
        "rungs": rungs,
        "settings": ladder.settings,
        "seconds": round(ladder.seconds, 1),
    }


def _chosen(settings: Sequence[Mapping[str, Any]], name: str | None) -> Sequence[str]:
    """The runtime settings that were chosen for a rung."""
    return next((item["chosen"] for item in settings if item["rung"] == name), ())


def way_to(job: Job, name: str | None, chosen: Sequence[str]) -> dict[str, str | None]:
    """Where a rung lies, where it was kept, and the command that compiles it alone with the settings that were chosen;
    None for no rung."""
    from backends.mnn.target.run_settings import MAPPED
    from tools.ladder.climb import calibration_of

    spec = next((item for item in job.specs if item.name == name), None)
    if spec is None:
        return {"folder": None, "command": None}
    out = job.out.with_name(f"{_name(job)}-{spec.slug}")
    parts = ["lading", "compile", str(job.folder if job.model == EXAMPLE.name else job.model), "-o", str(out)]
    parts += ["--tokenizer", str(job.folder)] if job.file is not None else []
    parts += ["--passes", spec.pipeline, "--target", job.target, "--threads", str(job.threads)]
    others = [text for text in chosen if not text.startswith(MAPPED)]
    parts += ["--settings", ",".join(others)] if others else []
    parts += ["--mmap"] if len(others) < len(chosen) else []
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
    for found in data["settings"]:
        show_settings(console, found)


def show_settings(console: Console, found: Mapping[str, Any]) -> None:
    """Print what trying runtime settings on a rung found."""
    from rich.text import Text

    console.print(Text(f"\nRuntime settings of {found['rung']}, each beside those it ships", style="bold"))
    if found["error"] is not None:
        console.print(Text(f"[{found['error']['code']}] {found['error']['message']}", style="red"))
        return
    columns = [Column("setting", right=False), *(Column(head) for head in SETTING_HEADS), Column("", right=False)]
    rows = [[trial["name"], *setting_cells(trial), verdict(trial)] for trial in found["trials"]]
    show_table(console, columns, rows)
    for use in found["uses"]:
        console.print(Text(use_line(use)))
    console.print(Text(settings_line(found), style="bold"))


SETTING_HEADS = ("KL read", "KL decoding", "decode", "prefill", "load", "memory")
"""Columns of a table of settings, behind their names."""


def setting_cells(trial: Mapping[str, Any]) -> list[str]:
    """Divergences of a trial, those of other settings as differences, and how many times as good its rates are."""
    if trial["kl"] is None:
        return [""] * len(SETTING_HEADS)
    usual = trial["verdict"] == "usual"
    kls = [
        divergence(trial[key]) if usual else difference(trial[more], trial[error])
        for key, more, error in (("kl", "more", "error"), ("kl_decode", "more_decode", "error_decode"))
    ]
    rates = ("decode", "prefill", "load", "memory")
    return [*kls, *("" if usual else f"{statistics.median(trial[rate]):.2f}x" for rate in rates)]


def verdict(trial: Mapping[str, Any]) -> str:
    """What is said of a trial."""
    from tools.ladder.tuning import VERDICTS

    return VERDICTS[trial["verdict"]]


def difference(more: float, error: float) -> str:
    """A difference of divergences and its standard error; 0 where every position is equal."""
    if more == error == 0:
        return "0"
    return f"{'+' if more >= 0 else '-'}{divergence(abs(more))} ± {small(error)}" if abs(more) >= FLOOR else "0"


def use_line(use: Mapping[str, Any]) -> str:
    """A sentence on a way of use."""
    times = "" if use["times"] is None else f"{use['times']:.1f} times as fast, "
    return f"{use['name']} ({use['meaning']}): {times}{use['note']}"


def settings_line(found: Mapping[str, Any]) -> str:
    """A sentence on what was chosen."""
    if not found["chosen"]:
        return "No setting gains without cost, so those that are shipped stay."
    return f"Written to the configuration and the contract: {', '.join(found['chosen'])}."


def measured_on(data: Mapping[str, Any]) -> str:
    """One sentence on how the numbers came about."""
    text = data["text"]
    if data["release"] is None:
        return f"No rung could be measured on {text['name']}."
    return (
        f"Measured on MNN {data['release']} with the settings that each rung ships, against the float model, on "
        f"{text['tokens']:,} tokens of {text['name']}."
    )
