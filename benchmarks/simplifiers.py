"""Time to canonicalize real ONNX models, and what is left of them, beside onnxslim and onnxsim, in one run.

    python -m benchmarks.simplifiers PATH... [--repeat 3] [--limit 300] [--json FILE]

PATH is an ONNX file or a folder of them. Each measurement is a process of its own, on one thread, that reads the file,
simplifies, and serializes the result. Counted are seconds of the processor, which do not depend on what else runs, those
of processes that a tool starts included. Before that it simplifies a model of two nodes, for every tool alike, so that
what a tool imports and starts on first use is its start-up, which is measured apart. The tools take turns. Of each result
the outputs are compared with those of the original in onnxruntime, on made-up inputs. ``pip install 'lading[bench]'``
brings the other tools; one that is not installed is named and left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ir.base.diag import LadingError

ROOT = Path(__file__).resolve().parents[1]
PIPELINE = "smallest"


@dataclass
class Simplified:
    """One tool on one model.

    Attributes:
        tool: name of the tool.
        model: name of the file.
        nodes: nodes of the result, those of subgraphs included; Constant nodes, which hold numbers, are not counted.
        seconds: seconds of the processor from the file to the bytes of the result: median.
        start_up: the same to import the tool and simplify a model of two nodes.
        difference: largest difference of any output from the original's, relative to its largest number.
        failure: why there is no result.
    """

    tool: str
    model: str
    nodes: int = 0
    seconds: float = 0.0
    start_up: float = 0.0
    difference: float | None = None
    failure: str = ""


def with_lading(path: Path) -> bytes:
    """This compiler."""
    from backends.onnx.write import to_model
    from frontends.onnx.load import load
    from passes.framework.manager import PassManager

    graph = load(path)
    PassManager(PIPELINE).run(graph)
    return to_model(graph).SerializeToString()


def with_onnxslim(path: Path) -> bytes:
    """onnxslim as it comes."""
    import onnx
    import onnxslim

    return onnxslim.slim(onnx.load(path)).SerializeToString()


def with_onnxsim(path: Path) -> bytes:
    """onnxsim as it comes, without its own check."""
    import onnx
    import onnxsim

    return onnxsim.simplify(onnx.load(path), check_n=0)[0].SerializeToString()


TOOLS: dict[str, tuple[str, Callable[[Path], bytes]]] = {
    "lading": ("passes", with_lading),
    "onnxslim": ("onnxslim", with_onnxslim),
    "onnxsim": ("onnxsim", with_onnxsim),
}
"""Module that has to be there, and what simplifies a file."""


def child(tool: str, path: Path, out: Path) -> None:
    """Start a tool on a small model, simplify one file, write the result, print the seconds of both."""
    simplify = TOOLS[tool][1]
    small = small_model(out.with_name(f"small-{tool}.onnx"))
    started = processor_seconds()
    simplify(small)
    start = processor_seconds()
    data = simplify(path)
    seconds = processor_seconds() - start
    out.write_bytes(data)
    print(json.dumps({"seconds": seconds, "start_up": start - started}))


def processor_seconds() -> float:
    """Seconds of the processor that this process took, its children included, whether they have ended or not."""
    ended = os.times()
    total = time.process_time() + ended.children_user + ended.children_system
    for task in Path("/proc/self/task").iterdir():
        for child_process in (task / "children").read_text().split():
            fields = Path(f"/proc/{child_process}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def small_model(path: Path) -> Path:
    """A file with a normalized convolution."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    arrays = {name: np.full(4, size, np.float32) for name, size in zip("gbmv", (2.0, 0.5, 0.1, 3.0), strict=True)}
    arrays["w"] = np.ones((4, 1, 3, 3), np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("BatchNormalization", ["c", *"gbmv"], ["y"]),
        ],
        "small",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 4, 6, 6])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def measured(path: Path, tools: Sequence[str], repeat: int, limit: float, folder: Path) -> list[Simplified]:
    """Run the tools on one model in turns, each time in a process of its own."""
    runs: dict[str, list[dict[str, float]]] = {tool: [] for tool in tools}
    found = {tool: Simplified(tool, path.name) for tool in tools}
    for number in range(repeat):
        for tool in tools if number % 2 == 0 else reversed(tools):
            if not found[tool].failure:
                found[tool].failure = run(tool, path, limit, folder, runs[tool])
    for tool, one in found.items():
        if one.failure:
            continue
        one.seconds = statistics.median(item["seconds"] for item in runs[tool])
        one.start_up = statistics.median(item["start_up"] for item in runs[tool])
        out = folder / f"{tool}.onnx"
        one.nodes = nodes_of(out)
        try:
            one.difference = difference(path, out)
        except LadingError as error:
            one.failure = f"does not run: {error.diagnostics[0].message}"[:120]
    return [found[tool] for tool in tools]


