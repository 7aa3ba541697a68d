"""Time to load, canonicalise and emit large ONNX graphs, beside other rewriters, in one run.

    python -m benchmarks.rewriters [--nodes 1000 10000 50000] [--repeat 3] [--limit 600] [--json FILE] [--markdown FILE]

Each measurement is a process of its own, on one processor and one thread, with a time limit: it decodes the model from
memory, turns it into the tool's own graph, folds constants, merges common subexpressions, removes dead code, sorts, and
encodes the result. The results of the smallest size are run in onnxruntime beside the original. Tools whose packages
are not installed are named and left out. The tools other than Lading: ``pip install onnx-ir onnxscript onnxslim
onnx-graphsurgeon``.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NODES_PER_LAYER = 245
STEPS = "fold,cse,dce,toposort"
"""The steps that every tool does."""


@dataclass
class Timing:
    """One tool at one size.

    Attributes:
        tool: name of the tool.
        nodes: nodes of the model.
        after: nodes of the result.
        wall: seconds from the bytes of the model to the bytes of the result: median.
        wall_range: the shortest and the longest.
        cpu: processor seconds: median.
        peak_mb: largest resident memory of the process.
        stages: processor seconds by stage, of the run with the median.
        max_difference: largest difference of any output from the original's in onnxruntime; None when not checked.
        failure: why there is no result.
    """

    tool: str
    nodes: int
    after: int = 0
    wall: float = 0.0
    wall_range: tuple[float, float] = (0.0, 0.0)
    cpu: float = 0.0
    peak_mb: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    max_difference: float | None = None
    failure: str = ""


class Clock:
    """Processor seconds by stage."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of a block."""
        start = time.process_time()
        yield
        self.stages[name] = round(self.stages.get(name, 0.0) + time.process_time() - start, 4)


# ---- the tools: a model in, a model out ----


def lading(model: Any, clock: Clock, pipeline: str = STEPS) -> Any:
    """Lading's frontend, passes and ONNX backend."""
    from backends.onnx.write import to_model
    from frontends.onnx.load import load
    from passes.framework.manager import PassManager

    with clock.stage("lift"):
        graph = load(model)
    report = PassManager(pipeline).run(graph)
    for item in report.passes:
        clock.stages[item.name] = round(clock.stages.get(item.name, 0.0) + item.seconds, 4)
    with clock.stage("emit"):
        return to_model(graph)


def lading_canonicalize(model: Any, clock: Clock) -> Any:
    """The named pipeline, which infers types, drops and joins more, and repeats until nothing changes."""
    return lading(model, clock, "canonicalize")


def onnx_ir_passes(model: Any, clock: Clock) -> Any:
    """onnx-ir with its own passes and the constant folding of onnxscript."""
    import onnx_ir as ir
    import onnx_ir.passes.common as common
    from onnxscript.optimizer import fold_constants_ir

    with clock.stage("lift"):
        held = ir.from_proto(model)
    with clock.stage("fold"):
        fold_constants_ir(held, onnx_shape_inference=False)
    for name, make in (
        ("identity", common.IdentityEliminationPass),
        ("cse", common.CommonSubexpressionEliminationPass),
        ("initializers", common.DeduplicateInitializersPass),
        ("dce", common.RemoveUnusedNodesPass),
        ("toposort", common.TopologicalSortPass),
    ):
        with clock.stage(name):
            make()(held)
    with clock.stage("emit"):
        return ir.to_proto(held)


def onnxscript_optimizer(model: Any, clock: Clock) -> Any:
    """``onnxscript.optimizer.optimize``."""
    from onnxscript import optimizer

    with clock.stage("optimize"):
        return optimizer.optimize(model)


def onnxslim_slim(model: Any, clock: Clock) -> Any:
    """``onnxslim.slim``."""
    import onnxslim

    with clock.stage("slim"):
        return onnxslim.slim(model)


