"""How a repair is verified: against the original, on a release that runs it, and never against itself alone."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import tools.repair.run as tool
from backends.contract import read
from backends.mnn.dialect import norm
from backends.mnn.lift.folder import lifted
from backends.mnn.read.model_folder import Subject
from backends.mnn.target.environments import interpreters
from backends.mnn.target.releases import target
from ir.base.diag import LadingError
from tests.support.checkpoints import make_checkpoint
from tests.support.paths import DATA
from tests.support.runs import compiled
from tools.repair.command import main, repair
from tools.repair.run import Runs
from tools.shared.cli import EXIT_UNPROVEN

QWEN3, UNFUSED = DATA / "exports" / "qwen3-int4", DATA / "official-unfused-int4"
OLDER = ">=3.4,<3.6.1"

needs_newest = pytest.mark.skipif("3.6.1" not in interpreters(), reason="the original runs on MNN 3.6.1 only")


def run(*arguments: object):
    """The command in this process."""
    return CliRunner().invoke(main, [str(item) for item in arguments])


def lifted_graph(folder: Path):
    """The graph that a repair writes."""
    return lifted(Subject(folder), target("portable"))[0]


def only(monkeypatch, found: dict[str, Path | str]) -> None:
    """Let this machine have these releases."""
    monkeypatch.setattr("backends.mnn.target.environments.interpreters", lambda: found)


# ---- where both run ----

ALL = ("3.4.0", "3.4.1", "3.5.0", "3.6.0", "3.6.1")


def runs(here, target=ALL, result=ALL, original=("3.6.1",), module=()) -> Runs:
    """Releases that are here, by name."""
    return Runs({version: f"python-{version}" for version in here}, target, result, original, module)


def test_the_installed_release_is_preferred_and_else_the_newest_of_the_target():
    assert runs(ALL).of_result("3.5.0", "auto") == ["3.5.0"]
    assert runs(ALL, ALL[:-1]).of_result("3.6.1", "auto") == ["3.6.0"]
    assert runs(ALL[:2]).of_result("3.6.1", "quick") == ["3.4.1"]
    assert runs(ALL, ALL[:2]).of_result("3.6.1", "full") == ["3.4.0", "3.4.1"]


def test_a_release_outside_the_target_serves_only_if_the_result_is_healthy_there():
    assert runs(["3.6.1"], ALL[:-1]).of_result("3.6.1", "auto") == ["3.6.1"]
    assert runs(["3.5.0"], ["3.6.1"], result=["3.6.1"]).of_result("3.5.0", "auto") == []
    assert runs([]).of_result(None, "full") == []


def test_the_original_runs_where_the_result_runs_if_it_can():
    assert runs(ALL, original=ALL[2:]).of_original("3.5.0") == [("3.5.0", False), ("3.6.1", False), ("3.6.0", False)]
    assert runs(ALL).of_original("3.4.0") == [("3.6.1", False)]
    assert runs(ALL[:3]).of_original("3.5.0") == []
    assert runs(ALL[:3], original=(), module=ALL).of_original("3.4.1") == [
        ("3.4.1", True), ("3.5.0", True), ("3.4.0", True),
    ]  # fmt: skip


# ---- real runs ----


@needs_newest
@pytest.mark.skipif("3.6.0" not in interpreters(), reason="a release of the target is needed")
def test_a_target_without_the_release_of_the_original_is_compared_across_releases(tmp_path):
    done = repair(QWEN3, tmp_path / "a", OLDER, verify="auto")
    found = done.outcome
    assert done.before == [] and (found.original, found.outside, found.reason) == ("3.6.1", [], "")
    assert done.compared and found.releases[0] in done.after and 0.0 < found.from_original < 1e-3
    assert [item.release for item in read(tmp_path / "a").verified] == found.releases
    text = run(QWEN3, "-o", tmp_path / "b", "--target", OLDER, "--verify", "full")
    here = [version for version in ALL[:-1] if version in interpreters()]
    assert text.exit_code == 0 and f"run on MNN {', '.join(here)}: " in text.stdout
    assert "off the original, run on MNN 3.6.1" in text.stdout
    assert [item.release for item in read(tmp_path / "b").verified] == here


@needs_newest
def test_a_release_outside_the_target_is_named_and_kept_out_of_the_contract(tmp_path, monkeypatch):
    only(monkeypatch, {"3.6.1": interpreters()["3.6.1"]})
    result = run(QWEN3, "-o", tmp_path / "a", "--target", OLDER)
    assert result.exit_code == 0, result.output
    assert "run on MNN 3.6.1, which is no release of the target: logits at most" in result.stdout
    assert read(tmp_path / "a").verified == ()


@needs_newest
@pytest.mark.parametrize("target", ["portable", OLDER])
def test_a_misread_original_is_not_delivered(tmp_path, monkeypatch, target):
    """A gain that is lost while reading: the stored weights agree with the result, the original does not."""
    whole = norm.gain_and_shift
    monkeypatch.setattr(norm, "gain_and_shift", lambda weights, op, size, alone=False: whole(weights, op, size))
    result = run(QWEN3, "-o", tmp_path / "a", "--target", target)
    assert (
        result.exit_code == 1 and "error[U952]" in result.stderr and "the original gives on MNN 3.6.1" in result.stderr
    )
    assert list(tmp_path.iterdir()) == []


@needs_newest
def test_a_result_with_other_logits_than_its_weights_is_not_written(tmp_path, monkeypatch):
    stored = tool.stored_logits
    monkeypatch.setattr(tool, "stored_logits", lambda graph, ids: stored(graph, ids) + 0.1)
    with pytest.raises(LadingError, match="stored weights give") as caught:
        repair(UNFUSED, tmp_path / "out", verify="quick")
    assert caught.value.code == "U952" and list(tmp_path.iterdir()) == []


# ---- originals that lack logits_index ----


@pytest.fixture
def old(tmp_path) -> Path:
    """A model without logits_index, which the language-model runtime of no release drives."""
    return compiled(make_checkpoint(tmp_path / "source", "qwen2"), tmp_path / "old", "int8", target="3.0.0")


@needs_newest
def test_an_original_without_logits_index_is_run_as_a_plain_module(old, tmp_path):
    done = repair(old, tmp_path / "a", verify="quick")
    assert done.before == [] and done.compared and done.outcome.as_module and done.outcome.from_original < 1e-3
    result = run(old, "-o", tmp_path / "b")
    assert result.exit_code == 0 and "off the original, run as a plain module on MNN" in result.stdout


@needs_newest
def test_a_plain_module_with_other_logits_is_noticed(old, tmp_path, monkeypatch):
    ran = tool.module_logits
    monkeypatch.setattr(tool, "module_logits", lambda *arguments: ran(*arguments) + 0.1)
    with pytest.raises(LadingError, match="the original gives on MNN") as caught:
        repair(old, tmp_path / "a", verify="quick")
    assert caught.value.code == "U952" and not (tmp_path / "a").exists()


@needs_newest
def test_a_plain_module_with_unknown_inputs_is_told(old, tmp_path, monkeypatch):
    monkeypatch.setattr("backends.mnn.read.model_folder.Subject.read_inputs", {"input_ids", "position_ids", "extra"})
    inputs = {"input_ids": {"dims": [-1, 1, 7]}, "position_ids": {"dims": [1, -1]}, "extra": {}}
    monkeypatch.setattr("backends.mnn.read.model_folder.Subject.inputs", inputs)
    wanted = "its input (input_ids is declared as .-1, 1, 7.|extra is declared as ..), which is not known"
    with pytest.raises(LadingError, match=wanted):
        tool.module_logits(old, [1, 2], "3.6.1", "", lifted_graph(old))


# ---- nothing to compare with ----


def test_without_any_release_the_first_line_and_the_exit_code_say_so(tmp_path, monkeypatch):
    only(monkeypatch, {})
    result = run(QWEN3, "-o", tmp_path / "a")
    first, *others = result.stdout.splitlines()
    assert result.exit_code == EXIT_UNPROVEN == 4
    assert first.startswith("warning[U954]") and "not compared with the original: it cannot be run here" in first
    assert others[-1] == "not run" and "/a: no fault is seen on 3.4.0" in result.stdout
    assert read(tmp_path / "a").verified == ()
    data = json.loads(run(QWEN3, "-o", tmp_path / "a", "--force", "--json").stdout)
    assert data["compared"] is False and data["run_on"] == [] and "cannot be run here" in data["not_compared"]


@pytest.mark.parametrize("verify", ["quick", "full"])
def test_a_run_that_is_asked_for_must_be_possible(tmp_path, monkeypatch, verify):
    only(monkeypatch, {})
    result = run(QWEN3, "-o", tmp_path / "a", "--verify", verify)
    assert result.exit_code == 1 and "error[U953]" in result.stderr and not (tmp_path / "a").exists()


def test_verification_that_is_switched_off_is_told_first(tmp_path):
    result = run(UNFUSED, "-o", tmp_path / "a", "--verify", "none")
    assert result.exit_code == 0
    assert result.stdout.startswith("warning[U954]") and "verification is off" in result.stdout.splitlines()[0]


@needs_newest
def test_an_original_that_no_release_runs_is_told(tmp_path):
    folder = shutil.copytree(UNFUSED, tmp_path / "model")
    config = folder / "llm_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "attention_mask": "int"}))
    result = run(folder, "-o", tmp_path / "a", "--verify", "quick")
    assert result.exit_code == EXIT_UNPROVEN, result.output
    assert "it is broken on every release" in result.stdout.splitlines()[0]
    assert "off the stored weights" in result.stdout and "off the original" not in result.stdout
    assert len(read(tmp_path / "a").verified) == 1


@needs_newest
def test_an_original_whose_release_is_not_here_is_told(tmp_path, monkeypatch):
    here = {version: path for version, path in interpreters().items() if version < "3.6.1"}
    if not here:
        pytest.skip("an older release is needed")
    only(monkeypatch, here)
    result = run(QWEN3, "-o", tmp_path / "a")
    assert result.exit_code == EXIT_UNPROVEN
    assert f"it runs on 3.6.1, and here there is {', '.join(here)}" in result.stdout.splitlines()[0]


@needs_newest
def test_an_original_that_fails_is_told(tmp_path, monkeypatch):
    ran = tool.logits

    def fails(folder, ids, version, interpreter):
        if folder == QWEN3:
            raise LadingError("B667", "the process crashed")
        return ran(folder, ids, version, interpreter)

    monkeypatch.setattr(tool, "logits", fails)
    result = run(QWEN3, "-o", tmp_path / "a")
    assert result.exit_code == EXIT_UNPROVEN
    assert "on MNN 3.6.1 it was found healthy, but the process crashed" in result.stdout.splitlines()[0]


def test_this_interpreter_stands_for_the_installed_release(monkeypatch, tmp_path):
    monkeypatch.setenv("LADING_MNN_ENVS", str(tmp_path))
    monkeypatch.setattr("backends.mnn.target.environments.installed_version", lambda: "3.5.0")
    assert interpreters() == {"3.5.0": sys.executable}
    monkeypatch.setattr("backends.mnn.target.environments.installed_version", lambda: "2.9.0")
    assert interpreters() == {}
