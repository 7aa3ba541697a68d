"""The doctor: measured verdicts on official models, one case for every finding, and predictions against real runs."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from backends.mnn.doctor.examine import REFERENCE, examine, run_and_compare
from backends.mnn.run import native
from backends.mnn.target.releases import PROFILES, RELEASES
from tests.support.checkpoints import make_checkpoint
from tests.support.paths import DATA
from tests.support.runs import compiled, interpreters, logits_of, pieces, run_actions
from tools.doctor.command import main, releases_of

ALL = tuple(PROFILES.values())
PORTABLE = tuple(RELEASES.values())

MEASURED = {
    "official-default-int8": {"3.6.1"},
    "official-unfused-int4": {"3.6.0", "3.6.1"},
    "official-unfused-int8-fp32scales": {"3.6.0", "3.6.1"},
    "official-qwen3-int8": {"3.6.1"},
    "exports/qwen2-tied-fp16": {"3.6.1"},
}
"""Releases on which each official model was seen to give the logits of its checkpoint."""


def run(*arguments: object):
    """The command in this process."""
    return CliRunner().invoke(main, [str(item) for item in arguments])


def healthy_on(path: Path, releases=PORTABLE) -> set[str]:
    """Releases with a healthy verdict."""
    report = examine(path, releases)
    return {release.version for release in releases if report.healthy_on(release.version)}


def codes_on(path: Path, version: str) -> set[str]:
    """Codes of what breaks a model on a release."""
    return {item.code for item in examine(path, ALL).problems(version)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("source") / "model", "qwen2", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def sound(checkpoint, tmp_path_factory):
    """A model that is healthy on all five releases."""
    return compiled(checkpoint, tmp_path_factory.mktemp("sound") / "out", "int8")


@pytest.fixture
def model(sound, tmp_path):
    """A copy of the sound model to be damaged, without the contract that would notice."""
    folder = shutil.copytree(sound, tmp_path / "model")
    (folder / "contract.json").unlink()
    return folder


def edit(path: Path, **changes) -> None:
    """Set keys of a JSON file; None removes one."""
    data = json.loads(path.read_text())
    data.update(changes)
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def rebuild(folder: Path, change) -> None:
    """Apply a function to MNN's JSON form of the graph."""
    net = json.loads(native.mnn_to_json(folder / "llm.mnn"))
    change(net)
    native.json_to_mnn(net, folder / "llm.mnn")


def ops(net: dict, kind: str) -> list[dict]:
    """Operators of a kind."""
    return [op for op in net["oplists"] if op["type"] == kind]


# ---- measured verdicts ----


@pytest.mark.parametrize("name", MEASURED)
def test_official_models_get_the_verdicts_that_were_measured(name):
    assert healthy_on(DATA / name) == MEASURED[name]


def test_why_official_models_fail():
    assert codes_on(DATA / "official-default-int8", "3.6.0") == {"B716", "B718", "B720"}
    assert codes_on(DATA / "official-unfused-int4", "3.5.0") == {"B717", "B728"}
    assert codes_on(DATA / "official-unfused-int4", "3.4.1") == {"B717", "B728", "B731"}
    assert codes_on(DATA / "official-unfused-int8-fp32scales", "3.5.0") == {"B728"}


@pytest.mark.parametrize(
    ("pipeline", "options"),
    [("int8", {}), ("int4{block=0}", {}), ("fp16", {}), ("fp32", {}), ("default{symmetric}", {"sliding_window": 9})],
)
def test_own_models_are_healthy_everywhere(pipeline, options, tmp_path):
    family = "mistral" if options else "qwen2"
    folder = compiled(make_checkpoint(tmp_path / "model", family, **options), tmp_path / "out", pipeline)
    report = examine(folder, PORTABLE)
    assert report.findings == [] and report.healthy


# ---- prediction of the failed load ----


