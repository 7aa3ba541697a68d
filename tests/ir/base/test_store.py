"""Stores: entries whole or not at all, digests, the limit, what runs hold, and what processes that died leave behind."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from ir.base import store as stores
from ir.base.diag import LadingError
from ir.base.store import FolderStore, Store, cache_folder, cache_limit, default_store, folder_store, using_store
from tests.support.paths import ROOT

RECORD = 48
"""Bytes of the record behind the content."""


def put(store: Store, name: str, data: bytes) -> None:
    with store.put(name, "Q441", "an entry") as path:
        path.write_bytes(data)


def content(store: Store, name: str) -> bytes | None:
    kept = store.find(name)
    return None if kept is None else kept.read()


def names(store: Store) -> list[str]:
    return sorted(entry.name for entry in store.entries())


def aged(store: FolderStore, name: str, seconds: float) -> None:
    """As if it had been used last so long ago."""
    then = time.time() - seconds
    os.utime(store.folder / f"{name}.kept", (then, then))


def test_what_is_put_is_found(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "below" / "here")
    assert store.find("room/a") is None and store.entries() == [] and not store.folder.exists()
    for data in (b"", b"1", bytes(range(256)) * 1000):
        put(store, "room/a", data)
        kept = store.find("room/a")
        assert kept is not None and kept.size == len(data) and kept.read() == data
        assert FolderStore(store.folder).find("room/a") == kept
    put(store, "other/a", b"2")
    assert names(store) == ["other/a", "room/a"]
    assert store.total_size() == 256_000 + 1 + 2 * RECORD
    store.remove("room/a")
    store.remove("room/a")
    assert names(store) == ["other/a"] and content(store, "room/a") is None
    assert not list((store.folder / "partial").iterdir()) and not list((store.folder / "runs").iterdir())


def test_an_entry_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    put(store, "room/a", b"old")
    with pytest.raises(ValueError), store.put("room/a", "Q441", "an entry") as path:
        path.write_bytes(b"half")
        raise ValueError
    assert content(store, "room/a") == b"old"
    with store.put("room/a", "Q441", "an entry") as path:
        path.write_bytes(b"new")
        assert content(store, "room/a") == b"old"
    assert content(store, "room/a") == b"new"
    assert not list((tmp_path / "partial").iterdir()) and not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("damage", ["cut", "content", "digest", "empty", "longer", "foreign"])
def test_damage_is_a_miss_and_is_told(tmp_path: Path, damage: str) -> None:
    store = FolderStore(tmp_path)
    put(store, "room/a", b"0123456789" * 10)
    path = tmp_path / "room" / "a.kept"
    data = bytearray(path.read_bytes())
    data[5] ^= damage == "content"
    data[-1] ^= damage == "digest"
    made = {"cut": data[:-1], "empty": b"", "longer": data + b"x", "foreign": b"y" * 200}.get(damage, data)
    path.write_bytes(bytes(made))
    assert store.find("room/a") is None and not path.exists()
    (warning,) = store.take_warnings()
    assert (warning.code, warning.severity, warning.where) == ("Q444", "warning", str(path))
    assert "room/a" in warning.message
    assert store.take_warnings() == []
    put(store, "room/a", b"again")
    assert content(store, "room/a") == b"again"


def test_a_digest_is_compared_once_for_each_state_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, seen = FolderStore(tmp_path), []
    put(store, "room/a", b"content")
    plain = stores.is_sound
    monkeypatch.setattr(stores, "is_sound", lambda file, size: seen.append(size) or plain(file, size))
    assert store.find("room/a") and store.find("room/a") and len(seen) == 1
    put(store, "room/a", b"other content")
    assert content(store, "room/a") == b"other content" and len(seen) == 2
    assert FolderStore(tmp_path).find("room/a") and len(seen) == 3


# ---- the limit ----


def test_entries_used_longest_ago_go_first(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, 10 * (100 + RECORD))
    for number in range(10):
        put(store, f"room/{number}", b"x" * 100)
        aged(store, f"room/{number}", 1000 - number)
    assert len(names(store)) == 10
    assert store.find("room/0") is not None
    put(store, "room/new", b"x" * 100)
    # Down to nine tenths: two go, and not the oldest one, which was used again.
    assert names(store) == ["room/0", *(f"room/{number}" for number in range(3, 10)), "room/new"]
    assert store.total_size() <= 0.9 * store.limit  # type: ignore[operator]


def test_an_entry_larger_than_the_limit_stays_until_the_next(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, 100)
    put(store, "room/a", b"x" * 500)
    assert names(store) == ["room/a"]
    put(store, "room/b", b"x" * 500)
    assert names(store) == ["room/b"]


def test_no_limit(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    for number in range(20):
        put(store, f"room/{number}", b"x" * 10_000)
    assert len(names(store)) == 20


def test_a_lower_limit_is_met_when_a_run_starts(tmp_path: Path) -> None:
    for number in range(5):
        put(FolderStore(tmp_path), f"room/{number}", b"x" * 100)
        aged(FolderStore(tmp_path), f"room/{number}", 1000 - number)
    put(FolderStore(tmp_path, 300), "room/new", b"")
    assert names(FolderStore(tmp_path)) == ["room/4", "room/new"]


def test_what_a_run_holds_stays(tmp_path: Path) -> None:
    store, other = FolderStore(tmp_path, 400), FolderStore(tmp_path, 400)
    put(store, "room/read", b"x" * 100)
    aged(store, "room/read", 5000)
    with store.holding(), store.holding():
        assert store.find("room/read") is not None
        aged(store, "room/read", 5000)
        for number in range(6):
            put(store, f"room/{number}", b"x" * 100)
        assert len(names(store)) == 7
        for number in range(6):
            put(other, f"other/{number}", b"x" * 100)
        assert [name for name in names(store) if name.startswith("other")] == ["other/5"]
        assert len(names(store)) == 8
    put(other, "other/last", b"")
    assert store.total_size() <= 400 and "room/read" not in names(store)
    assert not list((tmp_path / "runs").iterdir())


HOLDS = """
import sys
from pathlib import Path
from ir.base.store import FolderStore

