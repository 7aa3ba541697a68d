"""What the matrix is shown as: a table in the terminal, JSON, a Markdown page; the HTML page is `tools.matrix.page`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ir.base.diag import LadingError
from tools.matrix.cell import SHIPPED_FACTOR

if TYPE_CHECKING:
    from rich.console import Console

    from tools.matrix.command import Matrix
    from tools.matrix.rows import Row

SYMBOLS = {"right": "✓", "wrong": "✗", "crash": "☠", "timeout": "⏱", "no load": "⊘", "not run": "·", "not made": "!"}
"""Symbol of each status; a cell that was not run and a model that could not be made have one too."""

COLOURS = {"right": "green", "wrong": "red", "crash": "magenta", "timeout": "yellow", "no load": "red",
           "not run": "bright_black", "not made": "yellow"}  # fmt: skip

MEANINGS = {
    "right": "every check passed; the number is the largest difference of a logit from the reference",
    "wrong": "it ran, and a check failed",
    "crash": "the process was ended by the signal",
    "timeout": "the process was stopped at the time limit",
    "no load": "the release refused the model",
    "not run": "not run: the release could not be had, or the model is not for it",
    "not made": "the model could not be compiled",
}

CHECK_MEANINGS = {
    "load": "the release loads the folder",
    "logits": "logits of every position of one prefill are those of the reference",
    "cache": "the same through the key/value cache, in pieces of several tokens and of one",
    "greedy": "each greedily decoded token is the reference's first choice after the tokens before it, or level with it "
    "within rounding",
    "tokenizer": "ids of sample texts: the exact form gives the original tokenizer's, the text form those it is meant to "
    "give",
    "chat": "sample chats rendered by the runtime are those that the original template gives",
    "shipped": "with the settings that are shipped, the KL divergence from the float model is below the bar for the width, "
    f"or at most {SHIPPED_FACTOR:g} times that of the stored weights in exact arithmetic",
}


def status_of(matrix: Matrix, row: Row, release: str) -> str:
    """A key of `SYMBOLS`."""
    cell = matrix.cell(row, release)
    if cell is not None:
        return cell["status"]
    return "not made" if row.failure else "not run"


def short(matrix: Matrix, row: Row, release: str) -> str:
    """Largest error, signal or status of a cell in a few characters; empty where nothing was run."""
    cell = matrix.cell(row, release)
    if cell is None:
        return ""
    if cell["status"] == "crash":
        return cell["signal"]
    if cell["status"] == "wrong":
        failed = next(name for name, check in cell["checks"].items() if check["ok"] is False)
        return _number(cell["checks"][failed].get("error")) or failed
    return _number(cell["error"]) if cell["status"] == "right" else cell["status"]


def _number(error: float | None) -> str:
    return "" if error is None else f"{error:.0e}".replace("e-0", "e-").replace("e+0", "e")


def failures(matrix: Matrix) -> list[str]:
    """What is not right, could not be made or was not tested, a line each; releases that agree share one."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for row, release, cell in matrix.failing():
        notes = [f"{name}: {check['note']}" for name, check in cell["checks"].items() if check["ok"] is False]
        found.setdefault((row.family, row.precision, "; ".join(notes)), []).append(release)
    lines = [
        f"{family} {precision} on MNN {', '.join(where)}: {why}" for (family, precision, why), where in found.items()
    ]
    lines += [f"{row.family} {row.precision} was not made: {_line(row.failure)}" for row in matrix.rows if row.failure]
    return lines + [f"MNN {release} was not tested: {_line(why)}" for release, why in matrix.unavailable.items()]


def unreferenced(matrix: Matrix) -> list[str]:
    """Which rows had no checkpoint to be compared with, a line each."""
    rows = [row for row in matrix.rows if row.artefact is not None and not row.artefact.source.referenced]
    return [
        f"{row.family} was compared with its own files only, evaluated in float arithmetic: no checkpoint is named, so nothing "
        "is known of the model it was made from"
        for row in rows
    ]


