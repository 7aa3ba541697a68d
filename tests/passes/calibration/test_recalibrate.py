"""The pass that gathers statistics behind what is quantized: its numbers, its keys, and runs that were stopped."""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from frontends.checkpoint.load import load
from ir.base.diag import LadingError
from ir.base.executor import SERIAL, Spread
from ir.base.store import default_store
from ir.evaluate.evaluator import Evaluator, evaluate
from ir.evaluate.replaced_weights import divergences
from ir.evaluate.token_feeds import window_feeds
from ir.facts.calibration import Calibration
from ir.facts.precision import PrecisionPlan
from ir.graph.graph import Graph
from ir.quant.methods.base import METHODS
from ir.quant.statistics.moments import CalibrationText, Moments, MomentStore
from ir.quant.weight import _slow_weights
from ir.text.parser import parse
from ir.text.printer import print_graph
from passes.calibration import recalibrate
from passes.framework.context import PassContext
from passes.framework.load import load as load_pipeline
from passes.framework.manager import PassManager
from passes.precision.planned_weights import weights_of
from tests.support.checkpoints import make_checkpoint
from tests.support.decoders.mixtures import VOCAB, mixture_model

WINDOWS = tuple(np.random.default_rng(5).integers(0, 320, count).astype(np.int32) for count in (40, 64, 9))
TEXT = CalibrationText(WINDOWS, (WINDOWS[1][::-1].copy(),))
ASSIGN = "assign-precision{bits=3 block=32 method=gptaq logits-bits=8 embedding-bits=8}"
PIPELINE = f"infer-types,calibrate,{ASSIGN},recalibrate"
LAYER = "model.layers.{}."


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LADING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), "qwen2", num_hidden_layers=2)


def run(graph: Graph, pipeline: str, text: CalibrationText = TEXT) -> dict[str, int]:
    report = PassManager(load_pipeline(pipeline)).run(graph, PassContext(text))
    return dict(report.passes[-1].counts)


def values(graph: Graph, names: list[str]) -> list[np.ndarray]:
    """float64[positions, features] of values over all windows."""
    unique = list(dict.fromkeys(names))
    found = Evaluator(graph, unique).run_many(window_feeds(graph, WINDOWS))
    rows = {n: np.concatenate([item[n].reshape(-1, item[n].shape[-1]) for item in found]) for n in unique}
    return [rows[name].astype(np.float64) for name in names]


def statistics(graph: Graph) -> dict[str, Moments]:
    return {name: MomentStore().load(key) for name, key in graph.required_fact(Calibration).keys.items()}


# ---- numbers ----


def test_statistics_are_of_the_quantized_model_and_of_what_the_float_model_makes_of_its_own(checkpoint: Path) -> None:
    """Both models are evaluated apart, the quantized one as insert-qdq writes it."""
    graph, plain = load(checkpoint), load(checkpoint)
    counts = run(graph, PIPELINE.replace("recalibrate", "recalibrate{drift=0.75 residual=0.5}"))
    assert counts == {"weights": 7 * 2 + 1, "computed": 4 * 2 + 1, "cached": 0}
    found = statistics(graph)
    readers = {n.inputs[1].name: n for n in plain.nodes if n.op == "MatMul" and n.inputs[1].is_const}
    run(graph, "insert-qdq")
    first = tuple(f"{LAYER.format(0)}self_attn.{kind}_proj" for kind in "qkv")  # Nothing is quantized before them.
    seen = 0
    for name, moments in found.items():
        if moments.drift is None and moments.lag is None:
            continue
        seen += 1
        node = readers[name]
        wanted, x = values(plain, [node.inputs[0].name])[0], values(graph, [node.inputs[0].name])[0]
        scale = np.sqrt(np.outer((x**2).mean(0), (x**2).mean(0)))
        assert (np.abs(moments.second - x.T @ x / len(x)) / scale).max() < 1e-5
        error = 0.75 * (wanted - x)
        if moments.lag is not None:
            weight = next(w for w in weights_of(plain) if w.name == name).source.load().astype(np.float64)
            (add,) = node.output.users
            beside = next(v.name for v in add.inputs if v is not node.output)
            error = error @ weight.T + 0.5 * (values(plain, [beside])[0] - values(graph, [beside])[0])
        want = error.T @ x / len(x)
        kept = moments.drift if moments.drift is not None else moments.lag
        assert kept is not None and (np.abs(want).max() > 1e-4) == (not name.startswith(first))
        np.testing.assert_allclose(kept, want, atol=1e-4 * max(1.0, np.abs(want).max()))
    assert seen >= 7 * 2
    down = found[LAYER.format(1) + "mlp.down_proj.weight"]
    assert down.lag is not None and found[LAYER.format(1) + "mlp.up_proj.weight"].drift is not None
    assert found[LAYER.format(1) + "self_attn.o_proj.weight"].lag is not None


