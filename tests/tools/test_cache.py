"""The cache command: what is kept, by kind, and how it goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ir.base.store import CACHE_VARIABLE, SIZE_VARIABLE, FolderStore
from tools.cache import main


@pytest.fixture
def store(tmp_path, monkeypatch) -> FolderStore:
    """A cache with some entries of some kinds, one of them not the compiler's own."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv(SIZE_VARIABLE, "1GB")
    store = FolderStore(tmp_path / "cache")
    for name in ("moments/a", "moments/b", "quantized/a", "mine/a"):
        with store.put(name, "Q441", "an entry") as path:
            path.write_bytes(b"x" * 952)
    return store


def run(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == code, result.output
    return result


def test_what_is_kept_is_shown_by_kind(store):
    lines = run().stdout.splitlines()
    assert lines[0] == str(store.folder) and lines[-1] == "total           4.00 kB, at most 1.00 GB"
    assert "moments         2.00 kB        2  just now    calibration statistics" in lines
    assert "mine            1.00 kB        1  just now" in lines
    assert all(len(line) <= 80 for line in lines[1:])
    data = json.loads(run("--json").stdout)
    assert (data["folder"], data["limit"], data["bytes"]) == (str(store.folder), 10**9, 4000)
    assert data["kinds"]["moments"] == {"entries": 2, "bytes": 2000}
    assert data["kinds"]["running"] == {"entries": 0, "bytes": 0}


def test_no_limit_and_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "none"))
    monkeypatch.setenv(SIZE_VARIABLE, "unlimited")
    assert run().stdout.endswith("total           0 bytes, no limit\n")
    assert run("--clear", "all").stdout == f"removed 0 entries, 0 bytes, from {tmp_path / 'none'}\n"
    assert not (tmp_path / "none").exists()


def test_one_kind_or_all_is_removed(store):
    assert run("--clear", "quantized").stdout == f"removed 1 entry, 1.00 kB, from {store.folder}\n"
    assert [entry.name for entry in store.entries()] == ["moments/a", "moments/b", "mine/a"]
    assert json.loads(run("--clear", "all", "--json").stdout)["removed"] == 3 and store.entries() == []
    assert run("--clear", "moments", "--quiet").output == ""


def test_what_a_run_uses_stays(store):
    other = FolderStore(store.folder)
    with other.holding():
        other.find("moments/a")
        result = run("--clear", "moments")
    assert result.stdout.splitlines()[1] == "1 entry in use by a running command stays"
    assert sorted(entry.name for entry in store.entries()) == ["mine/a", "moments/a", "quantized/a"]


def test_other_files_of_the_folder_are_left_alone(store):
    (store.folder / "moments" / "notes.txt").write_text("mine")
    run("--clear", "all")
    assert (store.folder / "moments" / "notes.txt").read_text() == "mine"


def test_unknown_kind(store):
    assert "error[U985]" in run("--clear", "quantised", code=1).stderr
    assert "did you mean 'quantized'?" in run("--clear", "quantised", code=1).stderr
    assert Path(store.folder, "quantized", "a.kept").exists()
