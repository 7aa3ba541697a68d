"""How far an evaluation has come, kept in a store so that a run that was stopped can go on."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from zipfile import BadZipFile, ZipFile

import numpy as np

from ir.base.store import UNFINISHED, Store

SMALL = 16 << 20
"""Bytes of values that are remembered whenever there is something to remember."""
SECONDS = 20.0
"""How long larger ones are left alone once they were written."""


class Bookmark:
    """One entry with the live values before a segment; it is replaced as a whole.

    Attributes:
        key: what tells it from others.
    """

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._name, self.key = store, f"{UNFINISHED}/{key}", key
        self._saved, self._bytes = -math.inf, 0

    @property
    def is_due(self) -> bool:
        """False shortly after large values were remembered, which takes longer than what would be lost."""
        return self._bytes <= SMALL or time.monotonic() - self._saved >= SECONDS

    def save(self, place: int, states: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Remember the values before segment `place`, for each set of feeds by name; each is asked for once, and let go
        before the next.

        Raises:
            LadingError: Q431 no room or no permission.
        """
        names = sorted(states[0])
        self._bytes = 0
        with (
            self._store.put(self._name, "Q431", "calibration statistics") as scratch,
            scratch.open("wb") as file,
            ZipFile(file, "w") as entries,
        ):
            self._write(entries, "place", np.array(place))
            self._write(entries, "sets", np.array(len(states)))
            self._write(entries, "names", np.array(names, dtype=np.str_))
            for number, state in enumerate(states):
                for index, name in enumerate(names):
                    self._write(entries, f"{number}.{index}", state[name])
        self._saved = time.monotonic()

    def _write(self, entries: ZipFile, name: str, array: np.ndarray) -> None:
        self._bytes += array.nbytes
        with entries.open(f"{name}.npy", "w", force_zip64=True) as entry:
            np.lib.format.write_array(entry, array, allow_pickle=False)

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
