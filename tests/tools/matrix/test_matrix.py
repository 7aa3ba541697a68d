"""The matrix: cells are run once, kept and judged; what was not run stays empty, and contracts get what was
verified."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import tools.matrix.cell
from backends.contract import read, write
from backends.mnn.target.environments import FOLDER_VARIABLE, LLM_RELEASES, installed_version
from frontends.families.table import FAMILIES
from ir.base.diag import LadingError
from tests.support.checkpoints import make_checkpoint
from tools.compile.command import main as compile_main
from tools.matrix import command as tool
from tools.matrix import rows
from tools.matrix.cell import CHECKS, Artefact, Source, _Judge, run_cell
from tools.matrix.rows import read_kept, write_kept
from tools.matrix.without_checkpoint import FolderArtefact, FolderSource
from tools.matrix.words import SYMBOLS
from tools.shared.cli import split_list

HERE = installed_version()
OTHER = next(version for version in LLM_RELEASES if version != HERE)

pytestmark = pytest.mark.skipif(HERE not in LLM_RELEASES, reason="needs an installed MNN with a language-model runtime")


def run(*arguments, code: int = 0):
    """Run the command and require an exit code."""
    result = CliRunner().invoke(tool.main, [str(item) for item in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder of a run of one family in two precisions on the installed release, and all that it wrote."""
    folder = tmp_path_factory.mktemp("matrix")
    places = ["--json", folder / "m.json", "--markdown", folder / "m.md", "--html", folder / "m.html"]
    result = run(
        "--families", "qwen2", "--precisions", "fp32,int8", "--releases", HERE, "--out", folder / "out", *places
    )
    return folder, json.loads((folder / "m.json").read_text()), result.output


@pytest.fixture
def copy(made, tmp_path):
    """A copy of the run's folder and the arguments that repeat it."""
    shutil.copytree(made[0] / "out", tmp_path / "out")
    arguments = ["--families", "qwen2", "--precisions", "fp32,int8", "--releases", HERE, "--out", tmp_path / "out"]
    return tmp_path / "out", [*arguments, "--json", tmp_path / "again.json"]


@pytest.fixture
def runs(monkeypatch):
    """The cells that are really run."""
    seen = []

    def watched(artefact, release, interpreter, timeout_s):
        seen.append((artefact.precision, release))
        return run_cell(artefact, release, interpreter, timeout_s)

    monkeypatch.setattr(tools.matrix.cell, "run_cell", watched)
    return seen


def model_of(made, precision: str) -> tuple[Path, Path]:
    """Model directory and checkpoint of the run."""
    out = made[0] / "out"
    return next((out / "models").glob(f"qwen2--{precision}--*/")), out / "checkpoints" / "qwen2"


# ---- a run ----


def test_every_check_of_every_cell_is_made_and_right(made):
    _, data, _ = made
    assert [(cell["precision"], cell["release"], cell["status"]) for cell in data["cells"]] == [
        ("fp32", HERE, "right"),
        ("int8", HERE, "right"),
    ]
    for cell in data["cells"]:
        assert {name: check["ok"] for name, check in cell["checks"].items()} == dict.fromkeys(CHECKS, True)
        assert 0 < cell["error"] < 1e-3
        assert cell["mnn"] == HERE
        assert len(cell["artefact"]) == 64
        assert cell["seconds"]["total"] > 0
    assert (data["ok"], data["run"], data["failing"], data["reused"]) == (True, 2, 0, 0)


def test_reports_show_every_cell(made):
    folder, _, output = made
    assert output.count(SYMBOLS["right"]) == 2
    assert "2 of 2 cells right" in output
    page = (folder / "m.md").read_text()
    assert page.count(f"| {SYMBOLS['right']} ") == 2
    assert "All 2 cells are right." in page
    page = (folder / "m.html").read_text()
    assert page.count('<button type="button" class="cell right"') == 2
    assert "http" not in page


def test_quiet_prints_nothing(copy):
    assert run(*copy[1], "--quiet").output == ""


# ---- going on where it was ----


def test_a_second_run_runs_nothing(copy, runs):
    run(*copy[1])
    assert runs == []
    assert json.loads(copy[1][-1].read_text())["reused"] == 2


