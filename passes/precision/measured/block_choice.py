"""Larger blocks where they cost little: error of a weight against the bytes that its scales make a device read.

Scales and zeros of 4-bit weights in blocks of 64 are a fifth of what is read for each token. How much a larger block
costs differs: little in short rows and with a method that looks at inputs, more in long rows, next to nothing at 8 bits.
So the error of every weight is measured in each, and the blocks taken are those with the least ``error * bytes ** trade``
of the whole model: one percent fewer bytes may cost `trade` percent more error. Width has a trade of about six at 4 bits,
where a bit more is a fifth of the bytes and makes the error a quarter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ir.facts.calibration import Calibration
from ir.facts.precision import PrecisionPlan
from ir.graph.graph import Graph
from ir.quant.storage import Storage
from passes.framework.context import PassContext
from passes.precision.measured.candidates import streamed_bytes
from passes.precision.measured.error_curves import FULL_STEPS, LEAST, Wanted, error_curves
from passes.precision.planned_weights import Weight, moments_for, place_of
from passes.precision.storage_rules import Preferences

BLOCKS = (128, 256, 0)
"""Blocks that are tried beside the one asked for, if they are larger; 0 is a whole row."""
STEPS = 20
EXAMPLES = 3
"""Groups of each shape that are measured in models with many layers; the others follow them."""

Group = tuple[Wanted, ...]
"""Weights that get one block: they share inputs and storage."""


def with_larger_blocks(
    graph: Graph, ctx: PassContext, wanted: Preferences, weights: Sequence[Weight], plan: PrecisionPlan, trade: float
) -> PrecisionPlan:
    """A plan by policy with the block of every integer weight chosen by measurement, none smaller than it was.

    Without statistics of its inputs the error of a weight is that of its numbers. A plan so fine that activations are
    rounded by its blocks is left as it is: larger ones would cost there, which is not weighed here.

    Weights that share their inputs and their storage get one block, so that they can still be stored as one matrix. What
    a rule gives a block keeps it. An embedding that is stored with the logits matrix follows it.
    """
    if all(wanted.target.rounds(item) == "block" for item in plan.storage.values() if item.is_integer):
        return plan
    fact = graph.fact(Calibration)
    groups = _groups(weights, plan, wanted, dict(fact.keys) if fact is not None else {})
    picks = chosen_blocks(
        [_loss(group, logs) for group, logs in zip(groups, _errors(groups, ctx), strict=True)],
        [[_streamed(group, storage, wanted) for storage in group[0].storages] for group in groups],
        trade,
    )
    storage, rules = dict(plan.storage), dict(plan.rules)
    for group, pick in zip(groups, picks, strict=True):
        for item in group if pick else ():
            name = item.weight.name
            storage[name], rules[name] = (
                item.storages[pick],
                f"{rules.get(name, '')}, block by measurement".lstrip(", "),
            )
    if plan.tied:
        head = next(weight.name for weight in weights if weight.role == "logits")
        storage |= {weight.name: storage[head] for weight in weights if weight.role == "embedding"}
    return replace(plan, storage=storage, rules=rules)


def chosen_blocks(losses: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], trade: float) -> list[int]:
    """For each group the choice that makes ``sum(losses) * sum(sizes) ** trade`` least, as far as single steps lead.

    The logarithm of a sum lies below its tangent, so that taking the best of each group by the tangents never raises the
    product. The first choice of each group is where it begins.
    """
    picks = [0] * len(losses)
    for _ in range(STEPS):
        loss = sum(row[pick] for row, pick in zip(losses, picks, strict=True))
        size = sum(row[pick] for row, pick in zip(sizes, picks, strict=True))
        better = []
        for errors, read in zip(losses, sizes, strict=True):
            costs = [
                error / max(loss, LEAST) + trade * part / max(size, 1) for error, part in zip(errors, read, strict=True)
            ]
            better.append(costs.index(min(costs)))
        if better == picks:
            break
        picks = better
    return picks


def _loss(group: Group, logs: Sequence[float]) -> list[float]:
    """The part of a group in the loss, by storage: every weight counts alike, and a bit more makes it a quarter."""
    return [len(group) * 4.0 ** -group[0].storages[0].bits * math.exp(log - logs[0]) for log in logs]


def _streamed(group: Group, storage: Storage, wanted: Preferences) -> int:
    return sum(streamed_bytes(item.weight, storage, wanted.device) for item in group)


def _groups(
    weights: Sequence[Weight], plan: PrecisionPlan, wanted: Preferences, keys: Mapping[str, str]
) -> list[Group]:
    """What is decided about, each with the storages to choose from, the present one first."""
    found: dict[tuple, list[Wanted]] = {}
    for number, weight in enumerate(weights):
        stored, rule = plan.storage[weight.name], wanted.rule_of(weight)
        if weight.role == "embedding" or not stored.is_integer or (rule is not None and "block" in rule.storage):
            continue
        key = moments_for(stored, keys.get(weight.name, ""))
        storages = _storages(weight, stored, wanted)
        if plan.tied and weight.role == "logits" and not wanted.target.ties_rows:
            storages = (stored, *(storage for storage in storages if storage.block))
        # Without statistics, what a product reads says which weights share their inputs.
        together = (key or weight.value.users[0].inputs[0], storages) if weight.role == "layer" else (number,)
        found.setdefault(together, []).append(Wanted(weight, key, storages))
    return [tuple(group) for group in found.values() if len(group[0].storages) > 1]


def _storages(weight: Weight, stored: Storage, wanted: Preferences) -> tuple[Storage, ...]:
    """The storage as it is, and with every larger block that the target computes right."""
    found = {stored: None}
    for block in BLOCKS:
        made = stored if stored.block == 0 else replace(stored, block=block).fit(weight.columns)
        made = replace(made, block=0) if made.block == weight.columns else made
        if (made.block or weight.columns) > (stored.block or weight.columns):
            found |= {} if wanted.target.unfit(weight.columns, made) else {made: None}
    return tuple(found)


def _errors(groups: Sequence[Group], ctx: PassContext) -> list[list[float]]:
    """For each group and each of its storages the logarithm of its error, up to a constant of the group."""
    shapes: dict[tuple, list[int]] = {}
    for number, group in enumerate(groups):
        shapes.setdefault(_shape(group), []).append(number)
    few = sum(len(group[0].storages) * group[0].weight.columns for group in groups) <= FULL_STEPS
    chosen = sorted(number for members in shapes.values() for number in (members if few else _spread(members)))
    asked = [item for number in chosen for item in groups[number]]
    curves = error_curves(
        asked,
        lambda done, total: ctx.progress(done, total, "measuring blocks"),
        executor=ctx.executor,
        store=ctx.store,
    )
    by_name = {item.weight.name: curve for item, curve in zip(asked, curves, strict=True)}
    logs = {
        number: [
            math.log(max(sum(by_name[item.weight.name][storage].output for item in groups[number]), LEAST))
            for storage in groups[number][0].storages
        ]
        for number in chosen
    }
    for members in shapes.values():
        known = [logs[number] for number in members if number in logs]
        mean = [sum(row[place] - row[0] for row in known) / len(known) for place in range(len(known[0]))]
        logs |= {number: mean for number in members if number not in logs}
    return [logs[number] for number in range(len(groups))]


def _shape(group: Group) -> tuple:
    """What groups have in common that one follows another."""
    weights = [item.weight for item in group]
    return group[0].storages, tuple((w.role, w.rows, w.columns, place_of(w.name)[1]) for w in weights)


def _spread(members: Sequence[int]) -> set[int]:
    """A few of many, evenly from the first to the last."""
    last = len(members) - 1
    return {members[round(place * last / max(1, EXAMPLES - 1))] for place in range(EXAMPLES)}


__all__ = ["chosen_blocks", "with_larger_blocks"]
