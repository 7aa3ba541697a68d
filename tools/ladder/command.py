"""``python -m tools.ladder MODEL``: build every rung of precision, run each on MNN, and say which one to take.

The strategy that people are told to follow - first single precision, then 16, 8 and 4 bits, then the important tensors
higher - as one command, with numbers of the real runtime at every step.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ir.base.diag import LadingError, suggest
from tools.ladder.climb import Job, Watcher
from tools.ladder.rungs import DEFAULT_RUNGS, Rule, parse_rungs, parse_size
from tools.ladder.text import Text
from tools.shared.cli import EXIT_FAILED, QUIET_OPTION, Number, Screen, command, require_package, split_list, stopped

if TYPE_CHECKING:
    from tools.compile.job import Listener


@command("ladder")
@click.argument("model", required=False)
@click.option("--rungs", default="", metavar="LIST",
              help=f"What to build: {', '.join(DEFAULT_RUNGS[:5])}, mixed:4.5bpw, mixed:300MB, mixed:kl=0.02, "
              "mixed:5bpw+0.85x, uniform:3, or pipelines, NAME= before them or not.  [default: the first five, and mixed at "
              "3.5 to 6 bpw]")  # fmt: skip
@click.option("--uniform", metavar="BITS", default="",
              help="Also build uniform widths, such as 2-8 or 3,4,6, to compare the others with.")  # fmt: skip
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="DIR",
              help="Folder of the rungs and reports; default build/ladder/<model name>.")  # fmt: skip
@click.option("--keep/--no-keep", default=True, show_default=True, help="Keep the compiled folders, as DIR/<rung>.")
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE",
              help="Text to measure on; default the example's, or the held-out part of the packaged sample.")  # fmt: skip
@click.option("--windows", type=click.IntRange(1), default=8, show_default=True, help="Pieces of the text, at most.")
@click.option("--window", type=click.IntRange(2), default=256, show_default=True, help="Tokens of a piece, at most.")
@click.option("--calibration", type=click.Path(path_type=Path), metavar="FILE",
              help="Text or JSONL of chats for rungs that assign precision by measurement.")  # fmt: skip
@click.option("--tokenizer", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="DIR",
              help="Folder with the tokenizer of an ONNX file; default beside it.")  # fmt: skip
@click.option("--prompt", metavar="TEXT", help="What every rung continues, as a sample.")
@click.option("--target", default="portable", show_default=True, help="'portable', an MNN release, or '>=3.5,<3.6.1'.")
@click.option("--revision", help="Revision of a model on the Hugging Face Hub.")
@click.option("--budget-size", metavar="SIZE", help="Recommend the rung of least KL within a size such as 300MB.")
@click.option("--max-kl", type=Number(0, min_open=True), metavar="KL",
              help="Recommend the smallest rung of at most this KL, within --budget-size where that is given.")  # fmt: skip
@click.option("--verify", type=click.Choice(["none", "quick", "full"]), default="quick", show_default=True,
              help="How each rung is checked before it is measured.")  # fmt: skip
@click.option("--settings", default="recommended", show_default=True, metavar="RUNGS",
              help="Rungs whose runtime settings are tried, and written where they cost nothing: names with commas between, "
              "recommended or none.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), default=4, show_default=True, help="Threads of the runtime.")
@click.option("--cluster", metavar="ADDRESS|local:N", help="Build rungs with the workers of a Dask scheduler, by address "
              "or scheduler file, or with N processes of this machine.")  # fmt: skip
@click.option("--resume/--fresh", default=True, show_default=True, help="Keep rungs that nothing has changed for.")
@click.option("--timeout", type=Number(1), default=7200, show_default=True,
              help="Seconds that building or measuring one rung may take.")  # fmt: skip
@click.option("--json", "json_file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path), metavar="FILE",
              help="Where to write all results as JSON, - for standard output; default DIR/ladder.json.")  # fmt: skip
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Where to write the report page; default DIR/ladder.html.")  # fmt: skip
@QUIET_OPTION
def main(model: str | None, rungs: str, uniform: str, json_file: Path | None, html: Path | None, quiet: bool,
         **options: Any) -> int:  # fmt: skip
    """Build MODEL, a Hugging Face checkpoint folder or hub name or an .onnx file, in every precision, measure each on
    MNN, recommend one.

    Without MODEL the example checkpoint of the source tree is taken. The exit code is 0 when every rung was built and
    measured and one is recommended.
    """
    from tools.ladder.climb import climb
    from tools.ladder.report import as_json, ladder_data, show_ladder, write_report

    to_output = json_file == Path("-")
    screen = Screen(to_output, quiet)
    specs = parse_rungs(rungs, parse_widths(uniform))
    job = make_job(model, specs, options)
    try:
        with screen.progress() as listener:
            ladder = climb(job, _Told(listener, len(specs)))
    except KeyboardInterrupt as stop:
        return stopped(stop, f"rungs that are done are kept in {job.out}, the same command goes on")
    data = ladder_data(ladder)
    page = html or job.out / "ladder.html"
    write_report(page, _page(data))
    if to_output:
        click.echo(as_json(data), nl=False)
    else:
        write_report(json_file or job.out / "ladder.json", as_json(data))
    if not quiet and not to_output:
        show_ladder(screen.console, data)
        click.echo(f"report: {page}")
    else:
        _tell_failures(data)
    return 0 if ladder.ok and data["recommendation"]["rung"] is not None else EXIT_FAILED


def _tell_failures(data: Mapping[str, Any]) -> None:
    """Failed rungs on standard error, where no table tells them."""
    from ir.base.diag import Diagnostic

    for rung in data["rungs"]:
        if rung["status"] != "ok":
            click.echo(f"{rung['name']}: {Diagnostic(**rung['error'])}", err=True)


def _page(data: Mapping[str, Any]) -> str:
    from tools.ladder.page import html_page

    return html_page(data)


def parse_widths(text: str) -> list[int]:
    """Widths such as ``2-8`` or ``3,4,6``, none for an empty text.

    Raises:
        LadingError: U933 something else.
    """
    widths: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = re.fullmatch(r"([2-8])(?:-([2-8]))?", part)
        if found is None:
            raise LadingError("U933", f"{part!r} is no range of widths", hint="write --uniform 2-8 or 3,4,6")
        widths += range(int(found[1]), int(found[2] or found[1]) + 1)
    return sorted(set(widths))


def make_job(model: str | None, specs: Any, options: Mapping[str, Any]) -> Job:
    """What to do, from the options of the command.

    Raises:
        LadingError: what is wrong with the checkpoint, the target, the texts or the limits, and U906 without a runtime.
    """
    from backends.mnn.backend import PROMPTS
    from backends.mnn.target.environments import installed_version
    from backends.mnn.target.releases import target as find_target
    from frontends.checkpoint.hub import resolve
    from tools.compile.job import EXAMPLE, example_checkpoint
    from tools.ladder.model import is_file, tokenizer_of

    rule = Rule(parse_size(options["budget_size"]) if options["budget_size"] else None, options["max_kl"])
    find_target(options["target"])
    if installed_version() is None:
        hint = "pip install MNN"
        raise LadingError("U906", "rungs are measured on the MNN runtime, which is not installed", hint=hint)
    file = Path(os.path.expanduser(model)) if model is not None and is_file(model) else None
    if file is not None:
        folder = tokenizer_of(file, options["tokenizer"])
    else:
        folder = resolve(model or str(example_checkpoint()), revision=options["revision"])
    calibration: Path | None = options["calibration"]
    if calibration is not None and not calibration.is_file():
        raise LadingError("U903", "no such text file", where=str(calibration))
    if folder.name == EXAMPLE.name and calibration is None and (folder / "calibration.txt").is_file():
        calibration = folder / "calibration.txt"
    return Job(
        model=model or EXAMPLE.name,
        folder=folder,
        specs=specs,
        out=options["out"] or Path("build") / "ladder" / _file_name(model or EXAMPLE.name),
        text=_text(folder, file or folder, options),
        prompt=options["prompt"] or PROMPTS[0],
        target=options["target"],
        verify=options["verify"],
        threads=options["threads"],
        calibration=calibration,
        rule=rule,
        keep=options["keep"],
        fresh=not options["resume"],
        timeout_s=options["timeout"],
        file=file,
        cluster=_cluster(options["cluster"]),
        settings=_tuned(options["settings"], specs),
    )


def _cluster(address: str | None) -> str | None:
    """The address of a cluster as the processes that build rungs need it; U969 for what is none."""
    if address is None:
        return None
    from tools.cluster.connect import absolute

    require_package("distributed")
    return absolute(address)


def _tuned(text: str, specs: Any) -> tuple[str, ...]:
    """Names of rungs whose settings are tried.

    Raises:
        LadingError: U933 one that is not among the rungs.
    """
    from tools.ladder.tuning import NONE, RECOMMENDED

    names = tuple(split_list(text))
    known = [RECOMMENDED, NONE, *(spec.name for spec in specs)]
    for name in names:
        if name not in known:
            hint = suggest(name, known) or f"known: {', '.join(known)}"
            raise LadingError("U933", f"there is no rung {name!r} whose settings could be tried", hint=hint)
    return names


def _file_name(model: str) -> str:
    path = Path(os.path.expanduser(model))
    return path.resolve().name if path.is_dir() else model.replace("/", "--")


def _text(folder: Path, model: Path, options: Mapping[str, Any]) -> Text:
    """The text that is named, else the example's own, else the packaged sample's held-out part."""
    from tools.compile.job import EXAMPLE
    from tools.ladder.model import longest_window
    from tools.ladder.text import read_text, sample_text

    width = min(options["window"], longest_window(model) or options["window"])
    if options["text"] is not None:
        return read_text(options["text"], "file", folder, options["windows"], width)
    own = folder / "evaluation.txt"
    if folder.name == EXAMPLE.name and own.is_file():
        return read_text(own, "example", folder, options["windows"], width)
    return sample_text(folder, options["windows"], width)


class _Told(Watcher):
    """Passes on to what commands show."""

    def __init__(self, listener: Listener, total: int) -> None:
        self._listener = listener
        self._total = total
        self._what = ""

    def rung(self, number: int, name: str) -> None:
        self._listener.begin(number, self._total, f"rung {name}")
        self._what = ""

    def phase(self, what: str, done: int = 0, total: int = 0) -> None:
        self._what = what or self._what
        self._listener.step(done, total, self._what)
