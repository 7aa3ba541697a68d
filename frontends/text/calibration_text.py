"""Text to measure a model with, as windows of token ids: a user's file, or the sample that comes with the package.

The text is read in order, tokenized as the checkpoint does it, and cut into windows of one length. The windows taken
are spread over the whole text, and every so many of them are held out. Everything is a function of the file and the
options, so that a second run finds the statistics of the first.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from frontends.text.chat_template import Chat, chat_template
from frontends.text.documents import Document, parsed_lines, read_documents
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
"""Of a file with more bytes than this for every token wanted, evenly spaced parts are read."""


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
        path: plain text, or chats and texts in one of the forms of `frontends.text.documents`; None for the package's
            sample.
        folder: the checkpoint, for its ``tokenizer.json`` and chat template.
        tokens: tokens to gather statistics on; the text may have fewer, see `shortfall`.
        held_out: tokens to measure divergence on, from other windows; 0 for none.
        window: tokens of a window, a BOS token included where the tokenizer puts one in front of a text.

    Raises:
        LadingError: Q432 the file cannot be read or has a bad row, Q433 it is too short, Q434 the chat template is
            missing or fails, Q435 the tokenizer is missing or cannot be read, Q480 the template was stopped, Q481 the
            file is empty or binary.
        ValueError: a count that makes no sense.
    """
    if tokens < 1 or held_out < 0 or window < LEAST_WINDOW:
        raise ValueError(f"tokens={tokens} held_out={held_out} window={window}")
    tokenizer = open_tokenizer(folder)
    sample = path is None
    if path is None:
        found = parsed_lines(files("frontends.text").joinpath(SAMPLE).read_text(encoding="utf-8"), SAMPLE)
    else:
        found = read_documents(path, MOST_BYTES_PER_TOKEN * (tokens + held_out))
    documents = list(found)
    texts = _texts(documents, folder, plain_chats=sample)
    prefix = prefix_of(tokenizer)
    stream = _stream(tokenizer, texts, prefix)
    window = min(window, _longest(folder) or window)
    cut = _cut(stream, prefix, tokens, held_out, window, str(path or SAMPLE))
    return replace(cut, read_as=_what(documents))


def shortfall(text: CalibrationText, *, tokens: int = TOKENS, held_out: int = HELD_OUT) -> Diagnostic | None:
    """A warning when there were fewer tokens than asked for, less a window; else None."""
    found = [sum(map(len, part)) for part in (text.calibration, text.held_out)]
    longest = max((len(item) for item in text.calibration), default=0)
    if all(have + longest > wanted for have, wanted in zip(found, (tokens, held_out), strict=True)):
        return None
    message = f"the text gives {found[0]} tokens to calibrate on and {found[1]} to measure with"
    return Diagnostic("Q433", message, hint=f"{tokens} and {held_out} were asked for", severity="warning")


def whole_text(path: Path, folder: Path) -> str:
    """A file as one text: plain text as it is, texts and chats one after the other, chats through the template.

    Raises:
        LadingError: as `load_calibration`.
    """
    return "\n\n".join(_texts(list(read_documents(path, sys.maxsize)), folder, plain_chats=False))


# ---- chats ----


def _texts(documents: Sequence[Document], folder: Path, *, plain_chats: bool) -> list[str]:
    """Documents as text; chats through the template, or as labelled lines where there is none and that is allowed."""
    chats = [item for item in documents if item.messages]
    template = chat_template(folder) if chats else None
    if template is not None:
        rendered = iter(template.render([(Chat(item.messages, item.tools), item.where) for item in chats]))
        return [next(rendered) if item.messages else item.text for item in documents]
    if plain_chats:
        return [_labelled(item) for item in documents]
    for item in chats:
        if not item.text:
            raise LadingError(
                "Q434",
                "the text holds chats, and the checkpoint has no chat template",
                item.where,
                f'add chat_template.jinja to {folder}, or give plain text or {{"text": ...}} lines',
            )
    return [item.text for item in documents]


def _labelled(item: Document) -> str:
    if not item.messages:
        return item.text
    return "".join(f"{turn['role'].capitalize()}: {turn['content']}\n\n" for turn in item.messages)


def _what(documents: Sequence[Document]) -> str:
    """How a file was read, for people."""
    chats = sum(bool(item.messages) for item in documents)
    counts = ((chats, "chat"), (len(documents) - chats, "text"))
    return " and ".join(f"{count:,} {word}{'s' if count != 1 else ''}" for count, word in counts if count)


# ---- tokens ----


def _stream(tokenizer: Any, texts: Sequence[str], prefix: list[int]) -> np.ndarray:
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


__all__ = ["HELD_OUT", "TOKENS", "WINDOW", "load_calibration", "shortfall", "whole_text"]
