"""The instrument that evaluates the graph before and after each pass and names the first pass that changes numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import Dim, TensorType
from ir.graph.graph import Graph
from passes.framework.manager import Instrument, PassReport, Step

Arrays = Mapping[str, np.ndarray]
ROUNDING = {"f64": 1e-9, "f32": 1e-4, "f16": 1e-2, "bf16": 5e-2}
"""Largest error of an exact pass by element type of the output, relative to the output's largest magnitude."""
BUDGET = 0.1
"""Largest such error of a lossy pass."""


@dataclass(frozen=True, slots=True)
class Drift:
    """How far one output moved in one pass, at the sizes where it moved most.

    Attributes:
        max_abs: largest absolute difference; infinite where NaN, infinity or shape differ.
        relative: the same over the largest magnitude before the pass.
        largest: that magnitude.
        allowed: largest `relative` that is not an error.
        sizes: sizes of the dynamic dimensions.
    """

    max_abs: float
    relative: float
    largest: float
    allowed: float
    sizes: dict[str, int]


class CheckNumbers(Instrument):
    """Evaluates the graph on seeded inputs at two sizes of every dynamic dimension and compares around each pass.

    Two sizes, since a pass can be right for one by accident. Passes that change the graph's inputs or outputs are
    followed through `passes.framework.base.Pass.adapter`.

    Args:
        sizes: sizes of the dynamic dimensions, one mapping for each evaluation; chosen from their ranges if None.
        feeds: inputs to use instead of made-up ones.
        seed: of the made-up inputs.
        budget: largest relative error of a lossy pass.
        tolerance: largest relative error of an exact pass; by element type if None, see `ROUNDING`.
        memory_limit: bytes of constants that an evaluation may hold at once; weights are streamed then.
    """

    def __init__(
        self,
        *,
        sizes: Sequence[Mapping[str, int]] | None = None,
        feeds: Sequence[Arrays] | None = None,
        seed: int = 0,
        budget: float = BUDGET,
        tolerance: float | None = None,
        memory_limit: int | None = None,
    ) -> None:
        self.sizes = sizes
        self.feeds = list(feeds) if feeds is not None else None
        self.seed = seed
        self.budget = budget
        self.tolerance = tolerance
        self.memory_limit = memory_limit
        self._outputs: list[Arrays] | None = None
        self._labels: list[dict[str, int]] = []
        self._interface: tuple = ()

    def before(self, step: Step, graph: Graph) -> None:
        """See `Instrument.before`."""
        if self._outputs is not None:
            return
        if self.feeds is None:
            self._labels = [dict(item) for item in self.sizes or legal_sizes(input_dims(graph))]
            self.feeds = [self._sample(graph, sizes) for sizes in self._labels]
        else:
            self._labels = [{} for _ in self.feeds]
        self._outputs = self._evaluate(graph, self.feeds, "the input graph")
        self._interface = _interface(graph)

    def after(self, step: Step, graph: Graph, report: PassReport) -> None:
        """See `Instrument.after`."""
        if not report.changed:
            return
        feeds, wanted = self._adapted(step, graph)
        found = self._evaluate(graph, feeds, f"the graph after {step}")
        drifts = self._compare(step, graph, wanted, found)
        report.notes["numbers"] = {name: asdict(drift) for name, drift in drifts.items()}
        self.feeds, self._outputs, self._interface = list(feeds), found, _interface(graph)
        for name, drift in drifts.items():
            if not drift.relative <= drift.allowed:
                raise _drifted(step, name, drift)

    def _sample(self, graph: Graph, sizes: Mapping[str, int]) -> Arrays:
        from ir.evaluate.random_feeds import sample_feeds

        try:
            return sample_feeds(graph, sizes, self.seed)
        except LadingError as error:
            hint = "give the inputs to use"
            raise LadingError(
                "P362", f"no inputs can be made up: {error.diagnostics[0].message}", graph.name, hint
            ) from error

    def _evaluate(self, graph: Graph, feeds: Sequence[Arrays], what: str) -> list[Arrays]:
        from ir.evaluate.evaluator import Evaluator

        try:
            return list(Evaluator(graph, memory_limit=self.memory_limit).run_many(feeds))
        except LadingError as error:
            first = error.diagnostics[0]
            message = f"{what} cannot be evaluated: [{first.code}] {first.message}"
            raise LadingError("P362", message, first.where, first.hint) from error

    def _adapted(self, step: Step, graph: Graph) -> tuple[Sequence[Arrays], Sequence[Arrays]]:
        """Feeds for the graph after a pass, and the outputs that it should give."""
        feeds, outputs = self.feeds, self._outputs
        assert feeds is not None and outputs is not None
        now = _interface(graph)
        if now == self._interface:
            return feeds, outputs
        adapter = step.one.adapter(graph)
        if adapter is not None:
            feeds = [adapter.adapt_feeds(item, graph) for item in feeds]
            outputs = [adapter.adapt_outputs(item, graph) for item in outputs]
        names = {value.name for value in graph.outputs}
        if set(outputs[0]) != names or not set(feeds[0]) >= {value.name for value in graph.inputs}:
            ins, outs = ", ".join(value.name for value in graph.inputs), ", ".join(sorted(names))
            message = (
                f"{step.one.name} changed the signature to ({ins}) -> ({outs}) without saying what the values mean"
            )
            raise LadingError("P363", message, str(step), "its adapter method should relate old values to new ones")
        # A pass may drop inputs that nothing read.
        return [{value.name: item[value.name] for value in graph.inputs} for item in feeds], outputs

    def _compare(self, step: Step, graph: Graph, wanted: Sequence[Arrays], found: Sequence[Arrays]) -> dict[str, Drift]:
        worst: dict[str, Drift] = {}
        for name in (value.name for value in graph.outputs):
            for before, after, sizes in zip(wanted, found, self._labels, strict=True):
                drift = self._drift(step, graph, name, before[name], after[name], sizes)
                if name not in worst or not drift.relative <= worst[name].relative:
                    worst[name] = drift
        return worst

    def _drift(
        self, step: Step, graph: Graph, name: str, before: np.ndarray, after: np.ndarray, sizes: dict[str, int]
    ) -> Drift:
        max_abs, largest = distance(before, after)
        relative = max_abs / largest if largest else max_abs
        type_ = graph.value(name).type
        kind = type_.dtype.name if isinstance(type_, TensorType) else ""
        allowed = self.tolerance if self.tolerance is not None else ROUNDING.get(kind, 0.0)
        if step.one.lossy:
            allowed = max(self.budget, allowed)
        return Drift(max_abs, relative, largest, allowed, sizes)


