"""Stores: where work is kept between runs, under names that say everything the content follows from.

An entry is named ``room/key``. It appears complete or not at all, carries a digest of its content, and may vanish at any
time unless a run holds it; whatever is missing is computed again. Code below the commands speaks to a `Store` that is
handed in, or to `default_store` where lazy tensors are read and nobody could hand anything in.

`FolderStore` keeps entries as files ``room/key.kept`` of one folder, which any number of processes share, and leaves alone
what else lies there:

* ``partial/`` holds what is being written, ``runs/`` one file for each process that writes or holds, locked while the
  process lives. What lies there without a lock was left by a process that died, and the next run removes it.
* Behind the content of a file stands its record: a mark, the size and the SHA-256 of the content. A file whose record
  does not fit is damaged: it is removed, a warning says so, and it counts as missing.
* When a limit on the size is passed, the entries that were used longest ago go first; those held by a run stay.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from ir.base.diag import Diagnostic, LadingError
from ir.base.store_files import DAY, OWN, PARTIAL, RECORD_SIZE, RUNS, RunFile, add_record, is_locked, is_sound, locked

CACHE_VARIABLE = "LADING_CACHE"
"""Environment variable that names the folder of cached work."""
SIZE_VARIABLE = "LADING_CACHE_SIZE"
"""Environment variable with the most bytes that the folder may hold, such as ``20GB``, or ``unlimited``."""
DEFAULT_SIZE = 20 * 10**9
TRIMMED = 0.9
"""Share of the limit that is left when entries have to go, so that not every new one makes another go."""
RECOUNTED = 0.05
"""Share of the limit that this process may add before it counts again what other processes have added."""
ABANDONED = 7 * DAY
"""Seconds after which an unfinished run that nobody took up again is forgotten."""
UNFINISHED = "running"
"""Room of what is only of use until a run is finished."""
DAMAGED = "Q444"
"""Code of the warning that an entry was damaged; what it held is made again, so that results do not depend on it."""
FULL_HINT = f"free some space, or set {CACHE_VARIABLE} to another folder"

_LOCK, _SUFFIX = ".lock", ".kept"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Kept:
    """Content of an entry: the first `size` bytes of a file, which must not be changed."""

    path: Path
    size: int

    def read(self) -> bytes:
        """The content; OSError when the entry is gone."""
        with self.path.open("rb") as file:
            return file.read(self.size)


@dataclass(frozen=True)
class Entry:
    """What a store says about an entry without looking at its content: bytes on disk, and when it was last used."""

    name: str
    size: int
    used: float


class Store(Protocol):
    """Work kept between runs. Stores can be hashed, and pickle, so that jobs can carry them to other processes.

    Attributes:
        puts: how many entries this process has put there.
    """

    puts: int

    def find(self, name: str) -> Kept | None:
        """The content of an entry; None when there is none, or none that is sound."""
        ...

    def put(self, name: str, code: str, what: str, hint: str = FULL_HINT) -> AbstractContextManager[Path]:
        """A path to write new content to; it becomes the entry when the block ends well, and vanishes otherwise.

        Args:
            name: of the entry, ``room/key``.
            code, what, hint: of the error when there is no room or no permission, and what is kept there.

        Raises:
            LadingError: with `code`.
        """
        ...

    def remove(self, name: str) -> None:
        """Forget an entry, which need not exist."""
        ...

    def entries(self) -> list[Entry]:
        """All entries, those used longest ago first."""
        ...

    def total_size(self) -> int:
        """Bytes of all entries."""
        ...

    def holding(self) -> AbstractContextManager[None]:
        """While the block runs, entries that are found or put, here or in another thread, do not vanish."""
        ...

    def hold(self, name: str) -> None:
        """Hold an entry that somebody else has put there, as `holding` does what is found or put."""
        ...

    def take_warnings(self) -> list[Diagnostic]:
        """What was found damaged since the last call."""
        ...


class FolderStore:
    """A store of files in one folder; see the module. Use `folder_store`, which gives one object for each folder.

    Attributes:
        folder: the folder, made when something is put there.
        limit: most bytes of all entries; None for no limit.
        puts: see `Store`.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder, self.limit, self.puts = folder, limit, 0
        self._guard = threading.RLock()
        self._run: RunFile | None = None
        self._holder: RunFile | None = None
        self._users = self._holders = 0
        self._cleaned = False
        self._total = self._added = 0
        self._sound: dict[str, tuple[int, int, int]] = {}
        self._warnings: list[Diagnostic] = []

    def __repr__(self) -> str:
        return f"FolderStore({str(self.folder)!r}, {self.limit})"

    def __reduce__(self) -> tuple[Any, ...]:
        return folder_store, (self.folder, self.limit)

    def find(self, name: str) -> Kept | None:
        """The content of an entry, whose digest is compared once for each state of the file."""
        self.hold(name)
        path = self._path(name)
        try:
            with path.open("rb") as file:
                found = os.fstat(file.fileno())
                state = (found.st_ino, found.st_size, found.st_mtime_ns)
                if self._sound.get(name) != state and not is_sound(file, found.st_size):
                    self._damaged(name, path)
                    return None
            self._sound[name] = state
        except IsADirectoryError:
            self._damaged(name, path)
            return None
        except (OSError, ValueError):
            return None
        with suppress(OSError):
            os.utime(path, ns=(time.time_ns(), found.st_mtime_ns))
        return Kept(path, found.st_size - RECORD_SIZE)

    @contextmanager
    def put(self, name: str, code: str, what: str, hint: str = FULL_HINT) -> Iterator[Path]:
        """See `Store.put`."""
        path = self._path(name)
        try:
            with self._running() as run:
                path.parent.mkdir(parents=True, exist_ok=True)
                scratch = run.scratch()
                try:
                    yield scratch
                    size = add_record(scratch)
                    self.hold(name)
                    if path.is_dir() and not path.is_symlink():
                        self._damaged(name, path)
                    os.replace(scratch, path)
                finally:
                    with suppress(OSError):
                        scratch.unlink(missing_ok=True)
                self._grown(name, size)
        except OSError as error:
            raise LadingError(code, f"cannot keep {what}: {error.strerror}", where=str(path), hint=hint) from error

    def remove(self, name: str) -> None:
        """See `Store.remove`."""
        path = self._path(name)
        with suppress(FileNotFoundError, NotADirectoryError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()

    def entries(self) -> list[Entry]:
        """See `Store.entries`."""
        found = []
        for room in _inside(self.folder):
            if not room.is_dir(follow_symlinks=False):
                continue
            for item in _inside(room.path):
                if item.name.endswith(_SUFFIX) and item.is_file(follow_symlinks=False):
                    with suppress(OSError):
                        state = item.stat(follow_symlinks=False)
                        used = max(state.st_atime, state.st_mtime)
                        name = f"{room.name}/{item.name.removesuffix(_SUFFIX)}"
                        found.append(Entry(name, state.st_size, used))
        return sorted(found, key=lambda entry: (entry.used, entry.name))

    def total_size(self) -> int:
        """See `Store.total_size`."""
        return sum(entry.size for entry in self.entries())

    def clear(self, room: str | None = None) -> tuple[int, int, int]:
        """Remove the entries of a room, or all, but for those that a run holds.

        Returns:
            how many were removed, their bytes, and how many stay.

        Raises:
            OSError: they cannot be removed.
        """
        chosen = [entry for entry in self.entries() if room in (None, entry.name.partition("/")[0])]
        if not chosen:
            return 0, 0, 0
        with self._locked(exclusive=True):
            held = self._held()
            removed = [entry for entry in chosen if entry.name not in held]
            for entry in removed:
                self.remove(entry.name)
        return len(removed), sum(entry.size for entry in removed), len(chosen) - len(removed)

    @contextmanager
    def holding(self) -> Iterator[None]:
        """See `Store.holding`; a folder that cannot be written holds nothing, since nothing is removed from there."""
        with self._guard:
            self._holders += 1
        try:
            yield
        finally:
            with self._guard:
                self._holders -= 1
                if not self._holders and self._holder is not None:
                    self._left(self._holder)
                    self._holder = None

    def take_warnings(self) -> list[Diagnostic]:
        """See `Store.take_warnings`."""
        with self._guard:
            taken, self._warnings = self._warnings, []
        return taken

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{_SUFFIX}"

    # ---- damage ----

    def _damaged(self, name: str, path: Path) -> None:
        self.remove(name)
        message = f"a kept file is damaged and was removed: {name}"
        hint = "it is made again; if this happens often, the disk may be failing"
        with self._guard:
            self._warnings.append(Diagnostic(DAMAGED, message, str(path), hint, "warning"))

    # ---- runs ----

    @contextmanager
    def _running(self) -> Iterator[RunFile]:
        run = self._joined(quietly=False)
        assert run is not None
        try:
            yield run
        finally:
            self._left(run)

    def _joined(self, quietly: bool) -> RunFile | None:
        """The file of this process in ``runs``, made by the first who needs it."""
        with self._guard:
            if self._run is not None and self._run.pid != os.getpid():
                # This process was forked; the file belongs to the parent.
                self._run, self._holder, self._users = None, None, 0
            if self._run is None:
                try:
                    (self.folder / RUNS).mkdir(parents=True, exist_ok=True)
                    (self.folder / PARTIAL).mkdir(exist_ok=True)
                    with self._locked(exclusive=True):
                        self._run = RunFile(self.folder)
                        if not self._cleaned:
                            self._clean_up()
                except OSError:
                    if quietly:
                        return None
                    raise
                if not self._cleaned:
                    self._cleaned = True
                    self._trim("")
            self._users += 1
            return self._run

    def _left(self, run: RunFile) -> None:
        with self._guard:
            if run is self._run:
                self._users -= 1
                if not self._users:
                    self._run.close()
                    self._run = None

    def hold(self, name: str) -> None:
        """See `Store.hold`; to be called before looking whether the entry is there."""
        with self._guard:
            if not self._holders:
                return
            if self._holder is None or self._holder.pid != os.getpid():
                self._holder = self._joined(quietly=True)
            run = self._holder
            if run is not None and name not in run.names:
                with suppress(OSError), self._locked(exclusive=False):
                    run.hold(name)

    def _locked(self, exclusive: bool) -> AbstractContextManager[None]:
        """Shared to note what is held, exclusive to remove what is not."""
        return locked(self.folder / _LOCK, exclusive)

    # ---- removing ----

    def _clean_up(self) -> None:
        """Remove what processes that died left behind, and runs that nobody went on with."""
        living = set()
        for item in _inside(self.folder / RUNS):
            if OWN.fullmatch(item.name) is None:
                continue
            if is_locked(item.path):
                living.add(item.name)
            else:
                with suppress(OSError):
                    os.unlink(item.path)
        for item in _inside(self.folder / PARTIAL):
            if OWN.fullmatch(item.name) and item.name.partition(".")[0] not in living:
                with suppress(OSError):
                    os.unlink(item.path)
        held, now = self._held(), time.time()
        for entry in self.entries():
            if entry.name.startswith(f"{UNFINISHED}/") and entry.name not in held and now - entry.used > ABANDONED:
                self.remove(entry.name)

    def _held(self) -> set[str]:
        """What any process holds; to be asked under the lock."""
        held: set[str] = set()
        for item in _inside(self.folder / RUNS):
            with suppress(OSError):
                held.update(Path(item.path).read_text(encoding="utf-8").splitlines())
        return held

    def _grown(self, name: str, size: int) -> None:
        with self._guard:
            self.puts += 1
            self._total += size
            self._added += size
            if self.limit is not None and (self._total > self.limit or self._added > self.limit * RECOUNTED):
                self._trim(name)

    def _trim(self, newest: str) -> None:
        """Count the bytes, and remove entries until they are few enough; neither the newest nor what is held."""
        entries = self.entries()
        total = sum(entry.size for entry in entries)
        if self.limit is not None and total > self.limit:
            with suppress(OSError), self._locked(exclusive=True):
                held = self._held() | {newest}
                for entry in entries:
                    if total <= self.limit * TRIMMED:
                        break
                    if entry.name not in held:
                        self.remove(entry.name)
                        total -= entry.size
        self._total, self._added = total, 0


def _inside(folder: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:
        return []


# ---- which store ----


@lru_cache(maxsize=64)
def folder_store(folder: Path, limit: int | None = None) -> FolderStore:
    """The store of a folder, one object for each in a process."""
    return FolderStore(folder, limit)


def cache_folder() -> Path:
    """Where work is kept when nobody says otherwise: ``$LADING_CACHE``, else ``~/.cache/lading``."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given) if given else Path.home() / ".cache" / "lading"


def cache_limit() -> int | None:
    """Most bytes to keep there: ``$LADING_CACHE_SIZE``, else 20 GB; None for no limit.

    Raises:
        LadingError: Q445 the variable holds no size.
    """
    given = os.environ.get(SIZE_VARIABLE, "").strip()
    if not given:
        return DEFAULT_SIZE
    if given.lower() == "unlimited":
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?)(I?)B?", given.upper())
    if found is None or (found[3] and not found[2]):
        hint = "write a number with a unit, such as 500MB, 20GB or 1.5TiB, or 'unlimited'"
        raise LadingError("Q445", f"{given!r} is no size", where=SIZE_VARIABLE, hint=hint)
    unit = 1 << 10 * "KMGT".index(found[2]) + 10 if found[3] else _UNITS[found[2]]
    return int(float(found[1]) * unit)


_CURRENT: ContextVar[Store | None] = ContextVar("store", default=None)


def default_store() -> Store:
    """The store that `using_store` names in this thread, else that of the folder and limit in the environment.

    Raises:
        LadingError: Q445 the environment names no size.
    """
    current = _CURRENT.get()
    return current if current is not None else folder_store(cache_folder(), cache_limit())


@contextmanager
def using_store(store: Store) -> Iterator[None]:
    """While the block runs, lazy tensors that this thread reads keep their work in a store."""
    token = _CURRENT.set(store)
    try:
        yield
    finally:
        _CURRENT.reset(token)


__all__ = [
    "CACHE_VARIABLE",
    "SIZE_VARIABLE",
    "UNFINISHED",
    "Entry",
    "FolderStore",
    "Kept",
    "Store",
    "cache_folder",
    "cache_limit",
    "default_store",
    "folder_store",
    "using_store",
]
