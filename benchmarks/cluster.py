"""What a cluster costs beside threads, and where large models would end on many machines.

    python -m benchmarks.make_checkpoint OUT
    python -m benchmarks.cluster OUT --runs 3
    python -m benchmarks.cluster

The first compiles a checkpoint with threads and with 1, 2 and 4 local workers, alternating, and prints wall and
processor time, the start of the cluster apart. The second measures what each kind of task takes on one thread of this
machine, at sizes that it can hold, and plays the schedule of a compilation of the shapes of Llama 70B and Kimi-K2 on
machines that share a file system.

The schedule is that of the compiler: windows of text side by side and layers in turn, sums of a layer beside the next
one, then one task for each matrix, the largest first, then rows; every task goes to whoever is free. Linear algebra of
a task has one thread where the compiler gives it one. Of the network this is assumed: every machine has a link of its
own, all together get no more than the file system gives, tasks share both evenly with as many as are at work on average,
and the client needs the measured time to send a task. Whatever is read comes over the network each time; nothing is cached.
"""

from __future__ import annotations

import argparse
import ctypes
import heapq
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from ir.base.executor import BUNDLE_ELEMENTS
from ir.base.store import CACHE_VARIABLE
from ir.quant.methods.base import METHODS
from ir.quant.statistics.moments import Moments
from ir.quant.statistics.second_moments import factorize
from ir.quant.statistics.sums import MomentSums
from ir.quant.storage import Storage
from ir.quant.weight import thread_scratch
from ir.tensor.one_thread import one_thread

TOKENS, WINDOW = 8192, 512
ROUNDS = 8
"""Times that a stage is played, each with the speed that the number of tasks at work leaves."""
WORKERS = (None, "local:1", "local:2", "local:4")


# ---- what a cluster costs ----


def compile_once(model: Path, out: Path, cluster: str | None, more: Sequence[str]) -> dict[str, float]:
    """Wall and processor seconds of a compilation from nothing, and those of its phases."""
    with tempfile.TemporaryDirectory() as cache:
        argv = [sys.executable, "-m", "tools.compile", str(model), "-o", str(out), "--verify", "none", "--json", *more]
        argv += ["--cluster", cluster] if cluster else []
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        shutil.rmtree(out, ignore_errors=True)
        ended = subprocess.run(argv, env={**os.environ, CACHE_VARIABLE: cache}, capture_output=True, text=True)
        wall = time.perf_counter() - started
        _wait_for_orphans()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode:
        raise SystemExit(ended.stdout + ended.stderr)
    seconds = json.loads(ended.stdout)["seconds"]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "cpu": cpu, "work": seconds["passes"] + seconds["write"]}


SUBREAPER = 36
"""``PR_SET_CHILD_SUBREAPER`` of Linux: orphans of descendants become children of this process."""


