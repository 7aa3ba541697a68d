"""Build and measure the rungs of a ladder, one after another, so that a run that was stopped goes on where it was.

What is known of a rung lies in a file of its own with the digests of all it depends on. A rung is compiled in a child
process and measured on the real runtime in another; a rung that fails is reported with its code, and the others go on.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ir.base.diag import LadingError
from ir.base.interrupts import held_interrupts
from tools.ladder.child import compile_rung
from tools.ladder.rungs import Rule, Spec
from tools.ladder.text import Text
from tools.matrix.rows import digest_of_sources, read_kept, write_kept

if TYPE_CHECKING:
    from backends.mnn.verify.measure import FloatReference
    from passes.framework.pipeline import Pipeline

FORMAT = 2
"""Counts up when rungs are measured otherwise, so that older ones are built again."""

STATE = ".rungs"
"""Folder beside the rungs that holds what is known of them."""

SAMPLE_TOKENS = 48
"""Tokens of the sample continuation."""


class Watcher:
    """Told how far a ladder is; every method may be left as it is."""

    def rung(self, number: int, name: str) -> None:
        """Work on a rung begins, counted from 0."""

    def phase(self, what: str, done: int = 0, total: int = 0) -> None:
        """What is being done, and how far it is where that is known."""

    def ended(self, rung: Mapping[str, Any]) -> None:
        """A rung is done: built and measured, or failed."""


@dataclass(frozen=True)
class Job:
    """What to build and how to measure it.

    Attributes:
        model: the model as the user named it.
        folder: the folder of its tokenizer: the checkpoint itself.
        specs: rungs in order.
        out: folder of the rungs.
        text: what is measured on.
        target, verify, threads, calibration: as in `tools.compile.job.Request`.
        prompt: text that every rung continues.
        rule: what a recommended rung keeps.
        keep: leave the compiled folders where they are.
        fresh: forget what an earlier run left.
        timeout_s: seconds that one compilation or one measurement may take.
        file: the model where it is an ONNX file; None for a checkpoint.
        cluster: where rungs are built, as in `tools.compile.job.Request`; they are measured on this machine.
        settings: rungs whose runtime settings are tried, by name; ``recommended`` for the one that will be.
    """

    model: str
    folder: Path
    specs: Sequence[Spec]
    out: Path
    text: Text
    prompt: str
    target: str = "portable"
    verify: str = "quick"
    threads: int = 4
    calibration: Path | None = None
    rule: Rule = field(default_factory=Rule)
    keep: bool = True
    fresh: bool = False
    timeout_s: float = 7200
    file: Path | None = None
    cluster: str | None = None
    settings: Sequence[str] = ()

    @property
    def path(self) -> Path:
        """What is compiled: the checkpoint or the file."""
        return self.file or self.folder

    def place(self, spec: Spec) -> Path:
        """Folder of a compiled rung."""
        return self.out / spec.slug

    def state(self, spec: Spec) -> Path:
        """File that holds what is known of a rung."""
        return self.out / STATE / f"{spec.slug}.json"

    @cached_property
    def depends(self) -> dict[str, Any]:
        """Digests of everything that decides what the compiler writes, the pipeline aside."""
        from tools.ladder.model import digest

        return {
            "format": FORMAT,
            "compiler": digest_of_sources(),
            "model": digest(self.path),
            "target": self.target,
            "threads": self.threads,
            "verify": self.verify,
        }


@dataclass
class Ladder:
    """All that a run found out.

    Attributes:
        job: what was asked for.
        rungs: one record a rung, in order (`docs/ladder.md` has the fields).
        settings: what trying runtime settings found, one record a rung that was asked for.
        seconds: wall time of this run.
    """

    job: Job
    rungs: list[dict[str, Any]] = field(default_factory=list)
    settings: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Every rung could be built and measured."""
        return bool(self.rungs) and all(rung["status"] == "ok" for rung in self.rungs)


