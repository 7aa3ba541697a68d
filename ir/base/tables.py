"""Tables that packages add rows to: a name maps to an object, or to ``"module:attribute"`` that is imported on first
use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def imported(path: str) -> Any:
    """The object of ``"module:attribute"``; ImportError or AttributeError when there is none."""
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


class Table(Mapping[str, T], Generic[T]):
    """Rows by name, in the order in which they were added.

    Args:
        what: what a row is, for messages, such as ``tensor recipe``.
        rows: the first rows.
    """

    def __init__(self, what: str, rows: Mapping[str, T | str] | None = None) -> None:
        self.what = what
        self._rows: dict[str, T | str] = dict(rows or {})

    def add(self, name: str, row: T | str) -> None:
        """Add a row.

        Raises:
            ValueError: the name has another row. A row and the text that names it are the same.
        """
        known = self._rows.setdefault(name, row)
        if known is row or known == row:
            return
        if spelled(known) != spelled(row):
            raise ValueError(f"the {self.what} {name!r} is taken")
        if isinstance(known, str):
            self._rows[name] = row

    def remove(self, name: str) -> None:
        """Take a row out; KeyError when there is none."""
        del self._rows[name]

    def __getitem__(self, name: str) -> T:
        found = self._rows[name]
        if isinstance(found, str):
            found = self._rows[name] = imported(found)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"Table({self.what!r}, {self._rows!r})"


def spelled(row: Any) -> str:
    """``module:attribute`` of a class or function, or the row itself as text; tells whether two rows are the same."""
    if isinstance(row, str):
        return row
    name = getattr(row, "__qualname__", None)
    return f"{row.__module__}:{name}" if name is not None else f"object {id(row)}"


__all__ = ["Table", "imported", "spelled"]
