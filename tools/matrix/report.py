"""What the matrix is shown as: a table in the terminal, JSON, a Markdown page; the HTML page is `tools.matrix.page`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ir.base.diag import LadingError
from ir.base.whole_files import write_whole
from tools.matrix.words import CHECK_MEANINGS, COLOURS, MEANINGS, SYMBOLS, failures, short, status_of, unreferenced
from tools.shared.tables import Column, show_table

if TYPE_CHECKING:
    from rich.console import Console

    from tools.matrix.model import Matrix, Row


NAME_WIDTH = 26
"""Characters of a model's or precision's name in one line of the table."""


def summary(matrix: Matrix) -> str:
    """One sentence of counts."""
    run, failing = len(matrix.cells), len(matrix.failing())
    text = f"{matrix.right()} of {run} cells right"
    if stored := run - failing - matrix.right():
        text += f", {stored} as stored"
    if matrix.reused:
        text += f", {matrix.reused} of them from an earlier run"
    return f"{text}; {matrix.seconds:.0f} s"


def show_matrix(console: Console, matrix: Matrix) -> None:
    """Print the table, what is not right, and what could not be had."""
    from rich.text import Text

    columns = [Column("model", right=False, most=NAME_WIDTH), Column("precision", right=False, most=NAME_WIDTH)]
    columns += [Column(release, right=False, dim=release in matrix.unavailable) for release in matrix.releases]
    rows: list[list[str | Text]] = []
    sections: list[int] = []
    last = ""
    for number, row in enumerate(matrix.rows):
        if last and row.family != last:
            sections.append(number)
        cells = []
        for release in matrix.releases:
            status = status_of(matrix, row, release)
            cells.append(Text(f"{SYMBOLS[status]} {short(matrix, row, release)}".rstrip(), style=COLOURS[status]))
        rows.append([row.family if row.family != last else "", matrix.precision(row), *cells])
        last = row.family
    show_table(console, columns, rows, keys=2, sections=sections)
    for line in failures(matrix):
        console.print(Text(line, style="red" if not matrix.ok else "yellow"))
    for line in unreferenced(matrix):
        console.print(Text(line, style="yellow"))
    console.print(Text(summary(matrix), style="bold green" if matrix.ok else "bold red"))


def matrix_data(matrix: Matrix) -> dict[str, Any]:
    """All results as JSON-able data."""
    from backends.version import compiler_version
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
    from backends.bars import EXACT_BAR
    from backends.version import compiler_version
    from tools.matrix.cell import this_platform

    run, good = len(matrix.cells), matrix.right()
    right = f"All {run} cells are right." if run == good else f"{good} of {run} cells are right."
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
                [row.family, f"`{matrix.precision(row)}`", *(_words(matrix, row, one) for one in matrix.releases)]
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
    from backends.bars import EXACT_BAR

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
            with write_whole(place) as part:
                part.write_text(writers[name](), encoding="utf-8")
        except OSError as error:
            raise LadingError("U975", f"the report cannot be written: {error.strerror}", where=str(place)) from error
