"""Gather what becomes of every weight's outputs, so that rounding knows which errors the predictions feel.

One pass backwards over the calibration text gives the second moments of the gradients of the predictions' likelihood with
respect to what each weight computes. Sums lie in files while they grow, so that memory does not grow with the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ir.base.diag import LadingError
from ir.base.scratch import scratch_folder
from ir.evaluate.backward.differentiate import Backward
from ir.evaluate.backward.head import Head, likelihood_gradients
from ir.evaluate.token_feeds import window_feeds
from ir.facts.calibration import Calibration
from ir.facts.precision import PrecisionPlan
from ir.facts.tuning import with_step
from ir.graph.graph import Graph
from ir.quant.methods.yaqa import TOGETHER
from ir.quant.statistics.moments import MomentStore, joined, parts_of, windows_digest
from ir.tensor.one_thread import one_thread
from passes.calibration.planned import (
    judged,
    logits_product,
    model_digest,
    planned,
    runs_of,
    single,
    stored_as_planned,
    windows_of,
)
from passes.framework.base import Pass
from passes.framework.context import PassContext
from passes.framework.options import option
from passes.precision.measured.kept import digest_of
from passes.precision.planned_weights import Weight

ONE_SIDE = ("gptq", "gptaq")
"""Methods of the weights that are rounded against both sides instead."""
FORMAT = "outputs 2"
"""Part of every key; another one when the numbers are computed otherwise."""


@dataclass(frozen=True)
class CalibrateOutputs(Pass):
    """Have weights rounded against both sides: what flows in, and what their errors do to the predictions.

    To run between assign-precision and insert-qdq. The second moments of the gradients behind every weight of the
    layers are gathered from the calibration text by one pass backwards over the float model, and kept like other
    statistics. Weights whose method is gptq or gptaq then take the method yaqa. It is kept only if it lowers the
    divergence on the held-out windows; what it gained is in the contract. The pass recalibrate behind it has them make
    up for the errors of weights before them, too.
    """

    name = "calibrate-outputs"
    requires = ("precision-plan", "calibration")
    passing = frozenset({"computed", "cached"})

    gradient_tokens: int = option(16384, help="calibration tokens that gradients are computed for", low=1)
    memory: int = option(64, help="MiB of weights to hold at once", low=1)

    def run(self, graph: Graph, ctx: PassContext) -> Mapping[str, int]:
        """See `Pass.run`."""
        plan, fact = graph.required_fact(PrecisionPlan), graph.required_fact(Calibration)
        weights = [
            weight
            for weight in planned(graph, plan, fact.keys)
            if plan.storage[weight.name].method in ONE_SIDE and len(parts_of(fact.keys[weight.name])) == 1
        ]
        if not weights:
            return {"weights": 0, "computed": 0, "cached": 0}
        windows = windows_of(ctx, self.gradient_tokens)
        keys = _keys(graph, weights, windows)
        store = MomentStore(ctx.store)
        missing = [weight for weight in weights if not all(map(store.has, keys[weight.name]))]
        if missing:
            _gather(graph, missing, keys, windows, self.memory << 20, ctx, store)
        before = stored_as_planned(graph, plan)
        self._take(graph, plan, fact, keys)
        after = stored_as_planned(graph, graph.required_fact(PrecisionPlan))
        ctx.progress(0, 1, "quantizing against both sides")
        step = judged(graph, ctx, self.name, sum(map(len, windows)), before, after)
        if not step.kept:
            graph.set_fact(PrecisionPlan.name, plan)
            graph.set_fact(Calibration.name, fact)
            ctx.note(
                "Q494",
                f"statistics of outputs gain nothing on held-out text: KL {step.before:.2e} without, {step.after:.2e} with "
                "them; they are left out",
                hint="give more text to calibrate on",
            )
        with_step(graph, step)
        return {
            "weights": len(weights) if step.kept else 0,
            "computed": len(missing),
            "cached": len(weights) - len(missing),
        }

    def _take(self, graph: Graph, plan: PrecisionPlan, fact: Calibration, keys: Mapping[str, Sequence[str]]) -> None:
        """Record that weights are rounded against both sides."""
        storage = {name: replace(item, method="yaqa") if name in keys else item for name, item in plan.storage.items()}
        both = {name: joined(key, keys[name]) if name in keys else key for name, key in fact.keys.items()}
        graph.set_fact(PrecisionPlan.name, replace(plan, storage=storage))
        graph.set_fact(Calibration.name, replace(fact, keys=both))


def _keys(graph: Graph, weights: Sequence[Weight], windows: Sequence[np.ndarray]) -> dict[str, list[str]]:
    """Keys of the statistics of each weight's rows, run by run."""
    model = model_digest(graph)
    text = windows_digest(windows)
    return {
        weight.name: [
            digest_of([FORMAT, model, text, weight.name, start, TOGETHER]) for start in range(0, weight.rows, TOGETHER)
        ]
        for weight in weights
    }


def _gather(
    graph: Graph,
    weights: Sequence[Weight],
    keys: Mapping[str, Sequence[str]],
    windows: Sequence[np.ndarray],
    limit: int,
    ctx: PassContext,
    store: MomentStore,
) -> None:
    """Compute the statistics that are missing and keep them."""
    head = logits_product(graph)
    backward = Backward(graph, [weight.name for weight in weights], head.operand(0), memory_limit=limit)
    matrix = Head(head.operand(1).tensor)
    tokens = sum(map(len, windows))
    what, steps = f"gradients on {tokens} tokens", len(windows)
    with scratch_folder() as folder, one_thread():
        sums = {weight.name: _sums(folder, number, weight.rows) for number, weight in enumerate(weights)}
        for run in runs_of(windows):
            ctx.progress(run[0], steps, what)
            states = backward.start(window_feeds(graph, [windows[place] for place in run]))
            backward.run(
                states,
                partial(single, graph),
                lambda finals, run=run: likelihood_gradients(finals, matrix, run),  # type: ignore[misc]
                lambda name, _, gradients: _add(sums[name], gradients),
            )
        ctx.progress(steps, steps, what)
        for weight in weights:
            for key, found in zip(keys[weight.name], sums[weight.name], strict=True):
                _save(store, key, found, tokens, weight.name)


def _sums(folder: Path, number: int, rows: int) -> list[np.ndarray]:
    """Sums for each run of rows, float32 and 0, in files."""
    found: list[np.ndarray] = []
    for start in range(0, rows, TOGETHER):
        size = min(rows, start + TOGETHER) - start
        found.append(np.memmap(folder / f"{number}.{start}", np.float32, "w+", shape=(size, size)))
    return found


def _add(sums: Sequence[np.ndarray], gradients: np.ndarray) -> None:
    for place, total in enumerate(sums):
        part = gradients[:, place * TOGETHER : place * TOGETHER + len(total)]
        total += part.T @ part


def _save(store: MomentStore, key: str, sums: np.ndarray, tokens: int, where: str) -> None:
    if not np.isfinite(sums).all():
        raise LadingError(
            "Q436",
            "gradients of what flows out of a weight are not finite on the calibration text",
            where=where,
            hint="check the checkpoint with --verify; text of another kind does not help",
        )
    nothing = np.zeros(len(sums), np.float32)
    rows = (row[: place + 1] / np.float32(tokens) for place, row in enumerate(sums))
    store.write(key, tokens, (nothing, nothing, nothing), rows)


__all__ = ["CalibrateOutputs"]
