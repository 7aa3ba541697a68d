"""``python -m tools.doctor``: tell on which MNN releases a model made by anybody runs, and why not on the others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ir.base.diag import LadingError
from tools.shared.cli import EXIT_FAILED, JSON_OPTION, QUIET_OPTION, Screen, command

if TYPE_CHECKING:
    from backends.mnn.doctor.findings import Report
    from backends.mnn.target.releases import Release


@command("doctor")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--runtime", default="portable", show_default=True, metavar="VERSIONS",
              help="Releases to judge: 'portable', 'all', a version, or clauses such as \">=3.4,<3.6\".")  # fmt: skip
@click.option(
    "--run",
    "really",
    is_flag=True,
    help="Also run the model on every release that has an environment; an ONNX file is converted first.",
)
@JSON_OPTION
@QUIET_OPTION
def main(path: Path, runtime: str, really: bool, as_json: bool, quiet: bool) -> int:
    """Judge PATH, an MNN model directory, an .mnn file or an ONNX file, without running it.

    It begins with what is wrong, on which releases, and the command that mends it. The exit code is 0 when the model is
    healthy on all releases asked about and 1 when it is not.
    """
    from backends.mnn.doctor.remedy import remedy
    from tools.doctor.words import sentence, show

    report = diagnose(path, releases_of(runtime))
    if really:
        _run(report)
    found = remedy(report)
    if as_json:
        told = {"summary": sentence(report, found), "repair": found.command if found is not None else ""}
        click.echo(json.dumps({**told, **report.as_dict()}, indent=2, ensure_ascii=False))
    elif not quiet:
        show(Screen(as_json, quiet).console, report, found)
    return 0 if report.healthy else EXIT_FAILED


def releases_of(text: str) -> tuple[Release, ...]:
    """Releases that a user means; unlike a target they may feed different inputs.

    Raises:
        LadingError: B600 or B700.
    """
    from backends.mnn.target.releases import PROFILES, matching, target

    if text == "all":
        return tuple(PROFILES.values())
    return matching(text) if any(mark in text for mark in "<>=!~,") else target(text).releases


def diagnose(path: Path, releases: Sequence[Release]) -> Report:
    """The report on a directory, an ``.mnn`` file or an ONNX file.

    Raises:
        LadingError: B711 there is nothing of this name, U950 an ONNX file that cannot be read or a file of no known kind,
            U955 something that another command takes.
    """
    from backends.mnn.doctor.examine import examine
    from backends.mnn.doctor.onnx.examine import examine_onnx
    from tools.doctor.recognise import model_of

    path = model_of(path)
    if path.suffix.lower() != ".onnx" or not path.is_file():
        return examine(path, releases)
    try:
        return examine_onnx(path, releases)
    except LadingError as error:
        problem = error.diagnostics[0]
        if problem.code == "U950":
            raise
        raise LadingError("U950", f"not a readable ONNX model: {problem.message}", where=str(path)) from error


def _run(report: Report) -> None:
    """Run a model on this environment's MNN and on those of `backends.mnn.target.environments`; an ONNX file is
    converted there first."""
    import sys

    from backends.mnn.doctor.examine import run_and_compare
    from backends.mnn.doctor.onnx.conversion import convert_and_load, load_file
    from backends.mnn.target.environments import ReleaseEnvironments, installed_version

    interpreters: dict[str, Path | str] = dict(ReleaseEnvironments().available())
    interpreters.setdefault(installed_version() or "", sys.executable)
    {"directory": run_and_compare, "mnn": load_file, "onnx": convert_and_load}[report.kind](report, interpreters)
