"""``python -m tools.matrix``: run every model family in every precision on every MNN release, and say what happened.

A cell that was run is kept in a file of its own, with the digests of what was run, so a run that was stopped goes on where
it was and only what changed is run again. A cell that was not run stays empty.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ir.diag import LadingError, suggest
from tools.cli import EXIT_FAILED, EXIT_INTERRUPTED, QUIET_OPTION, Screen, command

if TYPE_CHECKING:
    from tools.matrix_cell import Artefact

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}
LONGROPE = {
    "rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 40,
    "short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [2.0 + 0.5 * i for i in range(8)],
}  # fmt: skip

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {"dtype": "f32"}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"dtype": "f32"}),
    "qwen3-yarn": ("qwen3", {"rope_scaling": YARN}),
    "llama": ("llama", {"dtype": "f32", "attention_bias": True, "mlp_bias": True}),
    "llama-linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 3.0}}),
    "llama-dynamic": ("llama", {"rope_scaling": DYNAMIC, "max_position_embeddings": 40}),
    "llama-llama3": ("llama", {"rope_scaling": LLAMA3, "tie_word_embeddings": True}),
    "llama-longrope": ("llama", {"rope_scaling": LONGROPE, "max_position_embeddings": 160}),
    "mistral": ("mistral", {"dtype": "f32", "head_dim": 24}),
    "mistral-window": ("mistral", {"sliding_window": 11, "num_key_value_heads": 1}),
}
"""Random models by name: their family and what they add to its configuration."""

PRECISIONS = ("fp32", "fp16", "int8", "int4", "default")
"""Pipelines that every model is compiled with."""

_COMPILER = ("ir", "passes", "frontends", "backends", "tools/samples.py", "tools/compiler.py")


@dataclass
class Row:
    """One model in one precision: its name, its artefact or why it could not be made, and the releases it is for."""

    family: str
    precision: str
    releases: tuple[str, ...]
    artefact: Artefact | None = None
    failure: str = ""

    @property
    def key(self) -> str:
        """Name that is unique among the rows, fit for files."""
        place = "" if self.artefact is None else str(self.artefact.folder)
        return _slug(f"{self.family}--{self.precision}", place if self.family not in MODELS else "")


@dataclass
class Matrix:
    """All that a run found out.

    Attributes:
        releases: columns, oldest first.
        unavailable: why a release could not be had, by release.
        rows: models and precisions in order.
        cells: results by row key and release; absent where nothing was run.
        reused: how many cells were kept from an earlier run.
        seconds: wall time.
    """

    releases: tuple[str, ...]
    unavailable: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    cells: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    reused: int = 0
    seconds: float = 0.0

    def cell(self, row: Row, release: str) -> dict[str, Any] | None:
        """The result of a cell, or None when it was not run."""
        return self.cells.get((row.key, release))

    def failing(self) -> list[tuple[Row, str, dict[str, Any]]]:
        """Cells that were run and are not right."""
        found = ((row, release, self.cell(row, release)) for row in self.rows for release in self.releases)
        return [(row, release, cell) for row, release, cell in found if cell is not None and cell["status"] != "right"]

    @property
    def ok(self) -> bool:
        """Every model could be made, and every cell that was run is right."""
        return not self.failing() and not any(row.failure for row in self.rows)


@dataclass(frozen=True)
class Job:
    """What to run, and how."""

    out: Path
    interpreters: Mapping[str, Path]
    jobs: int
    timeout_s: float
    fresh: bool
    say: Callable[[str], None]


def find_releases(names: str) -> tuple[str, ...]:
    """Releases by comma-separated numbers or by version clauses, oldest first; empty text for all.

    Raises:
        LadingError: U971 one that has no language-model runtime, B700 bad clauses.
    """
    from backends.mnn.profiles import RELEASES, matching

    if not names:
        return tuple(RELEASES)
    if re.search(r"[<>=!~*]", names):
        wanted = {release.version for release in matching(names)} & set(RELEASES)
    else:
        wanted = {name.strip() for name in names.split(",")}
    unknown = sorted(wanted - set(RELEASES))
    if unknown or not wanted:
        what = f"MNN {unknown[0]} is no release" if unknown else f"no release that fits {names!r} is one"
        raise LadingError("U971", f"{what} with a language-model runtime", hint=f"known: {', '.join(RELEASES)}")
    return tuple(version for version in RELEASES if version in wanted)


def find_models(patterns: str) -> list[str]:
    """Names of `MODELS` by comma-separated names or patterns such as ``qwen2*``; empty text for all.

    Raises:
        LadingError: U972 a pattern that no name fits.
    """
    found: list[str] = []
    for pattern in [part.strip() for part in patterns.split(",")] if patterns else ["*"]:
        names = fnmatch.filter(MODELS, pattern)
        if not names:
            hint = suggest(pattern, list(MODELS)) or f"known: {', '.join(MODELS)}"
            raise LadingError("U972", f"no model of the matrix is named {pattern!r}", hint=hint)
        found += [name for name in names if name not in found]
    return found


def find_interpreters(releases: Sequence[str], say: Callable[[str], None]) -> tuple[dict[str, Path], dict[str, str]]:
    """Interpreters of the releases that can be had, and why the others cannot; environments are made where missing.

    Raises:
        LadingError: U970 when none can be had.
    """
    from backends.mnn.releases import ReleaseEnvironments

    environments = ReleaseEnvironments()
    found: dict[str, Path] = {}
    unavailable: dict[str, str] = {}
    for version in releases:
        say(f"looking for MNN {version}")
        try:
            found[version] = environments.ensure(version)
        except LadingError as error:
            unavailable[version] = str(error)
    if not found:
        reasons = "\n".join(unavailable.values())
        raise LadingError("U970", "no release can be had, so nothing was run", where=reasons)
    return found, unavailable


def run_matrix(matrix: Matrix, rows: Iterator[Row], job: Job) -> None:
    """Run every cell that no earlier run has; `rows` may make the models while cells of others run."""
    started = time.perf_counter()
    (job.out / "cells").mkdir(parents=True, exist_ok=True)
    pool = ThreadPoolExecutor(job.jobs)
    try:
        futures = [future for row in rows for future in _submit(matrix, row, job, pool)]
        for future in futures:
            future.result()
    finally:
        # What is running ends and is kept; what waits is dropped.
        pool.shutdown(cancel_futures=True)
        matrix.seconds = time.perf_counter() - started


def _submit(matrix: Matrix, row: Row, job: Job, pool: ThreadPoolExecutor) -> Iterator[Any]:
    from backends.mnn.paperwork import compiler_version
    from tools.matrix_cell import FORMAT, this_platform

    matrix.rows.append(row)
    if row.artefact is None:
        return
    for release in row.releases:
        if release not in job.interpreters:
            continue
        made_of = {
            "format": FORMAT,
            "artefact": row.artefact.digest,
            "compiler": compiler_version(),
            "release": release,
            "platform": this_platform(),
        }
        place = job.out / "cells" / f"{row.key}--{release}.json"
        kept = None if job.fresh else _read_cell(place, made_of)
        if kept is not None:
            matrix.cells[row.key, release] = kept
            matrix.reused += 1
        else:
            yield pool.submit(_run, matrix, row, release, job, made_of, place)


def _run(matrix: Matrix, row: Row, release: str, job: Job, made_of: Mapping[str, Any], place: Path) -> None:
    from tools.matrix_cell import run_cell

    assert row.artefact is not None
    job.say(f"{row.family} {row.precision} on MNN {release}")
    found = run_cell(row.artefact, release, job.interpreters[release], job.timeout_s)
    cell = {**made_of, "family": row.family, "precision": row.precision, **found}
    _write_json(place, cell)
    matrix.cells[row.key, release] = cell


def _read_cell(place: Path, made_of: Mapping[str, Any]) -> dict[str, Any] | None:
    """A kept cell, when it is of the same files, compiler, release and platform."""
    try:
        cell = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = isinstance(cell, dict) and all(cell.get(key) == value for key, value in made_of.items())
    return cell if same else None


def _write_json(place: Path, data: Any) -> None:
    part = place.with_name(f".{place.name}.{os.getpid()}.{threading.get_ident()}")
    part.write_text(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    os.replace(part, place)


def _slug(text: str, place: str = "") -> str:
    from hashlib import sha256

    name = re.sub(r"[^\w.-]+", "-", text).strip("-")
    tail = place if name == text else f"{place}{text}"
    return f"{name}-{sha256(tail.encode()).hexdigest()[:8]}" if tail else name


# ---- models made for the matrix ----


def made_rows(names: Sequence[str], precisions: Sequence[str], target: str, matrix: Matrix, job: Job) -> Iterator[Row]:
    """Make each random model, compile it in each precision, and give its row; what has not changed is made once."""
    from backends.mnn.profiles import target as find_target

    promised = find_target(target).versions
    releases = tuple(version for version in matrix.releases if version in promised)
    sources = _digest_of_sources()
    for name in names:
        source = None
        for precision in precisions:
            row = Row(name, precision, releases)
            job.say(f"compiling {name} with {precision}")
            try:
                source = source or _make_source(name, job)
                row.artefact = _compile(row, source, target, sources, job)
            except LadingError as error:
                row.failure = str(error)
            yield row


def _digest_of_sources() -> str:
    """SHA-256 (hex) of everything that decides what the compiler writes."""
    from hashlib import sha256

    root = Path(__file__).resolve().parent.parent
    found = sha256()
    for name in _COMPILER:
        part = root / name
        for path in sorted(part.rglob("*.py")) if part.is_dir() else [part]:
            found.update(f"{path.relative_to(root)} {sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()


def _make_source(name: str, job: Job) -> Any:
    import zlib

    from tools.matrix_cell import Source
    from tools.samples import make_checkpoint

    family, config = MODELS[name]
    folder = job.out / "checkpoints" / name
    make_checkpoint(folder, family, seed=zlib.crc32(name.encode()), **config)
    return Source(folder)


def _compile(row: Row, source: Any, target: str, sources: str, job: Job) -> Artefact:
    from backends.contract import check_files, read
    from tools.compiler import Request, compile_model
    from tools.matrix_cell import Artefact

    folder = job.out / "models" / _slug(f"{row.family}--{row.precision}--{target}")
    stamp = folder.with_name(f"{folder.name}.json")
    made_of = {"sources": sources, "model": MODELS[row.family], "precision": row.precision, "target": target}
    wanted = json.loads(json.dumps(made_of))
    known = None if job.fresh else _read_cell(stamp, wanted)
    if known is None or not folder.is_dir() or check_files(read(folder), folder):
        stamp.unlink(missing_ok=True)
        compile_model(Request(str(source.folder), folder, row.precision, target, verify="none", force=True))
        _write_json(stamp, wanted)
    return Artefact(row.family, row.precision, folder, source, read(folder))


# ---- models that exist ----


def given_rows(models: Sequence[Path], sources: Sequence[Path], matrix: Matrix, chosen: bool) -> list[Row]:
    """Rows of compiled model directories; `chosen` releases are run even where the model does not promise them.

    Raises:
        LadingError: U973 not one checkpoint for each model, U974 one of another model, C800 no contract.
    """
    from backends.contract import read
    from tools.matrix_cell import Artefact, Source

    if len(sources) != len(models):
        raise LadingError(
            "U973",
            f"{len(models)} models and {len(sources)} checkpoints are named",
            hint="give --source CHECKPOINT for each --model: the logits are compared with the checkpoint's",
        )
    rows = []
    for model, source in zip(models, sources, strict=True):
        contract = read(model)
        checkpoint = Source(source)
        if checkpoint.graph.metadata["sources"]["config.json"]["sha256"] != contract.config_digest:
            raise LadingError("U974", f"{model} was not compiled from {source}", where=str(source / "config.json"))
        releases = [item for item in matrix.releases if chosen or item in contract.target.releases]
        row = Row(model.resolve().name, _widths(contract), tuple(releases))
        row.artefact = Artefact(row.family, row.precision, model, checkpoint, contract)
        rows.append(row)
    return rows


def _widths(contract: Any) -> str:
    bits = sorted({item.storage.bits for item in contract.weights})
    return "/".join(f"fp{width}" if width > 8 else f"int{width}" for width in bits)


def record(matrix: Matrix, row: Row) -> bool:
    """Write what was really verified into the model's contract; False when nothing changed.

    Records of releases that were run now on this platform are replaced where they are of the same kind, and dropped where
    the cell is not right.

    Raises:
        LadingError: C810 to C814 when the files are not those of the contract.
    """
    from dataclasses import replace

    from backends.contract import Verification, check_files, write
    from tools.matrix_cell import this_platform

    artefact = row.artefact
    assert artefact is not None
    problems = [item for item in check_files(artefact.contract, artefact.folder) if item.severity == "error"]
    if problems:
        raise LadingError.of(problems)
    ran = {release: cell for release in matrix.releases if (cell := matrix.cell(row, release)) is not None}
    fresh = [Verification.from_json(item) for cell in ran.values() for item in cell["verified"]]
    kinds = {_kind(item) for item in fresh}
    wrong = {release for release, cell in ran.items() if cell["status"] != "right"}
    kept = [
        item
        for item in artefact.contract.verified
        if _kind(item) not in kinds and not (item.release in wrong and item.platform == this_platform())
    ]
    contract = replace(artefact.contract, verified=(*kept, *fresh))
    if contract == artefact.contract:
        return False
    write(contract, artefact.folder)
    return True


def _kind(item: Any) -> tuple[Any, ...]:
    return item.release, item.platform, item.settings, item.reference, item.prompt_tokens


# ---- the command ----


@command("matrix")
@click.option("--releases", default="", metavar="LIST", help="Releases such as 3.4.0,3.6.1 or '>=3.5'; default all.")
@click.option("--families", default="", metavar="LIST", help="Models such as qwen2,llama*; default all.")
@click.option("--precisions", default=",".join(PRECISIONS), show_default=True, metavar="LIST", help="Pipelines.")
@click.option("--target", default="portable", show_default=True, help="What the models are compiled for.")
@click.option("--model", "models", multiple=True, type=click.Path(exists=True, file_okay=False, path_type=Path),
              metavar="DIR", help="Run this compiled folder instead, and note the releases in its contract.")  # fmt: skip
@click.option("--source", "sources", multiple=True, metavar="CHECKPOINT",
              type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="The checkpoint that a --model was compiled from.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/matrix"), show_default=True,
              help="Folder of models and of the results of each cell.")  # fmt: skip
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write all results as JSON.")  # fmt: skip
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write the results as a Markdown page.")  # fmt: skip
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write the results as one HTML page with colours.")  # fmt: skip
@click.option("--resume/--fresh", default=True, show_default=True, help="Keep cells that nothing has changed for.")
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Cells that are run at a time.")
@click.option("--timeout", type=click.FloatRange(1), default=300, show_default=True, help="Seconds that a run may take.")
@QUIET_OPTION
def main(releases, families, precisions, target, models, sources, out, json_file, markdown, html, resume, jobs, timeout,
         quiet) -> int:  # fmt: skip
    """Compile a random model of every family in every precision and run it on every MNN release.

    Each release runs in an environment of its own, which is made when it is missing. The exit code is 0 when every cell
    that was run is right.
    """
    from tools.matrix_report import show_matrix, write_reports

    screen = Screen(False, quiet)
    matrix = Matrix(find_releases(releases))
    names = find_models(families)
    pipelines = _split(precisions)
    if not models:
        _check_pipelines(pipelines, target)
    with _progress(quiet) as say:
        rows: Iterator[Row] | None = iter(given_rows(models, sources, matrix, bool(releases))) if models else None
        found, matrix.unavailable = find_interpreters(matrix.releases, say)
        job = Job(out, found, jobs, timeout, not resume, say)
        try:
            run_matrix(matrix, rows or made_rows(names, pipelines, target, matrix, job), job)
        except KeyboardInterrupt:
            click.echo(f"interrupted; {len(matrix.cells)} cells are kept in {out / 'cells'}", err=True)
            return EXIT_INTERRUPTED
    if not quiet:
        show_matrix(screen.console, matrix)
    write_reports(matrix, {"json": json_file, "markdown": markdown, "html": html})
    for row in matrix.rows if models else ():
        if record(matrix, row) and not quiet:
            click.echo(f"{row.artefact.folder / 'contract.json'} has the releases that were verified")
    return 0 if matrix.ok else EXIT_FAILED


def _split(text: str) -> list[str]:
    """The items of a list whose commas inside braces do not count."""
    return [part.strip() for part in re.findall(r"(?:[^,{]|\{[^}]*\})+", text) if part.strip()]


def _check_pipelines(pipelines: Sequence[str], target: str) -> None:
    from backends.mnn.profiles import target as find_target
    from passes.pipeline import load

    find_target(target)
    if not pipelines:
        raise LadingError("U972", "no precision is named", hint=f"known: {', '.join(PRECISIONS)}")
    for text in pipelines:
        load(text)


def _progress(quiet: bool) -> Any:
    from contextlib import nullcontext

    from rich.console import Console

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        return nullcontext(lambda what: None)
    from tools.matrix_report import spinner

    return spinner(console)


if __name__ == "__main__":
    main()
