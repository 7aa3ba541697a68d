"""A chat as the text a model was trained on: the checkpoint's own template, run in a limited process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from frontends.text.chat_child import Chat, ChildStoppedError, Limits, Message, Rendered, render_chats
from frontends.tokenizers.files import TOKENIZER, read_tokenizer, tokenizer_file
from ir.base.diag import LadingError

SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
"""Tokens that templates may speak of."""
TODAY = datetime(2024, 7, 26)
"""The date that templates are told in calibration, so that a chat is the same text every day."""


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a checkpoint.

    Attributes:
        source: its text.
        tokens: the special tokens by name.
        where: the file it stands in.
    """

    source: str
    tokens: Mapping[str, str]
    where: str

    def render(self, chats: Sequence[tuple[Chat, str]], limits: Limits | None = None) -> list[str]:
        """The texts of chats, each with its place for messages.

        Raises:
            LadingError: Q434 the template is not valid, refuses a chat or fails; Q480 it takes too much time, memory
                or text.
        """
        hint = f"the template is that of {self.where}; give plain text instead of chats"
        try:
            found = render_chats(self.source, self.tokens, [chat for chat, _ in chats], now=TODAY, limits=limits)
        except ValueError as error:
            raise LadingError("Q434", f"the chat template is not valid: {error}", where=self.where) from error
        except ChildStoppedError as error:
            raise LadingError("Q480", f"the chat template {error}", self.where, hint) from error
        return [_text(item, where, hint) for item, (_, where) in zip(found, chats, strict=True)]


def _text(item: Rendered, where: str, hint: str) -> str:
    if item.text is None:
        raise LadingError("Q434", f"the chat template cannot be applied: {item.problem}", where, hint)
    return item.text


def chat_template(folder: Path) -> ChatTemplate | None:
    """The chat template of a checkpoint folder, or None; `transformers` looks in the same places in the same order.

    Raises:
        LadingError: Q434 the template cannot be read, Q435 one of the JSON files cannot be read.
    """
    settings = _settings(folder / "tokenizer_config.json")
    named = {**_settings(folder / "special_tokens_map.json"), **settings}
    tokens = {name: text for name in SPECIAL_TOKENS if (text := _token(named.get(name))) is not None}
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return _with_tokens(path.read_text(encoding="utf-8"), tokens, path, folder)
        except (OSError, UnicodeDecodeError) as error:
            raise LadingError("Q434", f"the chat template cannot be read: {error}", where=str(path)) from error
    apart = folder / "chat_template.json"
    found = _settings(apart).get("chat_template")
    where = folder / "tokenizer_config.json" if found is None else apart
    found = settings.get("chat_template") if found is None else found
    if isinstance(found, list):
        found = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
    if isinstance(found, dict):
        found = found.get("default")
    return _with_tokens(found, tokens, where, folder) if isinstance(found, str) and found else None


def _with_tokens(source: str, tokens: Mapping[str, str], where: Path, folder: Path) -> ChatTemplate:
    """A template with the special tokens; those that it speaks of and no settings name are those of the vocabulary."""
    if all(name in tokens or name not in source for name in SPECIAL_TOKENS):
        return ChatTemplate(source, tokens, str(where))
    path = tokenizer_file(folder)
    try:
        own = read_tokenizer(folder).named if path is not None and path.name != TOKENIZER else {}
    except LadingError:
        # Whoever needs the tokenizer itself reports what is wrong with it.
        own = {}
    return ChatTemplate(source, {**own, **tokens}, str(where))


def _settings(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise LadingError("Q435", f"cannot be read as JSON: {error}", where=str(path)) from error
    return data if isinstance(data, dict) else {}


def _token(item: Any) -> str | None:
    """A special token is written as its text, or as an object that holds it."""
    text = item.get("content") if isinstance(item, dict) else item
    return text if isinstance(text, str) else None


__all__ = ["Chat", "ChatTemplate", "Message", "chat_template"]
