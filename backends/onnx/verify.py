"""Run a written ONNX model on onnxruntime and measure how far it is from what was meant and from the original.

Two references. What the emitted graph means, evaluated piece by piece: the file must give the same numbers when nothing
is optimized. And the original: how far from it the file is when it is run as applications run it, where onnxruntime
fuses operators and may round what is multiplied by stored integers. Where the original was an ONNX file, that file
itself is run, so that what the frontend misreads shows too.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from backends.backend import Figures
from backends.bars import ERROR_BARS, Loss, judged
from backends.verdict import Reading, compare_reading, untrained
from frontends.onnx.original import OnnxOriginal
from ir.base.diag import Diagnostic, LadingError
from ir.base.types import Dim, TensorType
from ir.evaluate.divergence import DistanceMeter
from ir.evaluate.evaluator import Evaluator
from ir.evaluate.kernels import run_file
from ir.evaluate.random_feeds import sample_feeds
from ir.evaluate.untrained import Guesses
from ir.facts.free_tensors import FreeTensors
from ir.facts.model_card import ModelCard
from ir.facts.precision import PrecisionPlan
from ir.graph.graph import Graph
from ir.quant.stored_weight import DEQUANTIZE

FEEDS = {"quick": 3, "full": 12}
"""Random inputs that are run."""

LENGTHS = (4, 16, 7)
"""Sizes of symbolic dimensions, in turn, where their ranges allow them."""

EXACT_BAR, HALF_BAR = 1e-3, 3e-2
"""Root mean square by which an output may be off what the graph means, relative to that of the output: in single
precision, and where half precision is computed with."""

ROUNDED = 2.0
"""Factor of the bars where weights are stored as integers: onnxruntime rounds what it multiplies by them to 8 bits too,
which may cost as much again."""

HINT = "use more bits or smaller blocks, as --passes onnx-fp16 does"

MEMORY_LIMIT = 256 << 20

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Measurement:
    """One comparison.

    Attributes:
        release, platform: what ran where.
        reference: ``decoded weights`` for what the graph means, ``float`` for the original.
        feeds: random inputs that were run.
        max_abs: largest absolute difference of an output.
        error: root mean square of the difference relative to that of the output, of the worst output.
        kl, top1: for outputs that are logits, as in `ir.evaluate.divergence.Distance`.
        tokens: token ids that were fed; None for models that read none.
    """

    release: str
    platform: str
    reference: Literal["decoded weights", "float"]
    feeds: int
    max_abs: float
    error: float
    kl: float | None = None
    top1: float | None = None
    tokens: int | None = None


@dataclass
class Verification:
    """What was measured, what is below its bar, what is worse than usual, and whether a checkpoint was read right."""

    measurements: list[Measurement] = field(default_factory=list)
    problems: list[Diagnostic] = field(default_factory=list)
    warnings: list[Diagnostic] = field(default_factory=list)
    loss: str = ""
    reading: Reading = field(default_factory=Reading)

    def require(self) -> None:
        """Raise the problems, if there are any."""
        if self.problems:
            raise LadingError.of(self.problems)


def verify(
    model: Path,
    graph: Graph,
    original: Graph,
    *,
    source: Path | None,
    feeds: int,
    max_kl: float | None = None,
    checkpoint: Path | None = None,
    given: Sequence[Feeds] | None = None,
) -> Verification:
    """Run and compare.

    Args:
        model: the written file.
        graph: the graph that was written.
        original: the graph before the passes.
        source: the ONNX file that the original was read from; None for models of other formats.
        feeds: random inputs to run.
        given: inputs to run in their place.
        max_kl: bar for the KL divergence of logits; None takes those of `backends.bars`.
        checkpoint: the folder that the original implementation is to be run on, or None.

    Raises:
        LadingError: T220 onnxruntime refuses a file, T225 an input that cannot be made up.
    """
    if given is None:
        sizes = [_sizes(original, LENGTHS[number % len(LENGTHS)]) for number in range(feeds)]
        given = [sample_feeds(original, size, number) for number, size in enumerate(sizes)]
    plain, got = (run_file(model, given, optimized=optimized, foreign=original.foreign) for optimized in (False, True))
    meant = Evaluator(graph, memory_limit=MEMORY_LIMIT).run_many(given)
    if source is not None:
        wanted = _run_source(source, original, given)
    else:
        wanted = Evaluator(original, memory_limit=MEMORY_LIMIT).run_many(given)
    exact = _measured(original, given, "decoded weights", meant, plain)
    whole = _measured(original, given, "float", wanted, got)
    found = Verification([exact, whole], _beyond_exact(exact, graph))
    trained = not reads_tokens(original) or _trained(wanted, found)
    judgement, found.loss = _beyond_width(whole, graph, max_kl, trained)
    found.problems += [item for item in judgement if item.severity == "error"]
    found.warnings += [item for item in judgement if item.severity == "warning"]
    found.reading = Reading(unread=ModelCard.of(original).unread.get("unknown", ()))
    if checkpoint is not None and reads_tokens(original):
        found.reading = _compare_original(checkpoint, original, given, wanted)
        found.problems += found.reading.problems
    return found


def token_feeds(read: OnnxOriginal, raised: Graph, count: int) -> list[Feeds] | None:
    """Sequences of random tokens for a language model; None where something in it cannot be fed.

    Args:
        read: what its inputs hold.
        raised: the model as it was raised to find that out.
        count: how many sequences.
    """
    shape = raised.outputs[0].shape
    if read.obstacle() or not shape or not isinstance(shape[-1], int):
        return None
    rng = np.random.default_rng(5)
    ids = [rng.integers(0, shape[-1], LENGTHS[number % len(LENGTHS)]).tolist() for number in range(count)]
    return [read.feeds(item, len(item) - 1) for item in ids]


def _logits(outputs: Feeds) -> np.ndarray:
    """The one output as float32[tokens, vocabulary]."""
    logits = next(iter(outputs.values()))
    return logits.reshape(-1, logits.shape[-1]).astype(np.float32)


def _trained(wanted: Sequence[Feeds], found: Verification) -> bool:
    """False, with a warning, for a language model whose scores say nothing; ids at random are no text to predict."""
    rows = [_logits(item) for item in wanted]
    guesses = Guesses(rows[0].shape[-1] if rows else 1)
    for item in rows:
        guesses.add(item, None)
    if guesses.untrained:
        found.warnings.append(untrained(guesses))
    return not guesses.untrained


def _compare_original(folder: Path, graph: Graph, given: Sequence[Feeds], wanted: Sequence[Feeds]) -> Reading:
    ids = [next(iter(feeds.values())).reshape(-1).tolist() for feeds in given]
    return compare_reading(folder, graph, ids, [_logits(item) for item in wanted])


def reads_tokens(graph: Graph) -> bool:
    """True for a graph from token ids to one row of logits for each."""
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        return False
    ids, logits = graph.inputs[0].type, graph.outputs[0].type
    if not isinstance(ids, TensorType) or not isinstance(logits, TensorType):
        return False
    return ids.dtype.is_integer and (ids.rank, logits.rank) == (2, 3)


def _sizes(graph: Graph, length: int) -> dict[str, int]:
    found = (dim for value in graph.inputs for dim in getattr(value.type, "shape", None) or () if isinstance(dim, Dim))
    return {dim.name: length for dim in found if dim.accepts(length)}


def _run_source(
    source: Path, original: Graph, given: Sequence[Mapping[str, np.ndarray]]
) -> list[dict[str, np.ndarray]]:
    """What the original file gives; tensors that it reads and never makes are fed, constants among them."""
    fact = original.fact(FreeTensors)
    tensors = fact.tensors if fact is not None else ()
    free = {item.name: (item.dtype, len(item.sizes)) for item in tensors}
    constants = {item.name: item.array for item in tensors if item.value is not None}
    return run_file(source, [{**feeds, **constants} for feeds in given], optimized=False, foreign=True, free=free)


def _measured(
    graph: Graph,
    feeds: Sequence[Feeds],
    reference: Literal["decoded weights", "float"],
    wanted: Sequence[Feeds],
    got: Sequence[Feeds],
) -> Measurement:
    from importlib.metadata import version

    # Passes keep the order of outputs, not always their names.
    pairs = [list(zip(one.values(), other.values(), strict=True)) for one, other in zip(wanted, got, strict=True)]
    worst = max((abs_gap(a, b) for pair in pairs for a, b in pair), default=0.0)
    count = len(pairs[0]) if pairs else 0
    error = max((_relative([pair[place] for pair in pairs]) for place in range(count)), default=0.0)
    kl = top1 = tokens = None
    if reads_tokens(graph):
        meter = DistanceMeter()
        for pair in pairs:
            meter.add(*(item.reshape(-1, item.shape[-1]).astype(np.float32) for item in pair[0]))
        kl, top1, tokens = meter.result().kl, meter.result().top1, meter.positions
    where = f"{platform.system()} {platform.machine()}"
    return Measurement(version("onnxruntime"), where, reference, len(feeds), worst, error, kl, top1, tokens)


def abs_gap(wanted: np.ndarray, got: np.ndarray) -> float:
    """Largest absolute difference; infinite where shapes differ or one is not a number."""
    if wanted.shape != got.shape:
        return math.inf
    if not wanted.size:
        return 0.0
    a, b = wanted.astype(np.float64), got.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    return float(gap.max()) if np.isfinite(gap).all() else math.inf


def _relative(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Root mean square of the difference relative to that of the first; of whole numbers the share that differs."""
    if any(not math.isfinite(abs_gap(a, b)) for a, b in pairs):
        return math.inf
    total = sum(a.size for a, _ in pairs)
    if any(a.dtype.kind in "biu" for a, _ in pairs):
        return sum(int(np.count_nonzero(a != b)) for a, b in pairs) / max(total, 1)
    sound = [(a.astype(np.float64), b.astype(np.float64)) for a, b in pairs]
    finite = [(a[np.isfinite(a)], b[np.isfinite(a)]) for a, b in sound]
    gap = sum(float(np.square(a - b).sum()) for a, b in finite)
    base = sum(float(np.square(a).sum()) for a, _ in finite)
    return math.sqrt(gap / base) if base else (0.0 if not gap else math.inf)