def test_weights_with_one_input_share_statistics(checkpoint: Path) -> None:
    graph = load(checkpoint)
    run(graph, PIPELINE)
    fact = graph.required_fact(Calibration)
    at = LAYER.format(1)
    assert len({fact.keys[f"{at}self_attn.{name}_proj.weight"] for name in "qkv"}) == 1
    assert fact.keys[f"{at}mlp.up_proj.weight"] == fact.keys[f"{at}mlp.gate_proj.weight"]
    assert set(fact.behind) >= {f"{LAYER.format(n)}mlp.down_proj.weight" for n in range(2)}
    assert parse(print_graph(graph)).required_fact(Calibration) == fact


def test_a_weight_quantized_otherwise_changes_what_lies_behind_it_alone(checkpoint: Path) -> None:
    one, other = load(checkpoint), load(checkpoint)
    run(one, PIPELINE)
    keep = LAYER.format(1) + "self_attn.o_proj.weight"
    run(other, PIPELINE.replace("bits=3", f"bits=3 keep=[{keep}]"))
    first, second = (graph.required_fact(Calibration).keys for graph in (one, other))
    same = {name for name in first if first[name] == second[name]}
    behind = {LAYER.format(1) + f"mlp.{kind}_proj.weight" for kind in ("gate", "up", "down")}
    assert (
        behind.isdisjoint(same)
        and {n for n in first if n.startswith((LAYER.format(0), LAYER.format(1) + "s"))} - {keep} <= same
    )
    assert run(load(checkpoint), PIPELINE)["computed"] == 0


