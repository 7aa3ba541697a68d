"""Repaired models: the same logits on every release as the original gives where it runs."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from backends.contract import check_feed, check_files, read
from backends.mnn.doctor.examine import examine
from backends.mnn.lift.lift import lift
from backends.mnn.lower.exporter_spellings import spell_channels, spell_rotations
from backends.mnn.read.net_file import read_net
from backends.mnn.run import native
from backends.mnn.target.environments import LLM_RELEASES, installed_version
from backends.mnn.target.releases import RELEASES, target
from backends.mnn.tokenizer.files.lift import spec_of
from backends.mnn.tokenizer.files.read import read_text, read_tokenizer
from backends.mnn.write.configs import config_for
from ir.base.diag import LadingError
from ir.evaluate.evaluator import Evaluator
from tests.support.checkpoints import make_checkpoint
from tests.support.paths import DATA
from tests.support.runs import PIECES, compiled, each_release, exact_logits, interpreters
from tools.repair.command import main, repair

OFFICIAL = {"official-default-int8": 2e-5, "official-unfused-int4": 0.0, "official-unfused-int8-fp32scales": 0.0}
"""Allowed difference from the original on 3.6.1, relative to the largest logit; fused operators round otherwise."""

NAME = "official-unfused-int4"
HERE = installed_version() or ""
RUNS = HERE in LLM_RELEASES
"""The installed MNN can run models."""


def run(*arguments: object):
    """The command in this process."""
    return CliRunner().invoke(main, [str(item) for item in arguments])


@pytest.fixture(scope="module")
def repaired(tmp_path_factory):
    """Each official model repaired for all releases, made when first asked for."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("repaired") / name
            repair(DATA / name, made[name])
        return made[name]

    return get


# ---- official models ----


@pytest.mark.parametrize("name", OFFICIAL)
def test_repaired_official_models_are_healthy_everywhere(name, repaired):
    report = examine(repaired(name), target("portable").releases)
    assert report.healthy, [str(item.diagnostic()) for item in report.findings]


def rebuilt(name: str, folder: Path, *, lost: bool = False, fixed: int | None = None) -> Path:
    """An official model written again by the converter: `lost` as from a graph that read ``logits_index`` and declared it
    nowhere, `fixed` as from one in which tracing froze it."""
    shutil.copytree(DATA / name, folder)
    net = json.loads(native.mnn_to_json(folder / "llm.mnn"))
    if lost:
        place = net["tensorName"].index("logits_index")
        net["oplists"] = [op for op in net["oplists"] if op["type"] != "Input" or op["name"] != "logits_index"]
        for op in net["oplists"]:
            op["inputIndexes"] = [-1 if index == place else index for index in op.get("inputIndexes", ())]
        net["tensorName"][place] = "lost"
    if fixed is not None:
        place = net["tensorName"].index("logits_index")
        (number,) = [place for place, op in enumerate(net["oplists"]) if op["name"] == "logits_index"]
        main = {"dims": [1], "dataType": "DT_INT32", "int32s": [fixed], "dataFormat": "NCHW"}
        net["oplists"][number] = {"type": "Const", "name": "fixed", "main_type": "Blob", "main": main,
                                  "outputIndexes": [place]}  # fmt: skip
        net["tensorName"][place] = "fixed"
    native.json_to_mnn(net, folder / "llm.mnn")
    return folder


@pytest.mark.skipif("3.6.1" not in interpreters(), reason="the original runs on MNN 3.6.1 only")
def test_the_last_row_that_tracing_fixed_becomes_the_choice_of_the_runtime(tmp_path):
    """The original returns one row a call whatever is asked for; its rows are those of the repaired model."""
    folder = rebuilt("official-unfused-int4", tmp_path / "fixed", fixed=-1)
    done = run(folder, "-o", tmp_path / "mended", "--json")
    assert done.exit_code == 0, done.output
    intact = exact_logits(rebuilt("official-unfused-int4", tmp_path / "intact"), "3.6.1")
    mended = exact_logits(tmp_path / "mended", "3.6.1")
    assert mended.shape == intact.shape and np.abs(mended - intact).max() <= 2e-5 * np.abs(intact).max()
    refused = run(rebuilt("official-unfused-int4", tmp_path / "other", fixed=2), "-o", tmp_path / "none")
    assert refused.exit_code == 1 and "error[B689]" in refused.output