def graphsurgeon(model: Any, clock: Clock) -> Any:
    """onnx-graphsurgeon: fold_constants, cleanup, toposort."""
    import onnx_graphsurgeon as gs

    gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.ERROR
    with clock.stage("lift"):
        graph = gs.import_onnx(model)
    with clock.stage("fold"):
        graph.fold_constants()
    with clock.stage("dce"):
        graph.cleanup()
    with clock.stage("toposort"):
        graph.toposort()
    with clock.stage("emit"):
        return gs.export_onnx(graph)


TOOLS: dict[str, tuple[Callable[[Any, Clock], Any], tuple[str, ...]]] = {
    "lading": (lading, ()),
    "lading canonicalize": (lading_canonicalize, ()),
    "onnx-ir": (onnx_ir_passes, ("onnx_ir", "onnxscript")),
    "onnxscript optimizer": (onnxscript_optimizer, ("onnxscript",)),
    "onnx-graphsurgeon": (graphsurgeon, ("onnx_graphsurgeon",)),
    "onnxslim": (onnxslim_slim, ("onnxslim",)),
}
"""Tools by name, with the packages that each needs."""


# ---- one measurement, in a process of its own ----


def measure(tool: str, source: Path, out: Path) -> dict[str, Any]:
    """Run a tool once; figures of the run, the result in `out`."""
    import onnx

    run, packages = TOOLS[tool]
    # What is imported at the first use is not what is measured.
    for name in (*packages, *_USED.get(tool, ())):
        importlib.import_module(name)
    data = source.read_bytes()
    clock = Clock()
    start, cpu = time.perf_counter(), time.process_time()
    with clock.stage("decode"):
        model = onnx.ModelProto.FromString(data)
    nodes = len(model.graph.node)
    result = run(model, clock)
    with clock.stage("encode"):
        encoded = result.SerializeToString()
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    out.write_bytes(encoded)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "nodes": nodes,
        "after": len(result.graph.node),
        "wall": wall,
        "cpu": cpu,
        "peak_mb": peak,
        "stages": clock.stages,
    }


_USED = {
    "lading": (
        "onnxruntime",
        "frontends.onnx.load",
        "backends.onnx.write",
        "passes.framework.manager",
        "passes.canonicalize.fold",
    ),
    "lading canonicalize": (
        "onnxruntime",
        "frontends.onnx.load",
        "backends.onnx.write",
        "passes.framework.manager",
        "passes.canonicalize.fold",
    ),
    "onnx-ir": ("onnxscript.optimizer", "onnx_ir.passes.common"),
    "onnxscript optimizer": ("onnxscript.optimizer",),
    "onnx-graphsurgeon": ("onnxruntime",),
    "onnxslim": ("onnxruntime",),
}
"""Modules that a tool imports when it is first used."""


