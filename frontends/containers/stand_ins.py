"""What lies in the place of a model's file where a download or a clone brought something else.

A clone without Git LFS leaves a pointer of three lines in the place of each large file, git-annex likewise; a failed
download leaves a page, a message of a server, or nothing. All of them are told by their first bytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ir.base.diag import Diagnostic, LadingError

HEAD = 512
"""Bytes that are looked at."""

POINTER = b"version https://git-lfs.github.com/spec/"

NAMES = re.compile(
    r"(?!consolidated).*\.safetensors(\.index\.json)?|(generation_|tokenizer_|adapter_)?config\.json|tokenizer\.json"
    r"|(special_tokens_map|added_tokens|vocab|chat_template)\.json|.*\.(jinja|tiktoken)|tokenizer\.model|(vocab|merges)\.txt"
)
"""Files of a model folder that are read, by name; copies of the weights under other names are not."""

MOST = 64
"""Files of a folder that are looked at besides those that are small enough for a pointer."""

POINTER_BYTES = 1024
"""A pointer is never larger."""

FETCH = "fetch the file again"
"""What to do about most of them."""


@dataclass(frozen=True)
class StandIn:
    """What a file is instead: a noun for a message, and what to do about it."""

    what: str
    hint: str


LFS = StandIn("a Git LFS pointer, not the file itself", "run `git lfs pull` in the folder, or download the files")
ANNEX = StandIn("a git-annex pointer, not the file itself", "run `git annex get .` in the folder")

OPENINGS: tuple[tuple[bytes, tuple[str, ...], StandIn], ...] = (
    (POINTER, (), LFS),
    (b"/annex/objects/", (), ANNEX),
    (b"<!doctype html", (), StandIn("a web page, left by a failed download", FETCH)),
    (b"<html", (), StandIn("a web page, left by a failed download", FETCH)),
    (b"<?xml", (), StandIn("an XML document, as servers answer where a download failed", FETCH)),
    (b"<error>", (), StandIn("an XML document, as servers answer where a download failed", FETCH)),
    (b"entry not found", (), StandIn("the message 'Entry not found' of the hub", FETCH)),
    (b"invalid username or password", (), StandIn("a refusal of the hub", "log in with `hf auth login` and " + FETCH)),
    (b"access to model", (), StandIn("a refusal of the hub", "accept the model's terms, log in, and " + FETCH)),
    (b'{"error"', (".safetensors", ".onnx"), StandIn("an error message of a server", FETCH)),
    (b"gguf", (".safetensors", ".onnx"), StandIn("a GGUF file", "let its name end in .gguf, and give the file itself")),
    (b"pk\x03\x04", (".safetensors", ".onnx", ".json"), StandIn("a zip archive or a pickled PyTorch file, under another name",
                                                      "unpack it, or save the model again as safetensors")),
    (b"\x1f\x8b", (".safetensors", ".onnx", ".json"), StandIn("a gzip archive", "unpack it")),
)  # fmt: skip
"""First bytes in lower case, the suffixes that they are wrong for (none: for all), and what they stand for."""


def stand_in(path: Path) -> StandIn | None:
    """What lies in the place of a file; None when nothing speaks against it or it cannot be read."""
    try:
        if not path.is_file():
            return None
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:
        return None
    if not size:
        return StandIn("empty", FETCH) if path.suffix in (".safetensors", ".onnx", ".json") else None
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for opening, suffixes, found in OPENINGS:
        if start.startswith(opening.lower()) and (not suffixes or path.suffix in suffixes):
            return found
    return None


def require_present(folder: Path, names: Iterable[str]) -> None:
    """Refuse a folder some of whose files are not there although their names are.

    Raises:
        LadingError: F563 pointers, F564 other things; every file is named.
    """
    found: dict[StandIn, list[str]] = {}
    for name in _worth_a_look(folder, names):
        what = stand_in(folder / name)
        if what is not None:
            found.setdefault(what, []).append(name)
    if found:
        raise LadingError.of([_told(folder, what, files) for what, files in found.items()])


def require_real(path: Path) -> None:
    """The same for one file."""
    what = stand_in(path)
    if what is not None:
        raise LadingError.of([_told(path.parent, what, [path.name])])


def require_fetched(path: Path) -> None:
    """Refuse a pointer in the place of a file that may hold any text; LadingError F563."""
    what = stand_in(path)
    if what in (LFS, ANNEX):
        raise LadingError.of([_told(path.parent, what, [path.name])])


def _worth_a_look(folder: Path, names: Iterable[str]) -> Iterator[str]:
    """Every file that is small enough for a pointer, and some of the others."""
    others = 0
    for name in sorted(names):
        if not NAMES.fullmatch(name):
            continue
        try:
            small = os.stat(folder / name).st_size <= POINTER_BYTES
        except OSError:
            continue
        others += not small
        if small or others <= MOST:
            yield name


def _told(folder: Path, what: StandIn, files: Sequence[str]) -> Diagnostic:
    some = ", ".join(files[:8]) + (f" and {len(files) - 8} more" if len(files) > 8 else "")
    code = "F563" if what in (LFS, ANNEX) else "F564"
    if len(files) == 1:
        return Diagnostic(code, f"{some} is {what.what}", str(folder), what.hint)
    return Diagnostic(code, f"{len(files)} files are each {what.what}: {some}", str(folder), what.hint)


__all__ = ["StandIn", "require_fetched", "require_present", "require_real", "stand_in"]
