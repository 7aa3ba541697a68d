"""What the original implementation makes of a checkpoint, where ``transformers`` and torch are installed.

It runs in a child process with limits of time and memory. Neither package is needed for anything else, so that they are
missing is an answer like any other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from frontends.checkpoint.offline_child import Broken, outcome_of

if TYPE_CHECKING:
    from ir.facts.model_card import AdapterCard

CHILD = Path(__file__).with_name("original_child.py")

NEEDED = ("torch", "transformers")

BASE_MEMORY = 2 << 30
"""Bytes that the libraries take."""

START_S, WEIGHTS_A_SECOND = 300.0, 10e6
"""Limit of time: for the start, and for reading and computing with so many weights."""


@dataclass(frozen=True)
class Original:
    """Logits of the original implementation, or of the model's own file.

    Attributes:
        name: who computed them, such as ``transformers 5.24.0``; empty when nobody did.
        reason: why nobody did.
        logits: float32[rows, vocabulary] of each sequence.
        rows: int[rows], the positions that the rows of each sequence belong to; empty for all positions.
        file: name of the file that was to be run; empty for an implementation.
        half: computed in half precision.
        rounds: computed with activations rounded to integers, which the graph does not do.
    """

    name: str = ""
    reason: str = ""
    logits: tuple[np.ndarray, ...] = ()
    rows: tuple[np.ndarray, ...] = ()
    file: str = ""
    half: bool = False
    rounds: bool = False


def original_logits(
    folder: Path,
    sequences: Sequence[Sequence[int]],
    *,
    parameters: int,
    vocabulary: int,
    adapters: Sequence[AdapterCard] = (),
    timeout_s: float | None = None,
) -> Original:
    """Logits of every position of each sequence of token ids, read at once.

    Args:
        folder: the checkpoint.
        sequences: token ids.
        parameters, vocabulary: sizes of the model, for the limits.
        adapters: what works beside its weights, computed by peft.
        timeout_s: limit of time; None takes one by the size.
    """
    import tempfile

    needed = (*NEEDED, "peft") if adapters else NEEDED
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        return Original(reason=f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not installed")
    need = memory_needed(parameters, vocabulary, sum(map(len, sequences)))
    free = free_memory()
    if free is not None and need > free:
        return Original(reason=f"it needs {need / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free")
    limit = timeout_s if timeout_s is not None else START_S + parameters / WEIGHTS_A_SECOND
    with tempfile.TemporaryDirectory(prefix="lading-") as name:
        place = Path(name)
        decoded = _decoded(folder, place)
        ids = [[int(token) for token in sequence] for sequence in sequences]
        request = {"model": str((decoded or folder).resolve()), "sequences": ids, "memory": 2 * need}
        request["adapters"] = [[str(Path(item.folder).resolve()), item.weight] for item in adapters]
        (place / "request.json").write_text(json.dumps(request), encoding="utf-8")
        found = _run(place, len(ids), limit)
        return replace(found, name=f"{found.name} on the decoded weights") if found.name and decoded else found


def _decoded(folder: Path, place: Path) -> Path | None:
    """The checkpoint with its weights decoded, written for ``transformers``; None where they are plain.

    What it makes of quantized ones depends on further packages and on graphics processors, and blocks of FP8 that do not
    divide a matrix are read wrongly by its release 5.24.
    """
    from frontends.containers.formats import open_weights
    from frontends.containers.plain import write_plain

    weights = open_weights(folder)
    if not weights.encodings:
        return None
    plain = place / "decoded"
    plain.mkdir()
    write_plain(weights, folder, plain)
    return plain


def memory_needed(parameters: int, vocabulary: int, tokens: int) -> int:
    """Bytes that evaluation in single precision takes: the weights, one copy of the largest part, and the logits."""
    return BASE_MEMORY + 5 * parameters + 8 * vocabulary * tokens


def free_memory() -> int | None:
    """Bytes that can be taken; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        room = int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return min(free, max(room, 0))


def _run(place: Path, count: int, timeout_s: float) -> Original:
    from zipfile import BadZipFile

    try:
        outcome = outcome_of(CHILD, place, timeout_s)
    except TimeoutError:
        return Original(reason=f"transformers was stopped after {timeout_s:.0f} s")
    except OSError as error:
        return Original(reason=f"no process could be started: {error.strerror or error}")
    except Broken as error:
        return Original(reason=f"transformers {error}")
    if "version" not in outcome:
        return Original(reason=str(outcome.get("reason")))
    try:
        with np.load(place / "logits.npz", allow_pickle=False) as arrays:
            found = tuple(arrays[str(number)] for number in range(count))
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        return Original(reason=f"its logits cannot be read: {error}")
    peft = f" with peft {outcome['peft']}" if "peft" in outcome else ""
    return Original(f"transformers {outcome['version']}{peft}", logits=found)


__all__ = ["Original", "free_memory", "memory_needed", "original_logits"]
