"""What a model is asked: a text of the command line, standard input, or a file of many."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ir.base.diag import LadingError

SUFFIXES = (".jsonl", ".ndjson")
SHAPES = 'write "...", {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}'


@dataclass(frozen=True)
class Prompt:
    """One question with what comes before it.

    Attributes:
        messages: role and content, the last one to be answered.
        where: the file and line it stands in, for messages; empty for the command line.
    """

    messages: tuple[Mapping[str, str], ...]
    where: str = ""

    @property
    def text(self) -> str:
        """The last message alone."""
        return self.messages[-1]["content"]


def prompt_of(text: str, system: str | None = None, where: str = "") -> Prompt:
    """A prompt of a text, with what the model is told beforehand.

    Raises:
        LadingError: U992 an empty text, or one that no model can be fed.
    """
    for part in (text, system or ""):
        _require_text(part, where)
    if not text.strip():
        raise LadingError("U992", "the prompt is empty", where)
    return Prompt((*_system(system), {"role": "user", "content": text}), where)


def prompts_of(path: Path, system: str | None = None) -> list[Prompt]:
    """The prompts of a file: one a line, or a JSON value a line where it ends in ``.jsonl``.

    A chat is answered where its last message of somebody else than the model stands.

    Raises:
        LadingError: U992 a file that cannot be read or has a bad line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise LadingError("U992", f"cannot read the prompts: {error.strerror}", str(path)) from error
    except UnicodeDecodeError as error:
        message = f"the file of prompts is not UTF-8: {error.reason} at byte {error.start}"
        raise LadingError("U992", message, str(path)) from error
    found = list(_parsed(text, path, system))
    if not found:
        raise LadingError("U992", "the file holds no prompt", str(path))
    return found


def _parsed(text: str, path: Path, system: str | None) -> Iterator[Prompt]:
    for number, line in enumerate(text.split("\n"), 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        if path.suffix.lower() in SUFFIXES:
            yield _of_json(line, system, where)
        else:
            yield prompt_of(line.rstrip("\r"), system, where)


def _of_json(line: str, system: str | None, where: str) -> Prompt:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LadingError("U992", f"the line is not JSON: {error}", where, SHAPES) from error
    found = data.get("prompt", data.get("text")) if isinstance(data, dict) else data
    if isinstance(found, str):
        return prompt_of(found, system, where)
    messages = data.get("messages") if isinstance(data, dict) else None
    if not isinstance(messages, list) or not all(_is_message(item) for item in messages):
        raise LadingError("U992", "the line is neither a prompt nor a chat", where, SHAPES)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise LadingError("U992", "the chat has no message to answer", where)
    for item in messages:
        _require_text(item["content"], where)
    own = [] if messages[0]["role"] == "system" else _system(system)
    return Prompt((*own, *({"role": item["role"], "content": item["content"]} for item in messages)), where)


def _system(text: str | None) -> list[Mapping[str, str]]:
    return [{"role": "system", "content": text}] if text else []


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and all(isinstance(item.get(key), str) for key in ("role", "content"))


def _require_text(text: str, where: str) -> None:
    """What goes through the runtime's strings: no NUL, which ends one, and no half of a character."""
    if "\0" in text:
        raise LadingError("U992", "the prompt holds a NUL character, at which the runtime stops reading", where)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise LadingError("U992", f"the prompt is no text: {error.reason} at character {error.start}", where) from error
