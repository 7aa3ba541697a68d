"""KL divergence from the float model by rounding method, width and checkpoint, in exact arithmetic.

    python -m benchmarks.rounding examples/tiny-qwen2.5 MODEL ... --bits 2 3 4 --methods gptq gptaq yaqa both

Each MODEL is a folder with a checkpoint, ``calibration.txt`` and ``evaluation.txt``, such as the example and what
`benchmarks.train_checkpoints` makes. Statistics come from the first text, and where a method keeps a step only if it
helps, the held-out windows of that text decide. ``KL`` is of the second text, ``held`` of those windows. The layers'
weights are stored by the method, the logits matrix at 8 bits, embedding rows as they are. Times are processor seconds
behind `calibrate`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from frontends.checkpoint.load import load
from frontends.text.calibration_text import load_calibration
from ir.base.store import CACHE_VARIABLE
from ir.evaluate.replaced_weights import divergences
from ir.facts.precision import PrecisionPlan
from ir.graph.graph import Graph
from ir.quant.statistics.moments import CalibrationText
from passes.calibration.planned import stored_as_planned
from passes.framework.context import PassContext
from passes.framework.load import load as load_pipeline
from passes.framework.manager import PassManager
from passes.precision.planned_weights import weights_of

METHODS = {
    "rtn": ("rtn", ""),
    "hqq": ("hqq", ""),
    "clip": ("clip", ""),
    "gptq": ("gptq", ""),
    "gptaq": ("gptaq", "recalibrate"),
    "yaqa": ("gptq", "calibrate-outputs"),
    "both": ("gptaq", "calibrate-outputs,recalibrate"),
}
"""The method that widths are assigned with, and the passes behind; ``both`` is what the pipeline ``tuned`` does."""


def texts_of(model: Path, tokens: int, held_out: int, evaluated: int) -> tuple[CalibrationText, CalibrationText]:
    """Windows to calibrate with, and those to measure on.

    Raises:
        SystemExit: a text is missing.
    """
    paths = [model / name for name in ("calibration.txt", "evaluation.txt")]
    for path in paths:
        if not path.is_file():
            raise SystemExit(f"no text {path}: benchmarks.train_checkpoints writes both texts beside its checkpoints")
    given = load_calibration(paths[0], model, tokens=tokens, held_out=held_out)
    return given, load_calibration(paths[1], model, tokens=evaluated, held_out=0)


def measured(model: Path, method: str, bits: int, block: int, given: CalibrationText, other: CalibrationText) -> dict:
    """Figures of one checkpoint stored one way."""
    graph = load(model)
    assigned, behind = METHODS[method]
    assign = f"assign-precision{{method={assigned} bits={bits} block={block} zero=float}}"
    _run(graph, "infer-types,calibrate", given)
    began = time.process_time()
    _run(graph, ",".join(part for part in (assign, behind) if part), given)
    rows = {weight.name for weight in weights_of(graph) if weight.role == "embedding"}
    plan = stored_as_planned(graph, graph.required_fact(PrecisionPlan))
    variant = {name: tensor for name, tensor in plan.items() if name not in rows}
    (found,) = divergences(graph, other.calibration, [variant])
    seconds = time.process_time() - began
    (held,) = divergences(graph, given.held_out, [variant])
    return {
        "checkpoint": model.resolve().name,
        "method": method,
        "bits": bits,
        "kl": found.kl,
        "kl_error": found.kl_error,
        "held": held.kl,
        "top1": found.top1,
        "seconds": round(seconds, 1),
    }


def _run(graph: Graph, steps: str, text: CalibrationText) -> None:
    PassManager(load_pipeline(steps)).run(graph, PassContext(text))


def table(models: Sequence[Path], args: argparse.Namespace) -> Iterator[dict]:
    """One row for each checkpoint, width and method."""
    for model in models:
        given, other = texts_of(model, args.tokens, args.held_out, args.evaluated)
        for bits in args.bits:
            for method in args.methods:
                yield measured(model, method, bits, args.block, given, other)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a row for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="checkpoint folders with both texts")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2], help="widths")
    parser.add_argument("--block", type=int, default=32, help="features that share a scale, 0 for the row")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), help="what to compare")
    parser.add_argument("--tokens", type=int, default=61440, help="tokens to calibrate on")
    parser.add_argument("--held-out", type=int, default=8192, help="tokens that decide whether steps are kept")
    parser.add_argument("--evaluated", type=int, default=8192, help="tokens of the evaluation text")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args(argv)
    results: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault(CACHE_VARIABLE, folder)
        for row in table(args.models, args):
            if not results:
                print(
                    f"{'checkpoint':<16}{'bits':>5} {'method':<7}{'KL':>10}{'error':>9}{'held':>10}{'top-1':>8}{'CPU s':>8}"
                )
            results.append(row)
            print(
                f"{row['checkpoint']:<16}{row['bits']:>5} {row['method']:<7}{row['kl']:>10.5f}{row['kl_error']:>9.5f}"
                f"{row['held']:>10.5f}{row['top1']:>8.1%}{row['seconds']:>8}",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
