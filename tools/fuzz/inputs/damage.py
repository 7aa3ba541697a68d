"""Damage to files of a case, by what they hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tools.fuzz.inputs.mutate import damage_bytes, damage_json, damage_text, json_bytes
from tools.fuzz.target import Case


def damage_json_file(case: Case, path: Path, extra: dict[str, Any] | None = None) -> None:
    """Damage the values of a JSON file, to which keys may be added before."""
    data = {**json.loads(path.read_text(encoding="utf-8")), **(extra or {})}
    path.write_bytes(json_bytes(case.rng, damage_json(case.rng, data)))


def damage_file(case: Case, path: Path) -> None:
    """Damage by the kind of file: JSON by its values, text by its tokens, or any by its bytes."""
    if path.suffix == ".json" and case.rng.random() < 0.8:
        damage_json_file(case, path)
    elif path.suffix == ".jinja" and case.rng.random() < 0.5:
        path.write_text(damage_text(case.rng, path.read_text(encoding="utf-8")), encoding="utf-8", errors="replace")
    elif case.rng.random() < 0.1:
        path.unlink()
    else:
        path.write_bytes(damage_bytes(case.rng, path.read_bytes()))


def damage_some(case: Case, folder: Path, count: int) -> None:
    """Damage so many files of a folder."""
    for path in case.rng.sample(sorted(path for path in folder.iterdir() if path.is_file()), count):
        damage_file(case, path)


__all__ = ["damage_file", "damage_json_file", "damage_some"]
