"""What runtimes print or do when something is wrong, as rows of a table: from the words of a crash to its cause.

A runtime's plugin names its rows in the table ``symptoms`` (`ir.base.plugins.Plugin`). The command ``lading explain``
looks a text up with `recognised`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Symptom:
    """Something that a runtime prints or does.

    Attributes:
        name: a few words; the key in a table.
        says: regular expressions, case ignored, one of which is in the text. A space stands for any white space.
            Named groups can be used in the other texts as ``{group}``.
        happens: what it means, as one sentence.
        causes: what brings it about, the most frequent first.
        do: commands, each with what it does or when it is the one to take; the first is the one that usually leads to
            a folder that runs. ``MODEL`` stands for the folder of the compiled model, ``CHECKPOINT`` for what it was
            made from.
        advice: what else can be done.
        codes: diagnostic codes under which the causes are found.
        follows: it comes after something that says more; shown only where nothing else is recognised.
        source: where the runtime prints it.
    """

    name: str
    says: tuple[str, ...]
    happens: str
    causes: tuple[str, ...]
    do: tuple[tuple[str, str], ...]
    advice: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    follows: bool = False
    source: str = ""

    @cached_property
    def _patterns(self) -> list[re.Pattern[str]]:
        return [re.compile(text.replace(" ", r"\s+"), re.IGNORECASE) for text in self.says]

    def match(self, text: str) -> re.Match[str] | None:
        """Where the text has the symptom."""
        return next((found for pattern in self._patterns if (found := pattern.search(text))), None)


@dataclass(frozen=True)
class Recognised:
    """A symptom in a text.

    Attributes:
        symptom: the row.
        words: the part of the text by which it was recognised.
        groups: the named groups of the expression that matched.
    """

    symptom: Symptom
    words: str
    groups: dict[str, str]

    def filled(self, text: str) -> str:
        """A text of the row with its groups filled in."""
        for name, value in self.groups.items():
            text = text.replace("{" + name + "}", value)
        return text


def recognised(text: str, symptoms: Iterable[Symptom]) -> list[Recognised]:
    """The symptoms that a text tells of, in the order of the table: of rows with the same words the first, and what
    follows from others only where it is alone."""
    found = []
    taken: list[tuple[int, int]] = []
    for symptom in symptoms:
        match = symptom.match(text)
        if match is not None and not any(match.start() < end and start < match.end() for start, end in taken):
            taken.append(match.span())
            groups = {name: value for name, value in match.groupdict().items() if value is not None}
            found.append(Recognised(symptom, " ".join(match.group().split()), groups))
    telling: Sequence[Recognised] = [item for item in found if not item.symptom.follows]
    return list(telling or found)


__all__ = ["Recognised", "Symptom", "recognised"]
