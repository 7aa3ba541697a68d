"""The files of a `ir.base.store.FolderStore`: the record behind a content, and the file that says that a run lives."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Not a Unix: whether a run lives is judged by its age, and nothing is locked.
    fcntl = None  # type: ignore[assignment]

PARTIAL, RUNS = "partial", "runs"
OWN = re.compile(r"[0-9a-f]{24}(\.\d+\.\d+)?")
"""Names in these two folders; see `RunFile`."""
DAY = 24 * 3600.0

_RECORD = struct.Struct("<8sQ32s")
_MARK = b"LADKEPT1"
RECORD_SIZE = _RECORD.size


class RunFile:
    """The file that says that a process lives, and what it holds; locked as long as the process has it open."""

    def __init__(self, folder: Path) -> None:
        self.pid = os.getpid()
        self.names: set[str] = set()
        self._token = os.urandom(12).hex()
        self._partial = folder / PARTIAL
        self._path = folder / RUNS / self._token
        self._file = self._path.open("x", encoding="utf-8")
        self._count = 0
        if fcntl is not None:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def hold(self, name: str) -> None:
        """Note the name of an entry that the run uses."""
        self._file.write(f"{name}\n")
        self._file.flush()
        self.names.add(name)

    def scratch(self) -> Path:
        """A new path for what is being written."""
        self._count += 1
        return self._partial / f"{self._token}.{self._count}.{threading.get_ident()}"

    def close(self) -> None:
        """Say that the run is over."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
            self._file.close()


@contextmanager
def locked(path: Path, exclusive: bool) -> Iterator[None]:
    """Hold the lock of a file, which is made, with others or alone; OSError when it cannot be made."""
    with path.open("ab") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield


def is_locked(path: str) -> bool:
    """True when a process that lives has a run file open."""
    try:
        with open(path, "rb") as file:
            if fcntl is None:
                return time.time() - os.fstat(file.fileno()).st_mtime < DAY
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def is_sound(file: IO[bytes], size: int) -> bool:
    """True when the record at the end of a file fits its content."""
    inner = size - _RECORD.size
    if inner < 0:
        return False
    file.seek(inner)
    mark, length, digest = _RECORD.unpack(file.read(_RECORD.size))
    return mark == _MARK and length == inner and digest == _digest(file.fileno(), inner)


def _digest(fd: int, size: int) -> bytes:
    """SHA-256 of the first bytes of a file."""
    if not size:
        return hashlib.sha256().digest()
    with mmap.mmap(fd, size, access=mmap.ACCESS_READ) as content:
        return hashlib.sha256(content).digest()


def add_record(path: Path) -> int:
    """Put the record behind the content of a file; returns the bytes of both."""
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.write(_RECORD.pack(_MARK, size, _digest(file.fileno(), size)))
    return size + _RECORD.size