def test_the_failed_load_is_predicted(checkpoint, sound, tmp_path):
    found = [item for item in examine(sound, ALL).findings if item.code == "B712"]
    assert [item.releases for item in found] == [("3.0.0",)]
    assert "tensor [ logits_index ] is input but not found" in found[0].message
    request = {
        "model": str(sound / "llm.mnn"), "inputs": ["input_ids", "attention_mask", "position_ids"], "outputs": ["logits"],
    }  # fmt: skip
    runner = Path(native.RUNNER).with_name("module_runner.py")
    ended = native.run_child(runner, request, {"unused": np.zeros(1)}, timeout_s=60)
    assert "tensor [ logits_index ] is input but not found" in ended.log
    old = compiled(checkpoint, tmp_path / "old", "int8", target="3.0.0")
    assert healthy_on(old, ALL) == {"3.0.0"} and codes_on(old, "3.6.1") == {"B713"}


def test_past_key_values_are_fed_by_3_0_only_when_the_configuration_says_so(model):
    def change(net):
        net["tensorName"].append("past_key_values")
        place = len(net["tensorName"]) - 1
        ops(net, "Attention")[0]["inputIndexes"].append(place)
        main = {"dims": [2, 1, -1, 1, 8], "dtype": "DT_FLOAT", "dformat": "NCHW"}
        net["oplists"].insert(
            0,
            {"type": "Input", "name": "past_key_values", "main_type": "Input", "main": main, "outputIndexes": [place]},
        )

    rebuild(model, change)
    assert codes_on(model, "3.6.1") == {"B712"}
    edit(model / "llm_config.json", attention_fused=False)
    messages = {item.message for item in examine(model, ALL).problems("3.0.0") if item.code == "B712"}
    assert not any("past_key_values" in message for message in messages)


def test_an_input_that_nothing_reads_is_harmless(model):
    def change(net):
        net["tensorName"].append("spare")
        main = {"dims": [1], "dtype": "DT_FLOAT", "dformat": "NCHW"}
        place = len(net["tensorName"]) - 1
        net["oplists"].insert(
            0, {"type": "Input", "name": "spare", "main_type": "Input", "main": main, "outputIndexes": [place]}
        )

    rebuild(model, change)
    assert healthy_on(model) == set(RELEASES)


# ---- graphs ----


def rename_logits(net):
    net["tensorName"][net["tensorName"].index("logits")] = "scores"


def swap_order(net):
    net["oplists"].append(net["oplists"].pop(net["oplists"].index(ops(net, "LayerNorm")[0])))


def inline_gamma(net):
    main = ops(net, "LayerNorm")[0]["main"]
    del main["external"]
    main["gamma"] = [1.0] * 64


def no_quant_scale(net):
    ops(net, "Convolution")[0]["main"]["quanParameter"]["quantScale"] = 0.0


def no_mask(net):
    ops(net, "Attention")[0]["inputIndexes"].pop()


def pack_norm(net):
    ops(net, "LayerNorm")[1]["inputIndexes"] = ops(net, "ConvertTensor")[0]["outputIndexes"]


def share_cache(net):
    ops(net, "Attention")[1]["main"]["kv_shared_layer_index"] = 0


def multiply_silu(net):
    next(op for op in ops(net, "BinaryOp") if op["main"]["opType"] == "MUL")["main"]["opType"] = "MUL_SILU"


