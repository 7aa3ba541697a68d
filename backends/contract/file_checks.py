"""Comparison of a model folder with the files that its contract lists."""

from __future__ import annotations

import os
from pathlib import Path

from backends.contract.codec import CONTRACT_FILE
from backends.contract.records import Contract, FileEntry
from ir.base.diag import Diagnostic, suggest
from ir.base.inside import outside
from ir.base.whole_files import sha256_of


def check_files(contract: Contract, folder: str | os.PathLike[str], *, digests: bool = True) -> list[Diagnostic]:
    """What is wrong with a copy of the model folder: missing, changed and unreadable files; extra ones as warnings.

    Without `digests` only names and sizes are compared and no file is read.
    """
    root = Path(folder)
    if not root.is_dir():
        return [Diagnostic("C814", "there is no such folder", str(root))]
    listed = {entry.path for entry in contract.files}
    present = {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}
    extra = sorted(present - listed - {CONTRACT_FILE})
    problems = [problem for entry in contract.files if (problem := _file_problem(entry, root, extra, digests))]
    message = "this file is not part of the model"
    return problems + [Diagnostic("C813", message, str(root / path), severity="warning") for path in extra]


def _file_problem(entry: FileEntry, root: Path, extra: list[str], digests: bool) -> Diagnostic | None:
    path = root / entry.path
    if (real := outside(path, root)) is not None:
        return Diagnostic(
            "C814", f"the {entry.role} file is a link out of the folder, to {real}", str(path), "copy it there"
        )
    try:
        if not path.is_file():
            return Diagnostic("C810", f"the {entry.role} file is missing", str(path), suggest(entry.path, extra))
        size = path.stat().st_size
        if size != entry.bytes:
            return Diagnostic(
                "C811", f"the {entry.role} file has {size} bytes instead of {entry.bytes}", str(path), "copy it again"
            )
        if digests and sha256_of(path) != entry.sha256:
            return Diagnostic(
                "C812", f"the {entry.role} file has other content than the compiler wrote", str(path), "copy it again"
            )
    except OSError as error:
        return Diagnostic("C814", f"the {entry.role} file cannot be read: {error.strerror}", str(path))
    return None
