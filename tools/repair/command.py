"""``python -m tools.repair``: write a model that somebody else exported again so that other MNN releases run it."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ir.base.diag import Diagnostic, LadingError
from tools.repair.run import Outcome, Runs, Verify, verified
from tools.shared.cli import EXIT_UNPROVEN, JSON_OPTION, QUIET_OPTION, Screen, command

if TYPE_CHECKING:
    from backends.mnn.doctor.findings import Report
    from backends.mnn.target.releases import MnnTarget
    from backends.mnn.verify.logits import Measurement
    from backends.mnn.write.llm_folder import Emission
    from backends.mnn.write.weight_layout import Layout
    from ir.graph.graph import Graph
    from passes.framework.manager import Report as PassReport


@dataclass
class Repaired:
    """What was done.

    Attributes:
        out: the new directory.
        releases: releases it was written for.
        before, after: releases of the target on which the old and the new model are healthy.
        operators: number of operators before and after.
        kept: True when all codes and scales were copied as they were; False when scales were widened.
        asked: the result was meant to be run.
        outcome: what running it showed.
        notes: what is not as in the original on some release.
    """

    out: Path
    releases: tuple[str, ...]
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    operators: tuple[int, int] = (0, 0)
    kept: bool = True
    asked: bool = True
    outcome: Outcome = field(default_factory=Outcome)
    notes: list[str] = field(default_factory=list)

    @property
    def compared(self) -> bool:
        """The result gives the logits of the original on a release that runs it."""
        return self.outcome.from_original is not None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        found = self.outcome
        return {
            "out": str(self.out), "releases": list(self.releases), "healthy_before": self.before,
            "healthy_after": self.after, "operators": list(self.operators), "bytes_kept": self.kept,
            "run_on": found.releases, "run_outside_target": found.outside, "error": found.error,
            "compared": self.compared, "original_on": found.original or None,
            "original_as_module": found.as_module, "from_original": found.from_original,
            "not_compared": found.reason or None, "notes": self.notes,
        }  # fmt: skip


@command("repair")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--target", default="portable", show_default=True, metavar="VERSIONS",
              help="Releases to write for: 'portable', a version, or clauses such as \">=3.4,<3.6\".")  # fmt: skip
@click.option("--verify", default="auto", show_default=True, type=click.Choice(["auto", "none", "quick", "full"]),
              help="Run the result and the original and compare them; quick and full fail where nothing can be run, "
              "full runs the result on every release of the target that is here.")  # fmt: skip
@click.option("--guard", is_flag=True, help="Also write modules that check an application's inputs.")
@click.option("--force", is_flag=True, help="Replace a folder written before.")
@JSON_OPTION
@QUIET_OPTION
def main(
    path: Path, out: Path, target: str, verify: Verify, guard: bool, force: bool, as_json: bool, quiet: bool
) -> int:
    """Write the MNN model directory PATH again in forms that the target's releases run, with a contract.

    Weights keep their codes and scales. PATH is not changed. The result is compared with the original, run by the
    installed MNN or by the environments of python -m tools.releases; the exit code is 4 when that could not be done.
    """
    screen = Screen(as_json, quiet)
    with screen.progress() as listener:
        done = repair(path, out, target, verify=verify, guard=guard, force=force, say=listener.phase)
    if not quiet:
        screen.data(done.as_dict(), _words(path, done))
    return 0 if done.compared or not done.asked else EXIT_UNPROVEN


def _words(path: Path, done: Repaired) -> str:
    found = done.outcome
    verdict = f"{done.out}: {'healthy' if done.compared else 'no fault is seen'} on {', '.join(done.after)}"
    lines = [
        f"{path}: healthy on {', '.join(done.before) or 'none'} of {', '.join(done.releases)}",
        verdict,
        f"operators {done.operators[0]} -> {done.operators[1]}; "
        f"{'weights kept bit for bit' if done.kept else 'codes kept bit for bit, half-float scales widened'}",
    ]
    lines += done.notes
    if not done.compared:
        # What matters most comes first: nobody knows whether the result is right.
        message = f"{done.out} was written and not compared with the original: {found.reason}"
        lines.insert(0, str(Diagnostic("U954", message, severity="warning")))
    if not found.releases:
        return "\n".join([*lines, "not run"])
    told = [f"logits at most {found.error:.2g} off the stored weights"] if found.error is not None else []
    if found.from_original is not None:
        where = "" if found.releases == [found.original] else f", run on MNN {found.original}"
        if found.as_module:
            where = f", run as a plain module on MNN {found.original}"
        told.append(f"logits at most {found.from_original:.2g} off the original{where}")
    outside = ", which is no release of the target" if found.outside else ""
    return "\n".join([*lines, f"run on MNN {', '.join(found.releases)}{outside}: {'; '.join(told) or 'it runs'}"])


def repair(
    path: Path,
    out: Path,
    target_name: str = "portable",
    *,
    verify: Verify = "none",
    guard: bool = False,
    force: bool = False,
    say: Callable[[str], None] = lambda phase: None,
) -> Repaired:
    """Lift, rewrite, judge and run; the directory appears complete or not at all.

    Raises:
        LadingError: B710 to B742, F640 to F646, U951 when the result is not healthy, U952 when it gives other logits,
            U953 when it cannot be run as asked. A result that could not be compared is written all the same: see
            `Repaired`.
    """
    from backends.mnn.doctor.examine import examine
    from backends.mnn.lift.folder import lifted
    from backends.mnn.read.model_folder import Subject
    from backends.mnn.target.environments import installed_version
    from backends.mnn.target.releases import PROFILES, target
    from backends.mnn.write.rewritten_folder import describe, require_readable, rewrite
    from backends.staging import check_target, staged_directory
    from tools.doctor.recognise import model_of

    chosen = target(target_name)
    check_target(out, force)
    path = model_of(path)
    say("reading the model")
    subject = Subject(path)
    require_readable(subject)
    before = examine(path, tuple(PROFILES.values()))
    graph, report = lifted(subject, chosen)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool, staged_directory(out, force=force, executor=pool) as staging:
        say("writing the model")
        describe(graph, subject, pool)
        emission = rewrite(graph, subject, staging, chosen, pool)
        after = examine(staging, tuple(PROFILES.values()))
        _require_healthy(after.narrowed(chosen.releases), path)
        done = Repaired(
            out,
            chosen.versions,
            [version for version in chosen.versions if before.healthy_on(version)],
            [version for version in chosen.versions if after.healthy_on(version)],
            (len(subject.ops), len(graph.nodes)),
            not _widened(emission.layout),
            verify != "none",
            notes=_notes(emission, chosen),
        )
        say("running the result and the original")
        runs = _runs(chosen, before, after)
        done.outcome = verified(runs, installed_version(), verify, graph, path, staging)
        _write_contract(graph, emission, chosen, report, done.outcome.measurements, guard, pool)
    return done


def _notes(emission: Emission, chosen: MnnTarget) -> list[str]:
    """How releases without the exact tokenizer form cut text otherwise."""
    found = emission.tokenizer
    if found is None or not found.text_reasons:
        return []
    older = ", ".join(release.version for release in chosen.releases if not release.mtok)
    return [f"{found.text} for {older} may give other ids: {'; '.join(found.text_reasons)}"]


def _runs(chosen: MnnTarget, original: Report, result: Report) -> Runs:
    """Where result and original can run, among the releases that this machine has."""
    from backends.mnn.target.environments import interpreters

    here = interpreters()
    releases = [release for release in result.releases if release.llm_on_pypi]
    codes = {item.version: {problem.code for problem in original.problems(item.version)} for item in releases}
    return Runs(
        here,
        [release.version for release in chosen.releases if release.llm_on_pypi],
        [release.version for release in releases if result.healthy_on(release.version)],
        [version for version, found in codes.items() if not found],
        # B713: the runtime feeds an input that the model lacks.
        [version for version, found in codes.items() if found == {"B713"}],
    )


def _require_healthy(after: Report, path: Path) -> None:
    if after.healthy:
        return
    problems = [item.diagnostic() for item in after.findings if item.severity == "error"]
    error = LadingError("U951", f"the repaired model is not healthy: {problems[0].message}", where=str(path))
    error.diagnostics += tuple(problems)
    raise error


def _widened(layout: Layout) -> bool:
    """True when a scale is written with another width than it was read with."""
    quantized = [item.weight.quantized for item in layout.matrices.values() if item.weight.quantized is not None]
    alphas = [(getattr(item.source, "alpha", None), item.storage.scale) for item in quantized]
    return any(alpha is not None and alpha.type.dtype.name != scale for alpha, scale in alphas)


def _write_contract(
    graph: Graph,
    emission: Emission,
    chosen: MnnTarget,
    report: PassReport,
    measured: list[Measurement],
    guard: bool,
    pool: ThreadPoolExecutor,
) -> None:
    from backends.backend import Made
    from backends.contract import write
    from backends.guard.write import add_guard
    from backends.mnn.contract import make_contract

    contract = make_contract(
        graph,
        emission,
        target=chosen,
        made=Made(report.pipeline, [(item.name, item.lasting) for item in report.passes]),
        errors={},
        measurements=measured,
        executor=pool,
    )
    if guard:
        contract = add_guard(contract, emission.folder)
    write(contract, emission.folder)