def test_a_choice_of_rows_that_the_converter_lost_is_declared_again(tmp_path):
    """The model whose loading is a double free becomes, byte for byte, what the intact one becomes."""
    intact, lost = (
        rebuilt("official-default-int8", tmp_path / name, lost=name == "lost") for name in ("intact", "lost")
    )
    run_of = native.run_model(lost / "config.json", [{"do": "forward", "pieces": [[1, 2, 3]]}], timeout_s=120)
    assert not run_of.loaded and run_of.child.signal is not None
    (found,) = [item for item in examine(lost, target("portable").releases).findings if item.code == "B685"]
    assert found.mended and "the runtime feeds this choice as 'logits_index'" in found.message
    for folder in (intact, lost):
        repair(folder, tmp_path / f"{folder.name}-mended")
    assert examine(tmp_path / "lost-mended", target("portable").releases).healthy
    for name in ("llm.mnn.weight", "llm.mnn"):
        assert (tmp_path / "lost-mended" / name).read_bytes() == (tmp_path / "intact-mended" / name).read_bytes()


@pytest.mark.skipif("3.6.1" not in interpreters(), reason="the originals run on MNN 3.6.1 only")
@pytest.mark.parametrize("version", each_release())
@pytest.mark.parametrize("name", OFFICIAL)
def test_repaired_official_models_give_the_original_logits_on_every_release(name, version, repaired):
    wanted = exact_logits(DATA / name, "3.6.1")
    found = exact_logits(repaired(name), version)
    assert found.shape == wanted.shape and np.abs(wanted).max() > 10
    assert np.abs(found - wanted).max() <= OFFICIAL[name] * np.abs(wanted).max()


def test_configuration_is_respelled(repaired):
    folder = repaired("official-default-int8")
    llm = json.loads((folder / "llm_config.json").read_text())
    assert len(llm["tie_embeddings"]) == 5 and llm["attention_mask"] == "float" and "attn_scale" not in llm
    assert llm["jinja"]["eos"] == "<|im_end|>" and llm["layer_nums"] == 2
    for name, tokenizer in (("config.json", "tokenizer.mtok"), ("config.3.4.json", "tokenizer.txt")):
        config = json.loads((folder / name).read_text())
        assert config["tokenizer_file"] == tokenizer and config["topK"] == config["top_k"] == 40
        assert type(config["repetition_penalty"]) is float and not set(config) & set(llm)


def test_the_text_tokenizer_holds_the_tokens_of_the_binary_one(repaired):
    source = read_tokenizer((DATA / "official-default-int8" / "tokenizer.mtok").read_bytes())
    text = read_text((repaired("official-default-int8") / "tokenizer.txt").read_bytes())
    assert text.header.type == 3 and text.header.stop_ids == source.header.stop_ids
    assert all(text.tokens[index] == row for row, index in source.entries if index > 2)
    assert len(text.merges) == len(source.merges)
    spec = spec_of(source)
    assert spec.kind == "bpe" and [token.content for token in spec.added][:2] == ["<|endoftext|>", "<|im_start|>"]


