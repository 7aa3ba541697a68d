"""Real models judged: compiled for a release, run on it, and compared with onnxruntime on the file as it lies.

A file ``NAME.npz`` beside ``NAME.onnx`` holds real inputs by name. Without one they are made up, others than those that
the compiler verifies with.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ir.base.child import ChildFailed
from ir.base.diag import LadingError
from ir.base.scratch import scratch_folder
from tools.conformance.judge import CRASH, FAILS, REFUSED, RIGHT, WRONG
from tools.conformance.routes import Compiled, ProductRoute, Refused

NEAR = 1e-3
"""How far an output may be off, relative to its largest number."""
LEAST = 1e-30
"""Outputs of which no number is larger are zero."""
SETS = 3
"""Made-up sets of inputs."""


@dataclass(frozen=True)
class ModelVerdict:
    """What became of a model.

    Attributes:
        name: of the file.
        status: ``right``, ``refused``, ``wrong``, ``fails`` or ``crash``.
        code: of the refusal.
        reason: why it is not right.
        error: largest difference of an output, relative to its largest number.
        nodes: of the model as it was read, and canonicalized.
        seconds: that compiling and verifying took.
    """

    name: str
    status: str
    code: str = ""
    reason: str = ""
    error: float = 0.0
    nodes: tuple[int, int] = (0, 0)
    seconds: float = 0.0


def model_files(paths: Iterable[Path]) -> list[Path]:
    """ONNX files among paths, those of folders too."""
    found = [file for path in paths for file in (sorted(path.rglob("*.onnx")) if path.is_dir() else [path])]
    return list(dict.fromkeys(found))


def judge_models(paths: Iterable[Path], release: str, *, verify: bool) -> Iterator[ModelVerdict]:
    """Verdicts of models, one after the other."""
    route = ProductRoute(release, verify)
    try:
        for path in paths:
            yield _judged(path, route)
    finally:
        route.close()


def _judged(path: Path, route: ProductRoute) -> ModelVerdict:
    start = time.perf_counter()
    nodes = (0, 0)
    try:
        nodes = _nodes(path)
        with scratch_folder() as folder:
            compiled = route.compile_file(path, folder)
            seconds = round(time.perf_counter() - start, 2)
            errors = [_error(found, wanted) for found, wanted in _runs(path, route, compiled)]
    except Refused as error:
        return ModelVerdict(path.name, REFUSED, error.code, error.reason, nodes=nodes)
    except LadingError as error:
        return ModelVerdict(path.name, REFUSED, error.code, error.diagnostics[0].message, nodes=nodes)
    except ChildFailed as error:
        return ModelVerdict(path.name, FAILS if error.kind == "raised" else CRASH, "", error.how, nodes=nodes)
    worst = max(errors, default=float("inf"))
    status = RIGHT if worst <= NEAR else WRONG
    reason = "" if status == RIGHT else f"off by {worst:.3g} of the largest number"
    return ModelVerdict(path.name, status, "", reason, worst, nodes, seconds)


def _nodes(path: Path) -> tuple[int, int]:
    from frontends.onnx.load import load
    from passes.framework.manager import PassManager

    graph = load(path)
    before = sum(1 for _ in graph.walk())
    PassManager("canonicalize").run(graph)
    return before, sum(1 for _ in graph.walk())


Outputs = list[np.ndarray]


def _runs(path: Path, route: ProductRoute, compiled: Compiled) -> Iterator[tuple[Outputs, Outputs]]:
    """What MNN gives and what onnxruntime gives, for each set of inputs."""
    from frontends.onnx.load import load
    from ir.evaluate.feed_sets import FeedSet, feed_sets
    from ir.evaluate.given_feeds import read_inputs
    from ir.evaluate.reference import open_reference
    from ir.evaluate.value_ranges import UNIT

    graph = load(path)
    reference = open_reference(path, graph)
    given = path.with_suffix(".npz")
    sets: Iterable[FeedSet]
    if given.is_file():
        sets = [
            FeedSet(feeds, reference.run(feeds), {}, name, given=True)
            for name, feeds in read_inputs(given, graph).items()
        ]
    else:
        sets = feed_sets(graph, reference.run, most=SETS, seconds=30.0, styles=(UNIT,))
    for item in sets:
        yield route.run_named(compiled, item.feeds), [item.wanted[name] for name in reference.outputs]


def _error(found: Outputs, wanted: Outputs) -> float:
    """The largest difference relative to the largest number of its output; infinite for other shapes."""
    worst = 0.0
    for one, other in zip(found, wanted, strict=True):
        if one.shape != other.shape:
            return float("inf")
        with np.errstate(all="ignore"):
            gap = np.abs(one.astype(np.float64) - other.astype(np.float64))
            same = (one == other) | (np.isnan(one.astype(np.float64)) & np.isnan(other.astype(np.float64)))
            gap = np.where(same, 0.0, gap).max(initial=0.0)
            size = np.abs(other.astype(np.float64)).max(initial=0.0)
        worst = max(worst, float(gap / max(size, LEAST)) if np.isfinite(gap) else float("inf"))
    return worst


__all__ = ["ModelVerdict", "judge_models", "model_files"]
