"""What steps after the choice of widths have in common: the planned weights, the model stored so, and its divergence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ir.base.diag import LadingError
from ir.evaluate.divergence import Divergence
from ir.evaluate.replaced_weights import Variant, divergences, head_of
from ir.facts.calibration import Calibration
from ir.facts.precision import PrecisionPlan
from ir.facts.tuning import Tuning
from ir.graph.describe import describe
from ir.graph.graph import Graph, Node
from ir.quant.statistics.moments import CalibrationText
from ir.quant.storage import Storage
from ir.tensor.base import Tensor
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


def stored_as_planned(graph: Graph, plan: PrecisionPlan) -> dict[str, Tensor]:
    """What the runtime computes with instead of each planned weight; embedding rows keep their numbers."""
    found: dict[str, Tensor] = {}
    tuned = (graph.fact(Tuning) or Tuning()).tuned
    for weight in weights_of(graph):
        storage = plan.storage.get(weight.name)
        if storage is not None and storage.bits <= 16 and weight.role != "embedding":
            found[weight.name] = weight.restored(
                storage, moments_of(graph, weight, storage), tuned.get(weight.name, "")
            )
    return found


def held_out_divergences(graph: Graph, ctx: PassContext, variants: Sequence[Variant]) -> list[Divergence]:
    """Divergence of each variant on the held-out windows."""
    windows = ctx.get(CalibrationText).held_out
    return divergences(graph, windows, variants, executor=ctx.executor, progress=ctx.progress)


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
    "held_out_divergences",
    "logits_product",
    "moments_of",
    "planned",
    "runs_of",
    "stored_as_planned",
    "windows_of",
]