def test_fresh_runs_everything(copy, runs):
    run(*copy[1], "--fresh")
    assert sorted(runs) == [("fp32", HERE), ("int8", HERE)]


def test_a_cell_cut_off_while_it_was_written_is_run_again(copy, runs):
    place = next((copy[0] / "cells").glob("qwen2--int8--*.json"))
    place.write_text(place.read_text()[:200])
    run(*copy[1])
    assert runs == [("int8", HERE)]


def test_only_a_changed_model_is_run_again(copy, runs):
    folder = next((copy[0] / "models").glob("qwen2--fp32--*/"))
    (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace('"thread_num": 4', '"thread_num": 2')
    )
    run(*copy[1])  # the file is not what the contract says, so the model is compiled again: the same bytes as before
    assert runs == []
    place = next((copy[0] / "cells").glob("qwen2--fp32--*.json"))
    kept = read_kept(place, {})
    assert kept is not None
    write_kept(place, {**kept, "artefact": "0" * 64})
    run(*copy[1])
    assert runs == [("fp32", HERE)]


def test_a_cell_with_a_changed_number_is_run_again(copy, runs):
    place = next((copy[0] / "cells").glob("qwen2--int8--*.json"))
    text = place.read_text()
    assert '"status": "right"' in text
    place.write_text(text.replace('"status": "right"', '"status": "wrong"'))
    run(*copy[1])
    assert runs == [("int8", HERE)]


def test_an_interrupted_run_keeps_the_cells_that_ended(copy, monkeypatch):
    shutil.rmtree(copy[0] / "cells")

    def first_only(artefact, *rest):
        if artefact.precision == "int8":
            raise KeyboardInterrupt
        return run_cell(artefact, *rest)

    monkeypatch.setattr(tools.matrix.cell, "run_cell", first_only)
    run(*copy[1], "--jobs", 1, code=130)
    assert [path.name.split("--")[1] for path in (copy[0] / "cells").iterdir()] == ["fp32"]


