"""The search for what an attention region computes: heads, rotary embedding, norms, scale, window and cap.

The first token attends to itself alone, so the first row of a mix is the first row of the values: this says which
product holds the values, how many heads there are and which of them share keys. The rest is tried, likely ones first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product
from typing import Literal

import numpy as np

from ir.graph.graph import Node
from passes.raising.reference import mixed, normalized, rotated, seen

TOLERANCE = 1e-5
"""Largest difference, relative to the largest value, of a region that fits."""


@dataclass(frozen=True)
class Part:
    """Where queries, keys or values lie in a product.

    Attributes:
        linear: which product.
        first: first column of each head.
        size: elements of a head.
    """

    linear: int
    first: tuple[int, ...]
    size: int

    @property
    def heads(self) -> int:
        """Number of heads."""
        return len(self.first)

    @property
    def is_whole(self) -> bool:
        """True when the heads lie side by side."""
        return all(b - a == self.size for a, b in zip(self.first, self.first[1:], strict=False))

    def of(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """float64[S, heads, size] from the rows of the products."""
        columns = np.array(self.first)[:, None] + np.arange(self.size)
        return rows[self.linear][:, columns]


@dataclass(frozen=True, eq=False)
class HeadNorm:
    """A norm of queries or keys.

    Attributes:
        linear: the product whose elements it normalizes.
        gain, bias: its constants, float64; of one head, or of the whole row.
        epsilon: its epsilon.
        rms: RMSNorm, else LayerNorm.
        index: its place among the norms of the region.
        node: the norm in the graph.
    """

    linear: int
    gain: np.ndarray
    bias: np.ndarray | None
    epsilon: float
    rms: bool
    index: int
    node: Node

    def fits(self, part: Part) -> bool:
        """Whether it may be the norm of a part: of each head, or of the row."""
        return self.linear == part.linear and self.gain.size in (part.size, part.size * part.heads)

    def of(self, x: np.ndarray) -> np.ndarray:
        """The norm of float64[S, heads, size], by head or by row."""
        if self.gain.size == x.shape[-1]:
            return normalized(x, self.gain, self.bias, self.epsilon, self.rms)
        flat = x.reshape(len(x), -1)
        return normalized(flat, self.gain, self.bias, self.epsilon, self.rms).reshape(x.shape)


NormPlace = Literal["none", "before", "after"]


@dataclass(frozen=True)
class Form:
    """What an attention computes.

    Attributes:
        q, k, v: where they come from.
        table: index of the pair of tables that queries and keys are turned by; None for none.
        interleaved: neighbours are turned in place of halves.
        norms: indices of the norms of queries and of keys, or None.
        norm_place: whether they are before or after the rotation.
        scale: factor of the scores.
        window: tokens that are seen, itself included; 0 for all.
        cap: soft cap of the scores; 0 for none.
    """

    q: Part
    k: Part
    v: Part
    table: int | None
    interleaved: bool
    norms: tuple[int, int] | None
    norm_place: NormPlace
    scale: float
    window: int
    cap: float


@dataclass(frozen=True)
class Sample:
    """A region, evaluated: arrays of the first sequence of the batch, float64.

    Attributes:
        rows: the rows of each product.
        result: the mix, [S, heads * size].
        tables: cos and sin of each pair of tables.
        norms: the norms in the region.
        history: earlier keys and values, each [g, P, d], in the order of the inputs.
        numbers: single numbers in the region, and attributes.
    """

    rows: Sequence[np.ndarray]
    result: np.ndarray
    tables: Sequence[tuple[np.ndarray, np.ndarray]]
    norms: Sequence[HeadNorm]
    history: Sequence[np.ndarray]
    numbers: Sequence[float]


def compute(form: Form, sample: Sample, order: tuple[int, int] = (0, 1)) -> np.ndarray:
    """The mix that a form computes; `order` says which history holds keys and which values."""
    q, k, v = (part.of(sample.rows) for part in (form.q, form.k, form.v))
    if form.norms is not None and form.norm_place == "before":
        q, k = sample.norms[form.norms[0]].of(q), sample.norms[form.norms[1]].of(k)
    if form.table is not None:
        cos, sin = sample.tables[form.table]
        q, k = rotated(q, cos, sin, form.interleaved), rotated(k, cos, sin, form.interleaved)
    if form.norms is not None and form.norm_place == "after":
        q, k = sample.norms[form.norms[0]].of(q), sample.norms[form.norms[1]].of(k)
    past = 0
    if sample.history:
        keys, values = (sample.history[place].transpose(1, 0, 2) for place in order)
        past = len(keys)
        k, v = np.concatenate([keys, k]), np.concatenate([values, v])
    return mixed(q, k, v, seen(len(q), past, form.window), form.scale, form.cap)


def difference(form: Form, sample: Sample, order: tuple[int, int] = (0, 1)) -> float:
    """Largest difference between a region and a form, relative to the region's largest value."""
    found = compute(form, sample, order)
    if found.shape != sample.result.shape:
        return float("inf")
    return float(np.abs(found - sample.result).max() / max(np.abs(sample.result).max(), 1e-30))


