"""Error curves: how far off the outputs of a weight are for each way to store it, measured on a sample of its rows.

The error is ``tr((W - W') H (W - W')^T)`` with ``H = E[x x^T]`` of the weight's inputs, the expected squared error of
its outputs. Methods treat rows independently, so the rows of a sample get exactly the codes they would get in the whole
weight and the sum over the sample, scaled up, is unbiased. One row is drawn at random from each of as many equal runs
of rows, so that every head of an attention is met.

Where all candidates would take too long, the grid of widths, blocks and forms is measured along some lines and filled:
between measured widths the error times the squared number of steps is interpolated, and so is the ratio between blocks,
since both barely change with the width. In models with many layers only one group of weights of each shape is measured
so; the others are measured at two points and follow its example.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np

from ir.base.executor import SERIAL, run_jobs
from ir.base.store import Store, default_store, using_store
from ir.base.types import F32
from ir.quant.cache import loaded_moments
from ir.quant.statistics.exact_products import one_thread
from ir.quant.statistics.moments import Moments, entry_of
from ir.quant.storage import Storage
from ir.quant.weight import METHODS, dequantize, thread_scratch
from ir.tensor.base import Tensor
from ir.tensor.elementwise import convert
from ir.tensor.identity import tensor_identity
from passes.precision.measured.kept import digest_of, keep, recall
from passes.precision.planned_weights import Weight, place_of

FORMAT = "curves 1"
"""Part of every key; another one when the numbers are computed otherwise."""
BATCH_ROWS = 256
"""Rows quantized at a time; those of weights that share their inputs are taken together."""
FULL_STEPS, LINE_STEPS = 100_000, 600_000
"""Up to this many (candidate, input feature) pairs of a model every candidate is measured, or those of some lines."""
ANCHOR_BLOCK = 64
LINE_BITS, CROSS_BITS = (2, 3, 4, 6), (2, 5)
"""Widths that are measured when the grid is filled: in blocks of the usual size, and in all blocks."""
POINT_BITS = (3, 6)
"""Widths that are measured beside an example of the same shape."""
LEAST = 1e-300


class Error(NamedTuple):
    """Squared errors of a weight in one storage.

    Attributes:
        output: expected squared error of the outputs, summed over them; of the rows themselves without statistics.
        rows: squared error of the numbers of the weight.
    """

    output: float
    rows: float


Curve = dict[Storage, Error]


class Wanted(NamedTuple):
    """Curves to measure: a weight, key of the statistics of its inputs ("" for none), and its storages."""

    weight: Weight
    moments: str
    storages: tuple[Storage, ...]


class _Matrix(NamedTuple):
    """What is measured of a weight: its rows ``[rows, columns]``, and its role."""

    source: Tensor
    role: str
    rows: int
    columns: int


class _Job(NamedTuple):
    """Weights that share statistics and storages, to be measured; plain data, for executors of any kind."""

    matrices: tuple[_Matrix, ...]
    moments: str
    storages: tuple[Storage, ...]
    store: Store

    @property
    def reads(self) -> tuple[str, ...]:
        """The entry of the store that it looks for."""
        return (entry_of(self.moments),) if self.moments else ()


def error_curves(
    wanted: Sequence[Wanted],
    progress: Callable[[int, int], None],
    executor: Executor = SERIAL,
    store: Store | None = None,
) -> list[Curve]:
    """The errors of each weight in each of its storages, in the order of `wanted`.

    Args:
        wanted: what to measure.
        progress: called with (groups of weights that are measured, all of them).
        executor: measures groups of weights.
        store: holds the statistics, and keeps what was measured; the default one when None.
    """
    groups = _groups_of(wanted)
    places = [[wanted[number] for number in members] for members in groups]
    found: list[Curve] = [{} for _ in wanted]
    keeper = store if store is not None else default_store()
    # Made one by one and held by nobody else, so that what a job has read is let go of when it is done.
    jobs = (_job(place, storages, keeper) for place, storages in zip(places, _to_measure(places), strict=True))
    done = 0
    with one_thread():
        for members, curves in zip(groups, run_jobs(executor, _group, jobs), strict=True):
            for number, curve in zip(members, curves, strict=True):
                found[number] = curve
            done += 1
            progress(done, len(groups))
    return _completed(wanted, groups, found)


def _groups_of(wanted: Sequence[Wanted]) -> list[list[int]]:
    """Weights that are measured together: those that share statistics and storages."""
    groups: dict[tuple, list[int]] = {}
    for number, item in enumerate(wanted):
        # Without statistics, and for the many rows of a logits matrix, weights gain nothing from being taken together.
        alone = number if not item.moments or item.weight.role == "logits" else -1
        groups.setdefault((item.moments, item.storages, alone), []).append(number)
    return list(groups.values())


def _shape(group: Sequence[Wanted]) -> tuple:
    """What groups must have in common to have curves of nearly one form."""
    weights = [item.weight for item in group]
    return group[0].storages, tuple((w.role, w.rows, w.columns, place_of(w.name)[1]) for w in weights)


def _to_measure(places: Sequence[Sequence[Wanted]]) -> list[tuple[Storage, ...]]:
    """The storages of each group that are measured: all, those of some lines, or a few beside one group of each
    shape."""
    full = [group[0].storages for group in places]
    if _steps(places, full) <= FULL_STEPS:
        return full
    lines = [lines_of(storages) for storages in full]
    if _steps(places, lines) <= LINE_STEPS:
        return lines
    shapes: dict[tuple, list[int]] = {}
    for number, group in enumerate(places):
        shapes.setdefault(_shape(group), []).append(number)
    examples = {members[len(members) // 2] for members in shapes.values()}
    return [found if number in examples else points_of(found) for number, found in enumerate(lines)]


def _steps(places: Sequence[Sequence[Wanted]], storages: Sequence[Sequence[Storage]]) -> int:
    """(Candidate, input feature) pairs, which the time of slow methods goes with."""
    return sum(len(found) * group[0].weight.columns for group, found in zip(places, storages, strict=True))


def _completed(wanted: Sequence[Wanted], groups: Sequence[Sequence[int]], found: list[Curve]) -> list[Curve]:
    """Every curve with estimates for what was not measured, where need be after the example of its shape."""
    examples: dict[tuple, Curve] = {}
    for members in groups:
        for number in members:
            if set(found[number]) >= set(lines_of(wanted[number].storages)):
                found[number] = filled(found[number], wanted[number].storages)
                examples[_shape([wanted[number]])] = found[number]
    for number, item in enumerate(wanted):
        if len(found[number]) < len(item.storages):
            found[number] = after_example(found[number], examples[_shape([item])])
    return found


def _job(group: Sequence[Wanted], storages: tuple[Storage, ...], store: Store) -> _Job:
    weights = [item.weight for item in group]
    matrices = tuple(_Matrix(weight.source, weight.role, weight.rows, weight.columns) for weight in weights)
    return _Job(matrices, group[0].moments, storages, store)


def _group(job: _Job) -> list[Curve]:
    """Measured errors of the weights of a job."""
    with one_thread(), using_store(job.store):
        samples = [_sample(matrix, len(job.matrices)) for matrix in job.matrices]
        versions = sorted((name, METHODS[name].version) for name in {s.method for s in job.storages if s.bits <= 8})
        identities = [tensor_identity(matrix.source) for matrix in job.matrices]
        key = digest_of([FORMAT, job.moments, versions, job.storages, *identities])
        kept = recall(job.store, key)
        if kept is None:
            moments = loaded_moments(job.moments) if job.moments else None
            kept = _measure(job.matrices, samples, moments, job.storages)
            keep(job.store, key, kept)
    return [{storage: Error(*pair) for storage, pair in zip(job.storages, numbers, strict=True)} for numbers in kept]


def _sample(weight: _Matrix, members: int) -> np.ndarray:
    """Numbers of the rows that stand for a weight, one at random from each of equal runs, always the same ones."""
    count = max(32, BATCH_ROWS // members)
    if weight.role != "layer":
        count *= 2
    if count >= weight.rows:
        return np.arange(weight.rows)
    edges = np.linspace(0, weight.rows, count + 1)
    inside = np.random.default_rng(weight.rows * 131 + weight.columns).random(count)
    return (edges[:-1] + inside * np.diff(edges)).astype(np.int64)


def _rows_of(tensor: Tensor, chosen: np.ndarray) -> np.ndarray:
    """The chosen rows as float32, runs of neighbours read together."""
    cuts = np.flatnonzero(np.diff(chosen) != 1) + 1
    runs = [tensor.rows(int(run[0]), int(run[-1]) + 1) for run in np.split(chosen, cuts) if len(run)]
    return convert(np.concatenate(runs), F32, tensor.loc)


def _measure(
    weights: Sequence[_Matrix], samples: Sequence[np.ndarray], moments: Moments | None, storages: Sequence[Storage]
) -> list[list[tuple[float, float]]]:
    """For each weight and each storage the two errors."""
    rows = np.concatenate([_rows_of(weight.source, sample) for weight, sample in zip(weights, samples, strict=True)])
    edges = np.cumsum([0, *map(len, samples)])
    scales = [weight.rows / max(1, len(sample)) for weight, sample in zip(weights, samples, strict=True)]
    found: list[list[tuple[float, float]]] = [[] for _ in weights]
    for storage in storages:
        error = rows - _restored(rows, storage, moments)
        plain = np.einsum("ij,ij->i", error, error, dtype=np.float64)
        output = plain
        if moments is not None:
            output = np.einsum("ij,ij->i", error @ moments.second, error, dtype=np.float64)
        for number, scale in enumerate(scales):
            part = slice(edges[number], edges[number + 1])
            found[number].append((max(0.0, float(output[part].sum()) * scale), float(plain[part].sum()) * scale))
    return found


def _restored(rows: np.ndarray, storage: Storage, moments: Moments | None) -> np.ndarray:
    """What the runtime computes with instead of the rows, float32."""
    if storage.bits == 32:
        return rows
    if storage.bits == 16:
        return rows.astype(np.float16).astype(np.float32)
    method = METHODS[storage.method]
    given = None if method.needs == "nothing" else moments
    return dequantize(method.quantize(rows, storage, thread_scratch(), given))


# ---- filling the grid ----


def _family(storage: Storage) -> tuple[str, str]:
    """What must be equal for two storages to lie in one grid of widths, blocks and forms."""
    return storage.method, storage.scale


def _anchors(storages: Sequence[Storage]) -> dict[tuple, int]:
    """The block on the line of widths of each family and form: the one nearest to the usual."""
    found: dict[tuple, int] = {}
    for storage in storages:
        if storage.bits <= 8:
            key = (*_family(storage), storage.symmetric)
            found[key] = min(found.get(key, storage.block), storage.block, key=_distance)
    return found


def _distance(block: int) -> tuple[int, int]:
    return abs((block or 1 << 20) - ANCHOR_BLOCK), block


def lines_of(storages: Sequence[Storage]) -> tuple[Storage, ...]:
    """The storages that are measured when the rest is filled."""
    widths = sorted({s.bits for s in storages if s.bits <= 8})
    along = _nearest_of(widths, LINE_BITS)
    across = _nearest_of(widths, CROSS_BITS)
    anchors = _anchors(storages)
    return tuple(
        s
        for s in storages
        if s.bits > 8 or s.bits in across or (s.bits in along and anchors[*_family(s), s.symmetric] == s.block)
    )


def points_of(storages: Sequence[Storage]) -> tuple[Storage, ...]:
    """The storages that are measured beside an example of the same shape: one with each method and form of a block."""
    widths = sorted({s.bits for s in storages if s.bits <= 8})
    ends = _nearest_of(widths, POINT_BITS)
    anchors = _anchors(storages)
    found = [s for s in storages if s.bits in ends and anchors[*_family(s), s.symmetric] == s.block]
    plain = [s for s in found if not s.symmetric] or found
    families = {_family(s) for s in plain}
    rest = [s for s in storages if s.bits <= 8 and _family(s) not in families]
    return (*plain, *rest, *(s for s in storages if s.bits > 8))


def after_example(curve: Curve, example: Curve) -> Curve:
    """A curve known at some points, elsewhere that of an example scaled by how the two differ at these points."""
    made = {}
    for storage, error in example.items():
        alike = [s for s in curve if s.bits <= 8 and _family(s) == _family(storage)]
        if storage in curve or not alike:
            made[storage] = curve.get(storage, error)
            continue
        factors = [
            between({s.bits: curve[s][axis] / max(example[s][axis], LEAST) for s in alike}, storage.bits)
            for axis in range(2)
        ]
        made[storage] = Error(error.output * factors[0], error.rows * factors[1])
    return made


def _nearest_of(widths: Sequence[int], wanted: Sequence[int]) -> set[int]:
    """For each width wanted the nearest there is."""
    return {min(widths, key=lambda bits: (abs(bits - near), bits)) for near in wanted} if widths else set()


def filled(curve: Curve, storages: Sequence[Storage]) -> Curve:
    """The curve with an estimate for each storage that was not measured; `curve` has those of `lines_of`."""
    anchors = _anchors(list(curve))
    forms: dict[tuple, dict[Storage, Error]] = {}
    for storage, error in curve.items():
        forms.setdefault((*_family(storage), storage.symmetric), {})[storage] = error
    made = {}
    for storage in storages:
        key = (*_family(storage), storage.symmetric)
        made[storage] = curve[storage] if storage in curve else _estimate(forms[key], anchors[key], storage)
    return made


def _estimate(alike: Mapping[Storage, Error], anchor: int, storage: Storage) -> Error:
    """The error of a storage from those of its family and form; `anchor` is the block on the line of widths."""
    line = {s.bits: error for s, error in alike.items() if s.bits <= 8 and s.block == anchor}
    beside = {s.bits: error for s, error in alike.items() if s.bits <= 8 and s.block == storage.block}
    parts = []
    for axis in range(2):
        ratios = {bits: error[axis] / max(line[bits][axis], LEAST) for bits, error in beside.items()}
        along = along_widths({bits: error[axis] for bits, error in line.items()}, storage.bits)
        parts.append(along * between(ratios, storage.bits))
    return Error(*parts)


def along_widths(errors: Mapping[int, float], bits: int) -> float:
    """The error at a width from those at others: error times squared number of steps, interpolated geometrically."""
    products = {width: error * (2.0**width - 1) ** 2 for width, error in errors.items()}
    return between(products, bits) / (2.0**bits - 1) ** 2


def between(numbers: Mapping[int, float], bits: int) -> float:
    """The number at a width from those at others, interpolated geometrically and constant beyond."""
    known = sorted(numbers)
    return math.exp(float(np.interp(bits, known, [math.log(max(numbers[width], LEAST)) for width in known])))


__all__ = [
    "Curve",
    "Error",
    "Wanted",
    "after_example",
    "along_widths",
    "between",
    "error_curves",
    "filled",
    "lines_of",
    "points_of",
]