EVERY = set(RELEASES)
GRAPHS = {
    "no-logits": (rename_logits, "B714", EVERY),
    "order": (swap_order, "B715", EVERY),
    "mul-silu": (multiply_silu, "B716", EVERY - {"3.6.1"}),
    "packed-norm": (pack_norm, "B718", EVERY - {"3.6.1"}),
    "inline-gamma": (inline_gamma, "B719", EVERY),
    "no-mask": (no_mask, "B720", {"3.4.0", "3.4.1", "3.5.0"}),
    "shared-cache": (share_cache, "B720", {"3.4.0", "3.4.1", "3.5.0"}),
    "quant-scale": (no_quant_scale, "B721", EVERY),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_findings_in_graphs(name, model):
    change, code, broken = GRAPHS[name]
    rebuild(model, change)
    assert {version for version in RELEASES if code in codes_on(model, version)} == broken
    assert healthy_on(model) == EVERY - broken


def test_half_float_scales(checkpoint, tmp_path):
    folder = compiled(checkpoint, tmp_path / "model", "int8{scale=f16}", target=">=3.6,<3.6.1")
    assert healthy_on(folder) == {"3.6.0", "3.6.1"} and codes_on(folder, "3.5.0") == {"B717", "B728"}


def test_attention_scale_that_older_releases_do_not_read(model):
    edit(model / "llm_config.json", attn_scale=16**-0.5)
    assert healthy_on(model) == set(RELEASES)
    edit(model / "llm_config.json", attn_scale=0.5)
    assert healthy_on(model) == {"3.6.0", "3.6.1"} and codes_on(model, "3.5.0") == {"B720"}


@pytest.fixture
def narrow(tmp_path):
    """A checkpoint whose rows are 60 and 118 features long."""
    return make_checkpoint(tmp_path / "source", "qwen2", hidden_size=60, intermediate_size=118, num_attention_heads=6)


def test_whole_rows_of_any_length_are_right_from_3_1_on(narrow, tmp_path):
    folder = compiled(narrow, tmp_path / "out", "int8{block=0}", memory="low")
    assert codes_on(folder, "3.6.1") == codes_on(folder, "3.4.0") == set()
    assert "B722" not in codes_on(folder, "3.1.0") and "B722" in codes_on(folder, "3.0.0")


def test_blocks_that_are_no_multiple_of_four(narrow, tmp_path, monkeypatch):
    folder = compiled(narrow, tmp_path / "out", "int8{block=0}", memory="low")
    monkeypatch.setattr("backends.mnn.doctor.graph.alpha_form", lambda op: (8, 6, False))
    assert codes_on(folder, "3.6.1") == {"B722"}
    (folder / "contract.json").unlink()
    edit(folder / "config.json", memory="normal")
    assert codes_on(folder, "3.6.1") == set() and codes_on(folder, "3.4.1") == {"B722"}


def test_activations_by_block_need_blocks_of_eight(narrow, tmp_path):
    folder = compiled(narrow, tmp_path / "out", "int8{block=4}", memory="low")
    assert codes_on(folder, "3.6.1") == set()
    (folder / "contract.json").unlink()
    edit(folder / "config.json", dynamic_option=2)
    assert codes_on(folder, "3.6.1") == {"B722"} and codes_on(folder, "3.4.1") == set()


# ---- files ----


def cut_weights(folder):
    data = (folder / "llm.mnn.weight").read_bytes()
    (folder / "llm.mnn.weight").write_bytes(data[:-100])


def six_numbers(folder):
    tie = json.loads((folder / "llm_config.json").read_text())["tie_embeddings"]
    edit(folder / "llm_config.json", tie_embeddings=[*tie, 0])


def object_tie(folder):
    tie = json.loads((folder / "llm_config.json").read_text())["tie_embeddings"]
    names = ("weight_offset", "alpha_offset", "alpha_size", "quant_bit", "quant_block")
    edit(folder / "llm_config.json", tie_embeddings=dict(zip(names, tie, strict=True)))


def tie_behind_the_end(folder):
    tie = json.loads((folder / "llm_config.json").read_text())["tie_embeddings"]
    edit(folder / "llm_config.json", tie_embeddings=[10**9, *tie[1:]])


def no_embedding(folder):
    edit(folder / "llm_config.json", tie_embeddings=None)


def short_embedding(folder):
    no_embedding(folder)
    (folder / "embeddings_bf16.bin").write_bytes(b"\0" * 100)


FILES = {
    "no-config": (lambda f: (f / "config.json").unlink(), "B723", {"3.5.0", "3.6.0", "3.6.1"}),
    "no-llm-config": (lambda f: (f / "llm_config.json").unlink(), "B723", EVERY),
    "bad-json": (lambda f: (f / "llm_config.json").write_text("{"), "B723", EVERY),
    "json-list": (lambda f: (f / "llm_config.json").write_text("[]"), "B723", EVERY),
    "no-weights": (lambda f: (f / "llm.mnn.weight").unlink(), "B723", EVERY),
    "no-model": (lambda f: (f / "llm.mnn").unlink(), "B723", EVERY),
    "model-cut": (lambda f: (f / "llm.mnn").write_bytes((f / "llm.mnn").read_bytes()[:999]), "B710", EVERY),
    "mask": (lambda f: edit(f / "llm_config.json", attention_mask=None), "B726", EVERY),
    "mask-int": (lambda f: edit(f / "llm_config.json", attention_mask="int"), "B726", EVERY),
    "hidden": (lambda f: edit(f / "llm_config.json", hidden_size=65), "B727", EVERY),
    "window": (lambda f: edit(f / "llm_config.json", attention_type="mix"), "B727", EVERY),
    "hidden-states": (lambda f: edit(f / "llm_config.json", hidden_states=True), "B714", EVERY),
    "tie-object": (object_tie, "B728", {"3.4.0", "3.4.1", "3.5.0"}),
    "tie-six": (six_numbers, "B728", {"3.4.0", "3.4.1", "3.5.0"}),
    "tie-word": (lambda f: edit(f / "llm_config.json", tie_embeddings="yes"), "B728", EVERY),
    "tie-far": (tie_behind_the_end, "B728", EVERY),
    "no-embedding": (no_embedding, "B729", EVERY),
    "short-embedding": (short_embedding, "B729", EVERY),
    "weights-cut": (cut_weights, "B730", EVERY),
    "no-tokenizer": (lambda f: (f / "tokenizer.mtok").unlink(), "B731", {"3.5.0", "3.6.0", "3.6.1"}),
    "no-text-tokenizer": (lambda f: (f / "config.3.4.json").unlink(), "B731", {"3.4.0", "3.4.1"}),
    "tokenizer-other": (lambda f: (f / "tokenizer.txt").write_text("{}"), "B731", {"3.4.0", "3.4.1"}),
}


@pytest.mark.parametrize("name", FILES)
def test_findings_in_files(name, model):
    change, code, broken = FILES[name]
    change(model)
    report = examine(model, PORTABLE)
    assert {v for v in RELEASES if code in {item.code for item in report.problems(v)}} == broken
    assert {v for v in RELEASES if not report.healthy_on(v)} == broken
    assert all(item.fix for item in report.findings if item.severity == "error")


def test_warnings_break_nothing(model):
    edit(model / "config.json", temprature=0.7, hidden_size=64, top_k=5, temperature=1)
    edit(model / "llm_config.json", hidden_size=64.5, layer_nums=7)
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text.replace("{", '{"top_k": 5, ', 1))
    found = {item.code: item for item in examine(model, PORTABLE).findings if item.severity == "warning"}
    assert set(found) == {"B724", "B725", "B727"}
    words = " ".join(f"{item.message} {item.fix}" for item in examine(model, PORTABLE).findings)
    for word in (
        "temprature",
        "temperature",
        "'top_k' stands twice",
        "hidden_size stand in both",
        "topK",
        "layer_nums is 7",
    ):
        assert word in words, word


