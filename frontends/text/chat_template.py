"""A chat as the text a model was trained on: the checkpoint's own template, run in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ir.base.diag import LadingError

Message = Mapping[str, str]

SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
"""Tokens that templates may speak of."""
TODAY = datetime(2024, 7, 26)
"""The date that templates are told, so that a chat is the same text every day."""


class ChatTemplate:
    """The chat template of a checkpoint."""

    def __init__(self, source: str, tokens: Mapping[str, str], where: str) -> None:
        """Compile a template; `tokens` are the special tokens by name.

        Raises:
            LadingError: Q434 the template is not valid.
        """
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = lambda item, indent=None: json.dumps(item, ensure_ascii=False, indent=indent)
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = TODAY.strftime
        self._tokens = dict(tokens)
        self._where = where
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise LadingError("Q434", f"the chat template is not valid: {error}", where=where) from error

    def render(self, messages: Sequence[Message], where: str) -> str:
        """The text of a chat.

        Raises:
            LadingError: Q434 the template refuses the chat or fails.
        """
        try:
            return self._template.render(
                messages=[dict(item) for item in messages],
                tools=None,
                documents=None,
                add_generation_prompt=False,
                **self._tokens,
            )
        # A template is a program of the checkpoint and can fail in any way.
        except Exception as error:
            message = f"the chat template cannot be applied: {type(error).__name__}: {error}"
            hint = f"the template is that of {self._where}; give plain text instead of chats"
            raise LadingError("Q434", message, where, hint) from error


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def chat_template(folder: Path) -> ChatTemplate | None:
    """The chat template of a checkpoint folder, or None.

    Raises:
        LadingError: Q434 the template is not valid, Q435 tokenizer_config.json cannot be read.
    """
    settings = _settings(folder / "tokenizer_config.json")
    tokens = {name: text for name in SPECIAL_TOKENS if (text := _token(settings.get(name))) is not None}
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return ChatTemplate(path.read_text(encoding="utf-8"), tokens, str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise LadingError("Q434", f"the chat template cannot be read: {error}", where=str(path)) from error
    found = settings.get("chat_template")
    if isinstance(found, list):
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        found = named.get("default")
    return ChatTemplate(found, tokens, str(folder / "tokenizer_config.json")) if isinstance(found, str) else None


def _settings(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LadingError("Q435", f"cannot be read as JSON: {error}", where=str(path)) from error
    return data if isinstance(data, dict) else {}


def _token(item: Any) -> str | None:
    """A special token is written as its text, or as an object that holds it."""
    text = item.get("content") if isinstance(item, dict) else item
    return text if isinstance(text, str) else None


__all__ = ["ChatTemplate", "Message", "chat_template"]
