"""The main job as a function: a model in, what a backend makes of it out, verified and with its contract.

Frontend and backend come from the tables of formats; nothing here knows what either of them reads or writes.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ir.base.diag import Diagnostic, LadingError
from ir.base.interrupts import held_interrupts
from ir.base.paused_gc import paused_collection

if TYPE_CHECKING:
    from backends.backend import Backend, Compilation, Figures, Order, Origin
    from backends.contract import Contract
    from backends.verdict import Verdict
    from ir.facts.model_card import SourceFile
    from ir.graph.graph import Fact, Graph
    from ir.quant.statistics.samples import CalibrationSamples
    from passes.framework.base import Pass
    from passes.framework.context import PassContext
    from passes.framework.manager import Instrument, Report
    from passes.framework.pipeline import Pipeline, Repeat
    from passes.precision.assign_precision import AssignPrecision
    from tools.shared.formats import Formats

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "tiny-qwen2.5"
"""Where the example checkpoint lies in a source tree."""

CALIBRATION_NATIVE = ("onnxruntime", "tokenizers")
"""Packages with native code that measuring passes need."""

NO_TOKENIZER: Literal["none"] = "none"
"""Asks for a result without functions for text."""

LIMITS = ("budget", "max_size", "max_kl", "min_speed")
"""Fields of a request that limit a plan."""

BACKEND_OPTIONS = (
    "text",
    "kl_bar",
    "tokenizer",
    "memory",
    "precision",
    "threads",
    "mmap",
    "settings",
    "embedding",
    "inputs",
    "opset",
    "external_data",
)
"""Fields of a request that only some backends understand."""


@dataclass
class Request:
    """What to compile, and how.

    Attributes:
        model: whatever a frontend recognises: a checkpoint folder, a hub name, a file.
        out: directory to write.
        pipeline: pipeline text, name, or path of a TOML file; None for the backend's own.
        target: what the result must run on, in the backend's words; None for its usual target.
        verify: ``none``, ``quick`` or ``full``.
        text: file whose perplexity is measured, or None.
        force: replace a directory written before.
        revision: revision of a hub repository.
        to: the backend; None lets the model choose.
        calibration: text or JSONL that passes measure with, or arrays for models that read none; None for the example's own
            or the packaged sample.
        budget, max_size, max_kl, min_speed: the limits under which precision is assigned by measurement: bits per weight
            (``4.5bpw``), bytes of the weight file (``300MB``), KL divergence from the float model, share of the decoding
            speed of the fastest uniform width (``0.95x``).
        device: what the result is to run fast on, in the target's words; None for the target's first.
        kl_bar: largest KL divergence that verification lets pass; None takes the one for the narrowest width.
        inputs: file or folder of inputs that the result is run on in place of made-up ones, or None.
        save_plan: file to write the precision plan to, readable and fit for ``plan=``.
        tokenizer: folder with the tokenizer; None for that of the model, ``none`` to do without.
        embedding: file or checkpoint with the embedding, for an ONNX graph that takes rows of it and does not hold it.
        memory, precision: runtime settings to write; None chooses by the stored widths.
        opset: version of ONNX's operators to write; None for that which the passes end with.
        external_data: write the weights of an ONNX model beside it, whatever their size; None for large ones alone.
        threads: runtime threads to write; None for the usual number.
        mmap: later loads map weights that the first rearranged.
        settings: further runtime settings to write, by the runtime's own names: ``attention_mode=0,kvcache_mmap=true``.
        guard: also write the modules that check inputs in an application.
        workers: threads of this process; None takes one per processor.
        cluster: where jobs run, in the words of `tools.cluster.connect.working_on`; None for these threads.
        instruments: watch the passes.
        lora: adapters to merge into a checkpoint before anything else, as ``DIR`` or ``DIR:WEIGHT``.
        via: ``torch`` has `transformers` build the model of a checkpoint and torch export it; None reads it by its family's
            row.
    """

    model: str
    out: Path
    pipeline: str | None = None
    target: str | None = None
    verify: Literal["none", "quick", "full"] = "quick"
    text: Path | None = None
    force: bool = False
    revision: str | None = None
    to: str | None = None
    calibration: Path | None = None
    budget: str | None = None
    max_size: str | None = None
    max_kl: float | None = None
    min_speed: str | None = None
    device: str | None = None
    kl_bar: float | None = None
    inputs: Path | None = None
    save_plan: Path | None = None
    tokenizer: Path | Literal["none"] | None = None
    embedding: Path | None = None
    memory: str | None = None
    precision: str | None = None
    threads: int | None = None
    mmap: bool | None = None
    settings: str | None = None
    opset: int | None = None
    external_data: bool | None = None
    guard: bool = False
    workers: int | None = None
    cluster: str | None = None
    instruments: Sequence[Instrument] = ()
    via: Literal["torch"] | None = None
    lora: Sequence[str] = ()


@dataclass
class Result:
    """What was compiled.

    Attributes:
        out: the directory.
        runtime: what runs it, for people.
        contract: its contract.
        report: what the passes did.
        emission: what was written, in the backend's own terms.
        verification: what was measured, in the backend's own terms, or None.
        sample: prompt and greedy continuation as text, or None.
        lines: what else the backend tells people: a word and a text each.
        figures: what was measured, for people, or None.
        facts: what the passes decided, by name: ``precision-plan``, ``sensitivity``, ``calibration`` and others.
        seconds: wall time by phase.
        warnings: what the user should know.
        verdict: what it all comes to.
    """

    out: Path
    runtime: str
    contract: Contract
    report: Report
    emission: Any
    verification: Any
    sample: tuple[str, str] | None
    lines: Sequence[tuple[str, str]] = ()
    figures: Figures | None = None
    facts: Mapping[str, Fact] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[Diagnostic] = field(default_factory=list)
    verdict: Verdict | None = None


class Listener:
    """Told how far a command is; every method may be left as it is."""

    def begin(self, number: int, total: int, what: str) -> None:
        """Work begins on one of several things of a kind, counted from 0."""

    def phase(self, what: str) -> None:
        """A phase begins."""

    def weights(self, done: int, total: int) -> None:
        """So many weights of all are written."""

    def step(self, done: int, total: int, what: str) -> None:
        """A long pass is so far."""


def example_checkpoint() -> Path:
    """The checkpoint that is compiled when none is named: of this source tree, else of the one we stand in.

    Raises:
        LadingError: U901 there is none, as where only the package is installed.
    """
    for folder in (EXAMPLE, Path("examples") / EXAMPLE.name):
        if (folder / "config.json").is_file():
            return folder
    raise LadingError(
        "U901",
        "no model is named, and the example that stands in for one comes with the source tree only",
        hint="name a checkpoint folder or a hub repository owner/name, or run the command in the source tree",
    )


def compile_model(request: Request, listener: Listener | None = None) -> Result:
    """Compile a model; the output directory appears complete or not at all.

    Raises:
        LadingError: whatever is wrong with the request, the model, the machine or the result.
    """
    # An interrupt while numpy is imported makes it print a traceback of its own.
    with held_interrupts(), paused_collection():
        from ir.base.store import default_store
        from tools.shared.formats import Formats

    workers = request.workers or os.cpu_count() or 1
    if request.cluster is not None and os.path.exists(request.model):
        # Workers elsewhere stand in other folders.
        request = replace(request, model=os.path.abspath(request.model))
    store = default_store()
    before = store.puts
    try:
        with (
            store.holding(),
            ThreadPoolExecutor(workers) as pool,
            ThreadPoolExecutor(1) as side,
            _workers(request, pool, listener or Listener()) as jobs,
        ):
            return _Job(request, listener or Listener(), Formats(), pool, side, jobs).run()
    except KeyboardInterrupt as stop:
        if store.puts > before:
            stop.add_note("what was measured is kept: the same command goes on from there")
        raise


@contextmanager
def _workers(request: Request, pool: Executor, listener: Listener) -> Iterator[Executor]:
    """What runs the jobs of passes and of the writer: the threads, or a cluster."""
    if request.cluster is None:
        yield pool
        return
    from tools.cluster.connect import working_on

    listener.phase("reaching the cluster")
    with working_on(request.cluster, pool) as jobs:
        yield jobs


def pipeline_of(request: Request, formats: Formats, backend: Backend, frontend: str = "checkpoint") -> Pipeline:
    """The pipeline that a request runs: its own or the backend's, with the limits of the request."""
    from passes.framework.load import load

    named = load(request.pipeline or backend.pipeline(frontend), formats.registry)
    return _measured(backend.completed(named, formats.registry), request)