def summary(matrix: Matrix) -> str:
    """One sentence of counts."""
    run, failing = len(matrix.cells), len(matrix.failing())
    text = f"{run - failing} of {run} cells right"
    if matrix.reused:
        text += f", {matrix.reused} of them from an earlier run"
    return f"{text}; {matrix.seconds:.0f} s"


@contextmanager
def spinner(console: Console) -> Iterator[Callable[[str], None]]:
    """A line on the terminal that says what is being done."""
    from tools.shared.progress import drawing

    with drawing(console) as progress:
        task = progress.add_task("")
        yield lambda what: progress.update(task, description=what)


def show_matrix(console: Console, matrix: Matrix) -> None:
    """Print the table, what is not right, and what could not be had."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model", overflow="fold")
    table.add_column("precision", overflow="fold")
    for release in matrix.releases:
        table.add_column(release, no_wrap=True, header_style="dim" if release in matrix.unavailable else "bold")
    last = ""
    for row in matrix.rows:
        if last and row.family != last:
            table.add_section()
        cells = []
        for release in matrix.releases:
            status = status_of(matrix, row, release)
            cells.append(Text(f"{SYMBOLS[status]} {short(matrix, row, release)}".rstrip(), style=COLOURS[status]))
        table.add_row(row.family if row.family != last else "", row.precision, *cells)
        last = row.family
    console.print(table)
    for line in failures(matrix):
        console.print(Text(line, style="red" if not matrix.ok else "yellow"))
    for line in unreferenced(matrix):
        console.print(Text(line, style="yellow"))
    console.print(Text(summary(matrix), style="bold green" if matrix.ok else "bold red"))


def matrix_data(matrix: Matrix) -> dict[str, Any]:
    """All results as JSON-able data."""
    from backends.mnn.contract import compiler_version
    from tools.matrix.cell import this_platform

    cells = [
        matrix.cell(row, release)
        for row in matrix.rows
        for release in matrix.releases
        if matrix.cell(row, release) is not None
    ]
    return {
        "format": 1,
        "compiler": compiler_version(),
        "platform": this_platform(),
        "releases": list(matrix.releases),
        "unavailable": matrix.unavailable,
        "ok": matrix.ok,
        "run": len(cells),
        "failing": len(matrix.failing()),
        "reused": matrix.reused,
        "seconds": round(matrix.seconds, 1),
        "models": [
            {"family": row.family, "precision": row.precision, "releases": list(row.releases), "failure": row.failure}
            for row in matrix.rows
        ],
        "cells": cells,
    }


def markdown_page(matrix: Matrix, made: str) -> str:
    """The page of the manual.

    Args:
        matrix: what was run.
        made: date of the run.
    """
    from backends.mnn.contract import compiler_version
    from backends.mnn.verify.logits import EXACT_BAR
    from tools.matrix.cell import this_platform

    run, wrong = len(matrix.cells), len(matrix.failing())
    right = f"All {run} cells are right." if not wrong else f"{run - wrong} of {run} cells are right."
    parts = [
        "# Compatibility",
        "<!-- Written by `python -m tools.matrix --markdown`; do not edit. -->",
        f"Every model below was compiled and then run on every MNN release, each in an environment with that release's "
        f"wheel, by `python -m tools.matrix` of Lading {compiler_version()} on {this_platform()}, {made}. {right} A cell "
        "that was not run is empty.",
        "Weights are random, and such that a forgotten bias, a wrong mask or a transposed matrix shows in the logits; only "
        "`tiny-qwen2.5`, the example of the source tree, is trained. A cell is right when all of this holds:",
        _table(["check", "what must hold"], [[f"`{name}`", text] for name, text in CHECK_MEANINGS.items()]),
        "The reference of `fp32` is the checkpoint's own float graph in onnxruntime; of other precisions the same graph "
        f"with the weights that an independent reader decodes from the written files. The bar is {EXACT_BAR}, in proportion "
        f"more where logits exceed 10{_reach(matrix)}. The number in a cell is the largest difference of a logit.",
        "## Results",
        _legend(matrix),
        _table(
            ["model", "precision", *(f"MNN {release}" for release in matrix.releases)],
            [
                [row.family, f"`{row.precision}`", *(_words(matrix, row, one) for one in matrix.releases)]
                for row in matrix.rows
            ],
        ),
    ]
    lines = [f"- {line}" for line in (*failures(matrix), *unreferenced(matrix))]
    if lines:
        parts += ["## What is not right or was not tested", "\n".join(lines)]
    parts += ["## The text form of the tokenizer", _text_form(matrix)]
    return "\n\n".join(_wrapped(part) for part in parts) + "\n"


def _wrapped(part: str) -> str:
    """Prose in lines of 120 characters; tables, lists and headings as they are."""
    from textwrap import fill

    if part[0] in "#<|-":
        return part
    head, mark, rest = part.partition("\n\n")
    return fill(head, 120, break_long_words=False, break_on_hyphens=False) + mark + rest


def _reach(matrix: Matrix) -> str:
    """How large the logits are, which the bars follow."""
    from backends.mnn.verify.logits import EXACT_BAR

    bars = [check["bar"] for cell in matrix.cells.values() if "bar" in (check := cell["checks"].get("logits", {}))]
    return f" (here they reach {10 * max(bars) / EXACT_BAR:.0f})" if bars and max(bars) > EXACT_BAR else ""


def _legend(matrix: Matrix) -> str:
    used = {status_of(matrix, row, release) for row in matrix.rows for release in matrix.releases}
    return "\n".join(f"- {SYMBOLS[name]} {MEANINGS[name]}" for name in SYMBOLS if name in used)


def _words(matrix: Matrix, row: Row, release: str) -> str:
    status = status_of(matrix, row, release)
    return "" if status == "not run" else f"{SYMBOLS[status]} {short(matrix, row, release)}".rstrip()


def _text_form(matrix: Matrix) -> str:
    """How many sample texts get other ids on releases that read only the text form."""
    found: dict[str, dict[str, str]] = {}
    for row in matrix.rows:
        for release in matrix.releases:
            check = (matrix.cell(row, release) or {"checks": {}})["checks"].get("tokenizer", {})
            if check.get("form") == "text form":
                found.setdefault(row.family, {})[release] = f"{check['differing']} of {check['of']}"
    if not found:
        return "No release was run that reads only the text form."
    releases = sorted({release for counts in found.values() for release in counts})
    groups: dict[tuple[str, ...], list[str]] = {}
    for family, counts in found.items():
        groups.setdefault(tuple(counts.get(release, "") for release in releases), []).append(family)
    head = (
        f"MNN {' and '.join(releases)} read only text forms of a tokenizer, which cannot say everything. The ids were those "
        "that the form is meant to give; of the sample texts, most of them chosen to be hard, so many get other ids than the "
        "original tokenizer gives:"
    )
    rows = [[", ".join(families), *counts] for counts, families in groups.items()]
    return head + "\n\n" + _table(["model", *(f"MNN {release}" for release in releases)], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    lines.insert(1, "|" + "---|" * len(head))
    return "\n".join(lines).replace("|  |", "| |")


def _line(text: str) -> str:
    return " ".join(text.split())


def write_reports(matrix: Matrix, places: Mapping[str, Path | None]) -> None:
    """Write the reports that are asked for; `places` has the keys ``json``, ``markdown`` and ``html``.

    Raises:
        LadingError: U975 a file that cannot be written.
    """
    from datetime import date

    from tools.matrix.page import html_page

    today = date.today().isoformat()
    writers: dict[str, Callable[[], str]] = {
        "json": lambda: json.dumps(matrix_data(matrix), indent=1, ensure_ascii=False) + "\n",
        "markdown": lambda: markdown_page(matrix, today),
        "html": lambda: html_page(matrix, today),
    }
    for name, place in places.items():
        if place is None:
            continue
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(writers[name](), encoding="utf-8")
        except OSError as error:
            raise LadingError("U975", f"the report cannot be written: {error.strerror}", where=str(place)) from error
