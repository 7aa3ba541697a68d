"""Methods that search: they lower what they promise to lower, and no bit depends on pieces, threads or company."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest

from ir.base.diag import LadingError
from ir.base.executor import SERIAL
from ir.base.store import default_store
from ir.base.types import F32
from ir.quant import cache as quant_cache
from ir.quant.form import Form, Numbers
from ir.quant.methods.clip import search
from ir.quant.methods.gptq import Group
from ir.quant.statistics import second_moments
from ir.quant.statistics.exact_products import Tiles, one_thread
from ir.quant.statistics.moments import Moments, MomentStore
from ir.quant.storage import Storage
from ir.quant.weight import (
    METHODS,
    Blocks,
    QuantizedWeight,
    QuantMethod,
    Scratch,
    dequantize,
    keep_all,
    real_zero,
    shared_quantized,
)
from ir.tensor.inline import InlineTensor

f32 = np.float32
FORMS = [(True, "int"), (False, "int"), (False, "float")]
NAMES = ["symmetric", "int", "float"]
SEARCHES = ["clip", "hqq", "gptq", "gptaq"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LADING_CACHE", str(tmp_path / "cache"))
    quant_cache._MOMENTS.clear()
    return tmp_path / "cache"


def moments_of(size: int, seed: int = 0, key: str = "") -> Moments:
    """Statistics of correlated features of very different sizes."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((3 * size, size)) @ (np.eye(size) + rng.standard_normal((size, size)) / np.sqrt(size))
    values *= np.exp(rng.standard_normal(size))
    second = (values.T @ values / len(values)).astype(f32)
    second = (second + second.T) / 2
    mean = values.mean(axis=0).astype(f32)
    name = key or f"moments-{size}-{seed}"
    return Moments(name, 10**6, second, mean, values.min(axis=0).astype(f32), values.max(axis=0).astype(f32))


def matrix_of(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_t(6, (rows, columns)) * 0.02).astype(f32)


def quantized(method: str, rows: np.ndarray, storage: Storage, moments: Moments | None) -> Blocks:
    given = None if METHODS[method].needs == "nothing" else moments
    found = METHODS[method].quantize(rows, storage, Scratch(), given)
    return Blocks(*[None if part is None else np.array(part) for part in found])


def loss(rows: np.ndarray, found: Blocks, second: np.ndarray) -> np.ndarray:
    difference = (rows - dequantize(found)).astype(np.float64)
    return np.einsum("ri,ij,rj->r", difference, second.astype(np.float64), difference)