# ---- what cannot be had or made ----


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A folder of environments in which the other release is broken."""
    (tmp_path / "environments" / f"mnn-{OTHER}").mkdir(parents=True)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "environments"))


def test_a_release_that_cannot_be_had_is_reported_and_its_cells_are_empty(copy, nowhere, tmp_path):
    arguments = [f"{HERE},{OTHER}" if item == HERE else item for item in copy[1]]
    result = run(*arguments, "--markdown", tmp_path / "m.md", "--html", tmp_path / "m.html")
    assert f"MNN {OTHER} was not tested: " in result.output
    data = json.loads(copy[1][-1].read_text())
    assert list(data["unavailable"]) == [OTHER]
    assert {cell["release"] for cell in data["cells"]} == {HERE}
    assert f"MNN {OTHER} was not tested: " in (tmp_path / "m.md").read_text()
    assert (tmp_path / "m.html").read_text().count('class="cell not-run"') == 2


def test_no_release_at_all_is_an_error(tmp_path, nowhere):
    assert "U970" in run("--releases", OTHER, "--out", tmp_path / "out", code=1).output


def test_a_model_that_cannot_be_compiled_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setitem(rows.MODELS, "odd", ("llama", {"rope_scaling": {"rope_type": "unheard-of"}}))
    arguments = ["--families", "odd", "--precisions", "fp32", "--releases", HERE, "--out", tmp_path / "out"]
    result = run(*arguments, "--json", tmp_path / "m.json", code=1)
    assert "odd fp32 was not made" in result.output
    data = json.loads((tmp_path / "m.json").read_text())
    assert (data["cells"], data["ok"]) == ([], False)


def test_a_run_of_nothing_is_not_right(tmp_path):
    arguments = ["--families", "qwen2", "--precisions", "fp32", "--releases", HERE, "--target", "3.0.0"]
    assert "0 of 0 cells right" in run(*arguments, "--out", tmp_path / "out", code=1).output


def test_models_are_of_families_of_the_compiler():
    assert {family for family, _ in rows.MODELS.values()} <= set(FAMILIES)


# ---- models that exist ----


def test_a_crash_is_a_cell_and_the_contract_stays_as_it_is(made, tmp_path):
    model, source = model_of(made, "int8")
    broken = shutil.copytree(model, tmp_path / "broken")
    weights = broken / "llm.mnn.weight"
    weights.write_bytes(weights.read_bytes()[:3000])
    before = (broken / "contract.json").read_bytes()
    arguments = ["--model", broken, "--source", source, "--releases", HERE, "--out", tmp_path / "out"]
    result = run(*arguments, "--json", tmp_path / "m.json", code=1)
    (cell,) = json.loads((tmp_path / "m.json").read_text())["cells"]
    assert (cell["status"], cell["signal"], cell["verified"]) == ("crash", "SIGSEGV", [])
    assert cell["checks"]["logits"] == {"ok": False, "note": "the process crashed with SIGSEGV"}
    assert f"{SYMBOLS['crash']} SIGSEGV" in result.output
    assert (broken / "contract.json").read_bytes() == before


def test_the_contract_gets_what_was_verified(made, tmp_path):
    model, source = model_of(made, "int8")
    good = shutil.copytree(model, tmp_path / "good")
    assert read(good).verified == ()
    arguments = ["--model", good, "--source", source, "--releases", HERE, "--out", tmp_path / "out", "--quiet"]
    run(*arguments)
    records = {(item.release, item.reference, item.settings.memory): item for item in read(good).verified}
    exact = records[HERE, "decoded weights", "normal"]
    assert set(records) - {(HERE, "decoded weights", "normal")} == {(HERE, "float", "low"), (HERE, "float", "normal")}
    assert (exact.decode_tokens, exact.decode_equal_tokens) == (24, 24)
    assert exact.max_abs_error < 1e-3 < records[HERE, "float", "normal"].max_abs_error
    shipped = read(good).runtime.settings["dynamic_option"]
    assert records[HERE, "float", "low"].settings.dynamic_option == shipped == 2
    first = (good / "contract.json").read_bytes()
    run(*arguments, "--fresh")
    assert (good / "contract.json").read_bytes() == first


def test_a_release_that_fails_now_loses_its_records(made, tmp_path):
    model, source = model_of(made, "fp32")
    good = shutil.copytree(model, tmp_path / "good")
    run("--model", good, "--source", source, "--releases", HERE, "--out", tmp_path / "out", "--quiet")
    contract = read(good)
    (mine, *_) = contract.verified
    elsewhere = replace(mine, platform="Plan9 mips")
    write(replace(contract, verified=(*contract.verified, elsewhere)), good)
    other = make_checkpoint(tmp_path / "other", "qwen2", seed=99, dtype="f32")
    result = run("--model", good, "--source", other, "--releases", HERE, "--out", tmp_path / "out", code=1)
    assert f"{HERE}: logits: " in result.output
    assert read(good).verified == (elsewhere,)


def test_a_model_runs_on_the_releases_that_it_promises(made, tmp_path):
    model, source = model_of(made, "fp32")
    good = shutil.copytree(model, tmp_path / "good")
    contract = read(good)
    target = replace(contract.target, releases=(HERE,))
    write(replace(contract, target=target, tokenizer=None, generation=None, chat=None), good)
    matrix = tool.Matrix((*sorted((OTHER, HERE)),))
    (row,) = rows.given_rows([good], [source], matrix, chosen=False)
    assert row.releases == (HERE,)
    (row,) = rows.given_rows([good], [source], matrix, chosen=True)
    assert row.releases == matrix.releases


# ---- without the checkpoint ----


def without_source(made, tmp_path: Path) -> tuple[Path, list]:
    """A copy of a model and the arguments that run it without its checkpoint."""
    good = shutil.copytree(model_of(made, "int8")[0], tmp_path / "good")
    return good, ["--model", good, "--releases", HERE, "--out", tmp_path / "out", "--json", tmp_path / "m.json"]


def test_without_a_checkpoint_a_model_is_compared_with_what_it_stores(made, tmp_path):
    good, arguments = without_source(made, tmp_path)
    pages = ["--markdown", tmp_path / "m.md", "--html", tmp_path / "m.html"]
    output = " ".join(run(*arguments, *pages).output.split())
    assert "int8, no checkpoint" in output and "good was compared with its own files only" in output
    for name in ("m.md", "m.html"):
        assert "good was compared with its own files only" in (tmp_path / name).read_text()
    (cell,) = json.loads((tmp_path / "m.json").read_text())["cells"]
    found = {name: check["ok"] for name, check in cell["checks"].items()}
    assert found == {**dict.fromkeys(CHECKS, True), "tokenizer": None, "chat": None}
    assert cell["status"] == "as stored" and SYMBOLS["as stored"] in output and SYMBOLS["right"] not in output
    assert "0 of 1 cells right, 1 as stored" in output
    assert 0 < cell["error"] < 1e-3 and cell["checks"]["greedy"]["equal"] == 24
    (record,) = read(good).verified
    assert (record.reference, record.settings.memory) == ("decoded weights", "normal")


def test_without_a_checkpoint_wrong_numbers_are_found(made, tmp_path):
    good, arguments = without_source(made, tmp_path)
    config = json.loads((good / "llm_config.json").read_text())
    (good / "llm_config.json").write_text(json.dumps({**config, "attention_mask": "int"}))
    output = run(*arguments, code=1).output
    assert SYMBOLS["wrong"] in output and "cache: " in output and "C811" in output
    assert read(good).verified == ()


def test_without_a_checkpoint_ids_outside_the_vocabulary_are_wrong(made):
    folder = model_of(made, "int8")[0]
    artefact = FolderArtefact("own", "int8", folder, FolderSource(folder), read(folder))
    size = artefact.source.card.vocab_size
    judge = _Judge(artefact, HERE, None, None)
    assert judge._tokenizer({"ids": [[0, size - 1], []]})["ok"] is None
    assert judge._tokenizer({"ids": [[0, size]]}) == {
        "ok": False,
        "note": "1 of 1 texts get ids outside the vocabulary",
    }


# ---- judging ----


@pytest.fixture(scope="module")
def artefact(made):
    """The fp32 model of the run."""
    model, source = model_of(made, "fp32")
    return Artefact("qwen2", "fp32", model, Source(source), read(model))


def test_a_run_past_the_time_limit_is_a_result(artefact):
    cell = run_cell(artefact, HERE, Path(sys.executable), 0.01)
    assert (cell["status"], cell["checks"]["load"]["ok"]) == ("timeout", False)
    assert "was stopped after" in cell["checks"]["load"]["note"]


def test_a_folder_without_a_model_does_not_load(artefact, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    empty = Artefact("empty", "fp32", tmp_path, artefact.source, artefact.contract)
    cell = run_cell(empty, HERE, Path(sys.executable), 60)
    assert cell["status"] in ("no load", "crash")
    assert cell["checks"]["load"]["ok"] is False


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("logits", {"max_position_embeddings": 512, "rope_theta": 9999.0}),
        ("tokenizer", {"tokenizer": ('"add_prefix_space":false', '"add_prefix_space":true')}),
        ("chat", {"template": ("assistant", "helper")}),
    ],
)
def test_each_reference_can_fail_its_check(made, artefact, tmp_path, check, change):
    source = shutil.copytree(artefact.source.folder, tmp_path / "source")
    if check == "logits":
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps({**config, **change}))
    name = {"tokenizer": "tokenizer.json", "chat": "chat_template.jinja"}.get(check)
    if name is not None:
        (source / name).write_text((source / name).read_text().replace(*next(iter(change.values()))))
    changed = Artefact("qwen2", "fp32", artefact.folder, Source(source), artefact.contract)
    cell = run_cell(changed, HERE, Path(sys.executable), 60)
    assert cell["status"] == "wrong"
    assert cell["checks"][check]["ok"] is False


def test_greedy_tokens_other_than_the_references_fail(artefact, monkeypatch):
    logits = Artefact.logits

    def other(self, ids, kind):
        found = logits(self, ids, kind)
        return np.roll(found, 1, axis=1) if len(ids) not in (len(self.source.ids), 40) else found

    monkeypatch.setattr(Artefact, "logits", other)
    checks = run_cell(artefact, HERE, Path(sys.executable), 60)["checks"]
    assert [name for name, check in checks.items() if not check["ok"]] == ["greedy"]
    assert checks["greedy"]["equal"] == 0


def test_decoded_and_float_references_differ_by_what_rounding_costs(made):
    model, source = model_of(made, "int8")
    rounded = Artefact("qwen2", "int8", model, Source(source), read(model))
    ids = rounded.source.ids
    gap = np.abs(rounded.logits(ids, "float") - rounded.logits(ids, "decoded weights")).max()
    assert 1e-2 < gap < 10


@pytest.mark.mnn
@pytest.mark.parametrize("before", ["join-linears{narrow=4096}", "rotate"])
def test_models_that_were_rewritten_are_compared_with_their_checkpoint(made, tmp_path, before):
    _, source = model_of(made, "fp32")
    arguments = ["--passes", f"infer-types,{before},int8", "--verify", "none"]
    assert CliRunner().invoke(compile_main, [str(source), "-o", str(tmp_path / "model"), *arguments]).exit_code == 0
    place = tmp_path / "out"
    run("--model", tmp_path / "model", "--source", source, "--releases", HERE, "--out", place)


def test_a_model_fitted_to_a_text_has_no_reference_in_its_checkpoint(made, tmp_path):
    model, source = model_of(made, "fp32")
    fitted = shutil.copytree(model, tmp_path / "fitted")
    contract = json.loads((fitted / "contract.json").read_text())
    contract["pipeline"]["text"] = "infer-types,calibrate,balance," + contract["pipeline"]["text"]
    (fitted / "contract.json").write_text(json.dumps(contract))
    arguments = ["--model", fitted, "--source", source, "--releases", HERE, "--out", tmp_path / "out"]
    assert "U976" in run(*arguments, code=1).output


# ---- choosing ----


def test_lists_of_releases_models_and_pipelines():
    assert tool.find_releases("") == LLM_RELEASES
    assert tool.find_releases("3.6.1, 3.4.0") == ("3.4.0", "3.6.1")
    assert tool.find_releases(">=3.4,<3.5") == ("3.4.0", "3.4.1")
    assert rows.find_models("mistral,qwen3*") == ["mistral", "qwen3", "qwen3-yarn"]
    assert rows.find_models("") == [*rows.MODELS, "tiny-qwen2.5"]
    assert split_list("fp32, default{keep=[a,b] bits=3},int8") == ["fp32", "default{keep=[a,b] bits=3}", "int8"]


@pytest.mark.parametrize("names", ["3.4.2", "3.0.0", "<3.4"])
def test_releases_without_a_runtime_are_refused(names):
    with pytest.raises(LadingError, match="U971"):
        tool.find_releases(names)


def test_names_that_do_not_exist_are_refused(tmp_path):
    out = ["--out", tmp_path / "out"]
    assert "U972" in run("--families", "qwen22", *out, code=1).output
    assert "U972" in run("--precisions", "", *out, code=1).output
    # Commas inside braces part nothing: only the last of three precisions is unknown.
    output = run("--precisions", "fp32, default{keep=[a,b] bits=3},int9", *out, code=1).output
    assert output.count("error[") == 1 and "error[P301]" in output and "'int9'" in output


def test_a_model_needs_its_own_checkpoint(made, tmp_path):
    model, source = model_of(made, "fp32")
    arguments = ["--model", model, "--releases", HERE, "--out", tmp_path / "out"]
    assert "U973" in run(*arguments, "--model", model, "--source", source, code=1).output
    other = make_checkpoint(tmp_path / "other", "llama")
    assert "U974" in run(*arguments, "--source", other, code=1).output
    changed = shutil.copytree(source, tmp_path / "changed")
    (changed / "tokenizer.json").write_text("{}")
    assert "Q435" in run(*arguments, "--source", changed, code=1).output


def test_a_report_that_cannot_be_written_is_an_error(copy, tmp_path):
    (tmp_path / "file").write_text("")
    assert "U975" in run(*copy[1][:-1], tmp_path / "file" / "m.json", code=1).output
