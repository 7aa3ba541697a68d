"""Diagnostics: every problem a user can cause is a coded record that says what, where and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ir.base.codes import CODES

_MORE: list[Callable[[], Iterable[tuple[str, str]]]] = []


def more_codes(rows: Callable[[], Iterable[tuple[str, str]]]) -> None:
    """Name a function that gives further codes and their help texts; it is called when they are first needed."""
    _MORE.append(rows)


def known_codes() -> dict[str, str]:
    """Every diagnostic code and its help text: those of `ir.base.codes` and those of plugins."""
    while _MORE:
        for code, text in _MORE.pop()():
            if CODES.setdefault(code, text) != text:
                raise ValueError(f"the diagnostic code {code!r} has two meanings")
    return CODES


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One problem found in the user's input, pipeline or graph.

    Attributes:
        code: key of `known_codes`, such as ``F503``.
        message: what is wrong, with the actual names and numbers.
        where: the file, tensor, node, option or column concerned; empty when the message says it.
        hint: what to do about it; empty when there is only one obvious thing to do.
        severity: ``error``, ``warning`` or ``note``; a note tells how something was understood.
    """

    code: str
    message: str
    where: str = ""
    hint: str = ""
    severity: str = "error"

    def __post_init__(self) -> None:
        if self.code not in CODES and self.code not in known_codes():
            raise KeyError(f"diagnostic code {self.code!r} is in no table of codes")

    def __str__(self) -> str:
        lines = [f"{self.severity}[{self.code}]: {self.message}"]
        if self.where:
            lines += ["  at " + part for part in self.where.splitlines()[:1]]
            lines += ["     " + part for part in self.where.splitlines()[1:]]
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, str]:
        """The record as plain strings, for ``--json``."""
        return {
            "code": self.code,
            "severity": self.severity,
            "message": self.message,
            "where": self.where,
            "hint": self.hint,
        }


class LadingError(Exception):
    """A user-facing failure that carries one or more diagnostics.

    Raise it as ``LadingError("F503", "no such folder", where=path, hint="...")`` or from a list of
    `Diagnostic` with `LadingError.of`. What ``--json`` tells of it besides stands in `details`.
    """

    def __init__(self, code: str, message: str, where: str = "", hint: str = "") -> None:
        self.diagnostics: tuple[Diagnostic, ...] = (Diagnostic(code, message, str(where), hint),)
        self.details: dict[str, Any] = {}
        super().__init__(str(self.diagnostics[0]))

    @classmethod
    def of(cls, diagnostics: Sequence[Diagnostic]) -> LadingError:
        """One error that reports every diagnostic of a non-empty list."""
        if not diagnostics:
            raise ValueError("an error needs at least one diagnostic")
        first = diagnostics[0]
        error = cls(first.code, first.message, first.where, first.hint)
        error.diagnostics = tuple(diagnostics)
        error.args = ("\n".join(str(item) for item in diagnostics),)
        return error

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is otherwise rebuilt from its text alone, which would keep it from crossing processes.
        return LadingError.of, (self.diagnostics,), self.__dict__

    @property
    def code(self) -> str:
        """Code of the first diagnostic."""
        return self.diagnostics[0].code


def suggest(word: str, known: Sequence[str]) -> str:
    """``did you mean 'x'?`` for the nearest known word, or an empty string when none is near."""
    from difflib import get_close_matches

    near = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else ""
