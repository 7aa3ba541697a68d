"""Really do what is told against: give an ONNX file to each release's converter and load what it writes, in children
with limits of time and memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from backends.mnn.doctor.findings import Report
from backends.mnn.read.model_folder import Subject
from backends.mnn.read.net_file import numbers
from backends.mnn.run.native import RUNNER, ChildResult, onnx_to_mnn, run_child
from backends.mnn.target.releases import Release
from ir.base.scratch import scratch_folder

TIMEOUT_S = 120
MEMORY_LIMIT = 16 << 30
"""Bytes of address space that a child may map; the wheels alone map several GB."""

_TOKENS = 5
_WIDTH = 64
"""Tokens and width of rows that are fed where the model does not say."""

_TELLING = re.compile(
    r"These Op Not Support: .*|tensor \[[^\]]*\] is input but not found|Can't find output \S+|double free or corruption.*"
    r"|Invalidate buffer.*|.*Error.*|.*error.*|.*invalid.*",
)
"""Lines of a log that say what happened."""


def convert_and_load(report: Report, interpreters: Mapping[str, Path | str], *, timeout_s: float = TIMEOUT_S) -> None:
    """Convert an ONNX file with each release that has an interpreter, load the result there, and note what happens."""

    def one(release: Release, interpreter: Path | str) -> str:
        with scratch_folder() as folder:
            made = folder / "model.mnn"
            ended = onnx_to_mnn(
                Path(report.subject), made, interpreter=interpreter, timeout_s=timeout_s, memory_limit=MEMORY_LIMIT
            )
            if not made.is_file():
                happened = f"the converter {ended.outcome}" if not ended.ok else "not converted"
                return _with_words(happened, ended)
            return f"converted; {load(made, release, interpreter, timeout_s=timeout_s)}"

    _each(report, interpreters, one)


def load_file(report: Report, interpreters: Mapping[str, Path | str], *, timeout_s: float = TIMEOUT_S) -> None:
    """Load one ``.mnn`` file on each release that has an interpreter, and note what happens."""
    _each(
        report,
        interpreters,
        lambda release, interpreter: load(Path(report.subject), release, interpreter, timeout_s=timeout_s),
    )


def _each(report: Report, interpreters: Mapping[str, Path | str], one: Callable[[Release, Path | str], str]) -> None:
    for release in report.releases:
        interpreter = interpreters.get(release.version)
        report.runs[release.version] = (
            "not run: no environment of this release" if interpreter is None else one(release, interpreter)
        )


def load(path: Path, release: Release, interpreter: Path | str, *, timeout_s: float) -> str:
    """What happens when a release loads a file and runs it once: as the engine does where the file has logits."""
    subject = Subject(path)
    feeds = _engine_feeds(subject, release) if "logits" in subject.names else _own_feeds(subject)
    outputs = ["logits"] if "logits" in subject.names else list(subject.net.get("outputName", ()))
    request = {"model": str(path.resolve()), "inputs": list(feeds), "outputs": outputs}
    script = RUNNER.with_name("module_runner.py")
    ended = run_child(script, request, feeds, interpreter=interpreter, timeout_s=timeout_s, memory_limit=MEMORY_LIMIT)
    loaded = any(item.get("loaded") for item in ended.records)
    ran = next((item["ran"] for item in ended.records if "ran" in item), None)
    if ran:
        return "loaded and ran; its numbers were not compared"
    if ran is False:
        return "loaded; the first call failed"
    if loaded:
        return _with_words(f"loaded; the first call {ended.outcome}", ended)
    refused = any("loaded" in item for item in ended.records)
    return _with_words("loading failed" if refused else f"loading {ended.outcome}", ended)


def _with_words(happened: str, ended: ChildResult) -> str:
    """What happened, and the line of the log that says why."""
    words = next((found.group().strip() for line in ended.log.splitlines() if (found := _TELLING.search(line))), "")
    return f"{happened}: {words[:160]}" if words else happened


def _engine_feeds(subject: Subject, release: Release) -> dict[str, np.ndarray]:
    """What the engine of a release feeds for a first call."""
    dims = numbers(subject.inputs.get("input_ids", {}).get("dims"))
    width = dims[-1] if len(dims) == 3 and dims[-1] > 0 else _WIDTH
    positions = np.arange(_TOKENS, dtype=np.int32)
    made = {
        "input_ids": np.zeros((_TOKENS, 1, width), np.float32),
        "attention_mask": np.zeros((), np.float32),
        "position_ids": positions if release.position_ranks == (1,) else positions[None],
        "logits_index": np.array([-1], np.int32),
    }
    return {name: made[name] for name in release.inputs if name in made}


def _own_feeds(subject: Subject) -> dict[str, np.ndarray]:
    """Zeros for what a file declares; open sizes are 1."""
    made = {}
    for name, main in subject.inputs.items():
        shape = [size if size > 0 else 1 for size in numbers(main.get("dims"))]
        made[name] = np.zeros(shape, np.int32 if "INT" in str(main.get("dtype")) else np.float32)
    return made


__all__ = ["convert_and_load", "load", "load_file"]