# ---- bars ----


def _halves(graph: Graph) -> bool:
    """True when something is computed in half precision; stored halves that are widened first are no such thing."""
    values = (value for node in graph.walk() for value in node.outputs)
    return any(isinstance(item.type, TensorType) and item.dtype.name in ("f16", "bf16") for item in values)


def _beyond_exact(found: Measurement, graph: Graph) -> list[Diagnostic]:
    bar = HALF_BAR if _halves(graph) else EXACT_BAR
    if found.error <= bar:
        return []
    message = (
        f"onnxruntime {found.release} gives outputs that are off by {found.error:.3g} of their size where the graph "
        f"allows {bar:.3g}"
    )
    return [Diagnostic("V710", message, hint="nothing was written; please report the model")]


def _narrowest(graph: Graph) -> int:
    """Bits of the narrowest weight, planned or stored as it came; what is dequantized may be multiplied in integers."""
    plan = graph.fact(PrecisionPlan)
    planned = [item.bits for item in plan.storage.values()] if plan is not None else []
    given = [node.operand(0).dtype.bits for node in graph.walk() if node.op in DEQUANTIZE and node.operand(0).is_const]
    return min([*planned, *given], default=32)


def _beyond_width(
    found: Measurement, graph: Graph, max_kl: float | None, trained: bool
) -> tuple[list[Diagnostic], str]:
    """The problems of the chosen widths, and the loss in words."""
    narrowest = _narrowest(graph)
    rounded = ROUNDED if narrowest <= 8 else 1.0
    if found.kl is not None and found.top1 is not None:
        loss = Loss(found.kl, found.top1, narrowest, "onnxruntime", rounded, text=False)
        return judged(loss, "V711", HINT, trained=trained, bar=max_kl), loss.told(trained)
    limit = ERROR_BARS[narrowest] * rounded
    if narrowest == 32 and _halves(graph):
        limit = HALF_BAR
    words = f"outputs off by {found.error:.1e} of their size, {narrowest} bits"
    if found.error <= limit:
        return [], words
    message = f"relative error {found.error:.3g} from the original is above {limit:.3g}, the bar for {narrowest} bits"
    return [Diagnostic("V711", message, hint=HINT)], words


# ---- for people ----


def figures(measurements: Sequence[Measurement]) -> Figures:
    """The measurements as a table."""
    columns = ["against", "inputs", "max error", "relative"]
    words = {"decoded weights": "its weights", "float": "original"}
    rows: list[list[Any]] = [
        [words[item.reference], str(item.feeds), f"{item.max_abs:.1e}", f"{item.error:.1e}"] for item in measurements
    ]
    if all(item.kl is not None for item in measurements):
        columns += ["KL", "top-1"]
        for row, item in zip(rows, measurements, strict=True):
            row += [f"{item.kl:.1e}", f"{item.top1:.1%}"]
    return Figures(f"run on onnxruntime {measurements[0].release}", columns, rows, ("against",))


__all__ = ["FEEDS", "Measurement", "Verification", "figures", "token_feeds", "verify"]
