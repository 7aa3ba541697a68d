"""Write runtime settings that were measured on a finished model directory into its configuration and its contract."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from backends import contract as c
from backends.mnn.write.configs import CONFIG, CONFIG_TEXT
from backends.mnn.write.mapped import mapped_keys
from ir.base.whole_files import sha256_of, write_whole


def write_chosen(folder: Path, chosen: Mapping[str, Any], choices: Sequence[c.Choice]) -> c.Contract:
    """Add settings to every ``config.json`` of a directory, and to its contract what was measured of all that was tried.

    Choices that were recorded before stay, but for those of the same settings.

    Args:
        chosen: keys of the configuration; none leaves it as it is. ``use_mmap`` brings the folder that it needs.
        choices: what was measured; those of the chosen settings are recommended.

    Returns:
        The contract as written.
    """
    contract = c.read(folder)
    keys = dict(chosen)
    if keys.pop("use_mmap", False):
        keys |= mapped_keys(folder, contract.target.releases[0])
    files = list(contract.files)
    for place, entry in enumerate(files):
        if not keys or entry.path not in (CONFIG, CONFIG_TEXT):
            continue
        path = folder / entry.path
        config = json.loads(path.read_text(encoding="utf-8")) | keys
        with write_whole(path) as part:
            part.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        files[place] = replace(entry, bytes=path.stat().st_size, sha256=sha256_of(path))
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
    c.write(contract, folder / c.CONTRACT_FILE)
    return contract


__all__ = ["write_chosen"]
