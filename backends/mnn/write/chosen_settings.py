"""Write runtime settings that were measured on a finished model directory into its configuration and its contract."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from backends import contract as c
from backends.mnn.write.configs import CONFIG, CONFIG_TEXT
from backends.mnn.write.mapped import mapped_keys
from ir.base.diag import LadingError
from ir.base.interrupts import held_interrupts
from ir.base.whole_files import write_whole


def write_chosen(folder: Path, chosen: Mapping[str, Any], choices: Sequence[c.Choice]) -> c.Contract:
    """Add settings to every ``config.json`` of a directory, and to its contract what was measured of all that was tried.

    Choices that were recorded before stay, but for those of the same settings.

    Args:
        chosen: keys of the configuration; none leaves it as it is. ``use_mmap`` brings the folder that it needs.
        choices: what was measured; those of the chosen settings are recommended.

    Returns:
        The contract as written.

    Raises:
        LadingError: B620 or C807 something cannot be written; configurations are then as they were.
    """
    contract = c.read(folder)
    keys = dict(chosen)
    if keys.pop("use_mmap", False):
        keys |= mapped_keys(folder, contract.target.releases[0])
    files, texts = list(contract.files), {}
    for place, entry in enumerate(files):
        if not keys or entry.path not in (CONFIG, CONFIG_TEXT):
            continue
        path = folder / entry.path
        config = json.loads(path.read_text(encoding="utf-8")) | keys
        texts[path] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
        files[place] = replace(entry, bytes=len(texts[path]), sha256=hashlib.sha256(texts[path]).hexdigest())
    measured = [choice.settings for choice in choices]
    kept = [choice for choice in contract.runtime.choices if choice.settings not in measured]
    if any(choice.recommended for choice in choices):
        kept = [replace(choice, recommended=False) for choice in kept]
    runtime = replace(
        contract.runtime,
        settings={**contract.runtime.settings, **keys},
        choices=tuple(sorted((*kept, *choices), key=lambda choice: choice.kl)),
    )
    contract = replace(contract, files=tuple(files), runtime=runtime)
    before = {path: path.read_bytes() for path in texts}
    with held_interrupts(firmly=True):
        try:
            _write(texts)
            c.write(contract, folder / c.CONTRACT_FILE)
        except LadingError:
            with suppress(LadingError):
                _write(before)
            raise
    return contract


def _write(texts: Mapping[Path, bytes]) -> None:
    for path, text in texts.items():
        try:
            with write_whole(path) as part:
                part.write_bytes(text)
        except OSError as error:
            message = f"{path.name} cannot be written: {error.strerror}"
            raise LadingError("B620", message, str(path), "make room, or see who may write there") from error


__all__ = ["write_chosen"]