def test_a_chat_template_of_the_tokenizer_file_reaches_releases_that_do_not_look_there(tmp_path):
    folder = shutil.copytree(DATA / NAME, tmp_path / "model")
    llm = folder / "llm_config.json"
    template = json.loads(llm.read_text())["jinja"]["chat_template"]
    llm.write_text(json.dumps({key: value for key, value in json.loads(llm.read_text()).items() if key != "jinja"}))
    path, eos = folder / "tokenizer.mtok", b"\x0a\x00<|im_end|>"
    before, after = path.read_bytes().rsplit(bytes(4) + eos, 1)
    path.write_bytes(before + struct.pack("<I", len(template)) + template.encode() + eos + after)
    repair(folder, tmp_path / "all")
    jinja = json.loads((tmp_path / "all" / "llm_config.json").read_text())["jinja"]
    assert jinja == {"chat_template": template, "eos": "<|im_end|>"}
    repair(folder, tmp_path / "newer", ">=3.5,<=3.6.1")
    assert "jinja" not in json.loads((tmp_path / "newer" / "llm_config.json").read_text())


def test_that_a_text_form_may_give_other_ids_is_told(tmp_path):
    text = run(DATA / NAME, "-o", tmp_path / "out", "--verify", "none").stdout
    assert "tokenizer.txt for 3.4.0, 3.4.1 may give other ids: words are cut by a pattern of MNN 3.4" in text
    newer = run(DATA / NAME, "-o", tmp_path / "newer", "--target", "3.6.1", "--verify", "none").stdout
    assert "other ids" not in newer


