"""Files that are there whole or not at all, what tells their contents apart, and which of them this process has written.

A file is written beside its place under a scratch name (`ir.base.scratch`), flushed to the disk, and renamed: whoever
looks finds the old content or the new, and so does whoever looks after a power cut.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from ir.base.interrupts import held_interrupts
from ir.base.scratch import abandoned, new_file, remove, scratch_folder, scratch_prefix

_WRITTEN: list[Path] = []
_OPEN_ALREADY = ("/dev/fd/", "/dev/std", "/proc/")


def note_written(path: Path) -> None:
    """Remember that a file or folder is complete in its place, for `written`."""
    _WRITTEN.append(path)


def forget_written() -> None:
    """Begin again, as a command does that is not the first of its process."""
    _WRITTEN.clear()


def written() -> list[Path]:
    """What this process has put in place and is still there, each once, so that messages can say it."""
    return [path for path in dict.fromkeys(_WRITTEN) if path.exists()]


@contextmanager
def write_whole(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A path to write to; the content moves to `path` when the block ends well, and vanishes otherwise.

    Links are followed, and an existing file keeps its permissions. What is no ordinary file, such as ``/dev/stdout``,
    is written to at the end of the block.

    Args:
        path: the file.
        durable: wait until the content is on the disk before it takes its place, and count it among what is
            `written`; False for what can be made again and is told to nobody.

    Raises:
        OSError: it cannot be written or moved.
    """
    place = Path(os.path.realpath(path))
    before = _state(path)
    if before is not None and _is_stream(path, before):
        with scratch_folder() as folder:
            scratch = folder / "content"
            yield scratch
            with scratch.open("rb") as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
        return
    prefix = scratch_prefix(place.name, "part")
    for left in abandoned(place.parent, prefix):
        remove(left)
    made = new_file(place.parent, prefix)
    try:
        yield made.path
        if before is not None:
            made.path.chmod(stat.S_IMODE(before.st_mode))
        if durable:
            sync(made.path)
        with held_interrupts(firmly=True):
            os.replace(made.path, place)
            if durable:
                note_written(path)
        if durable:
            sync(place.parent)
    finally:
        with suppress(OSError):
            made.path.unlink(missing_ok=True)
        made.close()


def _state(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _is_stream(path: Path, state: os.stat_result) -> bool:
    """True for what is written to and not replaced: devices, pipes, and files that a process has open already.

    Raises:
        IsADirectoryError: it is a folder.
    """
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return not stat.S_ISREG(state.st_mode) or str(path.absolute()).startswith(_OPEN_ALREADY)


def write_pair(
    path: Path, side: str, fill: Callable[[Path], None], head: Callable[[str], bytes], *, durable: bool = True
) -> None:
    """Write a file and one beside it that it names and cannot be read without; readers find the old pair or the new.

    Two files cannot be replaced in one step, but the name of the second stands in the first: the new second file lies
    beside the old one until the first names it. Only then does it take the name that it is meant to have.

    Args:
        path: the first file.
        side: name of the second one, in the same folder.
        fill: writes the second file to a path.
        head: content of the first file, given the name of the second.
        durable: as for `write_whole`.

    Raises:
        OSError: they cannot be written or moved.
    """
    place = Path(os.path.realpath(path))
    beside = place.with_name(side)
    prefix = scratch_prefix(side, "part")
    made = new_file(place.parent, prefix)
    needed = False
    try:
        fill(made.path)
        if durable:
            sync(made.path)
        with held_interrupts(firmly=True):
            if place.exists() and beside.exists():
                _write(place, head(made.path.name), durable)
                needed = True
                _put_also(made.path, beside, durable)
            else:
                os.replace(made.path, beside)
            _write(place, head(side), durable)
            needed = False
        # No file names any more what an earlier run may have left half done.
        for left in abandoned(place.parent, prefix):
            remove(left)
    finally:
        if not needed:
            with suppress(OSError):
                made.path.unlink(missing_ok=True)
        made.close()


def _write(path: Path, data: bytes, durable: bool) -> None:
    with write_whole(path, durable=durable) as part:
        part.write_bytes(data)


def _put_also(path: Path, place: Path, durable: bool) -> None:
    """Give a file another name as well, in place of the file that has it; a copy where file systems know no links."""
    with write_whole(place, durable=durable) as part:
        part.unlink()
        try:
            os.link(path, part)
        except OSError:
            shutil.copyfile(path, part)


def begin_sync(fd: int, start: int, stop: int) -> None:
    """Have the system begin to write a range of an open file to the disk, so that `sync` has less to wait for.

    Nothing is promised, and nothing is done where the system has no such call (Linux: ``sync_file_range``).
    """
    begin = _sync_file_range()
    if begin is not None:
        begin(fd, start, stop - start, _WRITE)


_WRITE = 2
"""``SYNC_FILE_RANGE_WRITE``: begin to write what is changed, and wait for nothing but room in the queue."""


@cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    import ctypes

    found = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if found is not None:
        found.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return found


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; nothing happens where the system cannot say.

    Raises:
        OSError: the disk has no room, or fails.
    """
    try:
        fd = os.open(path, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(fd)


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of the content of a file; OSError when it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = ["begin_sync", "forget_written", "note_written", "sha256_of", "sync", "write_pair", "write_whole", "written"]
