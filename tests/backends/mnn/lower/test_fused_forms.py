"""The fused forms of MNN 3.6.1: what they mean, when they are used, and that models with them are right."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from backends.mnn.dialect.table import FORM_OF, FORMS, fused_forms
from backends.mnn.doctor.examine import examine
from backends.mnn.lower.fuse import RULES, FuseMnn
from backends.mnn.lower.legalize import LegalizeMnn
from backends.mnn.run import native
from backends.mnn.target.releases import PROFILES, RELEASES, target
from frontends.checkpoint.load import load
from ir.base.diag import LadingError
from ir.evaluate.evaluator import evaluate
from ir.facts.inputs import DynamicInputs
from ir.graph.graph import Graph
from ir.infer.engine import infer_node
from passes.framework.manager import PassManager
from passes.framework.options import options_of
from tests.support.checkpoints import make_checkpoint
from tests.support.runs import (
    compiled,
    each_release,
    interpreters,
    logits_of,
    pieces,
    run_actions,
    torch_logits,
    torch_model,
)
from tests.whole.test_end_to_end import BAR, CASES, EXAMPLE, Case, decoded_reference
from tools.compile.job import Request, compile_model
from tools.repair.command import repair

NEWEST = [param for param in each_release() if param.values[0] == "3.6.1"]
BEFORE = [param for param in each_release() if param.values[0] == "3.6.0"]
ALL = tuple(FORMS)
IDS = np.random.default_rng(8).integers(3, 320, 20)

needs_newest = pytest.mark.parametrize("version", NEWEST)


def lowered(source, pipeline: str) -> Graph:
    """A checkpoint as an MNN graph."""
    graph = load(source)
    PassManager(pipeline).run(graph)
    return graph


def logits(graph: Graph, ids) -> np.ndarray:
    """What the definitions of a graph's operators say."""
    feeds = graph.required_fact(DynamicInputs).feeds(graph, ids)
    adapter = LegalizeMnn().adapter(graph)
    return evaluate(graph, adapter.adapt_feeds(feeds, graph) if adapter else feeds)["logits"][0]


