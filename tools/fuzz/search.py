"""A search: batches of cases in child processes, one target after the other, until the time is over."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import count as count_from
from itertools import cycle
from pathlib import Path
from time import monotonic
from typing import Any

from ir.base.scratch import scratch_folder
from tools.fuzz.finding import ROOT, Finding, place_of
from tools.fuzz.target import Target
from tools.fuzz.worker import run_cases

LEAST_SLICE, MOST_SLICE = 3.0, 30.0
"""Bounds of the seconds that a target gets in a row."""

START_SECONDS = 120.0
"""Time in which a child process must begin its first case, for imports and the first use of samples."""

_TAIL = 6000


@dataclass
class Tally:
    """What became of the cases of one target.

    Attributes:
        cases: how many ran.
        refused: how many of them ended with a coded error, as they may.
        faults: how many showed a fault, known ones included.
        seconds: time they took.
    """

    cases: int = 0
    refused: int = 0
    faults: int = 0
    seconds: float = 0.0


@dataclass
class Search:
    """A search that goes on.

    Attributes:
        targets: by name, each with the module of its table (empty for the command's own).
        seed: of the first case of every target; the next one has the next number.
        isolated: run cases in child processes.
        notify: told of every finding of a kind not met before.
        tallies: by target.
        findings: the first case of every kind of fault.
    """

    targets: Mapping[str, tuple[Target, str]]
    seed: int
    isolated: bool = True
    notify: Callable[[Finding], None] = lambda finding: None
    tallies: dict[str, Tally] = field(default_factory=dict)
    findings: dict[tuple[str, ...], Finding] = field(default_factory=dict)

    def run(self, seconds: float | None, cases: int | None) -> None:
        """Search for so many seconds, or so many cases of each target, whichever comes first; None for no limit."""
        self.tallies = {name: Tally() for name in self.targets}
        deadline = monotonic() + seconds if seconds is not None else float("inf")
        with scratch_folder() as scratch:
            for name in cycle(self.targets):
                left = deadline - monotonic()
                open_ = [item for item, tally in self.tallies.items() if cases is None or tally.cases < cases]
                if left <= 0 or not open_:
                    return
                if name in open_:
                    share = min(max(left / len(open_), LEAST_SLICE), MOST_SLICE, left)
                    self._slice(name, share, None if cases is None else cases - self.tallies[name].cases, scratch)

    def _slice(self, name: str, seconds: float, cases: int | None, scratch: Path) -> None:
        """Run one target for a while."""
        tally = self.tallies[name]
        before, started = tally.cases, monotonic()
        batch = self._child if self.isolated else self._here
        for record in batch(name, self.seed + before, seconds, cases, scratch):
            tally.cases += 1
            tally.refused += record["outcome"] == "refused"
            if record["finding"] is not None:
                tally.faults += 1
                self._found(Finding(**record["finding"]))
        tally.seconds += monotonic() - started

    def _found(self, finding: Finding) -> None:
        if finding.signature not in self.findings:
            self.findings[finding.signature] = finding
            self.notify(finding)

    # ---- batches ----

    def _here(
        self, name: str, first: int, seconds: float, cases: int | None, scratch: Path
    ) -> Iterator[dict[str, Any]]:
        target, module = self.targets[name]
        seeds = count_from(first) if cases is None else iter(range(first, first + cases))
        deadline = monotonic() + seconds
        for record in run_cases(target, seeds, deadline, scratch / name, scratch / "samples", module):
            if "outcome" in record:
                yield record

    def _child(
        self, name: str, first: int, seconds: float, cases: int | None, scratch: Path
    ) -> Iterator[dict[str, Any]]:
        target, module = self.targets[name]
        number = cases if cases is not None else 1 << 40
        words = [module, name, first, number, seconds, scratch / name, scratch / "samples"]
        with open(scratch / "errors", "w+b") as errors:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tools.fuzz.worker", *map(str, words)], stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=errors, env=_environment(scratch), start_new_session=True,
            )  # fmt: skip
            watch = _Watch(process)
            try:
                for record in watch.records(target.seconds):
                    if "outcome" in record:
                        yield record
            except TimeoutError:
                limit = START_SECONDS if watch.running is None else target.seconds
                yield watch.failed(name, first, "hung", f"no end after {limit:g} s", _tail(errors), module)
                return
            finally:
                _end(process)
            if not watch.ended:
                yield watch.failed(name, first, "died", _how(process.returncode), _tail(errors), module)


class _Watch:
    """Follows what a child process reports.

    Attributes:
        running: seed of the case that runs; None between cases.
        ended: the child said that it is done.
    """

    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process
        self.running: int | None = None
        self.ended = False

    def records(self, seconds: float) -> Iterator[dict[str, Any]]:
        """What the child reports; TimeoutError when a case takes longer than so many seconds."""
        for line in self._lines(seconds):
            record = json.loads(line)
            self.running = record.get("start")
            self.ended = "end" in record
            yield record

    def _lines(self, seconds: float) -> Iterator[bytes]:
        assert self.process.stdout is not None
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while True:
                if not selector.select(seconds if self.running is not None else START_SECONDS):
                    raise TimeoutError
                data = os.read(self.process.stdout.fileno(), 1 << 16)
                if not data:
                    self.process.wait(timeout=START_SECONDS)
                    return
                *lines, rest = (rest + data).split(b"\n")
                yield from lines

    def failed(self, name: str, first: int, kind: str, what: str, trace: str, module: str) -> dict[str, Any]:
        """The record of a case that did not come back; what happens outside of cases is charged to the first seed."""
        seed = self.running if self.running is not None else first
        summary = what if self.running is not None else f"{what}, outside of a case"
        # The stack that faulthandler writes has the innermost frame first.
        place = place_of("\n".join(reversed(trace.splitlines())))
        finding = Finding(name, seed, kind, summary, place, trace, module=module)
        return {"seed": seed, "outcome": "found", "finding": asdict(finding)}


def _end(process: subprocess.Popen) -> None:
    """End a child and what it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _how(code: int) -> str:
    if code >= 0:
        return f"the process left with exit status {code}"
    return f"the process died of {signal.Signals(-code).name}"


def _tail(errors: Any) -> str:
    errors.seek(0)
    return errors.read()[-_TAIL:].decode("utf-8", "backslashreplace")


def _environment(scratch: Path) -> dict[str, str]:
    """The child's: modules are found as here, sets have one order, one thread computes, and what is left goes with
    us."""
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    fixed = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TMPDIR": str(scratch)}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **fixed}


__all__ = ["Search", "Tally"]
