"""Scratch files and folders that say who uses them, so that what a killed run left is known for what it is and removed.

The name of a scratch is ``<prefix><process>-<12 hexadecimal digits>``, and it is locked as long as its process has it
open, which the system ends with the process. Whoever makes a scratch of the same prefix in the same folder removes the
abandoned ones first; names that only look alike, links, and what belongs to another user are left alone.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from ir.base.interrupts import held_interrupts

try:
    import fcntl
except ImportError:  # Not a Unix: whether a scratch is used is judged by its process alone.
    fcntl = None  # type: ignore[assignment]

LONGEST = 180
"""Bytes of a name that scratch names are made of; of a longer one its digest is taken, since names have a limit."""
SETTLED_S = 60.0
"""Seconds after which a scratch is surely locked by its process, if that is the process that its name tells."""
TEMPORARY = "lading-"
"""Prefix of scratch folders in the folder for temporary files."""

_GUARD = threading.RLock()


@dataclass(frozen=True)
class Scratch:
    """A file or folder of this process, locked until it is closed; it may be renamed meanwhile."""

    path: Path
    _fd: int

    def close(self) -> None:
        """End the lock."""
        os.close(self._fd)


def scratch_prefix(name: str, kind: str) -> str:
    """Prefix of the hidden scratches of a kind that become a file or folder `name`."""
    raw = os.fsencode(name)
    return f".{name if len(raw) <= LONGEST else blake2b(raw, digest_size=20).hexdigest()}.{kind}-"


def new_folder(parent: Path, prefix: str, mode: int = 0o777) -> Scratch:
    """An empty scratch folder; OSError when it cannot be made."""
    with _GUARD:
        path = _fresh(parent, prefix)
        os.mkdir(path, mode)
        try:
            return _taken(path)
        except OSError:
            os.rmdir(path)
            raise


def new_file(parent: Path, prefix: str) -> Scratch:
    """An empty scratch file; OSError when it cannot be made."""
    with _GUARD:
        path = _fresh(parent, prefix)
        fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o666)
        _locked(fd)
        return Scratch(path, fd)


def adopt(folder: Path, prefix: str) -> Scratch:
    """Rename a folder to a scratch beside it; OSError when that is not possible."""
    with _GUARD:
        taken = _taken(folder)
        path = _fresh(folder.parent, prefix)
        try:
            os.rename(folder, path)
        except OSError:
            taken.close()
            raise
        return Scratch(path, taken._fd)


def _fresh(parent: Path, prefix: str) -> Path:
    return parent / f"{prefix}{os.getpid()}-{os.urandom(6).hex()}"


def _taken(path: Path) -> Scratch:
    fd = os.open(path, os.O_RDONLY)
    _locked(fd)
    return Scratch(path, fd)


def _locked(fd: int) -> bool | None:
    """Lock an open file or folder; False when another has locked it, None where the file system knows no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def abandoned(parent: Path, prefix: str) -> list[Path]:
    """Scratches of a prefix whose processes are gone; none where the folder cannot be read."""
    shape = re.compile(re.escape(prefix) + r"(\d{1,10})-[0-9a-f]{12}")
    found = []
    with _GUARD, suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            name = shape.fullmatch(entry.name)
            if name is not None and _is_abandoned(entry.path, int(name[1])):
                found.append(Path(entry.path))
    return sorted(found)


def _is_abandoned(path: str, process: int) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return False
    try:
        state = os.fstat(fd)
        ours = not hasattr(os, "geteuid") or state.st_uid == os.geteuid()
        if not ours or not (stat.S_ISDIR(state.st_mode) or stat.S_ISREG(state.st_mode)):
            return False
        free = _locked(fd)
        if free is None:
            return not _alive(process)
        # A process of that number lives: it may be about to lock what it made just now, or be another one by now.
        others = process != os.getpid() and _alive(process)
        return free and (not others or time.time() - state.st_ctime > SETTLED_S)
    finally:
        os.close(fd)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def remove(path: Path) -> None:
    """Remove a scratch as far as that is possible.

    A process that is about to end may still write into a folder while it is emptied, so that is done again.
    """
    if path.is_dir() and not path.is_symlink():
        for pause in REMOVE_AGAIN_S:
            shutil.rmtree(path, ignore_errors=True)
            if not path.exists():
                break
            time.sleep(pause)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


REMOVE_AGAIN_S = (0.02, 0.05, 0.1, 0.2, 0.0)
"""Seconds between the attempts to remove a folder."""


@contextmanager
def scratch_folder(parent: Path | None = None, prefix: str = TEMPORARY) -> Iterator[Path]:
    """A folder that vanishes with the block, by default in the folder for temporary files.

    Raises:
        OSError: it cannot be made.
    """
    place = Path(tempfile.gettempdir()) if parent is None else parent
    for path in abandoned(place, prefix):
        remove(path)
    made: Scratch | None = None
    try:
        # An interrupt between making the folder and knowing of it would leave it.
        with held_interrupts(firmly=True):
            made = new_folder(place, prefix, 0o700)
        yield made.path
    finally:
        if made is not None:
            remove(made.path)
            made.close()


__all__ = [
    "TEMPORARY",
    "Scratch",
    "abandoned",
    "adopt",
    "new_file",
    "new_folder",
    "remove",
    "scratch_folder",
    "scratch_prefix",
]
