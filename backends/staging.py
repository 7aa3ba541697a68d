"""Output directories that appear complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ir.base.diag import LadingError

MARKER = "contract.json"
"""A directory that holds this file was written by the compiler, so ``--force`` may replace it."""


@contextmanager
def staged_directory(out: Path, *, force: bool = False) -> Iterator[Path]:
    """A new directory beside `out` that becomes `out` when the block ends well and vanishes otherwise.

    Args:
        out: the directory to appear; its parents are made.
        force: replace a directory written by the compiler before.

    Raises:
        LadingError: B630 `out` exists, B631 `out` is not ours to replace, B632 no permission or no room.
    """
    out = out.absolute()
    check_target(out, force)
    made = _make_parents(out)
    staging = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        _remove_stale(out)
        try:
            staging.mkdir()
        except OSError as error:
            raise LadingError(
                "B632", f"cannot create a folder here: {error.strerror}", where=str(out.parent)
            ) from error
        yield staging
        _publish(staging, out, force)
        made = []
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()


def check_target(out: Path, force: bool) -> None:
    """Refuse an output that must not be written to; the errors of `staged_directory`."""
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise LadingError(
            "B631", "the output exists and is not a folder", where=str(out), hint="choose another with -o"
        )
    if not any(out.iterdir()):
        return
    if not force:
        raise LadingError("B630", "the output folder exists", where=str(out), hint="choose another with -o, or --force")
    if not (out / MARKER).is_file():
        raise LadingError(
            "B631",
            f"the output folder holds other things (it has no {MARKER}), so it is not replaced",
            where=str(out),
            hint="choose another with -o, or empty it yourself",
        )


def _make_parents(out: Path) -> list[Path]:
    missing = [folder for folder in (out.parent, *out.parent.parents) if not folder.exists()]
    made: list[Path] = []
    for folder in reversed(missing):
        try:
            folder.mkdir()
        except OSError as error:
            for item in reversed(made):
                item.rmdir()
            raise LadingError("B632", f"cannot create a folder here: {error.strerror}", where=str(folder)) from error
        made.append(folder)
    return made


def _remove_stale(out: Path) -> None:
    """Remove what a killed run left: a partial folder whose process no longer lives."""
    prefix = f".{out.name}.partial-"
    for folder in out.parent.glob(f"{prefix}*"):
        pid = folder.name[len(prefix) :]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _publish(staging: Path, out: Path, force: bool) -> None:
    try:
        if not out.exists():
            os.rename(staging, out)
            return
        check_target(out, force)
        retired = out.parent / f".{out.name}.retired-{os.getpid()}"
        os.rename(out, retired)
        try:
            os.rename(staging, out)
        except OSError:
            os.rename(retired, out)
            raise
        shutil.rmtree(retired, ignore_errors=True)
    except OSError as error:
        raise LadingError(
            "B632", f"cannot put the finished folder in place: {error.strerror}", where=str(out)
        ) from error
