"""Run token windows on one MNN model directory in this process and score the logits against references on disk.

A stand-alone script like `runner.py`, beside which it lies: ``python -I scorer.py FOLDER``, with the same request and
results, Python 3.8 and numpy. The logits of a large vocabulary would be gigabytes on their way to the parent process,
so only a few numbers for each position leave this one. The action that it adds to those of the runner, by ``do``:

    score          ``ids``: a window, read from an empty cache; ``tail``: how many of its last tokens are fed one at a
                   time; ``reference``: path of a ``.npy`` of float32 [ids, vocabulary]. Gives arrays of one number for
                   each position: ``kl`` (KL(reference || measured) in nats), ``gap`` (largest absolute difference of
                   a logit), ``scale`` (largest absolute reference logit), ``hit`` (same first choice), and, for all but
                   the last position, ``nll`` and ``nll_reference`` (of the next id).
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
SPEC = importlib.util.spec_from_file_location("runner", os.path.join(HERE, "runner.py"))
assert SPEC is not None and SPEC.loader is not None
runner = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(runner)


def log_softmax(row: np.ndarray) -> np.ndarray:
    """Natural logarithm of the softmax of one row of logits, in double precision."""
    shifted = row.astype(np.float64)
    shifted -= shifted.max()
    shifted -= np.log(np.exp(shifted).sum())
    return shifted


class Scorer(runner.Session):  # type: ignore[name-defined]
    """A session whose score action compares where the logits are."""

    def do_score(self, action: dict[str, Any]) -> dict[str, Any]:
        ids, tail = [int(token) for token in action["ids"]], int(action["tail"])
        head = len(ids) - tail
        reference = np.load(action["reference"], mmap_mode="r")
        self.restart()
        found: dict[str, list[float]] = {name: [] for name in ("kl", "gap", "scale", "hit", "nll", "nll_reference")}
        place = 0
        for piece in [ids[:head], *([token] for token in ids[head:])]:
            logits = self.forward(piece)
            if logits.shape != (len(piece), reference.shape[1]):
                raise ValueError(f"{len(piece)} tokens gave logits {logits.shape}")
            for row in logits:
                following = ids[place + 1] if place + 1 < len(ids) else None
                score(found, reference[place], row, following)
                place += 1
        self.arrays = {name: np.array(values) for name, values in found.items()}
        return {"positions": place}


def score(found: dict[str, list[float]], wanted: np.ndarray, got: np.ndarray, following: int | None) -> None:
    """Append the numbers of one position; what is not finite is infinitely far."""
    with np.errstate(all="ignore"):
        gap = float(np.abs(wanted - got).max())
        log_p, log_q = log_softmax(wanted), log_softmax(got)
        kl = float(np.sum(np.exp(log_p) * (log_p - log_q)))
    found["gap"].append(gap if np.isfinite(gap) else np.inf)
    found["kl"].append(kl if np.isfinite(kl) else np.inf)
    found["scale"].append(float(np.abs(wanted).max()))
    found["hit"].append(float(wanted.argmax() == got.argmax()))
    if following is not None:
        found["nll"].append(-float(log_q[following]))
        found["nll_reference"].append(-float(log_p[following]))


if __name__ == "__main__":
    runner.run_script(lambda folder: runner.main(folder, Scorer))
