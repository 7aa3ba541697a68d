"""Statistics, prices and storage of the weights of experts, of those too that the text hardly reaches or not at all."""

from __future__ import annotations

import numpy as np
import pytest

from ir.evaluate.evaluator import evaluate
from ir.facts.calibration import Calibration
from ir.facts.precision import PrecisionPlan
from ir.facts.sensitivity import Sensitivity
from ir.graph.graph import Graph
from ir.quant.statistics.moments import CalibrationText, MomentStore
from ir.target.target import Target
from ir.text.parser import parse
from ir.text.printer import print_graph
from passes.calibration.calibrate import entries_of
from passes.framework.context import PassContext
from passes.framework.manager import PassManager
from passes.precision.measured import prices
from passes.precision.measured.probes import _Work
from passes.precision.mixtures import routers_of, seats_of
from passes.precision.planned_weights import weights_of
from tests.support.decoders.mixtures import VOCAB, WIDTH, mixture_model

AT = "model.layers.0.mlp"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache folder of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LADING_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def text(windows: int = 6, length: int = 48) -> CalibrationText:
    rng = np.random.default_rng(5)
    made = [rng.integers(0, VOCAB, length).astype(np.int32) for _ in range(windows)]
    return CalibrationText(tuple(made[: windows // 2]), tuple(made[windows // 2 :]))


def run(graph: Graph, pipeline: str, given: CalibrationText | None = None) -> PassContext:
    ctx = PassContext(given or text(), Target())
    PassManager(pipeline).run(graph, ctx, given=("typed", "signature"))
    return ctx


def hidden_rows(graph: Graph, windows) -> np.ndarray:
    router = graph.value(f"{AT}.gate.weight").users[0]
    found = [
        evaluate(graph, {"input_ids": w[None].astype(np.int64)}, outputs=[router.operand(0).name]) for w in windows
    ]
    return np.concatenate([next(iter(item.values()))[0] for item in found])


def test_weights_of_experts_have_a_place_and_routers_a_role_of_their_own():
    graph = mixture_model(3, 2, layers=2)
    weights = {weight.name: weight for weight in weights_of(graph)}
    assert {name for name, weight in weights.items() if weight.role == "router"} == {
        f"model.layers.{layer}.mlp.gate.weight" for layer in range(2)
    }
    groups: dict[str, list[str]] = {}
    for name, weight in weights.items():
        if weight.seat is not None:
            assert weight.seat.share == pytest.approx(2 / 3) and f".experts.{weight.seat.expert}." in name
            groups.setdefault(weight.seat.group, []).append(name.split(".")[-2])
    assert sorted(map(tuple, groups.values())) == sorted(
        [(kind,) * 3 for kind in ("gate_proj", "up_proj", "down_proj")] * 2
    )
    assert routers_of(mixture_model()) and not seats_of(Graph("none"))


def test_statistics_of_an_expert_are_those_of_the_tokens_that_chose_it():
    graph = mixture_model(4, 2)
    ctx = run(graph, "calibrate")
    fact = graph.required_fact(Calibration)
    assert ctx.diagnostics == [] and not fact.instead
    tokens = sum(map(len, text().calibration))
    assert sum(fact.reached[f"{AT}.experts.{e}.gate_proj.weight"] for e in range(4)) == 2 * tokens
    dispatch = next(node for node in graph.nodes if node.op == "lading.Dispatch")
    rows = np.concatenate(
        [
            evaluate(graph, {"input_ids": w[None].astype(np.int64)}, outputs=[dispatch.outputs[1].name])[
                dispatch.outputs[1].name
            ][0]
            for w in text().calibration
        ]
    )
    moments = MomentStore().load(fact.keys[f"{AT}.experts.1.up_proj.weight"])
    assert moments.tokens == len(rows) == fact.reached[f"{AT}.experts.1.up_proj.weight"]
    np.testing.assert_allclose(moments.second, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)


def test_an_expert_that_no_token_reaches_gets_what_enters_its_layer_and_even_statistics_behind():
    graph = mixture_model(4, 2, dead=1)
    for _ in range(2):  # the second run finds everything kept
        ctx = run(graph, "calibrate")
        fact = graph.required_fact(Calibration)
        (warned,) = ctx.diagnostics
        assert (warned.code, warned.severity) == ("Q482", "warning")
        assert "reaches 3 of 4 experts; of the others, 2 matrices" in warned.message and "and 1 as if" in warned.message
    lost = f"{AT}.experts.3"
    assert fact.instead == {
        f"{lost}.gate_proj.weight": "layer", f"{lost}.up_proj.weight": "layer", f"{lost}.down_proj.weight": "even",
    }  # fmt: skip
    assert {name for name, count in fact.reached.items() if not count} == set(fact.instead)
    store = MomentStore()
    layer = store.load(fact.keys[f"{lost}.up_proj.weight"])
    rows = hidden_rows(graph, text().calibration)
    np.testing.assert_allclose(layer.second, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)
    even = store.load(fact.keys[f"{lost}.down_proj.weight"])
    level = np.mean([store.load(fact.keys[f"{AT}.experts.{e}.down_proj.weight"]).diagonal.mean() for e in range(3)])
    np.testing.assert_allclose(even.second, level * np.eye(64), rtol=1e-5)
    assert even.tokens == 0
    again = parse(print_graph(graph))
    assert again.required_fact(Calibration) == fact


def test_without_a_router_over_the_same_rows_nothing_stands_in():
    """The rows of the layer are known where a matrix reads them, as a router does."""
    graph = mixture_model(4, 2, dead=1)
    router = graph.value(f"{AT}.gate.weight").users[0]
    other = graph.add("Mul", [router.operand(0), router.operand(0)], before=router)
    graph.set_input(router, 0, other.output)
    run(graph, "infer-types,calibrate")
    assert set(graph.required_fact(Calibration).instead.values()) == {"even"}


@pytest.mark.parametrize("method", ["gptaq", "gptq", "hqq", "clip", "rtn"])
def test_every_method_stores_the_weights_of_experts(method):
    graph = mixture_model(4, 2, dead=1)
    feeds = {"input_ids": text().held_out[0][None].astype(np.int64)}
    (want,) = evaluate(graph, feeds).values()
    run(graph, f"calibrate,assign-precision{{bits=6 method={method} embedding-bits=32}},recalibrate,insert-qdq")
    plan = graph.required_fact(PrecisionPlan)
    assert plan.storage[f"{AT}.gate.weight"].bits == 16
    assert {item.bits for name, item in plan.storage.items() if ".experts." in name} == {6}
    (got,) = evaluate(graph, feeds).values()
    assert 0 < np.abs(got - want).max() < 0.2 * np.abs(want).max()


def test_experts_of_a_layer_are_probed_together_and_priced_by_their_use(monkeypatch):
    graph = mixture_model(6, 2, dead=1)
    asked: list[int] = []
    measure = prices.Meter.measure
    monkeypatch.setattr(
        prices.Meter, "measure",
        lambda self, variants, *rest: asked.append(len(variants)) or measure(self, variants, *rest),
    )  # fmt: skip
    ctx = run(graph, "calibrate,assign-precision{budget=4.5bpw widths=[3,4,6] blocks=[32] rounds=0}")
    (note,) = ctx.diagnostics
    assert (note.code, note.severity) == ("Q483", "note") and note.message.startswith("3 matrices")
    # The router, three places in the experts, and the logits matrix, each at two widths.
    assert asked[0] == 2 * (1 + 3 + 1)
    found = {item.name: item for item in graph.required_fact(Sensitivity).weights}
    use = graph.required_fact(Calibration).reached
    for kind in ("gate_proj", "up_proj", "down_proj"):
        names = [f"{AT}.experts.{e}.{kind}.weight" for e in range(6)]
        lost, others = found[names[-1]], [found[name] for name in names[:-1]]
        rates = [item.curve[0].loss / item.curve[0].error / use[item.name] for item in others]
        assert np.allclose(rates, rates[0], rtol=1e-4), "an error costs as much as it is met"
        mean = sum(use[name] for name in names) / 6
        assert lost.curve[0].loss / lost.curve[0].error == pytest.approx(rates[0] * 0.1 * mean, rel=1e-4)


def test_work_counts_experts_for_the_tokens_that_they_see():
    graph = mixture_model(8, 2)
    dense = 2.0 * (WIDTH * 8 + WIDTH * VOCAB)
    assert _Work(graph).of([]) == pytest.approx(dense + 2.0 * 2 * 3 * WIDTH * 64)


def test_each_expert_has_statistics_of_its_own_place():
    entries = entries_of(mixture_model(4, 2), text().calibration)
    assert sorted(len(entry.weights) for entry in entries) == [1] * 6 + [2] * 4
