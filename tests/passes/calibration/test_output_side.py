"""Steps behind the choice of widths: statistics of outputs and of what is quantized, and what is recorded of both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backends.described import calibration
from frontends.checkpoint.load import load
from ir.base.diag import LadingError
from ir.evaluate.replaced_weights import divergences
from ir.facts.calibration import Calibration
from ir.facts.precision import PrecisionPlan
from ir.facts.tuning import Tuning
from ir.quant.statistics.moments import CalibrationText, MomentStore, parts_of
from ir.quant.stored_weight import storage_of
from passes.calibration.planned import stored_as_planned
from passes.framework.context import PassContext
from passes.framework.load import load as load_pipeline
from passes.framework.manager import PassManager
from passes.precision.plan_file import write_plan
from tests.support.checkpoints import make_checkpoint
from tests.support.families.checkpoints import kept

RNG = np.random.default_rng(5)
TEXT = CalibrationText(
    tuple(RNG.integers(0, 320, 96).astype(np.int32) for _ in range(12)),
    tuple(RNG.integers(0, 320, 96).astype(np.int32) for _ in range(8)),
)
OTHER = [RNG.integers(0, 320, 96).astype(np.int32) for _ in range(8)]
START = "infer-types,calibrate,assign-precision{method=gptq bits=6 block=32}"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch, request) -> Path:
    folder = request.getfixturevalue("shared_cache")
    monkeypatch.setenv("LADING_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), "qwen2", num_hidden_layers=2)


def run(folder: Path, pipeline: str):
    graph, ctx = load(folder), PassContext(TEXT)
    report = PassManager(load_pipeline(pipeline)).run(graph, ctx)
    return graph, report


def kl(graph) -> float:
    return divergences(graph, OTHER, [stored_as_planned(graph, graph.required_fact(PrecisionPlan))])[0].kl


def test_statistics_of_outputs_are_those_of_torch(checkpoint):
    """The second moments of the gradients of the log likelihood of tokens that the model draws."""
    import torch
    from transformers import AutoModelForCausalLM

    graph, report = run(checkpoint, f"{START},calibrate-outputs{{gradient-tokens=1152}}")
    assert report.passes[-1].counts["weights"] == 14
    keys = graph.required_fact(Calibration).keys
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    name = "model.layers.1.self_attn.o_proj"
    outputs = []
    model.get_submodule(name).register_forward_hook(lambda module, given, made: outputs.append(made))
    generator = torch.Generator().manual_seed(0)
    draws, total = 8, 0.0
    for window in TEXT.calibration:
        logits = model(torch.from_numpy(window.astype(np.int64))[None]).logits[0]
        for _ in range(draws):
            tokens = torch.multinomial(torch.softmax(logits.detach(), -1), 1, generator=generator)
            value = torch.log_softmax(logits, -1).gather(-1, tokens).sum()
            (gradient,) = torch.autograd.grad(value, outputs[-1], retain_graph=True)
            rows = gradient[0].double().numpy()
            total = total + rows.T @ rows
    wanted = total / draws / sum(map(len, TEXT.calibration))
    (key,) = parts_of(keys[f"{name}.weight"])[1:]
    found = MomentStore().load(key).second
    assert np.trace(found) == pytest.approx(np.trace(wanted), rel=0.15)
    alike = np.sum(found * wanted) / np.linalg.norm(found) / np.linalg.norm(wanted)
    assert alike > 0.95


def test_both_steps_come_nearer_to_the_float_model_on_text_that_neither_saw(checkpoint):
    plain, _ = run(checkpoint, START)
    followed, _ = run(checkpoint, f"{START.replace('gptq', 'gptaq')},recalibrate")
    sided, _ = run(checkpoint, f"{START},calibrate-outputs")
    both, _ = run(checkpoint, f"{START},calibrate-outputs,recalibrate")
    assert kl(both) < min(kl(followed), kl(sided)) < max(kl(followed), kl(sided)) < kl(plain)
    assert {item.method for item in both.required_fact(PrecisionPlan).storage.values()} == {"yaqa", "gptq"}
    fact = both.required_fact(Calibration)
    name = "model.layers.1.mlp.down_proj.weight"
    own, outputs = parts_of(fact.keys[name])
    assert name in fact.behind and outputs == parts_of(sided.required_fact(Calibration).keys[name])[1]
    assert MomentStore().load(own).lag is not None
    steps = both.required_fact(Tuning).steps
    assert [(step.step, step.kept) for step in steps] == [("calibrate-outputs", True), ("recalibrate", True)]
    assert steps[0].after == steps[1].before
    assert [(item.step, item.kl_after, item.kept) for item in calibration(both).steps] == [
        (step.step, step.after, True) for step in steps
    ]
    again, report = run(checkpoint, f"{START},calibrate-outputs,recalibrate")
    assert [entry.counts["computed"] for entry in report.passes[-2:]] == [0, 0]
    assert again.required_fact(Tuning) == both.required_fact(Tuning)
    run_on = PassManager(load_pipeline("insert-qdq"))
    wanted = stored_as_planned(both, both.required_fact(PrecisionPlan))[name].load()
    run_on.run(both, PassContext(TEXT))
    stored = storage_of(both.value(name), matmul=True).quantized
    assert np.array_equal(stored.dequantized().load().T, wanted)


def test_a_measured_plan_is_measured_again_after_each_step_and_can_be_taken_up(checkpoint, tmp_path):
    assign = "assign-precision{method=gptaq budget=6bpw widths=[4,6] blocks=[32] rounds=0}"
    found = []
    for steps in ("", ",calibrate-outputs", ",calibrate-outputs,recalibrate"):
        graph, _ = run(checkpoint, f"infer-types,calibrate,{assign}{steps}")
        found.append(graph.required_fact(PrecisionPlan).outcome)
    assert found[2].measured < found[1].measured < found[0].measured
    assert len({item.bytes for item in found}) == 1
    last = graph.required_fact(Tuning).steps[-1]
    assert (last.before, last.after) == (found[1].measured, found[2].measured)
    plan = graph.required_fact(PrecisionPlan)
    assert {plan.storage[w].method for w in plan.storage if "layers" in w} == {"yaqa"}
    write_plan(plan, tmp_path / "plan.toml")
    given = f'assign-precision{{plan="{tmp_path / "plan.toml"}"}}'
    again, _ = run(checkpoint, f"infer-types,calibrate,{given},calibrate-outputs,recalibrate")
    assert again.required_fact(PrecisionPlan).storage == plan.storage
    assert again.required_fact(Calibration).keys == graph.required_fact(Calibration).keys


def test_what_gains_nothing_is_left_out_and_told(checkpoint):
    graph, _ = run(checkpoint, "infer-types,calibrate,assign-precision{budget=6bpw widths=[4,6] blocks=[32] rounds=0}")
    plan, fact = graph.required_fact(PrecisionPlan), graph.required_fact(Calibration)
    plan = replace(plan, outcome=replace(plan.outcome, measured=1e-9))
    graph.set_fact(PrecisionPlan.name, plan)
    report = PassManager(load_pipeline("calibrate-outputs")).run(graph, PassContext(TEXT))
    (step,) = graph.required_fact(Tuning).steps
    assert not step.kept and step.before == 1e-9 < step.after
    assert graph.required_fact(PrecisionPlan) == plan and graph.required_fact(Calibration) == fact
    assert [item.code for item in report.passes[-1].diagnostics] == ["Q494"]
    assert "gain nothing on held-out text" in report.passes[-1].diagnostics[0].message


def test_the_method_is_not_chosen_by_name(checkpoint):
    with pytest.raises(LadingError) as caught:
        run(checkpoint, "infer-types,calibrate,assign-precision{method=yaqa}")
    assert caught.value.code == "Q413" and "calibrate-outputs" in str(caught.value)


def test_mixtures_are_refused(tmp_path):
    folder = kept(tmp_path, "qwen3_moe", tokenizer=False)[0]
    with pytest.raises(LadingError) as caught:
        run(folder, f"{START},calibrate-outputs")
    assert caught.value.code == "Q493"