def _child(tool: str, source: Path, out: Path, limit: float) -> dict[str, Any] | str:
    """Figures of one run in a process on one processor, or why there are none."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, "-m", "benchmarks.rewriters", "--measure", tool, str(source), str(out)]
    if hasattr(os, "sched_setaffinity"):
        command = [sys.executable, "-c", _PINNED, *command[1:]]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **threads}, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return f"not finished in {limit:.0f} s"
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return f"failed ({done.returncode}): {reason[:200]}"
    return json.loads(lines[-1])


_PINNED = """
import os, runpy, sys
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
sys.argv = sys.argv[1:]
module = sys.argv[1]
sys.argv = sys.argv[1:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


# ---- all of them ----


def run_all(sizes: list[int], repeat: int, limit: float, tools: list[str], folder: Path) -> list[Timing]:
    """Every tool at every size; a tool that runs out of time is not asked for more."""
    from benchmarks.traced_decoder import make_decoder

    timings: list[Timing] = []
    late: set[str] = set()
    for size in sorted(sizes):
        layers = max(1, round(size / NODES_PER_LAYER))
        source = folder / f"decoder{size}.onnx"
        model = make_decoder(layers)
        source.write_bytes(model.SerializeToString())
        for tool in tools:
            if tool in late:
                timings.append(Timing(tool, len(model.graph.node), failure="a smaller size was not finished"))
                continue
            timing = _timing(tool, source, folder / "out.onnx", repeat, limit)
            timing.nodes = timing.nodes or len(model.graph.node)
            if timing.failure:
                late.add(tool)
            elif size == min(sizes):
                timing.max_difference = _difference(source, folder / "out.onnx", layers)
            timings.append(timing)
            print(_line(timing), file=sys.stderr)
    return timings


def _timing(tool: str, source: Path, out: Path, repeat: int, limit: float) -> Timing:
    runs: list[dict[str, Any]] = []
    for _ in range(repeat):
        found = _child(tool, source, out, limit)
        if isinstance(found, str):
            return Timing(tool, 0, failure=found)
        runs.append(found)
    runs.sort(key=lambda one: one["cpu"])
    middle, walls = runs[len(runs) // 2], [one["wall"] for one in runs]
    return Timing(
        tool,
        middle["nodes"],
        middle["after"],
        statistics.median(walls),
        (min(walls), max(walls)),
        middle["cpu"],
        middle["peak_mb"],
        middle["stages"],
    )


def _difference(before: Path, after: Path, layers: int) -> float:
    import numpy as np
    import onnxruntime

    from benchmarks.traced_decoder import feeds

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    one, two = (onnxruntime.InferenceSession(str(path), options) for path in (before, after))
    names = [item.name for item in one.get_outputs()]
    given = feeds(layers)
    pairs = zip(one.run(names, given), two.run(names, given), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


# ---- report ----


def _line(timing: Timing) -> str:
    if timing.failure:
        return f"{timing.tool}, {timing.nodes} nodes: {timing.failure}"
    stages = ", ".join(f"{name} {seconds:.3g}" for name, seconds in timing.stages.items())
    return f"{timing.tool}, {timing.nodes} nodes: {timing.cpu:.2f} s CPU, {timing.wall:.2f} s ({stages})"


def table(timings: list[Timing]) -> str:
    """The figures as a Markdown table: ratio to Lading by processor time, growth per node from the smallest size."""
    reference = {timing.nodes: timing.cpu for timing in timings if timing.tool == "lading" and not timing.failure}
    smallest = {}
    lines = [
        "| tool | nodes | nodes after | CPU s | wall s (range) | ratio | µs per node | growth per node | peak MB | difference |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for timing in sorted(timings, key=lambda one: (list(TOOLS).index(one.tool), one.nodes)):
        if timing.failure:
            lines.append(f"| {timing.tool} | {timing.nodes} | – | {timing.failure} | | | | | | |")
            continue
        each = timing.cpu / timing.nodes * 1e6
        growth = each / smallest.setdefault(timing.tool, each)
        ratio = timing.cpu / reference[timing.nodes] if timing.nodes in reference else float("nan")
        difference = "" if timing.max_difference is None else f"{timing.max_difference:.1g}"
        low, high = timing.wall_range
        lines.append(
            f"| {timing.tool} | {timing.nodes} | {timing.after} | {timing.cpu:.2f} | {timing.wall:.2f} ({low:.2f}–{high:.2f}) "
            f"| {ratio:.1f} | {each:.0f} | {growth:.2f} | {timing.peak_mb:.0f} | {difference} |"
        )
    return "\n".join(lines)


def installed(names: list[str]) -> list[str]:
    """The tools whose packages can be imported; says which are left out."""
    found = []
    for tool in names:
        missing = [name for name in TOOLS[tool][1] if importlib.util.find_spec(name) is None]
        if missing:
            print(f"left out: {tool} ({', '.join(missing)} not installed)", file=sys.stderr)
        else:
            found.append(tool)
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1000, 10000, 50000])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one run")
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--measure", nargs=3, metavar=("TOOL", "IN", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        tool, source, out = args.measure
        print(json.dumps(measure(tool, Path(source), Path(out))))
        return
    with tempfile.TemporaryDirectory() as folder:
        timings = run_all(args.nodes, args.repeat, args.limit, installed(args.tools), Path(folder))
    text = table(timings)
    print(text)
    if args.markdown:
        args.markdown.write_text(text + "\n")
    if args.json:
        args.json.write_text(json.dumps([asdict(timing) for timing in timings], indent=1) + "\n")


if __name__ == "__main__":
    main()