def _wait_for_orphans() -> None:
    """Wait for what the command has left behind for a moment, the process that workers are forked from, to count it."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


def compare(model: Path, runs: int, more: Sequence[str]) -> None:
    """Print the medians, and ratios to threads."""
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    found: dict[str | None, list[dict[str, float]]] = {workers: [] for workers in WORKERS}
    with tempfile.TemporaryDirectory() as work:
        for number in range(runs):
            for workers in WORKERS[:: 1 if number % 2 else -1]:
                found[workers].append(compile_once(model, Path(work) / "out", workers, more))
    print(f"load average {os.getloadavg()[0]:.1f}, medians of {runs}, ratios to threads in brackets")
    print("| workers | wall, s | passes and writing, s | CPU, s |\n|---|---|---|---|")
    base = {key: median(item[key] for item in found[None]) for key in ("wall", "work", "cpu")}
    for workers, items in found.items():
        cells = [
            f"{median(item[key] for item in items):.2f} ({median(item[key] for item in items) / base[key]:.2f})"
            for key in ("wall", "work", "cpu")
        ]
        print(f"| {workers or 'threads'} | {' | '.join(cells)} |")


# ---- what tasks take ----


@dataclass(frozen=True)
class Rates:
    """Seconds on one thread.

    Attributes:
        factor: of a factorization, for each feature cubed.
        gptq: for each weight and feature of its row.
        code: for each weight, with any method.
        sums: for each position and feature squared.
        product: for each multiplication of an evaluation.
        digest: for each byte.
        send: for a task, at the client.
    """

    factor: float
    gptq: float
    code: float
    sums: float
    product: float
    digest: float
    send: float


def best(run: Callable[[], object], times: int = 3) -> float:
    """Processor seconds of this thread for the fastest of some calls, so that other work does not count."""
    found = []
    for _ in range(times):
        started = time.thread_time()
        run()
        found.append(time.thread_time() - started)
    return min(found)


def measured(features: int = 2048, rows: int = 1024) -> Rates:
    """What one thread of this machine takes."""
    import hashlib

    rng = np.random.default_rng(0)
    x = rng.standard_normal((4096, features), np.float32)
    second = x.T @ x / len(x) + np.eye(features, dtype=np.float32)
    weight = rng.standard_normal((rows, features), np.float32)
    ends = np.ones(features, np.float32)
    moments = Moments("benchmark", len(x), second, 0 * ends, -ends, ends)

    def quantize(method: str) -> Callable[[], object]:
        storage = Storage(bits=4, block=64, method=method)
        given = moments if method == "gptq" else None
        return lambda: METHODS[method].quantize(weight, storage, thread_scratch(), given)

    def add() -> None:
        sums = MomentSums(features)
        sums.add(x)

    data = bytes(64 << 20)
    with one_thread():
        factor = best(lambda: factorize(second), 2)
        quantize("gptq")()
        code, gptq = best(quantize("rtn")), best(quantize("gptq"))
        return Rates(
            factor / features**3,
            max(gptq - code, 0.0) / (rows * features * features),
            code / (rows * features),
            best(add) / (len(x) * features**2),
            best(lambda: x[:512] @ second) / (512 * features**2),
            best(lambda: hashlib.sha256(data)) / len(data),
            sending(),
        )


def sending(tasks: int = 200) -> float:
    """Seconds for which the client is busy with one task."""
    from concurrent.futures import ThreadPoolExecutor

    from tools.cluster.connect import working_on

    with ThreadPoolExecutor(1) as pool, working_on("local:1", pool) as executor:
        list(executor.run_jobs(abs, range(4)))
        started = time.process_time()
        for _ in executor.run_jobs(abs, range(tasks)):
            pass
        return (time.process_time() - started) / tasks


# ---- shapes ----


@dataclass(frozen=True)
class Input:
    """What flows into some matrices.

    Attributes:
        features: of a position.
        rows: of all matrices that read it, each a task of its own.
        share: of the positions that get there, 1 but for experts.
        slow: the matrices are quantized by GPTQ; others by rounding, or carried over.
    """

    features: int
    rows: tuple[int, ...]
    share: float = 1.0
    slow: bool = True


@dataclass(frozen=True)
class Shape:
    """A model: layers of inputs, alike ones counted, the rows of logits, and bytes of a weight in the checkpoint."""

    name: str
    layers: tuple[tuple[int, tuple[Input, ...]], ...]
    vocabulary: int
    hidden: int
    stored: float

    def inputs(self) -> Iterable[Input]:
        """All of them."""
        for count, inputs in self.layers:
            yield from inputs * count


def llama_70b() -> Shape:
    """Llama 3 70B in bfloat16."""
    layer = (
        Input(8192, (8192, 1024, 1024)),
        Input(8192, (8192,)),
        Input(8192, (28672, 28672)),
        Input(28672, (8192,)),
    )
    return Shape("70B", ((80, layer),), 128256, 8192, 2)


def kimi_k2(slow: bool) -> Shape:
    """Kimi-K2; experts by GPTQ, or in 4 bits already, which are carried over."""
    attention = (Input(7168, (1536, 576)), Input(1536, (12288,)), Input(512, (16384,)), Input(8192, (7168,)))
    dense = (*attention, Input(7168, (18432, 18432)), Input(18432, (7168,)))
    expert = (Input(7168, (2048, 2048), 8 / 384, slow), Input(2048, (7168,), 8 / 384, slow))
    sparse = (*attention, Input(7168, (2048, 2048)), Input(2048, (7168,)), *expert * 384)
    name = "Kimi-K2, experts by GPTQ" if slow else "Kimi-K2, int4 experts carried over"
    return Shape(name, ((1, dense), (60, sparse)), 163840, 7168, 1 if slow else 0.56)


# ---- the schedule ----


@dataclass(frozen=True)
class Cluster:
    """Machines, tasks that each runs at a time, threads of each machine, and bytes per second of a link and of the file
    system."""

    machines: int
    tasks: int
    threads: int
    link: float
    files: float


class Schedule:
    """Tasks given to whoever is free; counts how long all were busy, and with what."""

    def __init__(self, cluster: Cluster, rates: Rates) -> None:
        self.cluster = cluster
        self.rates = rates
        self.now = self.busy = self.moving = 0.0
        self.tasks = 0

    def stage(self, tasks: Sequence[tuple[float, float]]) -> None:
        """Run tasks of (seconds, bytes over the network) in order, and wait for all."""
        if not tasks:
            return
        where = self.cluster
        active, slots = 1.0, where.machines * where.tasks
        for _ in range(ROUNDS):
            speed = min(where.link / max(1.0, active / where.machines), where.files / max(1.0, active))
            free = [self.now] * slots
            for number, (seconds, moved) in enumerate(tasks):
                began = max(heapq.heappop(free), self.now + number * self.rates.send)
                heapq.heappush(free, began + seconds + moved / speed)
            moving = sum(moved for _, moved in tasks) / speed
            busy = sum(seconds for seconds, _ in tasks) + moving
            active = (active + busy / (max(free) - self.now)) / 2
        self.busy += busy
        self.moving += moving
        self.tasks += len(tasks)
        self.now = max(free)

    def alone(self, seconds: float, moved: float) -> None:
        """What one machine does while the others wait."""
        moving = moved / min(self.cluster.link, self.cluster.files)
        self.now += max(seconds, moving)


def play(shape: Shape, cluster: Cluster, rates: Rates, calibrated: bool) -> tuple[Schedule, dict[str, float]]:
    """The schedule of a compilation, and when each phase ends."""
    run, ends = Schedule(cluster, rates), {}
    threads = max(1, cluster.threads // cluster.tasks)
    if calibrated:
        windows = min(TOKENS // WINDOW, cluster.machines * cluster.tasks)
        before: list[tuple[float, float]] = []
        for count, inputs in shape.layers:
            for _ in range(count):
                enough = len(before) >= cluster.machines * cluster.tasks
                run.stage([*_windows(inputs, windows, shape, rates, threads), *(before if enough else [])])
                before = [*([] if enough else before), *(_sums(item, rates, threads) for item in inputs if item.slow)]
        run.stage(before)
        ends["calibrated"] = run.now
    slow: list[tuple[float, float]] = []
    fast: list[tuple[float, float]] = []
    for item in (*shape.inputs(), Input(shape.hidden, (shape.vocabulary,))):
        for rows in item.rows:
            if calibrated and item.slow:
                slow.append(_matrix(item, rows, shape, rates, threads))
            else:
                fast += _rows(item, rows, shape, rates, threads)
    run.stage([*sorted(slow, reverse=True), *fast])
    ends["written"] = run.now
    written = 0.56 * sum(item.features * sum(item.rows) for item in shape.inputs())
    run.alone(rates.digest * written, written)
    ends["digested"] = run.now
    return run, ends


def _windows(inputs: Sequence[Input], jobs: int, shape: Shape, rates: Rates, threads: int) -> list[tuple[float, float]]:
    """Evaluate a layer: weights are read by every task, positions and live values are kept."""
    tokens = TOKENS / jobs
    weights = sum(item.features * sum(item.rows) for item in inputs)
    products = tokens * sum(item.features * sum(item.rows) * item.share for item in inputs)
    kept = 4 * tokens * (sum(item.features * item.share for item in inputs if item.slow) + 2 * shape.hidden)
    seconds = (products * rates.product + weights * rates.code) / threads + kept * rates.digest
    return [(seconds, weights * shape.stored + kept)] * jobs


def _sums(item: Input, rates: Rates, threads: int) -> tuple[float, float]:
    positions, size = TOKENS * item.share, 2 * item.features**2
    slabs = min(threads, -(-item.features // 1024))
    seconds = positions * item.features**2 * rates.sums / slabs + size * rates.digest
    return seconds, 4 * positions * item.features + size


def _rows(item: Input, rows: int, shape: Shape, rates: Rates, threads: int) -> list[tuple[float, float]]:
    """Round or carry over rows of a matrix, a bundle a task."""
    weights = rows * item.features
    count = -(-weights // (BUNDLE_ELEMENTS * threads))
    return [(weights * rates.code / threads / count, weights * (shape.stored + 0.56) / count)] * count


def _matrix(item: Input, rows: int, shape: Shape, rates: Rates, threads: int) -> tuple[float, float]:
    """Quantize a matrix, keep its codes, and write them; the factorization has one thread, rows have all."""
    weights = rows * item.features
    seconds = weights * (rates.code + item.features * rates.gptq) / threads
    seconds += item.features**3 * rates.factor + 1.1 * weights * rates.digest
    return seconds, weights * (shape.stored + 0.56 + 1.1) + 2 * item.features**2


def memory(shape: Shape, cluster: Cluster) -> float:
    """Bytes of a machine whose tasks all quantize the widest matrices: statistics, their factor and its making."""
    widest = max(item.features for item in shape.inputs() if item.slow)
    return cluster.tasks * (4 * 4 * widest**2 + 0.5e9)


def schedule(args: argparse.Namespace) -> None:
    """Print where each model would end."""
    rates = measured()
    print("one thread, measured:", json.dumps({key: float(f"{value:.3g}") for key, value in vars(rates).items()}))
    print(
        f"{args.threads} threads and {args.tasks} tasks a machine, links of {args.link:g} GB/s, "
        f"a file system of {args.files:g} GB/s, {TOKENS} tokens"
    )
    print("| model | machines | calibrated | written | digested | busy | network's share | memory | tasks |")
    print("|---|---|---|---|---|---|---|---|---|")
    cases = [(llama_70b(), False), (llama_70b(), True), (kimi_k2(False), True), (kimi_k2(True), True)]
    for shape, calibrated in cases:
        for machines in (1, 4, 16, 64):
            cluster = Cluster(machines, args.tasks, args.threads, args.link * 1e9, args.files * 1e9)
            run, ends = play(shape, cluster, rates, calibrated)
            cells = [_minutes(ends.get(key)) for key in ("calibrated", "written", "digested")]
            used = run.busy / (ends["written"] * machines * args.tasks)
            what = shape.name if calibrated else f"{shape.name}, default"
            need = f"{memory(shape, cluster) / 1e9:.0f} GB" if calibrated else "1 GB"
            print(
                f"| {what} | {machines} | {' | '.join(cells)} | {used:.0%} | {run.moving / run.busy:.0%} | {need} | "
                f"{run.tasks:,} |"
            )


def _minutes(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds / 60:.1f} min"


def main() -> None:
    """Compare, or play the schedule."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, nargs="?", help="checkpoint to compile; without one the schedule is played")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--passes", default="default", help="pipeline of the comparison")
    parser.add_argument("--calibration", type=Path, help="text for it")
    parser.add_argument("--threads", type=int, default=32, help="threads of a machine")
    parser.add_argument("--tasks", type=int, default=4, help="tasks that a machine runs at a time")
    parser.add_argument("--link", type=float, default=1.25, help="GB/s of a machine's link")
    parser.add_argument("--files", type=float, default=10.0, help="GB/s of the file system")
    args = parser.parse_args()
    if args.model is None:
        schedule(args)
        return
    more = ["--passes", args.passes]
    more += ["--calibration", str(args.calibration)] if args.calibration else []
    compare(args.model, args.runs, more)


if __name__ == "__main__":
    main()
