"""``python -m tools.explain``: what a diagnostic code, or what a runtime printed when it crashed, means and what to do."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ir.base.diag import LadingError, known_codes, suggest
from ir.base.plugins import rows_of
from ir.base.tables import imported
from tools.shared.cli import JSON_OPTION, Screen, command

if TYPE_CHECKING:
    from backends.symptoms import Recognised, Symptom

WIDTH = 80
"""Columns of the text."""

LONGEST_LOG = 4_000_000
"""Bytes of a log file that are looked at, from its end."""

_CODE = re.compile(r"[A-Z]\d{3}")
_CODE_INSIDE = re.compile(r"\b(?:error|warning|note)\[([A-Z]\d{3})\]|^([A-Z]\d{3}) on \d", re.MULTILINE)


@command("explain")
@click.argument("words", nargs=-1, required=True, metavar="CODE | TEXT | FILE")
@click.option("--model", type=click.Path(path_type=Path), metavar="PATH",
              help="The compiled model, the ONNX file or the checkpoint, to be named in the commands.")  # fmt: skip
@JSON_OPTION
def main(words: tuple[str, ...], model: Path | None, as_json: bool) -> int:
    """Explain a diagnostic code such as F503, or what a runtime printed or did before it crashed.

    A text such as 'tensor [ logits_index ] is input but not found' leads to its cause and to the command that mends it;
    so does a log file, or - for standard input. Words for what happens, such as 'garbage', 'never stops' or '!!!!!!',
    are understood too.
    """
    text = _text(words)
    codes = _codes(text)
    found = [] if codes else _symptoms(text)
    if not codes and not found:
        raise _unknown(text)
    screen = Screen(as_json, False)
    data = {
        "codes": [_code_data(code) for code in codes],
        "symptoms": [_symptom_data(item, model) for item in found],
    }
    parts = [*(part for code in codes for part in (_code_text(code), "")), *_symptoms_text(found, model)]
    screen.data(data, "\n".join(parts).rstrip())
    return 0


def _text(words: tuple[str, ...]) -> str:
    """What is to be explained: the words, or the end of a file that they name."""
    text = " ".join(words)
    if text == "-":
        return sys.stdin.buffer.read()[-LONGEST_LOG:].decode("utf-8", "replace")
    if len(words) == 1 and os.path.isfile(text):  # unlike a Path, it takes any text, however long
        with open(text, "rb") as file:
            file.seek(max(0, os.path.getsize(text) - LONGEST_LOG))
            return file.read().decode("utf-8", "replace")
    return text


def _codes(text: str) -> list[str]:
    """The codes that a text is, or that stand in messages of this program inside it.

    Raises:
        LadingError: U900 the text is a code that does not exist.
    """
    known = known_codes()
    words = text.strip().upper().strip("[]").split()
    if words and all(_CODE.fullmatch(word) for word in words):
        for word in words:
            if word not in known:
                raise LadingError("U900", f"unknown code {word!r}", hint=suggest(word, list(known)))
        return list(dict.fromkeys(words))
    inside = ("".join(groups) for groups in _CODE_INSIDE.findall(text))
    return list(dict.fromkeys(code for code in inside if code in known))


def symptoms() -> Iterator[Symptom]:
    """What runtimes print or do when something is wrong, by all plugins."""
    for _, rows, _ in rows_of("symptoms")():
        yield from (imported(rows) if isinstance(rows, str) else rows).values()


def _symptoms(text: str) -> list[Recognised]:
    from backends.symptoms import recognised

    return recognised(text, symptoms())


def _unknown(text: str) -> LadingError:
    short = " ".join(text.split())
    short = short if len(short) <= 60 else short[:57] + "..."
    if len(text.split()) == 1 and len(text) <= 6 and any(mark.isdigit() for mark in text):
        return LadingError("U900", f"unknown code {short!r}", hint=suggest(text.upper(), list(known_codes())))
    return LadingError(
        "U998",
        f"{short!r} is neither an error code nor a known message of a runtime",
        hint="'lading doctor MODEL --run' looks at the model itself, runs it and says what is wrong",
    )


# ---- what is shown ------------------------------------------------------------------------------------------------


def _code_data(code: str) -> dict[str, Any]:
    from ir.base.explanations import explanation

    long = explanation(code)
    more = {"cause": long.cause, "example": long.example, "remedy": long.remedy} if long else {}
    return {"code": code, "meaning": known_codes()[code], **more}


def _code_text(code: str) -> str:
    from ir.base.explanations import explanation

    lines = [*_wrapped(f"{code}: {known_codes()[code]}")]
    long = explanation(code)
    if long is not None:
        lines += ["", *_markdown(long.cause), "", "Example", ""]
        lines += ["    " + line for line in long.example.splitlines()]
        lines += ["", "What to do", "", *_markdown(long.remedy)]
    return "\n".join(lines)


def _symptom_data(item: Recognised, model: Path | None) -> dict[str, Any]:
    symptom = item.symptom
    return {
        "name": symptom.name,
        "words": item.words,
        "meaning": item.filled(symptom.happens),
        "causes": [item.filled(text) for text in symptom.causes],
        "do": [{"command": _step(line, model), "effect": effect} for line, effect in _steps(symptom, model)],
        "advice": [item.filled(text) for text in symptom.advice],
        "codes": list(symptom.codes),
    }


def _symptoms_text(found: list[Recognised], model: Path | None) -> Iterator[str]:
    for item in found:
        symptom = item.symptom
        yield from _wrapped(item.filled(symptom.happens))
        yield from ("", "What brings it about", "")
        for text in symptom.causes:
            yield from _wrapped(item.filled(text), "- ")
        steps = _steps(symptom, model)
        yield from ("", "What to do" if len(steps) == 1 else "What to do, the likeliest first", "")
        for line, effect in steps:
            yield f"    {_step(line, model)}"
            yield from _wrapped(effect, " " * 8)
        if symptom.advice:
            yield ""
        for text in symptom.advice:
            yield from _wrapped("Or " + item.filled(text))
        if symptom.codes:
            yield from ("", *_wrapped(f"More: lading explain {' '.join(symptom.codes)}"))
        yield ""
    if found:
        yield from _placeholders(
            " ".join(_step(line, model) for item in found for line, _ in _steps(item.symptom, model))
        )


MODEL, FILE, CHECKPOINT = "MODEL", "FILE.onnx", "CHECKPOINT"
"""Words that stand for a compiled model, the ONNX file and the checkpoint that it may have been made from."""


def _placeholders(lines: str) -> list[str]:
    """What the words in capitals of some command lines stand for."""
    places = {
        MODEL: "the folder of the compiled model", FILE: "the ONNX file that it was converted from",
        CHECKPOINT: "what it was made from", "OUT": "a new folder",
    }  # fmt: skip
    named = [f"{name} is {place}" for name, place in places.items() if re.search(rf"\b{re.escape(name)}\b", lines)]
    return _wrapped(", ".join(named) + "." if named else "")


def _origin(model: Path | None) -> str:
    """The word that a path stands for."""
    if model is None:
        return ""
    if model.suffix.lower() == ".onnx":
        return FILE
    return CHECKPOINT if model.is_dir() and any(model.glob("*.safetensors")) else MODEL


def _steps(symptom: Symptom, model: Path | None) -> list[tuple[str, str]]:
    """The commands that take what a path is; the doctor looks at compiled models and ONNX files. All without a path."""
    origin = _origin(model)
    kept = [
        (line, effect)
        for line, effect in symptom.do
        if origin in line.split() or (origin != CHECKPOINT and line.startswith("lading doctor"))
    ]
    return kept if origin and kept else list(symptom.do)


def _step(text: str, model: Path | None) -> str:
    import shlex

    wanted = _origin(model)
    if model is None:
        return text
    words = {wanted, MODEL} if text.startswith("lading doctor") else {wanted}
    pattern = "|".join(re.escape(word) for word in words)
    return re.sub(rf"\b(?:{pattern})\b", lambda _: shlex.quote(str(model)), text)


def _markdown(text: str) -> Iterator[str]:
    """Markdown of an explanation for a terminal: paragraphs filled, lists and blocks of code as they are."""
    blocks = re.split(r"\n\s*\n", text)
    for number, block in enumerate(blocks):
        if number:
            yield ""
        if block.startswith(("```", "    ")):
            yield from (f"    {line.strip()}" for line in block.splitlines() if not line.startswith("```"))
        elif block.startswith("- "):
            for entry in re.split(r"\n(?=- )", block):
                yield from _wrapped(entry.removeprefix("- "), "- ")
        else:
            yield from _wrapped(block)


def _wrapped(text: str, mark: str = "") -> list[str]:
    import textwrap

    return textwrap.wrap(
        " ".join(text.replace("`", "").split()), WIDTH, initial_indent=mark, subsequent_indent=" " * len(mark),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
