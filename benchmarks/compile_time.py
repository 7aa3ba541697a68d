"""Time, processor time and memory of a compile, beside merely reading the checkpoint and writing as many bytes.

Several source trees of the compiler can be compared, such as a checkout of an earlier commit; whole processes of all
of them and of the floor take turns. Linux only.

    python -m benchmarks.make_checkpoint OUT
    python -m benchmarks.compile_time OUT --tree earlier=../earlier --runs 5 --json compile_time.json
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.official import BUFFER, ROOT, alternate, bytes_of, columns, machine, measure, spread

COMMAND = "{python} -m tools.compile {model} -o {out} --force --verify none --passes int4"
FLOOR = "reading and writing"
COPY = """
import os, sys
from pathlib import Path
model, out, size, step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
buffer = bytearray(step)
for path in sorted(model.glob("*.safetensors")):
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
with open(out, "wb", buffering=0) as file:
    for start in range(0, size, step):
        file.write(memoryview(buffer)[: min(step, size - start)])
"""
ROWS = (
    ("wall", "s", 1.0, "wall_s"),
    ("CPU", "s", 1.0, "cpu_s"),
    ("peak of the largest process", "MB", 1e6, "peak_process"),
    ("peak of all processes", "MB", 1e6, "peak_tree"),
    ("  of it not files", "MB", 1e6, "peak_anonymous"),
)


def run_tree(args: argparse.Namespace, tree: Path, out: Path) -> dict[str, float]:
    """One compile from nothing by the compiler of a source tree."""
    shutil.rmtree(out, ignore_errors=True)
    places = {"python": sys.executable, "model": args.model.absolute(), "out": out}
    argv = [word.format(**places) for word in shlex.split(args.command)]
    # Byte code is written: a compiler that is used more than once has it.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return asdict(measure(argv, tree, {**env, "PYTHONPATH": str(tree)}))


def run_floor(args: argparse.Namespace, size: int, out: Path) -> dict[str, float]:
    """Reading every safetensors file and writing `size` bytes, in a process of its own."""
    out.unlink(missing_ok=True)
    argv = [sys.executable, "-I", "-c", COPY, str(args.model.absolute()), str(out), str(size), str(BUFFER)]
    return asdict(measure(argv, ROOT, os.environ))


def compare(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All measurements as one record; a first compile of each tree, which is not counted, makes byte code and sizes."""
    load = os.getloadavg()[0]
    trees = dict(args.tree or []) | {"this": ROOT}
    for name, tree in trees.items():
        run_tree(args, tree, work / name)
    sizes = {name: bytes_of(work / name) for name in trees}

    def run(name: str) -> dict[str, float]:
        if name == FLOOR:
            return run_floor(args, sizes["this"], work / "floor.bin")
        return run_tree(args, trees[name], work / name)

    found = alternate((*trees, FLOOR), args.runs, run)
    return {
        "machine": {**machine(), "load_before": load},
        "command": args.command,
        "results": {name: columns(samples) for name, samples in found.items()},
        "output_bytes": sizes,
    }


def table(results: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Median, lowest and highest of each, and the ratio of the medians to those of the floor."""
    lines = [f"{'':30}" + "".join(f"{name:>28}" for name in results)]
    for label, unit, scale, key in ROWS:
        cells = [spread([value / scale for value in found[key]], " to ") for found in results.values()]
        lines.append(f"{f'{label}, {unit}':30}" + "".join(f"{cell:>28}" for cell in cells))
        if key in ("wall_s", "cpu_s"):
            base = statistics.median(results[FLOOR][key])
            ratios = [statistics.median(found[key]) / base for found in results.values()]
            lines.append(f"{'  times the floor':30}" + "".join(f"{ratio:>28.2f}" for ratio in ratios))
    return "\n".join(lines)


def named_tree(text: str) -> tuple[str, Path]:
    """``NAME=FOLDER``; ValueError for anything else."""
    name, _, folder = text.partition("=")
    if not name or not folder or name in ("this", FLOOR):
        raise ValueError(text)
    return name, Path(folder).absolute()


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("--tree", type=named_tree, action="append", help="NAME=FOLDER: another source tree")
    parser.add_argument("--command", default=COMMAND, help=f"default: {COMMAND}")
    parser.add_argument("--runs", type=int, default=5, help="rounds")
    parser.add_argument("--work", type=Path, help="folder that keeps the results; default: a temporary one")
    parser.add_argument("--json", type=Path, help="file for all figures")
    return parser.parse_args(argv)


def main() -> None:
    """Measure, print, and write the record."""
    args = parse_arguments()
    for name, tree in args.tree or ():
        if not (tree / "tools" / "compile").is_dir():
            raise SystemExit(f"{name}: {tree} holds no source tree of the compiler")
    with tempfile.TemporaryDirectory(prefix="lading-bench-") as temporary:
        work = (args.work or Path(temporary)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        record = compare(args, work)
    print(table(record["results"]))
    for name, size in record["output_bytes"].items():
        print(f"{name} output: {size / 1e6:.1f} MB")
    print(f"load average before the first run: {record['machine']['load_before']:.2f}")
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
