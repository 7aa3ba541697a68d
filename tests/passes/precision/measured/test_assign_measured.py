"""assign-precision by measurement: limits, candidates, curves, prices, the search, and whole runs on a small model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from frontends.checkpoint.load import load
from ir.base.diag import LadingError
from ir.base.store import default_store, folder_store
from ir.facts.precision import PrecisionPlan
from ir.facts.sensitivity import Sensitivity
from ir.quant.statistics.moments import CalibrationText, MomentStore, joined
from ir.quant.statistics.sums import MomentSums
from ir.quant.storage import Storage
from ir.quant.stored_weight import storage_of
from ir.target.target import Target, default_target
from ir.text.parser import parse
from ir.text.printer import print_graph
from passes.framework.context import PassContext
from passes.framework.manager import PassManager
from passes.precision.assign_precision import AssignPrecision
from passes.precision.decode_speed import usual_plans
from passes.precision.limits import Limit, Limits, limits_of, size_of
from passes.precision.measured import error_curves as curves
from passes.precision.measured import kept as measurements
from passes.precision.measured import plan as measured
from passes.precision.measured import prices, several_limits
from passes.precision.measured import search as rounds
from passes.precision.measured.candidates import Choice, Item, candidates, make_items, planned_elements
from passes.precision.measured.prices import Rounding
from passes.precision.measured.probes import Measured, Probe, RowsLoss, WeightLoss, first_tokens
from passes.precision.measured.search import Given, Search, require_room
from passes.precision.plan_file import load_rules, plan_text, write_plan
from passes.precision.planned_weights import place_of, weights_of
from tests.support.checkpoints import make_checkpoint

BEFORE = "infer-types,discover-inputs,calibrate"
FEW = "widths=[3,4,6,8] blocks=[32,0]"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache folder of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LADING_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """A small checkpoint with hot logits whose logits matrix is its embedding."""
    return make_checkpoint(tmp_path_factory.mktemp("tied"), "qwen2", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def text():
    rng = np.random.default_rng(5)
    windows = [rng.integers(0, 320, 64).astype(np.int32) for _ in range(12)]
    return CalibrationText(tuple(windows[:8]), tuple(windows[8:]))


@pytest.fixture(scope="module")
def calibrated(tied, text):
    """A function that gives the graph with statistics; cheap after the first time."""

    def make():
        graph = load(tied)
        PassManager(BEFORE).run(graph, PassContext(text))
        return graph

    make()
    return make


def assigned(graph, text, options):
    PassManager(f"assign-precision{{{options}}}").run(graph, PassContext(text), given=("typed", "signature"))
    return graph.required_fact(PrecisionPlan), graph.required_fact(Sensitivity)


# ---- limits ----


@pytest.mark.parametrize(
    ("written", "size"),
    [("300MB", 300_000_000), ("2.13MB", 2_130_000), ("1.2GiB", 1_288_490_188), ("7kB", 7000), ("64 KiB", 65536),
     ("12B", 12), ("0.5mb", 500_000)],
)  # fmt: skip
def test_sizes_are_read_exactly(written, size):
    assert size_of(written) == size


@pytest.mark.parametrize("written", ["300", "MB", "3 parsecs", "-1MB", "0MB", ""])
def test_what_is_no_size_is_refused(written):
    with pytest.raises(LadingError) as error:
        size_of(written)
    assert error.value.code == "Q450"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"budget": "many"}, "bits per weight"),
        ({"budget": "0bpw"}, "bits per weight"),
        ({"min_speed": "fast"}, "not a share of the speed"),
        ({"min_speed": "0x"}, "not a share of the speed"),
        ({"min_speed": "auto"}, "no size is given"),
        ({"min_speed": "1.5x"}, "not a share of the speed"),
        ({"max_size": "4bpw"}, "not a size"),
        ({"max_kl": -1.0}, "positive"),
        ({"max_kl": float("inf")}, "positive"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused_before_any_work(options, says):
    with pytest.raises(LadingError, match=says) as error:
        AssignPrecision(**options).prepare()
    assert error.value.code == "Q450"


def test_limits_are_read_one_and_several():
    assert limits_of(None, None, None, None) is None
    assert limits_of("4.5bpw", None, None, None) == Limits((Limit("budget", 4.5, "budget=4.5bpw"),))
    found = limits_of("4.5", "1MB", 0.02, "0.95x")
    assert [(limit.kind, limit.value) for limit in found.each] == [
        ("budget", 4.5), ("max-size", 1e6), ("max-kl", 0.02), ("min-speed", 0.95)
    ]  # fmt: skip
    assert found.text == "budget=4.5 max-size=1MB max-kl=0.02 min-speed=0.95x"
    assert found.max_kl.value == 0.02 and [limit.kind for limit in found.on_plans] == [
        "budget",
        "max-size",
        "min-speed",
    ]
    assert limits_of(None, None, None, ".9").each[0].value == 0.9


def test_the_method_is_chosen_by_the_mode():
    assert AssignPrecision().chosen_method == "rtn"
    assert AssignPrecision(budget="4bpw").chosen_method == "gptaq"
    assert AssignPrecision(budget="4bpw", method="clip").chosen_method == "clip"


def test_what_measurement_chooses_from_is_what_the_target_computes():
    class Narrow(Target):
        name, widths, symmetric, block_unit = "narrow", (4, 8), False, 64

    options = AssignPrecision(budget="4bpw")
    wanted = options.preferences(Narrow(), options.prepare())
    assert (wanted.widths, wanted.blocks, wanted.forms) == ((4, 8, 16), (64, 128, 0), ("asymmetric",))
    for asked in ({"widths": (4, 5)}, {"blocks": (32,)}, {"forms": ("symmetric",)}):
        listed = AssignPrecision(budget="4bpw", **asked)
        with pytest.raises(LadingError, match="the target narrow cannot compute") as error:
            listed.preferences(Narrow(), listed.prepare())
        assert error.value.code == "Q415"


# ---- candidates ----


def items_of(graph, **options):
    made = AssignPrecision(budget="4bpw", **options)
    return make_items(weights_of(graph), made.preferences(default_target(), made.prepare()))


@pytest.mark.mnn
def test_every_weight_is_in_one_item_and_no_storage_comes_twice(calibrated):
    graph = calibrated()
    items = items_of(graph)
    assert sorted(w.name for item in items for w in item.weights) == sorted(w.name for w in weights_of(graph))
    for item in items:
        keys = [(choice.storages, choice.tied) for choice in item.choices]
        assert len(set(keys)) == len(keys)


@pytest.mark.mnn
def test_a_tied_vocabulary_is_stored_once_or_each_in_its_own_way(calibrated):
    item = next(item for item in items_of(calibrated()) if len(item.weights) == 2)
    assert [weight.role for weight in item.weights] == ["embedding", "logits"]
    tied = [choice for choice in item.choices if choice.tied]
    apart = [choice for choice in item.choices if not choice.tied]
    assert {choice.storages[1].bits for choice in tied} == {4, 8, 16}
    assert {choice.storages[0].bits for choice in apart} == {4, 8, 16}
    assert {choice.storages[1].bits for choice in apart} >= {2, 3, 5, 6, 7}
    assert all(choice.storages[0].method == "clip" for choice in apart if choice.storages[0].bits <= 8)
    both = next(c for c in apart if c.storages[0].bits == 8 and c.storages[1].bits == 6)
    assert both.bytes > max(choice.bytes for choice in tied if choice.storages[1].bits == 8)


@pytest.mark.mnn
def test_layers_tied_together_share_their_storage(calibrated):
    items = items_of(calibrated(), tie=("qkv", "gate-up"))
    sizes = sorted(len(item.weights) for item in items)
    assert sizes == [1, 1, 1, 1, 2, 2, 2, 3, 3]
    group = next(item for item in items if len(item.weights) == 3)
    assert [place_of(weight.name)[1] for weight in group.weights] == ["q_proj", "k_proj", "v_proj"]
    assert all(len({(s.bits, s.block, s.symmetric) for s in choice.storages}) == 1 for choice in group.choices)


@pytest.mark.mnn
def test_rules_and_floors_narrow_the_candidates(calibrated, tmp_path):
    graph = calibrated()
    path = tmp_path / "plan.toml"
    path.write_text(
        '[[rule]]\nmatch = "*.0.*q_proj.weight"\nbits = 5\nblock = 16\n'
        '[[rule]]\nmatch = "*k_proj*"\nmin_bits = 4\nmax_bits = 6\n'
        '[[rule]]\nmatch = "*v_proj*"\nsymmetric = true\nmethod = "clip"\n'
    )
    options = AssignPrecision(
        budget="4bpw", plan=path, keep=("*o_proj*",), floor=("logits:6", "*.up_proj.weight:5", "embedding:8")
    )
    weights = {weight.name: weight for weight in weights_of(graph)}
    wanted = options.preferences(default_target(), options.prepare())
    found = {name: candidates(weight, wanted) for name, weight in weights.items()}
    place = "model.layers.0"
    assert {(s.bits, s.block) for s in found[f"{place}.self_attn.q_proj.weight"]} == {(5, 16)}
    assert {s.bits for s in found[f"{place}.self_attn.k_proj.weight"]} == {4, 5, 6}
    assert {(s.symmetric, s.method) for s in found[f"{place}.self_attn.v_proj.weight"] if s.bits <= 8} == {
        (True, "clip")
    }
    assert [s.bits for s in found[f"{place}.self_attn.o_proj.weight"]] == [32]
    assert min(s.bits for s in found[f"{place}.mlp.up_proj.weight"]) == 5
    assert min(s.bits for s in found["lm_head.weight"]) == 6
    assert min(s.bits for s in found["model.embed_tokens.weight"]) == 8


@pytest.mark.mnn
def test_rules_that_leave_nothing_are_an_error(calibrated, tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text('[[rule]]\nmatch = "*q_proj*"\nmin_bits = 5\nmax_bits = 5\n')
    with pytest.raises(LadingError) as error:
        items_of(calibrated(), plan=path, widths=(4, 8))
    assert error.value.code == "Q454" and "q_proj" in str(error.value)


@pytest.mark.mnn
def test_ties_that_no_storage_serves_are_an_error(calibrated, tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text('[[rule]]\nmatch = "*q_proj*"\nbits = 5\n[[rule]]\nmatch = "*k_proj*"\nbits = 4\n')
    with pytest.raises(LadingError, match="share") as error:
        items_of(calibrated(), plan=path, tie=("qkv",))
    assert error.value.code == "Q454"


@pytest.mark.mnn
def test_elements_of_a_tied_checkpoint_count_once(calibrated):
    weights = weights_of(calibrated())
    assert planned_elements(weights) == sum(w.elements for w in weights if w.role != "embedding")


# ---- curves ----


def grid(widths=(2, 3, 4, 5, 6, 7, 8), blocks=(32, 64, 128, 0)):
    return tuple(
        Storage(bits=b, block=k, symmetric=s, method="gptq") for b in widths for k in blocks for s in (False, True)
    )


def law(storage):
    """A curve as curves are: near the square of the step, blocks matter a little less at higher widths."""
    block = (storage.block or 512) ** (0.12 - 0.002 * storage.bits)
    return block * (1.3 if storage.symmetric else 1.0) * (1 + 0.3 / storage.bits) / (2.0**storage.bits - 1) ** 2


def test_a_filled_grid_is_near_the_whole_one():
    storages = (*grid(), Storage(bits=16))
    lines = curves.lines_of(storages)
    assert len(lines) < len(storages) / 2
    measured = {s: curves.Error(law(s), 2 * law(s)) for s in lines}
    found = curves.filled(measured, storages)
    assert list(found) == list(storages)
    for storage in grid():
        assert found[storage].output == pytest.approx(law(storage), rel=0.05)
        assert found[storage].rows == pytest.approx(2 * law(storage), rel=0.05)


def test_a_curve_follows_the_example_of_its_shape():
    storages = (*grid(), Storage(bits=4, block=64, method="rtn"), Storage(bits=16))
    example = {s: curves.Error(law(s), law(s)) for s in storages}
    points = curves.points_of(storages)
    assert len(points) == 4
    known = {s: curves.Error(7 * law(s), 3 * law(s)) for s in points}
    found = curves.after_example(known, example)
    for storage in storages:
        assert found[storage] == pytest.approx((7 * law(storage), 3 * law(storage)))


def test_errors_between_widths_follow_the_number_of_steps():
    errors = {bits: 5.0 / (2.0**bits - 1) ** 2 for bits in (3, 6)}
    assert curves.along_widths(errors, 4) == pytest.approx(5.0 / 15**2)
    assert curves.along_widths(errors, 8) == pytest.approx(5.0 / 255**2)


def wanted_of(graph, role="layer", storages=None):
    keys = graph.facts["calibration"].keys
    storages = storages or (
        Storage(bits=3, block=32, method="gptq"),
        Storage(bits=8, block=0, symmetric=True, method="gptq"),
        Storage(bits=16),
    )
    return [curves.Wanted(w, keys[w.name], storages) for w in weights_of(graph) if w.role == role]


@pytest.mark.mnn
def test_errors_are_those_of_the_whole_weight(calibrated):
    from ir.quant.statistics.moments import MomentStore

    graph = calibrated()
    wanted = wanted_of(graph)
    told = []
    found = curves.error_curves(wanted, lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1]
    for item, curve in zip(wanted[:5], found, strict=False):
        hessian = MomentStore().load(item.moments).second
        exact = item.weight.source.load().astype(np.float64)
        for storage, error in curve.items():
            moments = item.moments if storage.bits <= 8 else ""
            stored = item.weight.restored(storage, moments).load().T.astype(np.float64)
            gap = exact - stored
            assert error.output == pytest.approx(np.trace(gap @ hessian @ gap.T), rel=1e-3)
            assert error.rows == pytest.approx((gap**2).sum(), rel=1e-3)


@pytest.mark.mnn
@pytest.mark.parametrize(("full", "lines", "near"), [(10**9, 0, 1e-9), (0, 10**9, 0.2), (0, 0, 0.5)])
def test_less_is_measured_of_larger_models(calibrated, monkeypatch, full, lines, near):
    """The three depths of measuring, against all candidates measured."""
    graph = calibrated()
    storages = (*grid((2, 3, 4, 6, 8), (32, 0)), Storage(bits=16))
    wanted = [item for item in wanted_of(graph, storages=storages) if "mlp" in item.weight.name]
    exact = curves.error_curves(wanted, lambda done, total: None)
    monkeypatch.setattr(curves, "FULL_STEPS", full)
    monkeypatch.setattr(curves, "LINE_STEPS", lines)
    counts = []
    plain = curves._measure
    monkeypatch.setattr(curves, "recall", lambda store, key: None)
    monkeypatch.setattr(curves, "_measure", lambda *args: counts.append(len(args[-1])) or plain(*args))
    found = curves.error_curves(wanted, lambda done, total: None)
    assert sorted(set(counts)) == ([21] if full else [13] if lines else [3, 13])
    for curve, other in zip(found, exact, strict=True):
        assert list(curve) == list(storages)
        for storage in storages[:-1]:
            assert curve[storage].output == pytest.approx(other[storage].output, rel=near)


def test_a_sample_of_rows_is_spread_and_stays_the_same():
    weight = SimpleNamespace(rows=1000, columns=64, role="layer")
    sample = curves._sample(weight, 2)
    assert len(sample) == 128 and (np.diff(sample) >= 0).all() and np.array_equal(sample, curves._sample(weight, 2))
    assert all(((sample >= low) & (sample < low + 250)).sum() == 32 for low in (0, 250, 500, 750))
    assert len(curves._sample(SimpleNamespace(rows=20, columns=64, role="layer"), 1)) == 20


@pytest.mark.mnn
def test_curves_are_read_from_disk_the_second_time(calibrated, monkeypatch):
    graph = calibrated()
    wanted = wanted_of(graph, storages=(Storage(bits=5, block=32, method="gptq"),))
    first = curves.error_curves(wanted, lambda done, total: None)
    monkeypatch.setattr(curves, "_measure", None)
    assert curves.error_curves(wanted, lambda done, total: None) == first


def test_a_damaged_measurement_is_made_again_and_a_full_disk_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("LADING_CACHE", str(tmp_path))
    store = default_store()
    measurements.keep(store, "a", [1])
    assert measurements.recall(store, "a") == [1]
    (tmp_path / "measurements" / "a.kept").write_text("[1")
    assert measurements.recall(store, "a") is None
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LADING_CACHE", str(tmp_path / "file"))
    with pytest.raises(LadingError) as error:
        measurements.keep(default_store(), "a", [1])
    assert error.value.code == "Q455"


# ---- the model of the losses ----


def test_loss_is_proportional_to_the_error_and_right_at_the_probes():
    storages = [Storage(bits=bits, block=64) for bits in (3, 4, 5)]
    curve = {s: curves.Error(e, 0.0) for s, e in zip(storages, (16.0, 4.0, 1.0), strict=True)}
    one = WeightLoss(curve, [Probe(storages[0], 0.08)])
    assert [one.of(s) for s in storages] == pytest.approx([0.08, 0.02, 0.005])
    two = WeightLoss(curve, [Probe(storages[0], 0.08), Probe(storages[2], 0.02)])
    assert [two.of(s) for s in storages] == pytest.approx([0.08, 0.04, 0.02])
    assert two.of(Storage(bits=32)) == 0.0


def test_embedding_rows_cost_what_their_width_was_measured_to():
    storages = [Storage(bits=4, block=64), Storage(bits=4, block=32), Storage(bits=8, block=64), Storage(bits=16)]
    curve = {s: curves.Error(0.0, e) for s, e in zip(storages, (8.0, 6.0, 0.04, 0.0004), strict=True)}
    model = RowsLoss(curve, [Probe(storages[0], 0.01), Probe(storages[2], 0.0002)])
    assert [model.of(s) for s in storages] == pytest.approx([0.01, 0.0075, 0.0002, 0.000002])


def test_the_first_tokens_of_windows_are_taken():
    windows = [np.arange(5), np.arange(5), np.arange(5)]
    assert [len(w) for w in first_tokens(windows, 8)] == [5, 3]
    assert [len(w) for w in first_tokens(windows, 99)] == [5, 5, 5]


# ---- the search ----


class FakePrices:
    """Prices of items without weights; a variant is the true loss of each item."""

    def __init__(self, sizes, losses, truth):
        self.bytes = self.bits = self.streamed = [np.array(item, np.float64) for item in sizes]
        self.losses = [np.array(item, np.float64) for item in losses]
        self.by_row = self.by_block = [np.zeros(len(item)) for item in sizes]
        self.truth = truth
        self.keys = {}
        self.large = False
        self.items = [SimpleNamespace(weights=[SimpleNamespace(name=f"w{n}")]) for n in range(len(sizes))]

    def variant(self, picks, leave_out=frozenset()):
        return {n: self.truth[n] * self.losses[n][p] for n, p in enumerate(picks) if n not in leave_out}


class FakeMeter:
    """Divergence is the sum of the true losses, and a little more where they meet."""

    def __init__(self):
        self.measured = 0

    def tokens_for(self, variants, most):
        return most

    def measure(self, variants, tokens, what):
        self.measured += len(variants)
        totals = [sum(variant.values()) for variant in variants]
        return [Measured(total * (1 + 0.1 * total), 0.0, 1 - total, tokens) for total in totals]


def search(limit, truth=(1.0,) * 6, count=6):
    rng = np.random.default_rng(1)
    sizes = [[100 * bits * (1 + n % 3) for bits in range(2, 9)] for n in range(count)]
    losses = [[float(scale) * 4.0**-bits for bits in range(2, 9)] for scale in rng.lognormal(0, 1, count)]
    return Search(FakePrices(sizes, losses, truth), FakeMeter(), limit, Given(800, 1000))


def test_correction_finds_what_single_weights_do_not_show():
    truth = (8.0, 1.0, 1.0, 0.1, 1.0, 5.0)
    limit = Limits((Limit("max-size", 6000, "max-size=6000B"),))
    blind = search(limit, truth).best_within_size(0, [])
    corrected = search(limit, truth)
    found = corrected.best_within_size(4, [])
    assert found.measured.kl < 0.8 * blind.measured.kl
    assert corrected.bytes_of(found.picks) <= 6000
    assert corrected.predicted(found.picks) == pytest.approx(found.measured.kl, rel=0.1)


def test_rounding_is_found_where_gradients_are_known_too(tied):
    graph = load(tied)
    PassManager("infer-types").run(graph)
    weight = next(weight for weight in weights_of(graph) if weight.role == "layer")
    storage = Storage(bits=4, block=32)
    item = Item((weight,), (Choice((storage,), False, 0, 0, 0),))
    sums = MomentSums(weight.columns)
    sums.add(np.random.default_rng(8).standard_normal((50, weight.columns)).astype(np.float32))
    store = default_store()
    MomentStore(store).save_sums("inputs", sums)
    by_row = SimpleNamespace(rounds=lambda storage: "row")
    models = {(weight.name, False): WeightLoss({storage: (1.0, 1.0)}, [Probe(storage, 0.5)])}
    costs = [
        Rounding({weight.name: key}, models, by_row, store).of(item, item.choices[0], "row")
        for key in ("inputs", joined("inputs", ["outputs"]))
    ]
    squares = float(np.square(weight.source.load().astype(np.float64)).sum())
    assert costs == pytest.approx([0.5 * squares * sums.rounding()[0]] * 2, rel=0.03)
    without = Rounding({weight.name: ""}, models, by_row, store)
    assert without.of(item, item.choices[0], "row") == 0.0


def test_rounding_by_block_is_weighed_against_what_it_asks_for():
    """Choices of 6 bits and more allow it; a single narrower one has activations rounded by row everywhere."""
    limits = Limits((Limit("max-size", 1000 + 1200 * 6, "max-size=8200B"),))
    work = search(limits)
    assert min(work.solve_size()) < 4 < max(work.solve_size())
    work.prices.by_row = [np.full(7, 0.5) for _ in range(6)]
    work.prices.by_block = [np.array([np.inf] * 4 + [0.001] * 3) for _ in range(6)]
    picks = work.solve_size()
    assert set(picks) == {4} and work.rounding(picks) == pytest.approx(0.006)
    assert work.rounding((3, 4, 4, 4, 4, 4)) == pytest.approx(3.0)
    work.prices.by_row = [np.full(7, 1e-9) for _ in range(6)]
    assert min(work.solve_size()) < 4


def test_a_better_uniform_plan_is_taken():
    limit = Limits((Limit("max-size", 1000 + 1200 * 4, "max-size=5800B"),))
    truth = (30.0, 0.01, 1.0, 0.1, 20.0, 5.0)
    work = search(limit, truth)
    uniform = (2,) * 6
    assert work.fits(uniform)
    taken = work.best_within_size(0, [("uniform", uniform)])
    assert taken.measured.kl == min(item.measured.kl for item in work.tried)
    assert {item.name for item in work.tried} == {"mixed, round 0", "uniform"}
    assert sum(item.taken for item in work.report(taken)) == 1


@pytest.mark.parametrize(("truth", "competes"), [((1.0,) * 6, False), ((30.0, 0.01, 1.0, 0.1, 20.0, 5.0), True)])
def test_of_a_large_model_only_plans_that_promise_less_than_was_measured_compete(truth, competes):
    work = search(Limits((Limit("max-size", 1000 + 1200 * 4, "max-size=5800B"),)), truth)
    work.prices.large = True
    taken = work.best_within_size(0, [("uniform", (2,) * 6)])
    assert ("uniform" in {item.name for item in work.tried}) == competes
    assert taken.measured.kl == min(item.measured.kl for item in work.tried)


def test_a_limit_below_the_smallest_plan_says_what_is_needed():
    def require(limit: Limit) -> None:
        work = search(limit)
        pairs = [zip(*rows, strict=True) for rows in zip(work.prices.bytes, work.prices.bits, strict=True)]
        items = [Item((), tuple(Choice((), False, int(b), int(c), int(b)) for b, c in pair)) for pair in pairs]
        require_room(items, limit, work.given)

    with pytest.raises(LadingError, match="max-size=3400B") as error:
        require(Limits((Limit("max-size", 3000, "max-size=3000B"),)))
    assert error.value.code == "Q451"
    with pytest.raises(LadingError, match=r"budget=3\.000bpw"):
        require(Limits((Limit("budget", 2.9, "budget=2.9bpw"),)))
    for kept in (
        Limits((Limit("max-size", 3400, ""),)),
        Limits((Limit("budget", 3.0, ""),)),
        Limits((Limit("max-kl", 1e-9, ""),)),
    ):
        require(kept)


@pytest.mark.mnn
def test_a_limit_below_the_smallest_plan_is_refused_before_anything_is_measured(calibrated, text, monkeypatch):
    from passes.precision.measured import plan

    monkeypatch.setattr(plan, "Meter", None)
    run = PassManager("assign-precision{max-size=1kB}")
    with pytest.raises(LadingError) as error:
        run.run(calibrated(), PassContext(text), given=("typed", "signature"))
    assert error.value.code == "Q451"


@pytest.mark.parametrize("aim", [0.3, 0.05, 0.004])
def test_max_kl_is_kept_by_what_is_measured_and_nearly_used_up(aim):
    truth = (8.0, 1.0, 1.0, 0.1, 1.0, 5.0)
    work = search(Limits((Limit("max-kl", aim, f"max-kl={aim}"),)), truth)
    taken = work.smallest_within_loss(3, [])
    assert aim / 4 < taken.measured.kl <= aim
    assert work.bytes_of(taken.picks) == min(work.bytes_of(t.picks) for t in work.tried if t.measured.kl <= aim)


def test_a_divergence_that_no_plan_reaches_says_the_best(monkeypatch):
    work = search(Limits((Limit("max-kl", 1e-9, "max-kl=1e-09"),)))
    with pytest.raises(LadingError, match="the best plan has") as error:
        work.smallest_within_loss(2, [])
    assert error.value.code == "Q452"


def test_shares_of_many_items_are_measured_by_layer_and_kind(monkeypatch):
    monkeypatch.setattr(rounds, "SHARE_ITEMS", 3)
    work = search(Limits((Limit("max-size", 6000, "max-size=6000B"),)), (1.0, 1.0, 4.0, 4.0, 1.0, 1.0))
    for number, item in enumerate(work.prices.items):
        item.weights[0].name = f"model.layers.{number // 2}.{'ab'[number % 2]}_proj.weight"
    work.correct(work.measure([("plan", (2,) * 6)])[0])
    assert work.meter.measured == 1 + 1 + 5
    assert work.factors[2] > 1.2 * work.factors[0]


@pytest.mark.mnn
def test_uniform_plans_of_large_models_compete_only_where_they_might_win(calibrated, monkeypatch):
    graph = calibrated()
    options = AssignPrecision(budget="5bpw", widths=(4, 8), blocks=(32,))
    wanted = options.preferences(default_target(), options.prepare())
    items = make_items(weights_of(graph), wanted)
    bits = [np.array([choice.bits for choice in item.choices], np.float64) for item in items]
    losses = [4.0 ** -np.array([min(s.bits for s in c.storages) for c in item.choices], np.float64) for item in items]
    none = [np.zeros(len(item)) for item in bits]
    priced = SimpleNamespace(
        items=items,
        bytes=bits,
        bits=bits,
        streamed=bits,
        losses=losses,
        by_row=none,
        by_block=none,
        keys={},
        large=False,
    )
    elements = planned_elements(weights_of(graph))
    work = Search(priced, FakeMeter(), Limits((Limit("budget", 5.2, "budget=5.2bpw"),)), Given(elements, 0))
    found = measured._competitors(work, wanted)
    assert [name for name, _ in found] == ["uniform 4 bits, block 32, symmetric"]
    assert all(work.fits(picks) for _, picks in found)
    priced.large = True
    assert measured._competitors(work, wanted) == found
    losses[3] *= 1e6
    monkeypatch.setattr(measured, "HOPELESS", 0.1)
    assert measured._competitors(work, wanted) == []


# ---- whole runs ----


@pytest.mark.mnn
def test_nothing_is_measured_without_statistics_or_text(tied, text, calibrated):
    graph = load(tied)
    PassManager("infer-types,discover-inputs").run(graph)
    with pytest.raises(LadingError, match="calibrate") as error:
        assigned(graph, text, "budget=5bpw")
    assert error.value.code == "Q453"
    for context in (PassContext(), PassContext(CalibrationText(text.calibration, ()))):
        with pytest.raises(LadingError, match="held-out") as error:
            PassManager("assign-precision{budget=5bpw}").run(calibrated(), context, given=("typed", "signature"))
        assert error.value.code == "Q453"


@pytest.mark.mnn
@pytest.mark.parametrize("limit", ["budget=5bpw", "budget=4.6bpw scale=f16", "max-size=90kB"])
def test_a_plan_keeps_its_limit_in_what_the_backend_writes(calibrated, text, limit):
    from backends.mnn.write.weight_layout import plan_layout

    graph = calibrated()
    plan, sensitivity = assigned(graph, text, f"{limit} {FEW} rounds=1")
    outcome = plan.outcome
    taken = [item for item in sensitivity.plans if item.taken]
    assert [item.measured for item in taken] == [outcome.measured]
    assert outcome.measured == min(item.measured for item in sensitivity.plans)
    assert outcome.predicted == pytest.approx(outcome.measured, rel=0.5)
    if limit.startswith("budget"):
        bits = float(limit.split("=")[1].partition("bpw")[0])
        assert 0.9 * bits < outcome.bits_per_weight <= bits
    else:
        assert 0.9 * 90_000 < outcome.bytes <= 90_000
    PassManager("recalibrate,insert-qdq,legalize-mnn,sink-layouts,cse,dce").run(
        graph, PassContext(text), given=("typed", "signature")
    )
    assert plan_layout(graph).nbytes == outcome.bytes


@pytest.mark.mnn
def test_the_plan_of_a_large_model_is_measured_where_its_codes_are_made(calibrated, text, monkeypatch):
    monkeypatch.setattr(prices, "LARGE", 0)
    monkeypatch.setattr(measured, "HOPELESS", 0.0)
    graph = calibrated()
    plan, sensitivity = assigned(graph, text, f"budget=5bpw {FEW}")
    assert plan.outcome.measured is None and plan.outcome.top1 is None and not sensitivity.plans
    assert plan.outcome.positions == sum(map(len, text.held_out)) == sensitivity.tokens[1]
    assert "0 held-out" not in plan_text(plan) and "predicted\n" in plan_text(plan)
    PassManager("recalibrate").run(graph, PassContext(text), given=("typed", "signature"))
    outcome = graph.required_fact(PrecisionPlan).outcome
    assert outcome.predicted / 3 < outcome.measured < outcome.predicted * 3
    assert 0 < outcome.top1 <= 1 and outcome.positions == plan.outcome.positions
    # Methods that do not follow have codes that stay, and so is a plan of several rounds measured.
    for options in ("method=gptq", "rounds=1"):
        plan, sensitivity = assigned(calibrated(), text, f"budget=5bpw {FEW} {options}")
        assert plan.outcome.measured > 0 and sensitivity.plans


def test_neighbouring_layers_of_a_large_model_are_probed_together():
    def weight(name: str, rows: int = 8) -> SimpleNamespace:
        role = "layer" if "layers" in name else "logits"
        return SimpleNamespace(name=name, rows=rows, columns=8, role=role)

    names = [f"model.layers.{layer}.mlp.{kind}_proj.weight" for layer in range(9) for kind in ("up", "down")]
    runs = prices._runs([*map(weight, names), weight("lm_head.weight"), weight("model.layers.2.mlp.gate.weight", 3)])
    assert "lm_head.weight" not in runs
    together: dict[str, list[int]] = {}
    for name in names[::2]:
        together.setdefault(runs[name], []).append(place_of(name)[0])
    assert list(together.values()) == [[0], [1, 2, 3], [4, 5, 6], [7], [8]]
    assert {runs[name] for name in names[::2]}.isdisjoint(runs[name] for name in names[1::2])


@pytest.mark.mnn
def test_a_speed_and_a_budget_are_kept_together(calibrated, text):
    fast, _ = assigned(calibrated(), text, f"budget=5.5bpw min-speed=0.8x {FEW}")
    free, _ = assigned(calibrated(), text, f"budget=5.5bpw {FEW}")
    assert fast.outcome.limit == "budget=5.5bpw min-speed=0.8x" and fast.outcome.device == "x86"
    assert fast.outcome.bits_per_weight <= 5.5 and fast.outcome.speed >= 0.8 > free.outcome.speed
    assert fast.outcome.streamed < free.outcome.streamed
    assert free.outcome.measured <= fast.outcome.measured


@pytest.mark.mnn
def test_what_few_states_may_have_missed_is_told(calibrated, text, monkeypatch):
    monkeypatch.setattr(several_limits, "STATES", (1,))
    context = PassContext(text)
    options = f"budget=5.5bpw min-speed=0.8x {FEW} rounds=0"
    PassManager(f"assign-precision{{{options}}}").run(calibrated(), context, given=("typed", "signature"))
    (told,) = [item for item in context.diagnostics if item.code == "Q498"]
    assert "budget=5.5bpw min-speed=0.8x" in told.message and told.severity == "warning"


@pytest.mark.mnn
def test_the_speed_of_four_bits_is_kept_where_a_plan_of_the_size_has_it(calibrated, text):
    graph = calibrated()
    options = AssignPrecision(budget="5.1bpw", min_speed="auto", widths=(3, 4, 6, 8), blocks=(32, 0))
    wanted = options.preferences(default_target(), options.prepare())
    weights = weights_of(graph)
    items, given = make_items(weights, wanted), measured.given_of(graph, weights, wanted)
    found = measured._settled(wanted.limits, items, given, weights, wanted)
    assert [limit.text for limit in found.each] == ["budget=5.1bpw", "min-speed=auto"]
    assert given.room(found.each[1]) == pytest.approx(min(
        reads.streamed for reads in usual_plans(weights, wanted)
        if abs(8 * reads.bytes / given.elements - 5.05) < 0.25
    ))  # fmt: skip
    few = replace(wanted, limits=limits_of("3.9bpw", None, None, "auto"))
    assert measured._settled(few.limits, items, given, weights, few).text == "budget=3.9bpw"
    wide = replace(wanted, widths=(3, 8))
    items = make_items(weights, wide)
    assert measured._settled(wide.limits, items, given, weights, wide).text == "budget=5.1bpw"


@pytest.mark.mnn
def test_speed_alone_takes_the_finest_that_is_fast_enough(calibrated, text):
    fast, _ = assigned(calibrated(), text, f"min-speed=0.7x {FEW}")
    assert 0.7 <= fast.outcome.speed < 0.75
    with pytest.raises(LadingError, match="more speed than the fastest plan has") as error:
        assigned(calibrated(), text, "min-speed=0.9x widths=[3,8] blocks=[32]")
    assert error.value.code == "Q451"


@pytest.mark.mnn
def test_max_kl_gives_a_smaller_model_for_a_larger_divergence(calibrated, text):
    small, _ = assigned(calibrated(), text, f"max-kl=0.05 {FEW}")
    large, _ = assigned(calibrated(), text, f"max-kl=0.005 {FEW}")
    assert small.outcome.measured <= 0.05 and large.outcome.measured <= 0.005
    assert small.outcome.bytes < large.outcome.bytes


@pytest.mark.mnn
def test_a_fresh_cache_gives_the_same_plan(calibrated, tied, text, tmp_path, monkeypatch):
    options = "budget=5bpw widths=[4,6] blocks=[32] forms=[symmetric] rounds=1"
    graph = calibrated()
    first = assigned(graph, text, options)
    reread = parse(print_graph(graph))
    assert reread.facts[PrecisionPlan.name] == first[0] and reread.facts[Sensitivity.name] == first[1]
    monkeypatch.setenv("LADING_CACHE", str(tmp_path))
    other = load(tied)
    PassManager(BEFORE).run(other, PassContext(text))
    assert assigned(other, text, options) == first


@pytest.mark.mnn
def test_the_plan_and_what_is_kept_do_not_depend_on_the_executor(tied, text, processes, tmp_path, monkeypatch):
    options = "budget=5bpw widths=[3,4,6] blocks=[32] rounds=1 method=gptaq"
    pipeline = f"{BEFORE},assign-precision{{{options}}},recalibrate,insert-qdq"
    found = []
    with ThreadPoolExecutor(3) as threads:
        for number, executor in enumerate((None, threads, processes)):
            monkeypatch.setenv("LADING_CACHE", str(tmp_path / "unused"))
            graph, store = load(tied), folder_store(tmp_path / str(number))
            PassManager(pipeline).run(graph, PassContext(text, executor=executor, store=store))
            kept = {item.name: store.find(item.name).read() for item in store.entries()}
            found.append(
                (graph.required_fact(PrecisionPlan), graph.required_fact(Sensitivity), print_graph(graph), kept)
            )
    assert {name.partition("/")[0] for name in found[0][3]} == {"measurements", "moments", "quantized"}
    assert found[1] == found[0] and found[2] == found[0]
    assert not (tmp_path / "unused").exists()


@pytest.mark.mnn
def test_a_second_budget_measures_only_new_plans(calibrated, text, monkeypatch):
    assigned(calibrated(), text, f"budget=5bpw {FEW} rounds=0")
    monkeypatch.setattr(curves, "_measure", None)
    asked = []
    from passes.precision.measured.probes import Meter

    plain = Meter.measure

    def counted(self, variants, tokens, what):
        asked.append((what, len(variants)))
        return plain(self, variants, tokens, what)

    monkeypatch.setattr(Meter, "measure", counted)
    assigned(calibrated(), text, f"budget=4.5bpw {FEW} rounds=0")
    assert [what for what, _ in asked] == ["measuring single weights", "measuring whole plans"]


@pytest.mark.mnn
def test_every_weight_is_in_the_record_with_its_curve(calibrated, text):
    graph = calibrated()
    plan, sensitivity = assigned(graph, text, f"budget=6bpw {FEW} rounds=1 keep=[*.0.*o_proj*]")
    by_name = {item.name: item for item in sensitivity.weights}
    assert set(by_name) == set(plan.storage)
    kept = by_name["model.layers.0.self_attn.o_proj.weight"]
    assert kept.curve == () and kept.chosen is None and plan.storage[kept.name].bits == 32
    down = by_name["model.layers.1.mlp.down_proj.weight"]
    assert (down.layer, down.kind, down.role) == (1, "down_proj", "layer")
    assert down.kl > 0 and "bits" in down.probe
    point = down.curve[down.chosen]
    stored = plan.storage[down.name]
    assert (point.bits, point.block, point.symmetric, point.method) == (
        stored.bits, stored.block, stored.symmetric, stored.method,
    )  # fmt: skip
    losses = {p.bits: p.loss for p in down.curve if p.block == 32 and not p.symmetric}
    assert losses[3] > losses[4] > losses[6] > losses[8] > 0


@pytest.mark.mnn
def test_a_plan_written_to_a_file_is_read_back_to_the_same_storages(calibrated, text, tmp_path):
    graph = calibrated()
    plan, sensitivity = assigned(graph, text, f"budget=6bpw {FEW} rounds=0 keep=[*.0.*o_proj*]")
    path = tmp_path / "plan.toml"
    write_plan(plan, path, sensitivity)
    written = path.read_text()
    assert f"{plan.outcome.measured:.6f}" in written and "budget=6bpw" in written
    assert written.count("[[rule]]") == len(load_rules(path)) == len(plan.storage)
    assert written.count("predicted share") == len(plan.storage) - 1
    again = calibrated()
    PassManager(f'assign-precision{{plan="{path}"}}').run(again, given=("typed", "signature"))
    reread = again.required_fact(PrecisionPlan)
    assert reread.tied == plan.tied and list(reread.storage) == list(plan.storage)
    assert reread.storage == plan.storage


def test_names_with_pattern_signs_are_matched_exactly(tmp_path):
    names = ["a*b[0]?.weight", "re:x", "plain", 'quote"and\\slash']
    plan = PrecisionPlan({name: Storage(bits=4, block=32) for name in names})
    path = tmp_path / "plan.toml"
    path.write_text(plan_text(plan))
    rules = load_rules(path)
    for rule, name in zip(rules, names, strict=True):
        assert [other for other in (*names, "axb0y.weight", "x", "re:xx") if rule.applies(other, "layer")] == [name]


def test_a_plan_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(LadingError) as error:
        write_plan(PrecisionPlan({}), tmp_path / "none" / "plan.toml")
    assert error.value.code == "Q457"


@pytest.mark.mnn
def test_methods_are_given_statistics_by_insert_qdq(calibrated, text):
    graph = calibrated()
    run = "assign-precision{method=gptq},insert-qdq"
    PassManager(run).run(graph, given=("typed", "signature"))
    keys = graph.facts["calibration"].keys
    head = storage_of(graph.value("lm_head.weight"), matmul=True).quantized
    assert head.moments == keys["lm_head.weight"]
    assert storage_of(graph.tables["embedding"]).quantized is head
    down = storage_of(graph.value("model.layers.0.mlp.down_proj.weight"), matmul=True).quantized
    assert down.storage.method == "gptq" and down.moments == keys["model.layers.0.mlp.down_proj.weight"]


@pytest.mark.mnn
def test_rows_on_their_own_take_a_method_that_needs_no_inputs(calibrated):
    graph = calibrated()
    PassManager("assign-precision{method=gptq logits-bits=4 embedding-bits=8},insert-qdq").run(
        graph, given=("typed", "signature")
    )
    table = storage_of(graph.tables["embedding"]).quantized
    assert (table.storage.method, table.moments, table.storage.bits) == ("clip", "", 8)


@pytest.mark.mnn
def test_a_method_without_its_statistics_is_refused(tied):
    graph = load(tied)
    with pytest.raises(LadingError, match="calibrate") as error:
        PassManager("infer-types,discover-inputs,assign-precision{method=gptq},insert-qdq").run(graph)
    assert error.value.code == "Q456"
