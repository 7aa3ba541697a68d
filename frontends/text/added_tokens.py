"""Tokens that a checkpoint names beside ``tokenizer.json``, as transformers adds them on loading.

``added_tokens_decoder`` of ``tokenizer_config.json`` comes first; where that key is absent, ``special_tokens_map.json``
and ``added_tokens.json`` count. Then come the named special tokens (``eos_token`` and the like) and the extra ones. A
token that ``tokenizer.json`` lists as an added one stays as it is. Any other keeps its id if the vocabulary has it and
takes the next free id else, whatever id the files give.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ir.base.json_numbers import whole

NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""Special tokens that every tokenizer may have, in the order in which they are added."""


@dataclass(frozen=True)
class NamedToken:
    """A token of those files.

    Attributes:
        content: its text.
        source: the file that names it.
        id: the id that the file gives, or None.
        special, lstrip, rstrip, normalized, single_word: as in the tokenizers library.
    """

    content: str
    source: str
    id: int | None = None
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    single_word: bool = False


def special_settings(settings: Mapping[str, Any], special_map: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of ``tokenizer_config.json`` that count: without ``added_tokens_decoder`` those of
    ``special_tokens_map.json`` go before them, with it they stand in for missing ones."""
    given = {key: value for key, value in special_map.items() if value is not None}
    if isinstance(settings.get("added_tokens_decoder"), dict):
        return {**given, **settings}
    return {**settings, **given}


def named_tokens(
    settings: Mapping[str, Any], special_map: Mapping[str, Any], legacy: Mapping[str, Any]
) -> list[NamedToken]:
    """The tokens in the order in which they are added, each text once; what is no token is passed over.

    Args:
        settings: ``tokenizer_config.json``.
        special_map: ``special_tokens_map.json``.
        legacy: ``added_tokens.json``.
    """
    merged = special_settings(settings, special_map)
    special = list(_special(merged))
    decoder = settings.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        rows = [(_whole(key), row) for key, row in decoder.items() if isinstance(row, dict)]
        found = [_token(row, "tokenizer_config.json", number) for number, row in rows]
    else:
        names = {item.content for item in special if item is not None}
        found = [
            NamedToken(text, "added_tokens.json", _whole(number), text in names, normalized=text not in names)
            for text, number in legacy.items()
            if text
        ]
    kept = sorted((item for item in found if item is not None), key=lambda item: (item.id is None, item.id or 0))
    unique: dict[str, NamedToken] = {}
    for item in (*kept, *(item for item in special if item is not None)):
        unique.setdefault(item.content, item)
    return list(unique.values())


def read_named_tokens(folder: Path) -> list[NamedToken]:
    """`named_tokens` of a checkpoint folder.

    Raises:
        ValueError: a file is no JSON.
        OSError: a file cannot be read.
    """
    return named_tokens(*map(_read, named_in(folder)))


def named_in(folder: Path) -> list[Path]:
    """The files that name tokens, whether they exist or not, in the order of the arguments of `named_tokens`."""
    return [folder / name for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    data = json.loads(path.read_text(encoding="utf-8-sig"), parse_int=whole)
    return data if isinstance(data, dict) else {}


def _special(merged: Mapping[str, Any]) -> Iterator[NamedToken | None]:
    known = [name + "_token" for name in NAMED]
    others = [key for key in merged if key.endswith("_token") and key not in known]
    for key in (*known, *others):
        yield _named(merged.get(key))
    for key in ("extra_special_tokens", "additional_special_tokens"):
        rows = merged.get(key)
        for row in rows if isinstance(rows, list) else rows.values() if isinstance(rows, dict) else ():
            yield _named(row)


def _named(value: Any) -> NamedToken | None:
    if isinstance(value, str) and value:
        return NamedToken(value, "tokenizer_config.json", special=True)
    return _token({**value, "special": True}, "tokenizer_config.json", None) if isinstance(value, dict) else None


def _token(row: Mapping[str, Any], source: str, number: int | None) -> NamedToken | None:
    content = row.get("content")
    if not isinstance(content, str) or not content:
        return None
    special = bool(row.get("special"))
    flags = {key: bool(row.get(key)) for key in ("lstrip", "rstrip", "single_word")}
    return NamedToken(content, source, number, special, normalized=bool(row.get("normalized", not special)), **flags)


def _whole(text: Any) -> int | None:
    try:
        return int(text)
    except (TypeError, ValueError, OverflowError):
        return None


__all__ = ["NAMED", "NamedToken", "named_in", "named_tokens", "read_named_tokens", "special_settings"]
