"""What lies beside a vocabulary file: settings, the program it was made for, and tokens with their ids."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ir.base.diag import LadingError
from ir.base.json_numbers import whole

GENERAL = ("PreTrainedTokenizer", "TokenizersBackend")
"""Classes of transformers that say nothing of how text is read."""


def read_json(path: Path) -> Any:
    """A JSON file; an empty object where there is none.

    Raises:
        LadingError: Q435 it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), parse_int=whole) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise LadingError("Q435", f"cannot be read as JSON: {error}", where=str(path)) from error


@dataclass(frozen=True)
class Settings:
    """The folder of a tokenizer."""

    folder: Path

    @cached_property
    def values(self) -> Mapping[str, Any]:
        """``tokenizer_config.json``."""
        data = read_json(self.folder / "tokenizer_config.json")
        return data if isinstance(data, dict) else {}

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """``config.json``."""
        data = read_json(self.folder / "config.json")
        return data if isinstance(data, dict) else {}

    @property
    def program(self) -> str | None:
        """Name of the class that reads the vocabulary, without the word Fast at its end; None where nobody says more than
        that it is a tokenizer."""
        name = self.values.get("tokenizer_class")
        own = self.own_code
        if own is not None:
            name = own
        if not isinstance(name, str) or not name:
            name = self.config.get("tokenizer_class")
        name = name.removesuffix("Fast") if isinstance(name, str) else ""
        return name if name and name not in GENERAL else None

    @property
    def own_code(self) -> str | None:
        """Name of the class where it comes with the checkpoint, as code that is never run."""
        found = None
        for data in (self.config, self.values):
            named = data.get("auto_map")
            named = named.get("AutoTokenizer") if isinstance(named, dict) else None
            rows = named if isinstance(named, list) else [named]
            found = next((row for row in rows if isinstance(row, str)), found)
        return None if found is None else found.rpartition(".")[2]

    def flag(self, key: str, default: bool) -> bool:
        """A switch of ``tokenizer_config.json``."""
        value = self.values.get(key)
        return value if isinstance(value, bool) else default

    def text(self, name: str) -> str | None:
        """A special token such as ``bos_token``."""
        value = self.values.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        return value if isinstance(value, str) and value else None

    @cached_property
    def listed(self) -> Mapping[int, tuple[str, bool]]:
        """Tokens of ``added_tokens_decoder`` by id: text, and whether they are special."""
        rows = self.values.get("added_tokens_decoder")
        found: dict[int, tuple[str, bool]] = {}
        for key, row in rows.items() if isinstance(rows, dict) else ():
            content = row.get("content") if isinstance(row, dict) else None
            if isinstance(content, str) and content and key.isdecimal() and len(key) < 10:
                found[int(key)] = (content, bool(row.get("special")))
        return found


__all__ = ["Settings", "read_json"]
