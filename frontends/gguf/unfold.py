"""A GGUF file as a folder: what the rest of the compiler looks for beside the weights of a checkpoint.

The folder is temporary and holds ``config.json``, ``generation_config.json`` and ``tokenizer_config.json``, made from the
metadata, and links to the file, whose tensors and vocabulary are read where it lies. It is made once in a process for
each state of a file, and goes with the process.
"""

from __future__ import annotations

import atexit
import json
import os
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frontends.containers.gguf import Gguf, open_gguf
from frontends.containers.links import LINK, TOKENIZER_LINK
from frontends.gguf.model import rebuilt
from frontends.gguf.tokenizer import settings_of
from ir.base.diag import LadingError
from ir.base.scratch import TEMPORARY, Scratch, abandoned, new_folder, remove
from ir.facts.model_card import SourceFile
from ir.quant.ggml_blocks import GgmlBlocks
from ir.tensor.base import Tensor

_LOCK = threading.Lock()
_FOLDERS: dict[tuple[str, int, int], tuple[Scratch, Path]] = {}


def unfolded(path: Path) -> Path:
    """The folder of a file, named like the file.

    Raises:
        LadingError: those of `frontends.containers.gguf.open_gguf` and `frontends.gguf.model.rebuilt`, F507 it cannot
            be written.
    """
    place = path.resolve()
    gguf = open_gguf(place)
    state = os.stat(gguf.files[0].path)
    key = (gguf.files[0].path, state.st_mtime_ns, state.st_size)
    with _LOCK:
        if key not in _FOLDERS or not _FOLDERS[key][1].is_dir():
            _FOLDERS[key] = _made(place, gguf)
        return _FOLDERS[key][1]


@dataclass(frozen=True)
class Opened:
    """The tensors of a file under the names of a checkpoint, the files they lie in, and how each is stored."""

    tensors: dict[str, Tensor]
    files: dict[str, SourceFile]
    encodings: dict[str, str]


def opened(folder: Path) -> Opened:
    """What a folder with a link stands for; errors as of `unfolded`."""
    place = (folder / LINK).resolve()
    gguf = open_gguf(place)
    files = {os.path.basename(file.path): SourceFile(file.nbytes, file.header_digest, "header") for file in gguf.files}
    tensors = dict(rebuilt(gguf, str(place)).tensors)
    return Opened(tensors, files, {name: f"GGUF {_kind(tensor)}" for name, tensor in tensors.items()})


def _kind(tensor: Tensor) -> str:
    """The type in which the numbers of a tensor, or the first of several parts of it, are stored."""
    while not isinstance(tensor, GgmlBlocks) and tensor.inputs:
        tensor = tensor.inputs[0]
    return (tensor.kind.name if isinstance(tensor, GgmlBlocks) else tensor.type.dtype.name).upper()


def _made(place: Path, gguf: Gguf) -> tuple[Scratch, Path]:
    model = rebuilt(gguf, str(place))
    files: dict[str, Any] = {"config.json": model.config, "tokenizer_config.json": settings_of(gguf.metadata)}
    if model.generation:
        files["generation_config.json"] = model.generation
    parent = Path(tempfile.gettempdir())
    for path in abandoned(parent, TEMPORARY):
        remove(path)
    try:
        scratch = new_folder(parent, TEMPORARY, 0o700)
        folder = scratch.path / place.stem
        folder.mkdir()
        for name in (LINK, TOKENIZER_LINK):
            (folder / name).symlink_to(gguf.files[0].path)
        for name, data in files.items():
            (folder / name).write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    except OSError as error:
        message = f"what the file says cannot be laid out in {parent}: {error.strerror or error}"
        raise LadingError("F507", message, str(place), "free some space, or set TMPDIR to another folder") from error
    return scratch, folder


@atexit.register
def _remove_all() -> None:
    for scratch, _ in _FOLDERS.values():
        remove(scratch.path)
        with suppress(OSError):
            scratch.close()
    _FOLDERS.clear()


__all__ = ["Opened", "opened", "unfolded"]
