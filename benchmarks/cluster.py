"""What a cluster costs beside threads, and where large models would end on many machines.

    python -m benchmarks.make_checkpoint OUT
    python -m benchmarks.cluster OUT --runs 3
    python -m benchmarks.cluster

The first compiles a checkpoint with threads and with 1, 2 and 4 local workers, alternating, and prints wall and
processor time, the start of the cluster apart. The second measures what each kind of task takes on one thread of this
machine, at sizes that it can hold, and plays the schedule of a compilation of the shapes of Llama 70B and Kimi-K2 on
machines that share a file system.

The schedule is that of the compiler. `calibrate`: windows of text side by side and layers in turn, sums of a layer beside
the next one. Blocks: some groups of each shape. `recalibrate`: from one input of weights to the next sums, the matrices
that read it, and the windows' way to the next input, each waiting for the one before. With a budget before that: errors of
every matrix, each matrix alone stored otherwise on some text, and the plan as a whole. Then rows are written. Without
statistics there are rows alone, and with `gptq` instead of `gptaq` one task for each matrix instead of `recalibrate`.

Every task goes to whoever is free. Linear algebra of a task has one thread where the compiler gives it one. Of the
network this is assumed: every machine has a link of its own, all together get no more than the file system gives, tasks
share both evenly with as many as are at work on average, and the client needs the measured time to send a task and to
begin a stage. Whatever is read comes over the network each time; nothing is cached.
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
from typing import Any

import numpy as np

from ir.base.executor import BUNDLE_ELEMENTS
from ir.base.store import CACHE_VARIABLE
from ir.evaluate.replaced_weights import FEW
from ir.quant.methods.base import METHODS
from ir.quant.statistics import second_moments
from ir.quant.statistics.moments import Moments
from ir.quant.statistics.sums import SLAB, MomentSums
from ir.quant.storage import Storage
from ir.quant.weight import thread_scratch
from ir.tensor.one_thread import one_thread
from passes.precision.measured.prices import NEIGHBOURS

TOKENS, WINDOW = 8192, 512
PROBED = 128
"""Tokens that each matrix alone is stored otherwise on, in models of this size."""
ROUNDS = 8
"""Times that a stage is played, each with the speed that the number of tasks at work leaves."""


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


def compare(model: Path, runs: int, numbers: Sequence[int], more: Sequence[str]) -> None:
    """Print the medians with threads and with numbers of local workers, and ratios to threads."""
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    kinds = [None, *(f"local:{number}" for number in numbers)]
    found: dict[str | None, list[dict[str, float]]] = {workers: [] for workers in kinds}
    with tempfile.TemporaryDirectory() as work:
        for number in range(runs):
            for workers in kinds[:: -1 if number % 2 else 1]:
                found[workers].append(compile_once(model, Path(work) / "out", workers, more))
                print(workers or "threads", found[workers][-1], file=sys.stderr, flush=True)
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
        share: of a factorization, for each feature cubed, the part that threads of a task share.
        factor: of a factorization, for each feature squared, the part that one thread does.
        gptq, gptaq: for each weight and feature of its row.
        code: for each weight, with any method.
        sums: for each position and feature squared.
        product: for each multiplication of an evaluation.
        digest: for each byte.
        send: for a task, at the client.
        wait: from the last result of a stage to the first of the next, when tasks take no time.
    """

    share: float
    factor: float
    gptq: float
    gptaq: float
    code: float
    sums: float
    product: float
    digest: float
    send: float
    wait: float


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
    behind = Moments("behind", len(x), second, 0 * ends, -ends, ends, lag=weight)

    def quantize(method: str, given: Moments | None = None) -> Callable[[], object]:
        storage = Storage(bits=4, block=64, method=method)
        return lambda: METHODS[method].quantize(weight, storage, thread_scratch(), given)

    def add() -> None:
        sums = MomentSums(features)
        sums.add(x)

    data = bytes(64 << 20)
    with one_thread():
        shared, alone = _factoring(second)
        code = best(quantize("rtn"))
        for method, given in (("gptq", moments), ("gptaq", behind)):
            quantize(method, given)()
        gptq, gptaq = best(quantize("gptq", moments)), best(quantize("gptaq", behind))
        return Rates(
            shared / features**3,
            alone / features**2,
            max(gptq - code, 0.0) / (rows * features * features),
            max(gptaq - code, 0.0) / (rows * features * features),
            code / (rows * features),
            best(add) / (len(x) * features**2),
            best(lambda: x[:512] @ second) / (512 * features**2),
            best(lambda: hashlib.sha256(data)) / len(data),
            *sending(),
        )


