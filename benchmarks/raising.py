"""Time to bring a traced decoder of 50,000 nodes into the standard form, beside decoders of a half and a quarter of it.

    python -m benchmarks.raising [--layers 204] [--repeat 3] [--json FILE]

The model is written as tracing exporters do (`benchmarks.traced_decoder`: about 245 nodes a layer, histories of keys and
values among the inputs). Timed are reading the file, bringing operators to one version and cleaning up, finding out what
the parts compute and rewriting them, cleaning up again, and discovering inputs. Every raised graph must have the
attention of each layer. Seconds are those of the clock; the last line tells how many this process computed, its child
for kernels not counted. Work in proportion to the graph gives the same microseconds a node at every size.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from benchmarks.large_graph import SHARES, Stages, table
from benchmarks.traced_decoder import HEADS, KV_HEADS, WIDTH, make_decoder
from frontends.onnx.load import load
from ir.facts.raised import Raised
from passes.framework.manager import PassManager

STEPS = {
    "canonicalize": "expand-functions,infer-types,upgrade-opset,canonicalize",
    "raise-decoder": "raise-decoder",
    "canonicalize again": "canonicalize",
    "discover-inputs": "discover-inputs",
}


def run(layers: int) -> dict[str, Any]:
    """Seconds by stage for a decoder of so many layers, with its size.

    Raises:
        RuntimeError: the graph was not raised as it must be.
    """
    stages = Stages()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        model = make_decoder(layers)
        onnx.save(model, path)
        started = time.process_time()
        with stages.time("read"):
            graph = load(path)
        for name, steps in STEPS.items():
            with stages.time(name):
                PassManager(steps).run(graph)
    spent = time.process_time() - started
    found = [region.finding for region in graph.required_fact(Raised).regions if region.kind == "attention"]
    wanted = f"{HEADS} heads of {WIDTH} on {KV_HEADS}, scale {WIDTH**-0.5:g}, half rope of {WIDTH}"
    if found != [wanted] * layers:
        raise RuntimeError(f"found {set(found)} {len(found)} times, not {wanted} for each of {layers} layers")
    return {
        "layers": layers,
        "nodes": len(model.graph.node),
        "raised": len(graph.nodes),
        "processor_seconds": spent,
        "seconds": stages.seconds,
    }


def measure(layers: Sequence[int], repeat: int) -> list[dict[str, Any]]:
    """Median seconds by stage at each size."""
    found = []
    for count in layers:
        runs = [run(count) for _ in range(repeat)]
        print(f"  {count} layers, {repeat} runs", file=sys.stderr)
        seconds = {name: statistics.median(one["seconds"][name] for one in runs) for name in runs[0]["seconds"]}
        seconds["all"] = sum(seconds.values())
        per_node = {name: round(1e6 * value / runs[0]["nodes"], 3) for name, value in seconds.items()}
        found.append({**runs[0], "seconds": seconds, "us_per_node": per_node})
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=204, help="layers of the largest decoder, at least 4")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each size; medians are shown")
    parser.add_argument("--json", type=Path, help="file for all figures")
    args = parser.parse_args(argv)
    if args.layers < max(SHARES) or args.repeat < 1:
        parser.error("--layers is 4 or more, --repeat 1 or more")
    load_before = os.getloadavg()[0]
    sizes = measure([args.layers // share for share in SHARES], args.repeat)
    print(table(sizes))
    last = sizes[-1]
    print(
        f"{last['nodes']:,} nodes in {last['seconds']['all']:.1f} s, {last['processor_seconds']:.1f} s of this process"
    )
    if args.json:
        record = {"load_before": load_before, "processors": os.cpu_count(), "sizes": sizes}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