def with_example_texts(request: Request, example: Path) -> Request:
    """The request with the texts of the example checkpoint, as far as it looks at any and names none."""
    with held_interrupts():
        from tools.shared.formats import CHECKPOINT, Formats

    formats = Formats()
    backend = formats.emitter(request.to or formats.emitter_of_frontend(CHECKPOINT) or "")
    if request.text is None and request.verify != "none" and "text" in backend.options:
        request = replace(request, text=example / "evaluation.txt")
    if request.calibration is None and _calibrates(pipeline_of(request, formats, backend)):
        request = replace(request, calibration=example / "calibration.txt")
    return request


def _check(request: Request) -> None:
    """Refuse now what can be refused before work starts."""
    from backends.staging import check_target
    from frontends.containers.stand_ins import require_fetched

    check_target(request.out, request.force)
    for text in (request.text, request.calibration):
        # Calibration data of models that read no text may be a folder.
        if text is not None and not (text.is_file() or (text is request.calibration and text.is_dir())):
            raise LadingError("U903", "no such text file", where=str(text))
        if text is not None and text.is_file():
            require_fetched(text)
    if request.text is not None:
        from frontends.text.documents import read_documents

        list(read_documents(request.text, sys.maxsize))


def adapter_and_weight(text: str) -> tuple[str, float]:
    """Folder or hub name of an adapter and its weight, from ``DIR`` or ``DIR:WEIGHT``.

    Raises:
        LadingError: U956 the weight is no finite number.
    """
    name, colon, weight = text.rpartition(":")
    if not colon or os.path.exists(os.path.expanduser(text)):
        return text, 1.0
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        hint = "write --lora DIR:WEIGHT with a number, such as --lora ./adapter:0.5, or leave the weight out"
        raise LadingError("U956", f"the weight of the adapter {name} is {weight!r}, which is no number", text, hint)
    return name, number


