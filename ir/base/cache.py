"""Files that are there whole or not at all, and the folder where work is kept between runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ir.base.diag import LadingError

CACHE_VARIABLE = "LADING_CACHE"
"""Environment variable that names the folder of cached work."""


def cache_folder() -> Path:
    """Where calibration statistics and quantized weights are kept between runs."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given) if given else Path.home() / ".cache" / "lading"


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; the file moves to its place when the block ends well, and vanishes otherwise.

    Raises:
        OSError: it cannot be written or moved.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


@contextmanager
def whole_file(
    path: Path, code: str, what: str, hint: str = f"free some space, or set {CACHE_VARIABLE} to another folder"
) -> Iterator[Path]:
    """As `write_whole`, for a file of the cache.

    Args:
        path: where the file is to appear; its folder is made.
        code: of the error.
        what: what is kept there, for the message.
        hint: what to do about the error.

    Raises:
        LadingError: with `code`, no room or no permission.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path) as scratch:
            yield scratch
    except OSError as error:
        raise LadingError(code, f"cannot keep {what}: {error.strerror}", where=str(path), hint=hint) from error


__all__ = ["CACHE_VARIABLE", "cache_folder", "whole_file", "write_whole"]