def fit(sample: Sample, seeds: Sequence[Form] = ()) -> tuple[Form | None, float]:
    """The form of a region that was evaluated from position 0, and how far off the best one is.

    Args:
        sample: the region, without history.
        seeds: forms of other regions of the model, tried first.
    """
    best: tuple[Form | None, float] = (None, float("inf"))
    for form in seeds:
        off = difference(form, sample) if _possible(form, sample) else float("inf")
        if off < best[1]:
            best = (form, off)
        if off <= TOLERANCE:
            return best
    for form in _forms(sample):
        off = difference(form, sample)
        if off < best[1]:
            best = (form, off)
        if off <= TOLERANCE:
            return best
    return best


def _possible(form: Form, sample: Sample) -> bool:
    if any(
        part.linear >= len(sample.rows) or max(part.first) + part.size > sample.rows[part.linear].shape[1]
        for part in (form.q, form.k, form.v)
    ):
        return False
    if form.table is not None and form.table >= len(sample.tables):
        return False
    if form.norms is None:
        return True
    pairs = zip(form.norms, (form.q, form.k), strict=True)
    return all(index < len(sample.norms) and sample.norms[index].fits(part) for index, part in pairs)


def _forms(sample: Sample) -> Iterator[Form]:
    """Forms, likely ones first: without windows and caps, then with one of them, then with both."""
    bases = list(_bases(sample))
    windows, caps = _windows(sample), _caps(sample.numbers)
    yield from bases
    for extra in ([(window, 0.0) for window in windows], [(0, cap) for cap in caps], list(product(windows, caps))):
        for window, cap in extra:
            yield from (replace(base, window=window, cap=cap) for base in bases)


def _bases(sample: Sample) -> Iterator[Form]:
    for q, k, v in _parts(sample):
        tables = [index for index, (cos, _) in enumerate(sample.tables) if 2 * cos.shape[1] <= q.size]
        turns: list[tuple[int | None, bool]] = [(index, style) for index in tables for style in (False, True)]
        for norms, place in _norms(sample, q, k):
            for scale in _scales(sample.numbers, q.size):
                for table, interleaved in [*turns, (None, False)]:
                    yield Form(q, k, v, table, interleaved, norms, place, scale, 0, 0.0)


def _parts(sample: Sample) -> Iterator[tuple[Part, Part, Part]]:
    """Where queries, keys and values may lie, the values found by the first row."""
    width = sample.result.shape[1]
    for size in _sizes(sample, width):
        heads = width // size
        firsts = [_find(sample.result[0, h * size : (h + 1) * size], sample.rows) for h in range(heads)]
        if any(found is None for found in firsts):
            continue
        places = [found for found in firsts if found is not None]
        linear = places[0][0]
        starts = list(dict.fromkeys(start for _, start in places))
        if any(item[0] != linear for item in places) or heads % len(starts):
            continue
        group = heads // len(starts)
        if [start for _, start in places] != [start for start in starts for _ in range(group)]:
            continue
        v = Part(linear, tuple(starts), size)
        yield from ((q, k, v) for q, k in _queries(sample, v, heads))