store = FolderStore(Path(sys.argv[1]))
with store.holding(), store.put("room/half", "Q441", "an entry") as path:
    path.write_bytes(b"half")
    assert store.find("room/held") is not None
    print("ready", flush=True)
    sys.stdin.read()
"""


def child(folder: Path) -> subprocess.Popen[bytes]:
    """A process that holds an entry and is writing another; it goes on when its input is closed."""
    command = [sys.executable, "-c", HOLDS, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


def test_what_other_processes_hold_and_write_stays_while_they_live(tmp_path: Path) -> None:
    put(FolderStore(tmp_path), "room/held", b"x" * 100)
    with child(tmp_path) as process:
        aged(FolderStore(tmp_path), "room/held", 5000)
        store = FolderStore(tmp_path, 100)
        put(store, "room/a", b"x" * 100)
        put(store, "room/b", b"x" * 100)
        assert names(store) == ["room/b", "room/held"]
        assert len(list((tmp_path / "partial").iterdir())) == len(list((tmp_path / "runs").iterdir())) == 1
        process.communicate(timeout=60)
    assert process.returncode == 0 and content(store, "room/half") == b"half"
    put(store, "room/c", b"x" * 100)
    assert names(store) == ["room/c"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_what_a_killed_process_leaves_is_removed_by_the_next_run(tmp_path: Path) -> None:
    put(FolderStore(tmp_path), "room/held", b"x" * 100)
    with child(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    assert len(list((tmp_path / "partial").iterdir())) == len(list((tmp_path / "runs").iterdir())) == 1
    aged(FolderStore(tmp_path), "room/held", 5000)
    store = FolderStore(tmp_path, 100)
    put(store, "room/a", b"")
    assert not list((tmp_path / "partial").iterdir()) and not list((tmp_path / "runs").iterdir())
    assert names(store) == ["room/a"]


def test_unfinished_runs_are_forgotten_after_some_days(tmp_path: Path) -> None:
    first = FolderStore(tmp_path)
    for name, days in (("running/old", 8), ("running/new", 6), ("moments/old", 100)):
        put(first, name, b"x")
        aged(first, name, days * 24 * 3600)
    put(FolderStore(tmp_path), "room/a", b"x")
    assert names(first) == ["moments/old", "room/a", "running/new"]


def test_what_else_lies_in_the_folder_is_left_alone(tmp_path: Path) -> None:
    others = [tmp_path / name for name in ("file", "mnn/release/python.kept", "mnn/lock", "partial/mine", "runs/mine")]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 500)
    (tmp_path / "link").symlink_to(tmp_path / "mnn" / "release")
    store = FolderStore(tmp_path, 1)
    put(store, "mnn/a", b"x" * 100)
    put(store, "mnn/b", b"x" * 100)
    assert names(store) == ["mnn/b"] and all(path.read_bytes() == b"x" * 500 for path in others)


# ---- several at once ----


def _put_many(store: Store, number: int) -> bool:
    for turn in range(20):
        put(store, "room/shared", bytes([number]) * 5000)
        put(store, f"room/{number}.{turn}", bytes([number]) * 100)
        found = content(store, "room/shared")
        if found is None or len(set(found)) != 1 or len(found) != 5000:
            return False
    return True


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_writers_at_once(tmp_path: Path, kind: str) -> None:
    store = folder_store(tmp_path)
    spawn = multiprocessing.get_context("spawn")
    with ThreadPoolExecutor(4) if kind == "threads" else ProcessPoolExecutor(2, mp_context=spawn) as pool:
        assert all(pool.map(_put_many, [store] * 4, range(4)))
    assert len(names(store)) == 81 and store.take_warnings() == []
    assert not list((tmp_path / "partial").iterdir()) and not list((tmp_path / "runs").iterdir())


def test_threads_that_trim_do_not_lose_what_they_hold(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, 20_000)
    lost: list[str] = []

    def work(number: int) -> None:
        with store.holding():
            for turn in range(10):
                put(store, f"room/{number}.{turn}", b"x" * 1000)
            lost.extend(f"{number}.{turn}" for turn in range(10) if store.find(f"room/{number}.{turn}") is None)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not lost
    put(store, "room/last", b"x" * 1000)
    assert store.total_size() <= 20_000


# ---- errors ----


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = FolderStore(tmp_path / "file")
    with store.holding():
        assert store.find("room/a") is None
    with pytest.raises(LadingError) as error:
        put(store, "room/a", b"x")
    assert error.value.code == "Q441" and "LADING_CACHE" in str(error.value)
    store.remove("room/a")
    assert store.entries() == []


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FolderStore(tmp_path)
    put(store, "room/a", b"old")

    def full(path: Path) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stores, "add_record", full)
    with pytest.raises(LadingError) as error:
        put(store, "room/a", b"new")
    assert error.value.code == "Q441"
    assert "cannot keep an entry: No space left on device" in str(error.value)
    assert content(store, "room/a") == b"old" and not list((tmp_path / "partial").iterdir())


# ---- which store ----


def test_the_folder_and_the_limit_follow_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADING_CACHE", str(tmp_path))
    monkeypatch.delenv("LADING_CACHE_SIZE", raising=False)
    assert cache_folder() == tmp_path and cache_limit() == 20_000_000_000
    assert default_store() is folder_store(tmp_path, 20_000_000_000)
    sizes = {
        "1": 1,
        "500MB": 500_000_000,
        "1.5 GiB": 3 << 29,
        "2k": 2000,
        "7tb": 7 * 10**12,
        "unlimited": None,
        "": 20 * 10**9,
    }
    for text, size in sizes.items():
        monkeypatch.setenv("LADING_CACHE_SIZE", text)
        assert cache_limit() == size
    monkeypatch.delenv("LADING_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "lading"


@pytest.mark.parametrize("text", ["much", "-1", "1.2.3", "GB", "5 iB", "20 GB of it"])
def test_a_limit_that_is_no_size(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADING_CACHE_SIZE", text)
    with pytest.raises(LadingError) as error:
        default_store()
    assert error.value.code == "Q445" and text in str(error.value)


def test_a_store_that_is_used_in_a_block(tmp_path: Path) -> None:
    store = folder_store(tmp_path)
    before = default_store()
    seen: list[Store] = []
    with using_store(store):
        assert default_store() is store
        thread = threading.Thread(target=lambda: seen.append(default_store()))
        thread.start()
        thread.join()
    assert default_store() is before and seen == [before]


def test_stores_pickle_as_what_they_are(tmp_path: Path) -> None:
    store = folder_store(tmp_path, 500)
    assert pickle.loads(pickle.dumps(store)) is store
