"""Measurements kept in a store, so that a second budget for the same model costs seconds.

An entry holds JSON and is named by a digest of everything the numbers follow from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

from ir.base.store import Store


def digest_of(parts: Iterable[Any]) -> str:
    """Digest (hex) of the text forms of the parts and of their order."""
    state = blake2b(digest_size=16)
    for part in parts:
        data = str(part).encode()
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()


def name_of(key: str) -> str:
    """The entry of a key, which need not exist."""
    return f"measurements/{key}"


def recall(store: Store, key: str) -> Any:
    """What was kept under a key; None when there is nothing, or nothing readable."""
    kept = store.find(name_of(key))
    if kept is None:
        return None
    try:
        return json.loads(kept.read())
    except (OSError, ValueError):
        return None


def keep(store: Store, key: str, data: Any) -> None:
    """Keep JSON-able data under a key.

    Raises:
        LadingError: Q455 no room or no permission.
    """
    with store.put(name_of(key), "Q455", "a measurement") as scratch:
        scratch.write_text(json.dumps(data), encoding="utf-8")


__all__ = ["digest_of", "keep", "name_of", "recall"]
