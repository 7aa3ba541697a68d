"""Shift the scale of single features out of activations into weights, or back, where both are folded into constants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import ml_dtypes
import numpy as np

from ir.base.diag import LadingError
from ir.facts.calibration import Calibration
from ir.graph.graph import Graph, Value
from ir.quant.statistics.exact_products import one_thread
from ir.quant.statistics.moments import Moments, MomentStore
from ir.quant.storage import Storage, fit_block
from ir.quant.weight import METHODS, real_zero, thread_scratch
from ir.tensor.base import Tensor
from ir.tensor.elementwise import multiplied
from ir.tensor.inline import InlineTensor
from passes.calibration.foldable_places import (
    GatedPair,
    Linear,
    NormGroup,
    ValuePair,
    gated_pair,
    is_tied,
    norm_group,
    scale_inputs,
    scale_outputs,
    set_gain,
    value_pair,
)
from passes.framework.base import Pass
from passes.framework.context import PassContext
from passes.framework.options import option
from passes.precision.planned_weights import weights_of

Kind = Literal["norm", "gated", "values", "logits"]
Site = NormGroup | GatedPair | ValuePair

MOST_POWER = 12
"""Factors stay between ``2^-12`` and ``2^12``, so that half-precision storage of what they touch stays possible."""


class Place(NamedTuple):
    """Where features can be scaled: what kind of place, its parts, and which factor each input feature takes.

    Attributes:
        kind: name in the option `Balance.places`.
        site: norm, gated product or attention, with the layers behind it.
        factors: how many factors are free.
        column: int[inputs], the factor that a feature of the layers behind takes.
    """

    kind: Kind
    site: Site
    factors: int
    column: np.ndarray


@dataclass(frozen=True)
class Balance(Pass):
    """Scale input features of linear layers, and undo it where they come from, so that quantization loses less.

    A feature that is large in the activations and small in the weights is rounded coarsely where it matters. Each place
    gets a factor per feature, ``s = rms(x)^a / |w|^b``, normalised per block; a and b are searched per block of weights
    for the least ``tr((W - Q) H (W - Q)^T)`` on a sample of rows, H being the second moments of the input (AWQ, Lin et
    al., 2023; SmoothQuant, Xiao et al., 2023). Weights are multiplied by s; the gain of the norm before them, or the
    output rows of the layer before them, are divided by it. With ``powers`` nothing is rounded by that, and the float
    model computes the same bits.

    Statistics of changed inputs are no longer true afterwards: run ``calibrate`` again before methods that need them.
    """

    name = "balance"
    requires = ("typed", "calibration")
    breaks = ("calibration",)

    bits: Literal[2, 3, 4, 5, 6, 7, 8] = option(4, help="width of the layers' weights that the search assumes")
    block: int = option(64, help="input features that share a scale; 0 for one scale a row", low=0)
    symmetric: bool = option(False, help="the search assumes no zero point")
    method: str = option("rtn", help="quantization method that the search assumes; one that needs no second moments")
    places: tuple[Literal["norm", "gated", "values", "logits"], ...] = option(
        ("norm", "gated", "values"),
        help="where: norms and what reads them, gated products and down, attention values and output, the last norm",
    )
    grid: int = option(10, help="steps of the exponent a from 0 to 1", low=1, high=100)
    rows: int = option(256, help="output features of each layer that the search looks at", low=1)
    least: float = option(0.02, help="relative gain of a place below which it is left as it is", low=0.0, high=1.0)
    powers: bool = option(False, help="factors are powers of two: coarser, and exact in every float type")

    def prepare(self) -> None:
        """Refuse a method that the search cannot use, before any work."""
        if self.method not in METHODS:
            hint = f"known: {', '.join(sorted(METHODS))}"
            raise LadingError("Q460", f"there is no quantization method {self.method!r}", hint=hint)
        if METHODS[self.method].needs in ("second-moments", "both-sides"):
            hint = "search with rtn or clip; the weights may still be quantized with any method"
            raise LadingError(
                "Q460", f"balance searches with many scalings, which {self.method} is too slow for", hint=hint
            )

    def run(self, graph: Graph, ctx: PassContext) -> Mapping[str, int]:
        """Balance every place that has statistics; counts tell how many changed and how many were left."""
        store = MomentStore(ctx.store)
        keys = graph.required_fact(Calibration).keys
        places = [place for place in _places(graph) if place.kind in self.places]
        counts = {kind: 0 for kind in self.places} | {"left": 0, "unknown": 0}
        for done, place in enumerate(places):
            ctx.progress(done, len(places), place.kind)
            counts[self._balance(graph, place, _key(place.site.readers, keys), store)] += 1
        if any(counts[kind] for kind in self.places):
            graph.set_fact(Calibration.name, None)
        return counts

    def _balance(self, graph: Graph, place: Place, key: str | None, store: MomentStore) -> str:
        """Balance one place; returns what to count it as."""
        if key is None:
            return "unknown"
        # The products of the search are small; threads would only wait for each other.
        with one_thread():
            factors = _Search(self, place, store.load(key)).run()
        if factors is None:
            return "left"
        _fold(graph, place, factors)
        return place.kind


def _key(readers: Sequence[Linear], keys: Mapping[str, str]) -> str | None:
    found = {keys.get(linear.weight.name) for linear in readers}
    return found.pop() if len(found) == 1 else None


def _places(graph: Graph) -> Iterator[Place]:
    """Every place, in program order; the last norm only where the logits matrix is not also the embedding."""
    logits: set[Value] = {weight.value for weight in weights_of(graph) if weight.role == "logits"}
    for node in list(graph.nodes):
        if (group := norm_group(node)) is not None:
            last = [linear for linear in group.readers if linear.weight in logits]
            if not any(is_tied(graph, linear) for linear in last):
                size = group.gain.sizes[0]
                yield Place("logits" if last else "norm", group, size, np.arange(size))
        elif (pair := gated_pair(node)) is not None:
            yield Place("gated", pair, pair.up.outputs, np.arange(pair.up.outputs))
        elif (values := value_pair(node)) is not None:
            yield Place("values", values, values.value.outputs, _shared_by_heads(values))


def _shared_by_heads(pair: ValuePair) -> np.ndarray:
    """Which value feature each mixed feature is, when several query heads share a head of values."""
    heads = np.arange(pair.heads) // (pair.heads // pair.kv_heads)
    return (heads[:, None] * pair.head_dim + np.arange(pair.head_dim)).reshape(-1)


def _fold(graph: Graph, place: Place, factors: np.ndarray) -> None:
    """Multiply the weights behind by the factors and divide what makes the features by them."""
    site = place.site
    inverse = _vector(1.0 / factors)
    if isinstance(site, NormGroup):
        gain = site.gain.tensor
        set_gain(graph, site.norm, multiplied(gain, inverse, 0))
    else:
        scale_outputs(graph, site.up if isinstance(site, GatedPair) else site.value, inverse)
    for linear in site.readers:
        scale_inputs(graph, linear, _vector(factors[place.column]))


def _vector(factors: np.ndarray) -> Tensor:
    """Factors as a constant, in the shortest type that holds them exactly."""
    short = factors.astype(ml_dtypes.bfloat16)
    exact = np.array_equal(short.astype(np.float64), factors)
    return InlineTensor(short if exact else factors.astype(np.float32))


class Rows(NamedTuple):
    """Some rows of a layer, and the inverse of the energy of what they give out."""

    rows: np.ndarray
    weight: float


class _Search:
    """The search at one place.

    Blocks of weights are quantized on their own, so their exponents are chosen on their own, by the part of H that lies
    in the block; blocks that share factors are chosen together. What was found must also win on all of H and on rows
    that the search has not seen.
    """

    def __init__(self, options: Balance, place: Place, moments: Moments) -> None:
        self.place = place
        self.moments = moments
        self.power = np.sqrt(np.maximum(moments.diagonal.astype(np.float64), 0.0))
        self.second = moments.second
        self.options = options
        width = moments.features
        self.block = fit_block(width, options.block) or width
        self.storage = Storage(bits=options.bits, block=self.block, symmetric=options.symmetric, method=options.method)
        rows = [_sample(linear.rows, options.rows) for linear in place.site.readers]
        self.seen = [self._weighted(part[::2]) for part in rows]
        self.unseen = [self._weighted(part[1::2] if len(part) > 1 else part) for part in rows]

    def _weighted(self, rows: np.ndarray) -> Rows:
        return Rows(rows, 1 / max(float(np.vdot(rows @ self.second, rows)), 1e-30))

    def run(self) -> np.ndarray | None:
        """float64[factors], or None when nothing found is worth it."""
        found = [self._candidate(a, b) for a, b in self._exponents()]
        losses = np.stack([self._block_losses(factors) for factors in found])
        groups = self._groups()
        totals = np.stack([losses[:, groups == group].sum(axis=1) for group in range(groups.max() + 1)], axis=1)
        best = np.argmin(totals, axis=0)
        features = np.repeat(best[groups], self.block)
        chosen = np.ones(self.place.factors)
        chosen[self.place.column] = np.stack(found)[features, np.arange(len(features))]
        before, after = (self._loss(factors) for factors in (np.ones_like(features, float), chosen[self.place.column]))
        return chosen if after < before * (1 - self.options.least) else None

    def _exponents(self) -> list[tuple[float, float]]:
        steps = [step / self.options.grid for step in range(self.options.grid + 1)]
        return list(dict.fromkeys([(0.0, 0.0), *((a, 0.0) for a in steps), *((a, 1 - a) for a in steps)]))

    def _candidate(self, a: float, b: float) -> np.ndarray:
        """float64[inputs]; features that share a factor have the same, and each block has the geometric mean 1."""
        place = self.place
        size = np.bincount(place.column, minlength=place.factors)
        power = np.sqrt(np.bincount(place.column, self.power**2, place.factors) / size)
        weight = np.sqrt(np.bincount(place.column, self._weights() ** 2, place.factors) / size)
        raw = a * _log2(power) - b * _log2(weight)
        raw -= self._means(raw)
        raw = np.clip(np.rint(raw) if self.options.powers else raw, -MOST_POWER, MOST_POWER)
        return np.exp2(raw)[place.column]

    def _means(self, raw: np.ndarray) -> np.ndarray:
        """For each factor the mean over its blocks."""
        index = self.place.column
        means = raw[index].reshape(-1, self.block).mean(axis=1).repeat(self.block)
        return np.bincount(index, means, len(raw)) / np.bincount(index, minlength=len(raw))

    def _weights(self) -> np.ndarray:
        """Root mean square of the weights of each feature, relative to the largest of their block."""
        total = np.zeros(len(self.power))
        for rows, _ in self.seen:
            blocks = np.abs(rows).reshape(len(rows), -1, self.block)
            relative = blocks / np.maximum(blocks.max(axis=2, keepdims=True), 1e-30)
            total += np.square(relative).mean(axis=0).reshape(-1)
        return np.sqrt(total / len(self.seen))

    def _groups(self) -> np.ndarray:
        """For each block the number of the group of blocks that share factors."""
        first = self.place.column.reshape(-1, self.block)
        aligned = (first - first[:, :1] == np.arange(self.block)).all() and (first[:, 0] % self.block == 0).all()
        if not aligned:
            return np.zeros(len(first), int)
        return np.unique(first[:, 0], return_inverse=True)[1]

    def _errors(self, rows: np.ndarray, factors: np.ndarray) -> np.ndarray:
        """What quantization changes, in the units of the unscaled weights."""
        scaled = (rows * factors).astype(np.float32)
        method = METHODS[self.storage.method]
        blocks = method.quantize(scaled, self.storage, thread_scratch(), self._scaled_moments(factors, method.needs))
        stored = blocks.codes.reshape(*blocks.scale.shape, -1) * blocks.scale[:, :, None]
        if (zero := real_zero(blocks.scale, blocks.zero)) is not None:
            stored += zero[:, :, None]
        return (stored.reshape(scaled.shape) - scaled) / factors.astype(np.float32)

    def _scaled_moments(self, factors: np.ndarray, needs: str) -> Moments | None:
        """Statistics of the scaled features, as far as the method looks at them: the diagonal."""
        if needs == "nothing":
            return None
        width = len(factors)
        diagonal = (self.moments.diagonal / np.square(factors)).astype(np.float32)
        return replace(self.moments, second=np.broadcast_to(diagonal[:, None], (width, width)))

    def _block_losses(self, factors: np.ndarray) -> np.ndarray:
        """Loss of each block, over the layers relative to what they give out."""
        count = len(factors) // self.block
        inside = np.stack([self.second[at : at + self.block, at : at + self.block] for at in self._starts(count)])
        total = np.zeros(count)
        for rows, weight in self.seen:
            errors = self._errors(rows, factors).reshape(len(rows), count, self.block).transpose(1, 0, 2)
            total += np.einsum("bri,bri->b", errors @ inside, errors) * weight
        return total

    def _starts(self, count: int) -> range:
        return range(0, count * self.block, self.block)

    def _loss(self, factors: np.ndarray) -> float:
        total = 0.0
        for rows, weight in self.unseen:
            errors = self._errors(rows, factors)
            total += float(np.vdot(errors @ self.second, errors)) * weight
        return total


def _log2(values: np.ndarray) -> np.ndarray:
    """Logarithms with zeros, which say nothing, at the least of the others."""
    seen = values[values > 0]
    return np.log2(np.maximum(values, seen.min())) if seen.size else np.zeros_like(values)


def _sample(rows: Tensor, most: int) -> np.ndarray:
    """float32[up to most, inputs]: rows in equal steps."""
    step = max(1, -(-rows.row_count // most))
    if step == 1:
        return rows.load().astype(np.float32)
    return np.concatenate([rows.rows(at, at + 1) for at in range(0, rows.row_count, step)]).astype(np.float32)
