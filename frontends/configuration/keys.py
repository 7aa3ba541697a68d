"""Typed access to the keys of one configuration: spellings, defaults of the configuration class, and what was read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ir.base.diag import LadingError

ROPE_RECORDS = ("rope_scaling", "rope_parameters")
"""Where a rope record stands, the spelling of older files first; the first one that says anything counts."""

IN_ROPE = "rope."
"""Start of the name of a key that stands in the rope record, or else at the top level."""


def shown(value: object) -> str:
    """A JSON value for a message, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Keys:
    """The keys of one configuration.

    Attributes:
        raw: the JSON object.
        defaults: values that the configuration class gives to absent keys.
        aliases: other spellings of keys, as ``{spelling: key}``.
        path: the file, for messages.
        prefix: what stands before a key in messages: the record that it is in.
        seen: the keys that were asked for.
    """

    def __init__(
        self,
        raw: Mapping[str, Any],
        path: str,
        defaults: Mapping[str, Any] | None = None,
        aliases: Mapping[str, str] | None = None,
        prefix: str = "",
    ) -> None:
        self.raw = raw
        self.path = path
        self.prefix = prefix
        self.defaults = defaults or {}
        self.aliases = aliases or {}
        self.seen: set[str] = set()

    def at(self, key: str) -> str:
        """Location of a key."""
        return f"{self.path}:{self.prefix}{self._spelling(key)}"

    def stated(self, key: str) -> bool:
        """True when the file gives a key a value other than null."""
        return self._find(key) is not None

    def get(self, key: str) -> Any:
        """Value of a key, its default, or None; the key counts as read in all of its spellings."""
        spellings = self._spellings(key)
        self.seen.update(spellings)
        if key.startswith(IN_ROPE):
            self.seen.add(key.removeprefix(IN_ROPE))
            return self._find(key)
        written = [name for name in spellings if name in self.raw]
        if written:
            return self.raw[written[0]]
        return next((self.defaults[name] for name in spellings if name in self.defaults), None)

    def bad(self, key: str, wanted: str) -> LadingError:
        """The error of a value that is not what was wanted."""
        name = self._spelling(key)
        return LadingError("F531", f"{name} is {shown(self.get(key))}; it must be {wanted}", self.at(key))

    def record(self, key: str) -> dict[str, Any]:
        """A JSON object; empty for null and absent."""
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.bad(key, "an object")
        return dict(value or {})

    def rope_key(self) -> str:
        """The name of the rope record that counts."""
        said = [name for name in ROPE_RECORDS if self.record(name)]
        return said[0] if said else ROPE_RECORDS[-1]

    def _spellings(self, key: str) -> tuple[str, ...]:
        own = self.aliases.get(key)
        others = [name for name, target in self.aliases.items() if target in (key, own) and name != key]
        return (key, *((own,) if own else ()), *others)

    def _spelling(self, key: str) -> str:
        """The spelling in which the file has a key; the first one where it has none."""
        return next((name for name in self._spellings(key) if name in self.raw), key)

    def _find(self, key: str) -> Any:
        """A value that the file states."""
        if key.startswith(IN_ROPE):
            inner = key.removeprefix(IN_ROPE)
            value = self.record(self.rope_key()).get(inner)
            return self.raw.get(inner) if value is None else value
        return next((self.raw[name] for name in self._spellings(key) if self.raw.get(name) is not None), None)


__all__ = ["IN_ROPE", "ROPE_RECORDS", "Keys", "shown"]
