"""``python -m tools.matrix``: run every model family in every precision on every MNN release, and say what happened.

A cell that was run is kept in a file of its own, with the digests of what was run, so a run that was stopped goes on
where it was and only what changed is run again. A cell that was not run stays empty.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from ir.base.diag import LadingError
from tools.matrix.model import Job, Matrix, Row
from tools.matrix.rows import PRECISIONS, find_models, given_rows, made_rows, read_kept, record, write_kept
from tools.shared.cli import EXIT_FAILED, QUIET_OPTION, Number, Screen, command, require_package, split_list, stopped


def find_releases(names: str) -> tuple[str, ...]:
    """Releases by comma-separated numbers or by version clauses, oldest first; empty text for all.

    Raises:
        LadingError: U971 one that has no language-model runtime, B700 bad clauses.
    """
    from backends.mnn.target.releases import RELEASES, matching

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


def find_interpreters(releases: Sequence[str], say: Callable[[str], None]) -> tuple[dict[str, Path], dict[str, str]]:
    """Interpreters of the releases that can be had, and why the others cannot; environments are made where missing.

    The release of this very environment needs none of its own.

    Raises:
        LadingError: U970 when none can be had.
    """
    from backends.mnn.target.environments import ReleaseEnvironments, installed_version

    environments = ReleaseEnvironments()
    here = installed_version()
    found: dict[str, Path] = {}
    unavailable: dict[str, str] = {}
    for version in releases:
        say(f"looking for MNN {version}")
        try:
            own = environments.find(version) or (Path(sys.executable) if version == here else None)
            found[version] = own or environments.ensure(version)
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
    from backends.version import compiler_version
    from tools.matrix.cell import FORMAT, this_platform

    matrix.rows.append(row)
    if row.artefact is None:
        return
    for release in row.releases:
        if release not in job.interpreters:
            continue
        made_of = {
            "format": FORMAT,
            "artefact": row.artefact.digest,
            "source": row.artefact.source.digest,
            "compiler": compiler_version(),
            "release": release,
            "platform": this_platform(),
        }
        place = job.out / "cells" / f"{row.key}--{release}.json"
        kept = None if job.fresh else read_kept(place, made_of)
        if kept is not None:
            matrix.cells[row.key, release] = kept
            matrix.reused += 1
        else:
            yield pool.submit(_run, matrix, row, release, job, made_of, place)


def _run(matrix: Matrix, row: Row, release: str, job: Job, made_of: Mapping[str, Any], place: Path) -> None:
    from tools.matrix.cell import run_cell

    assert row.artefact is not None
    job.say(f"{row.family} {row.precision} on MNN {release}")
    found = run_cell(row.artefact, release, job.interpreters[release], job.timeout_s)
    cell = {**made_of, "family": row.family, "precision": row.precision, **found}
    write_kept(place, cell)
    matrix.cells[row.key, release] = cell


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
              help="The checkpoint that a --model was made from; without, its own files are the reference.")  # fmt: skip
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
@click.option("--timeout", type=Number(1), default=300, show_default=True, help="Seconds that a run may take.")
@QUIET_OPTION
def main(releases, families, precisions, target, models, sources, out, json_file, markdown, html, resume, jobs, timeout,
         quiet) -> int:  # fmt: skip
    """Compile a random model of every family, and the example, in every precision and run all on every MNN release.

    Each release runs in an environment of its own, which is made when it is missing. The exit code is 0 when every cell
    that was run is right or, where no checkpoint is named, computes what the files say.
    """
    from tools.matrix.report import show_matrix, write_reports

    screen = Screen(False, quiet)
    if sources or not models:
        require_package("transformers")
    matrix = Matrix(find_releases(releases))
    names = find_models(families)
    pipelines = split_list(precisions)
    if not models:
        _check_pipelines(pipelines, target)
    try:
        with screen.progress() as listener:
            given = given_rows(models, sources, matrix, bool(releases)) if models else None
            total = (len(names) * len(pipelines) if given is None else len(given)) * len(matrix.releases)
            listener.phase("looking for the releases")
            found, matrix.unavailable = find_interpreters(matrix.releases, listener.phase)

            def say(what: str) -> None:
                listener.step(len(matrix.cells), total, what)

            job = Job(out, found, jobs, timeout, not resume, say)
            rows = made_rows(names, pipelines, target, matrix, job) if given is None else iter(given)
            run_matrix(matrix, rows, job)
    except KeyboardInterrupt as stop:
        return stopped(stop, f"{len(matrix.cells)} cells are kept in {out / 'cells'}, the same command goes on")
    if not quiet:
        show_matrix(screen.console, matrix)
    write_reports(matrix, {"json": json_file, "markdown": markdown, "html": html})
    _record_all(matrix.rows if models else (), matrix, quiet)
    return 0 if matrix.ok else EXIT_FAILED


def _record_all(rows: Sequence[Row], matrix: Matrix, quiet: bool) -> None:
    """Write what was verified into every contract that describes its files; the others' problems are raised at the
    end."""
    problems = []
    for row in rows:
        try:
            changed = record(matrix, row)
        except LadingError as error:
            problems += error.diagnostics
            continue
        if changed and not quiet:
            assert row.artefact is not None
            click.echo(f"{row.artefact.folder / 'contract.json'} now says what was verified")
    if problems:
        raise LadingError.of(problems)


def _check_pipelines(pipelines: Sequence[str], target: str) -> None:
    from backends.mnn.target.releases import target as find_target
    from passes.framework.load import load

    find_target(target)
    if not pipelines:
        raise LadingError("U972", "no precision is named", hint=f"known: {', '.join(PRECISIONS)}")
    for text in pipelines:
        load(text)