def test_names_of_files_do_not_stay_in_the_other_configuration(tmp_path):
    folder = shutil.copytree(DATA / NAME, tmp_path / "model")
    llm = folder / "llm_config.json"
    (folder / "llm.mnn.weight").rename(folder / "w.bin")
    llm.write_text(json.dumps({**json.loads(llm.read_text()), "llm_weight": "w.bin"}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({key: config[key] for key in config if key != "llm_weight"}))
    assert examine(folder, target("3.6.1").releases).healthy
    repair(folder, tmp_path / "out")
    assert "llm_weight" not in json.loads((tmp_path / "out" / "llm_config.json").read_text())
    assert examine(tmp_path / "out", target("portable").releases).healthy


@pytest.mark.parametrize("version", each_release())
def test_the_text_tokenizer_is_read_by_the_runtime(version, repaired):
    folder = repaired("official-default-int8")
    action = {"do": "encode", "texts": ["hello <|im_end|> world", "def main():"]}
    result = native.run_model(config_for(folder, version), [action], interpreter=interpreters()[version], timeout_s=60)
    ids = result.require().results[0]["ids"]
    assert 2 in ids[0] and all(ids)


# ---- own models ----

OWN = {
    "int8-tied": ("qwen2", {"tie_word_embeddings": True}, "int8"),
    "int4-untied": ("qwen2", {}, "int4"),
    "fp16-tied": ("llama", {"tie_word_embeddings": True}, "fp16"),
    "fp32": ("qwen3", {}, "fp32"),
    "fp32-parts": ("qwen2", {"tie_word_embeddings": True, "dtype": "f32"}, "fp32"),
    "symmetric": ("qwen2", {}, "int8{symmetric}"),
    "windows": ("mistral", {"sliding_window": 11}, "int8"),
}


@pytest.mark.parametrize("name", OWN)
def test_repairing_a_sound_model_changes_no_logit(name, tmp_path):
    family, options, pipeline = OWN[name]
    folder = compiled(make_checkpoint(tmp_path / "model", family, **options), tmp_path / "old", pipeline)
    done = repair(folder, tmp_path / "new")
    assert done.kept and done.before == done.after == list(RELEASES)
    version = "3.6.1" if "3.6.1" in interpreters() else next(iter(interpreters()))
    assert np.array_equal(exact_logits(folder, version), exact_logits(tmp_path / "new", version))


def test_repairing_keeps_the_bytes_of_weights(tmp_path):
    folder = compiled(make_checkpoint(tmp_path / "model", "qwen2"), tmp_path / "old", "int4")
    repair(folder, tmp_path / "new")
    assert (folder / "llm.mnn.weight").read_bytes() == (tmp_path / "new" / "llm.mnn.weight").read_bytes()


# ---- other conventions ----


def test_a_model_without_logits_index_gets_it(tmp_path):
    source = make_checkpoint(tmp_path / "model", "qwen2")
    old = compiled(source, tmp_path / "old", "fp32", target="3.0.0")
    whole = compiled(source, tmp_path / "whole", "fp32")
    done = repair(old, tmp_path / "new")
    assert done.before == [] and done.after == list(RELEASES)
    version = next(iter(interpreters()))
    wanted = exact_logits(whole, version)
    assert np.abs(exact_logits(tmp_path / "new", version) - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_an_official_model_repaired_for_3_0_loads_with_the_old_names(tmp_path):
    done = repair(DATA / "official-default-int8", tmp_path / "new", "3.0.0")
    assert done.after == ["3.0.0"]
    names = read_net(tmp_path / "new" / "llm.mnn")["tensorName"]
    assert "logits_index" not in names
    config = json.loads((tmp_path / "new" / "llm_config.json").read_text())
    table = np.fromfile(tmp_path / "new" / "embeddings_bf16.bin", "<u2").reshape(-1, config["hidden_size"])
    ids = PIECES[0]
    gap = np.arange(len(ids))[:, None] >= np.arange(len(ids))
    feeds = {
        "input_ids": (table[ids].astype(np.uint32) << 16).view(np.float32)[:, None],
        "attention_mask": np.where(gap, 0, np.finfo(np.float32).min).astype(np.float32)[None, None],
        "position_ids": np.arange(len(ids), dtype=np.int32),
    }
    request = {"model": str(tmp_path / "new" / "llm.mnn"), "inputs": list(feeds), "outputs": ["logits"]}
    ended = native.run_child(native.RUNNER.with_name("module_runner.py"), request, feeds, interpreter=sys.executable,
                             timeout_s=60)  # fmt: skip
    assert ended.ok, ended.log
    if "3.6.1" in interpreters():
        wanted = exact_logits(DATA / "official-default-int8", "3.6.1")[: len(ids)]
        assert np.abs(ended.arrays["outputs/logits"][0] - wanted).max() < 1e-4 * np.abs(wanted).max()


# ---- contract and verification ----


def test_the_contract_describes_the_repaired_folder(repaired):
    folder = repaired("official-default-int8")
    contract = read(folder)
    assert check_files(contract, folder) == []
    assert contract.target.releases == tuple(RELEASES) and contract.verified == () and contract.config_digest is None
    model = contract.model
    assert (model.name, model.family, model.layers, model.hidden) == ("official-default-int8", "qwen2", 2, 128)
    assert (model.heads, model.kv_heads, model.head_dim, model.vocab, model.max_position) == (4, 2, 32, 2048, 32768)
    original = DATA / "official-default-int8"
    assert {item.file for item in contract.sources} == {
        "config.json", "llm_config.json", "llm.mnn", "llm.mnn.weight", "tokenizer.mtok",
    }  # fmt: skip
    for item in contract.sources:
        data = (original / item.file).read_bytes()
        found = (item.bytes, item.digest, item.digest_of)
        assert found == (len(data), hashlib.sha256(data).hexdigest(), "content")
    assert [item.name for item in contract.signature.inputs] == list(RELEASES["3.6.1"].inputs)
    assert all(item.discovered is None for item in contract.signature.inputs)
    assert contract.signature.state.bytes_per_token == 2 * 2 * 2 * 32 * 4
    assert contract.pipeline.text == "sink-layouts,cse,dce" and contract.calibration is None
    assert contract.runtime.settings["memory"] == "low" and "tie_embeddings" in contract.runtime.requires.keys
    table = next(item for item in contract.weights if item.name.startswith("embedding"))
    assert table.shared_with and (table.storage.bits, table.storage.method, table.storage.scale_dtype) == (
        8,
        "stored",
        "f32",
    )
    assert {item.file: item.releases for item in contract.tokenizer.files} == {
        "tokenizer.mtok": ("3.5.0", "3.6.0", "3.6.1"), "tokenizer.txt": ("3.4.0", "3.4.1"),
    }  # fmt: skip


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_fed_prompt_fits_the_contract(name, repaired):
    contract = read(repaired(name))
    feed = {
        "input_ids": np.zeros((3, 1, 128), np.float32), "attention_mask": np.zeros((), np.float32),
        "position_ids": np.arange(3, dtype=np.int32)[None], "logits_index": np.array([-1], np.int32),
    }  # fmt: skip
    check_feed(contract, feed, previous=0)
    with pytest.raises(LadingError):
        check_feed(contract, {**feed, "input_ids": feed["input_ids"][..., :64]}, previous=0)


def test_an_input_that_the_original_lacked_is_marked(tmp_path):
    old = compiled(make_checkpoint(tmp_path / "model", "qwen2"), tmp_path / "old", "fp32", target="3.0.0")
    repair(old, tmp_path / "new")
    found = {item.name: item.discovered for item in read(tmp_path / "new").signature.inputs}
    assert [name for name, why in found.items() if why is not None] == ["logits_index"]
    assert found["logits_index"].by == "repair"


@pytest.mark.parametrize("name", ["int4-untied", "fp16-tied", "fp32-parts", "windows"])
def test_repaired_own_models_have_complete_contracts(name, tmp_path):
    """Embedding rows in a file of their own, tied halves, rows in parts, and planes of a mask."""
    family, options, pipeline = OWN[name]
    folder = compiled(make_checkpoint(tmp_path / "model", family, **options), tmp_path / "old", pipeline)
    done = repair(folder, tmp_path / "new", verify="quick" if RUNS else "none", guard=True)
    old, new = read(folder), read(tmp_path / "new")
    assert check_files(new, tmp_path / "new") == [] and (tmp_path / "new" / "check_inputs.py").is_file()
    assert sum(item.bytes for item in new.weights) == sum(item.bytes for item in old.weights)
    assert [(item.shape, item.storage.bits) for item in new.weights] == [
        (item.shape, item.storage.bits) for item in old.weights
    ]
    assert new.model.hidden == old.model.hidden and new.signature.dims == old.signature.dims
    assert new.signature.state == old.signature.state
    if RUNS:
        (record,) = new.verified
        assert (record.reference, record.prompt_tokens, record.release) == ("decoded weights", 32, HERE)
        assert done.outcome.error == record.max_abs_error < 1e-3 and done.outcome.from_original == 0.0


# ---- the newest release ----


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_repair_for_the_newest_release_uses_its_fused_forms(name, tmp_path):
    done = repair(DATA / name, tmp_path / "new", "3.6.1", verify="quick" if HERE == "3.6.1" else "none")
    assert done.after == ["3.6.1"] and done.kept
    found = read_net(tmp_path / "new" / "llm.mnn")["oplists"]
    kinds = [op.get("type") for op in found]
    silu = [op for op in found if op.get("type") == "BinaryOp" and op["main"].get("opType") == "MUL_SILU"]
    assert (len(silu), kinds.count("RoPE"), kinds.count("Attention")) == (2, 2, 2)
    assert all(op["main"]["output_c4"] for op in found if op.get("type") == "Attention")
    assert "fuse-mnn{fuse=[" in read(tmp_path / "new").pipeline.text
    assert json.loads((tmp_path / "new" / "llm_config.json").read_text())["layer_nums"] == 2
    if "3.6.1" in interpreters():
        wanted = exact_logits(DATA / name, "3.6.1")
        assert np.abs(exact_logits(tmp_path / "new", "3.6.1") - wanted).max() <= 2e-5 * np.abs(wanted).max()


def exported(name: str):
    """An official model as it is lifted, before anything is respelled."""
    folder = DATA / name
    return lift(read_net(folder / "llm.mnn"), folder / "llm.mnn.weight")


@pytest.mark.parametrize("name", OFFICIAL)
def test_rotations_are_spelled_by_halves(name):
    graph = exported(name)
    before = stored(graph)
    assert spell_channels(graph) == (8 if name == "official-default-int8" else 0)
    assert spell_rotations(graph) > 0 and spell_rotations(graph) == 0 and spell_channels(graph) == 0
    assert np.array_equal(stored(graph), before)


@pytest.mark.parametrize("name", OFFICIAL)
def test_rotations_by_tables_of_different_halves_stay(name):
    graph = exported(name)
    joined = [node for node in graph.nodes if node.op == "mnn.Concat" and node.inputs[0] is node.inputs[1]]
    for node in joined:
        other = graph.add("mnn.Unary", [node.inputs[1]], {"kind": "NEG"}, types=[node.inputs[1].type], before=node)
        graph.set_input(node, 1, other.output)
    assert joined and spell_rotations(graph) == 0


def stored(graph) -> np.ndarray:
    """Logits of a graph for random rows."""
    rows = np.random.default_rng(1).normal(size=(5, 1, 128)).astype(np.float32)
    feeds = {"input_ids": rows, "attention_mask": np.zeros((), np.float32), "logits_index": np.zeros(1, np.int32)}
    return Evaluator(graph).run({**feeds, "position_ids": np.arange(5, dtype=np.int32)[None]})["logits"]


# ---- the command, and what is refused ----


def test_the_command_tells_what_it_did(tmp_path):
    result = run(DATA / "official-unfused-int4", "-o", tmp_path / "a")
    assert result.exit_code == 0, result.output
    assert "healthy on 3.6.0, 3.6.1 of 3.4.0" in result.stdout and "half-float scales widened" in result.stdout
    result = run(DATA / "official-unfused-int4", "-o", tmp_path / "b", "--target", ">=3.6", "--json")
    data = json.loads(result.stdout)
    assert (
        data["bytes_kept"]
        and data["healthy_after"] == ["3.6.0", "3.6.1"]
        and not (tmp_path / "b" / "tokenizer.txt").exists()
    )
    assert "error[B630]" in run(DATA / "official-unfused-int4", "-o", tmp_path / "a").stderr


def copied(tmp_path: Path) -> Path:
    """An official model to be damaged."""
    return shutil.copytree(DATA / "official-unfused-int4", tmp_path / "model")


def edit(path: Path, **changes) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def break_merge(folder: Path) -> None:
    data = (folder / "tokenizer.mtok").read_bytes()
    file = read_tokenizer(data)
    left, right, rank = file.merges[0]
    row = b"".join(number.to_bytes(4, "little") for number in (left, right, rank))
    other = b"".join(number.to_bytes(4, "little") for number in (left, 2040, rank))
    (folder / "tokenizer.mtok").write_bytes(data.replace(row, other))


REFUSED = {
    "no-config": (lambda f: (f / "config.json").unlink(), "B741"),
    "bad-config": (lambda f: (f / "llm_config.json").write_text("{"), "B741"),
    "no-model": (lambda f: (f / "llm.mnn").unlink(), "B711"),
    "model-cut": (lambda f: (f / "llm.mnn").write_bytes((f / "llm.mnn").read_bytes()[:5000]), "B710"),
    "weights-cut": (lambda f: (f / "llm.mnn.weight").write_bytes(b"abc"), "F642"),
    "no-tokenizer": (lambda f: (f / "tokenizer.mtok").unlink(), "B742"),
    "no-embedding": (lambda f: edit(f / "llm_config.json", tie_embeddings=None), "B742"),
    "bad-merge": (break_merge, "B657"),
    "window": (lambda f: edit(f / "llm_config.json", attention_type="mix"), "U951"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_repaired_is_refused_and_leaves_nothing(name, tmp_path):
    change, code = REFUSED[name]
    folder = copied(tmp_path)
    change(folder)
    with pytest.raises(LadingError) as caught:
        repair(folder, tmp_path / "out")
    assert caught.value.code == code, caught.value
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_lone_file_is_refused(tmp_path):
    result = run(DATA / "official-unfused-int4" / "llm.mnn", "-o", tmp_path / "out")
    assert result.exit_code == 1 and "error[B741]" in result.stderr
