"""Nothing outside of a model's folder is read or copied; the links of a download cache stay inside."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from backends.contract import check_files, read
from backends.mnn.doctor.examine import examine, run_and_compare
from backends.mnn.read.decoded_weights import MnnModel
from backends.mnn.target.releases import RELEASES
from ir.base.diag import LadingError
from ir.base.inside import outside
from tests.support.checkpoints import make_checkpoint
from tests.support.paths import DATA
from tests.support.runs import compiled
from tools.repair.command import repair

PORTABLE = tuple(RELEASES.values())


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A model with embedding rows in a file of their own."""
    source = make_checkpoint(tmp_path_factory.mktemp("source") / "model", "qwen2")
    return compiled(source, tmp_path_factory.mktemp("sound") / "out", "fp32")


@pytest.fixture
def model(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "model")


@pytest.fixture
def secret(tmp_path, sound):
    """A file of somebody else, in the form of embedding rows."""
    path = tmp_path / "secret.bin"
    shutil.copy(sound / "embeddings_bf16.bin", path)
    return path


OPENED: list[set[str]] = []
"""Where opened files are noted, while a test wants to know."""


def _note(event: str, arguments: tuple) -> None:
    if event == "open" and OPENED and isinstance(arguments[0], str | bytes | os.PathLike):
        OPENED[-1].add(os.path.realpath(os.fsdecode(arguments[0])))


sys.addaudithook(_note)


@pytest.fixture
def opened():
    """Real paths of all files that this process opens."""
    OPENED.append(set())
    yield OPENED[-1]
    OPENED.pop()


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def linked(name: str):
    """Put a link out of the folder in the place of a file."""

    def change(folder: Path, secret: Path) -> None:
        shutil.copy(folder / name, secret)
        (folder / name).unlink()
        (folder / name).symlink_to(secret)

    return change


WAYS = {
    "absolute": lambda folder, secret: edit(folder / "config.json", embedding_file=str(secret)),
    "dots": lambda folder, secret: edit(folder / "config.json", embedding_file="../secret.bin"),
    "other-file": lambda folder, secret: (
        edit(folder / "llm_config.json", embedding_file="../secret.bin")
        or edit(folder / "config.json", embedding_file=None)
    ),
    "base-dir": lambda folder, secret: edit(folder / "config.json", base_dir=str(secret.parent)),
    "tokenizer": lambda folder, secret: edit(folder / "config.json", tokenizer_file="../secret.bin"),
    "config": linked("config.json"),
    "llm-config": linked("llm_config.json"),
    "model": linked("llm.mnn"),
    "weights": linked("llm.mnn.weight"),
    "embedding": linked("embeddings_bf16.bin"),
    "mtok": linked("tokenizer.mtok"),
}


@pytest.mark.parametrize("way", WAYS)
def test_files_outside_are_neither_read_nor_copied(way, model, secret, tmp_path, opened):
    WAYS[way](model, secret)
    opened.clear()
    report = examine(model, PORTABLE)
    assert not report.healthy_on("3.6.1") and "B780" in {item.code for item in report.problems("3.6.1")}
    with pytest.raises(LadingError) as caught:
        repair(model, tmp_path / "out")
    assert caught.value.code == "B780" and not (tmp_path / "out").exists()
    assert opened and os.path.realpath(secret) not in opened
    run_and_compare(report, dict.fromkeys(RELEASES, sys.executable))
    assert "not run: it would open files outside of its folder" in report.runs["3.6.1"]


def test_what_decodes_written_files_stays_inside_too(model, secret):
    linked("llm.mnn.weight")(model, secret)
    with pytest.raises(LadingError) as caught:
        MnnModel(model)
    assert caught.value.code == "B780"


def test_a_contract_is_not_checked_against_files_outside(model, secret):
    linked("llm.mnn.weight")(model, secret)
    found = [item for item in check_files(read(model), model) if item.severity == "error"]
    assert [item.code for item in found] == ["C814"] and "a link out of the folder" in found[0].message


def test_links_within_the_folder_are_followed(model):
    (model / "parts").mkdir()
    shutil.move(model / "llm.mnn.weight", model / "parts" / "w")
    (model / "llm.mnn.weight").symlink_to(Path("parts", "w"))
    (model / "contract.json").unlink()
    assert examine(model, PORTABLE).healthy


@pytest.fixture
def snapshot(tmp_path):
    """An official export as the Hugging Face cache keeps it: every file a link to blobs of the repository."""
    repository = tmp_path / "hub" / "models--owner--name"
    folder = repository / "snapshots" / "0123abcd"
    folder.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted((DATA / "official-unfused-int4").iterdir())):
        shutil.copy(path, repository / "blobs" / f"{number:064x}")
        (folder / path.name).symlink_to(Path("..", "..", "blobs", f"{number:064x}"))
    return folder


def test_a_snapshot_of_the_hub_cache_is_read_and_repaired(snapshot, tmp_path):
    report = examine(snapshot, PORTABLE)
    assert report.healthy_on("3.6.1") and not {item.code for item in report.findings} & {"B780"}
    done = repair(snapshot, tmp_path / "out")
    assert done.after == list(RELEASES)
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_a_link_from_a_snapshot_to_elsewhere_is_not(snapshot, secret):
    (snapshot / "llm.mnn.weight").unlink()
    (snapshot / "llm.mnn.weight").symlink_to(secret)
    assert "B780" in {item.code for item in examine(snapshot, PORTABLE).problems("3.6.1")}


def test_where_paths_lead(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "loop").symlink_to("loop")
    assert outside(tmp_path / "a" / "x", tmp_path / "a") is None
    assert outside(tmp_path / "a" / ".." / "x", tmp_path / "a") == (tmp_path / "x").resolve()
    assert outside(tmp_path / "a" / "loop", tmp_path / "a") is None
    assert outside(tmp_path / "a" / "\0", tmp_path / "a") is None
    assert outside(tmp_path / "a" / ("n" * 300), tmp_path / "a") is None