def _check_adapters(request: Request, formats: Formats, origin: Origin) -> None:
    """Refuse adapters for models that have no named tensors to merge them into; LadingError U956."""
    for text in request.lora:
        adapter_and_weight(text)
    if request.lora and "lora" not in formats.frontend(origin.frontend).options:
        what = "--via torch" if request.via else f"a model of the format {origin.frontend!r}"
        message = f"--lora merges into the tensors of a checkpoint; {what} has none by name"
        raise LadingError("U956", message, request.model, "give the checkpoint folder or hub name of the base")


def _check_used(request: Request, pipeline: Pipeline, calibrated: bool) -> None:
    """Refuse options that would do nothing here.

    Raises:
        LadingError: U918, U903 a folder is given where text is looked at.
    """
    if calibrated and request.calibration is not None and request.calibration.is_dir():
        raise LadingError("U903", "no such text file", where=str(request.calibration))
    for option, given in (("--text", request.text), ("--kl-bar", request.kl_bar), ("--inputs", request.inputs)):
        if given is not None and request.verify == "none":
            message = f"{option} has no effect: with --verify none nothing is run and measured"
            raise LadingError("U918", message, hint=f"leave {option} out, or --verify none")
    if request.calibration is not None and not calibrated and not _observes(pipeline):
        message = f"--calibration has no effect: the pipeline {pipeline} does not look at text or samples"
        hint = (
            "leave it out, or choose by it: --passes calibrated, --passes mixed, --budget, --max-size, --max-kl, --min-speed; of "
            "models that read no text: --passes int8-static"
        )
        raise LadingError("U918", message, hint=hint)