def assert_same(found: Blocks, expected: Blocks) -> None:
    for one, two in zip(found, expected, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            assert one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()


def code_of(call) -> str:
    with pytest.raises(LadingError) as caught:
        call()
    return caught.value.code


# --- what they lower --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("symmetric", "zero"), FORMS, ids=NAMES)
@pytest.mark.parametrize(("bits", "block"), [(2, 32), (3, 0), (4, 64), (8, 32)])
def test_gptq_loses_less_than_clip_and_clip_less_than_rounding(bits, block, symmetric, zero):
    rows, moments = matrix_of(48, 192), moments_of(192)
    storage = Storage(bits=bits, block=block, symmetric=symmetric, zero=zero)
    plain, clipped, second = [
        loss(rows, quantized(name, rows, storage, moments), moments.second).sum() for name in ("rtn", "clip", "gptq")
    ]
    assert clipped < 0.97 * plain
    assert second < 0.5 * plain


@pytest.mark.parametrize(("symmetric", "zero"), FORMS, ids=NAMES)
@pytest.mark.parametrize("weighted", [True, False])
def test_no_block_is_worse_by_clip_than_by_rounding(symmetric, zero, weighted):
    rows, moments = matrix_of(32, 128, seed=3), moments_of(128)
    given = moments if weighted else None
    share = moments.diagonal if weighted else np.ones(128, f32)
    storage = Storage(bits=3, block=32, symmetric=symmetric, zero=zero)
    errors = []
    for name in ("rtn", "clip"):
        difference = rows - dequantize(quantized(name, rows, storage, given))
        errors.append((np.square(difference.astype(np.float64)) * share).reshape(32, 4, 32).sum(axis=2))
    assert (errors[1] <= errors[0] * 1.0001).all()
    assert errors[1].sum() < 0.95 * errors[0].sum()


@pytest.mark.parametrize(("symmetric", "zero"), [FORMS[0], FORMS[2]], ids=["symmetric", "float"])
def test_hqq_lowers_the_sum_of_the_roots(symmetric, zero):
    rows = matrix_of(64, 128, seed=4)
    storage = Storage(bits=3, block=64, symmetric=symmetric, zero=zero)
    plain, found = [
        np.sqrt(np.abs(rows - dequantize(quantized(name, rows, storage, None)))).sum() for name in ("rtn", "hqq")
    ]
    assert found < 0.99 * plain


def test_second_moments_are_used_and_not_the_diagonal_alone():
    rows, moments = matrix_of(32, 128), moments_of(128)
    blind = Moments("blind", moments.tokens, np.diag(moments.diagonal), moments.mean, moments.low, moments.high)
    storage = Storage(bits=4, block=32, zero="float")
    seeing, not_seeing = [
        loss(rows, quantized("gptq", rows, storage, given), moments.second).sum() for given in (moments, blind)
    ]
    assert seeing < 0.7 * not_seeing


# --- what they give ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", SEARCHES)
@pytest.mark.parametrize(("symmetric", "zero"), FORMS, ids=NAMES)
@pytest.mark.parametrize("scale", ["f32", "f16"])
def test_numbers_are_those_that_are_stored(method, symmetric, zero, scale):
    rows, moments = matrix_of(20, 96), moments_of(96)
    storage = Storage(bits=3, block=32, symmetric=symmetric, zero=zero, scale=scale)
    found = quantized(method, rows, storage, moments)
    assert found.codes.dtype == np.int8 and found.scale.dtype == f32
    assert storage.low <= found.codes.min() and found.codes.max() <= storage.high
    assert np.isfinite(found.scale).all() and (found.scale != 0).all()
    assert (found.zero is None) == symmetric
    if scale == "f16":
        assert np.array_equal(found.scale, found.scale.astype(np.float16).astype(f32))
    if not symmetric:
        assert found.zero.dtype == (np.int8 if zero == "int" else f32)
        if zero == "int":
            assert storage.low <= found.zero.min() and found.zero.max() <= storage.high
        elif scale == "f16":
            assert np.array_equal(found.zero, found.zero.astype(np.float16).astype(f32))


@pytest.mark.parametrize("method", SEARCHES)
@pytest.mark.parametrize(("symmetric", "zero"), FORMS, ids=NAMES)
def test_unusual_rows(method, symmetric, zero):
    rows = matrix_of(7, 64)
    rows[0] = 0
    rows[1] = 0.75
    rows[2] = 1e-42
    rows[3, :32] = 0
    rows[4] = 3e38
    rows[5, ::2] = -2e38
    found = quantized(method, rows, Storage(bits=4, block=32, symmetric=symmetric, zero=zero), moments_of(64))
    back = dequantize(found)
    assert np.isfinite(back).all()
    assert (back[0] == 0).all()
    assert np.abs(back[1] - 0.75).max() < 0.05
    assert np.abs(back[2]).max() < 1e-38 and np.abs(back[4] / 3e38 - 1).max() < 0.08
    whole = quantized(method, rows[6:], Storage(bits=4, block=32, symmetric=symmetric, zero=zero), moments_of(64))
    assert_same(whole, Blocks(*[None if part is None else part[6:] for part in found]))


@pytest.mark.parametrize("method", SEARCHES)
def test_shapes_from_nothing_to_odd(method):
    for rows, columns, block in ((0, 64, 32), (3, 0, 0), (1, 1, 1), (1, 64, 0), (2, 21, 7), (3, 12, 4), (2, 650, 0)):
        moments = moments_of(columns) if columns else None
        if moments is None and METHODS[method].needs == "second-moments":
            moments = Moments("none", 1, *[np.zeros((0, 0), f32), *[np.zeros(0, f32)] * 3])
        for symmetric, zero in FORMS:
            storage = Storage(bits=4, block=block, symmetric=symmetric, zero=zero)
            found = quantized(method, matrix_of(rows, columns), storage, moments)
            assert found.codes.shape == (rows, columns)
            assert found.scale.shape == (rows, storage.blocks(columns))


# --- independence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", SEARCHES)
@pytest.mark.parametrize(("symmetric", "zero"), FORMS, ids=NAMES)
@pytest.mark.parametrize("block", [32, 0])
def test_a_row_does_not_depend_on_its_company(method, symmetric, zero, block):
    rows, moments = matrix_of(300, 160), moments_of(160)
    storage = Storage(bits=3, block=block, symmetric=symmetric, zero=zero)
    whole = quantized(method, rows, storage, moments)
    for chosen in (np.array([0]), np.array([299, 4, 130]), np.arange(17, 290)):
        some = quantized(method, rows[chosen], storage, moments)
        assert_same(some, Blocks(*[None if part is None else part[chosen] for part in whole]))


@pytest.mark.parametrize("method", SEARCHES)
def test_bits_do_not_depend_on_threads(method):
    from threadpoolctl import threadpool_limits

    rows, moments = matrix_of(256, 384), moments_of(384)
    storage = Storage(bits=4, block=64, zero="float")
    found: list[Blocks] = []
    for limit in (1, 2):
        second_moments._HELD.clear()
        with threadpool_limits(limit, "blas"):
            found.append(quantized(method, rows, storage, moments))
    threads = [
        threading.Thread(target=lambda: found.append(quantized(method, rows, storage, moments))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 5
    for other in found[1:]:
        assert_same(other, found[0])


def test_linear_algebra_gets_one_thread_in_every_thread():
    from threadpoolctl import threadpool_info

    def counts() -> set[int]:
        return {item["num_threads"] for item in threadpool_info() if item["user_api"] == "blas"}

    before = counts()
    seen: list[set[int]] = []
    inside, leave = threading.Barrier(3), threading.Barrier(3)

    def work() -> None:
        with one_thread():
            inside.wait()
            seen.append(counts())
            leave.wait()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    inside.wait()
    seen.append(counts())
    leave.wait()
    for thread in threads:
        thread.join()
    assert seen == [{1}] * 3
    assert counts() == before
    with pytest.raises(RuntimeError, match="lifted"), one_thread():
        raise RuntimeError("the limit is lifted all the same")
    assert counts() == before


# --- second moments ---------------------------------------------------------------------------------------------------


def test_the_factor_does_not_depend_on_threads(monkeypatch):
    monkeypatch.setattr(second_moments, "SLAB", 24)
    hessian = second_moments.damped(moments_of(200).second, 10**6)
    with one_thread(), ThreadPoolExecutor(3) as threads:
        alone, spread = second_moments.factorize(hessian), second_moments.factorize(hessian, threads)
    assert all(map(np.array_equal, alone, spread))


@pytest.mark.parametrize("size", [1, 3, 33, 200])
def test_the_factor_multiplies_out(size):
    hessian = second_moments.damped(moments_of(size).second, 10**6)
    factor = second_moments.factorize(hessian)
    assert sorted(factor.order) == list(range(size))
    assert (np.tril(factor.feedback, -1) == 0).all() and np.allclose(np.diagonal(factor.feedback), 1)
    wide = factor.feedback.astype(np.float64)
    again = wide @ np.diag(factor.pivots[factor.order]) @ wide.T
    size_of = np.sqrt(np.diagonal(hessian))
    error = (again - hessian[np.ix_(factor.order, factor.order)]) / np.outer(size_of, size_of)[
        np.ix_(factor.order, factor.order)
    ]
    assert np.abs(error).max() < 1e-5


def test_the_order_leaves_smaller_pivots_than_that_of_mean_squares():
    rng = np.random.default_rng(1)
    mixed = rng.standard_normal((256, 40)) @ rng.standard_normal((40, 256)) + 0.3 * rng.standard_normal((256, 256))
    hessian = second_moments.damped(mixed.T @ mixed / 256, 10**6)
    rising = np.argsort(np.diagonal(hessian), kind="stable")
    lower = np.linalg.cholesky(hessian[np.ix_(rising, rising)].astype(np.float64))
    assert second_moments.factorize(hessian).pivots.sum() < 0.97 * np.square(np.diagonal(lower)).sum()


def test_products_do_not_depend_on_the_place():
    rng = np.random.default_rng(2)
    for outer, inner in ((1, 700), (12, 128), (77, 33), (384, 256)):
        left, some = rng.standard_normal((inner, outer), f32), rng.standard_normal((inner, 300), f32)
        found = []
        for chosen in (np.arange(300), np.array([299]), np.array([7, 150, 299, 0])):
            tiles = Tiles(len(chosen))
            right, out = np.zeros((inner, tiles.width), f32), np.empty((outer, tiles.width), f32)
            right[:, tiles.places] = some[:, chosen]
            with one_thread():
                tiles.product(left, right, out)
            found.append(out[:, tiles.places])
            assert np.allclose(found[-1], left.T @ some[:, chosen], atol=1e-3)
        assert np.array_equal(found[1], found[0][:, [299]])
        assert np.array_equal(found[2], found[0][:, [7, 150, 299, 0]])


def seen(size: int, tokens: int, seed: int) -> np.ndarray:
    """Samples of one distribution with weak correlations, other ones for each seed."""
    mixing = np.eye(size) + 0.5 * np.random.default_rng(0).standard_normal((size, size)) / np.sqrt(size)
    return np.random.default_rng(seed).standard_t(5, (tokens, size)) @ mixing


def test_few_tokens_do_not_make_it_worse_than_rounding():
    rows, storage = matrix_of(64, 256), Storage(bits=4, block=32, zero="float")
    other = seen(256, 20000, 1)
    truth = other.T @ other / len(other)
    plain = loss(rows, quantized("rtn", rows, storage, None), truth).sum()
    ratios = {}
    for tokens in (300, 2000, 20000):
        some = seen(256, tokens, 2)
        given = Moments(f"{tokens}", tokens, (some.T @ some / tokens).astype(f32), *[np.zeros(256, f32)] * 3)
        found = quantized("gptq", rows, storage, given)
        ratios[tokens] = loss(rows, found, truth).sum() / plain
        expected = loss(rows, found, second_moments.expected(given).second).sum()
        assert 0.7 < expected / loss(rows, found, truth).sum() < 1.3
    assert ratios[20000] < ratios[2000] < ratios[300] < 1


def test_shrinkage_is_less_with_more_tokens_and_stronger_correlations():
    weak, strong = moments_of(64).second, np.ones((64, 64), f32) + np.eye(64, dtype=f32)
    by_tokens = [second_moments.shrinkage(weak, tokens) for tokens in (2, 500, 5000, 10**9)]
    assert by_tokens == sorted(by_tokens, reverse=True) and by_tokens[0] == 0.95 and by_tokens[-1] < 1e-5
    assert second_moments.shrinkage(strong, 5000) < by_tokens[2]
    assert second_moments.shrinkage(np.eye(64, dtype=f32), 5000) == 0
    assert second_moments.shrinkage(np.zeros((4, 4), f32), 5000) == 0


def test_dead_and_huge_features():
    moments = moments_of(96)
    second = moments.second.copy()
    second[5] = second[:, 5] = 0
    second[7] *= 3e4
    second[:, 7] *= 3e4
    rows = matrix_of(16, 96)
    storage = Storage(bits=4, block=32, zero="float")
    given = Moments("dead", 10**6, second, moments.mean, moments.low, moments.high)
    found = quantized("gptq", rows, storage, given)
    plain = quantized("rtn", rows, storage, None)
    assert loss(rows, found, second).sum() < 0.3 * loss(rows, plain, second).sum()
    step = np.abs(found.scale[:, 0])
    assert (np.abs(dequantize(found)[:, 5] - rows[:, 5]) <= 0.51 * step).mean() > 0.9
    nothing = Moments("nothing", 10**6, np.zeros_like(second), moments.mean, moments.low, moments.high)
    close = quantized("gptq", rows, storage, nothing)
    assert np.square(dequantize(close) - rows).sum() <= np.square(dequantize(plain) - rows).sum()


@pytest.mark.parametrize(("change", "text"), [(np.nan, "NaN"), (-1e6, "no second moments")])
def test_damaged_statistics_are_refused(change, text):
    moments = moments_of(32)
    moments.second[4, 4] = change
    with pytest.raises(LadingError, match=text) as caught:
        quantized(
            "gptq", matrix_of(2, 32), Storage(bits=4, block=32), Moments("bad", 1, *list(vars(moments).values())[2:])
        )
    assert caught.value.code == "Q443"


def group_of(rows: np.ndarray, storage: Storage, factor: second_moments.Factor) -> tuple[Group, Form, Numbers]:
    form = Form(storage)
    numbers = search(rows, form, factor.pivots, Scratch())
    return Group(rows, numbers, form, factor, Scratch(), alone=False), form, numbers


@pytest.mark.parametrize(("symmetric", "zero"), FORMS, ids=NAMES)
def test_feedback_is_the_textbook_algorithm(symmetric, zero):
    """Frantar et al.: after each feature the rest of the row moves by a row of the Cholesky factor of the inverse."""
    rows = matrix_of(24, 160)
    factor = second_moments.factorize(second_moments.damped(moments_of(160).second, 10**6))
    group, form, numbers = group_of(rows, Storage(bits=4, block=32, symmetric=symmetric, zero=zero), factor)
    group.run(1, 0)
    order = factor.order
    inverse = np.linalg.inv(factor.hessian.astype(np.float64)[np.ix_(order, order)])
    upper = np.linalg.cholesky(inverse).T
    left = rows.astype(np.float64)[:, order]
    expected = np.empty(rows.shape)
    for place, feature in enumerate(order):
        scale, offset = numbers.scale[:, feature // 32], numbers.zero[:, feature // 32]
        code = np.clip(np.rint((left[:, place] - offset) / scale), form.low, form.high)
        expected[:, feature] = code
        error = (left[:, place] - (code * scale + offset)) / upper[place, place]
        left[:, place:] -= np.outer(error, upper[place, place:])
    assert (expected == group.codes[:, group.tiles.places].T).mean() > 0.998


@pytest.mark.parametrize(("bits", "block"), [(2, 32), (3, 160), (4, 0)])
@pytest.mark.parametrize(("symmetric", "zero"), FORMS, ids=NAMES)
def test_no_sweep_raises_the_error_of_a_row(symmetric, zero, bits, block):
    rows = matrix_of(40, 320)
    factor = second_moments.factorize(second_moments.damped(moments_of(320).second, 10**6))
    storage = Storage(bits=bits, block=block, symmetric=symmetric, zero=zero)
    losses = []
    for sweeps in range(4):
        group, form, _ = group_of(rows, storage, factor)
        group.run(1, sweeps)
        columns = [None if part is None else part[:, group.tiles.places].T for part in group.numbers]
        found = form.blocks(group.codes[:, group.tiles.places].T, Numbers(*columns))
        losses.append(loss(rows, found, factor.hessian))
    for before, after in pairwise(losses):
        assert (after <= before * 1.0001).all()
    assert losses[-1].sum() < 0.97 * losses[0].sum()


def test_gptq_cannot_be_called_without_statistics():
    with pytest.raises(ValueError, match="second moments"):
        METHODS["gptq"].quantize(matrix_of(1, 32), Storage(bits=4, block=32), Scratch(), None)


# --- the lazy recipe --------------------------------------------------------------------------------------------------


def saved(size: int, key: str = "saved") -> Moments:
    moments = moments_of(size, key=key)
    MomentStore().save(moments)
    return moments


def weight(rows: np.ndarray, method: str, moments: str = "", **how) -> QuantizedWeight:
    return QuantizedWeight(InlineTensor(rows), Storage(**{"bits": 4, "block": 64, **how}, method=method), moments)


@pytest.mark.parametrize("method", SEARCHES)
@pytest.mark.parametrize(("symmetric", "zero"), FORMS, ids=NAMES)
def test_a_weight_reads_the_result_of_its_method(method, symmetric, zero):
    rows, moments = matrix_of(70, 96), saved(96)
    made = weight(rows, method, "saved", block=32, symmetric=symmetric, zero=zero)
    expected = quantized(method, rows, made.storage, moments)
    assert_same(made.rows(0, 70), expected)
    assert_same(made.rows(3, 9), Blocks(*[None if part is None else part[3:9] for part in expected]))
    assert made.dequantized().load().tobytes() == dequantize(expected).tobytes()
    again = pickle.loads(pickle.dumps(made.codes)).quantized
    assert again.storage == made.storage and again.moments == "saved"
    assert_same(again.rows(0, 70), expected)


def test_recipes_name_statistics_only_when_there_are_some():
    rows = matrix_of(2, 32)
    assert "moments" not in weight(rows, "clip", block=32).codes.recipe()[2]
    assert weight(rows, "clip", "saved", block=32).codes.recipe()[2]["moments"] == "saved"
    plain = shared_quantized(InlineTensor(rows), Storage(bits=4, block=32, method="clip"))
    assert shared_quantized(InlineTensor(rows), Storage(bits=4, block=32, method="clip"), "saved") is not plain


class Counting(QuantMethod):
    """Rounds to nearest and counts how often it is asked."""

    name = "counting-for-test"
    accepts = frozenset({F32})
    needs = "diagonal"
    slow = True

    def __init__(self):
        self.rows = 0
        self.moments: list[Moments | None] = []
        self.lock = threading.Lock()

    def quantize(self, rows, storage, scratch, moments):
        with self.lock:
            self.rows += len(rows)
            self.moments.append(moments)
        return METHODS["rtn"].quantize(rows, storage, scratch, None)


@pytest.fixture
def counting():
    method = Counting()
    METHODS.add(method.name, method)
    yield method
    METHODS.remove(method.name)


def test_slow_results_are_made_once_and_kept(counting, cache, monkeypatch):
    monkeypatch.setattr(quant_cache, "CHUNK_WEIGHTS", 1)
    rows = matrix_of(300, 64)
    for _ in range(2):
        made = weight(rows, counting.name, block=32)
        assert_same(made.rows(0, 300), weight(rows, "rtn", block=32).rows(0, 300))
        assert made.scale.load().shape == (300, 2)
    assert counting.rows == 300 and counting.moments[0] is None
    files = list((cache / "quantized").iterdir())
    assert len(files) == 1 and not files[0].name.startswith(".")
    weight(rows, counting.name, block=64).rows(0, 1)
    weight(rows + 1, counting.name, block=32).rows(0, 1)
    counting.version = 2
    weight(rows, counting.name, block=32).rows(0, 1)
    assert counting.rows == 1200 and len(list((cache / "quantized").iterdir())) == 4


def test_threads_that_ask_at_once_wait_for_one(counting):
    rows = matrix_of(64, 64)
    found: list[Blocks] = []
    weights = [weight(rows, counting.name, block=32) for _ in range(4)]
    threads = [threading.Thread(target=lambda item=item: found.append(item.rows(0, 64))) for item in weights]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counting.rows == 64 and len(found) == 4
    for other in found[1:]:
        assert_same(other, found[0])


@pytest.mark.parametrize("method", ["hqq", "gptq"])
def test_results_kept_ahead_are_those_of_reading_on_every_executor(method, processes, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(quant_cache, "CHUNK_WEIGHTS", 96 * 10)
    rows, entries = matrix_of(70, 96), []
    expected = quantized(method, rows, Storage(bits=4, block=32, method=method), moments_of(96, key="saved"))
    with ThreadPoolExecutor(3) as threads:
        for number, executor in enumerate((None, SERIAL, threads, processes)):
            monkeypatch.setenv("LADING_CACHE", str(tmp_path / str(number)))
            saved(96)
            made = weight(rows, method, "saved", block=32)
            if executor is not None:
                keep_all([made.codes, made.scale, InlineTensor(rows)], executor)
            found = {item.name: item.size for item in default_store().entries()}
            assert any(name.startswith("quantized/") for name in found) == (executor is not None)
            assert_same(made.rows(0, 70), expected)
            again = weight(rows, method, "saved", block=32)
            assert_same(again.rows(3, 9), Blocks(*[None if part is None else part[3:9] for part in expected]))
            entries.append({item.name: default_store().find(item.name).read() for item in default_store().entries()})
    assert len(entries[0]) == 2 and all(item == entries[0] for item in entries)


def test_what_is_not_slow_is_not_kept_ahead(cache):
    made = weight(matrix_of(70, 96), "rtn", block=32)
    keep_all([made.codes, made.dequantized()], SERIAL)
    assert not default_store().entries()


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_damaged_results_are_made_again(counting, cache, damage):
    rows = matrix_of(10, 64)
    expected = weight(rows, counting.name, block=32).rows(0, 10)
    (path,) = (cache / "quantized").iterdir()
    data = bytearray(path.read_bytes())
    data[-1] ^= damage == "flip"
    data[0] ^= damage == "other"
    path.write_bytes(b"" if damage == "empty" else data[:-1] if damage == "cut" else bytes(data))
    assert_same(weight(rows, counting.name, block=32).rows(0, 10), expected)
    assert counting.rows == 20
    weight(rows, counting.name, block=32).rows(0, 10)
    assert counting.rows == 20


def test_statistics_reach_the_method_and_take_part_in_the_key(counting):
    saved(64, "one")
    saved(64, "two")
    rows = matrix_of(4, 64)
    for key in ("one", "two", "one"):
        weight(rows, counting.name, key, block=32).rows(0, 4)
    assert list(dict.fromkeys(item.key for item in counting.moments)) == ["one", "two"]
    assert counting.rows == 8


def test_results_that_cannot_be_kept_are_reported(counting, cache):
    cache.write_text("a file where the folder should be")
    assert code_of(lambda: weight(matrix_of(4, 64), counting.name, block=32).rows(0, 4)) == "Q441"


def test_missing_and_foreign_statistics():
    rows = matrix_of(4, 64)
    assert code_of(lambda: weight(rows, "gptq", block=32)) == "Q440"
    assert code_of(lambda: weight(rows, "gptq", "absent", block=32).rows(0, 1)) == "Q430"
    saved(32, "narrow")
    assert code_of(lambda: weight(rows, "gptq", "narrow", block=32).rows(0, 1)) == "Q442"


@pytest.mark.parametrize("method", SEARCHES)
def test_bad_rows_are_located(method, cache):
    saved(64)
    rows = matrix_of(300, 64)
    rows[290, 3] = np.inf
    with pytest.raises(LadingError, match="row 290 ") as caught:
        weight(rows, method, "saved", block=32).rows(0, 1)
    assert caught.value.code == "Q402"
    rows[290, 3] = 1e9
    with pytest.raises(LadingError, match="row 290 ") as caught:
        weight(rows, method, "saved", block=32, zero="float", scale="f16").rows(0, 1)
    assert caught.value.code == "Q403"
    assert not [path for path in (cache / "quantized").iterdir() if path.name.startswith(".")]


# --- registering ------------------------------------------------------------------------------------------------------


def test_a_method_says_what_it_needs():
    class Silent:
        name = "silent-for-test"
        accepts = frozenset()

        def quantize(self, rows, storage, scratch, moments):
            raise NotImplementedError

    with pytest.raises(ValueError, match="lacks the attribute 'needs'"):
        METHODS.add(Silent().name, Silent())

    class Greedy(QuantMethod):
        name = "greedy-for-test"
        accepts = frozenset()
        needs = "everything"

    with pytest.raises(ValueError, match="needs 'everything'"):
        METHODS.add(Greedy().name, Greedy())
    assert not {"silent-for-test", "greedy-for-test"} & set(METHODS)


def test_methods_of_others_are_used_by_name():
    class Ternary(QuantMethod):
        name = "ternary-for-test"
        accepts = frozenset({F32})

        def quantize(self, rows, storage, scratch, moments):
            assert moments is None
            size = np.abs(rows).reshape(*rows.shape[:1], storage.blocks(rows.shape[1]), -1)
            scale = size.mean(axis=2)
            codes = np.clip(np.rint(rows / np.repeat(scale, size.shape[2], axis=1)), -1, 1)
            return Blocks(codes.astype(np.int8), scale, None)

    METHODS.add(Ternary().name, Ternary())
    try:
        rows = matrix_of(3, 64)
        made = weight(rows, "ternary-for-test", "unused", bits=2, block=32, symmetric=True)
        assert set(np.unique(made.codes.load().astype(np.int8))) == {-1, 0, 1}
        assert real_zero(made.scale.load(), None) is None
    finally:
        METHODS.remove("ternary-for-test")