def _sizes(sample: Sample, width: int) -> list[int]:
    """Sizes that heads may have: divisors of the width, those named in the region first."""
    named = {int(number) for number in sample.numbers if number == int(number) and 2 <= number <= width}
    likely = [size for size in sorted(named, reverse=True) if width % size == 0]
    likely += [width // heads for heads in sorted(named) if width % heads == 0]
    rest = [size for size in range(width, 1, -1) if width % size == 0]
    return list(dict.fromkeys(size for size in (*likely, *rest) if size >= 2))


def _find(wanted: np.ndarray, rows: Sequence[np.ndarray]) -> tuple[int, int] | None:
    """The product and the column from which a head of values is copied."""
    for index, array in enumerate(rows):
        room = 1e-5 * max(np.abs(wanted).max(), 1e-30)
        for start in np.nonzero(np.abs(array[0] - wanted[0]) <= room)[0]:
            part = array[0, start : start + len(wanted)]
            if len(part) == len(wanted) and np.abs(part - wanted).max() <= room:
                return index, int(start)
    return None


def _queries(sample: Sample, v: Part, heads: int) -> Iterator[tuple[Part, Part]]:
    """Where queries and keys may lie, given the values."""
    groups = v.heads
    others = [index for index in range(len(sample.rows)) if index != v.linear]
    widths = [array.shape[1] for array in sample.rows]
    if len(others) == 2:
        for q, k in permutations(others, 2):
            if widths[q] % heads == 0 and widths[q] // heads * groups == widths[k]:
                size = widths[q] // heads
                yield _line(q, 0, heads, size), _line(k, 0, groups, size)
    elif len(others) == 1:
        q = others[0]
        if widths[q] % heads:
            return
        size = widths[q] // heads
        for first in _free(widths[v.linear], v, groups * size):
            yield _line(q, 0, heads, size), _line(v.linear, first, groups, size)
        stride = widths[v.linear] // groups
        yield _line(q, 0, heads, size), Part(v.linear, tuple(g * stride for g in range(groups)), size)
    elif not others:
        yield from _joined(widths[v.linear], v, heads)


def _joined(width: int, v: Part, heads: int) -> Iterator[tuple[Part, Part]]:
    """Queries, keys and values in one product: side by side, or by group."""
    groups = v.heads
    size = (width - groups * v.size) // (heads + groups)
    if (heads + groups) * size + groups * v.size != width:
        return
    if v.is_whole:
        for start_q, start_k in ((0, heads * size), (groups * size, 0)):
            shift = groups * v.size if v.first[0] == 0 else 0
            yield _line(v.linear, start_q + shift, heads, size), _line(v.linear, start_k + shift, groups, size)
    each = heads // groups
    stride = (each + 1) * size + v.size
    starts = [g * stride + h * size for g in range(groups) for h in range(each)]
    keys = [g * stride + each * size for g in range(groups)]
    yield Part(v.linear, tuple(starts), size), Part(v.linear, tuple(keys), size)


def _free(width: int, v: Part, wanted: int) -> list[int]:
    taken = set(range(min(v.first), max(v.first) + v.size))
    return [first for first in (0, width - wanted) if not taken & set(range(first, first + wanted))]


def _line(linear: int, start: int, heads: int, size: int) -> Part:
    return Part(linear, tuple(start + size * head for head in range(heads)), size)


def _norms(sample: Sample, q: Part, k: Part) -> Iterator[tuple[tuple[int, int] | None, NormPlace]]:
    of_q = [norm.index for norm in sample.norms if norm.fits(q)]
    of_k = [norm.index for norm in sample.norms if norm.fits(k)]
    for first in of_q:
        for second in of_k:
            if first != second:
                yield (first, second), "before"
                yield (first, second), "after"
    yield None, "none"


def _scales(numbers: Sequence[float], size: int) -> list[float]:
    found = [size**-0.5, 1.0]
    useful = [number for number in numbers if 1e-3 < abs(number) < 1e3 and number != 1.0]
    for number in useful:
        found += [number, number * number, 1 / number, 1 / (number * number)]
    found += [1 / np.sqrt(abs(number)) for number in useful]
    return [float(scale) for scale in dict.fromkeys(found) if 1e-4 < scale < 1e2]


def _caps(numbers: Sequence[float]) -> list[float]:
    return list(dict.fromkeys(number for number in numbers if 1 < number < 1e4))


def _windows(sample: Sample) -> list[int]:
    """Windows that show in the sample: whole numbers of the region, and their neighbours."""
    most = len(sample.result) - 1
    named = {int(number) + more for number in sample.numbers if number == int(number) for more in (-1, 0, 1)}
    return sorted(window for window in named if 2 <= window <= most)
