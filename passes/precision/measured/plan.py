"""Assigning precision by measurement: candidates, prices, the search under a limit, and the record of it all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ir.base.diag import LadingError
from ir.facts.calibration import Calibration
from ir.facts.precision import Outcome, PrecisionPlan
from ir.facts.sensitivity import CurvePoint, Sensitivity, WeightSensitivity
from ir.graph.graph import Graph
from ir.quant.statistics.moments import CalibrationText
from ir.quant.storage import Storage, fit_block
from ir.quant.storage_size import stored_bits
from ir.target.device import Device
from ir.target.target import Target
from passes.framework.context import PassContext
from passes.precision.decode_speed import SAME, usual_plans
from passes.precision.limits import Limits
from passes.precision.measured.candidates import (
    Choice,
    Item,
    fastest_bytes,
    make_items,
    planned_elements,
    size_of_storage,
)
from passes.precision.measured.prices import Prices, price, storages_of
from passes.precision.measured.probes import Meter
from passes.precision.measured.search import Given, Picks, Proposed, Search, Tried, require_room
from passes.precision.planned_weights import Weight, kept_weights, place_of
from passes.precision.storage_rules import Preferences

HEADERS = 0.005
"""Share of a size that may be headers, which a number of bits per weight does not count."""
UNIFORM_PLANS = 3
"""Uniform plans that compete with the mixed one: those of least predicted loss."""
NOTED = 0.005
"""Share by which a better plan may have been missed, from which on that is told; prices are known to some percent."""
HOPELESS = 1.2
"""Uniform plans of a large model, which take minutes to make, compete up to this multiple of the mixed plan's loss."""


def by_measurement(
    graph: Graph, ctx: PassContext, wanted: Preferences, weights: Sequence[Weight]
) -> tuple[PrecisionPlan, Sensitivity]:
    """The plan under the limit of the options, and what was measured for it.

    Raises:
        LadingError: Q451, Q452, Q485 the limits cannot be kept, Q453 there is nothing to measure with, Q454 a weight has no
            candidate, and whatever evaluation and quantization raise.
    """
    assert wanted.limits is not None
    keys = _statistics(graph, weights)
    items = make_items(weights, wanted)
    given = given_of(graph, weights, wanted)
    limits = _settled(wanted.limits, items, given, weights, wanted)
    meter = Meter(graph, _held_out(ctx), ctx)
    fact = graph.fact(Calibration)
    prices = price(items, keys, fact.reached if fact is not None else {}, meter, ctx, wanted.target)
    search = Search(prices, meter, limits, given)
    others = _competitors(search, wanted)
    rounds = wanted.rounds if wanted.rounds is not None else 0 if prices.large else 1
    taken: Proposed | None = None
    if wanted.limits.max_kl is not None:
        taken = search.smallest_within_loss(rounds, others)
    elif not rounds and not others:
        taken = search.proposed()
    taken = taken or search.best_within_size(rounds, others)
    if search.gap > NOTED:
        what = "smaller" if wanted.limits.max_kl is not None else "better in predicted loss"
        ctx.warn(
            "Q498",
            f"a plan that keeps {wanted.limits.text} and is up to {search.gap:.1%} {what} may exist and was not found",
            hint="give one limit less, or fewer candidates: widths, blocks, forms",
        )
    order = {weight.name: place for place, weight in enumerate(weights)}
    rules = {weight.name: wanted.why(weight, "measured") for weight in weights}
    return _plan(search, taken, rules, wanted.device), _record(search, taken, order, wanted.target)


def _settled(
    limits: Limits, items: Sequence[Item], given: Given, weights: Sequence[Weight], wanted: Preferences
) -> Limits:
    """The limits, each of which can be kept, with a number for ``min-speed=auto``: the speed of 4 bits in every weight at
    the size allowed, or none where that cannot be had."""
    auto = next((limit for limit in limits.each if limit.kind == "min-speed" and not limit.value), None)
    if auto is None:
        require_room(items, limits, given)
        return limits
    others = Limits(tuple(limit for limit in limits.each if limit is not auto))
    require_room(items, others, given)
    room = min(given.room(limit) / (8 if limit.kind == "budget" else 1) for limit in others.of(("budget", "max-size")))
    found = [reads for reads in usual_plans(weights, wanted) if reads.bytes <= room * (1 + HEADERS)]
    if not found:
        return others
    largest = max(reads.bytes for reads in found)
    streamed = min(reads.streamed for reads in found if reads.bytes >= largest * (1 - SAME))
    settled = replace(auto, value=given.fastest / (streamed + given.streamed))
    both = Limits(tuple(settled if limit is auto else limit for limit in limits.each))
    try:
        require_room(items, both, given)
    except LadingError:
        return others
    return both


