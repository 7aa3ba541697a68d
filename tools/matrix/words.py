"""What statuses and checks of a matrix are called and mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools.matrix.cell import PASSED, SHIPPED_FACTOR

if TYPE_CHECKING:
    from tools.matrix.model import Matrix, Row

SYMBOLS = {
    "right": "✓",
    "as stored": "≈",
    "wrong": "✗",
    "crash": "☠",
    "timeout": "⏱",
    "no load": "⊘",
    "not run": "·",
    "not made": "!",
}
"""Symbol of each status; a cell that was not run and a model that could not be made have one too."""


COLOURS = {"right": "green", "as stored": "cyan", "wrong": "red", "crash": "magenta", "timeout": "yellow", "no load": "red",
           "not run": "bright_black", "not made": "yellow"}  # fmt: skip


MEANINGS = {
    "right": "every check passed; the number is the largest difference of a logit from the reference",
    "as stored": "every check passed against what the folder's own files say; there was no checkpoint to compare with",
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
    return _number(cell["error"]) if cell["status"] in PASSED else cell["status"]


def _number(error: float | None) -> str:
    return "" if error is None else f"{error:.0e}".replace("e-0", "e-").replace("e+0", "e")


def failures(matrix: Matrix) -> list[str]:
    """What is not right, could not be made or was not tested, a line each; releases that agree share one."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for row, release, cell in matrix.failing():
        notes = [f"{name}: {check['note']}" for name, check in cell["checks"].items() if check["ok"] is False]
        found.setdefault((row.family, matrix.precision(row), "; ".join(notes)), []).append(release)
    lines = [
        f"{family} {precision} on MNN {', '.join(where)}: {why}" for (family, precision, why), where in found.items()
    ]
    lines += [
        f"{row.family} {matrix.precision(row)} was not made: {line_of(row.failure)}"
        for row in matrix.rows
        if row.failure
    ]
    return lines + [f"MNN {release} was not tested: {line_of(why)}" for release, why in matrix.unavailable.items()]


def unreferenced(matrix: Matrix) -> list[str]:
    """Which rows had no checkpoint to be compared with, a line each."""
    rows = [row for row in matrix.rows if row.artefact is not None and not row.artefact.source.referenced]
    return [
        f"{row.family} was compared with its own files only, evaluated in float arithmetic: no checkpoint is named, so nothing "
        "is known of the model it was made from"
        for row in rows
    ]


def line_of(text: str) -> str:
    """Text of several lines in one."""
    return " ".join(text.split())
