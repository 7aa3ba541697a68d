"""The multiple-choice knapsack under several limits at once, such as bytes stored and bytes streamed.

The method is that of `knapsack`, with all limits but the first moved into the value by multipliers (Lagrangian
relaxation: Fisher, "The Lagrangian Relaxation Method for Solving Integer Programming Problems", 1981). For any
multipliers ``m >= 0`` a plan that keeps the limits ``L`` has ``value >= value + m (cost - L)``, so the linear relaxation
of what stands on the right bounds the states of the dynamic program from below. The multipliers are those of the best
bound on the whole. A choice found by them drops every candidate that no choice better by more than `GAP` can have
(reduced costs), and few are left of each item. Passes with more states each drop those whose bound shows the same; what a
pass has to leave out for its number, it remembers the least bound of, so that how far the choice can be from the best
is proved whatever happens. The number of states is fixed, so no instance takes long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from passes.precision.measured.knapsack import solve

GAP = 1e-3
"""The choice is worse than the best by this share of its value at most where no state was left out: far less than any
price is known to."""
STATES = (300, 1_500, 4_000)
"""States that are kept in each pass."""
POLISH = 60
"""Steps by which multipliers are improved together, after each by itself."""
HALVINGS = 50
ROUNDS = 3
CHUNK = 512


class Item(NamedTuple):
    """Candidates of one item: `cost` ``[limits, n]``, `value` ``[n]``, and the places the caller knows them by."""

    cost: np.ndarray
    value: np.ndarray
    places: np.ndarray


class Several(NamedTuple):
    """A choice under several limits.

    Attributes:
        chosen: candidate of each item.
        gap: share of its value by which a better one could be less, as proved.
    """

    chosen: tuple[int, ...]
    gap: float


def solve_several(
    costs: Sequence[Sequence[np.ndarray]], values: Sequence[np.ndarray], limits: Sequence[float]
) -> Several | None:
    """The choice of one candidate for each item of least value among those that keep every limit, and how good it is.

    Deterministic; no time is looked at.

    Args:
        costs: for each limit the numbers of the candidates of each item.
        values: those to be least in sum, not negative.
        limits: largest sums of `costs`.

    Returns:
        The candidates, or None when none was found that keeps the limits together.
    """
    if any(limit < 0 for limit in limits):
        return None
    for cost, limit in zip(costs, limits, strict=True):
        alone = solve(cost, values, limit)
        if alone is None:
            return None
        if all(_sum(c, alone.chosen) <= most for c, most in zip(costs, limits, strict=True)):
            return Several(alone.chosen, 0.0)
    scales = [1 / max(limit, 1e-300) for limit in limits]
    items = [_item([np.asarray(c[n], np.float64) for c in costs], values[n], scales) for n in range(len(values))]
    order = sorted(range(len(items)), key=lambda n: (-float(np.ptp(items[n].cost, axis=1).max()), n))
    best = _solved([items[n] for n in order], np.ones(len(limits)) * (1 + 1e-12))
    if best is None:
        return None
    chosen = [0] * len(items)
    for place, number in enumerate(order):
        chosen[number] = best.chosen[place]
    return Several(tuple(chosen), best.gap)


def _solved(items: Sequence[Item], room: np.ndarray) -> Several | None:
    """The choice in numbers of the caller's candidates, items in the order of the dynamic program."""
    duals = _duals(items, room)
    lowest = _priced(items, duals, room)
    picks, value = _repaired(items, duals, room)
    best = None if picks is None else tuple(int(item.places[pick]) for item, pick in zip(items, picks, strict=True))
    for most in STATES:
        if best is not None:
            left = _narrowed(items, duals, room, value)
            if left is None:
                return Several(best, GAP)  # no candidate is left of an item: nothing is better by more
            items = left
        found, least, cut = _sweep(items, duals, room, value, most)
        if found is not None and least < value:
            best = tuple(int(item.places[pick]) for item, pick in zip(items, found, strict=True))
            value = least
        if best is None:
            continue
        lowest = max(lowest, min(cut, value * (1 - GAP)))
        if lowest >= value * (1 - GAP):
            break
    return None if best is None else Several(best, max(0.0, 1 - lowest / value) if value > 0 else 0.0)


