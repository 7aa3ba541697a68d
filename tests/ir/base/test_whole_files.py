"""Files and pairs of files are there whole or not at all, and what killed runs left goes."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ir.base import scratch, whole_files
from ir.base.scratch import abandoned, new_file, new_folder, scratch_folder, scratch_prefix
from ir.base.whole_files import write_pair, write_whole, written
from tests.support.kills.kill_points import run_stopped
from tests.support.paths import ROOT

MODULES = (scratch, whole_files)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def put(path: Path, text: str) -> None:
    with write_whole(path) as part:
        part.write_text(text)


def put_pair(path: Path, text: str) -> None:
    """A first file that names the second and says what must be in it."""
    write_pair(path, "side", lambda part: part.write_text(text) and None, lambda name: f"{name}:{text}".encode())


def pair(path: Path) -> str:
    """What a pair holds; fails where its files do not belong together."""
    name, text = path.read_text().split(":")
    assert path.with_name(name).read_text() == text
    return text


@pytest.fixture
def no_disk(monkeypatch):
    """Flushing takes long and changes nothing that a killed process could leave."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def test_content_appears_at_the_end(tmp_path):
    put(tmp_path / "a", "old")
    with write_whole(tmp_path / "a") as part:
        part.write_text("new")
        assert (tmp_path / "a").read_text() == "old" and part.parent == tmp_path
    assert (tmp_path / "a").read_text() == "new" and listing(tmp_path) == ["a"]
    assert tmp_path / "a" in written()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_old_content_stays_when_the_work_fails(tmp_path, error):
    put(tmp_path / "a", "old")
    with pytest.raises(error), write_whole(tmp_path / "a") as part:
        part.write_text("new")
        raise error
    assert (tmp_path / "a").read_text() == "old" and listing(tmp_path) == ["a"]


def test_permissions_stay_and_links_are_followed(tmp_path):
    put(tmp_path / "a", "old")
    (tmp_path / "a").chmod(0o600)
    (tmp_path / "link").symlink_to("a")
    put(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "a").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    mask = os.umask(0)
    os.umask(mask)
    put(tmp_path / "b", "")
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o666 & ~mask


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path):
    put(Path("/dev/null"), "text")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE)
    put(tmp_path / "pipe", "text")
    assert reader.communicate()[0] == b"text" and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    code = (
        "import sys; from pathlib import Path; from ir.base.whole_files import write_whole\n"
        "with write_whole(Path('/dev/stdout')) as part: part.write_text('text')"
    )
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=out, check=True)
    assert "text" in (tmp_path / "out").read_text() and listing(tmp_path) == ["out", "pipe"]
    with pytest.raises(IsADirectoryError):
        put(tmp_path, "text")


@pytest.mark.parametrize("name", ["o" * 255, "[a-z]*?", "-", os.fsdecode(b"\xff")])
def test_names_of_all_kinds(tmp_path, name):
    put(tmp_path / name, "old")
    left = new_file(tmp_path, scratch_prefix(name, "part"))
    left.close()
    put(tmp_path / name, "new")
    assert (tmp_path / name).read_text() == "new" and listing(tmp_path) == [name]


def test_a_disk_that_is_full_while_flushing_leaves_the_old_content(tmp_path, monkeypatch):
    put(tmp_path / "a", "old")
    put_pair(tmp_path / "b", "old")

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for action in (lambda: put(tmp_path / "a", "new"), lambda: put_pair(tmp_path / "b", "new")):
        with pytest.raises(OSError, match="No space"):
            action()
    assert (tmp_path / "a").read_text() == "old" and pair(tmp_path / "b") == "old"
    assert listing(tmp_path) == ["a", "b", "side"]


