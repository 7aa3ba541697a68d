"""The ids that end generation, from all places where people put them.

Transformers stops at the ids of ``generation_config.json``, chat applications at the tokenizer's end token too, and
older checkpoints have theirs in ``config.json`` alone. MNN stops at a list in the tokenizer file, which gets all of
them. Where none of them is what the chat template writes after a message, that token is added: the model ends its turns
with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ir.base.diag import LadingError

TEMPLATE = "the chat template"


@dataclass(frozen=True)
class EndFiles:
    """What the files say: ids by file, texts by file, and the stop strings of generation_config.json."""

    folder: str
    ids: Sequence[tuple[str, Any]]
    texts: Sequence[tuple[str, Any]]
    stop_strings: Any = None


@dataclass
class Ends:
    """The ids with the files that name them, and what is odd about others."""

    sources: dict[int, tuple[str, ...]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, token: int, source: str) -> None:
        """Note a source of an id."""
        known = self.sources.get(token, ())
        if source not in known:
            self.sources[token] = (*known, source)


def find_ends(
    files: EndFiles,
    id_of: Callable[[str], int | None],
    count: int,
    special: Sequence[str],
    template: str | None,
) -> Ends:
    """The ids that end generation.

    Args:
        files: what the checkpoint says.
        id_of: the id of a text that is a token, None for others.
        count: number of ids.
        special: texts of the special tokens.
        template: the chat template.

    Raises:
        LadingError: B652 an id that is no whole number from 0 on.
    """
    ends = Ends()
    first, *others = files.ids
    _add_ids(ends, files.folder, first, count)
    for name, value in files.texts:
        _add_text(ends, name, value.get("content") if isinstance(value, Mapping) else value, id_of)
    for item in others:
        _add_ids(ends, files.folder, item, count)
    for text in _listed(files.stop_strings):
        if isinstance(text, str) and text in special and (token := id_of(text)) is not None:
            ends.add(token, "stop_strings")
    turns = [token for text in turn_ends(template or "", special) if (token := id_of(text)) is not None]
    if not set(turns) & set(ends.sources):
        for token in turns[:1]:
            ends.add(token, TEMPLATE)
    return ends


def _add_ids(ends: Ends, folder: str, item: tuple[str, Any], count: int) -> None:
    name, value = item
    for token in _listed(value):
        if not isinstance(token, int) or isinstance(token, bool) or token < 0:
            message = f"eos_token_id {token!r} is no token id, which is a whole number from 0 on"
            raise LadingError("B652", message, where=f"{folder}/{name}")
        if token < count:
            ends.add(token, name)
        else:
            ends.problems.append(f"eos_token_id {token} of {name} is left out: the model has {count} ids")


def _add_text(ends: Ends, name: str, text: Any, id_of: Callable[[str], int | None]) -> None:
    if not isinstance(text, str):
        return
    token = id_of(text)
    if token is not None:
        ends.add(token, name)
    else:
        ends.problems.append(f"eos_token {text!r} of {name} cannot end generation: it has no row in the embedding")


def _listed(value: Any) -> Iterator[Any]:
    """The items of a list, or a single one; nothing for null."""
    yield from value if isinstance(value, list) else () if value is None else (value,)


def turn_ends(template: str, special: Sequence[str]) -> list[str]:
    """Special tokens that a template writes right behind the content of a message, in the order of the template.

    Looked for in the text of the template: ``content``, then nothing but filters, indices and signs that join texts, then
    the token.
    """
    names = [text for text in special if text in template]
    if not names:
        return []
    pattern = _BEHIND_CONTENT + "(" + "|".join(map(re.escape, sorted(names, key=len, reverse=True))) + ")"
    return list(dict.fromkeys(re.findall(pattern, template)))


_BEHIND_CONTENT = r"\bcontent\b['\"\]\)]*(?:\s*\|\s*\w+|\.\w+\(\))*\s*(?:[+~]|-?\}\})\s*(?:\{\{-?\s*)?['\"]?(?:\s|\\n)*"


__all__ = ["TEMPLATE", "EndFiles", "Ends", "find_ends", "turn_ends"]
