"""Output directories appear complete or not at all."""

from __future__ import annotations

import os

import pytest

from backends.staging import MARKER, staged_directory
from ir.base.diag import LadingError


def write(folder):
    (folder / MARKER).write_text("{}")
    (folder / "weights").write_bytes(b"new")


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_directory_appears_with_its_parents(tmp_path):
    out = tmp_path / "a" / "b"
    with staged_directory(out) as staging:
        assert not out.exists() and staging.parent == out.parent
        write(staging)
    assert listing(out) == [MARKER, "weights"] and listing(out.parent) == ["b"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_when_the_work_fails(tmp_path, error):
    with pytest.raises(error), staged_directory(tmp_path / "a" / "b") as staging:
        write(staging)
        raise error
    assert listing(tmp_path) == []


def test_existing_directory_is_kept_without_force(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("x")
    with pytest.raises(LadingError) as error, staged_directory(out):
        pass
    assert error.value.code == "B630" and listing(out) == ["mine"]


def test_empty_directory_is_taken(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with staged_directory(out) as staging:
        write(staging)
    assert listing(out) == [MARKER, "weights"]


def test_force_replaces_what_the_compiler_wrote(tmp_path):
    out = tmp_path / "out"
    with staged_directory(out) as staging:
        write(staging)
        (staging / "old").write_text("x")
    with staged_directory(out, force=True) as staging:
        write(staging)
    assert listing(out) == [MARKER, "weights"] and listing(tmp_path) == ["out"]


def test_force_does_not_replace_what_others_wrote(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    with pytest.raises(LadingError) as error, staged_directory(out, force=True):
        pass
    assert error.value.code == "B631" and listing(out) == ["thesis.tex"]


def test_old_output_survives_a_failing_replacement(tmp_path):
    out = tmp_path / "out"
    with staged_directory(out) as staging:
        write(staging)
    with pytest.raises(RuntimeError), staged_directory(out, force=True):
        raise RuntimeError
    assert (out / "weights").read_bytes() == b"new" and listing(tmp_path) == ["out"]


def test_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(LadingError) as error, staged_directory(tmp_path / "out", force=True):
        pass
    assert error.value.code == "B631"


def test_parent_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(LadingError) as error, staged_directory(tmp_path / "file" / "out"):
        pass
    assert error.value.code == "B632" and listing(tmp_path) == ["file"]


def test_leftovers_of_killed_runs_are_removed(tmp_path):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    stale = tmp_path / f".out.partial-{pid}"
    stale.mkdir()
    (stale / "weights").write_bytes(b"x")
    with staged_directory(tmp_path / "out") as staging:
        write(staging)
    assert listing(tmp_path) == ["out"]