def climb(job: Job, watcher: Watcher | None = None) -> Ladder:
    """Build and measure every rung of a job.

    Raises:
        LadingError: what concerns all rungs, such as B632 no room for what is known of them; a rung's own failure is in
            its record.
    """
    watcher = watcher or Watcher()
    started = time.perf_counter()
    ladder = Ladder(job)
    _make_folder(job.out / STATE)
    gauge = Gauge(job, watcher)
    for number, spec in enumerate(job.specs):
        watcher.rung(number, spec.name)
        try:
            rung = _climb_one(job, spec, gauge, watcher)
        except LadingError as error:
            rung = {"status": "failed", "reused": False, "error": error.diagnostics[0].as_dict()}
        ladder.rungs.append({"name": spec.name, "kind": spec.kind, "pipeline": spec.pipeline, **rung})
        watcher.ended(ladder.rungs[-1])
    _tune(ladder, gauge, watcher)
    if ladder.ok:
        shutil.rmtree(gauge.logits, ignore_errors=True)
    ladder.seconds = time.perf_counter() - started
    return ladder


def _tune(ladder: Ladder, gauge: Gauge, watcher: Watcher) -> None:
    """Try runtime settings on the rungs that were asked for; a rung whose settings change is measured again."""
    from tools.ladder.tuning import asked, failure, tune

    job = ladder.job
    names = asked(job.settings, ladder.rungs, job.rule) if job.keep else []
    for name in names:
        number = next(at for at, spec in enumerate(job.specs) if spec.name == name)
        spec = job.specs[number]
        watcher.rung(number, f"{name}, runtime settings")
        try:
            found, changed = tune(
                job.place(spec),
                job.state(spec).with_suffix(".settings.json"),
                {key: value for key, value in gauge.depends.items() if key != "prompt"},
                lambda: gauge.reference,
                fresh=job.fresh,
                say=watcher.phase,
                timeout_s=job.timeout_s,
            )
            if changed:
                kept = read_kept(job.state(spec), {})
                assert kept is not None
                kept = {**kept, "measured": gauge.measure(job.place(spec))}
                write_kept(job.state(spec), kept)
                ladder.rungs[number] |= _record(job, spec, kept, reused=False)
        except LadingError as error:
            found = failure(error)
        ladder.settings.append({"rung": name, **found})


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"cannot create a folder here: {error.strerror}"
        raise LadingError("B632", message, where=str(folder), hint="choose another with -o") from error


def _climb_one(job: Job, spec: Spec, gauge: Gauge, watcher: Watcher) -> dict[str, Any]:
    state = job.state(spec)
    made_of = {**job.depends, "pipeline": str(_pipeline(spec)), "calibration": _digest(calibration_of(job, spec))}
    kept = None if job.fresh else read_kept(state, {"made_of": made_of})
    measured_of = gauge.depends
    done = kept is not None and kept.get("measured_of") == measured_of
    there = kept is not None and _intact(job.place(spec))
    if done and (there or not job.keep):
        return _record(job, spec, kept, reused=True)  # type: ignore[arg-type]
    if not there:
        state.unlink(missing_ok=True)
        kept = {"made_of": made_of, "built": _build(job, spec, watcher)}
        write_kept(state, kept)
    assert kept is not None
    if kept.get("measured_of") != measured_of:
        kept = {**kept, "measured_of": measured_of, "measured": gauge.measure(job.place(spec))}
        write_kept(state, kept)
    if not job.keep:
        from backends.staging import remove_compiled

        remove_compiled(job.place(spec))
    return _record(job, spec, kept, reused=False)


def _pipeline(spec: Spec) -> Pipeline:
    """What compiling a rung runs, which may be calibrated where its own text is not."""
    from tools.compile.job import Request, pipeline_of
    from tools.shared.formats import CHECKPOINT, Formats

    formats = Formats()
    backend = formats.emitter(formats.emitter_of_frontend(CHECKPOINT) or "")
    return pipeline_of(Request("", Path(), spec.pipeline), formats, backend)


def calibration_of(job: Job, spec: Spec) -> Path | None:
    """The calibration text of a rung whose pipeline reads one."""
    reads = any(one.name == "calibrate" for one in _pipeline(spec).passes())
    return job.calibration if reads else None


def _digest(path: Path | None) -> str:
    from ir.base.whole_files import sha256_of

    return sha256_of(path) if path is not None else ""


def _intact(folder: Path) -> bool:
    """The folder holds a compiled model as its contract describes it, bit for bit."""
    from backends.contract import check_files, read

    if not (folder / "contract.json").is_file():
        return False
    try:
        return not any(item.severity == "error" for item in check_files(read(folder), folder))
    except LadingError:
        return False


