"""What occurs of an activation, gathered in bounded memory, and the range that a method chooses from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Method = Literal["minmax", "percentile", "entropy", "mse"]

BINS = 8192
"""Bins of a histogram; half of them on each side of zero."""
MOST_COUNTED = 1 << 17
"""Elements of one array that are put into bins, spread evenly; extremes are those of all."""
LEVELS = 255
"""Steps of 8 bits between the ends of a range."""
STEPS = 60
"""Candidates for an end of a range."""
COMPARED = 128
"""Levels by which distributions are compared. More would take more numbers than calibration data has."""
LEAST_BINS = 3
"""Bins for each level that a range holds at least there: with as many bins as levels, nothing would be lost."""
LEAST_COUNT = 64
"""Numbers for each bin that holds any, on average, that the comparison takes; with fewer the extremes are the range."""
NARROWEST = 0.1
"""Part of an end, as it occurred, that the lowest candidate for it is."""


class Histogram:
    """Counts of numbers in bins of one width from ``-reach`` to ``reach``, which doubles whenever it is too small.

    Attributes:
        low, high: extremes.
        counts: int64[BINS].
        reach: upper end of the last bin.
        elements: numbers seen, also those that were not put into bins.
        arrays: how many times numbers were added.
        finite: nothing seen was infinite or no number.
    """

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self.counts = np.zeros(BINS, np.int64)
        self.reach = 0.0
        self.elements = self.arrays = 0
        self.finite = True

    def add(self, array: np.ndarray) -> None:
        """Count the numbers of an array."""
        flat = array.reshape(-1)
        self.arrays += 1
        self.elements += flat.size
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            self.finite = False
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._stretch(max(-low, high))
        # An odd stride meets every place of the axes, whose lengths are mostly even.
        seen = flat[:: -(-flat.size // MOST_COUNTED) | 1]
        if self.reach == 0.0:
            self.counts[BINS // 2] += seen.size
            return
        places = np.floor(seen * (BINS / (2 * self.reach)) + BINS / 2)
        places = np.clip(places, 0, BINS - 1).astype(np.int64)
        self.counts += np.bincount(places, minlength=BINS)

    def _stretch(self, reach: float) -> None:
        """Make room for numbers as large as `reach`."""
        if reach <= self.reach:
            return
        if self.reach == 0.0:
            # Zeros alone were counted until now; they stay in the bin above zero.
            self.reach = float(2.0 ** np.ceil(np.log2(reach))) if reach > np.finfo(np.float32).tiny else float(reach)
            return
        while self.reach < reach:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = pairs
            self.reach *= 2

    def centers(self) -> np.ndarray:
        """float64[BINS], the middle of each bin; those at the ends of what occurred are moved to the extremes."""
        width = 2 * self.reach / BINS
        found = -self.reach + (np.arange(BINS) + 0.5) * width
        return np.clip(found, self.low, self.high) if self.low <= self.high else found

    def arrays_of(self) -> dict[str, np.ndarray]:
        """Everything as arrays, to be kept."""
        numbers = np.array([self.low, self.high, self.reach], np.float64)
        return {"numbers": numbers, "counts": self.counts, "seen": np.array([self.elements, self.arrays], np.int64)}

    @classmethod
    def of_arrays(cls, numbers: np.ndarray, counts: np.ndarray, seen: np.ndarray) -> Histogram:
        """Inverse of `arrays_of`; ValueError for arrays that are none of it."""
        if numbers.shape != (3,) or counts.shape != (BINS,) or seen.shape != (2,):
            raise ValueError("these are not the arrays of a histogram")
        found = cls()
        found.low, found.high, found.reach = map(float, numbers)
        found.counts = counts.astype(np.int64)
        found.elements, found.arrays = map(int, seen)
        return found


@dataclass(frozen=True)
class Chosen:
    """How a range is chosen.

    Attributes:
        method: ``minmax`` takes the extremes, ``percentile`` cuts off a share of what occurred at both ends, ``entropy``
            keeps what 8 bits give nearest to what occurs, as distributions (least Kullback-Leibler divergence), ``mse``
            keeps the mean square of the rounding error least.
        percentile: percent of the numbers that the range of that method holds.
    """

    method: Method
    percentile: float

    def range(self, seen: Histogram) -> tuple[float, float]:
        """The ends of a range that holds zero."""
        low, high = min(seen.low, 0.0), max(seen.high, 0.0)
        if not seen.elements or low == high:
            return (low, high) if seen.elements else (0.0, 0.0)
        if self.method == "percentile":
            return _percentile(seen, self.percentile, low, high)
        if self.method == "minmax":
            return low, high
        if self.method == "entropy" and not _is_smooth(seen, low, high):
            return low, high
        if self.method == "entropy":
            return _searched(seen, _without_zeros(seen.counts), low, high, _entropy)
        return _searched(seen, seen.counts, low, high, _mse)


def _percentile(seen: Histogram, percent: float, low: float, high: float) -> tuple[float, float]:
    """The ends between which so many percent lie; half of the rest is cut off at each end."""
    centers, total = seen.centers(), seen.counts.sum()
    cut = (1 - percent / 100) / 2 * total
    below = np.cumsum(seen.counts)
    lower = float(centers[np.searchsorted(below, cut, side="right").clip(0, BINS - 1)])
    upper = float(centers[np.searchsorted(below, total - cut).clip(0, BINS - 1)])
    return max(low, min(lower, 0.0)), min(high, max(upper, 0.0))


Cost = Callable[[np.ndarray, np.ndarray, float, float], float]


def _without_zeros(counts: np.ndarray) -> np.ndarray:
    """Counts with as many numbers around zero as beside it: a Relu makes most of what it gives zero, and zero is kept
    exactly whatever the range."""
    found = counts.copy()
    middle = BINS // 2
    found[middle] = min(found[middle], max(found[middle - 1], found[middle + 1]))
    return found


def _searched(seen: Histogram, counts: np.ndarray, low: float, high: float, cost: Cost) -> tuple[float, float]:
    """The ends for which a cost is least, one after the other, twice."""
    used = np.flatnonzero(counts)
    centers, weights = seen.centers()[used], counts[used].astype(np.float64)
    parts = np.linspace(1.0, NARROWEST, STEPS)
    found = [low, high]
    for _ in range(2):
        for end, limit in ((1, high), (0, low)):
            if limit == 0.0:
                continue
            tried = [[found[0], limit * part] if end else [limit * part, found[1]] for part in parts]
            costs = [cost(centers, weights, *pair) for pair in tried]
            found = tried[int(np.argmin(costs))]
    return found[0], found[1]


def _mse(centers: np.ndarray, weights: np.ndarray, low: float, high: float) -> float:
    """Mean square of the error of rounding to 8 bits."""
    step = (high - low) / LEVELS
    rounded = np.clip(np.rint(centers / step), np.rint(low / step), np.rint(high / step)) * step
    return float(weights @ np.square(centers - rounded))


def _is_smooth(seen: Histogram, low: float, high: float) -> bool:
    """True when the bins of a range hold enough numbers to tell its distribution."""
    bins = (high - low) / (2 * seen.reach) * BINS
    enough = seen.counts.sum() >= LEAST_COUNT * np.count_nonzero(seen.counts)
    return bool(enough and bins >= LEAST_BINS * COMPARED)


def _width(centers: np.ndarray) -> float:
    """The width of a bin, from the middles of those that occur."""
    return float(np.median(np.diff(centers))) if centers.size > 1 else 0.0


def _entropy(centers: np.ndarray, weights: np.ndarray, low: float, high: float) -> float:
    """Kullback-Leibler divergence of what rounding gives from what occurs, both as counts in the bins that occur.

    What lies outside of a range goes to its ends, as it does when it is rounded.
    """
    inside = (centers >= low) & (centers <= high)
    if not inside.any() or (high - low) < LEAST_BINS * COMPARED * _width(centers):
        return np.inf
    wanted = np.where(inside, weights, 0.0)
    first, last = np.flatnonzero(inside)[[0, -1]]
    wanted[first] += weights[:first].sum()
    wanted[last] += weights[last + 1 :].sum()
    levels = np.clip(np.rint((centers - low) / (high - low) * COMPARED), 0, COMPARED).astype(np.int64)
    kept = np.where(inside, weights, 0.0)
    sums = np.bincount(levels, kept, COMPARED + 1)
    members = np.bincount(levels, inside.astype(np.float64), COMPARED + 1)
    spread = (sums / np.maximum(members, 1.0))[levels]
    p, q = wanted[inside] / wanted.sum(), spread[inside] / max(kept.sum(), 1.0)
    return float(np.sum(p * np.log(np.maximum(p, 1e-30) / np.maximum(q, 1e-30))))


__all__ = ["Chosen", "Histogram", "Method"]
