"""Output folders that appear complete or not at all, and replace older ones in one step.

A folder is made beside its place under a scratch name (`ir.base.scratch`), flushed to the disk, and then exchanged with
the folder that is there, in one step where the system can: whoever looks finds the old folder or the new. Where the file
system refuses that (network file systems do), the old folder is renamed first; a run that is killed between the two
renames leaves no folder of that name, and the next run puts the old one back.

Of an old folder only that is removed which its contract lists. One that holds anything else is not replaced.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import json
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from ir.base.diag import LadingError
from ir.base.executor import SERIAL, run_jobs
from ir.base.interrupts import held_interrupts
from ir.base.scratch import Scratch, abandoned, adopt, new_folder, remove, scratch_prefix
from ir.base.whole_files import note_written, sync

MARKER = "contract.json"
"""The file that says what the compiler has written to a folder."""
COMPILER = "lading"
"""What the contract calls its compiler."""
MOST_NAMES = 3
"""Foreign files that a message names."""

_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM, errno.EXDEV}
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_BYTE_CODE = "__pycache__"


@contextmanager
def staged_directory(out: Path, *, force: bool = False, executor: Executor = SERIAL) -> Iterator[Path]:
    """A new directory beside `out` that becomes `out` when the block ends well and vanishes otherwise.

    Args:
        out: the directory to appear; its parents are made.
        force: replace a directory written by the compiler before.
        executor: flushes the files to the disk.

    Raises:
        LadingError: as `check_target`; B632 no permission or no room for the folder, B634 for a file in it.
    """
    out = out.absolute()
    check_target(out, force)
    made = _make_parents(out)
    published = False
    staging: Scratch | None = None
    try:
        try:
            with held_interrupts(firmly=True):
                staging = new_folder(out.parent, _prefix(out, "partial"))
        except OSError as error:
            raise _refused("cannot create a folder here", error, out.parent) from error
        try:
            yield staging.path
            _sync_tree(staging.path, executor)
        except OSError as error:
            if not _concerns(error, staging.path):
                raise
            # Errors of writing, unlike those of opening, do not say where.
            what = Path(os.fsdecode(error.filename)).name if error.filename else "a file"
            where = str(out) if error.filename else f"{out}, or {tempfile.gettempdir()} for temporary files"
            hint = "free some space there, or choose another folder with -o"
            raise LadingError("B634", f"cannot write {what}: {error.strerror or error}", where, hint) from error
        check_target(out, force)
        with held_interrupts(firmly=True):
            old = _put_in_place(staging, out)
            published = True
            note_written(out)
            if old is not None:
                _retire(old, out)
    finally:
        if staging is not None:
            if not published:
                remove(staging.path)
            staging.close()
        for folder in reversed([] if published else made):
            with suppress(OSError):
                folder.rmdir()


def check_target(out: Path, force: bool) -> None:
    """Put right what a killed run left of an output, and refuse one that must not be written to.

    Raises:
        LadingError: B630 it exists, B631 it is no folder or none of ours, B633 it holds other files as well, B635 it
            cannot be replaced as a whole.
    """
    out = out.absolute()
    _recover(out)
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        kind = "is a link" if out.is_symlink() else "is not a folder"
        raise LadingError("B631", f"the output exists and {kind}", where=str(out), hint="choose another with -o")
    what = "a mount point" if os.path.ismount(out) else "the current folder" if _is_current(out) else ""
    if what:
        message = f"the output is {what}, and cannot be replaced in one step"
        raise LadingError("B635", message, where=str(out), hint=f"choose a folder in it: -o {out / 'model'}")
    if not any(out.iterdir()):
        return
    if not force:
        raise LadingError("B630", "the output folder exists", where=str(out), hint="choose another with -o, or --force")
    foreign = foreign_files(out)
    if foreign:
        names = ", ".join(str(path) for path in foreign[:MOST_NAMES])
        more = f" and {len(foreign) - MOST_NAMES} more" if len(foreign) > MOST_NAMES else ""
        message = f"the output folder holds what the compiler did not write, so it is not replaced: {names}{more}"
        raise LadingError("B633", message, where=str(out), hint="move that elsewhere, or choose another with -o")


def _is_current(folder: Path) -> bool:
    with suppress(OSError):
        return folder.samefile(os.curdir)
    return False


def foreign_files(folder: Path) -> list[PurePosixPath]:
    """Paths in a compiled folder that its contract does not list, relative to it; of a whole foreign folder its own.

    Python's byte code of a listed module is no foreign file.

    Raises:
        LadingError: B631 there is no contract, or none that is whole.
    """
    listed = _listed(folder)
    inner = {parent for path in listed for parent in path.parents}
    foreign = []
    for root, folders, files in os.walk(folder):
        place = PurePosixPath(Path(root).relative_to(folder))
        for name in [*folders]:
            path = place / name
            if path not in inner or (folder / path).is_symlink():
                folders.remove(name)
                foreign += [item for item in _outermost(folder, path) if not _is_byte_code(item, listed)]
        foreign += [place / name for name in files if place / name not in listed]
    return sorted(foreign)


def _outermost(folder: Path, path: PurePosixPath) -> list[PurePosixPath]:
    """A foreign folder, or what lies in a folder of byte code."""
    if path.name != _BYTE_CODE or (folder / path).is_symlink():
        return [path]
    return [path / name for name in os.listdir(folder / path)]


def _is_byte_code(path: PurePosixPath, listed: set[PurePosixPath]) -> bool:
    module = path.parent.parent / f"{path.name.partition('.')[0]}.py"
    return path.parent.name == _BYTE_CODE and path.suffix == ".pyc" and module in listed


def _listed(folder: Path) -> set[PurePosixPath]:
    """What the contract in a folder lists, and itself; B631 when there is none of this compiler, whatever its version.

    OSError when it cannot be read.
    """
    hint = "choose another with -o, or empty it yourself"
    if not (folder / MARKER).is_file():
        message = f"the output folder holds other things (it has no {MARKER}), so it is not replaced"
        raise LadingError("B631", message, where=str(folder), hint=hint)
    try:
        paths = _paths_of(json.loads((folder / MARKER).read_bytes()))
    except (ValueError, RecursionError):
        paths = None
    if paths is None:
        message = f"the {MARKER} in the output folder is none of this compiler, so the folder is not replaced"
        raise LadingError("B631", message, str(folder), hint)
    return {PurePosixPath(MARKER), *paths}


def _paths_of(contract: Any) -> list[PurePosixPath] | None:
    """The files that a contract lists; None for anything else. Versions differ in the rest, which is of no concern."""
    if not isinstance(contract, dict) or not isinstance(contract.get("contract_version"), str):
        return None
    compiler, files = contract.get("compiler"), contract.get("files")
    if not isinstance(compiler, dict) or compiler.get("name") != COMPILER or not isinstance(files, list):
        return None
    if not all(isinstance(entry, dict) and _is_entry(entry) for entry in files):
        return None
    return [PurePosixPath(entry["path"]) for entry in files]


def _is_entry(entry: dict[str, Any]) -> bool:
    path, size, digest = entry.get("path"), entry.get("bytes"), entry.get("sha256")
    if not isinstance(path, str) or type(size) is not int or not isinstance(digest, str) or len(digest) != 64:
        return False
    return path != "" and "\0" not in path and not path.startswith("/") and ".." not in path.split("/")


def _make_parents(out: Path) -> list[Path]:
    missing = [folder for folder in (out.parent, *out.parent.parents) if not folder.exists()]
    made: list[Path] = []
    for folder in reversed(missing):
        try:
            folder.mkdir()
        except FileExistsError:
            # Another run was faster, or it is no folder, which the next one tells.
            continue
        except OSError as error:
            for item in reversed(made):
                item.rmdir()
            raise _refused("cannot create a folder here", error, folder) from error
        made.append(folder)
    return made


def _refused(what: str, error: OSError, where: Path) -> LadingError:
    return LadingError("B632", f"{what}: {error.strerror or error}", where=str(where))


def _concerns(error: OSError, folder: Path) -> bool:
    """True for an error of writing to a folder."""
    name = error.filename
    inside = isinstance(name, str | bytes) and os.fsdecode(name).startswith(f"{folder}{os.sep}")
    return inside or error.errno in _NO_ROOM


def _sync_tree(folder: Path, executor: Executor) -> None:
    """Flush all files of a folder and the names in it, at the same time: disks wait once for many."""
    paths = [Path(root, name) for root, _, files in os.walk(folder) for name in (*files, "")]
    for _ in run_jobs(executor, sync, paths):
        pass


# ---- in place ----


def _prefix(out: Path, kind: str) -> str:
    return scratch_prefix(out.name, kind)


def _put_in_place(staging: Scratch, out: Path) -> Path | None:
    """Give a finished folder its name; returns where the old one is now, if there was one that is not empty.

    Raises:
        LadingError: B632 the system refuses it; everything is as it was.
    """
    old: Path | None = None
    try:
        if not out.exists() or not any(out.iterdir()):
            os.rename(staging.path, out)
        elif _exchange(staging.path, out):
            old = staging.path
        else:
            old = _swap(staging.path, out)
    except OSError as error:
        raise _refused("cannot put the finished folder in place", error, out) from error
    with suppress(OSError):
        sync(out.parent)
    return old


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where system or file system cannot.

    Raises:
        OSError: it is refused for another reason.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _swap(staging: Path, out: Path) -> Path:
    """Put a folder in the place of another with two renames; returns where the other is now."""
    retired = adopt(out, _prefix(out, "retired"))
    try:
        os.rename(staging, out)
    except OSError:
        os.rename(retired.path, out)
        raise
    finally:
        retired.close()
    return retired.path


def _recover(out: Path) -> None:
    """Put back an old folder that a killed run had moved away, and remove what it left half done."""
    for folder in abandoned(out.parent, _prefix(out, "retired")):
        if not os.path.lexists(out):
            with suppress(OSError):
                os.rename(folder, out)
                continue
        _retire(folder, out)
    for folder in abandoned(out.parent, _prefix(out, "partial")):
        _retire(folder, out)


def remove_compiled(folder: Path) -> None:
    """Remove a compiled folder; what its contract does not list stays, and so does a folder without one."""
    try:
        _listed(folder)
    except (LadingError, OSError):
        return
    _retire(folder, folder)


def _retire(folder: Path, out: Path) -> None:
    """Remove an old folder as far as its contract lists it; what somebody put there meanwhile goes to the new one."""
    try:
        listed = _listed(folder)
        foreign = foreign_files(folder)
    except LadingError:
        # Without a contract it never was an output.
        remove(folder)
        return
    except OSError:
        return
    for path in foreign:
        if out.is_dir() and not os.path.lexists(out / path):
            with suppress(OSError):
                (out / path).parent.mkdir(parents=True, exist_ok=True)
                os.rename(folder / path, out / path)
    for path in listed - {PurePosixPath(MARKER)}:
        with suppress(OSError):
            (folder / path).unlink(missing_ok=True)
            for item in (folder / path.parent / _BYTE_CODE).glob(f"{glob.escape(path.stem)}.*.pyc"):
                if path.suffix == ".py":
                    item.unlink(missing_ok=True)
    # The contract goes last, and only with everything else: without it the next run would remove the folder as a whole.
    for root, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            if os.listdir(root) == [MARKER]:
                os.unlink(os.path.join(root, MARKER))
            os.rmdir(root)


__all__ = ["MARKER", "check_target", "foreign_files", "remove_compiled", "staged_directory"]
