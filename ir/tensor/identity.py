"""What a tensor is, as a digest that reads no file: recipe, places in files, and the state of the files."""

from __future__ import annotations

import os
from hashlib import blake2b

from ir.base.diag import LadingError
from ir.tensor.base import Tensor
from ir.tensor.files import find_source


def tensor_identity(tensor: Tensor) -> str:
    """Fingerprint of a tensor together with the state of the files below it; errors as for `value_digests`."""
    return joined_digest("tensor", tensor.fingerprint(), *(_file_state(item.path) for item in find_source(tensor)))


def _file_state(path: str) -> str:
    try:
        found = os.stat(path)
    except OSError as error:
        raise LadingError("T252", f"cannot read: {error.strerror or error}", where=path) from error
    return f"{found.st_size}:{found.st_mtime_ns}"


def joined_digest(*parts: str) -> str:
    state = blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()
