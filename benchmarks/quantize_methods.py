"""Quality and time of the quantization methods on the real weights of a checkpoint: method x bits x block x zero.

    python -m benchmarks.quantize_methods examples/tiny-qwen2.5 --text examples/tiny-qwen2.5/calibration.txt

Every figure is the mean squared error of a matrix's outputs, ``(w - v) E[x x^T] (w - v)^T`` summed over rows, as a
share of that of round to nearest with the same storage, averaged geometrically over the matrices of the layers. ``fit``
is measured with the statistics that methods are given, ``held`` with those of other windows of the text. Times are
processor seconds for a million weights.

    python -m benchmarks.quantize_methods --shapes

times the shapes of one layer of Qwen2.5-0.5B with random numbers instead, factorizations apart. A method that looks at both
sides can be timed so, too; errors are counted by `benchmarks.rounding`, on whole models.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from frontends.checkpoint.load import load
from frontends.text.calibration_text import load_calibration
from ir.base.store import CACHE_VARIABLE
from ir.base.types import F32
from ir.facts.calibration import Calibration
from ir.quant.statistics.exact_products import one_thread
from ir.quant.statistics.moments import CalibrationText, Moments, MomentStore
from ir.quant.statistics.second_moments import damped, factor_of
from ir.quant.storage import Storage
from ir.quant.weight import METHODS, Blocks, dequantize, thread_scratch
from ir.tensor.elementwise import convert
from ir.tensor.inline import InlineTensor
from passes.framework.context import PassContext
from passes.framework.load import load as load_pipeline
from passes.framework.manager import PassManager
from passes.precision.planned_weights import weights_of

FORMS = {"int": {}, "float": {"zero": "float"}, "symmetric": {"symmetric": True}}
SHAPES = {(896, 896): 2, (128, 896): 2, (4864, 896): 2, (896, 4864): 1}
"""Rows and columns of the matrices of a layer of Qwen2.5-0.5B, and how many there are."""


@dataclass(frozen=True)
class Case:
    """A matrix of a layer, float32[out, in], with statistics to quantize by and others to measure with."""

    name: str
    rows: np.ndarray
    given: Moments
    held: Moments


def cases_of(model: Path, text: Path | None, tokens: int) -> list[Case]:
    """The matrices of a checkpoint's layers."""
    windows = load_calibration(text, model, tokens=tokens, held_out=tokens)
    graph = load(model)
    found: list[dict[str, Moments]] = []
    for part in (windows.calibration, windows.held_out):
        setting = CalibrationText(part, ())
        PassManager(load_pipeline("infer-types,calibrate")).run(graph, PassContext(setting))
        keys = graph.required_fact(Calibration).keys
        found.append({name: MomentStore().load(key) for name, key in keys.items()})
    return [
        Case(weight.name, convert(weight.source.load(), F32), found[0][weight.name], found[1][weight.name])
        for weight in weights_of(graph)
        if weight.role == "layer"
    ]


def loss(rows: np.ndarray, stored: Blocks, moments: Moments) -> float:
    """Mean squared error of all outputs."""
    difference = (rows - dequantize(stored)).astype(np.float64)
    return float(((difference @ moments.second.astype(np.float64)) * difference).sum())


def timed(call: Callable[[], Blocks]) -> tuple[Blocks, float]:
    """A result and the processor seconds it took."""
    began = time.process_time()
    found = call()
    return found, time.process_time() - began


def quantized(case: Case, storage: Storage) -> tuple[Blocks, float]:
    """A matrix by a method, and the processor seconds it took."""
    method = METHODS[storage.method]
    given = None if method.needs == "nothing" else case.given
    step = method.together or len(case.rows)
    runs = [case.rows[start : start + step] for start in range(0, len(case.rows), step)]
    both = method.needs == "both-sides"
    sides = [replace(case.given, outputs=random_outputs(len(run))) if both else given for run in runs]

    def quantize() -> Blocks:
        found = [
            method.quantize(run, storage, thread_scratch(), side).kept() for run, side in zip(runs, sides, strict=True)
        ]
        return Blocks.below(found)

    return timed(quantize)


