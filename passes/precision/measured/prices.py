"""The price list: size and predicted loss of every choice, from error curves and probes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from ir.base.store import Store
from ir.base.types import F32
from ir.quant.statistics.moments import MomentStore, input_of
from ir.quant.storage import Storage
from ir.target.target import Target
from ir.tensor.base import Tensor
from ir.tensor.elementwise import convert
from passes.framework.context import PassContext
from passes.precision.measured.candidates import Choice, Item
from passes.precision.measured.error_curves import Curve, Wanted, error_curves
from passes.precision.measured.probes import PROBE_BITS, PROBE_TOKENS, Meter, Probe, RowsLoss, WeightLoss
from passes.precision.planned_weights import Weight, moments_for, place_of

LARGE = 50_000_000
"""Models with more numbers than this are probed at one width, with codes by rounding, which are made at once."""
LARGE_PROBE_BITS = (4,)
RARE = 0.1
"""Share of the average use of its layer's experts that is assumed of one that the text reaches less often."""
PROBE_BLOCK = 64

Key = tuple[str, bool]
"""Name of a weight, and whether its rows are read from the logits matrix."""


NEIGHBOURS = 3
"""Neighbouring layers of a large model whose weights of one kind are probed together; the first and the last layer are
probed by themselves, since they are least like others."""


class Asked(NamedTuple):
    """A storage of one weight to be probed; those with one group are probed together: weights with the same place in the
    experts of a mixture, and in large models weights of one kind in neighbouring layers."""

    key: Key
    weight: Weight
    storage: Storage
    group: str = ""


@dataclass
class Prices:
    """What measurement knows of each weight before any whole plan is measured.

    Attributes:
        items: what is decided about.
        bytes, bits, streamed: sizes of the choices of each item, and what the device reads of them for each token, float64
            holding whole numbers.
        losses: predicted KL divergence of the choices, nats per token.
        by_row, by_block: what rounding the activations before them adds, by row and by block of the weight; by block it is
            infinite for choices that have it rounded by row in the whole model.
        probes: by weight.
        models: prediction by weight.
        curves: errors by weight.
        tokens: held-out positions that were used.
        large: whole plans of the model take minutes to make.
    """

    items: Sequence[Item]
    keys: Mapping[str, str]
    bytes: list[np.ndarray]
    bits: list[np.ndarray]
    streamed: list[np.ndarray]
    losses: list[np.ndarray]
    by_row: list[np.ndarray]
    by_block: list[np.ndarray]
    probes: Mapping[Key, Sequence[Probe]]
    models: Mapping[Key, WeightLoss | RowsLoss]
    curves: Mapping[Key, Curve]
    tokens: int
    large: bool

    def moments(self, item: Item, weight: Weight, storage: Storage, tied: bool) -> str:
        """Key of the statistics that a weight is quantized with."""
        return moments_for(storage, self.keys.get(source_of(item, weight, tied), ""))

    def variant(self, picks: Sequence[int], leave_out: frozenset[int] = frozenset()) -> dict:
        """What the model computes with when each item takes the choice picked; items left out stay exact."""
        found = {}
        for number, (item, pick) in enumerate(zip(self.items, picks, strict=True)):
            if number in leave_out:
                continue
            choice = item.choices[pick]
            for weight, storage in zip(item.weights, choice.storages, strict=True):
                if storage.bits < 32:
                    found[weight.name] = weight.restored(storage, self.moments(item, weight, storage, choice.tied))
        return found


def source_of(item: Item, weight: Weight, tied: bool) -> str:
    """Name of the weight whose inputs count: rows read from the logits matrix are quantized as that is."""
    if weight.role != "embedding" or not tied:
        return weight.name
    return next(other.name for other in item.weights if other.role == "logits")


