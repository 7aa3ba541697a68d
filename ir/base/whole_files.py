"""Files that are there whole or not at all, and what tells their contents apart."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of the content of a file; OSError when it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = ["sha256_of", "write_whole"]
