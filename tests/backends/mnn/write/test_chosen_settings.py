"""Settings that were measured stand in the configuration and the contract, which still describes its files."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from backends.contract import Choice, RunSettings, check_files, read
from backends.mnn.write import chosen_settings
from backends.mnn.write.chosen_settings import write_chosen
from ir.base.diag import LadingError
from tests.support.checkpoints import make_checkpoint
from tools.compile.job import Request, compile_model

pytestmark = pytest.mark.mnn


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("chosen")
    source = make_checkpoint(place / "source", "qwen2")
    compile_model(Request(str(source), place / "out", "int4", verify="none", settings="attention_mode=0"))
    return place / "out"


def test_settings_that_are_given_are_written_and_in_the_contract(folder):
    configs = [json.loads(path.read_text()) for path in sorted(folder.glob("config*.json"))]
    assert len(configs) == 2 and all(config["attention_mode"] == 0 for config in configs)
    assert read(folder).runtime.settings["attention_mode"] == 0


def test_settings_that_the_target_does_not_read_are_refused_before_any_work(folder, tmp_path):
    with pytest.raises(LadingError) as caught:
        request = Request(str(folder.parent / "source"), tmp_path / "out", "int4", verify="none")
        compile_model(replace(request, settings="attention_mode=14"))
    assert caught.value.code == "B795" and not (tmp_path / "out").exists()


def test_chosen_settings_go_into_every_configuration_and_the_contract(folder):
    settings = RunSettings(memory="low", precision="low", threads=4, others={"kvcache_mmap": True})
    better = Choice(
        settings=settings, kl=2e-3, kl_decode=3e-3, top1=0.9, recommended=True, note="a mapped file: better"
    )
    worse = replace(better, settings=replace(settings, others={}), kl=1e-3, recommended=False)
    written = write_chosen(folder, {"kvcache_mmap": True}, [better, worse])
    assert read(folder) == written and check_files(written, folder) == []
    for path in folder.glob("config*.json"):
        config = json.loads(path.read_text())
        assert config["kvcache_mmap"] is True and config["attention_mode"] == 0 and config["llm_model"] == "llm.mnn"
    assert written.runtime.settings["kvcache_mmap"] is True
    assert [choice.kl for choice in written.runtime.choices] == [1e-3, 2e-3]
    # Measured again, the same settings have one entry; without anything chosen the configuration stays.
    before = (folder / "config.json").read_bytes()
    again = write_chosen(folder, {}, [replace(better, kl=5e-4, recommended=False)])
    assert [choice.kl for choice in again.runtime.choices] == [5e-4, 1e-3]
    assert (folder / "config.json").read_bytes() == before


def test_a_contract_that_cannot_be_written_leaves_configurations_as_they_were(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    def refused(contract, path):
        raise LadingError("C807", "the contract cannot be written: no room", str(path))

    monkeypatch.setattr(chosen_settings.c, "write", refused)
    with pytest.raises(LadingError, match="C807"):
        write_chosen(folder, {"attention_mode": 9}, [])
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_mapped_weights_bring_their_folder(folder):
    contract = read(folder)
    written = write_chosen(folder, {"use_mmap": True}, [])
    config = json.loads((folder / "config.json").read_text())
    assert config["tmp_path"].startswith(f"mnn-{contract.target.releases[0]}-") and config["use_mmap"] is True
    assert check_files(written, folder) == []
