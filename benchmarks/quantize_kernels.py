"""Weights per second of the chain file rows -> codes -> packed bytes and alpha, for each storage and thread count.

    python -m benchmarks.quantize_kernels --threads 2 --json results.json

Every case reads its source from a file in the page cache. The best of several rounds counts, because other work on the
machine only ever slows a round down. ``load`` is the share of the machine's processors that other processes took during
the best round; figures with a load above a few percent are too low, those for several threads above all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from backends.mnn.write.packing import packed_bytes, quantize_pack, row_alignment
from ir.base.types import DTYPES, TensorType
from ir.quant.storage import Storage
from ir.quant.weight import QuantizedWeight, thread_scratch
from ir.tensor.files import FILES, FileTensor

JOB_BYTES = 16 << 20
Job = Callable[[int, int], object]


def sources(folder: Path, rows: int, features: int) -> dict[str, FileTensor]:
    """The same Gaussian matrix as bf16, f16 and f32 files."""
    matrix = np.random.default_rng(0).standard_normal((rows, features), np.float32) * np.float32(0.02)
    made = {}
    for name in ("bf16", "f16", "f32"):
        dtype = DTYPES[name]
        matrix.astype(dtype.numpy).tofile(folder / name)
        made[name] = FileTensor(folder / name, 0, TensorType(dtype, (rows, features)), name)
    return made


def cases(made: dict[str, FileTensor]) -> Iterator[tuple[str, int, Job]]:
    """Label, rows that a job's length must be a multiple of, and the job over a range of rows."""
    storages = [
        ("4 bit, block 64, integer zero", Storage(bits=4, block=64)),
        ("4 bit, block 32, integer zero", Storage(bits=4, block=32)),
        ("4 bit, block 128, integer zero", Storage(bits=4, block=128)),
        ("4 bit, block 64, real zero", Storage(bits=4, block=64, zero="float")),
        ("4 bit, block 64, symmetric", Storage(bits=4, block=64, symmetric=True)),
        ("4 bit, per row, integer zero", Storage(bits=4, block=0)),
        ("3 bit, block 64, integer zero", Storage(bits=3, block=64)),
        ("8 bit, block 64, integer zero", Storage(bits=8, block=64)),
        ("8 bit, per row, integer zero", Storage(bits=8, block=0)),
        ("8 bit, per row, symmetric", Storage(bits=8, block=0, symmetric=True)),
    ]
    for name, tensor in made.items():
        for label, storage in storages:
            if name != "bf16" and storage.bits == 3:
                continue
            yield f"{name:4}  {label}", row_alignment(storage.bits, tensor.type.shape[1]), _packing(tensor, storage)


def _packing(tensor: FileTensor, storage: Storage) -> Job:
    weight = QuantizedWeight(tensor, storage)
    features = tensor.type.shape[1]

    def job(start: int, stop: int) -> object:
        out = np.empty(packed_bytes((stop - start) * features, storage.bits), np.uint8)
        return quantize_pack(weight, start, stop, out)

    return job


def run(job: Job, rows: int, step: int, threads: int) -> float:
    """Seconds for all rows; threads take the next range when they are done with one."""
    starts = iter(range(0, rows, step))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                start = next(starts, None)
            if start is None:
                return
            job(start, min(rows, start + step))

    began = time.perf_counter()
    workers = [threading.Thread(target=work) for _ in range(threads - 1)]
    for worker in workers:
        worker.start()
    work()
    for worker in workers:
        worker.join()
    return time.perf_counter() - began


def measure(job: Job, rows: int, step: int, threads: int, rounds: int) -> tuple[float, float]:
    """Seconds of the best round, and the share of the processors that others took meanwhile."""
    found = []
    for _ in range(rounds):
        busy, own = _processor_seconds()
        seconds = run(job, rows, step, threads)
        busy_after, own_after = _processor_seconds()
        others = (busy_after - busy) - (own_after - own)
        found.append((seconds, max(0.0, others / seconds / (os.cpu_count() or 1))))
    return min(found)


def _processor_seconds() -> tuple[float, float]:
    own = resource.getrusage(resource.RUSAGE_SELF)
    try:
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    except OSError:
        return own.ru_utime + own.ru_stime, own.ru_utime + own.ru_stime
    busy = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
    return busy, own.ru_utime + own.ru_stime


def main() -> None:
    """Run every case and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16384, help="rows of the matrix")
    parser.add_argument("--features", type=int, default=2048, help="input features of the matrix")
    parser.add_argument("--threads", type=int, default=2, help="largest number of threads; 1 is always measured")
    parser.add_argument("--rounds", type=int, default=7, help="rounds per case, of which the best counts")
    parser.add_argument("--only", default="", help="measure cases whose label contains this")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    counts = sorted({1, args.threads})
    results = []
    print(f"million weights per second, {args.rows} x {args.features}, {platform.processor() or platform.machine()}")
    print(f"{'case':40}" + "".join(f"{count:>6} thr  load" for count in counts))
    with tempfile.TemporaryDirectory() as folder:
        for label, multiple, job in cases(sources(Path(folder), args.rows, args.features)):
            if args.only not in label:
                continue
            step = max(1, JOB_BYTES // (2 * args.features) // multiple) * multiple
            row = {"case": label}
            for count in counts:
                seconds, load = measure(job, args.rows, step, count, args.rounds)
                row[f"threads_{count}"] = round(args.rows * args.features / seconds / 1e6)
                row[f"load_{count}"] = round(load, 3)
            results.append(row)
            figures = [f"{row[f'threads_{count}']:10} {row[f'load_{count}']:5.0%}" for count in counts]
            print(f"{label:40}" + "".join(figures), flush=True)
        for path in FILES.paths():
            FILES.forget(path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"scratch memory {thread_scratch().nbytes >> 10} KiB a thread, peak {peak >> 10} MiB", file=sys.stderr)
    if args.json:
        args.json.write_text(json.dumps({"cpu": platform.processor(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