def test_file_systems_that_cannot_flush_are_no_error(tmp_path, monkeypatch):
    def cannot(fd):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", cannot)
    put(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"


@pytest.mark.parametrize("links", [True, False])
def test_pairs_replace_each_other(tmp_path, monkeypatch, links):
    if not links:

        def refuse(one, other):
            raise OSError(errno.EPERM, "no links here")

        monkeypatch.setattr(os, "link", refuse)
    for text in ("old", "new", "newer"):
        put_pair(tmp_path / "a", text)
        assert pair(tmp_path / "a") == text and listing(tmp_path) == ["a", "side"]
        assert (tmp_path / "a").read_text() == f"side:{text}"


def test_pair_whose_second_name_is_refused_is_whole_all_the_same(tmp_path, monkeypatch):
    put_pair(tmp_path / "a", "old")

    def refuse(path, place, durable):
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(whole_files, "_put_also", refuse)
    with pytest.raises(OSError, match="no room"):
        put_pair(tmp_path / "a", "new")
    assert pair(tmp_path / "a") == "new"
    monkeypatch.undo()
    put_pair(tmp_path / "a", "newer")
    assert pair(tmp_path / "a") == "newer" and listing(tmp_path) == ["a", "side"]


# ---- stopped at any moment ----


@pytest.mark.parametrize(("number", "step"), [(signal.SIGKILL, 5), (signal.SIGINT, 11), (signal.SIGTERM, 11)])
@pytest.mark.parametrize(("write", "read"), [(put, Path.read_text), (put_pair, pair)])
def test_stopped_at_any_line_there_is_the_old_content_or_the_new(tmp_path, no_disk, write, read, number, step):
    path = tmp_path / "a"
    write(path, "old")
    whole = listing(tmp_path)
    code, told = run_stopped(lambda: write(path, "new"), MODULES, -1, number)
    assert code == 0
    seen = set()
    for point in range(1 + number % step, int(told.splitlines()[0]), step):
        write(path, "old")
        code, told = run_stopped(lambda: write(path, "new"), MODULES, point, number)
        found = read(path)
        assert found in ("old", "new"), point
        if code >= 0:
            assert (str(path) in told.splitlines()) == (found == "new"), point
        seen.add(found)
        write(path, "newer")
        assert read(path) == "newer" and listing(tmp_path) == whole, point
    assert seen == {"old", "new"}


# ---- scratches ----

HOLDER = """
import os, signal, sys
from ir.base.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "large").write_text("x")
    print(folder.name, flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_folders_for_temporary_files_go_with_the_next_run(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "lading-mine").mkdir()
    (tmp_path / "lading-99999999-0123456789ab").symlink_to(tmp_path / "lading-mine")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    name = process.stdout.readline().strip()
    with scratch_folder() as folder:
        assert (tmp_path / name).is_dir() and stat.S_IMODE(folder.stat().st_mode) == 0o700
    process.communicate()
    assert (tmp_path / name / "large").exists()
    with scratch_folder() as folder:
        assert not (tmp_path / name).exists() and folder.is_dir()
    assert listing(tmp_path) == ["lading-99999999-0123456789ab", "lading-mine"]


def test_what_others_own_is_left_alone(tmp_path, monkeypatch):
    left = new_folder(tmp_path, "x-")
    left.close()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert abandoned(tmp_path, "x-") == []
    monkeypatch.undo()
    assert abandoned(tmp_path, "x-") == [left.path]


def test_without_locks_the_process_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "fcntl", None)
    held = new_folder(tmp_path, "x-")
    (tmp_path / "x-99999999-0123456789ab").mkdir()
    assert abandoned(tmp_path, "x-") == [tmp_path / "x-99999999-0123456789ab"]
    held.close()


def test_number_of_a_process_that_lives_is_believed_for_a_minute(tmp_path, monkeypatch):
    path = tmp_path / f"x-{os.getppid()}-0123456789ab"
    path.mkdir()
    assert abandoned(tmp_path, "x-") == []
    now = scratch.time.time()
    monkeypatch.setattr(scratch.time, "time", lambda: now + 61)
    assert abandoned(tmp_path, "x-") == [path]


def test_no_descriptor_is_no_leftover(tmp_path, monkeypatch):
    open_ = os.open

    def full(path, *rest, **more):
        if str(path).startswith(str(tmp_path)):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
        return open_(path, *rest, **more)

    (tmp_path / "given").mkdir()
    monkeypatch.setattr(os, "open", full)
    for make in (new_folder, new_file, lambda parent, prefix: scratch.adopt(parent / "given", prefix)):
        with pytest.raises(OSError, match="Too many"):
            make(tmp_path, "x-")
    assert listing(tmp_path) == ["given"]


def test_a_folder_that_is_written_to_while_it_is_removed_goes(tmp_path, monkeypatch):
    """As by a process that is about to end: the first attempt leaves what came meanwhile."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    attempts = []
    real = scratch.shutil.rmtree

    def emptied(path, ignore_errors):
        attempts.append(path)
        real(path, ignore_errors=ignore_errors)
        if len(attempts) < 3:
            folder.mkdir()

    monkeypatch.setattr(scratch.shutil, "rmtree", emptied)
    scratch.remove(folder)
    assert len(attempts) == 3 and not folder.exists()
