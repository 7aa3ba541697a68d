"""Scripts that run ``transformers``: in a process of their own, offline, and with a limit of time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "0",
}
"""Variables under which nothing is fetched or sent."""


class Broken(Exception):
    """The child ended without an outcome; the text says how."""


def outcome_of(script: Path, place: Path, timeout_s: float) -> dict[str, Any]:
    """What a script leaves in the file ``outcome.json`` of a folder.

    Args:
        script: the script; it is given the folder.
        place: the folder, in which it runs.
        timeout_s: seconds that it may take.

    Raises:
        TimeoutError: it took longer.
        OSError: no process could be started.
        Broken: it left no outcome.
    """
    try:
        ended = subprocess.run(
            [sys.executable, "-I", str(script), str(place)],
            cwd=place,
            env={**os.environ, **QUIET},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    try:
        return json.loads((place / "outcome.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        said = ended.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise Broken(f"ended with {ended.returncode}: {' '.join(said)[:200]}") from None


__all__ = ["Broken", "outcome_of"]