def price(
    items: Sequence[Item],
    keys: Mapping[str, str],
    reached: Mapping[str, int],
    meter: Meter,
    ctx: PassContext,
    target: Target,
) -> Prices:
    """Measure curves and probes and price every choice.

    Args:
        items: what is decided about.
        keys: key of the statistics of each weight.
        reached: positions of the calibration text that reached each weight of an expert.
        meter: measures divergences.
        ctx: as for passes.
        target: knows how activations are rounded.
    """
    large = sum(weight.elements for item in items for weight in item.weights) > LARGE
    asked = _asked(items, large)
    curves = _curves(items, keys, asked, ctx)
    together: dict[tuple, list[Asked]] = {}
    for number, one in enumerate(asked):
        together.setdefault((one.group, one.storage) if one.group else (number,), []).append(one)
    variants: list[dict[str, Tensor]] = []
    item_of = {weight.name: item for item in items for weight in item.weights}
    for members in together.values():
        variant = {}
        for key, weight, storage, _ in members:
            moments = moments_for(storage, keys.get(source_of(item_of[weight.name], weight, key[1]), ""))
            variant[weight.name] = weight.restored(storage, moments)
        variants.append(variant)
    tokens = meter.tokens_for(variants, PROBE_TOKENS)
    measured = meter.measure(variants, tokens, "measuring single weights")
    probes: dict[Key, list[Probe]] = {}
    for members, found in zip(together.values(), measured, strict=True):
        for one, part in zip(members, _shares(members, curves, reached), strict=True):
            probes.setdefault(one.key, []).append(Probe(one.storage, found.kl * part))
    _tell(ctx, [one for one in asked if one.weight.seat is not None], reached)
    models: dict[Key, WeightLoss | RowsLoss] = {}
    for key, weight in {one.key: one.weight for one in asked}.items():
        kind = RowsLoss if weight.role == "embedding" else WeightLoss
        models[key] = kind(curves[key], probes[key])
    sizes = [np.array([choice.bytes for choice in item.choices], np.float64) for item in items]
    bits = [np.array([choice.bits for choice in item.choices], np.float64) for item in items]
    streamed = [np.array([choice.streamed for choice in item.choices], np.float64) for item in items]
    losses = [np.array([_loss(item, choice, models) for choice in item.choices]) for item in items]
    rounding = Rounding(keys, models, target, ctx.store)
    by_row, by_block = ([np.array([rounding.of(item, c, how) for c in item.choices]) for item in items] for how in HOW)
    return Prices(
        items,
        keys,
        sizes,
        bits,
        streamed,
        losses,
        by_row,
        by_block,
        probes,
        models,
        curves,
        min(tokens, meter.available),
        large,
    )


def _shares(members: Sequence[Asked], curves: Mapping[Key, Curve], reached: Mapping[str, int]) -> list[float]:
    """Which part of the loss of weights that were probed together is that of each.

    The error of an expert counts as often as positions reach it. One that few or none reach counts `RARE` as often as
    one of its layer does on average at least: other text may reach it.
    """
    if len(members) == 1:
        return [1.0]
    seen = np.array([reached.get(one.weight.name, 0) for one in members], np.float64)
    often = np.maximum(seen, RARE * max(seen.mean(), 1.0))
    errors = often * np.array([curves[one.key][one.storage].output for one in members])
    total = errors.sum()
    return (errors / total if total > 0 else np.full(len(members), 1 / len(members))).tolist()


def _tell(ctx: PassContext, experts: Sequence[Asked], reached: Mapping[str, int]) -> None:
    """Say which experts are priced by the others of their layer."""
    by_group: dict[str, dict[str, int]] = {}
    for one in experts:
        by_group.setdefault(one.group, {})[one.weight.name] = reached.get(one.weight.name, 0)
    rare = [
        name
        for group in by_group.values()
        for name, seen in group.items()
        if seen < RARE * sum(group.values()) / len(group)
    ]
    if rare:
        ctx.note(
            "Q483",
            f"{len(rare)} matrices of experts are priced as if they were reached {RARE:g} times as often as the "
            "layer's experts are on average, which is more than the calibration text does",
            where=rare[0],
            hint="give more text, or text of more kinds: --calibration",
        )


def _loss(item: Item, choice: Choice, models: Mapping[Key, WeightLoss | RowsLoss]) -> float:
    total = 0.0
    for weight, storage in zip(item.weights, choice.storages, strict=True):
        key = (weight.name, choice.tied and weight.role == "embedding")
        if storage.bits < 32:
            total += models[key].of(storage)
    return total


HOW: tuple[Literal["row", "block"], ...] = ("row", "block")
SAMPLED_RUNS, SAMPLED_ROWS = 8, 32
"""Rows of a weight that its sum of squares is estimated from: so many runs of so many."""