def distance(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Largest absolute difference, and largest magnitude before; NaN and infinities must be in the same places."""
    if before.shape != after.shape:
        return float("inf"), 0.0
    if before.dtype.kind in "OUS":
        return (0.0 if np.array_equal(before, after) else float("inf")), 0.0
    if not before.size:
        return 0.0, 0.0
    a, b = before.astype(np.float64), after.astype(np.float64)
    usual = np.isfinite(a)
    if not np.array_equal(a[~usual], b[~usual], equal_nan=True) or not np.isfinite(b[usual]).all():
        return float("inf"), 0.0
    if not usual.any():
        return 0.0, 0.0
    return float(np.abs(a[usual] - b[usual]).max()), float(np.abs(a[usual]).max())


def _interface(graph: Graph) -> tuple:
    return tuple((value.name, value.type) for value in graph.inputs), tuple(value.name for value in graph.outputs)


def _drifted(step: Step, name: str, drift: Drift) -> LadingError:
    kind = "its budget" if step.one.lossy else "rounding"
    message = (
        f"{step.one} changed output {name} by {drift.max_abs:.3g}, {drift.relative:.3g} of its largest value; "
        f"{kind} allows {drift.allowed:.3g}"
    )
    where = f"{step}, dimensions {drift.sizes}" if drift.sizes else str(step)
    return LadingError("P361", message, where)


def input_dims(graph: Graph) -> list[Dim]:
    """The symbolic dimensions of a graph's inputs, in order of appearance."""
    shapes = (value.shape or () for value in graph.inputs)
    return list(dict.fromkeys(dim for shape in shapes for dim in shape if isinstance(dim, Dim)))


def legal_sizes(dims: Iterable[Dim]) -> tuple[dict[str, int], dict[str, int]]:
    """Two sizes for every dimension, different from each other and between dimensions where the ranges allow it."""
    found: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for index, dim in enumerate(dims):
        step = dim.multiple_of
        lowest = -(-max(dim.low, 1) // step) * step
        for sizes, extra in zip(found, (2 + index, 5 + 2 * index), strict=True):
            wanted = lowest + (extra if step == 1 else extra // 2 * step)
            while wanted > lowest and not dim.accepts(wanted):
                wanted -= step
            sizes[dim.name] = wanted if dim.accepts(wanted) else dim.low
    return found