def table(
    cases: list[Case], bits: list[int], blocks: list[int], forms: list[str], methods: list[str]
) -> Iterator[dict]:
    """One row for each storage and method."""
    weights = sum(case.rows.size for case in cases)
    for width in bits:
        for block in blocks:
            for form in forms:
                storage = Storage(bits=width, block=block, **FORMS[form])
                base = measured(cases, storage)
                for name in methods:
                    fit, held, seconds = measured(cases, replace(storage, method=name))
                    yield {
                        "bits": width,
                        "block": block or "row",
                        "zero": form,
                        "method": name,
                        "fit": round(mean_ratio(fit, base[0]), 4),
                        "held": round(mean_ratio(held, base[1]), 4),
                        "seconds": round(seconds / weights * 1e6, 3),
                    }


def measured(cases: list[Case], storage: Storage) -> tuple[list[float], list[float], float]:
    """Errors of each matrix with both statistics, and processor seconds."""
    fit, held, seconds = [], [], 0.0
    for case in cases:
        stored, took = quantized(case, storage)
        seconds += took
        fit.append(loss(case.rows, stored, case.given))
        held.append(loss(case.rows, stored, case.held))
    return fit, held, seconds


def mean_ratio(found: list[float], base: list[float]) -> float:
    """Geometric mean of ratios."""
    return float(np.exp(np.mean(np.log(np.array(found) / np.array(base)))))


def shapes(methods: list[str]) -> Iterator[dict]:
    """Seconds for each shape of a layer of Qwen2.5-0.5B, 4 bits, block 64, and for all layers."""
    rng = np.random.default_rng(0)
    statistics = {size: random_moments(rng, size) for size in {columns for _, columns in SHAPES}}
    for size, moments in sorted(statistics.items()):
        with one_thread():
            began = time.process_time()
            factor_of(moments)
            yield {"what": f"factor {size}", "method": "", "seconds": round(time.process_time() - began, 2)}
    for (count, columns), times in SHAPES.items():
        rows = InlineTensor(rng.standard_normal((count, columns), np.float32) * np.float32(0.02)).load()
        case = Case("", rows, statistics[columns], statistics[columns])
        for name in methods:
            seconds = quantized(case, Storage(bits=4, block=64, zero="float", method=name))[1]
            yield {"what": f"{times} x {count}x{columns}", "method": name, "seconds": round(seconds * times, 2)}


def random_outputs(count: int) -> np.ndarray:
    """float32[rows, rows], damped second moments of weakly correlated gradients behind rows."""
    moments = random_moments(np.random.default_rng(count), count)
    return damped(moments.second, moments.tokens)


def random_moments(rng: np.random.Generator, size: int) -> Moments:
    """Statistics of weakly correlated features of different sizes."""
    values = rng.standard_normal((2 * size, size), np.float32)
    values += values[:, ::-1] / 2
    values *= np.exp(rng.standard_normal(size)).astype(np.float32)
    ends = np.zeros(size, np.float32)
    return Moments(f"random {size}", 2 * size, values.T @ values / np.float32(2 * size), ends, ends, ends)


def main() -> None:
    """Print a row for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=Path("examples/tiny-qwen2.5"), help="checkpoint folder")
    parser.add_argument("--text", type=Path, help="calibration text; the sample of the package when left out")
    parser.add_argument("--tokens", type=int, default=16384, help="tokens to calibrate on, and to measure with")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4, 5, 6, 8], help="widths")
    parser.add_argument("--blocks", type=int, nargs="+", default=[32, 64, 128, 0], help="blocks; 0 for the row")
    parser.add_argument("--zeros", nargs="+", default=list(FORMS), choices=list(FORMS), help="kinds of zero")
    parser.add_argument("--methods", nargs="+", default=["clip", "hqq", "gptq"], help="methods to compare with rtn")
    parser.add_argument("--shapes", action="store_true", help="time the shapes of Qwen2.5-0.5B instead")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE_VARIABLE] = folder
        if args.shapes:
            rows = shapes(["rtn", *args.methods])
        else:
            cases = cases_of(args.model, args.text, args.tokens)
            rows = table(cases, args.bits, args.blocks, args.zeros, args.methods)
        for row in rows:
            results.append(row)
            if len(results) == 1:
                print("".join(f"{key:>14}" for key in row))
            print("".join(f"{value:>14}" for value in row.values()), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