class Rounding:
    """What rounding the activations before a weight costs, from how far off it makes the outputs."""

    def __init__(
        self, keys: Mapping[str, str], models: Mapping[Key, WeightLoss | RowsLoss], target: Target, store: Store
    ) -> None:
        self._keys, self._models, self._target, self._store = keys, models, target, MomentStore(store)
        self._squares: dict[str, float] = {}
        self._means: dict[str, dict[int, float]] = {}

    def of(self, item: Item, choice: Choice, how: Literal["row", "block"]) -> float:
        """Nats per token of a choice."""
        total = 0.0
        for weight, storage in zip(item.weights, choice.storages, strict=True):
            rounds = self._target.rounds(storage) if weight.role != "embedding" else "no"
            if rounds == "no":
                continue
            if how == "block" and rounds == "row":
                return math.inf
            model = self._models[weight.name, False]
            if not isinstance(model, WeightLoss) or weight.name not in self._keys:
                continue
            means = self._errors(self._keys[weight.name])
            if not means:
                continue
            block = storage.block if how == "block" else 0
            error = means.get(block, means[0]) * self._square(weight)
            total += error * model.rate(error)
        return total

    def _errors(self, key: str) -> dict[int, float]:
        """Mean square error of an input feature by block; nothing where no position is known."""
        inputs = input_of(key)
        if inputs not in self._means:
            self._means[inputs] = self._store.rounding(inputs) if inputs else {}
        return self._means[inputs]

    def _square(self, weight: Weight) -> float:
        """Sum of the squares of a weight, estimated from some of its rows."""
        if weight.name not in self._squares:
            count = min(SAMPLED_ROWS, weight.rows)
            starts = sorted(
                {(weight.rows - count) * place // max(1, SAMPLED_RUNS - 1) for place in range(SAMPLED_RUNS)}
            )
            parts = [convert(weight.source.rows(start, start + count), F32, weight.name) for start in starts]
            mean = np.mean([np.square(part, dtype=np.float64).sum(axis=1).mean() for part in parts])
            self._squares[weight.name] = float(mean) * weight.rows
        return self._squares[weight.name]


def storages_of(item: Item, weight: Weight, tied: bool) -> list[Storage]:
    """Storages of one weight in the choices of its item, each once, up to 16 bits."""
    place = item.weights.index(weight)
    wanted = [c for c in item.choices if weight.role != "embedding" or c.tied == tied]
    return list(dict.fromkeys(c.storages[place] for c in wanted if c.storages[place].bits < 32))


def _forms(weight: Weight) -> tuple[bool, ...]:
    return (True, False) if weight.role == "embedding" else (False,)


def _asked(items: Sequence[Item], large: bool) -> list[Asked]:
    """What to probe: each weight at one or two widths, embedding rows at each width."""
    found = []
    runs = _runs([weight for item in items for weight in item.weights]) if large else {}
    for item in items:
        for weight in item.weights:
            for tied in _forms(weight):
                storages = storages_of(item, weight, tied)
                widths: Sequence[int] = LARGE_PROBE_BITS if large else PROBE_BITS
                if weight.role == "embedding":
                    small = sorted({s.bits for s in storages if s.bits <= 8})
                    widths = tuple(small or {s.bits for s in storages})
                chosen = dict.fromkeys(_nearest(storages, bits) for bits in widths) if storages else {}
                for storage in chosen:
                    made = replace(storage, method="rtn") if large and storage.bits <= 8 else storage
                    group = weight.seat.group if weight.seat is not None else runs.get(weight.name, "")
                    found.append(Asked((weight.name, tied), weight, made, group))
    return found


def _runs(weights: Sequence[Weight]) -> dict[str, str]:
    """Names of the runs of neighbouring layers that weights of layers are in, each of one kind and shape, by weight."""
    places = {weight.name: place_of(weight.name) for weight in weights if weight.role == "layer"}
    last = max((layer for layer, _ in places.values() if layer is not None), default=0)
    found = {}
    for weight in weights:
        layer, kind = places.get(weight.name, (None, ""))
        if layer is not None:
            run = -1 if layer == 0 else last if layer == last else (layer - 1) // NEIGHBOURS
            found[weight.name] = f"{kind} {weight.rows} {weight.columns} {run}"
    return found


def _nearest(storages: Sequence[Storage], bits: int) -> Storage:
    """The storage nearest to a width, with zeros and in blocks of the usual size if there is one."""

    def distance(storage: Storage) -> tuple:
        block = abs(math.log2((storage.block or 4096) / PROBE_BLOCK))
        return abs(storage.bits - bits), storage.symmetric, block, storage.block

    return min(storages, key=distance)


def _curves(
    items: Sequence[Item], keys: Mapping[str, str], asked: Sequence[Asked], ctx: PassContext
) -> dict[Key, Curve]:
    """Errors by weight; rows read from the logits matrix have those of its curve."""
    wanted: dict[Key, Wanted] = {}
    shared: dict[Key, Key] = {}
    probed: dict[Key, list[Storage]] = {}
    for one in asked:
        probed.setdefault(one.key, []).append(one.storage)
    for item in items:
        for weight in item.weights:
            for tied in _forms(weight):
                key = (weight.name, tied)
                storages = storages_of(item, weight, tied)
                if not storages:
                    continue
                if tied:
                    shared[key] = (source_of(item, weight, True), False)
                    continue
                twins = [(other.name, True) for other in item.weights if weight.role == "logits" and other != weight]
                extra = [storage for one in (*twins, key) for storage in probed.get(one, ())]
                both = tuple(dict.fromkeys([*storages, *extra]))
                wanted[key] = Wanted(weight, keys.get(weight.name, ""), both)
    measured = error_curves(
        list(wanted.values()),
        lambda done, total: ctx.progress(done, total, "measuring error curves"),
        executor=ctx.executor,
        store=ctx.store,
    )
    found = dict(zip(wanted, measured, strict=True))
    return {**found, **{key: found[source] for key, source in shared.items()}}


__all__ = ["Key", "Prices", "price", "source_of", "storages_of"]
