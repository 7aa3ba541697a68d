"""Compare Lading with MNN's official exporter on one checkpoint: time, memory, and speed of the two results.

Both are run as whole processes, in alternation, with the order swapped every round. Then both results are loaded and
run by the installed MNN, again in alternation. A floor is measured too: reading the checkpoint and writing as many
bytes as Lading's result has, with nothing in between. Linux only.

    python -m benchmarks.official MODEL --mnn-checkout MNN --torch-python ENV/bin/python --json results.json

`--more-lading NAME=PIPELINE` and `--more-official NAME=OPTIONS` compile further results, once each, which are run beside the two.

MNN is a checkout of MNN's repository; ENV has torch, transformers, onnx, yaspin, tqdm and the MNN wheel. The exporter
is given a converter of its own that calls the wheel's extension module, because importing ``MNN.tools``, which it would
do otherwise, installs a package and contacts a server.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from backends.mnn.run.native import run_model
from backends.mnn.target.environments import installed_version

ROOT = Path(__file__).resolve().parents[1]
EXPORT = "{torch} {exporter} --path {model} --export mnn --dst_path {out} --mnnconvert {converter} "
OFFICIAL = EXPORT + "--quant_bit 4 --quant_block 64"
COMPILE = "{python} -m tools.compile {model} -o {out} --force --verify none --passes "
LADING = COMPILE + "int4"
CONVERTER = """#!{python} -I
import sys
import _tools
_tools.mnnconvert(sys.argv)
"""
SAMPLE_S = 0.02
BUFFER = 8 << 20


@dataclass(frozen=True)
class Sample:
    """One run of a command.

    Attributes:
        wall_s: from start to end.
        cpu_s: user and system time of the process and of all children it waited for.
        peak_process: highest resident memory of the largest single process, bytes (the kernel's figure, which is never
            below the memory of the process that measures).
        peak_tree: highest sum of resident memory over all processes of the run, bytes, sampled; shared pages count
            once for each process, and so do pages of mapped files.
        peak_anonymous: the same without pages of files, which the kernel can drop.
    """

    wall_s: float
    cpu_s: float
    peak_process: int
    peak_tree: int
    peak_anonymous: int


@dataclass
class TreeSampler:
    """Watches the memory of every process of one session from a thread, while the command runs."""

    session: int
    peak: int = 0
    peak_anonymous: int = 0
    done: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Sample until `done` is set."""
        while not self.done.wait(SAMPLE_S):
            resident, anonymous = 0, 0
            for pid in self.members():
                status = _status(pid)
                resident += status.get("VmRSS", 0)
                anonymous += status.get("RssAnon", 0)
            self.peak = max(self.peak, resident)
            self.peak_anonymous = max(self.peak_anonymous, anonymous)

    def members(self) -> Iterator[int]:
        """The session leader and, as long as they live, its descendants."""
        waiting = [self.session]
        while waiting:
            pid = waiting.pop()
            yield pid
            for task in _read(f"/proc/{pid}/task", os.listdir):
                waiting += [int(child) for child in _read(f"/proc/{pid}/task/{task}/children", _text).split()]


def _text(path: str) -> str:
    return Path(path).read_text()


def _read(path: str, reader: Callable[[str], Any]) -> Any:
    """What `reader` gives, or nothing for a process that has just ended."""
    try:
        return reader(path)
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _status(pid: int) -> dict[str, int]:
    """Memory lines of a process in bytes; empty once it has ended."""
    lines = (line.split() for line in _read(f"/proc/{pid}/status", _text).splitlines() if line.endswith(" kB"))
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}


