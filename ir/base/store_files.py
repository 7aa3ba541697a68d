"""The files of a `ir.base.store.FolderStore`: the record behind a content, and the file that says that a run lives."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
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
PIECE = 1 << 20
"""Bytes read at a time."""

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
        self._numbers = count()
        _lock(self._file.fileno(), exclusive=True)

    def hold(self, name: str) -> None:
        """Note the name of an entry that the run uses."""
        self._file.write(f"{name}\n")
        self._file.flush()
        self.names.add(name)

    def scratch(self) -> Path:
        """A new path for what is being written."""
        return self._partial / f"{self._token}.{next(self._numbers)}.{threading.get_ident()}"

    def close(self) -> None:
        """Say that the run is over."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
            self._file.close()


@contextmanager
def locked(path: Path, exclusive: bool) -> Iterator[None]:
    """Hold the lock of a file, which is made, with others or alone; OSError when it cannot be made."""
    with path.open("ab") as file:
        _lock(file.fileno(), exclusive)
        yield


def _lock(fd: int, exclusive: bool) -> None:
    """Lock an open file until it is closed; nothing happens on file systems that know no locks."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)


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
    return mark == _MARK and length == inner and digest == _digest(file, inner)


def _digest(file: IO[bytes], size: int) -> bytes:
    """SHA-256 of the first bytes of a file, read in pieces: a file that is cut short meanwhile is no signal."""
    state, buffer = hashlib.sha256(), memoryview(bytearray(min(size, PIECE)))
    file.seek(0)
    while size:
        got = file.readinto(buffer[: min(size, PIECE)])  # type: ignore[attr-defined]
        if not got:
            break
        state.update(buffer[:got])
        size -= got
    return state.digest()


def add_record(path: Path) -> int:
    """Put the record behind the content of a file; returns the bytes of both."""
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        record = _RECORD.pack(_MARK, size, _digest(file, size))
        file.seek(size)
        file.write(record)
    return size + _RECORD.size
