"""What quantizing some units costs: outputs of a copy of the graph against those of the float model."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from ir.evaluate.evaluator import Evaluator
from ir.facts.int8_plan import Int8Plan
from ir.graph.copy import copied
from ir.graph.graph import Graph
from ir.quant.statistics.samples import Samples
from passes.static_quant.insert_static_qdq import insert
from passes.static_quant.operators import units_of

Outputs = list[list[np.ndarray]]
"""Arrays of each output for each sample."""


def quantized_copy(graph: Graph, names: Collection[str], plan: Int8Plan) -> Graph:
    """A copy in which the units of some names compute in integers, as a plan stores numbers."""
    twin = copied(graph)
    insert(twin, [unit for unit in units_of(twin) if unit.name in names], plan)
    return twin


def outputs_of(graph: Graph, samples: Samples, threads: int | None = None) -> Outputs:
    """What a graph gives for samples."""
    evaluator = Evaluator(graph, threads=threads)
    return [list(evaluator.run(feed).values()) for feed in samples]


class Meter:
    """Measures against the float model on some samples.

    Attributes:
        samples: what is run.
        runs: how often a copy was.
    """

    def __init__(self, graph: Graph, samples: Samples, threads: int | None = None) -> None:
        self.samples = samples
        self.runs = 0
        self._graph = graph
        self._threads = threads
        self._wanted = outputs_of(graph, samples, threads)

    def error(self, names: Collection[str], plan: Int8Plan) -> float:
        """Relative error of the outputs with some units in integers."""
        if not names:
            return 0.0
        self.runs += 1
        twin = quantized_copy(self._graph, names, plan)
        return relative_error(self._wanted, outputs_of(twin, self.samples, self._threads))


def relative_error(wanted: Sequence[Sequence[np.ndarray]], got: Sequence[Sequence[np.ndarray]]) -> float:
    """Root mean square of the difference over that of what is wanted, over all samples, of the worst output.

    Of outputs that are whole numbers the share that differs. The signal to quantization noise ratio in decibels is
    ``-20 log10`` of it.
    """
    return max((_relative([(a[place], b[place]) for a, b in zip(wanted, got, strict=True)])
                for place in range(len(wanted[0]))), default=0.0)  # fmt: skip


def _relative(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    if any(a.shape != b.shape for a, b in pairs):
        # Sizes that depend on numbers, as those of detections, are another result.
        return math.inf
    if any(a.dtype.kind != "f" for a, _ in pairs):
        return sum(int(np.count_nonzero(a != b)) for a, b in pairs) / max(1, sum(a.size for a, _ in pairs))
    gap = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in pairs)
    base = sum(float(np.square(a.astype(np.float64)).sum()) for a, _ in pairs)
    if not math.isfinite(gap):
        return math.inf
    return math.sqrt(gap / base) if base else (0.0 if not gap else math.inf)


__all__ = ["Meter", "outputs_of", "quantized_copy", "relative_error"]
