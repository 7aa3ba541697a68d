"""What steps after the choice of widths have in common: the planned weights, the model stored so, and its divergence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import F32
from ir.evaluate.replaced_weights import Variant, divergences, head_of
from ir.facts.calibration import Calibration
from ir.facts.precision import PrecisionPlan
from ir.facts.tuning import Step, Tuning
from ir.graph.describe import describe
from ir.graph.digests import value_digests
from ir.graph.graph import Graph, Node
from ir.quant.statistics.moments import CalibrationText
from ir.quant.storage import Storage
from ir.tensor.base import Tensor
from ir.tensor.elementwise import convert
from passes.calibration.calibrate import fed_digest
from passes.framework.context import PassContext
from passes.precision.planned_weights import Weight, moments_for, weights_of

POSITIONS = 2048
"""Positions that gradients are computed for at a time."""


def windows_of(ctx: PassContext, tokens: int) -> list[np.ndarray]:
    """The first calibration windows, of about so many tokens, at least one.

    Raises:
        LadingError: Q433 there are none, or none held out.
    """
    text = ctx.get(CalibrationText)
    if not text.calibration or not text.held_out:
        raise LadingError(
            "Q433", "there are no windows to look at or to measure with", hint="give the run a longer text"
        )
    found: list[np.ndarray] = []
    seen = 0
    for window in text.calibration:
        if found and seen + len(window) > tokens:
            break
        found.append(window)
        seen += len(window)
    return found


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


def stored_as_planned(graph: Graph, plan: PrecisionPlan, tuned: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """What the runtime computes with instead of each planned weight, with the numbers tuned so far unless others are given;
    embedding rows keep their numbers."""
    found: dict[str, Tensor] = {}
    tuned = (graph.fact(Tuning) or Tuning()).tuned if tuned is None else tuned
    for weight in weights_of(graph):
        storage = plan.storage.get(weight.name)
        if storage is not None and storage.bits <= 16 and weight.role != "embedding":
            found[weight.name] = weight.restored(
                storage, moments_of(graph, weight, storage), tuned.get(weight.name, "")
            )
    return found


def judged(graph: Graph, ctx: PassContext, step: str, tokens: int, before: Variant, after: Variant) -> Step:
    """A step that looked at so many tokens, kept if the model stored as after it is nearer to the float model on the
    held-out windows than as before."""
    windows = ctx.get(CalibrationText).held_out
    first, second = divergences(graph, windows, [before, after], executor=ctx.executor, progress=ctx.progress)
    return Step(step, tokens, first.kl, second.kl, first.positions, second.kl < first.kl)


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
    "model_digest",
    "moments_of",
    "planned",
    "runs_of",
    "single",
    "stored_as_planned",
    "windows_of",
]
