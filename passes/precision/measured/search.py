"""From prices to a plan: solve, measure the whole plan, correct the prices by what was measured, and solve again.

A plan's divergence is not quite the sum of what its weights cost alone. The correction is measured where it matters, at
the plan itself: the divergence that goes away when one item is left exact is the item's share there, and its losses are
scaled to it. Whatever is measured is remembered, and the best plan measured is taken, a uniform one too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ir.base.diag import LadingError
from ir.facts.sensitivity import TriedPlan
from ir.quant.methods.base import METHODS
from passes.precision.limits import Limit, Limits
from passes.precision.measured.candidates import Item
from passes.precision.measured.knapsack import solve
from passes.precision.measured.prices import Prices
from passes.precision.measured.probes import Measured, Meter, Variant
from passes.precision.measured.several_limits import Several, solve_several
from passes.precision.planned_weights import place_of

PLAN_TOKENS = 4096
"""Held-out tokens on which whole plans are measured, fewer for large models."""
SHARE_TOKENS = 1024
"""Held-out tokens on which the shares of items in a plan are measured."""
SHARE_ITEMS = 64
"""With more items than this, shares are measured of layers and of kinds instead of single items."""
SWING = 4.0
"""Largest ratio between a measured and a predicted share that is believed."""
TRUST = 0.5
"""Power of that ratio by which prices change; half of what a single plan shows is the luck of its roundings."""
LATER_TOKENS = 1024
"""Held-out tokens on which the pass recalibrate measures a plan whose codes are made then, for the first time."""
REPAIRS = 6
"""Plans tried at most, beyond the rounds, to come below a limit on the divergence."""

Picks = tuple[int, ...]


@dataclass
class Proposed:
    """A plan, and the KL divergence that its prices promise."""

    name: str
    picks: Picks
    predicted: float


@dataclass
class Tried(Proposed):
    """A plan that was measured."""

    measured: Measured


@dataclass(frozen=True)
class Given:
    """What no choice changes.

    Attributes:
        elements: numbers that bits per weight are counted for, those of kept weights among them.
        bytes: of the weight file.
        bits: stored bits of the weights that came quantized and are kept so.
        streamed: bytes that the device reads of those for each token.
        fastest: bytes that it reads for each token at its fastest uniform width, the kept weights included.
    """

    elements: int
    bytes: int
    bits: int = 0
    streamed: int = 0
    fastest: int = 0

    def room(self, limit: Limit) -> float:
        """What the choices may take together: bits under a budget, bytes in the file, or bytes read for each token."""
        if limit.kind == "budget":
            # Room for the rounding of a limit such as 4.1 times the number of weights, well below one bit.
            return limit.value * self.elements * (1 + 1e-12) - self.bits
        if limit.kind == "min-speed":
            return self.fastest / limit.value * (1 + 1e-12) - self.streamed
        return limit.value - self.bytes

    def shown(self, limit: Limit, least: float) -> str:
        """A limit that choices of this size would just keep, as it is written."""
        if limit.kind == "budget":
            return f"budget={(self.bits + least) / self.elements:.3f}bpw"
        if limit.kind == "min-speed":
            return f"min-speed={math.floor(1000 * self.fastest / (self.streamed + least)) / 1000:.3f}x"
        return f"max-size={self.bytes + int(least)}B"


SIZES: Mapping[str, str] = {"budget": "bits", "max-size": "bytes", "min-speed": "streamed"}
"""Which number of a choice each limit is about."""


def require_room(items: Sequence[Item], limits: Limits, given: Given) -> None:
    """Refuse limits that no plan keeps, alone or two together, before anything is measured.

    Raises:
        LadingError: Q451 the smallest or fastest plan breaks one, Q485 two cannot be kept together.
    """
    sizes = {
        limit: [np.array([getattr(choice, SIZES[limit.kind]) for choice in item.choices], float) for item in items]
        for limit in limits.on_plans
    }
    for limit, found in sizes.items():
        least = float(sum(item.min() for item in found))
        if least <= given.room(limit):
            continue
        what = (
            "more speed than the fastest plan has" if limit.kind == "min-speed" else "less than the smallest plan needs"
        )
        hint = "give more, or allow smaller candidates: widths, blocks, forms, keep, floor and rules decide on them"
        if limit.kind == "min-speed":
            hint = "ask for less, or allow faster candidates: widths, blocks, keep, floor and rules decide on them"
        if given.bits:
            hint += "; weights that came quantized are kept unless requantize names them"
        raise LadingError("Q451", f"{limit.text} is {what}, {given.shown(limit, least)}", hint=hint)
    for one, other in itertools.combinations(limits.on_plans, 2):
        best = solve(sizes[one], sizes[other], given.room(one))
        if best is not None and best.value > given.room(other):
            message = f"{one.text} and {other.text} cannot be kept together: under the first, {{}} is the best there is"
            raise LadingError(
                "Q485",
                message.format(given.shown(other, best.value)),
                hint="a width that the device has no kernel for is read as a wider one: allow more bytes or less speed",
            )


class Search:
    """The search for the best plan under the limits.

    Args:
        prices: what every choice costs.
        meter: measures whole plans.
        limits: what to keep.
        given: what no choice changes.
    """

    def __init__(self, prices: Prices, meter: Meter, limits: Limits, given: Given) -> None:
        self.prices = prices
        self.meter = meter
        self.limits = limits
        self.given = given
        self.factors = np.ones(len(prices.items))
        self.gap = 0.0
        """Share of the predicted loss, or of the size, by which a plan that was not found could be better."""
        self.tried: list[Tried] = []
        self.tokens = meter.tokens_for([list(prices.keys)] * 4, PLAN_TOKENS)

    # ---- sizes and predictions ----

    def bytes_of(self, picks: Picks) -> int:
        """Bytes of the weight file and of exact embedding rows."""
        return self.given.bytes + int(sum(sizes[pick] for sizes, pick in zip(self.prices.bytes, picks, strict=True)))

    def bits_per_weight(self, picks: Picks) -> float:
        """Stored bits of planned and kept weights for each of them."""
        chosen = float(sum(bits[pick] for bits, pick in zip(self.prices.bits, picks, strict=True)))
        return (self.given.bits + chosen) / self.given.elements

    def predicted(self, picks: Picks) -> float:
        """KL divergence by the prices as they are corrected now."""
        shares = zip(self.factors, self.prices.losses, picks, strict=True)
        return float(sum(factor * losses[pick] for factor, losses, pick in shares))

    def streamed(self, picks: Picks) -> int:
        """Bytes that the device reads for each token."""
        return self.given.streamed + int(self._sum(self.prices.streamed, picks))

    def fits(self, picks: Picks) -> bool:
        """True when a plan keeps the limits that can be told before it is measured."""
        return all(self._sum(self._sizes(limit), picks) <= self.given.room(limit) for limit in self.limits.on_plans)

    def _sizes(self, limit: Limit) -> list[np.ndarray]:
        return getattr(self.prices, SIZES[limit.kind])

    def _sum(self, sizes: Sequence[np.ndarray], picks: Picks) -> float:
        return float(sum(item[pick] for item, pick in zip(sizes, picks, strict=True)))

    def _losses(self) -> list[np.ndarray]:
        return [factor * loss for factor, loss in zip(self.factors, self.prices.losses, strict=True)]

    def rounding(self, picks: Picks) -> float:
        """KL divergence that rounding of activations adds: by block where every choice has it so, else by row."""
        by_block = self._sum(self.prices.by_block, picks)
        return by_block if math.isfinite(by_block) else self._sum(self.prices.by_row, picks)

    def _least_loss(self) -> Picks | None:
        """The choice of least predicted divergence that keeps the limits: with activations rounded by row, or by block
        among the choices that allow it, whichever is better."""
        prices = self.prices
        found: list[tuple[float, int, Picks]] = []
        for extra in (prices.by_row, prices.by_block):
            allowed = [np.flatnonzero(np.isfinite(item)) for item in extra]
            if not all(map(len, allowed)):
                continue
            losses = [loss + more for loss, more in zip(self._losses(), extra, strict=True)]
            limits = [
                (
                    [item[places] for item, places in zip(self._sizes(limit), allowed, strict=True)],
                    self.given.room(limit),
                )
                for limit in self.limits.on_plans
            ]
            chosen = _solve(limits, [item[places] for item, places in zip(losses, allowed, strict=True)])
            if chosen is not None:
                self.gap = max(self.gap, chosen.gap)
                picks = tuple(int(places[pick]) for places, pick in zip(allowed, chosen.chosen, strict=True))
                found.append((self._sum(losses, picks), len(found), picks))
            if all(map(np.array_equal, prices.by_row, prices.by_block)):
                break
        return min(found)[2] if found else None

    # ---- measuring ----

    def measure(self, plans: Sequence[tuple[str, Picks]]) -> list[Tried]:
        """Measure plans that were not measured yet; gives all of them."""
        known = {item.picks: item for item in self.tried}
        new = {picks: name for name, picks in plans if picks not in known}
        variants = [self.prices.variant(picks) for picks in new]
        for (picks, name), found in zip(new.items(), self._run(variants), strict=True):
            known[picks] = Tried(name, picks, self.predicted(picks), found)
            self.tried.append(known[picks])
        return [known[picks] for _, picks in plans]

    def _run(self, variants: Sequence[Variant]) -> list[Measured]:
        return self.meter.measure(variants, self.tokens, "measuring whole plans") if variants else []

    def correct(self, plan: Tried) -> None:
        """Scale the losses of each item to its share in the divergence of a measured plan."""
        losses = np.array([losses[pick] for losses, pick in zip(self.prices.losses, plan.picks, strict=True)])
        groups = self._groups(losses)
        variants = [self.prices.variant(plan.picks), *(self.prices.variant(plan.picks, group) for group in groups)]
        tokens = min(self.tokens, self.meter.tokens_for(variants, SHARE_TOKENS))
        whole, *rest = self.meter.measure(variants, tokens, "measuring shares of a plan")
        steps = np.zeros(len(losses))
        counts = np.zeros(len(losses))
        for group, found in zip(groups, rest, strict=True):
            members = sorted(group)
            share = max(whole.kl - found.kl, 0.0)
            ratio = share / float((self.factors[members] * losses[members]).sum())
            steps[members] += TRUST * np.log(min(SWING, max(1 / SWING, ratio)))
            counts[members] += 1
        self.factors *= np.exp(steps / np.maximum(counts, 1))
        total = self.predicted(plan.picks)
        if total > 0 and plan.measured.kl > 0:
            self.factors *= plan.measured.kl / total

    def _groups(self, losses: np.ndarray) -> list[frozenset[int]]:
        """Items whose shares are measured together: single ones, or all of a layer and all of a kind."""
        lossy = [number for number, loss in enumerate(losses) if loss > 0]
        if len(lossy) <= SHARE_ITEMS:
            return [frozenset([number]) for number in lossy]
        found: dict[tuple, set[int]] = {}
        for number in lossy:
            layer, kind = place_of(self.prices.items[number].weights[0].name)
            for key in (("layer", layer), ("kind", kind)) if layer is not None else (("kind", kind),):
                found.setdefault(key, set()).add(number)
        return [frozenset(members) for members in found.values()]

    # ---- the search under limits on size and speed ----

    def best_within_size(self, rounds: int, others: Sequence[tuple[str, Picks]]) -> Tried:
        """The plan of least measured divergence that fits; `others` compete with it.

        Of a large model, whose plans take minutes to make, only those compete that promise less than was measured.
        """
        for number in range(rounds + 1):
            mixed = (f"mixed, round {number}", self.solve_size())
            compete = others if number == 0 and not self.prices.large else ()
            plan = self.measure([mixed, *compete])[0]
            if number == 0 and self.prices.large:
                self.measure([other for other in others if self.predicted(other[1]) < plan.measured.kl])
            if number < rounds:
                self.correct(plan)
        return min(
            self.tried, key=lambda item: (item.measured.kl + self.rounding(item.picks), self.bytes_of(item.picks))
        )

    def proposed(self) -> Proposed | None:
        """The plan of least predicted divergence that fits, unmeasured, where measuring it now would be wasted: its codes
        are chosen anew behind it, by the pass recalibrate, which measures the plan then. None elsewhere."""
        if not self.prices.large:
            return None
        picks = self.solve_size()
        chosen = [item.choices[pick] for item, pick in zip(self.prices.items, picks, strict=True)]
        storages = [storage for choice in chosen for storage in choice.storages]
        follows = any(storage.bits <= 8 and METHODS[storage.method].follows for storage in storages)
        return Proposed("mixed", picks, self.predicted(picks)) if follows else None

    def later_positions(self) -> int:
        """Held-out positions on which a plan that is not measured yet is to be measured."""
        return min(self.meter.available, self.meter.tokens_for([list(self.prices.keys)], LATER_TOKENS))

    def solve_size(self) -> Picks:
        """The plan of least predicted divergence that fits.

        Raises:
            LadingError: Q485 the limits cannot be kept together.
        """
        found = self._least_loss()
        if found is None:
            # `require_room` knows that each and any two of them can.
            raise LadingError("Q485", f"no plan was found that keeps {self.limits.text}", hint="ask for less of one")
        return found

    # ---- the search under a limit on the divergence ----

    def smallest_within_loss(self, rounds: int, others: Sequence[tuple[str, Picks]]) -> Tried:
        """The smallest plan whose measured divergence is within the limit, among those that keep the others.

        Raises:
            LadingError: Q452 no plan is good enough.
        """
        limit = self.limits.max_kl
        assert limit is not None
        if others:
            self.measure(others)
        aim = limit.value
        for number in range(rounds + REPAIRS):
            picks = self.solve_loss(aim)
            if any(item.picks == picks for item in self.tried):
                if self._good():
                    break
                aim *= 0.8
                continue
            plan = self.measure([(f"mixed, round {number}", picks)])[0]
            if number < rounds:
                self.correct(plan)
                aim = limit.value
            elif plan.measured.kl > limit.value:
                aim *= min(0.97, limit.value / plan.measured.kl)
            elif number >= rounds:
                break
        if not self._good():
            self.measure([("best of all", self._finest())])
        if not self._good():
            raise self._unreachable()
        return min(self._good(), key=lambda item: (self.bytes_of(item.picks), item.measured.kl))

    def solve_loss(self, aim: float) -> Picks:
        """The smallest plan whose predicted divergence is within `aim`, or the finest when there is none."""
        limits = [(self._sizes(limit), self.given.room(limit)) for limit in self.limits.on_plans]
        found = _solve([(self._losses(), aim), *limits], self.prices.bytes)
        if found is None:
            return self._finest()
        self.gap = max(self.gap, found.gap)
        return found.chosen

    def _finest(self) -> Picks:
        if self.limits.on_plans:
            return self.solve_size()
        return tuple(
            int(np.lexsort((sizes, losses))[0])
            for sizes, losses in zip(self.prices.bytes, self.prices.losses, strict=True)
        )

    def _good(self) -> list[Tried]:
        limit = self.limits.max_kl
        return [item for item in self.tried if limit is not None and item.measured.kl <= limit.value]

    def _unreachable(self) -> LadingError:
        best = min(self.tried, key=lambda item: item.measured.kl)
        return LadingError(
            "Q452",
            f"{self.limits.text} is not reached: the best plan has {best.measured.kl:.3g} nats per token "
            f"at {self.bytes_of(best.picks):,} bytes",
            hint="allow more, or wider candidates: widths, blocks, keep and rules decide on them",
        )

    def report(self, taken: Proposed) -> tuple[TriedPlan, ...]:
        """What was tried, for the record."""
        return tuple(
            TriedPlan(
                item.name,
                self.bytes_of(item.picks),
                self.bits_per_weight(item.picks),
                item.predicted,
                item.measured.kl,
                item.measured.error,
                item.measured.top1,
                item is taken,
            )
            for item in self.tried
        )


def _solve(limits: Sequence[tuple[Sequence[np.ndarray], float]], values: Sequence[np.ndarray]) -> Several | None:
    """The choice of least value under one limit or several, and how far it may be from the best."""
    if len(limits) == 1:
        (costs, room) = limits[0]
        found = solve(costs, values, room)
        return None if found is None else Several(found.chosen, 0.0)
    return solve_several([costs for costs, _ in limits], values, [room for _, room in limits])


__all__ = ["Given", "Picks", "Proposed", "Search", "Tried", "require_room"]
