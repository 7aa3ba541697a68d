"""The multiple-choice knapsack against brute force and against an integer program."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.precision.measured.knapsack import MOST_GUESSES, solve, undominated

numbers = st.one_of(st.integers(0, 12), st.floats(0, 10, allow_nan=False, allow_subnormal=False))
items = st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5), min_size=1, max_size=5)


def brute(problem, limit):
    """(value, cost) of the best choice by trying all, summed in the same order."""
    best = None
    for choice in itertools.product(*(range(len(item)) for item in problem)):
        cost = value = 0.0
        for item, index in zip(problem, choice, strict=True):
            cost += item[index][0]
            value += item[index][1]
        if cost <= limit and (best is None or (value, cost) < best):
            best = (value, cost)
    return best


def columns(problem, axis):
    return [np.array([candidate[axis] for candidate in item], np.float64) for item in problem]


@settings(max_examples=400, deadline=None)
@given(items, st.one_of(st.integers(0, 60), st.floats(0, 60)))
def test_the_optimum_is_that_of_brute_force(problem, limit):
    found = solve(columns(problem, 0), columns(problem, 1), limit)
    wanted = brute(problem, limit)
    if wanted is None:
        assert found is None
        return
    assert found is not None and found.cost <= limit
    assert found.value == pytest.approx(wanted[0], rel=1e-9, abs=1e-12)
    picked = [item[index] for item, index in zip(problem, found.chosen, strict=True)]
    assert sum(cost for cost, _ in picked) == pytest.approx(found.cost)
    assert sum(value for _, value in picked) == pytest.approx(found.value)


@settings(max_examples=100, deadline=None)
@given(items, st.integers(0, 60))
def test_integers_are_exact_and_ties_take_the_least_cost(problem, limit):
    problem = [[(int(cost), int(value)) for cost, value in item] for item in problem]
    found = solve(columns(problem, 0), columns(problem, 1), limit)
    wanted = brute(problem, limit)
    assert (found is None) == (wanted is None)
    if found is not None:
        assert (found.value, found.cost) == wanted


def rate_curves(rng, count):
    """Items like weights: sizes that repeat, losses that fall by about four for each bit."""
    costs, values = [], []
    for _ in range(count):
        size = int(rng.choice([8192, 32768, 65536, 163840]))
        bits = np.repeat(np.arange(2, 9), 4)
        overhead = np.tile([1.0, 0.5, 0.25, 0.125], 7)
        costs.append(np.rint(size * (bits + overhead) / 8))
        values.append(rng.lognormal(0, 1.5) * 4.0**-bits * (1 + rng.uniform(0, 0.6, len(bits))) * (1.5 - overhead))
    return costs, values


@pytest.mark.parametrize("bits", [2.6, 3.5, 4.5, 5.7])
def test_real_sizes_agree_with_an_integer_program(bits):
    from scipy.optimize import Bounds, LinearConstraint, milp

    costs, values = rate_curves(np.random.default_rng(int(bits * 10)), 40)
    limit = float(sum(cost.max() for cost in costs) / 9 * bits)
    found = solve(costs, values, limit)
    counts = [len(cost) for cost in costs]
    rows = np.zeros((len(costs) + 1, sum(counts)))
    edges = np.cumsum([0, *counts])
    for number, (low, high) in enumerate(itertools.pairwise(edges)):
        rows[number, low:high] = 1
    rows[-1] = np.concatenate(costs) / limit
    low = np.append(np.ones(len(costs)), 0)
    scale = 1e4 / found.value
    program = milp(
        np.concatenate(values) * scale,
        constraints=LinearConstraint(rows, low, np.ones(len(costs) + 1)),
        integrality=np.ones(sum(counts)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    assert program.success
    # The integer program may exceed the limit by its tolerance, so it can only be as good or a trifle better.
    assert found.value * scale == pytest.approx(program.fun, rel=1e-6)


def test_more_items_than_guesses_are_still_solved_exactly():
    rng = np.random.default_rng(5)
    count, limit = MOST_GUESSES + 100, 900
    costs = [rng.integers(0, 8, 4).astype(float) for _ in range(count)]
    values = [rng.integers(0, 50, 4).astype(float) for _ in range(count)]
    best = np.full(limit + 1, np.inf)
    best[0] = 0
    for cost, value in zip(costs, values, strict=True):
        reached = np.full(limit + 1, np.inf)
        for step, more in zip(cost.astype(int), value, strict=True):
            reached[step:] = np.minimum(reached[step:], best[: limit + 1 - step] + more)
        best = reached
    found = solve(costs, values, limit)
    assert (found.value, found.cost) == (best.min(), int(np.argmin(best)))


def test_a_limit_below_the_cheapest_has_no_solution():
    assert solve([np.array([3.0, 5.0])], [np.array([1.0, 0.0])], 2) is None
    assert solve([np.array([3.0, 5.0])], [np.array([1.0, 0.0])], 3).chosen == (0,)


def test_undominated_drops_what_costs_more_without_being_better():
    cost, value = np.array([4, 1, 2, 2, 3]), np.array([0, 9, 5, 5, 6])
    assert list(undominated(cost, value)) == [1, 2, 0]


def test_hundreds_of_items_are_solved_exactly_in_little_time():
    import time

    costs, values = rate_curves(np.random.default_rng(3), 200)
    limit = float(sum(cost.max() for cost in costs) * 0.5)
    started = time.perf_counter()
    found = solve(costs, values, limit)
    assert found.cost <= limit
    assert time.perf_counter() - started < 10
