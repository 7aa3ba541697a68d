"""Tables that packages add rows to: a name maps to an object, or to ``"module:attribute"`` that is imported on use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any, Generic, TypeVar

from ir.base.diag import LadingError

T = TypeVar("T")

OWN = "lading"
"""The package of rows that a table begins with."""


def imported(path: str) -> Any:
    """The object of ``"module:attribute"``; ImportError or AttributeError when there is none."""
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


class Table(Mapping[str, T], Generic[T]):
    """Rows by name, in the order in which they were added.

    Args:
        what: what a row is, for messages, such as ``tensor recipe``.
        rows: the first rows.
        more: gives further rows as ``(name, row, package)``; asked once, when a name is not found or all are wanted.
        check: raises when a row is malformed; called when the row is first used.
    """

    def __init__(
        self,
        what: str,
        rows: Mapping[str, T | str] | None = None,
        more: Callable[[], Iterable[tuple[str, T | str, str]]] | None = None,
        check: Callable[[str, T], None] | None = None,
    ) -> None:
        self.what = what
        self._rows: dict[str, T | str] = dict(rows or {})
        self._package: dict[str, str] = {}
        self._more = more
        self._check = check
        self._checked: set[str] = set()

    def add(self, name: str, row: T | str, package: str = OWN) -> None:
        """Add a row; adding it again, or text that names it, changes nothing.

        Raises:
            LadingError: P331 the name has another row.
            LadingError: P330 a row of another package is malformed.
            ValueError or TypeError: a row of ours is malformed.
        """
        if not isinstance(row, str):
            self._require_sound(name, row, package)
        known = self._rows.setdefault(name, row)
        if known is row or spelled(known) == spelled(row):
            self._package.setdefault(name, package)
            return
        owner = self.package(name)
        message = f"the {self.what} {name!r} is claimed by {owner} and by {package}"
        raise LadingError("P331", message, package, f"uninstall one of them, or rename it in {package}")

    def remove(self, name: str) -> None:
        """Take a row out; KeyError when there is none."""
        del self._rows[name]
        self._package.pop(name, None)
        self._checked.discard(name)

    def package(self, name: str) -> str:
        """The package that a row comes from."""
        return self._package.get(name, OWN)

    def _complete(self) -> None:
        if self._more is not None:
            more, self._more = self._more, None
            for name, row, package in more():
                self.add(name, row, package)

    def __getitem__(self, name: str) -> T:
        if name not in self._rows:
            self._complete()
        found = self._rows[name]
        if isinstance(found, str):
            found = self._rows[name] = self._imported(name, found)
        if name not in self._checked:
            self._require_sound(name, found, self.package(name))
            self._checked.add(name)
        return found

    def _require_sound(self, name: str, row: T, package: str) -> None:
        if self._check is None:
            return
        try:
            self._check(name, row)
        except (TypeError, ValueError) as error:
            if package == OWN:
                raise
            raise LadingError("P330", f"the {self.what} {name!r} is malformed: {error}", package) from error

    def _imported(self, name: str, path: str) -> T:
        try:
            found: T = imported(path)
        except Exception as error:
            package = self.package(name)
            if package == OWN:
                raise
            raise LadingError("P330", f"cannot import {path!r}: {error!r}", package) from error
        return found

    def __contains__(self, name: object) -> bool:
        if name not in self._rows:
            self._complete()
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        self._complete()
        return iter(self._rows)

    def __len__(self) -> int:
        self._complete()
        return len(self._rows)

    def __repr__(self) -> str:
        return f"Table({self.what!r}, {self._rows!r})"


def spelled(row: Any) -> Any:
    """``module:attribute`` of a class or function, text as it is, and else the object itself."""
    name = getattr(row, "__qualname__", None)
    return f"{row.__module__}:{name}" if name is not None else row


__all__ = ["OWN", "Table", "imported", "spelled"]
