"""``python -m tools.doctor``: tell on which MNN releases a model made by anybody runs, and why not on the others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ir.base.diag import LadingError
from ir.base.types import TensorType
from tools.shared.cli import EXIT_FAILED, JSON_OPTION, QUIET_OPTION, Screen, command

if TYPE_CHECKING:
    from backends.mnn.doctor.findings import Report
    from backends.mnn.target.releases import Release


@command("doctor")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--runtime", default="portable", show_default=True, metavar="VERSIONS",
              help="Releases to judge: 'portable', 'all', a version, or clauses such as \">=3.4,<3.6\".")  # fmt: skip
@click.option("--run", "really", is_flag=True, help="Also run the model on every release that has an environment.")
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
    from backends.mnn.doctor.examine import examine, examine_signature
    from tools.doctor.recognise import model_of

    path = model_of(path)
    if path.suffix.lower() != ".onnx" or not path.is_file():
        return examine(path, releases)
    inputs, outputs = _onnx_signature(path)
    return examine_signature(path, inputs, outputs, releases)


def _onnx_signature(path: Path) -> tuple[dict[str, tuple[str, list[Any]]], list[str]]:
    """Element type and shape of each input that is not a weight, and the names of the outputs."""
    from ir.onnx.keys import DEFAULT
    from tools.shared.formats import ONNX, Formats

    try:
        graph = Formats().read(str(path), ONNX)
    except LadingError as error:
        problem = error.diagnostics[0].message
        raise LadingError("U950", f"not a readable ONNX model: {problem}", where=str(path)) from error
    if not len(graph.nodes):
        raise LadingError("U950", "the file holds no ONNX operators", where=str(path))
    inputs = {}
    for value in graph.inputs:
        if not isinstance(value.type, TensorType):
            message = f"the input {value.name!r} is no tensor of a known element type"
            raise LadingError("U950", message, where=str(path))
        if DEFAULT + value.name not in graph.tables:
            shape = [getattr(dim, "name", dim if dim is not None else "?") for dim in value.type.shape or ()]
            inputs[value.name] = (value.dtype.name, shape)
    return inputs, [value.name for value in graph.outputs]


def _run(report: Report) -> None:
    """Run a directory on this environment's MNN and on those of `backends.mnn.target.environments`.

    Raises:
        LadingError: U950 something that cannot be run.
    """
    import sys

    from backends.mnn.doctor.examine import run_and_compare
    from backends.mnn.target.environments import ReleaseEnvironments, installed_version

    if report.kind != "directory":
        raise LadingError("U950", "--run needs a model directory", where=report.subject)
    interpreters: dict[str, Path | str] = dict(ReleaseEnvironments().available())
    interpreters.setdefault(installed_version() or "", sys.executable)
    run_and_compare(report, interpreters)