def _factoring(second: np.ndarray) -> tuple[float, float]:
    """Seconds of a factorization that threads share, and of the rest."""
    found: list[tuple[float, float]] = []
    eliminate, spent = second_moments._eliminate, [0.0]

    def timed(*args: Any) -> None:
        started = time.thread_time()
        eliminate(*args)
        spent[0] += time.thread_time() - started

    second_moments._eliminate = timed
    try:
        for _ in range(3):
            spent[0] = 0.0
            whole = best(lambda: second_moments.factorize(second), 1)
            found.append((whole, spent[0]))
    finally:
        second_moments._eliminate = eliminate
    whole, shared = min(found)
    return shared, whole - shared


def sending(tasks: int = 200, stages: int = 30) -> tuple[float, float]:
    """Seconds for which the client is busy with one task, and seconds of a stage of one task that does nothing."""
    from concurrent.futures import ThreadPoolExecutor

    from tools.cluster.connect import working_on

    with ThreadPoolExecutor(1) as pool, working_on("local:1", pool) as executor:
        list(executor.run_jobs(abs, range(4)))
        started = time.process_time()
        for _ in executor.run_jobs(abs, range(tasks)):
            pass
        busy = (time.process_time() - started) / tasks
        waits = []
        for _ in range(stages):
            began = time.perf_counter()
            list(executor.run_jobs(abs, [1]))
            waits.append(time.perf_counter() - began)
        return busy, median(waits)


# ---- shapes ----


@dataclass(frozen=True)
class Input:
    """What flows into some matrices.

    Attributes:
        features: of a position.
        rows: of all matrices that read it, each a task of its own.
        share: of the positions that get there, 1 but for experts.
        slow: the matrices are quantized by GPTQ; others by rounding, or carried over.
        after: how many inputs of its layer lie before it, one behind the other.
    """

    features: int
    rows: tuple[int, ...]
    share: float = 1.0
    slow: bool = True
    after: int = 0


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

    def head(self) -> Input:
        """The logits matrix."""
        return Input(self.hidden, (self.vocabulary,), slow=False)

    def slow_kinds(self) -> list[Input]:
        """One of each kind that is quantized by statistics."""
        return list(dict.fromkeys(item for _, inputs in self.layers for item in inputs if item.slow))


def llama_70b() -> Shape:
    """Llama 3 70B in bfloat16."""
    layer = (
        Input(8192, (8192, 1024, 1024)),
        Input(8192, (8192,), after=1),
        Input(8192, (28672, 28672), after=2),
        Input(28672, (8192,), after=3),
    )
    return Shape("70B", ((80, layer),), 128256, 8192, 2)


