"""Output directories appear complete or not at all, and nothing of others is removed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from backends import staging as stagings
from backends.staging import MARKER, check_target, staged_directory
from ir.base import scratch, whole_files
from ir.base.diag import LadingError
from tests.support.kills.compiled_folder import contents, fill, is_whole
from tests.support.kills.kill_points import run_stopped
from tests.support.paths import ROOT

OLD, NEW, NEWER = {"weights": "old", "only.old": "o"}, {"weights": "new", "below/only.new": "n"}, {"weights": "newer"}
MODULES = (stagings, scratch, whole_files)


def contract(**parts) -> str:
    """The least that a contract of this compiler has, in any version of its format, with some parts replaced."""
    entry = {"path": "thesis.tex", "bytes": 1, "sha256": "0" * 64}
    return json.dumps({"contract_version": "0.1", "compiler": {"name": "lading"}, "files": [entry], **parts})


FOREIGN_CONTRACTS = (
    None, "{}", "[]", "\0", "[" * 100_000, '{"contract_version": "1.0"}', '{"name": "lading"}', contract(compiler={}),
    contract(compiler={"name": "other"}), contract(contract_version=1), contract(files={}), contract(files=["thesis.tex"]),
    contract(files=[{"path": "thesis.tex"}]), contract(files=[{"path": "../x", "bytes": 1, "sha256": "0" * 64}]),
    contract(files=[{"path": "/etc/x", "bytes": 1, "sha256": "0" * 64}]),
)  # fmt: skip
"""What another program may call contract.json."""


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def make(out: Path, files: dict[str, str], force: bool = False) -> None:
    with staged_directory(out, force=force) as staging:
        fill(staging, files)


def refusal(out: Path, force: bool = True) -> LadingError:
    with pytest.raises(LadingError) as error, staged_directory(out, force=force):
        pass
    return error.value


@pytest.fixture(params=["exchange", "two renames"])
def way(request, monkeypatch):
    """Both ways to replace a folder: that of a file system which exchanges, and the other."""
    if request.param == "two renames":
        monkeypatch.setattr(stagings, "_exchange", lambda one, other: False)
    return request.param


def test_directory_appears_with_its_parents(tmp_path):
    out = tmp_path / "a" / "b"
    with staged_directory(out) as staging:
        assert not out.exists() and staging.parent == out.parent
        fill(staging, NEW)
    assert contents(out) == NEW and listing(out.parent) == ["b"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_when_the_work_fails(tmp_path, error):
    with pytest.raises(error), staged_directory(tmp_path / "a" / "b") as staging:
        fill(staging, NEW)
        raise error
    assert listing(tmp_path) == []


def test_existing_directory_is_kept_without_force(tmp_path):
    make(tmp_path / "out", OLD)
    assert refusal(tmp_path / "out", force=False).code == "B630" and contents(tmp_path / "out") == OLD


def test_empty_directory_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    make(tmp_path / "out", NEW)
    assert contents(tmp_path / "out") == NEW and listing(tmp_path) == ["out"]


def test_force_replaces_what_the_compiler_wrote(tmp_path, way):
    make(tmp_path / "out", OLD)
    make(tmp_path / "out", NEW, force=True)
    assert contents(tmp_path / "out") == NEW and is_whole(tmp_path / "out") and listing(tmp_path) == ["out"]


def test_this_system_exchanges_folders(tmp_path):
    """The other way is for file systems that do not; were it taken here, nobody would notice."""
    for name in ("a", "b"):
        (tmp_path / name / name).mkdir(parents=True)
    assert stagings._exchange(tmp_path / "a", tmp_path / "b")
    assert listing(tmp_path / "a") == ["b"] and listing(tmp_path / "b") == ["a"]
    with pytest.raises(FileNotFoundError):
        stagings._exchange(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize("text", FOREIGN_CONTRACTS)
def test_force_does_not_replace_what_others_wrote(tmp_path, text):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    if text is not None:
        (out / MARKER).write_text(text)
    assert refusal(out).code == "B631" and (out / "thesis.tex").read_text() == "x"


def test_force_replaces_what_another_version_wrote(tmp_path):
    """Of the contract only that counts which every version says: whose it is, and which files."""
    out = tmp_path / "out"
    make(out, OLD)
    contract = json.loads((out / MARKER).read_text())
    kept = {key: contract[key] for key in ("compiler", "files")}
    (out / MARKER).write_text(json.dumps({**kept, "contract_version": "9.7", "mood": "new"}))
    make(out, NEW, force=True)
    assert is_whole(out) and contents(out) == NEW
    (out / MARKER).write_text(json.dumps({**kept, "compiler": {"name": "another"}}))
    assert refusal(out).code == "B631"


def test_force_replaces_what_another_version_of_the_compiler_wrote(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    (out / MARKER).write_text(contract(new_field=1))
    make(out, NEW, force=True)
    assert contents(out) == NEW and listing(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("notes.txt", "notes.txt"),
        ("below/notes.txt", "below/notes.txt"),
        ("other/notes.txt", "other"),
        ("*[!a]?", "*[!a]?"),
        ("__pycache__/notes.txt", "__pycache__/notes.txt"),
        (".contract.json.part-1-0123456789ab", ".contract.json.part-1-0123456789ab"),
    ],
)
def test_foreign_files_are_named_and_kept(tmp_path, path, named):
    out = tmp_path / "out"
    make(out, NEW)
    (out / path).parent.mkdir(exist_ok=True)
    (out / path).write_text("mine")
    error = refusal(out)
    assert error.code == "B633" and error.diagnostics[0].message.endswith(f"so it is not replaced: {named}")
    assert (out / path).read_text() == "mine" and (out / "weights").read_text() == "new"


def test_foreign_folders_and_links_are_named_and_kept(tmp_path):
    out = tmp_path / "out"
    make(out, OLD)
    (out / "empty").mkdir()
    (out / "link").symlink_to(tmp_path)
    assert "so it is not replaced: empty, link" in str(refusal(out))


def test_many_foreign_files_are_counted(tmp_path):
    make(tmp_path / "out", OLD)
    for name in "abcde":
        (tmp_path / "out" / name).write_text("x")
    assert ": a, b, c and 2 more" in str(refusal(tmp_path / "out"))


def test_byte_code_of_a_listed_module_is_not_foreign(tmp_path):
    out = tmp_path / "out"
    make(out, {"check_inputs.py": "", "weights": ""})
    (out / "__pycache__").mkdir()
    (out / "__pycache__" / "check_inputs.cpython-311.pyc").write_text("x")
    make(out, NEW, force=True)
    assert contents(out) == NEW and listing(tmp_path) == ["out"]
    (out / "__pycache__").mkdir()
    (out / "__pycache__" / "check_inputs.cpython-311.pyc").write_text("x")
    assert refusal(out).code == "B633"


def test_foreign_file_that_comes_while_the_folder_is_replaced_moves_to_the_new_one(tmp_path, monkeypatch, way):
    out, put = tmp_path / "out", stagings._put_in_place
    make(out, {**OLD, "below/a": ""})

    def late(staging, place):
        for name in ("late", "below/late", "weights.late"):
            (out / name).write_text(name)
        return put(staging, place)

    monkeypatch.setattr(stagings, "_put_in_place", late)
    make(out, {**NEW, "weights.late": "n"}, force=True)
    found = contents(out)
    assert found.pop("late") == "late" and found.pop("below/late") == "below/late"
    assert found == {**NEW, "weights.late": "n"}
    monkeypatch.undo()
    # One of the same name as a new file stays beside the folder, and no later run removes it.
    (left,) = [path for path in tmp_path.iterdir() if path != out]
    assert (left / "weights.late").read_text() == "weights.late"
    check_target(out / ".." / "out", True) if not stagings.foreign_files(out) else None
    with pytest.raises(LadingError):
        check_target(out, False)
    assert (left / "weights.late").read_text() == "weights.late"


def test_old_output_survives_a_failing_replacement(tmp_path):
    make(tmp_path / "out", OLD)
    with pytest.raises(RuntimeError), staged_directory(tmp_path / "out", force=True) as staging:
        fill(staging, NEW)
        raise RuntimeError
    assert contents(tmp_path / "out") == OLD and listing(tmp_path) == ["out"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.EIO])
def test_old_output_survives_a_refused_replacement(tmp_path, monkeypatch, number):
    make(tmp_path / "out", OLD)

    def refuse(one, other):
        raise OSError(number, os.strerror(number), str(other))

    monkeypatch.setattr(stagings, "_exchange", refuse)
    with pytest.raises(LadingError) as error:
        make(tmp_path / "out", NEW, force=True)
    assert error.value.code == "B632" and contents(tmp_path / "out") == OLD and listing(tmp_path) == ["out"]


def test_old_output_is_put_back_when_the_second_rename_is_refused(tmp_path, monkeypatch):
    make(tmp_path / "out", OLD)
    rename = os.rename

    def refuse(one, other):
        if ".partial-" in str(one):
            raise OSError(errno.EACCES, "refused")
        rename(one, other)

    monkeypatch.setattr(stagings, "_exchange", lambda one, other: False)
    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(LadingError) as error:
        make(tmp_path / "out", NEW, force=True)
    assert error.value.code == "B632" and contents(tmp_path / "out") == OLD and listing(tmp_path) == ["out"]


def test_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("x")
    assert refusal(tmp_path / "out").code == "B631"
    (tmp_path / "link").symlink_to(tmp_path)
    assert refusal(tmp_path / "link").code == "B631"


def test_parent_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    assert refusal(tmp_path / "file" / "out").code == "B632" and listing(tmp_path) == ["file"]


def test_current_folder_and_mount_points_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "-o " + str(tmp_path / "model") in str(refusal(Path(".")))
    assert refusal(tmp_path).code == "B635"
    monkeypatch.chdir("/")
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path)
    assert "a mount point" in str(refusal(tmp_path))


@pytest.mark.parametrize("name", ["o" * 255, "[a-z]*?", "ö" * 127, "-", " x\n", os.fsdecode(b"\xff")])
def test_names_of_all_kinds(tmp_path, name, way):
    out = tmp_path / name
    make(out, OLD)
    left = scratch.new_folder(tmp_path, scratch.scratch_prefix(name, "partial"))
    left.close()
    make(out, NEW, force=True)
    assert contents(out) == NEW and listing(tmp_path) == [name]


# ---- errors of writing ----


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO])
def test_what_cannot_be_written_has_a_code_and_leaves_nothing(tmp_path, number):
    with pytest.raises(LadingError) as error, staged_directory(tmp_path / "out") as staging:
        raise OSError(number, os.strerror(number), str(staging / "weights"))
    assert error.value.code == "B634" and "cannot write weights: " in str(error.value) and listing(tmp_path) == []


def test_errors_of_reading_elsewhere_are_left_alone(tmp_path):
    with pytest.raises(FileNotFoundError), staged_directory(tmp_path / "out"):
        (tmp_path / "none").read_text()
    assert listing(tmp_path) == []


def test_full_disk_while_flushing(tmp_path, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    make(tmp_path / "out", OLD)
    monkeypatch.setattr(stagings, "sync", full)
    with pytest.raises(LadingError) as error:
        make(tmp_path / "out", NEW, force=True)
    assert error.value.code == "B634" and contents(tmp_path / "out") == OLD and listing(tmp_path) == ["out"]


# ---- stopped at any moment ----


def lines_of(action) -> int:
    code, told = run_stopped(action, MODULES, -1, signal.SIGKILL)
    assert code == 0
    return int(told.splitlines()[0])


@pytest.fixture
def no_disk(monkeypatch):
    """Flushing takes long and changes nothing that a killed process could leave."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def points(lines: int, step: int, offset: int) -> range:
    return range(1 + offset % step, lines + 1, step)


