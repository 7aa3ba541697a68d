"""``compile --plan``: what a compilation would give, from a configuration and headers; no weight is read."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ir.base.diag import Diagnostic, LadingError
from ir.base.paused_gc import paused_collection

if TYPE_CHECKING:
    from backends.backend import Backend
    from backends.plan import Planned
    from frontends.checkpoint.outline import Outline
    from ir.facts.model_card import ModelCard
    from ir.graph.graph import Graph
    from passes.framework.base import Pass
    from passes.framework.pipeline import Pipeline
    from tools.compile.job import Request
    from tools.shared.formats import Formats

CONTEXTS = (1024, 4096, 16384, 65536)
"""Numbers of tokens that memory is told for, as far as the model goes, and the most that it goes to."""

FETCHED_AT_ONCE = 8
"""Headers that are fetched of a repository at once."""

FEW_NODES = 4000
"""Nodes of a graph up to which every layer is kept: then all of the plan is exact."""

WORKING_MEMORY, PIECES = 90 << 20, 16 << 20
"""Bytes that a compilation takes without verification, and besides for each thread: measured on 3 and 315 million weights."""

VERIFIED_ROWS, TWICE, COPIES = 640, 2, 4
"""Quick verification: positions that are computed, with float and with decoded weights, and copies of their logits that are
held at once; measured on 315 million weights with 151,936 tokens."""

SQUARE = 1024
"""Side of the matrices that products are timed with."""


@dataclass(frozen=True)
class Effort:
    """What compiling would take on this machine, estimated.

    Attributes:
        threads: threads of the compiler.
        seconds, memory: for reading, coding and writing, the disk not counted: seconds and bytes.
        verify_seconds, verify_memory: for quick verification besides; a child loads the result beside it.
    """

    threads: int
    seconds: float
    memory: int
    verify_seconds: float
    verify_memory: int


@dataclass(frozen=True)
class ReleasePlan:
    """A release of the runtime: whether it can run the model, and otherwise why not, as a code and a sentence."""

    release: str
    runs: bool
    code: str = ""
    reason: str = ""
    hint: str = ""


@dataclass(frozen=True)
class ModelPlan:
    """The plan of one compilation.

    Attributes:
        model: what it is called.
        card: what is known of it.
        pipeline: canonical text of the pipeline.
        target: name of the target.
        kinds: for each kind of layer, how many there are; the first layer counts apart.
        stored_bytes: bytes of the files that it is read from; None where only a configuration was there.
        planned: the result; None where nothing that was asked for can run it.
        refused: why not; of the usual target where none was asked for, in whose place the plan is then that of the newest
            release that can.
        releases: every release of the runtime.
        effort: what compiling would take; None likewise.
        seconds: time that planning took.
        warnings: what the user should know.
    """

    model: str
    card: ModelCard
    pipeline: str
    target: str
    kinds: tuple[int, ...]
    stored_bytes: int | None
    planned: Planned | None
    refused: Diagnostic | None
    releases: tuple[ReleasePlan, ...]
    effort: Effort | None
    seconds: float
    warnings: tuple[Diagnostic, ...] = field(default_factory=tuple)


def plan_model(request: Request) -> ModelPlan:
    """Plan a compilation.

    Raises:
        LadingError: U957 the model is no checkpoint, the backend makes no plans, or precision is chosen by measurement;
            what is wrong with configuration or headers as for compiling.
    """
    from frontends.checkpoint.outline import headers_of
    from tools.compile.job import pipeline_of
    from tools.shared.formats import CHECKPOINT, Formats

    started = time.perf_counter()
    formats = Formats()
    _check(request, formats)
    name = request.to or formats.emitter_of_frontend(CHECKPOINT) or ""
    backend = formats.emitter(name)
    pipeline, measured = _without_text(pipeline_of(request, formats, backend))
    fetching = ThreadPoolExecutor(FETCHED_AT_ONCE)
    with fetching as pool, headers_of(request.model, request.revision, pool) as folder, paused_collection():
        few, found = _outline(folder, pipeline)
        plan = _plan(request, formats, backend, pipeline, found, few, started)
    return _inexact(plan) if measured else plan


def _inexact(plan: ModelPlan) -> ModelPlan:
    """The plan where blocks are chosen by measurement: sizes are those of the usual blocks."""
    if plan.planned is None:
        return plan
    files = {name: replace(item, exact=False) for name, item in plan.planned.files.items()}
    return replace(plan, planned=replace(plan.planned, files=files))


def _check(request: Request, formats: Formats) -> None:
    from tools.shared.formats import CHECKPOINT

    frontend = formats.frontend_for(request.model, otherwise=CHECKPOINT)
    if request.via is not None or frontend != CHECKPOINT:
        what = "--via torch" if request.via else f"the format {frontend!r}"
        hint = "give a folder with config.json, with or without weights, or a hub name"
        raise LadingError("U957", f"nothing is planned of {what}: only checkpoints are", request.model, hint)
    if request.lora:
        message = "--lora has no effect with --plan: an adapter changes numbers, and a plan is made of shapes"
        raise LadingError("U918", message, hint="leave it out")


def _without_text(pipeline: Pipeline) -> tuple[Pipeline, bool]:
    """The pipeline without what looks at text, and whether that has a part in the sizes: it chooses blocks.

    Raises:
        LadingError: U957 precision is chosen by measurement.
    """
    from passes.framework.pipeline import Pipeline
    from passes.precision.assign_precision import AssignPrecision

    def untaught(one: Pass) -> Pass:
        if not isinstance(one, AssignPrecision):
            return one
        limit = one.limit_text
        if limit:
            message = f"precision is chosen by measurement here ({limit}), which no plan can foresee"
            hint = "the weight file then has the size that is asked for; plan with --passes default, int4 or int8"
            raise LadingError("U957", message, hint=hint)
        return replace(one, method="rtn" if one.needs_statistics else one.method, block_trade=0.0)

    measured = any(isinstance(one, AssignPrecision) and one.block_trade > 0 for one in pipeline.passes())
    kept = Pipeline(tuple(item for item in pipeline.items if not _looks_at_text(item)))
    return kept.map(untaught), measured


def _looks_at_text(item: object) -> bool:
    """True for the pass that gathers statistics of a text, and for those that need them."""
    return getattr(item, "name", "") == "calibrate" or "calibration" in getattr(item, "requires", ())


def _outline(folder: Any, pipeline: Pipeline) -> tuple[Outline, Outline]:
    """One layer of each kind; and the same, or all layers of a small model, and where rules speak of layers by name."""
    from frontends.checkpoint.outline import outline
    from passes.precision.assign_precision import AssignPrecision

    named = any(isinstance(one, AssignPrecision) and (one.plan or one.keep or one.floor) for one in pipeline.passes())
    if named:
        found = outline(folder, whole=True)
        return found, found
    found = outline(folder)
    nodes = sum(found.times(node.name) for node in found.graph.nodes)
    return found, found if found.whole or nodes > FEW_NODES else outline(folder, whole=True)


def _plan(
    request: Request,
    formats: Formats,
    backend: Backend,
    pipeline: Pipeline,
    found: Outline,
    few: Outline,
    started: float,
) -> ModelPlan:
    from backends.plan import Repeats, shares, states
    from ir.facts.model_card import ModelCard

    card = ModelCard.of(found.graph)
    if not os.path.isdir(os.path.expanduser(request.model)):
        card = replace(card, title=request.model)
    target = backend.target(request.target)
    options = {key: value for key in ("memory", "precision", "threads") if (value := getattr(request, key)) is not None}
    context = card.context or CONTEXTS[-1]
    contexts = sorted({*(size for size in CONTEXTS if size < context), context})
    portions, kept = shares(found.graph), states(found.graph, Repeats(found.layers, found.counts))
    warnings: list[Diagnostic] = [*card.warnings]

    def lowered(of: Outline, to: Any, sizes: Sequence[int]) -> Planned:
        graph = _run(of.graph, pipeline, formats, to, warnings if sizes else [])
        return backend.plan(graph, to, options, repeats=Repeats(of.layers, of.counts), shares=portions, contexts=sizes)

    planned, refused = _attempt(lambda: lowered(found, target, contexts))
    releases = tuple(_release(name, backend, lambda to: lowered(few, to, ())) for name in backend.releases())
    runs = [item.release for item in releases if item.runs]
    if planned is None and request.target is None and runs:
        # Not all releases run it, and none was named: what the newest of the others gives is told.
        target = backend.target(runs[-1])
        planned, _ = _attempt(lambda: lowered(found, target, contexts))
    if planned is not None and kept:
        planned = replace(planned, caches=(*planned.caches, *kept), memory=tuple(
            replace(item, cache=item.cache + sum(one.fixed for one in kept)) for item in planned.memory
        ))  # fmt: skip
    return ModelPlan(
        model=request.model,
        card=card,
        pipeline=str(pipeline),
        target=target.name,
        kinds=few.counts,
        stored_bytes=found.stored_bytes,
        planned=planned,
        refused=refused,
        releases=releases,
        effort=_effort(planned, request.workers, card.vocab_size or 0) if planned is not None else None,
        seconds=time.perf_counter() - started,
        warnings=tuple(warnings),
    )


def _run(graph: Graph, pipeline: Pipeline, formats: Formats, target: Any, warnings: list[Diagnostic]) -> Graph:
    """What the passes make of a copy of the graph."""
    from ir.graph.copy import copied
    from passes.framework.context import PassContext
    from passes.framework.manager import PassManager

    twin = copied(graph)
    with ThreadPoolExecutor(1) as pool:
        report = PassManager(pipeline, registry=formats.registry).run(twin, PassContext(target, executor=pool))
    warnings += report.all_diagnostics()
    return twin


def _attempt(make: Callable[[], Planned]) -> tuple[Planned | None, Diagnostic | None]:
    try:
        return make(), None
    except LadingError as error:
        if error.code == "U957":
            raise
        return None, error.diagnostics[0]


def _release(name: str, backend: Backend, lower: Callable[[Any], object]) -> ReleasePlan:
    try:
        lower(backend.target(name))
    except LadingError as error:
        first = error.diagnostics[0]
        return ReleasePlan(name, False, first.code, first.message, first.hint)
    return ReleasePlan(name, True)


def _effort(planned: Planned, workers: int | None, vocabulary: int) -> Effort:
    threads = workers or os.cpu_count() or 1
    work = sum(item.elements / planned.rates[item.storage] for item in planned.weights if item.storage in planned.rates)
    products = sum(item.elements * item.streamed / item.loaded for item in planned.weights if item.loaded)
    return Effort(
        threads,
        work / threads,
        WORKING_MEMORY + threads * PIECES,
        2 * TWICE * VERIFIED_ROWS * products / _products_a_second(),
        WORKING_MEMORY + 4 * COPIES * VERIFIED_ROWS * vocabulary,
    )


def _products_a_second() -> float:
    """Multiplications and additions a second of this machine in products of single floats."""
    import numpy as np

    one = np.ones((SQUARE, SQUARE), np.float32)
    best = 1e9
    for _ in range(3):
        started = time.perf_counter()
        one @ one
        best = min(best, time.perf_counter() - started)
    return 2 * SQUARE**3 / best


def plan_data(plan: ModelPlan) -> dict[str, Any]:
    """A plan as JSON-able data."""
    planned = plan.planned
    return {
        "model": plan.model,
        "card": plan.card.to_data(),
        "pipeline": plan.pipeline,
        "target": plan.target,
        "layer_kinds": list(plan.kinds),
        "stored_bytes": plan.stored_bytes,
        "refused": plan.refused.as_dict() if plan.refused is not None else None,
        "files": {name: asdict(item) for name, item in planned.files.items()} if planned is not None else {},
        "weights": [asdict(item) for item in planned.weights] if planned is not None else [],
        "caches": [asdict(item) for item in planned.caches] if planned is not None else [],
        "memory": [{**asdict(item), "total": item.total} for item in planned.memory] if planned is not None else [],
        "streamed": planned.streamed if planned is not None else None,
        "settings": dict(planned.settings) if planned is not None else {},
        "releases": [asdict(item) for item in plan.releases],
        "effort": asdict(plan.effort) if plan.effort is not None else None,
        "seconds": round(plan.seconds, 3),
        "warnings": [item.as_dict() for item in plan.warnings],
    }


__all__ = ["Effort", "ModelPlan", "ReleasePlan", "plan_data", "plan_model"]