def _options(request: Request, name: str, formats: Formats, calibrated: bool) -> dict[str, Any]:
    """The options that only some backends understand, as far as they are given.

    Raises:
        LadingError: U915 one that the chosen backend does not understand.
    """
    known = formats.emitter(name).options
    given = {key: value for key in BACKEND_OPTIONS if (value := getattr(request, key)) is not None}
    for key in given:
        # Text to calibrate with is read by means of the tokenizer, whatever the backend.
        if key in known or (key == "tokenizer" and calibrated):
            continue
        option = f"--{key.replace('_', '-')}"
        others = [other for other in formats.emitters() if key in formats.emitter(other).options]
        hint = f"leave it out, or choose --to {' or '.join(others)}" if others else "leave it out"
        raise LadingError("U915", f"the backend {name!r} has no use for {option}", hint=hint)
    return {key: value for key, value in given.items() if key in known}


def _measured(pipeline: Pipeline, request: Request) -> Pipeline:
    """The pipeline with the limits of the request given to assign-precision, and calibrated before it where it must be.

    Raises:
        LadingError: U907 nothing in the pipeline could keep a limit, heed a device or make a plan to save.
    """
    from passes.precision.assign_precision import AssignPrecision

    plans = any("precision-plan" in one.establishes for one in pipeline.passes())
    if request.save_plan is not None and not plans:
        hint = "use a pipeline with assign-precision, or leave --save-plan out"
        raise LadingError("U907", f"the pipeline {pipeline} makes no precision plan to save", hint=hint)
    limits: dict[str, Any] = {name: getattr(request, name) for name in LIMITS}
    given = any(value is not None for value in limits.values())
    place = next((number for number, item in enumerate(pipeline.items) if _assigning(item)), None)
    if place is None:
        if not given and request.device is None:
            return pipeline
        hint = "use --passes default, or add assign-precision"
        what = "keep a limit" if given else "choose for a device"
        raise LadingError("U907", f"the pipeline {pipeline} has no assign-precision to {what}", hint=hint)
    # Limits that the pipeline brings, as "mixed" does, give way together.
    changes = {**(limits if given else {}), **({"device": request.device} if request.device is not None else {})}
    if changes:
        pipeline = pipeline.map(lambda one: replace(one, **changes) if isinstance(one, AssignPrecision) else one)
    assigning = _assigning(pipeline.items[place])
    before: list[Pass] = []
    behind: list[Pass] = []
    if not _calibrates(pipeline) and any(one.needs_statistics for one in assigning):
        from passes.calibration.calibrate import Calibrate

        before.append(Calibrate())
    if any(one.follows for one in assigning) and not any(one.name == "recalibrate" for one in pipeline.passes()):
        from passes.calibration.recalibrate import Recalibrate

        behind.append(Recalibrate())
    if not before and not behind:
        return pipeline
    from passes.framework.pipeline import Pipeline

    items = pipeline.items
    return Pipeline((*items[:place], *before, items[place], *behind, *items[place + 1 :]))


def _calibrates(pipeline: Pipeline) -> bool:
    return any(one.name == "calibrate" for one in pipeline.passes())


def _observes(pipeline: Pipeline) -> bool:
    """True for passes that look at inputs of the model that are no text."""
    return any("activation-ranges" in one.establishes for one in pipeline.passes())


