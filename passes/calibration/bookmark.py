"""How far an evaluation has come, kept in a store so that a run that was stopped can go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ir.base.store import UNFINISHED, Store


class Bookmark:
    """One entry with the live values before a segment; it is replaced as a whole.

    Attributes:
        key: what tells it from others.
    """

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._name, self.key = store, f"{UNFINISHED}/{key}", key

    def save(self, place: int, states: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Remember the values before segment `place`, for each set of feeds by name.

        Raises:
            LadingError: Q431 no room or no permission.
        """
        names = sorted(states[0])
        arrays: dict[str, Any] = {
            "place": np.array(place),
            "sets": np.array(len(states)),
            "names": np.array(names, dtype=np.str_),
        }
        for number, state in enumerate(states):
            arrays.update((f"{number}.{index}", state[name]) for index, name in enumerate(names))
        with self._store.put(self._name, "Q431", "calibration statistics") as scratch, scratch.open("wb") as file:
            np.savez(file, **arrays)

    @property
    def name(self) -> str:
        """Name of the entry in the store."""
        return self._name

    def place(self) -> int | None:
        """The segment of what was remembered, without the values; None as for `load`."""
        kept = self._store.find(self._name)
        try:
            if kept is not None:
                with np.load(kept.path, allow_pickle=False) as held:
                    return int(held["place"])
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            pass
        return None

    def load(self) -> tuple[int, list[dict[str, np.ndarray]]] | None:
        """What was remembered; None when there is nothing, or nothing that can be read."""
        kept = self._store.find(self._name)
        if kept is None:
            return None
        try:
            with np.load(kept.path, allow_pickle=False) as held:
                names = [str(name) for name in held["names"]]
                states = [
                    {name: held[f"{number}.{index}"] for index, name in enumerate(names)}
                    for number in range(int(held["sets"]))
                ]
                return int(held["place"]), states
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None

    def remove(self) -> None:
        """Forget; nothing happens when nothing was remembered."""
        self._store.remove(self._name)


__all__ = ["Bookmark"]
