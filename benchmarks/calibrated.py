"""Measure what a compile costs that looks at activations: time, processor time and peak memory, first and again.

Statistics and quantized weights are kept between runs, so each round runs the command twice: with an empty cache, and
with what the first left there. The command may be any; Linux only.

    python -m benchmarks.make_checkpoint OUT
    python -m benchmarks.calibrated OUT --calibration TEXT --budget 4.5bpw --runs 3 --json calibrated.json
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.official import ROOT, bytes_of, columns, machine, measure, spread
from ir.base.store import CACHE_VARIABLE

COMPILE = (
    "{python} -m tools.compile {model} -o {out} --force --verify none --passes mixed "
    "--calibration {calibration} --budget {budget}"
)
ROWS = (
    ("wall", "s", 1.0, "wall_s"),
    ("CPU", "s", 1.0, "cpu_s"),
    ("peak of the largest process", "MB", 1e6, "peak_process"),
    ("peak of all processes", "MB", 1e6, "peak_tree"),
    ("  of it not files", "MB", 1e6, "peak_anonymous"),
)
STATES = ("first", "again")


def command(args: argparse.Namespace, out: Path) -> list[str]:
    """The command with its places filled in.

    Raises:
        SystemExit: a place has no such name.
    """
    places = {
        "python": sys.executable,
        "model": args.model.absolute(),
        "out": out,
        "calibration": args.calibration.absolute(),
        "budget": args.budget,
    }
    try:
        return [word.format_map(places) for word in shlex.split(args.command)]
    except KeyError as error:
        raise SystemExit(f"nothing is called {error} in a command; there are {', '.join(places)}") from None


def run_rounds(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All figures by state of the cache, and the bytes of result and cache."""
    out, cache = work / "out", work / "cache"
    argv = command(args, out)
    samples: dict[str, list[dict[str, float]]] = {state: [] for state in STATES}
    for number in range(args.runs):
        shutil.rmtree(cache, ignore_errors=True)
        for state in STATES:
            shutil.rmtree(out, ignore_errors=True)
            samples[state].append(asdict(measure(argv, ROOT, {**os.environ, CACHE_VARIABLE: str(cache)})))
            print(f"  round {number + 1}/{args.runs}: {state}", file=sys.stderr)
    return {
        "results": {state: columns(samples[state]) for state in STATES},
        "output_bytes": bytes_of(out),
        "cache_bytes": bytes_of(cache) if cache.exists() else 0,
    }


def table(results: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Median, lowest and highest of both states of the cache."""
    lines = [f"{'':30}{'empty cache':>28}{'again':>28}"]
    for label, unit, scale, key in ROWS:
        cells = [spread([value / scale for value in results[state][key]], " to ") for state in STATES]
        lines.append(f"{f'{label}, {unit}':30}{cells[0]:>28}{cells[1]:>28}")
    return "\n".join(lines)


def above(results: Mapping[str, Mapping[str, Sequence[float]]], args: argparse.Namespace) -> list[str]:
    """Limits that a run with an empty cache did not keep."""
    worst = {key: max(results["first"][key]) for key in ("wall_s", "peak_tree")}
    found = []
    if args.most_seconds is not None and worst["wall_s"] > args.most_seconds:
        found.append(f"{worst['wall_s']:.1f} s are more than {args.most_seconds:g} s")
    if args.most_megabytes is not None and worst["peak_tree"] > args.most_megabytes * 1e6:
        found.append(f"{worst['peak_tree'] / 1e6:.0f} MB are more than {args.most_megabytes:g} MB")
    return found


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("--calibration", type=Path, required=True, help="text that is calibrated with")
    parser.add_argument("--budget", default="4.5bpw", help="value of {budget} in the command")
    parser.add_argument("--command", default=COMPILE, help=f"default: {COMPILE}")
    parser.add_argument("--runs", type=int, default=1, help="rounds of both")
    parser.add_argument("--most-seconds", type=float, help="fail when a run with an empty cache takes longer")
    parser.add_argument("--most-megabytes", type=float, help="fail when all its processes together hold more")
    parser.add_argument("--work", type=Path, help="folder that keeps result and cache; default: a temporary one")
    parser.add_argument("--json", type=Path, help="file for all figures")
    args = parser.parse_args(argv)
    for path in (args.model / "config.json", args.calibration):
        if not path.is_file():
            parser.error(f"there is no file {path}")
    if args.runs < 1:
        parser.error("--runs is 1 or more")
    return args


def main() -> None:
    """Measure, print, write the record, and fail where a limit was not kept."""
    args = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="lading-bench-") as temporary:
        work = (args.work or Path(temporary)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        load = os.getloadavg()[0]
        record = {"machine": {**machine(), "load_before": load}, "command": args.command, **run_rounds(args, work)}
    print(table(record["results"]))
    print(f"output: {record['output_bytes'] / 1e6:.1f} MB, cache: {record['cache_bytes'] / 1e6:.1f} MB")
    print(f"load average before the first run: {load:.2f}")
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    problems = above(record["results"], args)
    if problems:
        raise SystemExit("; ".join(problems))


if __name__ == "__main__":
    main()
