"""What steps after the choice of widths have in common: the planned weights, the model stored so, and its divergence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import F32
from ir.evaluate.replaced_weights import Variant, head_of
from ir.facts.calibration import Calibration
from ir.facts.precision import PrecisionPlan
from ir.facts.tuning import Step
from ir.graph.describe import describe
from ir.graph.digests import value_digests
from ir.graph.graph import Graph, Node
from ir.quant.statistics.moments import CalibrationText
from ir.quant.storage import Storage
from ir.tensor.base import Tensor
from ir.tensor.elementwise import convert
from passes.calibration.calibrate import fed_digest
from passes.framework.context import PassContext
from passes.precision.planned_weights import Weight, moments_for, same_matrix, weights_of

if TYPE_CHECKING:
    from passes.precision.measured.probes import Measured

MEASURING = "measuring on held-out text"
POSITIONS = 2048
"""Positions that gradients are computed for at a time."""


def windows_of(ctx: PassContext, tokens: int) -> list[np.ndarray]:
    """Calibration windows of about so many tokens, at least one, spread evenly over the text.

    Raises:
        LadingError: Q433 there are none, or none held out.
    """
    text = ctx.get(CalibrationText)
    if not text.calibration or not text.held_out:
        raise LadingError(
            "Q433", "there are no windows to look at or to measure with", hint="give the run a longer text"
        )
    sizes = np.cumsum([len(window) for window in text.calibration])
    count = max(1, int(np.searchsorted(sizes, tokens, side="right")))
    places = np.linspace(0, len(sizes) - 1, count).round().astype(int)
    return [text.calibration[place] for place in places]


def runs_of(windows: Sequence[np.ndarray]) -> Iterator[list[int]]:
    """Numbers of windows that are computed together."""
    run: list[int] = []
    for number, window in enumerate(windows):
        if run and sum(len(windows[place]) for place in run) + len(window) > POSITIONS:
            yield run
            run = []
        run.append(number)
    if run:
        yield run


def logits_product(graph: Graph) -> Node:
    """The product that gives the logits.

    Raises:
        LadingError: Q493 they are computed otherwise.
    """
    head = head_of(graph)
    if head is None:
        last = graph.outputs[0].producer
        raise LadingError(
            "Q493",
            "gradients begin at the logits matrix, and logits are not the product with a constant matrix",
            where=describe(last) if last is not None else graph.name,
            hint="leave what needs them out: --passes calibrated",
        )
    return head


def moments_of(graph: Graph, weight: Weight, storage: Storage) -> str:
    """Key of the statistics that a weight is quantized with."""
    fact = graph.fact(Calibration)
    return moments_for(storage, fact.keys.get(weight.name, "")) if fact is not None else ""


def stored_as_planned(graph: Graph, plan: PrecisionPlan) -> dict[str, Tensor]:
    """What the runtime computes with instead of each planned weight, embedding rows included."""
    found: dict[str, Tensor] = {}
    weights = weights_of(graph)
    pair = same_matrix(weights) if plan.tied else None
    for weight in weights:
        storage = plan.storage.get(weight.name)
        if storage is not None and storage.bits < 32:
            asked = pair[1] if pair is not None and weight is pair[0] else weight
            found[weight.name] = weight.restored(storage, moments_of(graph, asked, storage))
    return found


def judged(graph: Graph, ctx: PassContext, step: str, tokens: int, before: Variant, after: Variant) -> Step:
    """A step that looked at so many tokens, kept if the model stored as after it is nearer to the float model on the
    held-out windows than as before. What is known of a plan that was chosen by measurement is brought up to date."""
    from passes.precision.measured.probes import Meter

    outcome = graph.required_fact(PrecisionPlan).outcome
    meter = Meter(graph, ctx.get(CalibrationText).held_out, ctx)
    positions, known = (meter.available, None) if outcome is None else (outcome.positions, outcome.measured)
    variants = [before, after] if known is None else [after]
    *first, found = meter.measure(variants, positions, MEASURING)
    known = first[0].kl if known is None else known
    kept = found.kl < known
    for now in [found] if kept else first:
        _bring_up_to_date(graph, now)
    return Step(step, tokens, known, found.kl, found.positions, kept)


def measured_now(graph: Graph, ctx: PassContext, variant: Variant) -> None:
    """Bring what is known of a plan, chosen by measurement, up to date: it is stored as the variant says."""
    from passes.precision.measured.probes import Meter

    outcome = graph.required_fact(PrecisionPlan).outcome
    assert outcome is not None
    meter = Meter(graph, ctx.get(CalibrationText).held_out, ctx)
    (found,) = meter.measure([variant], outcome.positions, MEASURING)
    _bring_up_to_date(graph, found)


def _bring_up_to_date(graph: Graph, found: Measured) -> None:
    plan = graph.required_fact(PrecisionPlan)
    if plan.outcome is not None:
        outcome = replace(plan.outcome, measured=found.kl, top1=found.top1, positions=found.positions)
        graph.set_fact(PrecisionPlan.name, replace(plan, outcome=outcome))


def model_digest(graph: Graph) -> str:
    """Digest of all that the float model computes, windows aside."""
    output = graph.outputs[0]
    return value_digests(graph, [output], lambda value: fed_digest(graph, value))[output]


def single(graph: Graph, name: str) -> np.ndarray:
    """The numbers of a constant of the float model, float32."""
    return convert(graph.value(name).tensor.load(), F32)


def planned(graph: Graph, plan: PrecisionPlan, keys: Mapping[str, str]) -> list[Weight]:
    """The weights of the layers that are stored in codes chosen by second moments."""
    return [
        weight
        for weight in weights_of(graph)
        if weight.role == "layer"
        and weight.name in keys
        and weight.name in plan.storage
        and plan.storage[weight.name].bits <= 8
    ]


__all__ = [
    "judged",
    "logits_product",
    "measured_now",
    "model_digest",
    "moments_of",
    "planned",
    "runs_of",
    "single",
    "stored_as_planned",
    "windows_of",
]