def _build(job: Job, spec: Spec, watcher: Watcher) -> dict[str, Any]:
    calibration = calibration_of(job, spec)
    request = {
        "model": str(job.path),
        "tokenizer": None if job.file is None else str(job.folder),
        "out": str(job.place(spec).absolute()),
        "pipeline": spec.pipeline,
        "target": job.target,
        "verify": job.verify,
        "threads": job.threads,
        "calibration": None if calibration is None else str(calibration.absolute()),
        # The ladder tells divergences, it does not refuse them.
        "kl_bar": None if job.verify == "none" else 1e9,
        "force": True,
        "cluster": job.cluster,
    }
    return compile_rung(request, watcher.phase, job.timeout_s)


def _record(job: Job, spec: Spec, kept: Mapping[str, Any], *, reused: bool) -> dict[str, Any]:
    """What the report says of a rung."""
    built, measured = dict(kept["built"]), dict(kept["measured"])
    reference = measured["perplexity_reference"]
    seconds = {"build": built.pop("seconds"), "measure": measured.pop("seconds")}
    return {
        "status": "ok",
        "reused": reused,
        "error": None,
        "folder": str(job.place(spec)) if job.keep else None,
        **built,
        **measured,
        "perplexity_rise": measured["perplexity"] / reference - 1,
        "seconds": seconds,
    }


# ---- measuring ----


class Gauge:
    """Measures compiled rungs of one job against the float model, which is evaluated once."""

    def __init__(self, job: Job, watcher: Watcher) -> None:
        self.job = job
        self.watcher = watcher
        self.logits = job.out / STATE / "logits"

    @cached_property
    def depends(self) -> dict[str, Any]:
        """Everything that decides what is measured, the rung aside."""
        from backends.mnn.target.environments import installed_version
        from ir.quant.statistics.moments import windows_digest
        from tools.matrix.cell import this_platform

        return {
            "format": FORMAT,
            "release": installed_version(),
            "platform": this_platform(),
            "windows": windows_digest(self.job.text.windows),
            "prompt": self.job.prompt,
        }

    @cached_property
    def reference(self) -> FloatReference:
        """The float model's logits over the text."""
        with held_interrupts():
            import onnxruntime

            from backends.mnn.verify.measure import FloatReference
            from ir.base.store import folder_store
            from tools.ladder.model import float_graph

            assert onnxruntime
        store = folder_store(self.logits)
        return FloatReference(float_graph(self.job.path), self.job.text.windows, store, progress=self.watcher.phase)

    def measure(self, folder: Path) -> dict[str, Any]:
        """Run a folder on the installed runtime with the settings that it ships.

        Raises:
            LadingError: U936 numbers that are not finite, B667 to B669 the runtime fails, Q470 no room for the
                reference.
        """
        from backends.mnn.verify.measure import Speed, measure

        started = time.perf_counter()
        reference = self.reference
        reference.paths()
        self.watcher.phase("running on MNN")
        longest = max(map(len, reference.windows))
        speed = Speed(prompt=longest, decode=min(32, max(1, longest // 2)))
        found = measure(folder, reference, None, speed=speed, timeout_s=self.job.timeout_s).as_dict()
        wrong = [name for name, value in found.items() if isinstance(value, float) and not math.isfinite(value)]
        if wrong:
            message = f"{', '.join(wrong)} cannot be measured: logits are not finite numbers"
            raise LadingError("U936", message, where=str(folder), hint="take more bits")
        del found["settings"]
        self.watcher.phase("continuing the prompt")
        return {**found, "sample": self._sample(folder), "seconds": round(time.perf_counter() - started, 3)}

    def _sample(self, folder: Path) -> str:
        """What the runtime makes of the prompt, greedily."""
        from backends.mnn.run.native import run_model
        from backends.mnn.target.environments import installed_version
        from backends.mnn.write.configs import config_for
        from frontends.text.tokenizer import open_tokenizer

        tokenizer = open_tokenizer(self.job.folder)
        config = config_for(folder, installed_version() or "")
        prompt = tokenizer.encode(self.job.prompt).ids
        action = {"do": "greedy", "prompt": prompt, "tokens": SAMPLE_TOKENS}
        settings = {"use_mmap": False, "sampler_type": "greedy"}
        run = run_model(config, [action], overrides=settings, timeout_s=self.job.timeout_s).require(str(config))
        result = run.results[0]
        assert result is not None
        return tokenizer.decode(result["ids"], skip_special_tokens=True)