def kinds(folder) -> Counter[str]:
    """Operators of a written model; those with a fused parameter under a name of their own."""
    found: Counter[str] = Counter()
    for op in json.loads(native.mnn_to_json(folder / "llm.mnn"))["oplists"]:
        main = op.get("main", {})
        found[op["type"]] += 1
        found["MUL_SILU"] += main.get("opType") == "MUL_SILU"
        found["output_c4"] += bool(main.get("output_c4"))
        found["head norms"] += "q_norm" in main and "k_norm" in main
        found["packed norm"] += op["type"] == "LayerNorm" and op.get("defaultDimentionFormat") == "NC4HW4"
        found["sum with norm"] += op["type"] == "LayerNorm" and len(op["inputIndexes"]) == 2
    return found


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Small checkpoints by family, made when first asked for."""
    made = {}

    def get(family: str, **config):
        key = (family, *sorted(config.items()))
        if key not in made:
            made[key] = make_checkpoint(tmp_path_factory.mktemp(family) / "model", family, seed=3, **config)
        return made[key]

    return get


# ---- the pass ----


def test_nothing_is_fused_without_a_target(sources):
    graph = lowered(sources("qwen2"), "fp32")
    version = graph.version
    assert PassManager("fuse-mnn").run(graph).passes[0].changed is False
    assert graph.version == version and not any(node.op in FORM_OF for node in graph.nodes)


def test_forms_have_one_name_in_the_pass_and_in_the_profiles():
    choices = {form for form in options_of(FuseMnn)["fuse"].choices if form != "auto"}
    assert choices == set(RULES) == set(FORMS) == set(FORM_OF.values())


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "mistral"])
@pytest.mark.parametrize("forms", [*ALL, "rope,packed-attention", ",".join(ALL)])
def test_each_form_keeps_the_numbers(sources, family, forms):
    plain = lowered(sources(family), "fp32")
    fused = lowered(sources(family), f"fp32{{fuse=[{forms}]}}")
    used = {FORM_OF[node.op] for node in fused.nodes if node.op in FORM_OF}
    # Rotated queries come in another format, which attention hands on unless it packs its result.
    assert used == set(forms.split(",")) - ({"rope"} if forms == "rope" else set())
    assert np.abs(logits(fused, IDS) - logits(plain, IDS)).max() < 1e-4
    for node in fused.nodes:
        if node.op in FORM_OF:
            assert [value.type for value in node.outputs] == list(infer_node(node))


def test_nothing_is_left_between_the_fused_operators(sources):
    layers = 3
    graph = lowered(sources("qwen3", num_hidden_layers=layers), f"fp32{{fuse=[{','.join(ALL)}]}}")
    found = Counter(node.op.removeprefix("mnn.") for node in graph.nodes)
    wanted = {"Convolution": 7 * layers + 1, "RoPE": layers, "PackedAttention": layers, "MulSilu": layers}
    assert {op: found[op] for op in wanted} == wanted
    # The first norm has no sum before it, and the rows are chosen between the last sum and the last norm.
    assert (found["PackedNorm"], found["AddNorm"], found["LayerNorm"]) == (2, 2 * layers - 1, 0)
    assert found["ConvertTensor"] == 2 and found["Concat"] == 2 and found["Slice"] == found["Attention"] == 0


def test_fusing_twice_changes_nothing(sources):
    forms = f"fuse=[{','.join(ALL)}]"
    once = lowered(sources("qwen3"), f"fp32{{{forms}}}")
    version = once.version
    PassManager(f"fuse-mnn{{{forms}}}").run(once)
    assert once.version == version


def test_channels_that_leave_packs_unfilled_stay_plain(sources):
    odd = {"hidden_size": 60, "intermediate_size": 118, "num_attention_heads": 6, "vocab_size": 321}
    graph = lowered(sources("qwen2", **odd), f"fp32{{fuse=[{','.join(ALL)}]}}")
    found = {node.op for node in graph.nodes}
    assert {"mnn.LayerNorm", "mnn.Attention", "mnn.MulSilu"} <= found
    assert not found & {"mnn.PackedNorm", "mnn.AddNorm", "mnn.PackedAttention", "mnn.RoPE"}


# ---- targets ----


def test_which_releases_have_the_forms():
    assert {version for version, release in PROFILES.items() if fused_forms([release])} == {"3.6.1"}
    assert set(fused_forms(target("3.6.1").releases)) == set(FORMS)
    assert fused_forms(target("portable").releases) == fused_forms(target(">=3.6").releases) == ()


@pytest.mark.parametrize("form", [form for form in ALL if form != "rope"])
def test_forms_that_a_release_lacks_are_refused(sources, tmp_path, form):
    request = Request(str(sources("qwen2")), tmp_path / "out", f"fp32{{fuse=[{form}]}}", target=">=3.6", verify="none")
    with pytest.raises(LadingError) as caught:
        compile_model(request)
    assert caught.value.code == "B696" and form in str(caught.value) and "3.6.0" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_newest_target_uses_every_form_and_others_none(sources, tmp_path):
    source = sources("qwen3")
    newest = kinds(compiled(source, tmp_path / "newest", "fp32", target="3.6.1"))
    layers = newest["Attention"]
    named = ("RoPE", "head norms", "output_c4", "MUL_SILU")
    assert [newest[kind] for kind in named] == [layers] * len(named)
    assert newest["packed norm"] == newest["LayerNorm"] == 2 * layers + 1
    assert newest["sum with norm"] == 2 * layers - 1
    plain = kinds(compiled(source, tmp_path / "portable", "fp32"))
    assert not any(plain[kind] for kind in (*named, "packed norm", "sum with norm"))


# ---- on the runtime ----


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """Each checkpoint of the end-to-end test, compiled for the newest release."""
    return Case(request.param, tmp_path_factory.mktemp(request.param), target="3.6.1")


@needs_newest
def test_logits_and_greedy_tokens_are_those_of_torch(case, version):
    prefill, parts, greedy = case.run(version)
    assert np.abs(case.logits).max() > 5
    assert np.abs(logits_of(prefill) - case.logits).max() <= BAR
    assert np.abs(logits_of(parts) - case.within).max() <= BAR
    assert greedy["ids"] == case.greedy


@needs_newest
def test_two_threads_and_a_second_prompt_give_the_same(case, version):
    first, second = case.ids[:17], case.ids[5:34]
    again = [pieces(second), pieces(first[:9], first[9:])]
    results = run_actions(case.folder, version, again, thread_num=2)
    wanted = [torch_logits(case.model, ids) for ids in (second, first)]
    assert max(np.abs(logits_of(got) - ref).max() for got, ref in zip(results, wanted, strict=True)) <= BAR


@needs_newest
def test_the_one_row_that_generation_asks_for_is_the_last(case, version):
    actions = [pieces(case.ids[:13], case.ids[13:14], case.ids[14:25])]
    (result,) = run_actions(case.folder, version, actions, all_logits=False)
    assert [rows.shape[0] for rows in result["logits"]] == [1, 1, 1]
    assert np.abs(logits_of(result) - case.within[[12, 13, 24]]).max() <= BAR


@needs_newest
@pytest.mark.parametrize("pipeline", ["fp16", "int8", "int4", "default", "default{bits=3}", "int8{block=0 symmetric}"])
def test_stored_weights_compute_what_they_decode_to(tmp_path, pipeline, version):
    ids = np.random.default_rng(2).integers(3, 2048, 40)
    folder = compiled(EXAMPLE, tmp_path / "out", pipeline, target="3.6.1")
    assert kinds(folder)["RoPE"] > 0
    (result,) = run_actions(folder, version, [pieces(ids[:20], *([token] for token in ids[20:]))])
    assert np.abs(logits_of(result) - decoded_reference(folder, pipeline, ids)).max() <= BAR


@pytest.mark.parametrize("version", BEFORE)
@pytest.mark.parametrize("forms", ["mul-silu", "packed-norm", "packed-attention", "rope,packed-attention"])
def test_the_release_before_gets_each_form_wrong(sources, tmp_path, forms, version):
    source = sources("qwen2")
    folder = compiled(source, tmp_path / "out", f"fp32{{fuse=[{forms}]}}", target="3.6.1")
    config = folder / "config.json"
    run = native.run_model(config, [pieces(IDS)], overrides=native.EXACT_CONFIG, interpreter=interpreters()[version])
    if run.failure is None and run.results[0] is not None:
        wanted = torch_logits(torch_model(source), IDS)
        assert np.abs(logits_of(run.results[0]) - wanted).max() > 1


@needs_newest
def test_verification_passes(sources, tmp_path, version):
    request = Request(str(sources("qwen3")), tmp_path / "out", "int8", target="3.6.1", verify="quick")
    assert compile_model(request).verification is not None


# ---- doctor and repair ----


def test_the_doctor_says_which_release_and_why(sources, tmp_path):
    folder = compiled(sources("qwen2", tie_word_embeddings=True), tmp_path / "out", "int8{scale=f32}", target="3.6.1")
    report = examine(folder, tuple(RELEASES.values()))
    assert [version for version in RELEASES if report.healthy_on(version)] == ["3.6.1"]
    assert {item.code for item in report.problems("3.6.0")} == {"B716", "B718", "B720"}


@needs_newest
@pytest.mark.parametrize("pipeline", ["fp32", "int4"])
def test_repair_brings_a_fused_model_to_all_releases(sources, tmp_path, pipeline, version):
    source = sources("qwen3")
    fused = compiled(source, tmp_path / "fused", pipeline, target="3.6.1")
    done = repair(fused, tmp_path / "repaired")
    assert (done.before, done.after) == (["3.6.1"], list(RELEASES))
    (wanted,) = run_actions(fused, version, [pieces(IDS)])
    for other in interpreters():
        (got,) = run_actions(tmp_path / "repaired", other, [pieces(IDS)])
        assert np.abs(logits_of(got) - logits_of(wanted)).max() <= BAR
