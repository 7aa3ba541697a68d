"""One ONNX operator after another in one graph, lowered to MNN and run on a release as a module."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from backends.mnn.run.native import RUNNER, json_to_mnn, run_child
from backends.mnn.write.net_json import build_net
from backends.mnn.write.weight_file import fill, weight_jobs
from backends.mnn.write.weight_layout import plan_layout
from ir.base.types import F32, I32, TensorType
from ir.graph.graph import Graph, Value
from passes.framework.manager import PassManager
from tests.support.decoders.forms import Builder
from tests.support.runs import interpreters

PIPELINE = "infer-types,assign-precision{bits=32 logits-bits=32},insert-qdq,legalize-mnn,cse,dce"
Case = Callable[["Operands"], Value]


class Operands(Builder):
    """Adds nodes, with operands of several shapes and types to hand.

    Attributes:
        x: ``f32[1, seq, 12]``; `y` another one, `heads` ``f32[1, seq, 4, 6]``, `column` ``f32[1, seq, 1]``, `flat`
            ``f32[seq, 12]``.
        counts: ``i32[1, seq]``, none negative; `ints` ``i32[1, seq, 12]``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.graph.remove_input(self.ids)
        shapes = {"x": (1, self.seq, 12), "y": (1, self.seq, 12), "heads": (1, self.seq, 4, 6),
                  "column": (1, self.seq, 1), "flat": (self.seq, 12)}  # fmt: skip
        self.x, self.y, self.heads, self.column, self.flat = (
            self.graph.add_input(name, TensorType(F32, shape)) for name, shape in shapes.items()
        )
        self.counts = self.graph.add_input("counts", TensorType(I32, (1, self.seq)))
        self.whole = self.graph.add_input("whole", TensorType(I32, (1, self.seq, 12)))


def feeds_of(graph: Graph, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random arrays for the inputs of a graph of `Operands`."""
    random, found = np.random.default_rng(seed), {}
    for value in graph.inputs:
        shape = tuple(dim if isinstance(dim, int) else length for dim in value.dims)
        if value.dtype == F32:
            found[value.name] = random.normal(0, 2, shape).astype(np.float32)
        else:
            low = 0 if value.name == "counts" else -3
            found[value.name] = random.integers(low, 6, shape).astype(np.int32)
    return found


def graph_of(cases: Mapping[str, Case]) -> Graph:
    """A graph with an output for each case, as single precision where it is not."""
    made = Operands()
    ends = []
    for case in cases.values():
        ends.append(made.op("Cast", case(made), to=F32.onnx))
    made.graph.set_outputs(ends)
    return made.graph


def module_of(graph: Graph, path: Path) -> Graph:
    """Lower a graph, which is edited, and write it as a module."""
    PassManager(PIPELINE).run(graph)
    layout = plan_layout(graph)
    json_to_mnn(build_net(graph, layout), path)
    weights = path.with_name(f"{path.name}.weight")
    with ThreadPoolExecutor(1) as pool:
        fill(weights, layout.nbytes, weight_jobs(layout, weights), pool)
    return graph


def run_module(path: Path, graph: Graph, feeds: Mapping[str, np.ndarray], version: str) -> list[np.ndarray]:
    """What a release computes."""
    outputs = [value.name for value in graph.outputs]
    request = {"model": str(path), "inputs": [value.name for value in graph.inputs], "outputs": outputs}
    child = run_child(
        RUNNER.with_name("module_runner.py"), request, dict(feeds), interpreter=interpreters()[version], timeout_s=60
    )
    missing = [name for name in outputs if f"outputs/{name}" not in child.arrays]
    assert not missing, (child.log, missing)
    return [child.arrays[f"outputs/{name}"] for name in outputs]


def distance(want: np.ndarray, got: np.ndarray) -> float:
    """The largest difference over the largest number, infinite where sizes differ."""
    if want.size != got.size:
        return math.inf
    found = np.abs(want.astype(np.float64).reshape(-1) - got.reshape(-1)).max(initial=0)
    return float(found / max(np.abs(want).max(initial=0), 1e-3))
