"""Measurements kept on disk, so that a second budget for the same model costs seconds.

A file holds JSON and is named by a digest of everything the numbers follow from. It appears complete or not at all; one
that is damaged is measured again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ir.base.cache import cache_folder, whole_file


def digest_of(parts: Iterable[Any]) -> str:
    """Digest (hex) of the text forms of the parts and of their order."""
    state = blake2b(digest_size=16)
    for part in parts:
        data = str(part).encode()
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()


def path_of(key: str) -> Path:
    """The file of a key, which need not exist."""
    return cache_folder() / "measurements" / f"{key}.json"


def recall(key: str) -> Any:
    """What was kept under a key; None when there is nothing, or nothing readable."""
    try:
        return json.loads(path_of(key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def keep(key: str, data: Any) -> None:
    """Keep JSON-able data under a key.

    Raises:
        LadingError: Q455 no room or no permission.
    """
    with whole_file(path_of(key), "Q455", "a measurement") as scratch:
        scratch.write_text(json.dumps(data), encoding="utf-8")


__all__ = ["digest_of", "keep", "path_of", "recall"]
