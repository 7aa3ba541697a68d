"""Ranges of activations: what is observed, how methods choose, what is kept, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from frontends.checkpoint.load import load
from ir.base.diag import LadingError
from ir.base.store import FolderStore
from ir.evaluate.evaluator import Evaluator
from ir.facts.activation_ranges import ActivationRanges
from ir.quant.statistics.samples import ArraySamples, split
from ir.text.parser import parse
from ir.text.printer import print_graph
from passes.framework.context import PassContext
from passes.framework.manager import PassManager
from passes.framework.pipeline import Pipeline
from passes.static_quant.histogram import BINS, Chosen, Histogram
from passes.static_quant.observe import Observe
from tests.support.cnns.small import branched_cnn, plain_cnn, samples_for, with_const
from tests.support.paths import EXAMPLE


def observed(graph, samples, store=None, **options):
    context = PassContext(samples, store=store)
    report = PassManager(Pipeline((Observe(**options),))).run(graph, context)
    return graph.required_fact(ActivationRanges), report.passes[-1].counts


def test_the_extremes_are_those_of_the_float_model():
    graph = branched_cnn()
    samples = samples_for(graph)
    fact, counts = observed(graph, samples, method="minmax")
    runs = [Evaluator(graph, ["r", "e", "q", "t", "k", "y"]).run(feed) for feed in samples.calibration]
    for name in runs[0]:
        found = fact.ranges[name]
        assert found.smallest == min(run[name].min() for run in runs)
        assert found.largest == max(run[name].max() for run in runs)
        assert (found.low, found.high) == (min(found.smallest, 0), max(found.largest, 0))
        assert found.elements == runs[0][name].size
    assert counts["values"] == len(fact.ranges)
    assert "a" not in fact.ranges, "what lies between a product and its bound is never rounded"


def test_groups_that_fit_in_memory_see_the_same(tmp_path):
    graph, samples = plain_cnn(), samples_for(plain_cnn())
    whole, _ = observed(graph, samples, FolderStore(tmp_path / "a"))
    wide = parse(print_graph(graph))
    wide.set_fact("activation-ranges", None)
    # A value of a megabyte is more than the budget of its group leaves room for.
    small, counts = observed(wide, samples, FolderStore(tmp_path / "b"), memory=1)
    assert counts["computed"] == counts["values"]
    assert small.ranges == whole.ranges


def test_what_was_observed_is_kept_whatever_the_method(tmp_path):
    store, samples = FolderStore(tmp_path), samples_for(plain_cnn())
    first, counts = observed(plain_cnn(), samples, store)
    assert counts == {"values": counts["values"], "computed": counts["values"], "cached": 0}
    again, counts = observed(plain_cnn(), samples, store)
    assert counts["computed"] == 0 and again == first
    other, counts = observed(plain_cnn(), samples, store, method="percentile", percentile=90.0)
    assert counts["computed"] == 0 and other.ranges["r"].high < first.ranges["r"].high
    _, counts = observed(plain_cnn(seed=7), samples, store)
    assert counts["computed"] == counts["values"] - 1, "the input alone is the same with other weights"
    _, counts = observed(plain_cnn(), samples_for(plain_cnn(), seed=9), store)
    assert counts["cached"] == 0


def test_a_damaged_entry_is_made_again(tmp_path):
    store, samples = FolderStore(tmp_path), samples_for(plain_cnn())
    first, _ = observed(plain_cnn(), samples, store)
    for file in (tmp_path / "activations").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    again, counts = observed(plain_cnn(), samples, FolderStore(tmp_path))
    assert counts["cached"] == 0 and again == first


def test_held_out_samples_are_not_seen(tmp_path):
    graph = plain_cnn()
    feeds = [{"x": np.full((2, 3, 8, 8), number, np.float32)} for number in range(10)]
    samples = split(ArraySamples(feeds))
    assert samples.held_out.places == (4, 9)
    fact, _ = observed(graph, samples, FolderStore(tmp_path), method="minmax")
    assert fact.ranges["x"].largest == 8.0 and fact.samples == 8
    few = PassManager("observe{method=minmax samples=3}")
    few.run(graph, PassContext(samples, store=FolderStore(tmp_path)))
    fact = graph.required_fact(ActivationRanges)
    assert fact.ranges["x"].largest == 2.0 and fact.samples == 3


def test_without_data_it_says_what_to_give():
    with pytest.raises(LadingError) as error:
        PassManager("observe").run(plain_cnn(), PassContext())
    assert error.value.code == "Q472" and "--calibration FILE.npz" in error.value.diagnostics[0].hint


def test_infinities_are_refused_and_not_kept(tmp_path):
    graph = with_const(plain_cnn(), "w1", np.full((8, 3, 3, 3), np.inf, np.float32))
    with pytest.raises(LadingError) as error:
        observed(graph, samples_for(graph), FolderStore(tmp_path))
    assert error.value.code == "Q476"


def test_a_language_model_is_refused():
    with pytest.raises(LadingError) as error:
        PassManager("infer-types,observe").run(load(EXAMPLE), PassContext())
    assert error.value.code == "Q478" and "--passes int8" in error.value.diagnostics[0].hint


def test_the_fact_survives_text_and_renames():
    graph = plain_cnn()
    fact, _ = observed(graph, samples_for(graph))
    assert parse(print_graph(graph)).fact(ActivationRanges) == fact
    graph.rename(graph.value("r"), "relu")
    assert graph.required_fact(ActivationRanges).ranges["relu"] == fact.ranges["r"]
    with pytest.raises(LadingError) as error:
        parse(print_graph(graph).replace('"relu": [', '"relu": [9.0, -1.0, 0.0, 0.0, 1], "other": ['))
    assert error.value.code == "I107"


# ---- histograms and methods ----


def histogram(*arrays):
    found = Histogram()
    for array in arrays:
        found.add(np.asarray(array, np.float32))
    return found


def test_a_histogram_grows_and_counts_everything():
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal(1000) * scale for scale in (0.0, 0.1, 3.0, 100.0)]
    found = histogram(*parts)
    whole = np.concatenate(parts)
    assert found.counts.sum() == found.elements == whole.size
    counts, _ = np.histogram(whole.astype(np.float32), BINS, (-found.reach, found.reach))
    assert np.abs(counts - found.counts).sum() <= 4, "bins that were joined hold what they would have held"
    again = Histogram.of_arrays(**found.arrays_of())
    assert np.array_equal(again.counts, found.counts) and again.low == found.low


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
def test_every_range_holds_zero_and_lies_within_what_occurred(method):
    rng = np.random.default_rng(1)
    for numbers in (rng.standard_normal(50000), rng.random(50000) + 3, -rng.random(300), np.zeros(4), [5.0]):
        seen = histogram(numbers)
        low, high = Chosen(method, 99.9).range(seen)
        assert low <= 0 <= high
        assert min(seen.low, 0) <= low and high <= max(seen.high, 0)


def test_single_outliers_are_cut_off_by_what_counts_shares():
    rng = np.random.default_rng(2)
    numbers = np.concatenate([rng.standard_normal(200000), [80.0, -60.0]])
    seen = histogram(numbers)
    ranges = {method: Chosen(method, 99.99).range(seen) for method in ("minmax", "percentile", "entropy")}
    assert ranges["minmax"] == pytest.approx((-60, 80))
    for method in ("percentile", "entropy"):
        low, high = ranges[method]
        assert -30 <= low < -2 and 2 < high <= 30, method


def test_the_least_square_range_has_the_least_square_error():
    rng = np.random.default_rng(3)
    numbers = np.maximum(rng.standard_t(3, 100000), 0).astype(np.float32)
    seen = histogram(numbers)

    def error(low, high):
        step = (high - low) / 255
        return np.square(numbers - np.clip(np.rint(numbers / step), 0, 255) * step).mean()

    _, high = Chosen("mse", 99.99).range(seen)
    tried = [error(0.0, seen.high * part) for part in np.linspace(0.1, 1, 200)]
    assert error(0.0, high) <= min(tried) * 1.02
    _, cut = Chosen("percentile", 99.9).range(seen)
    assert cut == pytest.approx(np.quantile(numbers, 0.9995), rel=0.02)


def test_zeros_that_a_relu_makes_do_not_narrow_a_range():
    rng = np.random.default_rng(4)
    numbers = np.maximum(rng.standard_normal(400000), 0)
    _, high = Chosen("entropy", 99.99).range(histogram(numbers))
    assert high > 2.5


def test_few_numbers_keep_their_extremes_where_distributions_are_compared():
    numbers = np.random.default_rng(5).standard_normal(500)
    assert Chosen("entropy", 99.99).range(histogram(numbers)) == pytest.approx((numbers.min(), numbers.max()), rel=1e-6)