def _priced(items: Sequence[Item], duals: np.ndarray, room: np.ndarray) -> float:
    """The bound of the Lagrangian relaxation on the value of any choice within the limits."""
    return float(sum(float((item.value + duals @ item.cost).min()) for item in items) - duals @ room)


def _narrowed(items: Sequence[Item], duals: np.ndarray, room: np.ndarray, best: float) -> list[Item] | None:
    """Items without the candidates that no choice better than `best` by more than `GAP` can have; None where one has
    none left."""
    lowest = _priced(items, duals, room)
    found = []
    for item in items:
        reduced = item.value + duals @ item.cost
        kept = np.flatnonzero(lowest + reduced - reduced.min() <= best * (1 - GAP) + 1e-12 * abs(lowest))
        if not len(kept):
            return None
        found.append(Item(item.cost[:, kept], item.value[kept], item.places[kept]))
    return found


def _sum(costs: Sequence[np.ndarray], picks: Sequence[int]) -> float:
    return float(sum(cost[pick] for cost, pick in zip(costs, picks, strict=True)))


def _item(costs: Sequence[np.ndarray], value: np.ndarray, scales: Sequence[float]) -> Item:
    """Candidates that no other beats in everything, costs in units of their limits."""
    cost = np.stack([c * scale for c, scale in zip(costs, scales, strict=True)])
    value = np.asarray(value, np.float64)
    rows = np.vstack([cost, value])
    order = np.lexsort(rows[::-1])
    kept: list[int] = []
    for number in order:
        if not kept or not np.any(np.all(rows[:, kept] <= rows[:, [number]], axis=0)):
            kept.append(int(number))
    index = np.array(kept)
    return Item(cost[:, index], value[index], index)


# ---- multipliers ----


class _Padded:
    """All candidates as rectangles, for sums of least over items."""

    def __init__(self, items: Sequence[Item]) -> None:
        width = max(len(item.value) for item in items)
        self.value = np.full((len(items), width), np.inf)
        self.cost = np.zeros((len(items[0].cost), len(items), width))
        for number, item in enumerate(items):
            self.value[number, : len(item.value)] = item.value
            self.cost[:, number, : len(item.value)] = item.cost
        self.rows = np.arange(len(items))

    def least(self, duals: np.ndarray) -> np.ndarray:
        """The candidate of each item that is best at these multipliers."""
        return np.argmin(self.value + np.tensordot(duals, self.cost, 1), axis=1)

    def sums(self, picks: np.ndarray) -> np.ndarray:
        """Costs of a choice."""
        return self.cost[:, self.rows, picks].sum(axis=1)


def _duals(items: Sequence[Item], room: np.ndarray) -> np.ndarray:
    """Multipliers whose bound is nearly the best: each in turn is moved to where its limit is just kept."""
    padded = _Padded(items)
    highest = max(1.0, float(sum(np.ptp(item.value) for item in items))) * 1e3
    duals = np.zeros(len(room))
    for _ in range(ROUNDS if len(room) > 1 else 1):
        for place in range(len(room)):
            duals[place] = _balanced(padded, duals, place, room, highest)
    return _polished(padded, duals, room)


