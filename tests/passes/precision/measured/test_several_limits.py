"""The knapsack under several limits against brute force and against an integer program."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.precision.measured import several_limits
from passes.precision.measured.several_limits import GAP, _undominated, solve_several

numbers = st.one_of(st.integers(0, 12), st.floats(0, 10, allow_nan=False, allow_subnormal=False))


def problems(limits):
    candidate = st.tuples(*[numbers] * (limits + 1))
    items = st.lists(st.lists(candidate, min_size=1, max_size=4), min_size=1, max_size=4)
    return st.tuples(items, st.tuples(*[st.integers(1, 40)] * limits))


def brute(items, limits):
    """The least value of any choice within the limits, None without one."""
    best = None
    for choice in itertools.product(*items):
        sums = np.sum(choice, axis=0)
        if np.all(sums[:-1] <= limits) and (best is None or sums[-1] < best):
            best = sums[-1]
    return best


def columns(items, axis):
    return [np.array([candidate[axis] for candidate in item], np.float64) for item in items]


@pytest.mark.parametrize("count", [2, 3])
def test_the_optimum_is_that_of_brute_force(count):
    @given(problems(count))
    def check(problem):
        items, limits = problem
        found = solve_several([columns(items, n) for n in range(count)], columns(items, count), limits)
        wanted = brute(items, limits)
        if wanted is None:
            assert found is None
            return
        assert found is not None
        sums = np.sum([item[pick] for item, pick in zip(items, found.chosen, strict=True)], axis=0)
        assert np.all(sums[:-1] <= np.array(limits) * (1 + 1e-9))
        assert sums[-1] * (1 - found.gap) <= wanted + 1e-12 and found.gap <= GAP + 1e-12

    check()


@pytest.mark.parametrize("states", [(1,), (2, 3)])
def test_what_is_proved_holds_when_few_states_are_kept(states, monkeypatch):
    monkeypatch.setattr(several_limits, "STATES", states)
    rng = np.random.default_rng(5)
    gaps = []
    for _ in range(60):
        items = [[tuple(rng.integers(1, 100, 3)) for _ in range(5)] for _ in range(6)]
        limits = tuple(int(0.55 * sum(max(c[n] for c in item) for item in items)) for n in range(2))
        found, wanted = (
            solve_several([columns(items, n) for n in range(2)], columns(items, 2), limits),
            brute(items, limits),
        )
        if found is None:
            continue
        sums = np.sum([item[pick] for item, pick in zip(items, found.chosen, strict=True)], axis=0)
        assert wanted is not None and np.all(sums[:2] <= limits) and wanted >= sums[2] * (1 - found.gap) - 1e-9
        gaps.append(sums[2] / wanted - 1)
    assert len(gaps) > 40 and max(gaps) > GAP


@pytest.mark.parametrize("seed", range(4))
def test_hard_instances_are_solved_or_their_gap_is_proved(seed):
    """Costs and values that have nothing to do with each other, which leaves the most states."""
    rng = np.random.default_rng(seed)
    stored, read, losses = ([rng.integers(1, 1000, 20).astype(float) for _ in range(60)] for _ in range(3))
    limits = [0.25 * sum(item.max() for item in items) for items in (stored, read)]
    found = solve_several([stored, read], losses, limits)
    assert found is not None and found.gap <= 2e-3
    for items, limit in ((stored, limits[0]), (read, limits[1])):
        assert sum(item[pick] for item, pick in zip(items, found.chosen, strict=True)) <= limit


def weights(seed, count):
    """Items like weights on a device that reads everything but 4 bits as bytes: bytes stored, bytes read, losses."""
    rng = np.random.default_rng(seed)
    stored, read, losses = [], [], []
    bits = np.repeat(np.arange(2, 9), 4)
    pairs = np.tile([2.0, 1.0, 0.5, 0.04], 7)
    for _ in range(count):
        size = int(rng.choice([8192, 32768, 65536, 163840]))
        stored.append(np.rint(size * (bits + pairs) / 8))
        read.append(np.rint(size * (np.where(bits == 4, 4, 8) + pairs) / 8))
        losses.append(rng.lognormal(0, 1.5) * 4.0**-bits * (1 + rng.uniform(0, 0.6, len(bits))) * (1.5 - pairs / 4))
    return stored, read, losses


@pytest.mark.parametrize(("stored_bits", "read_bits"), [(4.5, 5.0), (4.5, 6.5), (3.5, 7.5), (5.5, 5.2)])
def test_real_sizes_agree_with_an_integer_program(stored_bits, read_bits):
    from scipy.optimize import Bounds, LinearConstraint, milp

    stored, read, losses = weights(int(10 * stored_bits), 20)
    elements = sum(item.max() for item in stored) * 8 / 10
    limits = [elements * stored_bits / 8, elements * read_bits / 8]
    found = solve_several([stored, read], losses, limits)
    assert found is not None and found.gap <= GAP + 1e-12
    value = sum(item[pick] for item, pick in zip(losses, found.chosen, strict=True))
    counts = [len(item) for item in losses]
    rows = np.zeros((len(losses) + 2, sum(counts)))
    for number, (low, high) in enumerate(itertools.pairwise(np.cumsum([0, *counts]))):
        rows[number, low:high] = 1
    rows[-2], rows[-1] = np.concatenate(stored) / limits[0], np.concatenate(read) / limits[1]
    program = milp(
        np.concatenate(losses) * 1e3 / value,
        constraints=LinearConstraint(rows, np.append(np.ones(len(losses)), [0, 0]), np.ones(len(losses) + 2)),
        integrality=np.ones(sum(counts)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-4},
    )
    assert program.success
    assert program.fun * (1 + 2 * GAP) >= 1e3
    assert solve_several([stored, read], losses, limits) == found


def test_limits_that_exclude_each_other_have_no_solution():
    small_or_fast = [np.array([1.0, 5.0])], [np.array([5.0, 1.0])]
    assert solve_several(small_or_fast, [np.array([1.0, 0.0])], [2, 2]) is None
    assert solve_several(small_or_fast, [np.array([1.0, 0.0])], [5, 5]) == ((1,), 0.0)
    assert solve_several(small_or_fast, [np.array([1.0, 0.0])], [-1, 5]) is None


@given(st.lists(st.tuples(*[st.integers(0, 6)] * 3), min_size=1, max_size=40, unique=True), st.integers(2, 16))
def test_exactly_what_another_beats_is_dropped(points, chunk):
    kept_chunk = several_limits.CHUNK
    several_limits.CHUNK = chunk
    try:
        rows = np.array(points, np.float64).T
        kept = {points[n] for n in _undominated(rows)}
    finally:
        several_limits.CHUNK = kept_chunk
    beaten = {p for p in points if any(q != p and all(a <= b for a, b in zip(q, p, strict=True)) for q in points)}
    assert kept == set(points) - beaten
