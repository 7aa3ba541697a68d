"""The main job as a function: checkpoint in, verified MNN model directory and contract out."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ir.base.diag import Diagnostic, LadingError
from ir.base.json_numbers import whole
from tools.shared.interrupts import held_interrupts

if TYPE_CHECKING:
    from backends.contract import Contract
    from backends.mnn.tokenizer.write_files import TokenizerJob
    from backends.mnn.verify.logits import Verification
    from backends.mnn.verify.written_weights import WeightError
    from backends.mnn.write.llm_folder import Emission, Settings
    from ir.graph.graph import Fact, Graph
    from passes.framework.base import Pass
    from passes.framework.context import PassContext
    from passes.framework.manager import Instrument, Report
    from passes.framework.pipeline import Pipeline, Repeat

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "tiny-qwen2.5"
"""Where the example checkpoint lies in a source tree."""

QUICK_SAMPLE = 1 << 20
"""Elements per matrix that a quick read-back decodes."""

PROMPTS = (
    "import os\nimport sys\n\n\ndef ",
    "class TestCase(unittest.TestCase):\n    def setUp(self):\n        ",
    "The capital of France is",
    "人工智能正在改变我们的生活,",
)
"""Texts that verification continues."""


@dataclass
class Request:
    """What to compile, and how.

    Attributes:
        model: checkpoint folder or hub name.
        out: directory to write.
        pipeline: pipeline text, name, or path of a TOML file.
        target: ``portable``, an MNN release, or version clauses such as ``>=3.4,<3.6``.
        verify: ``none``, ``quick`` or ``full``.
        text: file whose perplexity is measured, or None.
        force: replace a directory written before.
        revision: revision of a hub repository.
        calibration: text or JSONL that passes measure with; None for the example's own or the packaged sample.
        budget, max_size, max_kl: the limit under which precision is assigned by measurement, at most one of them: bits
            per weight (``4.5bpw``), bytes of the weight file (``300MB``), KL divergence from the float model.
        kl_bar: largest KL divergence that verification lets pass; None takes the one for the narrowest width.
        save_plan: file to write the precision plan to, readable and fit for ``plan=``.
        memory, precision: runtime settings to write; None chooses by the stored widths.
        threads: runtime threads to write.
        guard: also write the modules that check inputs in an application.
        workers: threads of this process; None takes one per processor.
        instruments: watch the passes.
    """

    model: str
    out: Path
    pipeline: str = "default"
    target: str = "portable"
    verify: Literal["none", "quick", "full"] = "quick"
    text: Path | None = None
    force: bool = False
    revision: str | None = None
    calibration: Path | None = None
    budget: str | None = None
    max_size: str | None = None
    max_kl: float | None = None
    kl_bar: float | None = None
    save_plan: Path | None = None
    memory: str | None = None
    precision: str | None = None
    threads: int = 4
    guard: bool = False
    workers: int | None = None
    instruments: Sequence[Instrument] = ()


@dataclass
class Result:
    """What was compiled.

    Attributes:
        out: the directory.
        contract: its contract.
        report: what the passes did.
        emission: what was written.
        verification: what was measured, or None.
        sample: prompt and greedy continuation as text, or None.
        facts: what the passes decided, by name: ``precision-plan``, ``sensitivity``, ``calibration`` and others.
        seconds: wall time by phase.
        warnings: what the user should know.
    """

    out: Path
    contract: Contract
    report: Report
    emission: Emission
    verification: Verification | None
    sample: tuple[str, str] | None
    facts: Mapping[str, Fact] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[Diagnostic] = field(default_factory=list)


class Listener:
    """Told how far a compilation is; every method may be left as it is."""

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
    """Compile a checkpoint; the output directory appears complete or not at all.

    Raises:
        LadingError: whatever is wrong with the request, the checkpoint, the machine or the result.
    """
    from ir.base.store import default_store
    from passes.framework.load import load as load_pipeline

    pipeline = _measured(load_pipeline(request.pipeline), request)
    _check(request)
    workers = request.workers or os.cpu_count() or 1
    store = default_store()
    with store.holding(), ThreadPoolExecutor(workers) as pool, ThreadPoolExecutor(1) as side:
        job = _Job(request, listener or Listener(), pipeline, pool, side)
        return job.run()


def _check(request: Request) -> None:
    """Refuse now what can be refused before work starts."""
    from backends.mnn.target.environments import installed_version
    from backends.mnn.target.releases import target
    from backends.staging import check_target

    target(request.target)
    check_target(request.out, request.force)
    for text in (request.text, request.calibration):
        if text is not None and not text.is_file():
            raise LadingError("U903", "no such text file", where=str(text))
    if request.verify != "none" and installed_version() is None:
        raise LadingError(
            "U906",
            "verification needs the MNN runtime, which is not installed",
            hint="pip install MNN, or --verify none",
        )


def _measured(pipeline: Pipeline, request: Request) -> Pipeline:
    """The pipeline with the limit of the request given to assign-precision, and calibrated before it.

    Raises:
        LadingError: U907 more than one limit, or nothing in the pipeline that could keep one.
    """
    from dataclasses import replace

    from passes.precision.assign_precision import AssignPrecision

    limits = {"budget": request.budget, "max_size": request.max_size, "max_kl": request.max_kl}
    given = {name: value for name, value in limits.items() if value is not None}
    if not given:
        return pipeline
    if len(given) > 1:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise LadingError("U907", f"{names} are given together", hint="keep one of them")
    if not any(isinstance(one, AssignPrecision) for one in pipeline.passes()):
        hint = "use --passes default, or add assign-precision"
        raise LadingError("U907", f"the pipeline {pipeline} has no assign-precision to keep a limit", hint=hint)
    # A limit that the pipeline brings, as "mixed" does, gives way.
    limited = pipeline.map(lambda one: replace(one, **limits) if isinstance(one, AssignPrecision) else one)
    if _calibrates(limited):
        return limited
    from passes.calibration.calibrate import Calibrate
    from passes.framework.pipeline import Pipeline

    place = next(number for number, item in enumerate(limited.items) if _assigns(item))
    return Pipeline((*limited.items[:place], Calibrate(), *limited.items[place:]))


def _calibrates(pipeline: Pipeline) -> bool:
    return any(one.name == "calibrate" for one in pipeline.passes())


def _assigns(item: Pass | Repeat) -> bool:
    from passes.framework.pipeline import Repeat
    from passes.precision.assign_precision import AssignPrecision

    inside = item.body.passes() if isinstance(item, Repeat) else (item,)
    return any(isinstance(one, AssignPrecision) for one in inside)


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
        self, request: Request, listener: Listener, pipeline: Pipeline, pool: Executor, side: Executor
    ) -> None:
        from backends.mnn.target.releases import target

        self.request = request
        self.listener = listener
        self.pipeline = pipeline
        self.pool = pool
        self.side = side
        self.target = target(request.target)
        self.clock = _Clock()
        self.warnings: list[Diagnostic] = []

    def run(self) -> Result:
        from backends.mnn.tokenizer.write_files import TokenizerJob
        from backends.mnn.write.llm_folder import tokenizer_request
        from backends.staging import staged_directory
        from frontends.checkpoint.hub import resolve

        self.listener.phase("reading the checkpoint")
        request = self.request
        folder = resolve(request.model, revision=request.revision)
        with staged_directory(request.out, force=request.force) as staging:
            compare = request.verify != "none"
            job = tokenizer_request(folder, staging, self.target, compare=compare, lines=request.text)
            with TokenizerJob(job) as tokenizer:
                graph, report = self._lower(folder)
                emission = self._emit(graph, staging, folder, tokenizer)
            verification, errors = self._verify(graph, emission, folder)
            contract = self._contract(graph, emission, report, verification, errors)
        sample = _sample(folder, verification)
        seconds = {**self.clock.seconds, "total": self.clock.total()}
        facts = dict(graph.facts)
        return Result(request.out, contract, report, emission, verification, sample, facts, seconds, self.warnings)

    def _import_native(self, calibrated: bool) -> None:
        """Import what later phases need of native modules now, while interrupts wait."""
        if self.request.verify != "none" or calibrated:
            import onnxruntime
            import tokenizers

            assert onnxruntime and tokenizers

    def _lower(self, folder: Path) -> tuple[Graph, Report]:
        """The checkpoint as a graph that MNN can hold."""
        from contextlib import nullcontext

        from frontends.checkpoint.load import load
        from passes.framework.manager import PassManager

        calibrated = _calibrates(self.pipeline)
        with held_interrupts():
            self._import_native(calibrated)
            graph = load(folder)
        graph.metadata["name"] = _model_name(self.request.model)
        self.warnings += [Diagnostic(**item) for item in graph.metadata.pop("warnings", ())]
        context = self._context(folder, calibrated)
        self.clock.lap("read")
        self.listener.phase("running the passes")
        # A pipeline without calibration is over sooner than anybody could wait for it; the others can be stopped.
        with nullcontext() if calibrated else held_interrupts():
            report = PassManager(self.pipeline, self.request.instruments).run(graph, context)
        _require_lowered(graph, report)
        self.warnings += report.all_diagnostics()
        self.clock.lap("passes")
        if self.request.save_plan is not None:
            _save_plan(graph, self.request.save_plan)
        return graph, report

    def _context(self, folder: Path, calibrated: bool) -> PassContext:
        """What passes are given besides the graph."""
        from passes.framework.context import PassContext

        if not calibrated:
            return PassContext(self.target, executor=self.pool)
        from frontends.text.calibration_text import load_calibration

        text = load_calibration(self.request.calibration, folder)
        return PassContext(self.target, text, progress=self.listener.step, executor=self.pool)

    def _emit(self, graph: Graph, staging: Path, folder: Path, tokenizer: TokenizerJob) -> Emission:
        from backends.mnn.write.llm_folder import emit
        from ir.base.store import default_store

        self.listener.phase("writing the weights")
        emission = emit(
            graph,
            staging,
            tokenizer=tokenizer.result,
            sampling=_generation_config(folder),
            target=self.target,
            settings=self._settings(graph),
            executor=self.pool,
            side=self.side,
            progress=self.listener.weights,
        )
        self.warnings += default_store().take_warnings()
        self.clock.lap("write")
        return emission

    def _settings(self, graph: Graph) -> Settings:
        """What suits the stored widths, unless the request says otherwise."""
        from backends.mnn.write.configs import recommend
        from backends.mnn.write.llm_folder import Settings
        from ir.facts.precision import PrecisionPlan

        best = recommend(graph.facts[PrecisionPlan.name].storage.values())
        memory = self.request.memory or best.memory
        option = best.dynamic_option if memory == "low" else 0
        return Settings(self.request.precision or best.precision, memory, self.request.threads, option)

    def _verify(
        self, graph: Graph, emission: Emission, folder: Path
    ) -> tuple[Verification | None, dict[str, WeightError]]:
        if self.request.verify == "none":
            return None, {}
        from backends.mnn.target.environments import installed_version
        from backends.mnn.verify.logits import LEVELS, Subject, verify
        from backends.mnn.verify.written_weights import read_back
        from frontends.checkpoint.load import load

        self.listener.phase("reading back what was written")
        sample = QUICK_SAMPLE if self.request.verify == "quick" else None
        errors = read_back(graph, emission.layout, emission.folder, self.pool, sample=sample)
        self.clock.lap("read back")
        encode = _encoder(folder)
        text = encode(self.request.text.read_text(encoding="utf-8", errors="replace")) if self.request.text else []
        subject = Subject(
            emission.folder,
            load(folder),
            graph,
            [ids for ids in map(encode, PROMPTS) if ids],
            text,
            emission.settings.as_run(),
        )
        verification = verify(
            subject,
            LEVELS[self.request.verify],
            version=installed_version() or "unknown",
            max_kl=self.request.kl_bar,
            progress=self.listener.phase,
        )
        verification.require()
        self.clock.lap("verify")
        return verification, errors

    def _contract(
        self,
        graph: Graph,
        emission: Emission,
        report: Report,
        verification: Verification | None,
        errors: Mapping[str, WeightError],
    ) -> Contract:
        from backends.contract import write
        from backends.mnn.contract import make_contract

        self.listener.phase("writing the contract")
        contract = make_contract(
            graph,
            emission,
            target=self.target,
            pipeline=report.pipeline,
            passes=[(item.name, item.counts) for item in report.passes],
            errors={name: (item.rms_relative, item.max_abs) for name, item in errors.items()},
            measurements=verification.measurements if verification is not None else [],
            warnings=self.warnings,
            executor=self.pool,
        )
        if self.request.guard:
            from backends.guard.write import add_guard

            contract = add_guard(contract, emission.folder)
        write(contract, emission.folder)
        self.clock.lap("contract")
        return contract


def _save_plan(graph: Graph, path: Path) -> None:
    from ir.facts.precision import PrecisionPlan
    from ir.facts.sensitivity import Sensitivity
    from passes.precision.plan_file import write_plan

    write_plan(graph.facts[PrecisionPlan.name], path, graph.facts.get(Sensitivity.name))


def _sample(folder: Path, verification: Verification | None) -> tuple[str, str] | None:
    """The first prompt and what the runtime made of it."""
    if verification is None or not verification.sample:
        return None
    from frontends.text.tokenizer import open_tokenizer

    text = open_tokenizer(folder).decode(verification.sample, skip_special_tokens=True)
    return PROMPTS[0], text


def _encoder(folder: Path) -> Callable[[str], list[int]]:
    from frontends.text.tokenizer import open_tokenizer

    tokenizer = open_tokenizer(folder)
    return lambda text: tokenizer.encode(text).ids


def _generation_config(folder: Path) -> Mapping[str, Any]:
    """The checkpoint's sampling defaults; empty when it has none.

    Raises:
        LadingError: U904 a file that is not a JSON object.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_int=whole)
    except (ValueError, RecursionError, OSError) as error:
        raise LadingError("U904", f"cannot be read as JSON: {error}", where=str(path)) from error
    if not isinstance(data, dict):
        raise LadingError("U904", "is not a JSON object", where=str(path))
    return data


def _model_name(model: str) -> str:
    return Path(model).resolve().name if os.path.isdir(os.path.expanduser(model)) else model


def _require_lowered(graph: Graph, report: Report) -> None:
    """The pipeline must end in the form that the backend writes."""
    from ir.verify.stages import INVARIANTS

    problems = INVARIANTS["mnn"](graph)
    if problems:
        first = problems[0]
        raise LadingError(
            "U905",
            f"this pipeline does not end in a graph that MNN can hold: {first.message}",
            where=f"pipeline {report.pipeline}\n{first.where}",
            hint="end it with legalize-mnn, as the pipeline 'default' does",
        )