def _polished(padded: _Padded, duals: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Multipliers of the best bound on the way of some steps along subgradients (Held, Wolfe, Crowder, 1974)."""

    def bound(trial: np.ndarray) -> tuple[float, np.ndarray]:
        picks = padded.least(trial)
        over = padded.sums(picks) - room
        return float(padded.value[padded.rows, picks].sum() + trial @ over), over

    best, over = bound(duals)
    kept, step = duals, 0.1
    trial = duals
    for _ in range(POLISH):
        length = float(over @ over)
        if length == 0:
            break
        trial = np.maximum(0.0, kept + step * max(abs(best), 1e-300) * over / length)
        value, new = bound(trial)
        if value > best:
            best, kept, over = value, trial, new
        else:
            step /= 2
            over = over if value < best else new
    return kept


def _balanced(padded: _Padded, duals: np.ndarray, place: int, room: np.ndarray, highest: float) -> float:
    """The least multiplier of one limit at which it is kept, the others given; their best for it where there are two."""
    trial = duals.copy()

    def kept(multiplier: float) -> bool:
        trial[place] = multiplier
        return bool(padded.sums(padded.least(trial))[place] <= room[place])

    if kept(0.0):
        return 0.0
    low, high = highest * 2.0**-HALVINGS, highest
    for _ in range(HALVINGS):
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if kept(middle) else (middle, high)
    return high


def _repaired(items: Sequence[Item], duals: np.ndarray, room: np.ndarray) -> tuple[list[int] | None, float]:
    """A choice that keeps the limits: the best one at multipliers raised until it does, improved by single changes."""
    padded = _Padded(items)
    for raised in (1.0, 1.01, 1.03, 1.1, 1.3, 2.0, 8.0, 64.0, 1e4, 1e8):
        picks = padded.least(np.maximum(duals, 1e-12) * raised)
        if np.all(padded.sums(picks) <= room):
            return _improved(padded, picks, room)
    return None, float("inf")


def _improved(padded: _Padded, picks: np.ndarray, room: np.ndarray) -> tuple[list[int], float]:
    picks = picks.copy()
    for _ in range(4 * len(picks)):
        spare = room - padded.sums(picks)
        more = padded.cost - padded.cost[:, padded.rows, picks][:, :, None]
        gain = padded.value[padded.rows, picks][:, None] - padded.value
        gain[np.any(more > spare[:, None, None], axis=0)] = 0
        at = int(np.argmax(gain))
        if gain.flat[at] <= 0:
            break
        picks[at // gain.shape[1]] = at % gain.shape[1]
    return picks.tolist(), float(padded.value[padded.rows, picks].sum())


# ---- the dynamic program ----


class _Rest:
    """Lower bounds of what the last items add to the value, all limits but the first being priced by multipliers."""

    def __init__(self, items: Sequence[Item], duals: np.ndarray) -> None:
        self.extra = duals[1:]
        self.starts = [(0.0, 0.0)]
        steps: list[tuple[float, float, int]] = []
        for place in range(len(items) - 1, -1, -1):
            item = items[place]
            cost, value = _hull(item.cost[0], item.value + self.extra @ item.cost[1:])
            first = self.starts[-1]
            self.starts.append((first[0] + cost[0], first[1] + value[0]))
            steps += [(c, v, place) for c, v in zip(np.diff(cost).tolist(), np.diff(value).tolist(), strict=True)]
        self.starts.reverse()
        steps.sort(key=lambda step: (step[1] / step[0], -step[2]))
        self.cost = np.array([step[0] for step in steps])
        self.value = np.array([step[1] for step in steps])
        self.owner = np.array([step[2] for step in steps])

    def least(self, place: int, room: np.ndarray) -> np.ndarray:
        """For each room under the first limit the least priced value of the items from `place` on."""
        kept = self.owner >= place
        cost, value = self.starts[place]
        costs = np.concatenate([[cost], cost + np.cumsum(self.cost[kept])])
        values = np.concatenate([[value], value + np.cumsum(self.value[kept])])
        return np.where(room < cost, np.inf, np.interp(room, costs, values))


def _hull(cost: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lower convex hull by rising cost, as far as the value falls."""
    kept: list[int] = []
    for here in np.lexsort((value, cost)).tolist():
        if kept and value[here] >= value[kept[-1]]:
            continue
        while len(kept) > 1 and (value[kept[-2]] - value[kept[-1]]) * (cost[here] - cost[kept[-1]]) <= (
            value[kept[-1]] - value[here]
        ) * (cost[kept[-1]] - cost[kept[-2]]):
            kept.pop()
        kept.append(here)
    return cost[kept], value[kept]


def _sweep(
    items: Sequence[Item], duals: np.ndarray, room: np.ndarray, best: float, most: int
) -> tuple[list[int] | None, float, float]:
    """The best choice by states of the first items, of which the `most` promising are kept, its value, and the least
    bound of a state that was left out for their number."""
    rest = _Rest(items, duals)
    lows = np.cumsum([item.cost.min(axis=1) for item in items][::-1], axis=0)[::-1]
    lows = np.vstack([lows, np.zeros(len(room))])
    cost, value = np.zeros((len(room), 1)), np.zeros(1)
    trail: list[tuple[np.ndarray, np.ndarray]] = []
    cut = float("inf")
    for place, item in enumerate(items):
        count = len(item.value)
        state, pick = (axis.reshape(-1) for axis in np.divmod(np.arange(len(value) * count), count))
        new_cost, new_value = cost[:, state] + item.cost[:, pick], value[state] + item.value[pick]
        fits = np.all(new_cost + lows[place + 1][:, None] <= room[:, None], axis=0)
        state, pick, new_cost, new_value = state[fits], pick[fits], new_cost[:, fits], new_value[fits]
        bound = new_value + rest.least(place + 1, room[0] - new_cost[0])
        bound += rest.extra @ (new_cost[1:] - room[1:, None])
        # What is left under the other limits is worth nothing less than nothing.
        bound = np.maximum(bound, new_value)
        keep = np.flatnonzero(bound <= best * (1 - GAP))
        keep, cut = _first(keep, bound, 4 * most, cut)
        keep = keep[_undominated(np.vstack([new_cost[:, keep], new_value[keep]]))]
        keep, cut = _first(keep, bound, most, cut)
        if not len(keep):
            return None, float("inf"), cut
        cost, value = new_cost[:, keep], new_value[keep]
        trail.append((state[keep], pick[keep]))
    at = int(np.argmin(value))
    least = float(value[at])
    chosen: list[int] = []
    for state, pick in reversed(trail):
        chosen.append(int(pick[at]))
        at = int(state[at])
    return chosen[::-1], least, cut


def _first(keep: np.ndarray, bound: np.ndarray, most: int, cut: float) -> tuple[np.ndarray, float]:
    """The `most` of some states with the least bounds, in their order, and the least bound of the others or `cut`."""
    if len(keep) <= most:
        return keep, cut
    order = keep[np.argsort(bound[keep], kind="stable")]
    return np.sort(order[:most]), min(cut, float(bound[order[most]]))


def _undominated(rows: np.ndarray) -> np.ndarray:
    """Columns of ``[3, n]`` that no other beats in every number; all of them where there are more numbers than three."""
    count = rows.shape[1]
    if count < 2 or len(rows) != 3:
        return np.arange(count)
    order = np.lexsort(rows[::-1])
    y, z = rows[1:, order]
    kept: list[np.ndarray] = []
    stair_y, stair_z = np.array([-np.inf]), np.array([np.inf])
    for start in range(0, count, CHUNK):
        part = np.arange(start, min(start + CHUNK, count))
        below = stair_z[np.searchsorted(stair_y, y[part], side="right") - 1]
        part = part[z[part] < below]
        earlier = np.tri(len(part), k=-1, dtype=bool)
        beaten = (y[part][None] <= y[part][:, None]) & (z[part][None] <= z[part][:, None]) & earlier
        part = part[~beaten.any(axis=1)]
        kept.append(part)
        stair_y, stair_z = _stair(np.concatenate([stair_y, y[part]]), np.concatenate([stair_z, z[part]]))
    return np.sort(order[np.concatenate(kept)])


def _stair(y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least z up to each y."""
    order = np.lexsort((z, y))
    y, z = y[order], np.minimum.accumulate(z[order])
    last = np.append(y[1:] != y[:-1], True)
    return y[last], z[last]


__all__ = ["GAP", "Several", "solve_several"]
