"""How far an evaluation has come, kept on disk so that a run that was stopped can go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ir.base.cache import whole_file


class Bookmark:
    """One file with the live values before a segment; it is replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

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
        with whole_file(self.path, "Q431", "calibration statistics") as scratch, scratch.open("wb") as file:
            np.savez(file, **arrays)

    def load(self) -> tuple[int, list[dict[str, np.ndarray]]] | None:
        """What was remembered; None when there is nothing, or nothing that can be read."""
        try:
            with np.load(self.path, allow_pickle=False) as held:
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
        self.path.unlink(missing_ok=True)


__all__ = ["Bookmark"]