def given_of(graph: Graph, weights: Sequence[Weight], wanted: Preferences) -> Given:
    """What the plan does not decide about: biases, norms, and weights that came quantized."""
    target, device = wanted.target, wanted.device
    kept = kept_weights(graph)
    elements = planned_elements(weights) + sum(item.rows * item.columns for item in kept)
    bits = sum(stored_bits(item.rows, item.columns, item.storage) for item in kept)
    streamed = sum(device.streamed(item.rows, item.columns, item.storage) for item in kept)
    fastest = streamed + fastest_bytes(weights, target.widths, device)
    return Given(elements, target.fixed_bytes(graph), bits, streamed, fastest)


def _statistics(graph: Graph, weights: Sequence[Weight]) -> dict[str, str]:
    """Key of the statistics of each weight that is multiplied by."""
    fact = graph.fact(Calibration)
    keys = dict(fact.keys) if fact is not None else {}
    missing = [weight.name for weight in weights if weight.role != "embedding" and weight.name not in keys]
    if missing:
        raise LadingError(
            "Q453",
            f"there are no statistics of the inputs of {len(missing)} weights to measure errors with",
            where=missing[0],
            hint="run the pass calibrate before assign-precision",
        )
    return keys


def _held_out(ctx: PassContext) -> Sequence[np.ndarray]:
    text = ctx.get(CalibrationText, None)
    if text is None or not text.held_out:
        raise LadingError(
            "Q453",
            "there is no held-out text to measure divergence on",
            hint="give the run a calibration text that is long enough for both parts",
        )
    return text.held_out


# ---- uniform plans ----


def _competitors(search: Search, wanted: Preferences) -> list[tuple[str, Picks]]:
    """Uniform plans that keep the limit, the best by prediction."""
    found: dict[Picks, str] = {}
    for bits in wanted.widths:
        for block in wanted.blocks if bits <= 8 else (0,):
            for symmetric in (form == "symmetric" for form in wanted.forms):
                for head in dict.fromkeys((bits, 8)):
                    picks = _uniform(search.prices.items, (bits, block, symmetric, head))
                    if picks is not None:
                        shape = f"block {block}" if block else "one scale a row"
                        form = ", symmetric" if symmetric else ""
                        logits = f", logits {head} bits" if head != bits else ""
                        found.setdefault(picks, f"uniform {bits} bits, {shape}{form}{logits}")
    limit = search.limits.max_kl
    if limit is not None:
        good = [picks for picks in found if search.fits(picks) and search.predicted(picks) <= limit.value]
        chosen = sorted(good, key=search.bytes_of)
    else:
        chosen = sorted((picks for picks in found if search.fits(picks)), key=search.predicted)
    if search.prices.large:
        best = search.predicted(search.solve_size()) if limit is None else limit.value
        chosen = [picks for picks in chosen[:1] if search.predicted(picks) <= HOPELESS * best]
    return [(found[picks], picks) for picks in chosen[:UNIFORM_PLANS]]


def _uniform(items: Sequence[Item], wanted: tuple[int, int, bool, int]) -> Picks | None:
    """The choice of each item that a uniform plan takes, the smallest; None where an item has no such choice.

    `wanted` is the width of the layers, block, form, and the width of the logits matrix.
    """
    bits, block, symmetric, head = wanted
    picks = []
    for item in items:
        if len(item.choices) == 1:
            picks.append(0)
            continue
        fitted = [fit_block(weight.columns, block) or weight.columns for weight in item.weights]
        widths = [bits if weight.role == "layer" else head for weight in item.weights]
        legal = [
            (choice.bytes, number)
            for number, choice in enumerate(item.choices)
            if all(map(_agrees, item.weights, choice.storages, widths, fitted, [symmetric] * len(fitted)))
        ]
        if not legal:
            return None
        picks.append(min(legal)[1])
    return tuple(picks)