def test_another_version_of_a_method_changes_what_lies_behind_its_weights(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = load(checkpoint), load(checkpoint)
    run(one, PIPELINE)
    monkeypatch.setattr(type(METHODS["gptaq"]), "version", 99)
    assert run(other, PIPELINE)["computed"]
    first, second = (graph.required_fact(Calibration).keys for graph in (one, other))
    before = {LAYER.format(0) + f"self_attn.{kind}_proj.weight" for kind in "qkv"}
    assert before <= {name for name in first if first[name] == second[name]}
    assert first[LAYER.format(0) + "self_attn.o_proj.weight"] != second[LAYER.format(0) + "self_attn.o_proj.weight"]


def test_predictions_come_closer_to_those_of_the_float_model(checkpoint: Path) -> None:
    kl = {}
    for method in ("gptq", "gptaq"):
        graph = load(checkpoint)
        run(graph, PIPELINE.replace("gptaq", method))
        plan, fact = graph.required_fact(PrecisionPlan), graph.required_fact(Calibration)
        layers = [weight for weight in weights_of(graph) if weight.role == "layer"]
        variant = {w.name: w.restored(plan.storage[w.name], fact.keys[w.name]) for w in layers}
        (found,) = divergences(graph, WINDOWS, [variant])
        kl[method] = found.kl
    assert kl["gptaq"] < 0.9 * kl["gptq"]


@pytest.mark.mnn
def test_a_tied_matrix_keeps_the_statistics_it_has(tmp_path: Path) -> None:
    graph = load(make_checkpoint(tmp_path / "tied", "qwen2", num_hidden_layers=1, tie_word_embeddings=True))
    run(graph, "infer-types,discover-inputs,calibrate")
    before = dict(graph.required_fact(Calibration).keys)
    run(graph, f"{ASSIGN},recalibrate".replace("embedding-bits=8", "embedding-bits=0"))
    fact = graph.required_fact(Calibration)
    changed = {name for name in before if fact.keys[name] != before[name]}
    assert changed and "lm_head.weight" not in changed
    run(graph, "insert-qdq")


def test_nothing_happens_where_no_method_follows(checkpoint: Path) -> None:
    graph = load(checkpoint)
    assert run(graph, PIPELINE.replace("gptaq", "gptq")) == {"weights": 0, "computed": 0, "cached": 0}
    assert not graph.required_fact(Calibration).behind
    assert run(load(checkpoint), "infer-types,assign-precision,recalibrate")["weights"] == 0


def test_a_measured_plan_is_measured_again(checkpoint: Path) -> None:
    graph, text = load(checkpoint), CalibrationText(WINDOWS, WINDOWS[:1])
    assign = "assign-precision{budget=6.5bpw method=gptaq widths=[4,6] blocks=[32] rounds=0}"
    run(graph, f"infer-types,calibrate,{assign}", text)
    before = graph.required_fact(PrecisionPlan).outcome
    run(graph, "recalibrate", text)
    after = graph.required_fact(PrecisionPlan).outcome
    assert before is not None and after is not None
    assert after.measured < before.measured and after.bytes == before.bytes and after.positions == before.positions
    run(graph, "insert-qdq")
    logits = [evaluate(g, window_feeds(g, text.held_out)[0])[g.outputs[0].name] for g in (load(checkpoint), graph)]
    first, second = (item.astype(np.float64) - np.logaddexp.reduce(item, axis=-1, keepdims=True) for item in logits)
    kl = (np.exp(first) * (first - second)).sum(axis=-1).mean()
    assert after.measured == pytest.approx(kl, rel=1e-3)


def test_a_measured_plan_that_was_better_as_it_was_stays(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = load(checkpoint)
    run(graph, "infer-types,calibrate,assign-precision{budget=4bpw method=gptaq widths=[3,5] blocks=[32] rounds=0}")
    plan, fact = graph.required_fact(PrecisionPlan), graph.required_fact(Calibration)
    assert plan.outcome is not None
    graph.set_fact(PrecisionPlan.name, replace(plan, outcome=replace(plan.outcome, measured=1e-9)))
    report = PassManager(load_pipeline("recalibrate")).run(graph, PassContext(TEXT))
    assert [(item.code, item.severity) for item in report.all_diagnostics()] == [("Q492", "note")]
    after = graph.required_fact(PrecisionPlan).outcome
    assert after is not None and after.measured == 1e-9
    assert graph.required_fact(Calibration) == fact
    stored = graph.required_fact(PrecisionPlan).storage
    assert {item.method for item in stored.values() if item.bits <= 8} == {"gptq"} and list(stored) == list(
        plan.storage
    )
    run(graph, "insert-qdq")


# ---- experts ----


def test_statistics_of_an_expert_are_of_tokens_that_both_models_send_to_it() -> None:
    rng = np.random.default_rng(5)
    text = CalibrationText(tuple(rng.integers(0, VOCAB, 48).astype(np.int32) for _ in range(3)), ())
    graph, plain = mixture_model(4, 2, dead=1, layers=2), mixture_model(4, 2, dead=1, layers=2)
    assign = "assign-precision{bits=2 block=32 method=gptaq logits-bits=8 embedding-bits=32}"
    PassManager(f"calibrate,{assign},recalibrate").run(graph, PassContext(text), given=("typed", "signature"))
    found = statistics(graph)
    PassManager("insert-qdq").run(graph, PassContext(text), given=("typed", "signature", "precision-plan"))
    dispatches = [[n for n in g.nodes if n.op == "lading.Dispatch"][1] for g in (plain, graph)]
    chosen, rows = [], []
    for model, node in zip((plain, graph), dispatches, strict=True):
        feeds = [{"input_ids": window[None].astype(np.int64)} for window in text.calibration]
        names = [node.operand(0).name, node.operand(1).name]
        got = Evaluator(model, names).run_many(feeds)
        rows.append(np.concatenate([item[names[0]][0] for item in got]).astype(np.float64))
        chosen.append(np.concatenate([item[names[1]][0] for item in got]))
    assert (np.sort(chosen[0]) != np.sort(chosen[1])).any(), "the models choose alike: nothing is tried"
    for expert in range(3):
        both = (chosen[0] == expert).any(axis=1) & (chosen[1] == expert).any(axis=1)
        moments = found[f"model.layers.1.mlp.experts.{expert}.gate_proj.weight"]
        wanted, x = rows[0][both], rows[1][both]
        assert moments.tokens == both.sum() > 0
        np.testing.assert_allclose(moments.second, x.T @ x / len(x), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(moments.drift, 0.75 * (wanted - x).T @ x / len(x), rtol=1e-3, atol=1e-4)
    lost = found["model.layers.1.mlp.experts.3.gate_proj.weight"]
    assert lost.drift is None and lost.lag is None and lost.tokens == 3 * 48


def test_weights_that_the_stored_model_has_read_are_not_held(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    held: list[int] = []
    advance, gather = Evaluator.advance, recalibrate._Following._gather

    def advanced(evaluator: Evaluator, place: int, *given: object) -> None:
        read.append(place)
        advance(evaluator, place, *given)

    def gathered(following: recalibrate._Following, *given: object) -> None:
        # Weights that come later may be shared with graphs that are not collected yet.
        weights = [weight for place in read for weight in _slow_weights(following.stored_in(place))]
        held.append(sum("_kept" in weight.__dict__ for weight in weights))
        gather(following, *given)

    monkeypatch.setattr(Evaluator, "advance", advanced)
    monkeypatch.setattr(recalibrate._Following, "_gather", gathered)
    run(load(checkpoint), PIPELINE)
    assert len(held) > 5 and not any(held)


def test_threads_change_no_bit(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ir.quant.statistics.drift.SLAB", 24)
    monkeypatch.setattr("passes.calibration.recalibrate.TOGETHER", 2)
    found = []
    with ThreadPoolExecutor(3) as threads:
        for executor in (SERIAL, threads):
            monkeypatch.setenv("LADING_CACHE", str(tmp_path / f"{len(found)}"))
            graph = load(checkpoint)
            PassManager(load_pipeline(PIPELINE)).run(graph, PassContext(TEXT, executor=executor))
            found.append(statistics(graph))
    assert found[0].keys() == found[1].keys()
    for name, one in found[0].items():
        for part in ("second", "drift", "lag"):
            first, second = (getattr(moments, part) for moments in (one, found[1][name]))
            assert first is second is None or np.array_equal(first, second), (name, part)


@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_statistics_do_not_depend_on_the_executor(
    kind: str, checkpoint: Path, processes: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assign = ASSIGN if kind == "dense" else ASSIGN.replace("embedding-bits=8", "embedding-bits=32")
    text = CalibrationText(tuple(window % VOCAB for window in WINDOWS), ()) if kind == "mixture" else TEXT
    found = []
    for number, executor in enumerate((SERIAL, Spread(processes, 2), Spread(processes, 2, shares_files=False))):
        monkeypatch.setenv("LADING_CACHE", str(tmp_path / str(number)))
        graph = load(checkpoint) if kind == "dense" else mixture_model(4, 2, dead=1, layers=2)
        PassManager(f"infer-types,calibrate,{assign},recalibrate{{memory=1}}").run(
            graph, PassContext(text, executor=executor)
        )
        found.append({path.name: path.read_bytes() for path in (tmp_path / str(number) / "moments").iterdir()})
        assert not list((tmp_path / str(number) / "running").iterdir())
    assert len(found[0]) > 10
    assert found[1] == found[0] and found[2] == found[0]


def test_experts_of_a_layer_are_followed_together() -> None:
    graph = mixture_model(4, 2, layers=2)
    into = [{value.name for value in node.outputs} for node in graph.nodes if node.op == "lading.Dispatch"]
    down = [
        {n.operand(0).name for n in graph.nodes if n.op == "MatMul" and is_down(n.operand(1).name, layer)}
        for layer in range(2)
    ]
    assert list(map(len, into + down)) == [4] * 4
    names = sorted(set().union(*into, *down))
    evaluator = Evaluator(graph, names, keep=False, ends=names)
    made = [{value.name for value in segment.outputs} & set(names) for segment in evaluator.segments]
    assert [item for item in made if item] == [into[0], down[0], into[1], down[1]]
    feeds = window_feeds(graph, [window % VOCAB for window in WINDOWS])
    track, found = evaluator.track(feeds), {}
    for place in range(len(made)):
        evaluator.advance(place, [track], lambda _, number, name, array: found.update({(number, name): array.copy()}))
    for number, wanted in enumerate(Evaluator(graph, names).run_many(feeds)):
        for name in names:
            np.testing.assert_allclose(found[number, name], wanted[name], rtol=1e-4, atol=1e-5)


def is_down(name: str, layer: int) -> bool:
    return name.startswith(f"model.layers.{layer}.mlp.experts.") and "down_proj" in name


# ---- runs that were stopped ----


def test_a_stopped_run_goes_on_and_ends_alike(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(load(checkpoint), f"infer-types,calibrate,{ASSIGN}")
    done: list[int] = []
    stop: list[int] = [5]
    advance = Evaluator.advance

    def counted(evaluator: Evaluator, place: int, *given: object) -> None:
        if place in stop:
            raise KeyboardInterrupt
        done.append(place)
        advance(evaluator, place, *given)

    monkeypatch.setattr(Evaluator, "advance", counted)
    with pytest.raises(KeyboardInterrupt):
        run(load(checkpoint), PIPELINE)
    assert done == list(range(5)) and list((tmp_path / "cache" / "running").iterdir())
    stop.clear()
    graph = load(checkpoint)
    run(graph, PIPELINE)
    assert done[5] == 5 and sorted(set(done)) == done
    assert not list((tmp_path / "cache" / "running").iterdir())
    found = statistics(graph)
    # What went missing lies before, so the whole is done again, for that alone.
    key = graph.required_fact(Calibration).keys[LAYER.format(0) + "mlp.up_proj.weight"]
    for name in ("moments", "quantized"):
        for path in (tmp_path / "cache" / name).iterdir():
            if name == "quantized" or path.stem == key:
                default_store().remove(f"{name}/{path.stem}")
    assert run(load(checkpoint), PIPELINE)["computed"] == 1
    monkeypatch.setenv("LADING_CACHE", str(tmp_path / "fresh"))
    again = load(checkpoint)
    run(again, PIPELINE)
    for name, moments in statistics(again).items():
        for part in ("second", "drift", "lag"):
            np.testing.assert_array_equal(getattr(moments, part), getattr(found[name], part))


# ---- refusals ----


def test_a_method_that_follows_needs_the_pass(checkpoint: Path) -> None:
    with pytest.raises(LadingError) as error:
        run(load(checkpoint), f"infer-types,calibrate,{ASSIGN},insert-qdq")
    assert error.value.code == "Q490" and "gptaq" in str(error.value) and "recalibrate" in str(error.value)


def test_both_passes_need_the_same_text(checkpoint: Path) -> None:
    graph = load(checkpoint)
    run(graph, f"infer-types,calibrate,{ASSIGN}")
    with pytest.raises(LadingError) as error:
        run(graph, "recalibrate", CalibrationText(WINDOWS[:1], ()))
    assert error.value.code == "Q491"


def test_values_that_are_not_finite_are_told(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ir.quant.statistics.drift.DriftSums.is_finite", property(lambda self: False))
    with pytest.raises(LadingError) as error:
        run(load(checkpoint), PIPELINE)
    assert error.value.code == "Q436" and "once weights before it are quantized" in str(error.value)
