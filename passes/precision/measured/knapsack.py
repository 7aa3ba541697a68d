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
from typing import NamedTuple

import numpy as np

SLACK = 1e-12
"""Bounds are compared with this much room, relative to the largest sums, so that rounding never drops the optimum."""


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
    rests = _relaxations(items)
    if sum(float(item.cost.min()) for item in items) > limit:
        return None
    room = SLACK * sum(float(item.value.max()) for item in items)
    best = _greedy(items, 0, 0.0, 0.0, limit)
    cost, value = np.zeros(1), np.zeros(1)
    trail: list[tuple[np.ndarray, np.ndarray]] = []
    for place, item in enumerate(items):
        state, pick = (axis.reshape(-1) for axis in np.divmod(np.arange(len(cost) * len(item.cost)), len(item.cost)))
        new_cost, new_value = cost[state] + item.cost[pick], value[state] + item.value[pick]
        bound = new_value + rests[place + 1].least(limit * (1 + SLACK) - new_cost)
        keep = np.flatnonzero((bound <= best + room) & (new_cost <= limit))
        keep = keep[undominated(new_cost[keep], new_value[keep])]
        cost, value = new_cost[keep], new_value[keep]
        trail.append((state[keep], item.index[pick[keep]]))
        lead = int(np.argmin(bound[keep]))
        best = min(best, _greedy(items, place + 1, float(cost[lead]), float(value[lead]), limit))
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
    """Least total value of some items when candidates may be mixed, as a function of the cost allowed."""

    def __init__(self, cost: np.ndarray, value: np.ndarray) -> None:
        self.cost = cost
        self.value = value

    def least(self, room: np.ndarray) -> np.ndarray:
        """The value for each room, infinite where even the cheapest candidates do not fit."""
        found = np.interp(room, self.cost, self.value)
        return np.where(room < self.cost[0], np.inf, found)


def _relaxations(items: Sequence[_Item]) -> list[_Relaxation]:
    """For each place the relaxation of the items from there on; the last is that of no items."""
    steps_cost, steps_value = np.empty(0), np.empty(0)
    start_cost = start_value = 0.0
    found = [_Relaxation(np.zeros(1), np.zeros(1))]
    for item in reversed(items):
        hull = item.hull()
        start_cost += float(item.cost[0])
        start_value += float(item.value[0])
        steps_cost = np.concatenate([steps_cost, np.diff(item.cost[hull])])
        steps_value = np.concatenate([steps_value, np.diff(item.value[hull])])
        order = np.argsort(steps_value / steps_cost, kind="stable")
        steps_cost, steps_value = steps_cost[order], steps_value[order]
        found.append(
            _Relaxation(
                np.concatenate([[start_cost], start_cost + np.cumsum(steps_cost)]),
                np.concatenate([[start_value], start_value + np.cumsum(steps_value)]),
            )
        )
    return found[::-1]


def _greedy(items: Sequence[_Item], place: int, cost: float, value: float, limit: float) -> float:
    """Value of a feasible choice for the items from `place` on: the best steps by value for cost that still fit."""
    at = [0] * (len(items) - place)
    for item in items[place:]:
        cost += float(item.cost[0])
        value += float(item.value[0])
    if cost > limit:
        return float("inf")
    steps = []
    for number, item in enumerate(items[place:]):
        hull = item.hull()
        rates = np.diff(item.value[hull]) / np.diff(item.cost[hull])
        steps += [(rate, number, int(target)) for rate, target in zip(rates, hull[1:], strict=True)]
    for _, number, target in sorted(steps):
        item = items[place + number]
        more = float(item.cost[target] - item.cost[at[number]])
        if cost + more <= limit:
            cost += more
            value += float(item.value[target] - item.value[at[number]])
            at[number] = target
    return value


__all__ = ["Solution", "solve", "undominated"]
