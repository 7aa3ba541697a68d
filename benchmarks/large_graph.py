"""Time for each node of a decoder with 126 layers and 10,000 weights, beside decoders of a half and a quarter of it.

    python -m benchmarks.large_graph [--layers 126] [--repeat 3] [--json FILE]

Every weight is tiny, so what is timed is the work for each node and weight, not for each number. Work in proportion to
the graph gives the same microseconds a node at every size; work that looks through the whole graph for each node gives
twice as many at twice the size.

The steps: an ONNX model is loaded, types are inferred, inputs are discovered, precision is assigned by policy and then
by measurement, the plan is made real, and the graph is lowered to MNN's operators. Besides, weights (with the facts of
the plan and of the measurement on the graph) and results of nodes are renamed there and back. Measured divergences are
made up, since running the model would drown the rest; everything around them is real. Error curves are measured on the
8 rows of each weight and are a stage of their own.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from backends.onnx.write import to_model
from frontends.onnx.load import load
from ir.base.store import CACHE_VARIABLE
from ir.base.types import F32, I64, Dim, TensorType
from ir.facts.calibration import Calibration
from ir.graph.graph import Graph, Value
from ir.quant.statistics.moments import CalibrationText
from ir.tensor.inline import InlineTensor
from passes.framework.base import PassContext
from passes.framework.manager import PassManager
from passes.precision.measured import error_curves as curves
from passes.precision.measured import plan as measured
from passes.precision.measured import prices as pricing
from passes.precision.measured.probes import Measured, Variant

HIDDEN, VOCAB, BRANCHES = 8, 64, 25
"""Width of the stream, rows of the embedding, and gated products of a layer, each with three weights."""
SHARES = (4, 2, 1)
"""The sizes measured: the whole divided by these."""
MEASURE = "assign-precision{budget=11bpw method=rtn widths=[2,4] blocks=[8] forms=[asymmetric] rounds=0}"


class MadeUpMeter:
    """Stands for `passes.precision.measured.probes.Meter`: divergences that depend on what is replaced, and cost
    nothing."""

    available = 64

    def __init__(self, graph: Graph, windows: Sequence[np.ndarray], progress: Callable[[int, int, str], None]) -> None:
        self._graph = graph

    def tokens_for(self, variants: Sequence[Any], most: int) -> int:
        """All there are."""
        return self.available

    def measure(self, variants: Sequence[Variant], tokens: int, what: str) -> list[Measured]:
        """One made-up number for each variant."""
        return [Measured(1e-3 * (1 + len(variant) % 7), 1e-5, 0.9, tokens) for variant in variants]


class Stages:
    """Seconds by stage, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Count the time of a block."""
        gc.collect()
        start = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Count seconds."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


# ---- the model ----


class _Maker:
    """Adds the parts of a decoder to a graph."""

    def __init__(self, graph: Graph, seq: Dim) -> None:
        self.graph = graph
        self.type = TensorType(F32, (1, seq, HIDDEN))
        self.random = np.random.default_rng(0)

    def add(self, op: str, *inputs: Value, **attrs: Any) -> Value:
        return self.graph.add(op, inputs, attrs, types=[self.type]).output

    def norm(self, x: Value, name: str) -> Value:
        gain = self.graph.add_const(f"{name}.weight", InlineTensor(np.ones(HIDDEN, np.float32)))
        return self.add("RMSNormalization", x, gain, axis=-1)

    def linear(self, x: Value, name: str) -> Value:
        numbers = self.random.standard_normal((HIDDEN, HIDDEN)).astype(np.float32) / HIDDEN
        return self.add("MatMul", x, self.graph.add_const(f"{name}.weight", InlineTensor(numbers)))

    def layer(self, x: Value, name: str) -> Value:
        normed = self.norm(x, f"{name}.attention_norm")
        q, k, v = (self.linear(normed, f"{name}.{kind}_proj") for kind in "qkv")
        mixed = self.add("Attention", q, k, v, q_num_heads=2, kv_num_heads=2, is_causal=1)
        x = self.add("Add", x, self.linear(mixed, f"{name}.o_proj"))
        normed, total = self.norm(x, f"{name}.branch_norm"), x
        for number in range(BRANCHES):
            gate, up = (self.linear(normed, f"{name}.branches.{kind}_{number}") for kind in ("gate", "up"))
            product = self.add("Mul", self.add("Swish", gate), up)
            total = self.add("Add", total, self.linear(product, f"{name}.branches.down_{number}"))
        return total


def decoder(layers: int) -> Graph:
    """A decoder from token ids to logits with 79 weights a layer."""
    graph = Graph("large")
    seq = graph.add_dim(Dim("seq", 1, 64))
    ids = graph.add_input("ids", TensorType(I64, (1, seq)))
    make = _Maker(graph, seq)
    rows = make.random.standard_normal((VOCAB, HIDDEN)).astype(np.float32)
    x = make.add("Gather", graph.add_const("embed.weight", InlineTensor(rows)), ids)
    for number in range(layers):
        x = make.layer(x, f"layers.{number}")
    normed = make.norm(x, "norm")
    head = make.random.standard_normal((HIDDEN, VOCAB)).astype(np.float32)
    weight = graph.add_const("head.weight", InlineTensor(head))
    graph.set_outputs([graph.add("MatMul", [normed, weight], types=[TensorType(F32, (1, seq, VOCAB))]).output])
    return graph


# ---- the steps ----


def run(layers: int) -> dict[str, Any]:
    """Seconds by stage, and the numbers of nodes and weights."""
    stages = Stages()
    model = to_model(decoder(layers))
    with stages.time("load"):
        graph = load(model)
    nodes, weights = len(graph.nodes), sum(value.type.rank == 2 for value in graph.consts.values())
    for step in ("infer-types", "discover-inputs", "assign-precision"):
        with stages.time(step):
            PassManager(step).run(graph)
    _measure(graph, stages)
    _rename(graph, stages, [*graph.consts.values()], "rename weights")
    for step in ("insert-qdq", "legalize-mnn", "sink-layouts"):
        with stages.time(step):
            PassManager(step).run(graph)
    _rename(graph, stages, [value for node in graph.nodes for value in node.outputs], "rename results")
    return {"layers": layers, "nodes": nodes, "weights": weights, "seconds": stages.seconds}


def _rename(graph: Graph, stages: Stages, values: Sequence[Value], what: str) -> None:
    """Rename values one by one, there and back, and look at the facts in the end."""
    with stages.time(what):
        for ending in (".renamed", ""):
            for value in values:
                if not value.is_output:
                    graph.rename(value, value.name.removesuffix(".renamed") + ending)
        len(graph.facts)


def _measure(graph: Graph, stages: Stages) -> None:
    """Assign precision by measurement, with made-up divergences; error curves count for themselves."""
    names = {node.inputs[1].name: "" for node in graph.nodes if node.op == "MatMul"}
    graph.set_fact(Calibration.name, Calibration("", 64, names))
    text = CalibrationText((), (np.zeros(64, np.int32),))
    curve_seconds = 0.0

    def timed(*args: Any, **keywords: Any) -> list[curves.Curve]:
        nonlocal curve_seconds
        start = time.perf_counter()
        found = curves.error_curves(*args, **keywords)
        curve_seconds += time.perf_counter() - start
        return found

    kept = measured.Meter, pricing.error_curves
    measured.Meter, pricing.error_curves = MadeUpMeter, timed
    gc.collect()
    start = time.perf_counter()
    try:
        PassManager(MEASURE).run(graph, PassContext(text))
    finally:
        measured.Meter, pricing.error_curves = kept
    stages.add("measure error curves", curve_seconds)
    stages.add("assign-precision, measured", time.perf_counter() - start - curve_seconds)


def measure(layers: Sequence[int], repeat: int) -> list[dict[str, Any]]:
    """Median seconds by stage at each size; every run has an empty cache."""
    found = []
    for count in layers:
        runs = []
        for number in range(repeat):
            with tempfile.TemporaryDirectory() as cache:
                os.environ[CACHE_VARIABLE] = cache
                runs.append(run(count))
            print(f"  {count} layers, run {number + 1} of {repeat}", file=sys.stderr)
        seconds = {name: statistics.median(one["seconds"][name] for one in runs) for name in runs[0]["seconds"]}
        per_node = {name: round(1e6 * value / runs[0]["nodes"], 3) for name, value in seconds.items()}
        found.append({**runs[0], "seconds": seconds, "us_per_node": per_node})
    return found


def table(sizes: Sequence[Mapping[str, Any]]) -> str:
    """Microseconds a node by stage and size, and how much more the largest takes than the smallest."""
    lines = [f"{'microseconds a node':28}" + "".join(f"{one['nodes']:>10,}" for one in sizes) + f"{'growth':>10}"]
    for stage in sizes[0]["us_per_node"]:
        values = [one["us_per_node"][stage] for one in sizes]
        growth = values[-1] / values[0] if values[0] else float("nan")
        lines.append(f"{stage:28}" + "".join(f"{value:10.2f}" for value in values) + f"{growth:10.2f}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=126, help="layers of the largest decoder, at least 4")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each size; medians are shown")
    parser.add_argument("--json", type=Path, help="file for all figures")
    args = parser.parse_args(argv)
    if args.layers < max(SHARES) or args.repeat < 1:
        parser.error("--layers is 4 or more, --repeat 1 or more")
    load_before = os.getloadavg()[0]
    sizes = measure([args.layers // share for share in SHARES], args.repeat)
    print(table(sizes))
    if args.json:
        record = {"load_before": load_before, "processors": os.cpu_count(), "sizes": sizes}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