def test_the_contract_finds_damage(sound, tmp_path):
    folder = shutil.copytree(sound, tmp_path / "model")
    assert examine(folder, PORTABLE).healthy
    data = bytearray((folder / "llm.mnn.weight").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "llm.mnn.weight").write_bytes(data)
    assert codes_on(folder, "3.6.1") == {"C812"}
    assert [item.code for item in examine(folder, ALL).findings if item.code == "B733"] == ["B733"]
    (folder / "contract.json").write_text("{}")
    (found,) = [item for item in examine(folder, PORTABLE).findings if item.code.startswith("C")]
    assert found.severity == "warning" and "nothing vouches for the other files" in found.message


# ---- one file ----


def test_a_lone_file(sound, tmp_path):
    shutil.copy(sound / "llm.mnn", tmp_path / "some.mnn")
    report = examine(tmp_path / "some.mnn", ALL)
    assert report.kind == "mnn" and not report.healthy_on("3.0.0") and report.healthy_on("3.6.1")
    assert set(report.needs["inputs"]) == {"input_ids", "attention_mask", "position_ids", "logits_index"}


def test_onnx_files(tmp_path):
    import onnx
    from onnx import TensorProto, helper

    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "seq"]),
        helper.make_tensor_value_info("past_key_values.0.key", TensorProto.FLOAT, [1, 2, "past", 8]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.INT64, [1, "seq"])]
    graph = helper.make_graph([helper.make_node("Identity", ["input_ids"], ["y"])], "g", inputs, outputs)
    onnx.save(helper.make_model(graph), tmp_path / "a.onnx")
    result = run(tmp_path / "a.onnx", "--json")
    data = json.loads(result.stdout)
    assert result.exit_code == 1 and data["kind"] == "onnx"
    assert {item["code"] for item in data["findings"]} == {"B693", "B732"}
    assert data["needs"]["inputs"]["input_ids"] == "i64[1, seq]"
    (tmp_path / "bad.onnx").write_bytes(b"\xff" * 50)
    result = run(tmp_path / "bad.onnx")
    assert result.exit_code == 1 and "error[U950]" in result.stderr


