"""Things that are kept in memory between uses, up to a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class Held(Generic[Item]):
    """The things used last, up to a number of bytes; made once even when several threads ask at the same time."""

    def __init__(self, limit: int, size: Callable[[Item], int]) -> None:
        self._limit, self._size = limit, size
        self._items: OrderedDict[Any, Item] = OrderedDict()
        self._busy: dict[Any, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: Any, make: Callable[[], Item]) -> Item:
        """The thing of a key, made when it is not held; what `make` raises is passed on and nothing is held."""
        with self._lock:
            busy = self._busy.setdefault(key, threading.Lock())
        with busy:
            with self._lock:
                found = self._items.get(key)
                if found is not None:
                    self._items.move_to_end(key)
                    return found
            made = make()
            with self._lock:
                self._items[key] = made
                self._busy.pop(key, None)
                while len(self._items) > 1 and sum(map(self._size, self._items.values())) > self._limit:
                    self._items.popitem(last=False)
            return made

    def clear(self) -> None:
        """Hold nothing."""
        with self._lock:
            self._items.clear()


__all__ = ["Held"]