def kimi_k2(slow: bool) -> Shape:
    """Kimi-K2; experts by GPTQ, or in 4 bits already, which are carried over."""
    attention = (
        Input(7168, (1536, 576)),
        Input(1536, (12288,), after=1),
        Input(512, (16384,), after=1),
        Input(8192, (7168,), after=2),
    )
    dense = (*attention, Input(7168, (18432, 18432), after=3), Input(18432, (7168,), after=4))
    expert = (
        Input(7168, (2048, 2048), 8 / 384, slow, after=3),
        Input(2048, (7168,), 8 / 384, slow, after=4),
    )
    shared = (Input(7168, (2048, 2048), after=3), Input(2048, (7168,), after=4))
    name = "Kimi-K2, experts by GPTQ" if slow else "Kimi-K2, int4 experts carried over"
    return Shape(name, ((1, dense), (60, (*attention, *shared, *expert * 384))), 163840, 7168, 1 if slow else 0.56)


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

    @property
    def threads_of_task(self) -> int:
        """Threads of one task."""
        return max(1, self.threads // self.tasks)


class Schedule:
    """Tasks given to whoever is free; counts how long all were busy, and with what."""

    def __init__(self, cluster: Cluster, rates: Rates) -> None:
        self.cluster = cluster
        self.rates = rates
        self.now = self.busy = self.moving = 0.0
        self.tasks = 0
        self.slots = cluster.machines * cluster.tasks

    def jobs(self) -> int:
        """Tasks that windows are given to."""
        return min(TOKENS // WINDOW, self.slots)

    def stage(self, tasks: Sequence[tuple[float, float]]) -> None:
        """Run tasks of (seconds, bytes over the network) in order, and wait for all."""
        if not tasks:
            return
        where = self.cluster
        active, slots = 1.0, where.machines * where.tasks
        began = self.now + self.rates.wait
        for _ in range(ROUNDS):
            speed = min(where.link / max(1.0, active / where.machines), where.files / max(1.0, active))
            free = [began] * min(slots, len(tasks))
            for number, (seconds, moved) in enumerate(tasks):
                start = max(heapq.heappop(free), began + number * self.rates.send)
                heapq.heappush(free, start + seconds + moved / speed)
            moving = sum(moved for _, moved in tasks) / speed
            busy = sum(seconds for seconds, _ in tasks) + moving
            active = (active + busy / (max(free) - began)) / 2
        self.busy += busy
        self.moving += moving
        self.tasks += len(tasks)
        self.now = max(free)

    def repeat(self, other: Schedule, times: int) -> None:
        """Add what another schedule did, so many times."""
        self.busy += times * other.busy
        self.moving += times * other.moving
        self.tasks += times * other.tasks
        self.now += times * other.now


HOW = ("default", "gptq", "calibrated", "mixed")


def play(shape: Shape, cluster: Cluster, rates: Rates, how: str) -> tuple[Schedule, dict[str, float]]:
    """The schedule of a compilation, and when each phase ends."""
    run, ends = Schedule(cluster, rates), {}
    if how != "default":
        _calibrate(run, shape)
        ends["calibrated"] = run.now
    if how == "mixed":
        _price(run, shape)
        ends["chosen"] = run.now
    elif how == "calibrated":
        # Three groups of each shape in four blocks.
        run.stage(_bundled(run, [_errors(run, item, 4) for item in shape.slow_kinds() for _ in range(3)]))
        ends["chosen"] = run.now
    if how in ("calibrated", "mixed"):
        _recalibrate(run, shape)
        if how == "mixed":
            _compare(run, shape, 1, 2)
        ends["followed"] = run.now
    slow: list[tuple[float, float]] = []
    fast: list[tuple[float, float]] = []
    for item in (*shape.inputs(), shape.head()):
        for rows in item.rows:
            if how == "gptq" and item.slow:
                slow.append(_matrix(run, item, rows, shape, rates.gptq))
            else:
                fast += _rows(run, item, rows, shape, kept=how != "default" and item.slow)
    run.stage([*sorted(slow, reverse=True), *fast])
    ends["written"] = run.now
    return run, ends


def _calibrate(run: Schedule, shape: Shape) -> None:
    windows = run.jobs()
    before: list[tuple[float, float]] = []
    for count, inputs in shape.layers:
        for _ in range(count):
            enough = len(before) >= run.slots
            run.stage([*_windows(run, inputs, windows, shape), *(before if enough else [])])
            before = [*([] if enough else before), *(_sums(run, item, 0) for item in inputs if item.slow)]
    run.stage(before)


def _price(run: Schedule, shape: Shape) -> None:
    """What a budget takes: errors of every matrix at two widths and of some at twenty, and matrices alone stored
    otherwise."""
    few = [_errors(run, item, 3) for item in shape.inputs() if item.slow]
    many = [_errors(run, item, 20) for item in shape.slow_kinds()]
    run.stage(_bundled(run, [*many, *few]))
    probes = sum(_probes(count, inputs) for count, inputs in shape.layers) + 3
    jobs = min(run.slots, max(min(probes, FEW), probes // FEW))
    # Each task has the float model, and of its variants half a model on average.
    _compare(run, shape, jobs, 1 + probes / jobs / 2)


def _probes(count: int, inputs: Sequence[Input]) -> int:
    """Variants: each matrix of some neighbouring layers, and the experts' three in every layer."""
    single = sum(len(item.rows) for item in inputs if item.slow and item.share == 1)
    runs = count if count <= 2 else 2 + -(-(count - 2) // NEIGHBOURS)
    return single * runs + count * 3 * any(item.slow and item.share < 1 for item in inputs)


def _compare(run: Schedule, shape: Shape, jobs: int, models: float) -> None:
    """Evaluate so many models in each task, on the tokens that large ones are compared on."""
    weights = sum(item.features * sum(item.rows) for item in shape.inputs())
    active = sum(item.features * sum(item.rows) * item.share for item in shape.inputs())
    products = models * PROBED * (active + shape.hidden * shape.vocabulary)
    seconds = (products * run.rates.product + 2 * weights * run.rates.code) / run.cluster.threads_of_task
    run.stage([(seconds, weights * (shape.stored + 1.1))] * jobs)


def _recalibrate(run: Schedule, shape: Shape) -> None:
    """From inputs to those behind them: sums, matrices, windows, each after the other."""
    windows = run.jobs()
    for count, inputs in shape.layers:
        layer = Schedule(run.cluster, run.rates)
        for step in range(1 + max(item.after for item in inputs)):
            members = [item for item in inputs if item.after == step]
            slow = [item for item in members if item.slow]
            layer.stage([_sums(run, item, _errors_of(item)) for item in slow])
            matrices = [_matrix(run, item, rows, shape, run.rates.gptaq) for item in slow for rows in item.rows]
            layer.stage(sorted(matrices, reverse=True))
            layer.stage(_windows(run, members, windows, shape, tracks=2))
        run.repeat(layer, count)


def _errors_of(item: Input) -> int:
    """Length of an error: of the outputs of a single matrix that has no more of them than inputs, else of the input."""
    return item.rows[0] if len(item.rows) == 1 and item.rows[0] <= item.features else item.features


def _errors(run: Schedule, item: Input, storages: int) -> tuple[float, float]:
    """Errors of weights that share an input, in some storages, from samples of their rows; all on one thread."""
    sampled = min(256, sum(item.rows))
    each = sampled * item.features * (run.rates.code + item.features * (run.rates.gptq + run.rates.product))
    factor = item.features**3 * run.rates.share + item.features**2 * run.rates.factor
    return factor + storages * each, 2 * item.features**2 + 2 * sampled * item.features


def _bundled(run: Schedule, tasks: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Tasks of one thread each, as many at a time as a process has."""
    size = run.cluster.threads_of_task
    parts = [tasks[start : start + size] for start in range(0, len(tasks), size)]
    return [(max(seconds for seconds, _ in part), sum(moved for _, moved in part)) for part in parts]


def _factor(run: Schedule, features: int) -> float:
    """Seconds of a factorization by all threads of a task."""
    return features**3 * run.rates.share / run.cluster.threads_of_task + features**2 * run.rates.factor


def _windows(
    run: Schedule, inputs: Sequence[Input], jobs: int, shape: Shape, tracks: int = 1
) -> list[tuple[float, float]]:
    """Evaluate a part of a layer, of the float model or of both: weights are read by every task, positions and live
    values are kept."""
    tokens, rates = TOKENS / jobs, run.rates
    weights = sum(item.features * sum(item.rows) for item in inputs)
    replaced = sum(item.features * sum(item.rows) for item in inputs if item.slow) * (tracks - 1)
    products = tokens * sum(item.features * sum(item.rows) * item.share for item in inputs)
    kept = 4 * tokens * tracks * (sum(item.features * item.share for item in inputs if item.slow) + 2 * shape.hidden)
    seconds = (tracks * products * rates.product + (weights + replaced) * rates.code) / run.cluster.threads_of_task
    read = weights * shape.stored + 1.1 * replaced
    return [(seconds + kept * rates.digest, read + kept)] * jobs


def _sums(run: Schedule, item: Input, errors: int) -> tuple[float, float]:
    """Add up the positions at an input, and the products of errors with them."""
    rates, positions = run.rates, TOKENS * item.share
    size = 2 * item.features**2 + 4 * errors * item.features
    slabs = min(run.cluster.threads_of_task, -(-item.features // SLAB))
    seconds = positions * item.features**2 * rates.sums / slabs
    if errors:
        seconds += (
            positions * item.features * errors * rates.product / min(run.cluster.threads_of_task, -(-errors // SLAB))
        )
    return seconds + size * rates.digest, 4 * positions * (item.features + errors) + size


def _rows(run: Schedule, item: Input, rows: int, shape: Shape, kept: bool) -> list[tuple[float, float]]:
    """Write rows of a matrix, a bundle a task: rounded, carried over, or from the codes that were kept."""
    weights, threads = rows * item.features, run.cluster.threads_of_task
    count = -(-weights // (BUNDLE_ELEMENTS * threads))
    read = 1.1 if kept else shape.stored
    return [(weights * run.rates.code / threads / count, weights * (read + 0.56) / count)] * count


def _matrix(run: Schedule, item: Input, rows: int, shape: Shape, each: float) -> tuple[float, float]:
    """Quantize a matrix and keep its codes."""
    weights = rows * item.features
    seconds = weights * (run.rates.code + item.features * each) / run.cluster.threads_of_task
    seconds += _factor(run, item.features) + 1.1 * weights * run.rates.digest
    return seconds, weights * (shape.stored + 1.1) + 2 * item.features**2


def memory(shape: Shape, cluster: Cluster, how: str) -> float:
    """Bytes of one process that quantizes the widest matrix: statistics, their factor and its making, and behind
    `recalibrate` what rows make up for, as it is read and as it is worked with."""
    widest = max((item for item in shape.inputs() if item.slow), key=lambda item: item.features)
    lag = 8 * _errors_of(widest) * widest.features if how in ("calibrated", "mixed") else 0
    return 4 * 4 * widest.features**2 + lag + 0.5e9


def schedule(args: argparse.Namespace) -> None:
    """Print where each model would end."""
    rates = measured()
    print("one thread, measured:", json.dumps({key: float(f"{value:.3g}") for key, value in vars(rates).items()}))
    print(
        f"load average {os.getloadavg()[0]:.1f}; {args.threads} threads and {args.tasks} tasks a machine, links of "
        f"{args.link:g} GB/s, a file system of {args.files:g} GB/s, {TOKENS} tokens; a process needs the memory shown"
    )
    print("| model | machines | calibrated | chosen | followed | written | busy | network | memory | tasks |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for shape in (llama_70b(), kimi_k2(False), kimi_k2(True)):
        for how in HOW:
            for machines in (1, 4, 16, 64):
                cluster = Cluster(machines, args.tasks, args.threads, args.link * 1e9, args.files * 1e9)
                run, ends = play(shape, cluster, rates, how)
                cells = [_minutes(ends.get(key)) for key in ("calibrated", "chosen", "followed", "written")]
                used = run.busy / (ends["written"] * run.slots)
                need = f"{memory(shape, cluster, how) / 1e9:.0f} GB" if how != "default" else "1 GB"
                print(
                    f"| {shape.name}, `{how}` | {machines} | {' | '.join(cells)} | {used:.0%} | "
                    f"{run.moving / run.busy:.0%} | {need} | {run.tasks:,} |"
                )


def _minutes(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds / 60:.{1 if seconds < 600 else 0}f} min"


def main() -> None:
    """Compare, or play the schedule."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, nargs="?", help="checkpoint to compile; without one the schedule is played")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="numbers of local workers")
    parser.add_argument("--passes", default="default", help="pipeline of the comparison")
    parser.add_argument("--calibration", type=Path, help="text for it")
    parser.add_argument("--threads", type=int, default=32, help="threads of a machine")
    parser.add_argument("--tasks", type=int, default=1, help="tasks that a machine runs at a time")
    parser.add_argument("--link", type=float, default=1.25, help="GB/s of a machine's link")
    parser.add_argument("--files", type=float, default=10.0, help="GB/s of the file system")
    args = parser.parse_args()
    if args.model is None:
        schedule(args)
        return
    more = ["--passes", args.passes]
    more += ["--calibration", str(args.calibration)] if args.calibration else []
    compare(args.model, args.runs, args.workers, more)


if __name__ == "__main__":
    main()
