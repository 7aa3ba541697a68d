"""Runs cases: in this process, or as the child process of a search, which then survives whatever a case does."""

from __future__ import annotations

import faulthandler
import json
import os
import random
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from time import monotonic
from typing import Any

from ir.base.diag import LadingError
from tools.fuzz.finding import Finding, of_error
from tools.fuzz.target import Case, Target

MEMORY_BYTES = 6 << 30
"""Address space of a child process; a case that needs more fails with MemoryError."""

DUMP_PART = 0.9
"""A case that has used this part of its time shows where it is, for the report on a hang."""


def run_case(target: Target, seed: int, folder: Path, samples: Path, module: str = "") -> tuple[str, Finding | None]:
    """Run one case in an empty folder; returns ``held``, ``refused`` or ``found``, and what was found."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    case = Case(seed, random.Random(f"{target.name}:{seed}"), folder, samples)
    given: Any = None
    try:
        given = target.make(case)
        target.check(given, case)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # Foreign code raises exceptions that are no Exception, such as Rust's panics.
        if target.refuses and isinstance(error, LadingError):
            return "refused", None
        return "found", of_error(error, target.name, seed, given, module)
    return "held", None


def run_cases(
    target: Target, seeds: Iterator[int], deadline: float, folder: Path, samples: Path, module: str = ""
) -> Iterator[dict[str, Any]]:
    """Records of the cases of some seeds until a moment of `monotonic`: one before each case, one after it."""
    for seed in seeds:
        if monotonic() >= deadline:
            return
        yield {"start": seed}
        outcome, finding = run_case(target, seed, folder, samples, module)
        yield {"seed": seed, "outcome": outcome, "finding": asdict(finding) if finding is not None else None}


def load_targets(module: str) -> Mapping[str, Target]:
    """The targets of a module's table ``TARGETS``, by name; the command's own for an empty name.

    Modules in the current folder are found.

    Raises:
        LadingError: U940 there is no such module, or it has no such table.
    """
    if not module:
        from tools.fuzz.targets import TARGETS

        return {target.name: target for target in TARGETS}
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return {target.name: target for target in import_module(module).TARGETS}
    except (ImportError, AttributeError) as error:
        raise LadingError("U940", f"no targets can be loaded: {error}", module) from error


def main(arguments: list[str]) -> int:
    """The child process: ``MODULE TARGET FIRST COUNT SECONDS FOLDER SAMPLES``; JSON lines on standard output."""
    module, name, first, count, seconds, folder, samples = arguments
    report = _private_output()
    warnings.simplefilter("ignore")
    target = load_targets(module)[name]
    _limit_memory()
    deadline = monotonic() + float(seconds)
    seeds = iter(range(int(first), int(first) + int(count)))
    for record in run_cases(target, seeds, deadline, Path(folder), Path(samples), module):
        if "start" in record:
            faulthandler.dump_traceback_later(target.seconds * DUMP_PART, exit=False)
        else:
            faulthandler.cancel_dump_traceback_later()
        report(json.dumps(record) + "\n")
    report(json.dumps({"end": True}) + "\n")
    # Foreign code may crash while it is torn down, which would say nothing about a case.
    os._exit(0)


def _private_output() -> Callable[[str], int]:
    """Keep standard output for the records alone; whatever else is printed is dropped."""
    kept = os.dup(1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    faulthandler.enable()
    return lambda text: os.write(kept, text.encode())


def _limit_memory() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
