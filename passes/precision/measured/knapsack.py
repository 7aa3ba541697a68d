"""The multiple-choice knapsack, solved exactly: one candidate for each item, least value under a limit on the cost.

Items are weights (or groups of them), candidates their storages; minimizing loss under a limit on bytes and minimizing
bytes under a limit on loss are one problem with the two numbers exchanged.

The method is dynamic programming over the undominated (cost, value) pairs of the first items, where a pair is dropped
when even the linear relaxation of the remaining items cannot bring it below the best solution known (Kellerer,
Pferschy, Pisinger, "Knapsack Problems", 2004, chapter 11). The relaxation is tight for this problem, so few pairs
survive.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

SLACK = 1e-12
"""Bounds are compared with this much room, relative to the largest sums, so that rounding never drops the optimum."""
MOST_GUESSES = 256
"""How often a feasible choice is looked for to tighten the bound; each look goes over all items."""


class Solution(NamedTuple):
    """Index of the candidate chosen for each item, and the sums."""

    chosen: tuple[int, ...]
    cost: float
    value: float


def solve(costs: Sequence[np.ndarray], values: Sequence[np.ndarray], limit: float) -> Solution | None:
    """The choice of one candidate per item with the least total value among those whose total cost is within the limit.

    Among choices of equal value the one of least cost is taken. Sums run over the items in order, in double precision;
    integers up to 2^53 are exact.

    Args:
        costs, values: non-negative numbers of the candidates of each item, at least one each.
        limit: largest total cost.

    Returns:
        The optimum, or None when even the cheapest candidates exceed the limit.
    """
    items = [_Item(np.asarray(c, np.float64), np.asarray(v, np.float64)) for c, v in zip(costs, values, strict=True)]
    if sum(float(item.cost.min()) for item in items) > limit:
        return None
    room = SLACK * sum(float(item.value.max()) for item in items)
    rest, steps = _Relaxation(items), _steps(items)
    best = _greedy(items, steps, 0, 0.0, 0.0, limit)
    stride = -(-len(items) // MOST_GUESSES)
    cost, value = np.zeros(1), np.zeros(1)
    trail: list[tuple[np.ndarray, np.ndarray]] = []
    for place, item in enumerate(items):
        state, pick = (axis.reshape(-1) for axis in np.divmod(np.arange(len(cost) * len(item.cost)), len(item.cost)))
        new_cost, new_value = cost[state] + item.cost[pick], value[state] + item.value[pick]
        rest.drop(place)
        bound = new_value + rest.least(limit * (1 + SLACK) - new_cost)
        keep = np.flatnonzero((bound <= best + room) & (new_cost <= limit))
        keep = keep[undominated(new_cost[keep], new_value[keep])]
        cost, value = new_cost[keep], new_value[keep]
        trail.append((state[keep], item.index[pick[keep]]))
        if place % stride == 0:
            lead = int(np.argmin(bound[keep]))
            best = min(best, _greedy(items, steps, place + 1, float(cost[lead]), float(value[lead]), limit))
    last = int(np.argmin(value))
    chosen = []
    at = last
    for state, pick in reversed(trail):
        chosen.append(int(pick[at]))
        at = int(state[at])
    return Solution(tuple(reversed(chosen)), float(cost[last]), float(value[last]))


def undominated(cost: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Indices of the candidates that no other beats in cost without being worse in value, by rising cost."""
    order = np.lexsort((value, cost))
    sorted_values = value[order]
    before = np.concatenate([[np.inf], np.minimum.accumulate(sorted_values)[:-1]])
    return order[sorted_values < before]


class _Item:
    """Undominated candidates by rising cost, with the indices that the caller knows them by."""

    def __init__(self, cost: np.ndarray, value: np.ndarray) -> None:
        self.index = undominated(cost, value)
        self.cost, self.value = cost[self.index], value[self.index]

    @cached_property
    def hull(self) -> np.ndarray:
        """Candidates on the lower convex hull, first the cheapest."""
        kept: list[int] = []
        for here in range(len(self.cost)):
            while len(kept) > 1 and not self._bends(kept[-2], kept[-1], here):
                kept.pop()
            kept.append(here)
        return np.array(kept)

    def _bends(self, a: int, b: int, c: int) -> bool:
        left = (self.value[a] - self.value[b]) * (self.cost[c] - self.cost[b])
        right = (self.value[b] - self.value[c]) * (self.cost[b] - self.cost[a])
        return bool(left > right)


class _Relaxation:
    """Least total value of the last items when candidates may be mixed, as a function of the cost allowed.

    It begins with all items and loses them one by one from the front; memory is in proportion to the candidates.
    """

    def __init__(self, items: Sequence[_Item]) -> None:
        self._starts = [(0.0, 0.0)]
        for item in reversed(items):
            cost, value = self._starts[-1]
            self._starts.append((cost + float(item.cost[0]), value + float(item.value[0])))
        self._starts.reverse()
        # Steps of later items come first among equally good ones.
        backwards = list(reversed(list(enumerate(items))))
        owner = np.concatenate([np.full(len(item.hull) - 1, number) for number, item in backwards])
        costs = np.concatenate([np.diff(item.cost[item.hull]) for _, item in backwards])
        values = np.concatenate([np.diff(item.value[item.hull]) for _, item in backwards])
        order = np.argsort(values / costs, kind="stable")
        self._owner, self._steps_cost, self._steps_value = owner[order], costs[order], values[order]
        self._place = 0

    def drop(self, place: int) -> None:
        """Go on with the items behind `place`, the first one there is."""
        kept = self._owner != place
        self._owner, self._steps_cost = self._owner[kept], self._steps_cost[kept]
        self._steps_value = self._steps_value[kept]
        self._place = place + 1

    def least(self, room: np.ndarray) -> np.ndarray:
        """The value for each room, infinite where even the cheapest candidates do not fit."""
        start_cost, start_value = self._starts[self._place]
        costs = np.concatenate([[start_cost], start_cost + np.cumsum(self._steps_cost)])
        values = np.concatenate([[start_value], start_value + np.cumsum(self._steps_value)])
        return np.where(room < start_cost, np.inf, np.interp(room, costs, values))


def _steps(items: Sequence[_Item]) -> list[tuple[float, int, int]]:
    """Every step along a hull as (value for cost, item, candidate), the best first."""
    found = []
    for number, item in enumerate(items):
        rates = np.diff(item.value[item.hull]) / np.diff(item.cost[item.hull])
        found += [(rate, number, target) for rate, target in zip(rates.tolist(), item.hull[1:].tolist(), strict=True)]
    return sorted(found)


def _greedy(
    items: Sequence[_Item], steps: Sequence[tuple[float, int, int]], place: int, cost: float, value: float, limit: float
) -> float:
    """Value of a feasible choice for the items from `place` on: the best steps by value for cost that still fit."""
    at = [0] * len(items)
    for item in items[place:]:
        cost += float(item.cost[0])
        value += float(item.value[0])
    if cost > limit:
        return float("inf")
    for _, number, target in steps:
        if number < place:
            continue
        item = items[number]
        more = float(item.cost[target] - item.cost[at[number]])
        if cost + more <= limit:
            cost += more
            value += float(item.value[target] - item.value[at[number]])
            at[number] = target
    return value


__all__ = ["Solution", "solve", "undominated"]