def measure(argv: Sequence[str], cwd: Path, env: Mapping[str, str]) -> Sample:
    """Run a command to its end and measure it; a failing command ends the benchmark with its last lines."""
    os.sync()  # what the previous run left to be written must not be paid by this one
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            argv, cwd=cwd, env=dict(env), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        sampler = TreeSampler(process.pid)
        thread = threading.Thread(target=sampler.run, daemon=True)
        thread.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        sampler.done.set()
        thread.join()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            tail = log.read().decode("utf-8", "replace")[-3000:]
            raise SystemExit(f"{shlex.join(argv)}\nended with {process.returncode}:\n{tail}")
    cpu = usage.ru_utime + usage.ru_stime
    return Sample(wall, cpu, usage.ru_maxrss * 1024, sampler.peak, sampler.peak_anonymous)


@dataclass(frozen=True)
class Contender:
    """One compiler: its command, its environment, and where it puts its result."""

    name: str
    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str]
    out: Path

    def run(self) -> Sample:
        """One measured run from nothing."""
        shutil.rmtree(self.out, ignore_errors=True)
        return measure(self.argv, self.cwd, self.env)


def contenders(args: argparse.Namespace, work: Path) -> list[Contender]:
    """The two commands with their places filled in, and those of further results."""
    converter = work / "mnnconvert"
    converter.write_text(CONVERTER.format(python=args.torch_python.absolute()))
    converter.chmod(0o755)
    places = {
        "python": sys.executable,
        "torch": args.torch_python.absolute(),
        "exporter": args.mnn_checkout.absolute() / "transformers/llm/export/llmexport.py",
        "converter": converter,
        "model": args.model.absolute(),
    }
    offline = {**os.environ, "PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1"}
    sides = {"official": (work, offline, EXPORT), "lading": (ROOT, dict(os.environ), COMPILE)}
    found = []
    for side, (cwd, env, command) in sides.items():
        whole = getattr(args, f"{side}_cmd")
        found.append(Contender(side, _fill(whole, places, work / side), cwd, env, work / side))
        for name, options in map(_named, getattr(args, f"more_{side}")):
            argv = (*_fill(command, places, work / name), *shlex.split(options))
            found.append(Contender(name, argv, cwd, env, work / name))
    if len({entry.name for entry in found}) < len(found):
        raise SystemExit("two results have one name")
    return found


def _named(text: str) -> tuple[str, str]:
    """NAME=OPTIONS as its two parts; SystemExit for other texts."""
    name, sign, options = text.partition("=")
    if not sign or not name or "/" in name:
        raise SystemExit(f"{text!r} is not NAME=OPTIONS")
    return name, options


def _fill(template: str, places: Mapping[str, Any], out: Path) -> tuple[str, ...]:
    return tuple(word.format(**places, out=out) for word in shlex.split(template))


