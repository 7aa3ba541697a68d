"""``python -m tools.conformance``: what the compiler makes of ONNX's own test cases, judged by their expected outputs.

``python -m tools.conformance --only test_gemm --no-verify`` shows what the table alone lets through for one operator, a
line for each case that is not right; ``--frozen`` adds the cases with all inputs but the first made constants;
``--status wrong,crash`` shows these alone; ``--raw`` is the wheel's converter without this compiler.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ir.base.diag import LadingError
from tools.shared.cli import JSON_OPTION, QUIET_OPTION, Screen, command

if TYPE_CHECKING:
    from tools.conformance.cases import Case
    from tools.conformance.judge import Verdict


@command("conformance")
@click.option("--release", default=None, metavar="VERSION", help="Release of MNN to run on.  [default: the installed]")
@click.option("--only", default="", metavar="TEXT", help="Cases whose name has this in it.")
@click.option("--raw", is_flag=True, help="The converter of the wheel alone.")
@click.option("--verify/--no-verify", default=True, help="Refuse what verification refuses, as compile does.")
@click.option("--frozen", is_flag=True, help="Add the cases with all inputs but the first made constants.")
@click.option("--every", default=1, type=click.IntRange(1), help="Each so many-th case only.")
@click.option(
    "--status", default="wrong,fails,crash,refused", metavar="NAMES", help="Which verdicts to show one by one."
)
@click.option("--workers", default=2, type=click.IntRange(1), help="Processes at a time.")
@click.option("--models", multiple=True, metavar="PATH", type=click.Path(path_type=Path, exists=True),
              help="Judge these ONNX files, or those of a folder, against onnxruntime.")  # fmt: skip
@click.option(
    "--page", is_flag=True, help="Judge all cases on all releases, both ways, and write docs/conformance-mnn.md."
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write a JSON line for every case.")
@JSON_OPTION
@QUIET_OPTION
def main(
    release: str | None,
    only: str,
    raw: bool,
    verify: bool,
    frozen: bool,
    every: int,
    status: str,
    workers: int,
    models: tuple[Path, ...],
    page: bool,
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Judge the compiler by the ONNX backend test cases, run on MNN."""
    from backends.mnn.target.environments import installed_version
    from tools.conformance.cases import Case as Known
    from tools.conformance.cases import collect, freeze
    from tools.conformance.judge import CRASH, STATUSES, WRONG
    from tools.conformance.suite import judge_all

    screen = Screen(as_json, quiet)
    release = release or installed_version() or ""
    if models:
        return _judge_models(models, release, verify, screen)
    found = [case for case in collect() if isinstance(case, Known)]
    found += [made for case in found if frozen and (made := freeze(case)) is not None]
    cases = [case for case in found[::every] if only in case.key]
    if page:
        return _write_page(found, workers, screen)
    shown = set(status.split(","))
    verdicts: list[Verdict] = []
    with screen.progress() as listener:
        for verdict in judge_all(cases, found, release, raw=raw, verify=verify, workers=workers):
            verdicts.append(verdict)
            listener.begin(len(verdicts), len(cases), verdict.key)
            if verdict.status in shown and not quiet and not as_json:
                told = " ".join(filter(None, (verdict.status.upper(), verdict.code, verdict.key, verdict.reason)))
                click.echo(told)
    if out is not None:
        lines = [json.dumps(dataclasses.asdict(item)) for item in sorted(verdicts, key=lambda item: item.key)]
        out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    counts = Counter(item.status for item in verdicts)
    text = f"MNN {release}: {len(verdicts)} cases, " + ", ".join(
        f"{counts[name]} {name}" for name in STATUSES if counts[name]
    )
    screen.data({"release": release, "cases": len(verdicts), **counts}, text)
    return 1 if counts[WRONG] or counts[CRASH] else 0


def _write_page(cases: Sequence[Case], workers: int, screen: Screen) -> int:
    """Judge all cases on all releases and write the page; the exit code."""
    from backends.mnn.target.environments import LLM_RELEASES
    from tools.conformance.page import DATA, PAGE, made_with, page
    from tools.conformance.record import Record, rows_of, write
    from tools.conformance.suite import judge_all

    if not PAGE.parent.is_dir():
        raise LadingError(
            "U966", f"there is no folder {PAGE.parent} to write the page to", hint="run it in a source tree"
        )
    found: dict[bool, dict[str, list[Verdict]]] = {False: {}, True: {}}
    jobs = [(raw, release) for release in LLM_RELEASES for raw in (False, True)]
    with screen.progress() as listener:
        for raw, release in jobs:
            verdicts = found[raw][release] = []
            for verdict in judge_all(cases, cases, release, raw=raw, verify=True, workers=workers):
                verdicts.append(verdict)
                listener.begin(
                    len(verdicts), len(cases), f"{'converter' if raw else 'compiler'} of {release}: {verdict.key}"
                )
    record = Record(made_with(), LLM_RELEASES, rows_of(found[False], found[True]))
    DATA.parent.mkdir(parents=True, exist_ok=True)
    write(record, DATA)
    PAGE.write_text(page(record), encoding="utf-8")
    screen.data({"written": [str(PAGE), str(DATA)]}, f"written: {PAGE}, {DATA}")
    return 0


def _judge_models(paths: Sequence[Path], release: str, verify: bool, screen: Screen) -> int:
    """Judge files against onnxruntime and print a line for each; the exit code."""
    from tools.conformance.judge import CRASH, FAILS, WRONG
    from tools.conformance.models import judge_models, model_files

    verdicts = []
    for item in judge_models(model_files(paths), release, verify=verify):
        verdicts.append(item)
        if not screen.as_json:
            size = f"{item.nodes[0]} nodes, canonicalized {item.nodes[1]}"
            told = f"error {item.error:.1e}, {item.seconds:.1f} s" if item.status == "right" else item.reason
            click.echo(" ".join(filter(None, (item.status.upper(), item.code, f"{item.name}: {size};", told))))
    counts = Counter(item.status for item in verdicts)
    text = f"MNN {release}: {len(verdicts)} models, " + ", ".join(f"{counts[name]} {name}" for name in counts)
    screen.data({"release": release, "models": [dataclasses.asdict(item) for item in verdicts]}, text)
    return 1 if any(counts[name] for name in (WRONG, FAILS, CRASH)) else 0
