"""The matrix as one HTML page that needs nothing else: colours, light and dark, details of a cell where one points."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from backends.templates import render

if TYPE_CHECKING:
    from tools.matrix.model import Matrix, Row


def html_page(matrix: Matrix, made: str) -> str:
    """The whole page.

    Args:
        matrix: what was run.
        made: date of the run.
    """
    from backends.version import compiler_version
    from tools.matrix.cell import this_platform
    from tools.matrix.words import MEANINGS, SYMBOLS, failures, status_of, unreferenced

    run = len(matrix.cells)
    told = f"Lading {compiler_version()} on {this_platform()}, {made}. "
    told += f"{matrix.right()} of {run} cells that were run are right."
    used = {status_of(matrix, row, release) for row in matrix.rows for release in matrix.releases}
    return render(
        __file__,
        "page.html.jinja",
        told=told,
        used=[status for status in SYMBOLS if status in used],
        symbols=SYMBOLS,
        meanings=MEANINGS,
        kind=lambda status: status.replace(" ", "-"),
        columns=[(release, _count(matrix, release)) for release in matrix.releases],
        families=[
            (
                family,
                [
                    (matrix.precision(row), [_cell(matrix, row, release) for release in matrix.releases])
                    for row in group
                ],
            )
            for family, group in groupby(matrix.rows, lambda row: row.family)
        ],
        failing=[*failures(matrix), *unreferenced(matrix)],
    )


def _count(matrix: Matrix, release: str) -> str:
    cells = [cell for row in matrix.rows if (cell := matrix.cell(row, release)) is not None]
    right = sum(cell["status"] == "right" for cell in cells)
    return f"{right}/{len(cells)}" if cells else "not tested"


def _cell(matrix: Matrix, row: Row, release: str) -> dict[str, str]:
    from tools.matrix.words import short, status_of

    status = status_of(matrix, row, release)
    label = f"{row.family} {matrix.precision(row)} on MNN {release}: {status}"
    details = _details(matrix, row, release, label)
    return {"status": status, "label": label, "details": details, "short": short(matrix, row, release)}


def _details(matrix: Matrix, row: Row, release: str, label: str) -> str:
    cell = matrix.cell(row, release)
    if cell is None:
        why = row.failure or matrix.unavailable.get(release) or "the model is not compiled for this release"
        return f"{label}\n{why}"
    lines = [label, *(_check(name, check) for name, check in cell["checks"].items())]
    lines.append(f"{cell['seconds']['total']:.2f} s")
    return "\n".join(lines)


def _check(name: str, check: dict[str, Any]) -> str:
    mark = {True: "✓", False: "✗", None: "·"}[check["ok"]]
    parts = [check["note"]] if check["note"] else []
    if check.get("error") is not None and check["ok"]:
        parts.append(f"at most {check['error']:.2g} off, {check['bar']:.2g} allowed")
    if name == "greedy" and check["ok"]:
        parts.append(f"{check['equal']} of {check['tokens']} tokens")
    return f"{mark} {name}: {'; '.join(parts)}" if parts else f"{mark} {name}"