def _assigning(item: Pass | Repeat) -> list[AssignPrecision]:
    from passes.framework.pipeline import Repeat
    from passes.precision.assign_precision import AssignPrecision

    inside = item.body.passes() if isinstance(item, Repeat) else (item,)
    return [one for one in inside if isinstance(one, AssignPrecision)]


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.started = self.last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] = now - self.last
        self.last = now

    def total(self) -> float:
        return time.perf_counter() - self.started


class _Job:
    """One compilation: what its steps share."""

    def __init__(
        self, request: Request, listener: Listener, formats: Formats, pool: Executor, side: Executor, jobs: Executor
    ) -> None:
        self.request = request
        self.listener = listener
        self.formats = formats
        self.pool = pool
        self.side = side
        self.jobs = jobs
        self.clock = _Clock()
        self.warnings: list[Diagnostic] = []
        self.told: list[tuple[str, str]] = []

    def run(self) -> Result:
        """Do all of it; what is not verified is over before the collector of garbage would find any."""
        with paused_collection() if self.request.verify == "none" else nullcontext():
            return self._run()

    def _run(self) -> Result:
        from backends.staging import staged_directory
        from ir.base.store import default_store

        request, formats = self.request, self.formats
        _check(request)
        self.listener.phase("reading the model")
        origin, name, graph = self._opened()
        backend = formats.emitter(name)
        target = backend.target(request.target)
        pipeline = pipeline_of(request, formats, backend, origin.frontend)
        calibrated = _calibrates(pipeline)
        options = _options(request, name, formats, calibrated)
        _check_used(request, pipeline, calibrated)
        compilation = backend.begin(self._order(origin, target, options))
        staged = staged_directory(request.out, force=request.force, executor=self.pool)
        with staged as staging, compilation.working(staging):
            with paused_collection():
                if graph is None:
                    graph = self._read(origin, compilation, calibrated)
                if self.request.cluster is not None:
                    self._prepare_workers(graph, staging)
                original, report = self._lower(graph, origin, compilation, pipeline, calibrated)
                # What the end takes is loaded while processors are busy with weights.
                for module in ("backends.contract", "backends.verdict"):
                    self.side.submit(import_module, module)
                compilation.emit(graph)
            if original is not None:
                self._verify(graph, original, compilation)
            self.warnings += [*default_store().take_warnings(), *compilation.warnings]
            verdict = self._verdict(graph, compilation)
            contract = self._contract(graph, compilation, report, verdict, staging)
            # All that can fail is done before the folder takes its place.
            result = Result(
                request.out,
                backend.runtime,
                contract,
                report,
                compilation.emission,
                compilation.verification,
                compilation.sample(),
                [*self.told, *compilation.lines()],
                compilation.figures(),
                dict(graph.facts),
                self.clock.seconds,
                self.warnings,
                verdict,
            )
            self.listener.phase("putting the folder in place")
        result.seconds["total"] = self.clock.total()
        return result

    def _prepare_workers(self, graph: Graph, staging: Path) -> None:
        """Tell the workers of the cluster what they read, and find out whether they see what is written here."""
        from ir.base.store import cache_folder
        from ir.tensor.files import find_source
        from tools.cluster.executor import ClusterExecutor

        assert isinstance(self.jobs, ClusterExecutor)
        files = (file for value in graph.consts.values() for file in find_source(value.tensor))
        self.jobs.trust(file.path for file in files)
        self.jobs.look_for_files([staging, cache_folder()])
        where = "shared files" if self.jobs.shares_files else "parts are sent"
        workers = f"{self.jobs.workers} worker{'s' * (self.jobs.workers != 1)}"
        threads = f"{self.jobs.threads} thread{'s' * (self.jobs.threads != 1)}"
        self.told.append(("cluster", f"{workers} of {threads}, {where}"))

    def _verify(self, graph: Graph, original: Graph, compilation: Compilation) -> None:
        """Run what was written; what is refused is told with what was measured."""
        from backends.backend import Rejected

        try:
            compilation.verify(graph, original)
        except LadingError as error:
            if compilation.verification is None:
                raise
            rejected = Rejected.of(error.diagnostics)
            rejected.figures = compilation.figures()
            rejected.worst = compilation.worst_weights(graph)
            raise rejected from error

    def _verdict(self, graph: Graph, compilation: Compilation) -> Verdict:
        """What the compilation comes to; unknown keys are no matter where the original implementation agrees."""
        from backends.verdict import verdict_of
        from ir.base.store import DAMAGED
        from ir.facts.model_card import ModelCard

        reading, unread = compilation.reading(), ModelCard.of(graph).unread
        if reading.verified and not reading.doubts:
            self.warnings = [item for item in self.warnings if item.code != "F562"]
        warnings = [item for item in self.warnings if item.code != DAMAGED and item.severity == "warning"]
        return verdict_of(compilation.judged(), reading, warnings, unread)

    def _opened(self) -> tuple[Origin, str, Graph | None]:
        """The model, the backend that it is compiled for, and the graph where it had to be read to choose."""
        request, formats = self.request, self.formats
        if request.to is not None:
            formats.emitter(request.to)
        origin = formats.locate(request.model, request.via, revision=request.revision)
        _check_adapters(request, formats, origin)
        name = request.to or formats.emitter_of_frontend(origin.frontend)
        if name is not None:
            return origin, name, None
        graph = self._load(origin)
        return origin, formats.emitter_of(graph), graph

    def _order(self, origin: Origin, target: Any, options: Mapping[str, Any]) -> Order:
        from backends.backend import Order

        return Order(
            origin,
            target,
            options,
            self.request.verify,
            self.pool,
            self.side,
            self.jobs,
            self.listener.phase,
            self.listener.weights,
            self.clock.lap,
        )

    def _load(self, origin: Origin) -> Graph:
        from ir.facts.free_tensors import free_notes
        from ir.facts.model_card import ModelCard

        lora = [adapter_and_weight(text) for text in self.request.lora]
        graph = self.formats.read(str(origin.path), origin.frontend, lora=lora)
        card = ModelCard.of(graph)
        self.warnings += card.warnings
        self.warnings += free_notes(graph)
        if origin.frontend in ("checkpoint", "torch"):
            from frontends.checkpoint.load import zero_weights

            self.warnings += zero_weights(graph)
        if origin.frontend == "onnx":
            from frontends.onnx.beside import described

            card = described(origin.path, graph)
        sources = card.sources or _own_source(origin)
        graph.set_fact(card.name, replace(card, title=origin.title, sources=sources, warnings=()))
        return graph

    def _read(self, origin: Origin, compilation: Compilation, calibrated: bool) -> Graph:
        """The graph of the model; native modules that later phases need are imported now, while interrupts wait."""
        with held_interrupts():
            verified = compilation.native if self.request.verify != "none" else ()
            for package in dict.fromkeys((*verified, *(CALIBRATION_NATIVE if calibrated else ()))):
                import_module(package)
            return self._load(origin)

    def _lower(
        self, graph: Graph, origin: Origin, compilation: Compilation, pipeline: Pipeline, calibrated: bool
    ) -> tuple[Graph | None, Report]:
        """Run the passes; returns the model as it was before them, where it is wanted, and what they did."""
        from passes.framework.instruments import KeepOriginal
        from passes.framework.manager import PassManager

        compilation.opened(graph)
        keeper = KeepOriginal(graph) if self.request.verify != "none" else None
        watchers = [*self.request.instruments, *([keeper] if keeper is not None else [])]
        context = self._context(graph, compilation.order, pipeline)
        self.clock.lap("read")
        self.listener.phase("running the passes")
        # A pipeline without calibration is over sooner than anybody could wait for it; the others can be stopped.
        with nullcontext() if calibrated or _observes(pipeline) else held_interrupts():
            report = PassManager(pipeline, watchers, registry=self.formats.registry).run(graph, context)
        compilation.check(graph, report.pipeline)
        self.warnings += report.all_diagnostics()
        self.clock.lap("passes")
        if self.request.save_plan is not None:
            _save_plan(graph, self.request.save_plan)
        return (keeper.graph if keeper is not None else None), report

    def _context(self, graph: Graph, order: Order, pipeline: Pipeline) -> PassContext:
        """What passes are given besides the graph."""
        from passes.framework.context import PassContext

        if _observes(pipeline) and self.request.calibration is not None:
            return PassContext(
                order.target, self._samples(graph, order), progress=self.listener.step, executor=self.jobs
            )
        if not _calibrates(pipeline):
            return PassContext(order.target, progress=self.listener.step, executor=self.jobs)
        from frontends.text.calibration_text import load_calibration, shortfall

        text = load_calibration(self.request.calibration, self._text_folder(order.origin))
        if (short := shortfall(text)) is not None:
            self.warnings.append(short)
        self.told.append(("calibrated", f"on {text.read_as} of {self.request.calibration or 'the sample'}"))
        return PassContext(order.target, text, progress=self.listener.step, executor=self.jobs)

    def _samples(self, graph: Graph, order: Order) -> CalibrationSamples:
        """The inputs that passes look at; the result is verified on those that no ranges come from, where there are such:
        what `assign-int8` measures the error of its choices on.

        Raises:
            LadingError: Q473, Q474 the calibration data does not fit, Q478 the model is one of language.
        """
        from frontends.samples import load_samples
        from passes.static_quant.observe import refuse_language_models

        assert self.request.calibration is not None
        refuse_language_models(graph)
        samples = load_samples(self.request.calibration, graph)
        order.measured_on.append(samples.for_measuring)
        self.told.append(("calibrated", f"on {samples.read_as} of {self.request.calibration}"))
        return samples

    def _text_folder(self, origin: Origin) -> Path:
        """The folder whose tokenizer cuts text into tokens.

        Raises:
            LadingError: U919 the command does without a tokenizer.
        """
        named = self.request.tokenizer
        if named == NO_TOKENIZER:
            hint = "name the folder of the tokenizer with --tokenizer, or take passes that look at no text"
            raise LadingError("U919", "the passes measure on text, which takes a tokenizer", origin.model, hint)
        return named or origin.tokenizer or origin.folder

    def _contract(
        self, graph: Graph, compilation: Compilation, report: Report, verdict: Verdict, folder: Path
    ) -> Contract:
        from backends.backend import Made
        from backends.contract import write
        from ir.base.store import DAMAGED

        self.listener.phase("writing the contract")
        passes = [(item.name, item.lasting) for item in report.passes]
        # What was found damaged in the store was made again: the result is the same.
        warnings = [item for item in self.warnings if item.code != DAMAGED]
        contract = compilation.contract(graph, Made(report.pipeline, passes, warnings, verdict))
        if self.request.guard:
            from backends.guard.write import add_guard

            contract = add_guard(contract, folder)
        write(contract, folder)
        self.clock.lap("contract")
        return contract


def _own_source(origin: Origin) -> dict[str, SourceFile]:
    """A model in one file is its own source."""
    from ir.base.whole_files import sha256_of
    from ir.facts.model_card import SourceFile

    if not origin.path.is_file():
        return {}
    return {origin.path.name: SourceFile(origin.path.stat().st_size, sha256_of(origin.path))}


def _save_plan(graph: Graph, path: Path) -> None:
    from ir.facts.precision import PrecisionPlan
    from ir.facts.sensitivity import Sensitivity
    from passes.precision.plan_file import write_plan

    write_plan(graph.required_fact(PrecisionPlan), path, graph.fact(Sensitivity))
