"""Move scales and zeros of quantized weights so that the whole model's predictions come closest to the float model's.

Codes stay what the methods chose. What is lowered is the KL divergence on the calibration windows, by Adam over the
gradients that `ir.evaluate.backward` gives; what decides is the divergence on the held-out windows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ir.evaluate.backward.differentiate import Backward
from ir.evaluate.backward.head import Head, Target
from ir.evaluate.token_feeds import window_feeds
from ir.facts.calibration import Calibration
from ir.facts.precision import PrecisionPlan
from ir.facts.tuning import with_step
from ir.graph.graph import Graph
from ir.quant.cache import find_blocks, make_blocks, shape_of, write_rows
from ir.quant.methods.base import Blocks
from ir.quant.statistics.moments import CalibrationText, windows_digest
from ir.quant.storage import Storage
from ir.quant.tuned import Scales
from ir.quant.weight import keep_all
from ir.tensor.one_thread import one_thread
from passes.calibration.planned import (
    judged,
    logits_product,
    model_digest,
    moments_of,
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

FORMAT = "tuned 1"
"""Part of every name; another one when the numbers are computed otherwise."""
RATES = {2: 0.01, 3: 0.006, 4: 0.003}
"""Largest step of Adam by width, in units of a block's scale; 0.002 where it says nothing."""
WARM = 0.1
"""Share of the steps over which the rate rises."""


@dataclass(frozen=True)
class TuneScales(Pass):
    """Tune scales and zeros of the layers' weights against the divergence from the float model, codes fixed.

    To run between assign-precision and insert-qdq, behind calibrate-outputs if that is used. The model as it will be
    stored is run over calibration windows forwards and backwards; scales, and zeros where they are real numbers, follow
    the gradient of the KL divergence. After every pass over the text the held-out windows are looked at, and the best
    numbers are kept, or none if nothing helped; the contract says what was gained. Weights of experts and of recurrent
    layers are refused (Q493).
    """

    name = "tune-scales"
    requires = ("precision-plan", "calibration")
    passing = frozenset({"cached"})

    tuning_tokens: int = option(61440, help="calibration tokens that each pass over the text looks at", low=1)
    passes: int = option(2, help="passes over the text", low=1)
    rate: float = option(0.0, help="largest step, in units of a scale; 0 for the usual one of each width", low=0.0)
    memory: int = option(64, help="MiB of weights to hold at once", low=1)

    def run(self, graph: Graph, ctx: PassContext) -> Mapping[str, int]:
        """See `Pass.run`."""
        plan, fact = graph.required_fact(PrecisionPlan), graph.required_fact(Calibration)
        weights = planned(graph, plan, fact.keys)
        if not weights:
            return {"weights": 0, "cached": 0}
        windows = windows_of(ctx, self.tuning_tokens)
        before = stored_as_planned(graph, plan)
        keep_all(before.values(), ctx.executor)
        names = self._names(graph, plan, weights, windows, ctx)
        missing = [weight for weight in weights if not _is_kept(ctx, weight, plan.storage[weight.name], names)]
        if missing:
            with one_thread():
                _Tuning(self, graph, ctx, plan, weights, windows).run(names)
        step = judged(graph, ctx, self.name, sum(map(len, windows)), before, stored_as_planned(graph, plan, names))
        with_step(graph, step, names if step.kept else None)
        if not step.kept:
            message = (
                f"tuned scales gain nothing on held-out text: KL {step.before:.2e} as they were; they are left out"
            )
            ctx.note("Q494", message, hint="give more text to calibrate on")
        return {"weights": len(weights) if step.kept else 0, "cached": len(weights) - len(missing)}

    def _names(
        self,
        graph: Graph,
        plan: PrecisionPlan,
        weights: Sequence[Weight],
        windows: Sequence[np.ndarray],
        ctx: PassContext,
    ) -> dict[str, str]:
        """The name of each weight's result: it depends on all of them."""
        model = model_digest(graph)
        texts = [windows_digest(part) for part in (windows, ctx.get(CalibrationText).held_out)]
        moments = [moments_of(graph, weight, plan.storage[weight.name]) for weight in weights]
        settings = [self.passes, self.rate]
        whole = digest_of([FORMAT, model, *texts, *settings, *sorted(plan.storage.items()), *moments])
        return {weight.name: digest_of([whole, weight.name]) for weight in weights}


