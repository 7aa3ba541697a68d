"""Modules of our own operators, written by us."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import backends.contract as c
from backends.backend import Order
from backends.mnn.modules.verify import Measurement
from backends.mnn.modules.way import MODEL, WEIGHTS, Way
from backends.mnn.target.releases import MnnTarget
from ir.base.diag import LadingError
from ir.graph.graph import Graph

if TYPE_CHECKING:
    from backends.mnn.write.weight_layout import Layout

BAR = 1e-3
"""How far outputs may be off what the stored weights give, relative to the largest."""

ROUNDS = {"quick": 2, "full": 8}
"""Random inputs that are run."""

TIMEOUT_S = 300


@dataclass(frozen=True)
class Gap:
    """How far outputs are from a reference: the largest difference, as it is and relative to the largest number."""

    absolute: float = 0.0
    relative: float = 0.0

    def joined(self, wanted: Iterable[np.ndarray], got: Iterable[np.ndarray]) -> Gap:
        """With what one more run shows; infinite where sizes differ or something is not a number."""
        found = self
        for one, other in zip(wanted, got, strict=True):
            if one.size != other.size:
                return Gap(float("inf"), float("inf"))
            gap = float(np.abs(one.reshape(-1).astype(np.float64) - other.reshape(-1)).max(initial=0.0))
            gap = gap if np.isfinite(gap) else float("inf")
            size = max(float(np.abs(one).max(initial=0.0)), 1e-6)
            found = Gap(max(found.absolute, gap), max(found.relative, gap / size))
        return found


class Written(Way):
    """A module that is written operator by operator."""

    def __init__(self, order: Order, target: MnnTarget, pipeline: str = "") -> None:
        super().__init__(order, target, pipeline)
        self._layout: Layout | None = None

    def emit(self, graph: Graph, folder: Path) -> Mapping[str, str]:
        """See `Way.emit`."""
        from backends.mnn.lower.fit import check_storage, fit
        from backends.mnn.run.native import json_to_mnn
        from backends.mnn.write.net_json import build_net
        from backends.mnn.write.weight_file import fill, weight_jobs
        from backends.mnn.write.weight_layout import plan_layout

        fit(graph, self.target)
        self._layout = layout = plan_layout(graph)
        check_storage(layout, self.target)
        json_to_mnn(build_net(graph, layout), folder / MODEL)
        weights = folder / WEIGHTS
        fill(weights, layout.nbytes, weight_jobs(layout, weights), self.order.pool)
        return {MODEL: "model", WEIGHTS: "weights"}

    def verify(self, graph: Graph, original: Graph, folder: Path) -> None:
        """See `Way.verify`; on the installed release."""
        from backends.bars import ERROR_BARS
        from backends.mnn.target.environments import installed_version
        from ir.evaluate.evaluator import evaluate
        from ir.evaluate.random_feeds import sample_feeds
        from ir.facts.precision import PrecisionPlan

        exact = whole = Gap()
        rounds = ROUNDS[self.order.verify]
        for seed in range(rounds):
            feeds = sample_feeds(original, seed=seed)
            got = self._run(graph, feeds, folder)
            exact = exact.joined(evaluate(graph, feeds).values(), got)
            whole = whole.joined(evaluate(original, feeds).values(), got)
        plan = graph.required_fact(PrecisionPlan)
        bar = ERROR_BARS[min((item.bits for item in plan.storage.values()), default=32)]
        for gap, limit, what in ((exact, BAR, "its stored weights"), (whole, bar, "the original")):
            if not gap.relative <= limit:
                message = (
                    f"outputs are off by {gap.relative:.3g} of the largest from {what}, and {limit:.3g} is allowed"
                )
                raise LadingError("V702", message, hint="nothing was written")
        where, release = f"{platform.system()} {platform.machine()}", installed_version() or ""
        self.runs = [
            Measurement(release, where, "decoded weights", rounds, exact.absolute, exact.relative),
            Measurement(release, where, "float", rounds, whole.absolute, whole.relative),
        ]

    def _run(self, graph: Graph, feeds: dict[str, np.ndarray], folder: Path) -> list[np.ndarray]:
        from backends.mnn.run.native import RUNNER, run_child

        names = [value.name for value in graph.inputs]
        outputs = [value.name for value in graph.outputs]
        request = {"model": str((folder / MODEL).resolve()), "inputs": names, "outputs": outputs}
        given = {name: array.astype(np.int32) if array.dtype.kind in "ib" else array for name, array in feeds.items()}
        script = RUNNER.with_name("module_runner.py")
        ended = run_child(script, request, given, interpreter=sys.executable, timeout_s=TIMEOUT_S)
        arrays = [ended.arrays.get(f"outputs/{name}") for name in outputs]
        found = [array for array in arrays if array is not None]
        if not ended.ok or len(found) < len(outputs):
            raise LadingError("B668", f"the runtime {ended.outcome}", where=ended.log[-2000:])
        return found

    def weights(self, graph: Graph) -> tuple[c.WeightEntry, ...]:
        """See `Way.weights`."""
        from backends.mnn.contract import weight_entry

        matrices = self._layout.matrices.values() if self._layout is not None else ()
        return tuple(weight_entry(matrix, {}, WEIGHTS) for matrix in matrices)


__all__ = ["BAR", "Gap", "Written"]
