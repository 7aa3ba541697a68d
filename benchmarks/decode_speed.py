"""Decode speed by width and block on this machine, beside the bytes that `backends/mnn/target/devices.py` foretells.

Each plan is compiled once. Then all results are loaded and timed in turn, each in a process of its own, the order
swapped every round. What is printed: bytes stored and streamed for each token, tokens a second (median of the rounds,
and by the fastest token of all, which other work on the machine disturbs least), the line ``milliseconds = fixed + bytes /
bandwidth`` that fits the fastest tokens best, and how well bytes and time agree.

    python -m benchmarks.make_checkpoint q05
    python -m benchmarks.decode_speed q05 --threads 1 --rounds 5 --json results.json

A plan is ``BITS:BLOCK``, with a width of the logits matrix behind it where that differs (``4:64:8``), ``s`` at the end
for no zeros (``4:64s``), or any text of a pipeline.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backends import contract as contracts
from backends.contract import Contract
from backends.mnn.run.native import run_model
from backends.mnn.target.devices import devices
from backends.mnn.target.environments import installed_version
from benchmarks.official import alternate, bytes_of, machine
from ir.quant.storage import Storage
from ir.target.device import Device

PLANS = "2:64,3:64,4:32,4:64,4:128,4:256,4:0,4:64s,4:64:8,5:64,6:64,8:64,8:0"


def pipeline_of(plan: str) -> str:
    """The pipeline of a plan as it is written on the command line."""
    found = re.fullmatch(r"(\d+):(\d+)(s?)(?::(\d+))?", plan)
    if found is None:
        return plan
    bits, block, plain, head = found.groups()
    symmetric = " symmetric" if plain else ""
    return f"default{{bits={bits} block={block} logits-bits={head or bits}{symmetric}}}"


def compiled(model: Path, plan: str, work: Path, extra: Sequence[str]) -> Path:
    """The folder of a plan, compiled unless it is there."""
    out = work / re.sub(r"\W+", "-", plan).strip("-")
    if not (out / "config.json").is_file():
        command = [sys.executable, "-m", "tools.compile", str(model), "-o", str(out), "--verify", "none"]
        subprocess.run([*command, "--passes", pipeline_of(plan), *extra, "--quiet", "--force"], check=True)
    return out


def streamed(contract: Contract, device: Device) -> int:
    """Bytes that a device reads for each token of a compiled model: matrices that are multiplied by, each once."""
    total = 0
    for entry in contract.weights:
        table = "embed" in entry.name and entry.shared_with is None and _has_head(contract)
        if entry.shared_with is not None or len(entry.shape) != 2 or table:
            continue
        rows, columns = entry.shape
        how = entry.storage
        total += device.streamed(rows, columns, Storage(bits=how.bits, block=how.block, symmetric=how.symmetric))
    return total


def _has_head(contract: Contract) -> bool:
    return any("lm_head" in entry.name for entry in contract.weights)


def timed(folder: Path, threads: int, tokens: int) -> tuple[float, float]:
    """Tokens a second of greedy decoding behind a short prompt in a fresh process: by the median and the fastest token."""
    prompt = [(37 * number + 11) % 250 for number in range(16)]
    action = {"do": "bench", "prompt": prompt, "tokens": tokens, "repeat": 3}
    settings = {"thread_num": threads, "use_mmap": False, "sampler_type": "greedy"}
    run = run_model(folder / "config.json", [action], overrides=settings, timeout_s=600).require(str(folder))
    found = run.results[0] or {}
    return float(found["decode_tokens_per_s"]), 1 / min(found["decode_s"])


def agreement(sizes: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
    """Correlation of bytes and time, and the line that fits best."""
    slope, fixed = np.polyfit(sizes, seconds, 1)
    ranks = [np.argsort(np.argsort(numbers)) for numbers in (sizes, seconds)]
    return {
        "correlation": float(np.corrcoef(sizes, seconds)[0, 1]),
        "rank_correlation": float(np.corrcoef(*ranks)[0, 1]),
        "fixed_ms": 1e3 * float(fixed),
        "gb_per_s": 1e-9 / float(slope),
    }


def table(plans: Mapping[str, Mapping[str, Any]]) -> str:
    """The plans, fastest first."""
    lines = [f"{'plan':24}{'folder, MB':>12}{'streamed, MB':>14}{'tokens/s':>10}{'fastest':>10}  lowest to highest"]
    for name, row in sorted(plans.items(), key=lambda item: -item[1]["fastest"]):
        rates = row["rates"]
        lines.append(
            f"{name:24}{row['bytes'] / 1e6:12.1f}{row['streamed'] / 1e6:14.1f}{row['tokens_per_s']:10.2f}{row['fastest']:10.2f}  "
            f"{min(rates):.2f} to {max(rates):.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("--plans", default=PLANS, help=f"separated by commas; default {PLANS}")
    parser.add_argument("--device", default="x86", help="whose bytes are counted")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=24, help="decoded in each of three runs of a round")
    parser.add_argument("--work", type=Path, help="folder that keeps the results; default: a temporary one")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("compile", nargs="*", help="options of the compile command, behind --")
    args = parser.parse_args()
    device = devices([installed_version() or "3.6.1"])[args.device]
    with tempfile.TemporaryDirectory(prefix="lading-bench-") as temporary:
        work = (args.work or Path(temporary)).absolute()
        folders = {
            plan: compiled(args.model, plan, work, args.compile) for plan in re.split(r",(?![^{]*\})", args.plans)
        }
        load = os.getloadavg()[0]
        rates = alternate(tuple(folders), args.rounds, lambda plan: timed(folders[plan], args.threads, args.tokens))
        plans = {
            plan: {
                "bytes": bytes_of(folder),
                "streamed": streamed(contracts.read(folder), device),
                "tokens_per_s": statistics.median(rate for rate, _ in rates[plan]),
                "fastest": max(rate for _, rate in rates[plan]),
                "rates": [rate for rate, _ in rates[plan]],
            }
            for plan, folder in folders.items()
        }
    print(table(plans))
    found = agreement([row["streamed"] for row in plans.values()], [1 / row["fastest"] for row in plans.values()])
    print(
        f"bytes against time: correlation {found['correlation']:.3f}, of ranks {found['rank_correlation']:.3f}; "
        f"{found['fixed_ms']:.2f} ms and {found['gb_per_s']:.1f} GB/s"
    )
    print(f"{args.threads} threads, load average before the first run {load:.2f}")
    if args.json:
        record = {"machine": machine(), "threads": args.threads, "device": args.device, "plans": plans, "fit": found}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
