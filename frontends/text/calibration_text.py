"""Text to measure a model with, as windows of token ids: a user's file, or the sample that comes with the package.

The text is read in order, tokenized as the checkpoint does it, and cut into windows of one length. The windows taken
are spread over the whole text, and every so many of them are held out. Everything is a function of the file and the
options, so that a second run finds the statistics of the first.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from frontends.text.chat_template import ChatTemplate, Message, chat_template
from frontends.text.tokenizer import open_tokenizer, prefix_of
from ir.base.diag import Diagnostic, LadingError
from ir.quant.statistics.moments import CalibrationText

TOKENS = 8192
"""Default number of tokens to gather statistics on."""
HELD_OUT = 2048
"""Default number of tokens to measure divergence on."""
WINDOW = 512
"""Default length of a window in tokens."""
LEAST_WINDOW = 32
"""Shortest window that is worth measuring with."""
SAMPLE = "calibration.jsonl"
"""Name of the sample in the package's data."""
MOST_BYTES_PER_TOKEN = 64
"""Of a file with more bytes than this for every token wanted, evenly spaced excerpts are read."""
EXCERPTS = 64
"""Number of excerpts of such a file."""


@dataclass(frozen=True)
class Document:
    """One text, or one chat that is yet to be made text; `where` says which for messages."""

    where: str
    text: str = ""
    messages: Sequence[Message] = ()


def load_calibration(
    path: Path | None,
    folder: Path,
    *,
    tokens: int = TOKENS,
    held_out: int = HELD_OUT,
    window: int = WINDOW,
) -> CalibrationText:
    """Windows of token ids for a checkpoint.

    Args:
        path: UTF-8 text, or JSON lines (``.jsonl``) with ``{"messages": [{"role", "content"}, ...]}`` or
            ``{"text": ...}``; None for the package's sample.
        folder: the checkpoint, for its ``tokenizer.json`` and chat template.
        tokens: tokens to gather statistics on; the text may have fewer, see `shortfall`.
        held_out: tokens to measure divergence on, from other windows; 0 for none.
        window: tokens of a window, a BOS token included where the tokenizer puts one in front of a text.

    Raises:
        LadingError: Q432 the file cannot be read or has a bad line, Q433 it is too short, Q434 the chat template is
            missing or fails, Q435 the tokenizer is missing or cannot be read.
        ValueError: a count that makes no sense.
    """
    if tokens < 1 or held_out < 0 or window < LEAST_WINDOW:
        raise ValueError(f"tokens={tokens} held_out={held_out} window={window}")
    tokenizer = open_tokenizer(folder)
    sample = path is None
    if path is None:
        documents = _parsed_lines(files("frontends.text").joinpath(SAMPLE).read_text(encoding="utf-8"), SAMPLE)
    else:
        documents = _documents(path, MOST_BYTES_PER_TOKEN * (tokens + held_out))
    texts = _texts(documents, folder, plain_chats=sample)
    prefix = prefix_of(tokenizer)
    stream = _stream(tokenizer, texts, prefix)
    window = min(window, _longest(folder) or window)
    return _cut(stream, prefix, tokens, held_out, window, str(path or SAMPLE))


def shortfall(text: CalibrationText, *, tokens: int = TOKENS, held_out: int = HELD_OUT) -> Diagnostic | None:
    """A warning when there were fewer tokens than asked for, less a window; else None."""
    found = [sum(map(len, part)) for part in (text.calibration, text.held_out)]
    longest = max((len(item) for item in text.calibration), default=0)
    if all(have + longest > wanted for have, wanted in zip(found, (tokens, held_out), strict=True)):
        return None
    message = f"the text gives {found[0]} tokens to calibrate on and {found[1]} to measure with"
    return Diagnostic("Q433", message, hint=f"{tokens} and {held_out} were asked for", severity="warning")


# ---- reading ----


