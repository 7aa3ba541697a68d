"""Compile one rung in a process of its own: ``python -m tools.ladder.child_main REQUEST.json``.

Memory of a compilation goes with its process, and a crash in native code ends one rung, not the ladder. The request
holds fields of `tools.compile.job.Request` and ``answer``, the file that the result goes to. Progress goes to standard
output, one JSON object a line. When standard input closes, whoever started this process is gone, and it ends like at an
interrupt.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ir.base.diag import LadingError
from passes.precision.planned_weights import place_of as place_in_checkpoint
from tools.compile.job import Listener, Request, Result, compile_model
from tools.shared.cli import EXIT_FAILED, EXIT_INTERRUPTED

if TYPE_CHECKING:
    from backends.contract import WeightEntry
    from ir.facts.sensitivity import Sensitivity, WeightSensitivity

PATHS = ("out", "calibration", "tokenizer")

KINDS = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "gate_proj": "gate", "up_proj": "up",
    "down_proj": "down", "embed_tokens": "embedding", "lm_head": "head",
}  # fmt: skip
"""Short names of the matrices of a decoder, by the last part of their names."""


class EventListener(Listener):
    """Writes what happens, one JSON object a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last = -1

    def phase(self, what: str) -> None:
        """A phase begins."""
        self._tell({"phase": what})

    def weights(self, done: int, total: int) -> None:
        """So many weights of all are written."""
        self._share("writing the weights", done, total)

    def step(self, done: int, total: int, what: str) -> None:
        """A long pass is so far."""
        self._share(what, done, total)

    def _share(self, what: str, done: int, total: int) -> None:
        percent = 100 * done // max(total, 1)
        if percent != self._last:
            self._last = percent
            self._tell({"phase": what, "done": done, "total": total})

    def _tell(self, event: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps(event) + "\n")
        self._stream.flush()


def built(result: Result) -> dict[str, Any]:
    """What a ladder needs to know of a compiled rung, as JSON-able data."""
    contract, settings = result.contract, result.emission.settings
    matrices = [item for item in contract.weights if len(item.shape) == 2]
    own = [item for item in matrices if item.shared_with is None]
    stored = sum(item.bytes for item in own)
    fact = result.facts.get("sensitivity")
    chosen = {} if fact is None else {item.name: item for item in fact.weights}
    return {
        "pipeline": result.report.pipeline,
        "bytes": sum(item.bytes for item in contract.files),
        "weight_bytes": stored,
        "bits_per_weight": 8 * stored / sum(item.shape[0] * item.shape[1] for item in own),
        "streamed": dict(contract.runtime.streamed),
        "model": contract.model.to_json(),
        "releases": list(contract.target.releases),
        "settings": {"memory": settings.memory, "precision": settings.precision, "threads": settings.threads},
        "weights": [_weight(item, chosen.get(item.name)) for item in matrices],
        "sensitivity": None if fact is None else _sensitivity(fact),
        "warnings": [item.as_dict() for item in result.warnings],
        "seconds": round(result.seconds["total"], 3),
    }


def _weight(entry: WeightEntry, found: WeightSensitivity | None) -> dict[str, Any]:
    layer, kind = place_of(entry.name)
    point = found.curve[found.chosen] if found is not None and found.chosen is not None else None
    return {
        "name": entry.name,
        "layer": layer,
        "kind": kind,
        "rows": entry.shape[0],
        "columns": entry.shape[1],
        "bits": entry.storage.bits,
        "block": entry.storage.block,
        "symmetric": entry.storage.symmetric,
        "method": entry.storage.method,
        "bytes": entry.bytes if entry.shared_with is None else 0,
        "shared_with": entry.shared_with,
        "error": entry.error.rms_relative if entry.error is not None else None,
        "loss": point.loss * found.factor if point is not None and found is not None else None,
    }


def _sensitivity(fact: Sensitivity) -> dict[str, Any]:
    """What was measured to choose the precisions, without the curves."""
    weights = []
    for item in fact.weights:
        layer, kind = place_of(item.name)
        kl = item.kl if item.probe else None
        weights.append({"name": item.name, "layer": layer, "kind": kind, "probe": item.probe, "kl": kl})
    return {
        "limit": fact.limit,
        "tokens": list(fact.tokens),
        "weights": weights,
        "plans": [asdict(plan) for plan in fact.plans],
    }


def place_of(name: str) -> tuple[int | None, str]:
    """Layer (None outside the layers) and kind of a weight by its name, such as 3 and ``gate``."""
    layer, kind = place_in_checkpoint(name)
    return layer, KINDS.get(kind, kind)


def main(path: str) -> int:
    """Compile as a request file says, and write the answer; the exit code says how it ended."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # however the shell started us
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what native code prints is no event
    request = json.loads(Path(path).read_text(encoding="utf-8"))
    answer = Path(request.pop("answer"))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    fields = {key: Path(value) if key in PATHS and value is not None else value for key, value in request.items()}
    try:
        found: dict[str, Any] = {"built": built(compile_model(Request(**fields), EventListener(events)))}
    except LadingError as error:
        found = {"error": error.diagnostics[0].as_dict()}
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    answer.write_text(json.dumps(found), encoding="utf-8")
    return EXIT_FAILED if "error" in found else 0


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    code = main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the thread that waits for the parent must not be waited for