# ---- the command ----


def test_exit_codes_and_json(sound):
    assert run(sound).exit_code == 0 and run(sound, "--runtime", "3.0.0").exit_code == 1
    data = json.loads(run(DATA / "official-default-int8", "--json", "--runtime", ">=3.6").stdout)
    assert {version: item["healthy"] for version, item in data["verdicts"].items()} == {"3.6.0": False, "3.6.1": True}
    assert run(DATA / "official-default-int8", "--runtime", "3.6.1").exit_code == 0


def test_what_is_shown():
    text = " ".join(run(DATA / "official-default-int8", "--runtime", "all").stdout.split())
    for word in ("3.6.1 healthy", "3.6.0 broken", "RoPE", "lading repair", "B734", "converted by MNN 3.6.1"):
        assert word in text, word
    assert run(DATA / "official-default-int8", "--quiet").stdout == ""


def test_bad_requests(tmp_path, sound):
    assert "error[B711]" in run(tmp_path / "absent").stderr
    assert "error[B600]" in run(sound, "--runtime", "9.9.9").stderr
    assert "error[B700]" in run(sound, "--runtime", ">=9").stderr
    assert "loaded and ran; its numbers were not compared" in run(sound / "llm.mnn", "--run", "--json").stdout
    assert [release.version for release in releases_of(">=3.0,<3.2")] == ["3.0.0", "3.1.0"]


# ---- against reality ----


def went_well(report, version: str) -> bool:
    """A run agreed with the reference, or is the reference."""
    return report.runs[version] == REFERENCE or report.runs[version].startswith("agrees with")


def test_half_floats_need_no_quant_scale(checkpoint, tmp_path):
    """Measured: the logits are the same in every bit without it."""
    folder = compiled(checkpoint, tmp_path / "model", "fp16")
    (folder / "contract.json").unlink()
    rebuild(folder, lambda net: None)  # the converter spells floats with six decimals
    with_scale = run_logits(folder)
    rebuild(folder, lambda net: [op["main"]["quanParameter"].pop("quantScale") for op in ops(net, "Convolution")])
    assert healthy_on(folder) == set(RELEASES)
    without = run_logits(folder)
    assert without.keys() == with_scale.keys()
    assert all(np.array_equal(without[version], rows) for version, rows in with_scale.items())


def run_logits(folder: Path) -> dict[str, np.ndarray]:
    """Logits of a prefill on every release that is there."""
    return {version: logits_of(run_actions(folder, version, [pieces(range(4, 20))])[0]) for version in interpreters()}