def run(tool: str, path: Path, limit: float, folder: Path, runs: list[dict[str, float]]) -> str:
    """Run one tool once and keep its seconds; returns why there are none."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    command = [sys.executable, "-m", "benchmarks.simplifiers", "--child", tool, str(path), str(folder / f"{tool}.onnx")]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=limit, env={**os.environ, **threads}
        )
    except subprocess.TimeoutExpired:
        return f"more than {limit:g} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]
    runs.append(json.loads(done.stdout.splitlines()[-1]))
    return ""


def nodes_of(path: Path) -> int:
    """Nodes of a file, those of subgraphs included, without Constant nodes."""
    import onnx

    from tools.conformance.operators import walk

    return sum(node.op_type != "Constant" for node in walk(onnx.load(path).graph))


def difference(original: Path, simplified: Path) -> float:
    """How far outputs are off those of the original, relative to the largest number of each."""
    import numpy as np

    from frontends.onnx.load import load
    from ir.evaluate.feed_sets import feed_sets
    from ir.evaluate.reference import open_reference

    graph = load(original)
    reference, other = open_reference(original, graph), open_reference(simplified, load(simplified))
    worst = 0.0
    for item in feed_sets(graph, reference.run, most=2, seconds=20.0):
        found = other.run(item.feeds)
        for name, wanted in item.wanted.items():
            if name not in found or found[name].shape != wanted.shape:
                return float("inf")
            gap = np.abs(found[name].astype(np.float64) - wanted.astype(np.float64)).max(initial=0.0)
            worst = max(worst, float(gap / max(np.abs(wanted.astype(np.float64)).max(initial=0.0), 1e-6)))
    return worst


def table(rows: Iterable[Simplified], before: dict[str, int]) -> str:
    """A Markdown table, a line for each model."""
    rows = list(rows)
    tools = list(dict.fromkeys(row.tool for row in rows))
    head = "| model | nodes | " + " | ".join(f"{tool}: nodes | s | difference" for tool in tools) + " |"
    lines = [head, "|---|" + "---|" * (1 + 3 * len(tools))]
    for model in dict.fromkeys(row.model for row in rows):
        cells = [model, str(before[model])]
        for row in (row for row in rows if row.model == model):
            failed = [row.failure.removeprefix("==> "), "", ""]
            cells += failed if row.failure else [str(row.nodes), f"{row.seconds:.3f}", f"{row.difference:.0e}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run from the command line; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--limit", type=float, default=300.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", metavar="TOOL")
    args = parser.parse_args()
    if args.child:
        child(args.child, *args.paths)
        return
    from tools.conformance.models import model_files

    tools = [tool for tool, (module, _) in TOOLS.items() if importlib.util.find_spec(module) is not None]
    for tool in TOOLS:
        if tool not in tools:
            print(f"{tool} is not installed and left out", file=sys.stderr)
    files = model_files(args.paths)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for path in files:
            rows += measured(path.resolve(), tools, args.repeat, args.limit, Path(folder))
    print(table(rows, {path.name: nodes_of(path) for path in files}))
    for tool in tools:
        started = [row.start_up for row in rows if row.tool == tool and not row.failure]
        if started:
            print(f"start-up of {tool}: {statistics.median(started):.2f} s")
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
