"""Measuring a model directory on the real runtime against a reference that is computed once."""

from __future__ import annotations

import numpy as np
import pytest

from backends.mnn.run.native import EXACT_CONFIG
from backends.mnn.verify import measure as m
from backends.mnn.verify.measure import FloatReference, Speed, graph_digest, measure
from frontends.checkpoint.load import load
from ir.base.diag import LadingError
from ir.base.store import FolderStore
from ir.base.types import F32, I64, Dim, TensorType
from ir.evaluate.divergence import DistanceMeter, PairedLossMeter, PerplexityMeter, divergences
from ir.facts.inputs import DynamicInputs
from ir.graph.graph import Graph
from ir.tensor.inline import InlineTensor
from passes.framework.context import PassContext
from passes.framework.load import load as load_pipeline
from passes.framework.manager import PassManager
from tests.support.checkpoints import make_checkpoint
from tests.support.runs import compiled, logits_of, pieces, run_actions

RNG = np.random.default_rng(0)
WINDOWS = [RNG.integers(3, 300, size).tolist() for size in (24, 17, 24)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("measure") / "source", "qwen2", seed=2)


@pytest.fixture(scope="module")
def folder(source, tmp_path_factory):
    return compiled(source, tmp_path_factory.mktemp("measured") / "out", "int4")


@pytest.fixture(scope="module")
def reference(source):
    return FloatReference(load(source), WINDOWS)


def test_numbers_are_those_of_the_meters(folder, reference):
    found = measure(folder, reference, {"memory": "normal", "thread_num": 1}, tail=5)
    actions = [pieces(window[:-5], *([token] for token in window[-5:])) for window in WINDOWS]
    results = run_actions(folder, found.release, actions)
    distance, perplexity, own = DistanceMeter(), PerplexityMeter(), PerplexityMeter()
    for number, (window, result) in enumerate(zip(WINDOWS, results, strict=True)):
        rows = np.array(reference.logits(number))
        distance.add(rows, logits_of(result))
        perplexity.add(logits_of(result), np.array(window))
        own.add(rows, np.array(window))
    wanted = distance.result()
    assert found.positions == wanted.positions == sum(map(len, WINDOWS))
    assert found.kl == pytest.approx(wanted.kl, rel=1e-9)
    assert (found.top1, found.max_abs, found.max_logit) == (wanted.top1, wanted.max_abs, wanted.max_logit)
    # A float32 sum may round otherwise from one process to the next; random ids make the perplexity huge.
    assert np.log(found.perplexity) == pytest.approx(measured_nll(results), rel=1e-9)
    assert found.perplexity_reference > 1 and found.kl_error > 0 and found.nll_error > 0
    assert len(found.rows["kl"]) == found.positions
    assert len(found.rows["nll"]) == found.positions - len(WINDOWS)
    assert found.as_dict()["settings"] == {"memory": "normal", "thread_num": 1} and "rows" not in found.as_dict()