@pytest.mark.parametrize("name", MEASURED)
def test_verdicts_on_official_models_hold_on_every_release_that_is_there(name):
    report = examine(DATA / name, PORTABLE)
    here = interpreters()
    run_and_compare(report, here)
    assert [item.code for item in report.findings if item.code == "B735"] == []
    for version in here:
        assert went_well(report, version) is (version in MEASURED[name]), report.runs


def test_verdicts_on_an_own_model_hold(sound):
    report = examine(sound, PORTABLE)
    run_and_compare(report, interpreters())
    assert report.healthy and all(went_well(report, version) for version in interpreters())
    newest = max(interpreters())
    assert report.runs[newest] == REFERENCE
    others = [report.runs[version] for version in interpreters() if version != newest]
    assert all(text.startswith(f"agrees with {newest}: logits differ by") for text in others)


def test_a_verdict_that_reality_contradicts_is_a_finding(sound, tmp_path):
    folder = shutil.copytree(sound, tmp_path / "model")
    (folder / "llm.mnn.weight").write_bytes(b"")
    report = examine(folder, PORTABLE)
    report.findings.clear()
    run_and_compare(report, interpreters())
    assert {item.code for item in report.findings} == {"B735"}
    assert "broken" not in report.findings[0].message and "failed" in report.findings[0].message
    assert not report.healthy


def test_damaged_models_are_judged_and_never_crash(sound, tmp_path):
    folder = shutil.copytree(sound, tmp_path / "model")
    whole = (folder / "llm.mnn").read_bytes()
    chance = random.Random(3)
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 20)):
            data[chance.randrange(len(data))] = chance.choice((0, 1, 2, 4, 127, 255))
        (folder / "llm.mnn").write_bytes(data)
        key, value = (
            chance.choice(("tie_embeddings", "hidden_size", "attn_scale", "jinja")),
            chance.choice((None, "x", -1, [], {})),
        )
        (folder / "llm_config.json").write_text(json.dumps({"attention_mask": "float", key: value}))
        assert not examine(folder, ALL).healthy


# ---- numbers of axes ----

POSITIONS = {"one-axis": ([-1], {"3.4.0"}), "two-axes": ([1, -1], {"3.4.0", "3.5.0", "3.6.0", "3.6.1"})}
"""Declared shape of positions that are read as they come, and the releases on which that goes well.

3.4.1 feeds two axes for several tokens and one for a single token. 3.4.0 feeds one, and adds axes behind the last it
has.
"""


def read_as_fed(dims):
    """Positions are given more axes instead of being reshaped."""

    def change(net):
        index = net["tensorName"].index("position_ids")
        given = next(op for op in ops(net, "Input") if op["outputIndexes"] == [index])
        (index,) = next(op for op in ops(net, "Cast") if op["inputIndexes"] == [index])["outputIndexes"]
        reshape = next(op for op in ops(net, "Reshape") if op["inputIndexes"][0] == index)
        given["main"]["dims"] = dims
        wanted = len(reshape["main"]["dims"])
        lead = 1 if reshape["main"]["dims"][0] == 1 and len(dims) == 1 else 0
        axes = [*range(lead), *range(lead + len(dims), wanted)]
        reshape.update(type="Unsqueeze", main_type="SqueezeParam", main={"squeezeDims": axes}, inputIndexes=[index])

    return change


@pytest.mark.parametrize("name", POSITIONS)
def test_positions_that_are_read_as_fed_need_the_axes_that_a_release_feeds(name, model):
    dims, right = POSITIONS[name]
    rebuild(model, read_as_fed(dims))
    report = examine(model, PORTABLE)
    assert {version for version in RELEASES if report.healthy_on(version)} == right
    assert {item.code for item in report.findings} == {"B736"}
    warned = [item.releases for item in report.findings if item.severity == "warning"]
    assert warned == ([("3.4.0",)] if name == "two-axes" else [])
    run_and_compare(report, interpreters())
    assert [item.message for item in report.findings if item.code == "B735"] == []
    for version in interpreters():
        assert went_well(report, version) is (version in right) or not right & set(interpreters()), report.runs


