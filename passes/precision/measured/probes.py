"""What an error of a weight costs: KL divergence of the model with this weight alone stored otherwise.

Divergence is of second order in small errors and errors of different weights are nearly uncorrelated, so a plan costs
about the sum of what its weights cost alone, and a weight costs in proportion to its error. One or two measured
storages per weight (probes) therefore price all its candidates: ``loss(s) = KL(probe) * error(s) / error(probe)``.
Embedding rows have no inputs to weigh errors with, so they are probed at every width.

All probes are variants of one streamed evaluation. Its work is bounded by taking fewer tokens for larger models; the
bound is a number of operations, not a time, so that the choice does not depend on the machine.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from ir.graph.digests import value_digests
from ir.graph.graph import Graph
from ir.quant.statistics.moments import windows_digest
from ir.quant.storage import Storage
from ir.tensor.base import Tensor
from ir.tensor.identity import tensor_identity
from passes.framework.context import PassContext
from passes.precision.measured.error_curves import Curve
from passes.precision.measured.kept import digest_of, keep, recall
from passes.precision.mixtures import seats_of

FORMAT = "divergence 1"
"""Part of every key; another one when the numbers are computed otherwise."""
PROBE_WORK = 6e12
"""Operations that one streamed evaluation may take, about 40 s on two cores."""
PROBE_TOKENS, LEAST_TOKENS = 4096, 128
PROBE_BITS = (3, 5)
"""Widths at which weights of small models are probed; larger ones only at the first."""
TINY = 1e-12


@dataclass(frozen=True)
class Measured:
    """One variant on held-out text.

    Attributes:
        kl, error: KL divergence from the float model and its standard error, nats per token.
        top1: share of positions whose most likely token is that of the float model.
        positions: positions compared.
    """

    kl: float
    error: float
    top1: float
    positions: int


Variant = Mapping[str, Tensor]


class Meter:
    """Measures variants of one graph on held-out windows; what was measured before is read from disk."""

    def __init__(self, graph: Graph, windows: Sequence[np.ndarray], ctx: PassContext) -> None:
        self._graph = graph
        self._windows = windows
        self._ctx = ctx
        self._identity = ""
        self._work = _Work(graph)

    @property
    def available(self) -> int:
        """Tokens of the held-out text."""
        return sum(map(len, self._windows))

    def tokens_for(self, variants: Sequence[Collection[str]], most: int) -> int:
        """Tokens on which variants, as names of what they replace, can be measured within the bound on operations."""
        each = self._work.of([]) + sum(self._work.of(variant) for variant in variants)
        return int(max(LEAST_TOKENS, min(most, PROBE_WORK / max(1, each))))

    def measure(self, variants: Sequence[Variant], tokens: int, what: str) -> list[Measured]:
        """The divergence of each variant on the first `tokens` held-out tokens, all missing ones in one evaluation."""
        windows = first_tokens(self._windows, tokens)
        keys = [self._key(windows, variant) for variant in variants]
        found = {key: recall(self._ctx.store, key) for key in dict.fromkeys(keys)}
        missing = {key: variant for key, variant in zip(keys, variants, strict=True) if found[key] is None}
        if missing:
            from ir.evaluate.replaced_weights import divergences

            def tell(done: int, total: int, *_: Any) -> None:
                self._ctx.progress(done, total, what)

            results = divergences(
                self._graph, windows, list(missing.values()), executor=self._ctx.executor, progress=tell
            )
            for key, item in zip(missing, results, strict=True):
                found[key] = asdict(
                    Measured(float(item.kl), float(item.kl_error), float(item.top1), int(item.positions))
                )
                keep(self._ctx.store, key, found[key])
        return [Measured(**found[key]) for key in keys]

    def _key(self, windows: Sequence[np.ndarray], variant: Variant) -> str:
        if not self._identity:
            outputs = value_digests(self._graph, self._graph.outputs, lambda value: value.name)
            tables = [tensor_identity(value.const) for value in self._graph.tables.values() if value.const is not None]
            self._identity = digest_of([*outputs.values(), *tables])
        parts = [f"{name} {_identity(tensor)}" for name, tensor in sorted(variant.items())]
        return digest_of([FORMAT, self._identity, windows_digest(windows), *parts])


def _identity(tensor: Tensor) -> str:
    """Identity of a tensor and of the method that it was quantized with."""
    from ir.quant.weight import METHODS

    method = tensor.recipe()[2].get("method")
    inner = [_identity(item) for item in tensor.inputs]
    return " ".join([tensor_identity(tensor), str(METHODS[method].version) if method else "", *inner])


def first_tokens(windows: Sequence[np.ndarray], tokens: int) -> list[np.ndarray]:
    """The first windows that together have this many tokens, the last one cut."""
    found = []
    for window in windows:
        if tokens < 2:
            break
        found.append(window[:tokens])
        tokens -= len(found[-1])
    return found


class _Work:
    """Operations for each token: products with weights, from the first that a variant changes to the logits; those of
    experts count for the tokens that they see."""

    def __init__(self, graph: Graph) -> None:
        self._before: dict[str, float] = {}
        self._total = 0.0
        seats = seats_of(graph)
        for node in graph.nodes:
            weight = node.input(1)
            if node.op == "MatMul" and weight is not None and weight.is_const:
                self._before.setdefault(weight.name, self._total)
                share = seats[weight].share if weight in seats else 1.0
                self._total += 2.0 * math.prod(weight.sizes) * share

    def of(self, names: Collection[str]) -> float:
        """Operations of a variant that replaces these constants; of the whole model for none."""
        return self._total - min((self._before.get(name, 0.0) for name in names), default=0.0)


# ---- the model of the losses ----


class Probe(NamedTuple):
    """A storage of one weight that was measured alone."""

    storage: Storage
    kl: float


class WeightLoss:
    """Predicts the KL divergence that each storage of one weight costs.

    Args:
        curve: errors by storage.
        probes: measured storages of the curve.
        axis: which error counts: 0 that of the outputs, 1 that of the numbers.
    """

    def __init__(self, curve: Curve, probes: Sequence[Probe], axis: int = 0) -> None:
        self._curve = curve
        self._axis = axis
        known = sorted((max(curve[p.storage][axis], TINY**2), max(p.kl, 0.0)) for p in probes)
        self._errors = [math.log(error) for error, _ in known]
        self._rates = [math.log(max(kl / error, 1e-300)) for error, kl in known]

    def rate(self, error: float) -> float:
        """Loss for each unit of error, at an error of this size: interpolated between probes, constant beyond."""
        return math.exp(float(np.interp(math.log(max(error, 1e-300)), self._errors, self._rates)))

    def of(self, storage: Storage) -> float:
        """Nats per token."""
        if storage.bits == 32:
            return 0.0
        error = self._curve[storage][self._axis]
        return error * self.rate(error)


class RowsLoss:
    """Predicts what embedding rows cost: each width has its own probe, blocks and forms scale with the error.

    Args:
        curve: errors by storage.
        probes: a measured storage for each width of the curve of at most 8 bits; 16 bits go with the widest.
    """

    def __init__(self, curve: Curve, probes: Sequence[Probe]) -> None:
        self._curve = curve
        self._by_width = {probe.storage.bits: probe for probe in probes}

    def of(self, storage: Storage) -> float:
        """Nats per token."""
        if storage.bits == 32:
            return 0.0
        probe = self._by_width.get(storage.bits) or self._by_width[max(self._by_width)]
        return probe.kl * self._curve[storage].rows / max(self._curve[probe.storage].rows, TINY**2)


__all__ = [
    "PROBE_BITS",
    "PROBE_TOKENS",
    "Measured",
    "Meter",
    "Probe",
    "RowsLoss",
    "Variant",
    "WeightLoss",
    "first_tokens",
]
