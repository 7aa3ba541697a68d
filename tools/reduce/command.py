"""``python -m tools.reduce``: shrink a graph for which a command fails to a minimal one for which it still does."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import click

from ir.base.diag import LadingError
from tools.shared.cli import QUIET_OPTION, Number, command

if TYPE_CHECKING:
    from tools.reduce.refusal import Refusal


@dataclass(frozen=True)
class Condition:
    """What a command must do with a graph for the graph to be interesting.

    Attributes:
        command: shell command with ``{}`` for the file.
        status: exit status; None for any.
        pattern: what its output must contain; None for nothing in particular.
        timeout: seconds after which it is killed; such a run is not interesting.
    """

    command: str
    status: int | None
    pattern: re.Pattern[str] | None
    timeout: float

    def holds(self, path: Path, left: float) -> bool:
        """Run the command on a file, for no longer than the seconds left."""
        found = run_command(self.command, path, min(self.timeout, left))
        if found is None:
            return False
        status, output = found
        fits = self.status is None or status == self.status
        return fits and (self.pattern is None or self.pattern.search(output) is not None)


def run_command(text: str, path: Path, timeout: float) -> tuple[int, str] | None:
    """Exit status and output of a shell command with a file put in; None when it took too long."""
    process = subprocess.Popen(
        text.replace("{}", shlex.quote(str(path))), shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=max(timeout, 0.01))
        return process.returncode, output
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@command("reduce")
@click.argument("source", metavar="INPUT")
@click.option("--command", "text", metavar="'CMD {}'",
              help="Shell command that shows the failure; {} stands for the file with the graph.")  # fmt: skip
@click.option("--to", metavar="BACKEND",
              help="The failure is that compile --to BACKEND refuses the graph, with the same code as the whole.")  # fmt: skip
@click.option("--target", help="With --to: what it must run on.")
@click.option("--passes", metavar="PIPELINE", help="With --to: the pipeline that is run.")
@click.option("--inputs", type=click.Path(path_type=Path), metavar="FILE.npz|DIR",
              help="With --to: inputs of the whole graph that show the failure, in place of made-up ones.")  # fmt: skip
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="FILE",
              help="Where the smallest graph so far is; default INPUT with the suffix .reduced.lading.")  # fmt: skip
@click.option("--status", type=int, metavar="N", help="Exit status that counts; default that of the whole graph.")
@click.option("--match", metavar="REGEX", help="What the output must contain; any status counts then unless given.")
@click.option("--time-limit", type=Number(min=0), default=600.0, show_default=True, metavar="SECONDS",
              help="Stop after this time with what was reached.")  # fmt: skip
@click.option("--timeout", type=Number(min=0), default=60.0, show_default=True, metavar="SECONDS",
              help="Kill a run of the command after this time; it does not count then.")  # fmt: skip
@click.option("--from", "frontend", metavar="NAME", help="Frontend that reads INPUT; default by suffix.")
@QUIET_OPTION
def main(source, text, to, target, passes, inputs, out, status, match, time_limit, timeout, frontend, quiet) -> int:
    """Shrink the graph INPUT as long as a command keeps failing on it, or compile refusing it, in the same way.

    Outputs, nodes, inputs, constants, sizes, attributes and annotations go; what is left is written in text form to
    FILE after every step, so that the smallest graph so far is there whenever you stop. The same input and command
    give the same result.
    """
    from tools.reduce.reducer import Reducer, size_of
    from tools.shared.formats import Formats

    place = out or Path("graph" if source == "-" else Path(os.path.expanduser(source)).name).with_suffix(
        ".reduced.lading"
    )
    pattern = _pattern(match)
    _check_way(text, {"--to": to, "--target": target, "--passes": passes, "--inputs": inputs},
               {"--status": status, "--match": match})  # fmt: skip
    graph = Formats().read(source, frontend)
    if to is not None:
        from ir.infer.engine import infer_types

        # Where a smaller graph begins, its inputs have the types of what was there.
        infer_types(graph)
    deadline = monotonic() + time_limit
    say = (lambda line: None) if quiet else (lambda line: click.echo(line, err=True))
    reducer = Reducer(graph, place, deadline, say)
    condition: Condition | Refusal
    if to is None:
        condition = _condition(text, status, pattern, timeout, reducer.path)
    else:
        from tools.compile.job import Request
        from tools.reduce.refusal import Refusal

        condition = Refusal(source, graph, Request(source, Path(), passes, target, to=to, inputs=inputs))
        say(f"compile refuses it with {condition.kind[0]}")
    before = size_of(graph)
    done = reducer.run(lambda path: condition.holds(path, deadline - monotonic()))
    after = size_of(reducer.best)
    click.echo(f"{place}: {before} -> {after}; {'the command' if to is None else 'compile'} ran {reducer.runs} times")
    if not done:
        click.echo("stopped before nothing more could go", err=True)
    return 0


def _check_way(text: str | None, compiled: Mapping[str, object], shell: Mapping[str, object]) -> None:
    """Require one way to show the failure; LadingError U921."""
    if (text is None) == (compiled["--to"] is None):
        hint = "--command 'CMD {}' for what a shell command shows, --to BACKEND for what compile refuses"
        raise LadingError("U921", "give either --command or --to", hint=hint)
    if text is not None and "{}" not in text:
        raise LadingError("U921", "the command has no place {} for the file", text)
    others = compiled if text is not None else shell
    for option, given in others.items():
        if given is not None:
            raise LadingError("U921", f"{option} does not go with {'--command' if text is not None else '--to'}")


def _pattern(text: str | None) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise LadingError("U921", f"the pattern is malformed: {error}", text or "") from None


def _condition(text: str, status: int | None, pattern: re.Pattern[str] | None, timeout: float, path: Path) -> Condition:
    """The condition, checked on the whole graph."""
    found = run_command(text, path, timeout)
    if found is None:
        raise LadingError("U920", f"the command ran longer than {timeout:g} s", text, "give a longer --timeout")
    if found[0] in (126, 127) and status != found[0]:
        raise LadingError("U921", f"the command cannot be run: {found[1].strip()}", text)
    if status is None and pattern is None:
        status = found[0]
        if status == 0:
            hint = "give --match for a failure with exit status 0"
            raise LadingError("U920", "the command succeeds on the whole graph", text, hint)
    condition = Condition(text, status, pattern, timeout)
    if status is not None and found[0] != status:
        raise LadingError("U920", f"the exit status for the whole graph is {found[0]}, not {status}", text)
    if pattern is not None and not pattern.search(found[1]):
        raise LadingError("U920", f"the output for the whole graph does not contain {pattern.pattern!r}", text)
    return condition