def _agrees(weight: Weight, storage: Storage, width: int, block: int, symmetric: bool) -> bool:
    """True when a storage is that of a uniform plan; embedding rows may be wider, since few widths can be read."""
    if weight.role == "embedding":
        return storage.bits >= width
    if storage.bits != width:
        return False
    return width > 8 or (storage.symmetric == symmetric and (storage.block or weight.columns) == block)


# ---- the record ----


def _plan(search: Search, taken: Proposed, rules: Mapping[str, str], device: Device) -> PrecisionPlan:
    """The plan, its weights in the order of `rules`, which say what chose their storages."""
    storage: dict[str, Storage] = {}
    tied = False
    for item, pick in zip(search.prices.items, taken.picks, strict=True):
        choice = item.choices[pick]
        tied = tied or choice.tied
        storage.update(zip((weight.name for weight in item.weights), choice.storages, strict=True))
    measured = taken.measured if isinstance(taken, Tried) else None
    outcome = Outcome(
        limit=search.limits.text,
        bytes=search.bytes_of(taken.picks),
        bits_per_weight=search.bits_per_weight(taken.picks),
        predicted=taken.predicted,
        measured=measured.kl if measured is not None else None,
        top1=measured.top1 if measured is not None else None,
        positions=_positions(search, taken),
        streamed=search.streamed(taken.picks),
        speed=search.given.fastest / max(1, search.streamed(taken.picks)),
        device=device.name,
        rounding=search.rounding(taken.picks),
    )
    return PrecisionPlan({name: storage[name] for name in rules}, tied, outcome, rules)


def _positions(search: Search, taken: Proposed) -> int:
    return taken.measured.positions if isinstance(taken, Tried) else search.later_positions()


def _record(search: Search, taken: Proposed, order: Mapping[str, int], target: Target) -> Sensitivity:
    prices = search.prices
    weights = []
    for number, (item, pick) in enumerate(zip(prices.items, taken.picks, strict=True)):
        for place in range(len(item.weights)):
            weights.append(_weight(prices, item, item.choices[pick], place, float(search.factors[number]), target))
    weights.sort(key=lambda item: order[item.name])
    return Sensitivity(
        search.limits.text, (prices.tokens, _positions(search, taken)), tuple(weights), search.report(taken)
    )


def _weight(prices: Prices, item: Item, choice: Choice, place: int, factor: float, target: Target) -> WeightSensitivity:
    weight, stored = item.weights[place], choice.storages[place]
    tied = choice.tied and weight.role == "embedding"
    key = (weight.name, tied)
    model, curve = prices.models.get(key), prices.curves.get(key, {})
    points = []
    for storage in storages_of(item, weight, tied):
        size = 0 if tied else size_of_storage(weight, storage, target)
        error = curve[storage].rows if weight.role == "embedding" else curve[storage].output
        loss = model.of(storage) if model is not None else 0.0
        point = CurvePoint(
            bits=storage.bits,
            block=storage.block,
            symmetric=storage.symmetric,
            method=storage.method,
            bytes=size,
            error=error,
            loss=loss,
        )
        points.append((storage, point))
    points.sort(key=lambda pair: (pair[1].bytes, pair[1].bits, pair[1].loss))
    chosen = next((index for index, (storage, _) in enumerate(points) if storage == stored), None)
    at = points[chosen][1] if chosen is not None else None
    probe = next(iter(prices.probes.get(key, ())), None)
    layer, kind = place_of(weight.name)
    return WeightSensitivity(
        name=weight.name,
        role=weight.role,
        layer=layer,
        kind=kind,
        elements=weight.elements,
        probe=_described(probe.storage) if probe is not None else "",
        kl=probe.kl if probe is not None else 0.0,
        kl_per_error=at.loss / at.error if at is not None and at.error > 0 else 0.0,
        factor=factor,
        curve=tuple(point for _, point in points),
        chosen=chosen,
    )


def _described(storage: Storage) -> str:
    block = f"block {storage.block}" if storage.block else "one scale a row"
    return f"{storage.bits} bits, {block}" if storage.bits <= 8 else f"{storage.bits} bits"


__all__ = ["by_measurement", "given_of"]