def alternate(names: Sequence[str], rounds: int, run: Callable[[str], Any]) -> dict[str, list[Any]]:
    """`run(name)` for each name in every round; the order is turned round each time, so that drift favours nobody."""
    results: dict[str, list[Any]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            results[name].append(run(name))
            print(f"  round {number + 1}/{rounds}: {name}", file=sys.stderr)
    return results


def floor(model: Path, size: int, work: Path, rounds: int) -> list[float]:
    """Seconds of reading every safetensors file and writing `size` bytes, without computing anything."""
    buffer = bytearray(BUFFER)
    target = work / "floor.bin"
    times = []
    for _ in range(rounds):
        target.unlink(missing_ok=True)
        os.sync()
        started = time.perf_counter()
        for path in sorted(model.glob("*.safetensors")):
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
        with target.open("wb", buffering=0) as file:
            for start in range(0, size, BUFFER):
                file.write(memoryview(buffer)[: min(BUFFER, size - start)])
        times.append(time.perf_counter() - started)
    target.unlink()
    return times


def bytes_of(folder: Path) -> int:
    """Size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def run_result(folder: Path, threads: int, args: argparse.Namespace) -> dict[str, float]:
    """Load a result in a fresh process of the installed MNN and time it."""
    prompt = [(37 * number + 11) % args.prompt_ids for number in range(args.prompt_tokens)]
    action = {"do": "bench", "prompt": prompt, "tokens": args.decode_tokens, "repeat": 3}
    settings = {"memory": args.memory, "thread_num": threads, "sampler_type": "greedy", **mapping(folder)}
    run = run_model(folder / "config.json", [action], overrides=settings, timeout_s=600).require(str(folder))
    bench = run.results[0] or {}
    return {
        "load_s": run.load["load_s"],
        "load_cpu_s": run.load["load_cpu_s"],
        "rss_after_load": run.load["rss"],
        "prefill_tokens_per_s": bench["prefill_tokens_per_s"],
        "prefill_cpu_s": statistics.median(bench["prefill_cpu_s"]),
        "decode_tokens_per_s": bench["decode_tokens_per_s"],
        "decode_cpu_s": statistics.median(bench["decode_cpu_s"]),
    }


def mapping(folder: Path) -> dict[str, Any]:
    """Settings by which a result that maps its weights finds those of its first load again; for others none are mapped."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not config.get("use_mmap"):
        return {"use_mmap": False}
    return {"use_mmap": True, "tmp_path": str(folder.with_name(f"{folder.name}.mapped"))}


ROWS = (
    ("compile wall", "s", 1.0, "wall_s"),
    ("compile CPU", "s", 1.0, "cpu_s"),
    ("peak of the largest process", "MB", 1e6, "peak_process"),
    ("peak of all processes", "MB", 1e6, "peak_tree"),
    ("  of it not files", "MB", 1e6, "peak_anonymous"),
    ("load", "s", 1.0, "load_s"),
    ("memory after load", "MB", 1e6, "rss_after_load"),
    ("prefill", "tokens/s", 1.0, "prefill_tokens_per_s"),
    ("decode", "tokens/s", 1.0, "decode_tokens_per_s"),
)


def table(results: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Median, lowest and highest of both, and the ratio of the medians (official to Lading)."""
    official, lading = results["official"], results["lading"]
    lines = [f"{'':30}{'official':>28}{'Lading':>28}{'official/Lading':>17}"]
    for label, unit, scale, key in ROWS:
        if key not in official:
            continue
        cells = [spread([value / scale for value in values[key]]) for values in (official, lading)]
        ratio = statistics.median(official[key]) / statistics.median(lading[key])
        lines.append(f"{f'{label}, {unit}':30}{cells[0]:>28}{cells[1]:>28}{ratio:>17.2f}")
    return "\n".join(lines)


def spread(values: Sequence[float], to: str = "-") -> str:
    """The median with the lowest and the highest value."""
    digits = 0 if min(values) >= 100 else 2
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low}{to}{high})"


def speeds(runs: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]], sizes: Mapping[str, int]) -> str:
    """Medians of all results by number of threads, and how many times better they are than the exporter's."""
    lines = []
    for threads, results in runs.items():
        base = results["official"]
        cells = "".join(f"{label:>22}" for label, *_ in SPEEDS)
        lines.append(f"{f'{threads} threads':16}{'MB':>7}{cells}")
        for name, found in results.items():
            line = f"{name:16}{sizes[name] / 1e6:>7.0f}"
            for _, key, scale, more in SPEEDS:
                value, other = statistics.median(found[key]), statistics.median(base[key])
                ratio = value / other if more else other / value
                line += f"{f'{value * scale:.4g} ({ratio:.2f}x)':>22}"
            lines.append(line)
    return "\n".join(lines)


SPEEDS = (
    ("load, s", "load_s", 1, False),
    ("load, CPU s", "load_cpu_s", 1, False),
    ("prefill, tokens/s", "prefill_tokens_per_s", 1, True),
    ("prefill, CPU s", "prefill_cpu_s", 1, False),
    ("decode, tokens/s", "decode_tokens_per_s", 1, True),
    ("decode, CPU ms", "decode_cpu_s", 1e3, False),
)
"""Columns of the last table: label, key, factor, and whether more is better."""


def columns(samples: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """A list of records as lists by key."""
    return {key: [sample[key] for sample in samples] for key in samples[0]}


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    model = next((line for line in _text("/proc/cpuinfo").splitlines() if line.startswith("model name")), "")
    return {
        "processor": model.partition(":")[2].strip(),
        "processors": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "mnn": installed_version(),
    }


def compare(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All measurements as one record."""
    load_before = os.getloadavg()[0]
    entries = {entry.name: entry for entry in contenders(args, work)}
    pair = {name: entries[name] for name in ("official", "lading")}
    names = tuple(pair)
    for name, entry in entries.items():
        if name not in pair:
            entry.run()
    compiled = alternate(names, args.runs, lambda name: asdict(pair[name].run()))
    results = {name: columns(compiled[name]) for name in names}
    sizes = {name: bytes_of(entry.out) for name, entry in entries.items()}
    floors = floor(args.model, sizes["lading"], work, args.runs)
    runs = run_all(entries, args) if args.runtime_runs else {}
    for name in names:
        results[name].update(next(iter(runs.values()), {}).get(name, {}))
    options = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    commands = {name: list(entry.argv) for name, entry in entries.items()}
    return {
        "machine": {**machine(), "load_before": load_before},
        "options": options,
        "commands": commands,
        "results": results,
        "runs": runs,
        "output_bytes": sizes,
        "floor_s": floors,
    }


def run_all(entries: Mapping[str, Contender], args: argparse.Namespace) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Figures of all results by number of threads; results that map their weights were loaded once before."""
    found = {}
    for name, entry in entries.items():
        if "tmp_path" in mapping(entry.out):
            run_result(entry.out, args.threads[0], args)
            print(f"  first load: {name}", file=sys.stderr)
    for threads in args.threads:
        ran = alternate(
            tuple(entries),
            args.runtime_runs,
            lambda name, threads=threads: run_result(entries[name].out, threads, args),
        )
        found[str(threads)] = {name: columns(ran[name]) for name in entries}
    return found


def parse_arguments() -> argparse.Namespace:
    """Command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("--mnn-checkout", type=Path, required=True)
    parser.add_argument("--torch-python", type=Path, required=True, help="interpreter the exporter runs under")
    parser.add_argument("--lading-cmd", default=LADING, help=f"default: {LADING}")
    parser.add_argument("--official-cmd", default=OFFICIAL, help=f"default: {OFFICIAL}")
    parser.add_argument("--runs", type=int, default=5, help="compilations of each")
    parser.add_argument("--runtime-runs", type=int, default=5, help="loads of each result; 0 leaves them out")
    parser.add_argument("--more-lading", action="append", default=[], metavar="NAME=PIPELINE", help="pipeline and options "
                        "of compile of a further result; may be repeated")  # fmt: skip
    parser.add_argument("--more-official", action="append", default=[], metavar="NAME=OPTIONS", help="options of the "
                        "exporter of a further result; may be repeated")  # fmt: skip
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="numbers of threads to run results with")
    parser.add_argument("--memory", choices=("low", "normal", "high"), default="low")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--prompt-ids", type=int, default=1000, help="ids of the prompt are below this")
    parser.add_argument("--decode-tokens", type=int, default=32)
    parser.add_argument("--work", type=Path, help="folder that keeps both results; default: a temporary one")
    parser.add_argument("--json", type=Path, help="file for all figures")
    return parser.parse_args()


def main() -> None:
    """Measure, print, and write the record."""
    args = parse_arguments()
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        raise SystemExit("this kernel does not list the children of a process, so memory cannot be measured")
    with tempfile.TemporaryDirectory(prefix="lading-bench-") as temporary:
        work = (args.work or Path(temporary)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        record = compare(args, work)
    print(table(record["results"]))
    if record["runs"]:
        print(speeds(record["runs"], record["output_bytes"]))
    for name, size in record["output_bytes"].items():
        print(f"{name} output: {size / 1e6:.1f} MB")
    print(f"floor (read the checkpoint, write as many bytes): {spread(record['floor_s'])} s")
    print(f"load average before the first run: {record['machine']['load_before']:.2f}")
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