def with_experts(shape, kind="Reshape"):
    """A router and a MoE operator that nothing reads; the router's numbers have the axes of `shape`."""

    def change(net):
        hidden = ops(net, "LayerNorm")[0]["outputIndexes"][0]
        place = len(net["tensorName"])
        net["tensorName"] += ["router", "weights", "numbers", "mixed"]
        blob = {"dataFormat": "NCHW", "dataType": "DT_INT32", "dims": [1], "int32s": [2]}
        net["tensorName"].append("two")
        attr = [{"key": "num_experts", "i": 4}, {"key": "top_k", "i": 2}, {"key": "layer_id", "i": 0}]
        net["oplists"] += [
            {"type": "Const", "main_type": "Blob", "main": blob, "inputIndexes": [], "outputIndexes": [place + 4]},
            {"type": "Reshape", "name": "cut", "main_type": "Reshape", "main": {"dims": shape, "dimType": "NCHW"},
             "inputIndexes": [hidden], "outputIndexes": [place]},
            {"type": "TopKV2", "main_type": "TopKV2", "main": {"T": "DT_FLOAT", "sorted": False},
             "inputIndexes": [place, place + 4], "outputIndexes": [place + 1, place + 2]},
            {"type": "MoE", "name": "experts", "main_type": "Extra", "main": {"attr": attr},
             "inputIndexes": [hidden, place + 1, place + 2], "outputIndexes": [place + 3]},
        ]  # fmt: skip

    return change


def test_expert_numbers_without_a_leading_axis_crash_3_4_0(model):
    rebuild(model, with_experts([-1, 64]))
    assert codes_on(model, "3.4.0") == {"B737"} and healthy_on(model) == set(RELEASES) - {"3.4.0"}
    (found,) = [item for item in examine(model, ALL).findings if item.code == "B737"]
    assert "3.2.0" in found.releases and "3.1.0" not in found.releases and found.where == "experts"


def test_expert_numbers_with_a_leading_axis_are_taken_everywhere(model):
    rebuild(model, with_experts([1, -1, 64]))
    assert healthy_on(model) == set(RELEASES)


# ---- tokens and rows ----


def short_text(folder, keep):
    """Drop tokens from the text tokenizer, which is of type 3."""
    lines = (folder / "tokenizer.txt").read_bytes().split(b"\n")
    place = next(index for index, line in enumerate(lines) if index > 1 and len(line.split()) == 2)
    count = int(lines[place].split()[0])
    lines[place] = b"%d 0" % keep
    rows = lines[place + 1 : place + 1 + count]
    rows = rows[:keep] + [b"extra%d" % number for number in range(keep - count)]
    (folder / "tokenizer.txt").write_bytes(b"\n".join([*lines[: place + 1], *rows, b""]))
    return count


def test_a_tokenizer_of_another_model_is_a_warning(model):
    whole = short_text(model, 300)
    found = [item for item in examine(model, PORTABLE).findings if item.code == "B738"]
    assert whole == 320 and [item.releases for item in found] == [("3.4.0", "3.4.1")]
    assert "300 ids" in found[0].message and examine(model, PORTABLE).healthy
    short_text(model, 310)
    assert examine(model, PORTABLE).findings == []
    short_text(model, 400)
    found = examine(model, PORTABLE).findings
    assert [(item.code, item.severity) for item in found] == [("B738", "warning")] and "400 ids" in found[0].message
    (model / "tokenizer.mtok").write_bytes((model / "tokenizer.mtok").read_bytes()[:400])
    found = [item for item in examine(model, PORTABLE).findings if item.code == "B731"]
    assert [(item.releases, item.severity) for item in found] == [(("3.5.0", "3.6.0", "3.6.1"), "warning")]