@pytest.mark.parametrize(
    ("number", "step"), [(signal.SIGKILL, 7), (signal.SIGINT, 19), (signal.SIGTERM, 19), (signal.SIGHUP, 19)]
)
def test_stopped_at_any_line_there_is_the_old_folder_or_the_new(tmp_path, way, no_disk, number, step):
    out = tmp_path / "out"

    def replace():
        make(out, NEW, force=True)

    make(out, OLD)
    seen = set()
    for point in points(lines_of(replace) - 1, step, number):
        make(out, OLD, force=True)
        code, told = run_stopped(replace, MODULES, point, number)
        said = told.splitlines()[1:]
        if not out.exists():
            # Only where folders cannot be exchanged, and the process had no chance to put the old one back.
            assert number == signal.SIGKILL and way == "two renames", point
            with pytest.raises(LadingError):
                check_target(out, False)
            assert contents(out) == OLD
        found = contents(out)
        assert is_whole(out) and found in (OLD, NEW), point
        if code >= 0:
            assert (said == [str(out)]) == (found == NEW), (point, said)
        seen.add(found["weights"])
        make(out, NEWER, force=True)
        assert contents(out) == NEWER and listing(tmp_path) == ["out"], point
    assert seen == {"old", "new"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_stopped_at_any_line_a_first_folder_is_whole_or_not_there(tmp_path, no_disk, number):
    out = tmp_path / "a" / "out"
    steps = 11 if number == signal.SIGKILL else 23
    seen = set()
    for point in points(lines_of(lambda: make(tmp_path / "b" / "out", NEW)) - 1, steps, number):
        run_stopped(lambda: make(out, NEW), MODULES, point, number)
        assert not out.exists() or (is_whole(out) and contents(out) == NEW), point
        seen.add(out.exists())
        make(out, NEWER, force=True)
        assert contents(out) == NEWER and listing(out.parent) == ["out"], point
        for path in sorted(out.rglob("*")):
            path.unlink()
        out.rmdir()
        out.parent.rmdir()
    assert seen == {True, False}


def test_interrupt_while_working_leaves_nothing_at_all(tmp_path):
    def work():
        with staged_directory(tmp_path / "a" / "out") as staging:
            fill(staging, NEW)
            os.kill(os.getpid(), signal.SIGTERM)

    assert run_stopped(work, MODULES, -1, signal.SIGTERM)[0] == 1 and listing(tmp_path) == []


# ---- what killed runs left ----

HOLDER = """
import sys, time
from pathlib import Path
from ir.base.scratch import new_folder, scratch_prefix
made = new_folder(Path(sys.argv[1]), scratch_prefix("out", "partial"))
print(made.path.name, flush=True)
sys.stdin.read()
"""


def test_folder_of_a_process_that_lives_is_left_alone(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        name = process.stdout.readline().strip()
        make(tmp_path / "out", NEW)
        assert listing(tmp_path) == sorted([name, "out"])
    finally:
        process.kill()
        process.communicate()
    make(tmp_path / "out", NEWER, force=True)
    assert listing(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "name",
    [
        ".out.partial-1",
        ".out.partial-99999999-xyz",
        ".out.partial-",
        ".outer.partial-99999999-0123456789ab",
        ".out.partial",
    ],
)
def test_names_that_only_look_alike_are_left_alone(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / ".out.partial-99999999-0123456789ab").symlink_to(tmp_path / name)
    make(tmp_path / "out", NEW)
    assert listing(tmp_path) == sorted([name, ".out.partial-99999999-0123456789ab", "out"])
