"""Decoders of every family, in the canonical form, give the logits that their graph says, on old and new releases."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backends.mnn.dialect.table import FORM_OF
from backends.mnn.doctor.examine import examine
from backends.mnn.run.native import mnn_to_json
from backends.mnn.target.releases import RELEASES
from ir.base.diag import LadingError
from ir.evaluate.evaluator import evaluate
from ir.facts.model_card import ModelCard
from ir.infer.engine import infer_types
from ir.onnx.export import write_model
from passes.framework.manager import PassManager
from tests.support.decoders.families import FORMS
from tests.support.decoders.forms import CONTEXT, VOCABULARY, Form, decoder, logits_in_pieces, written
from tests.support.runs import each_release
from tools.compile.job import Request, compile_model

BAR = 1e-5
"""Largest difference over the largest logit."""

PIPELINE = "infer-types,spell-linears,fp32"

IDS = np.random.default_rng(3).integers(0, VOCABULARY, 30)
PIECES = ([IDS[:13], IDS[13:14], IDS[14:16], IDS[16:17], IDS[17:]], [IDS[:1], IDS[1:2], IDS[2:4]])
"""Prefill and what follows it, and a prefill of one token."""

OUTER = [param for param in each_release() if param.values[0] in ("3.4.0", "3.6.1")]
NEWEST = [param for param in OUTER if param.values[0] == "3.6.1"]


@pytest.fixture(scope="module", params=FORMS)
def family(request, tmp_path_factory):
    """Where one decoder is written, for all releases and for the newest, and its logits."""
    folder = tmp_path_factory.mktemp("family")
    graph = decoder(FORMS[request.param], seed=1)
    infer_types(graph)
    (logits,) = evaluate(graph, {"input_ids": IDS[None]}).values()
    written(graph, folder / "portable", PIPELINE)
    written(decoder(FORMS[request.param], seed=1), folder / "newest", PIPELINE, target="3.6.1")
    return folder, logits[0]


def distance(folder: Path, version: str, logits: np.ndarray) -> float:
    found = 0.0
    for pieces in PIECES:
        got = logits_in_pieces(folder, version, pieces)
        found = max(found, float(np.abs(got - logits[: len(got)]).max() / np.abs(logits).max()))
    return found


@pytest.mark.parametrize("version", OUTER)
def test_logits_are_those_of_the_graph(family, version):
    folder, logits = family
    assert distance(folder / "portable", version, logits) < BAR


@pytest.mark.parametrize("version", NEWEST)
def test_fused_forms_give_the_same(family, version):
    folder, logits = family
    assert distance(folder / "newest", version, logits) < BAR


def test_the_doctor_finds_nothing_on_any_release(family):
    folder, _ = family
    report = examine(folder / "portable", tuple(RELEASES.values()))
    assert [version for version in RELEASES if report.healthy_on(version)] == list(RELEASES)


@pytest.mark.parametrize(("name", "window"), [("gpt-oss", 5), ("sinks without windows", 1 << 30)])
def test_sinks_need_a_mask_that_is_spelled_out(name, window, tmp_path):
    written(decoder(FORMS[name]), tmp_path / "out")
    path = tmp_path / "out" / "llm_config.json"
    config = json.loads(path.read_text())
    assert (config["attention_type"], config["sliding_window"]) == ("mix", window)
    path.write_text(json.dumps({**config, "attention_type": "full"}))
    found = [item for item in examine(tmp_path / "out", tuple(RELEASES.values())).findings if item.code == "B727"]
    assert len(found) == 1 and "sinks" in found[0].message


def test_norms_with_shifts_and_narrow_rotations_are_fused(tmp_path):
    graph = written(decoder(FORMS["stablelm2"]), tmp_path / "out", target="3.6.1")
    assert {FORM_OF[node.op] for node in graph.nodes if node.op in FORM_OF} == set(FORM_OF.values())


@pytest.mark.parametrize("name", ["gemma3", "granite", "gpt-oss"])
def test_rotations_are_fused_whatever_the_scale_of_the_scores(name, tmp_path):
    graph = written(decoder(FORMS[name]), tmp_path / "out", target="3.6.1")
    ops = [node.op for node in graph.nodes]
    assert ops.count("mnn.RoPE") == ops.count("mnn.PackedAttention") + ops.count("mnn.Attention") == 2


def test_large_tables_lie_in_the_weight_file(tmp_path):
    written(decoder(FORMS["tables of numbers"]), tmp_path / "out")
    found = [
        op["main"] for op in json.loads(mnn_to_json(tmp_path / "out" / "llm.mnn"))["oplists"] if op["type"] == "Const"
    ]
    large = [main for main in found if main["dims"] == [CONTEXT, 8]]
    assert [len(main["external"]) for main in large] == [2, 2] and not any(main.get("float32s") for main in large)


@pytest.mark.parametrize("name", ["tables of numbers", "tables by rows of numbers", "llama"])
def test_sequences_are_no_longer_than_a_table(name):
    graph = decoder(FORMS[name])
    PassManager(PIPELINE).run(graph)
    assert ModelCard.of(graph).context == (None if name == "llama" else CONTEXT)


def test_windows_of_two_widths_are_refused(tmp_path):
    with pytest.raises(LadingError) as caught:
        written(decoder(Form(windows=(5, 9))), tmp_path / "out")
    assert caught.value.code == "P354" and not (tmp_path / "out").exists()


def test_a_cap_of_scores_is_refused_by_name_with_what_computes_it(tmp_path):
    with pytest.raises(LadingError) as caught:
        written(decoder(Form(score_cap=50.0)), tmp_path / "out")
    assert caught.value.code == "P373" and "softcap 50" in str(caught.value) and "--to onnx" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "pipeline", "target"),
    [("phi", "default", None), ("phi", "int8", "3.6.1"), ("cohere", "int4", "3.6.1"), ("cohere", "int8", None)],
)
def test_quantized_weights_pass_verification(tmp_path, name, pipeline, target):
    graph = decoder(replace(FORMS[name], hidden=128, inner=192))
    infer_types(graph)
    write_model(graph, tmp_path / "model.onnx")
    request = Request(str(tmp_path / "model.onnx"), tmp_path / "out", pipeline, target=target, tokenizer="none")
    result = compile_model(request)
    exact = next(item for item in result.contract.verified if item.reference == "decoded weights")
    assert exact.max_abs_error is not None and exact.max_abs_error < 1e-3 and exact.top1 == 1.0
    stored = {item.storage.bits for item in result.contract.weights}
    assert stored == {"default": {4, 8}, "int8": {8}, "int4": {4}}[pipeline]
