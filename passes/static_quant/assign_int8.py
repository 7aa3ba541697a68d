"""Choose what computes in 8-bit integers: by what can, by borders that pay, and by the error that is measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from ir.base.diag import LadingError, suggest
from ir.facts.activation_ranges import ActivationRanges
from ir.facts.int8_plan import Int8Plan
from ir.graph.graph import Graph
from passes.framework.base import Pass
from passes.framework.context import PassContext
from passes.framework.options import option
from passes.static_quant.borders import Prices, settled
from passes.static_quant.measure import Meter
from passes.static_quant.observe import required_samples
from passes.static_quant.operators import OPERATORS, Unit, units_of

SENSITIVE, NAMED, OTHER, CUT = (
    "costs too much accuracy",
    "named by keep",
    "its operator is not among the operators",
    "conversions to and from integers would cost more",
)
"""Why a unit stays in floats."""


@dataclass(frozen=True)
class AssignInt8(Pass):
    """Choose which layers compute in 8-bit integers.

    Convolutions and products with constant weights do, and what lies between them, as long as the borders pay: they are a
    minimum cut through the data flow, whose capacities are the bytes that conversions move and the time that integers
    save. The model is then run on held-out samples with everything rounded as planned. Where outputs are off by more than
    ``max-error`` of their size, layers are ranked by the error that each causes alone, and the most sensitive ones stay in
    floats, as few as the limit allows. What is recorded says how numbers are stored, too, for the passes behind.
    """

    name = "assign-int8"
    requires = ("typed", "activation-ranges")
    establishes = ("int8-plan",)

    max_error: float | None = option(
        0.05, help="largest error of an output relative to its size, as root mean squares; 0.05 is 26 dB", low=0.0
    )
    keep: tuple[str, ...] = option((), help="results of layers that stay in floats: shell patterns, or re:EXPRESSION")
    operators: tuple[str, ...] = option((), help="operators that may compute in integers; all that can when empty")
    activations: Literal["int8", "uint8"] = option("uint8", help="element type of activations")
    symmetric: bool = option(False, help="the zero of activations is the middle of their range")
    weight_bits: Literal[7, 8] = option(8, help="width of weights; 7 for processors without 8-bit dot products")
    per_channel: bool = option(True, help="a scale for each output channel of a weight, else one for all")
    widest: float = option(4.0, help="times that a range is widened so that a concatenation need not round", low=1.0)
    products: float = option(
        8.0, help="multiplications that integers save as much time on as moving a byte takes", low=1.0
    )
    elements: float = option(
        2.0, help="bytes whose moving takes what integers cost beyond floats, of an Add and its like"
    )
    samples: int = option(4, help="samples that the error of single layers is measured on", low=1)
    threads: int = option(0, help="threads of the evaluation; 0 for one per processor", low=0)

    def run(self, graph: Graph, ctx: PassContext) -> Mapping[str, int]:
        """See `Pass.run`."""
        self._require_operators()
        units, ranges = units_of(graph), graph.required_fact(ActivationRanges).ranges
        units = [unit for unit in units if unit.has_ranges(ranges)]
        reasons = self._kept(units)
        choice = _Choice(graph, units, reasons, self, ctx)
        plan = choice.plan()
        if not any(unit.is_product and unit.name in plan.int8 for unit in units):
            ctx.warn("Q484", _nothing(units, reasons), graph.name, "the fact int8-plan has the reason of each layer")
        graph.set_fact(plan.name, plan)
        return {"int8": len(plan.int8), "floats": len(plan.kept), "measured": choice.runs}

    def _require_operators(self) -> None:
        """Refuse operators that have no row; LadingError Q475."""
        for op in self.operators:
            if op not in OPERATORS:
                hint = suggest(op, list(OPERATORS)) or f"there are {', '.join(sorted(OPERATORS))}"
                raise LadingError("Q475", f"{op!r} is no operator that computes in 8-bit integers", self.name, hint)

    def _kept(self, units: Sequence[Unit]) -> dict[Unit, str]:
        """Units that the options keep in floats, and why.

        Raises:
            LadingError: Q475 a pattern that speaks of none.
        """
        found = {unit: OTHER for unit in units if self.operators and unit.head.op not in self.operators}
        for pattern in self.keep:
            matching = [unit for unit in units if any(_matches(pattern, node.output.name) for node in unit.nodes)]
            if not matching:
                names = [unit.name for unit in units]
                hint = suggest(pattern, names) or f"there are {', '.join(names[:6])}"
                raise LadingError("Q475", f"keep={pattern} matches the result of no layer", self.name, hint)
            found |= dict.fromkeys(matching, NAMED)
        return found

    def empty_plan(self) -> Int8Plan:
        """A plan that says how numbers are stored, and nothing else."""
        return Int8Plan((), self.activations, self.symmetric, self.weight_bits, self.per_channel, self.widest)


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("re:"):
        return re.search(pattern[3:], name) is not None
    return fnmatchcase(name, pattern)


def _nothing(units: Sequence[Unit], reasons: Mapping[Unit, str]) -> str:
    if not any(unit.is_product for unit in units):
        return "nothing computes in 8-bit integers: there is no convolution or product with constant weights in float32"
    why = next((reasons[unit] for unit in units if unit.is_product and unit in reasons), CUT)
    return f"nothing computes in 8-bit integers: every layer stays in floats ({why})"


class _Choice:
    """One choice for one graph."""

    def __init__(
        self, graph: Graph, units: Sequence[Unit], reasons: dict[Unit, str], options: AssignInt8, ctx: PassContext
    ) -> None:
        self.graph = graph
        self.units = units
        self.reasons = reasons
        self.options = options
        self.ctx = ctx
        self.runs = 0
        self.empty = options.empty_plan()
        self.prices = Prices(options.products, options.elements)

    def plan(self) -> Int8Plan:
        """The plan, with what was measured of it; options that measure nothing leave that out."""
        chosen, limit = self._settled(()), self.options.max_error
        if limit is None or not chosen:
            return self._planned(chosen)
        threads = self.options.threads or None
        samples = required_samples(self.ctx).for_measuring
        meter = Meter(self.graph, samples, threads)
        error = meter.error(_names(chosen), self.empty)
        alone: dict[Unit, float] = {}
        if error > limit:
            alone = self._alone(chosen, Meter(self.graph, samples.first(self.options.samples), threads))
            chosen, error = self._within(limit, alone, meter)
        self.runs += meter.runs
        found = self._planned(chosen)
        told = {unit.name: value for unit, value in alone.items()}
        return replace(found, error=error, limit=limit, samples=len(samples), alone=told)

    def _settled(self, sensitive: Sequence[Unit]) -> set[Unit]:
        ranges = self.graph.required_fact(ActivationRanges).ranges
        return settled(self.graph, self.units, {*self.reasons, *sensitive}, ranges, self.prices)

    def _alone(self, chosen: set[Unit], meter: Meter) -> dict[Unit, float]:
        """The error that each unit causes when it alone computes in integers; those that move numbers cause none."""
        asked = [unit for unit in self.units if unit in chosen and unit.row.kind != "passing"]
        found = {}
        for done, unit in enumerate(asked):
            self.ctx.progress(done, len(asked), "measuring single layers")
            found[unit] = meter.error({unit.name}, self.empty)
        self.ctx.progress(len(asked), len(asked), "measuring single layers")
        self.runs += meter.runs
        return found

    def _within(self, limit: float, alone: Mapping[Unit, float], meter: Meter) -> tuple[set[Unit], float]:
        """The largest choice with at most this error: the fewest of the most sensitive units in floats, found by halving."""
        ranked = sorted(alone, key=lambda unit: -alone[unit])
        fewest, most = 0, len(ranked)
        best: tuple[set[Unit], float] = (set(), 0.0)
        sensitive: Sequence[Unit] = ranked
        while most - fewest > 1:
            middle = (fewest + most) // 2
            chosen = self._settled(ranked[:middle])
            error = meter.error(_names(chosen), self.empty)
            if error <= limit:
                most, best, sensitive = middle, (chosen, error), ranked[:middle]
            else:
                fewest = middle
        self.reasons |= dict.fromkeys(sensitive, SENSITIVE)
        return best

    def _planned(self, chosen: set[Unit]) -> Int8Plan:
        kept = {unit.name: self.reasons.get(unit, CUT) for unit in self.units if unit not in chosen}
        return replace(self.empty, int8=tuple(unit.name for unit in self.units if unit in chosen), kept=kept)


def _names(units: set[Unit]) -> set[str]:
    return {unit.name for unit in units}


__all__ = ["AssignInt8"]