def measured_nll(results):
    losses = []
    for window, result in zip(WINDOWS, results, strict=True):
        logits = logits_of(result).astype(np.float64)
        log_p = logits - logits.max(axis=1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        losses += [-log_p[place, token] for place, token in enumerate(window[1:])]
    return np.mean(losses)


def test_settings_are_those_of_the_folder_unless_given(folder, reference):
    shipped, same, exact = (measure(folder, reference, given) for given in (None, {"memory": "low"}, EXACT_CONFIG))
    assert shipped.kl == same.kl != exact.kl
    assert shipped.decode_tokens_per_s is None and shipped.peak_rss > 1 << 20 and shipped.load_s > 0


def test_speeds_are_taken_when_asked_for(folder, reference):
    found = measure(folder, reference, speed=Speed(prompt=40, decode=4, repeat=1))
    assert found.prefill_tokens_per_s > 0 and found.decode_tokens_per_s > 0
    assert found.kl == measure(folder, reference).kl


def test_logits_are_computed_once_and_kept(source, tmp_path, monkeypatch):
    first = FloatReference(load(source), WINDOWS, FolderStore(tmp_path / "deep")).paths()
    monkeypatch.setattr(m, "Evaluator", None)
    assert FloatReference(load(source), WINDOWS[1:], FolderStore(tmp_path / "deep")).paths() == first[1:]


def test_a_limit_on_logits_changes_no_number(source, reference, monkeypatch):
    monkeypatch.setattr(m, "LOGITS_LIMIT", 1)
    small = FloatReference(load(source), WINDOWS)
    for number in range(len(WINDOWS)):
        np.testing.assert_array_equal(small.logits(number), reference.logits(number))


def test_a_lowered_graph_can_be_the_reference(source, folder):
    graph = load(source)
    PassManager(load_pipeline("int4"), ()).run(graph, PassContext())
    assert DynamicInputs.name in graph.facts
    found = measure(folder, FloatReference(graph, WINDOWS), EXACT_CONFIG)
    assert found.max_abs < 1e-3 and found.top1 == 1.0


def test_other_weights_have_another_digest(source, tmp_path):
    other = make_checkpoint(tmp_path / "other", "qwen2", seed=3)
    same = make_checkpoint(tmp_path / "same", "qwen2", seed=2)
    assert len({graph_digest(load(path)) for path in (source, other)}) == 2
    assert graph_digest(load(source)) == graph_digest(load(same))


def test_logits_that_cannot_be_kept_are_an_error(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LadingError) as caught:
        FloatReference(load(source), WINDOWS, FolderStore(tmp_path / "file")).paths()
    assert caught.value.code == "Q470"


def test_a_broken_folder_is_an_error(folder, reference, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[: 100 if path.name == "llm.mnn" else None])
    with pytest.raises(LadingError) as caught:
        measure(tmp_path, reference, timeout_s=60)
    assert caught.value.code in ("B667", "B669")


def test_windows_must_predict_something(source, folder, reference):
    with pytest.raises(ValueError, match="two or more"):
        FloatReference(load(source), [[1]])
    with pytest.raises(ValueError, match="cannot be decoded"):
        measure(folder, reference, tail=17)


def test_divergences_of_several_arrays_at_once():
    rng = np.random.default_rng(0)
    a, b, c = (rng.normal(size=(5, 7)).astype(np.float32) for _ in range(3))
    p, q = (np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(1, keepdims=True) for x in (a, b))
    found = divergences(a, b, c, a)
    np.testing.assert_allclose(found[0], (p * np.log(p / q)).sum(axis=1))
    assert found.shape == (3, 5) and np.abs(found[2]).max() < 1e-15
    with np.errstate(all="ignore"):
        assert np.isinf(divergences(a, np.full_like(a, np.nan))).all()


def test_a_paired_loss_knows_its_error():
    rng = np.random.default_rng(0)
    a, b, c = (rng.normal(size=(50, 7)).astype(np.float32) for _ in range(3))
    meter = PairedLossMeter()
    meter.add(a[:20], b[:20], c[:20])
    meter.add(a[20:], b[20:], c[20:])
    found, (first, second) = meter.result(), divergences(a, b, c)
    assert (found.positions, found.measured, found.predicted) == (50, first.mean(), second.mean())
    assert found.error == pytest.approx((first - second).std() / np.sqrt(50))
    with pytest.raises(ValueError, match="nothing was compared"):
        PairedLossMeter().result()
    with pytest.raises(ValueError, match="shapes differ"):
        meter.add(a, b[:3], c)


@pytest.mark.parametrize("type_", [None, TensorType(F32), TensorType(F32, (1, Dim("S"), Dim("V")))])
def test_a_reference_whose_vocabulary_is_not_a_number(tmp_path, monkeypatch, type_):
    monkeypatch.setenv("LADING_CACHE", str(tmp_path))
    graph = Graph("logits")
    ids = graph.add_input("input_ids", TensorType(I64, (1, graph.add_dim(Dim("S")))))
    table = graph.add_const("table", InlineTensor(np.arange(32, dtype=np.float32).reshape(8, 4)))
    graph.set_outputs([graph.add("Gather", [table, ids], {"axis": 0}, types=[type_]).output])
    reference = FloatReference(graph, [np.array([1, 2, 3])])
    assert reference.logits(0)[:, 0].tolist() == [4.0, 8.0, 12.0]