def _is_kept(ctx: PassContext, weight: Weight, storage: Storage, names: Mapping[str, str]) -> bool:
    return find_blocks(ctx.store, names[weight.name], shape_of(weight.rows, weight.columns, storage)) is not None


class _Tuning:
    """One run of the pass."""

    def __init__(
        self,
        settings: TuneScales,
        graph: Graph,
        ctx: PassContext,
        plan: PrecisionPlan,
        weights: Sequence[Weight],
        windows: Sequence[np.ndarray],
    ) -> None:
        self.settings, self.graph, self.ctx, self.plan = settings, graph, ctx, plan
        self.weights, self.windows = weights, windows
        self.held = list(ctx.get(CalibrationText).held_out)
        head = logits_product(graph)
        names = [weight.name for weight in weights]
        self.backward = Backward(graph, names, head.operand(0), memory_limit=settings.memory << 20)
        self.head = Head(head.operand(1).tensor)
        own = stored_as_planned(graph, plan).get(head.operand(1).name)
        self.own_head = Head(own) if own is not None else self.head
        self.before: dict[str, Blocks] = {}
        self.scales: dict[str, Scales] = {}
        for weight in weights:
            storage = plan.storage[weight.name]
            blocks = weight.quantized(storage, moments_of(graph, weight, storage)).rows(0, weight.rows)
            self.before[weight.name], self.scales[weight.name] = blocks, Scales(blocks, storage)

    def run(self, names: Mapping[str, str]) -> None:
        """Tune, and keep the results under their names."""
        target, held = self._target(self.windows), self._target(self.held)
        runs = list(runs_of(self.windows))
        steps = len(runs) * self.settings.passes
        what = f"tuning scales on {sum(map(len, self.windows))} tokens"
        best = self._divergence(held)
        state = {name: scales.state() for name, scales in self.scales.items()}
        done = 0
        for turn in range(self.settings.passes):
            for place in np.random.default_rng(turn).permutation(len(runs)):
                self.ctx.progress(done, steps, what)
                self._step(target, runs[int(place)], (done + 1) / (steps + 1))
                done += 1
            found = self._divergence(held)
            if found < best:
                best, state = found, {name: scales.state() for name, scales in self.scales.items()}
        self.ctx.progress(steps, steps, what)
        for weight in self.weights:
            self.scales[weight.name].restore(state[weight.name])
            self._keep(weight, names[weight.name])

    def _target(self, windows: Sequence[np.ndarray]) -> Target:
        """What the float model predicts for windows."""
        features: list[np.ndarray] = []
        for run in runs_of(windows):
            states = self.backward.start(window_feeds(self.graph, [windows[place] for place in run]))
            features += self.backward.features(states, partial(single, self.graph))
        return Target(features, self.head)

    def _matrix(self, name: str) -> np.ndarray:
        return self.scales[name].rows().T

    def _divergence(self, target: Target) -> float:
        """Sum of the divergence on the held-out windows with the numbers as they are."""
        total = 0.0
        for run in runs_of(self.held):
            states = self.backward.start(window_feeds(self.graph, [self.held[place] for place in run]))
            total += target.divergence(run, self.backward.features(states, self._matrix), self.own_head)
        return total

    def _step(self, target: Target, run: Sequence[int], done: float) -> None:
        """One step along the gradient of some windows, `done` being how far it all is, above 0 and below 1."""
        states = self.backward.start(window_feeds(self.graph, [self.windows[place] for place in run]))
        count = sum(len(self.windows[place]) for place in run)

        def loss(finals: list[np.ndarray]) -> list[np.ndarray]:
            return [item / np.float32(count) for item in target.gradients(run, finals, self.own_head)[1]]

        def receive(name: str, features: np.ndarray, gradients: np.ndarray) -> None:
            self.scales[name].add(gradients.T @ features)

        self.backward.run(states, self._matrix, loss, receive)
        share = min(1.0, done / WARM) * (0.5 + 0.5 * math.cos(math.pi * done))
        for weight in self.weights:
            usual = RATES.get(self.plan.storage[weight.name].bits, 0.002)
            self.scales[weight.name].step((self.settings.rate or usual) * share)

    def _keep(self, weight: Weight, name: str) -> None:
        """Keep the numbers of a weight as they are stored."""
        shape = shape_of(weight.rows, weight.columns, self.plan.storage[weight.name])
        blocks = self.scales[weight.name].blocks(self.before[weight.name])
        make_blocks(self.ctx.store, name, shape, lambda path: write_rows(path, shape, 0, blocks))


__all__ = ["TuneScales"]