def _documents(path: Path, budget: int) -> Iterator[Document]:
    """The texts of a file, or of evenly spaced excerpts where it has more bytes than `budget`."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            excerpts = _excerpts(file, size, budget)
    except OSError as error:
        raise LadingError("Q432", f"cannot read the calibration text: {error.strerror}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise _not_utf8(error, str(path)) from error
    for start, data in excerpts:
        where = str(path) if len(excerpts) == 1 else f"{path} from byte {start}"
        try:
            text = data.decode("utf-8-sig" if start == 0 else "utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(error, where) from error
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            yield from _parsed_lines(text, where)
        else:
            yield Document(where, text)


def _not_utf8(error: UnicodeDecodeError, where: str) -> LadingError:
    message = f"the calibration text is not UTF-8: {error.reason} at byte {error.start}"
    return LadingError("Q432", message, where, "save it as UTF-8")


def _excerpts(file: BinaryIO, size: int, budget: int) -> list[tuple[int, bytes]]:
    """The whole file, or whole lines from evenly spaced places; each with its offset. No byte is in two excerpts."""
    file.seek(0)
    if size <= max(budget, 1 << 20):
        return [(0, file.read())]
    length = budget // EXCERPTS
    found = []
    for number in range(EXCERPTS):
        start = number * (size - length) // (EXCERPTS - 1)
        file.seek(start)
        data = file.read(length)
        end = data.rfind(b"\n") + 1 if number < EXCERPTS - 1 else len(data)
        begin = data.find(b"\n") + 1 if number else 0
        found.append((start, data[begin:end] if begin < end else _whole_letters(data)))
    return found


def _whole_letters(data: bytes) -> bytes:
    """A piece of one long line without the halves of letters at its ends."""
    begin = next((at for at in range(min(4, len(data))) if data[at] & 0xC0 != 0x80), 0)
    _, used = codecs.utf_8_decode(data[begin:], "strict", False)
    return data[begin : begin + used]


def _parsed_lines(text: str, where: str) -> Iterator[Document]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _parsed(line, f"{where}, line {number}")


def _parsed(line: str, where: str) -> Document:
    try:
        data = json.loads(line)
        if "\\ud" in line.lower():
            json.dumps(data, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise LadingError("Q432", f"the line is not JSON: {error}", where) from error
    if isinstance(data, dict) and isinstance(data.get("text"), str):
        return Document(where, data["text"])
    messages = data.get("messages") if isinstance(data, dict) else None
    if isinstance(messages, list) and messages and all(_is_message(item) for item in messages):
        return Document(where, messages=messages)
    raise LadingError(
        "Q432",
        "the line is neither a chat nor a text",
        where,
        'write {"text": "..."} or {"messages": [{"role": "user", "content": "..."}]}',
    )


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and all(isinstance(item.get(key), str) for key in ("role", "content"))


def _texts(documents: Iterator[Document], folder: Path, *, plain_chats: bool) -> Iterator[str]:
    """Documents as text; chats through the template, or as labelled lines where there is none and that is allowed."""
    template: ChatTemplate | None = None
    looked = False
    for document in documents:
        if not document.messages:
            yield document.text
            continue
        if not looked:
            template, looked = chat_template(folder), True
        if template is not None:
            yield template.render(document.messages, document.where)
        elif plain_chats:
            yield "".join(f"{item['role'].capitalize()}: {item['content']}\n\n" for item in document.messages)
        else:
            raise LadingError(
                "Q434",
                "the text holds chats, and the checkpoint has no chat template",
                document.where,
                f'add chat_template.jinja to {folder}, or give plain text or {{"text": ...}} lines',
            )


# ---- tokens ----


def _stream(tokenizer: Any, texts: Iterator[str], prefix: list[int]) -> np.ndarray:
    """int32 ids of all texts one after the other, each without the ids that windows begin with."""
    parts = []
    for text in texts:
        ids = tokenizer.encode(text.rstrip() + "\n\n", add_special_tokens=False).ids
        if prefix and ids[: len(prefix)] == prefix:
            ids = ids[len(prefix) :]
        parts.append(np.array(ids, np.int32))
    return np.concatenate(parts) if parts else np.empty(0, np.int32)


def _longest(folder: Path) -> int | None:
    """The most positions of the model, where its configuration says so in the usual place."""
    try:
        data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        # Whoever loads the checkpoint reports this; here it is only a bound.
        return None
    inner: Mapping[str, Any] = data if isinstance(data, dict) else {}
    found = inner.get("max_position_embeddings", (inner.get("text_config") or {}).get("max_position_embeddings"))
    return found if isinstance(found, int) and found >= LEAST_WINDOW else None


# ---- windows ----


def _cut(stream: np.ndarray, prefix: list[int], tokens: int, held_out: int, window: int, where: str) -> CalibrationText:
    """Windows on a grid, so that no two share a token of the text; those taken are spread evenly over it."""
    least = 2 if held_out else 1
    body = min(window - len(prefix), len(stream) // least)
    if body + len(prefix) < LEAST_WINDOW:
        raise LadingError(
            "Q433",
            f"the calibration text has {len(stream)} tokens",
            where=where,
            hint=f"give at least {least * LEAST_WINDOW} tokens; some thousand are needed for good statistics",
        )
    whole = len(stream) // body
    gather, measure = max(round(tokens / window), 1), max(round(held_out / window), 1) if held_out else 0
    if gather + measure > whole:
        measure = min(max(round(whole * measure / (gather + measure)), 1), whole - 1) if measure else 0
        gather = whole - measure
    count = gather + measure
    taken = [
        stream[start : start + body] for start in ((2 * n + 1) * whole // (2 * count) * body for n in range(count))
    ]
    windows = [np.array([*prefix, *part], np.int32) for part in taken]
    apart = {(2 * n + 1) * count // (2 * measure) for n in range(measure)}
    return CalibrationText(
        tuple(item for place, item in enumerate(windows) if place not in apart),
        tuple(item for place, item in enumerate(windows) if place in apart),
    )


__all__ = ["HELD_OUT", "TOKENS", "WINDOW", "load_calibration", "shortfall"]
