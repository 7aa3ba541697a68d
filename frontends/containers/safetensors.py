"""Read safetensors checkpoints without torch: headers now, numbers when they are asked for.

The files come from strangers. A header is checked in full before any of it is believed: a tensor that is handed out
lies inside its file, does not overlap another, and has the size its type says. Pickled checkpoints are never opened.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from frontends.containers.stand_ins import require_real
from ir.base.diag import LadingError, suggest
from ir.base.types import DTYPES, TensorType
from ir.tensor.base import PIECE_BYTES
from ir.tensor.files import FILES, FileTensor

HEADER_LIMIT = 100_000_000
INDEX_LIMIT = 100_000_000
RANK_LIMIT = 64
SIZE_LIMIT = 1 << 62
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_CONVERT = "convert it with safetensors, for instance by transformers' save_pretrained, where you trust the file"
TYPES = {
    "BOOL": "bool",
    "U8": "u8",
    "I8": "i8",
    "U16": "u16",
    "I16": "i16",
    "U32": "u32",
    "I32": "i32",
    "U64": "u64",
    "I64": "i64",
    "F16": "f16",
    "BF16": "bf16",
    "F32": "f32",
    "F64": "f64",
    "C64": "c64",
    "F8_E4M3": "f8e4m3fn",
    "F8_E4M3FNUZ": "f8e4m3fnuz",
    "F8_E5M2": "f8e5m2",
    "F8_E5M2FNUZ": "f8e5m2fnuz",
    "F8_E8M0": "f8e8m0",
    "F4": "f4e2m1",
}
"""Our name of each element type of a header."""


@dataclass(frozen=True)
class Source:
    """One file of a checkpoint, for provenance.

    Attributes:
        name: file name inside the folder.
        nbytes: size of the file.
        header_digest: SHA-256 (hex) of the length word and the header.
        digest: SHA-256 (hex) of the whole file, or None when it was not asked for.
    """

    name: str
    nbytes: int
    header_digest: str
    digest: str | None = None


@dataclass(frozen=True)
class CheckpointFile:
    """One safetensors file whose header was read and checked.

    Attributes:
        path: the file.
        nbytes: size of the file.
        header_digest: SHA-256 (hex) of the length word and the header.
        metadata: the header's ``__metadata__``.
        tensors: tensors by name, in the order of their data.
    """

    path: str
    nbytes: int
    header_digest: str
    metadata: dict[str, str]
    tensors: dict[str, FileTensor]


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a folder; nothing but headers has been read.

    Attributes:
        folder: where it lies.
        files: its files, by name.
        tensors: all tensors by name, in the order of files and data.
    """

    folder: str
    files: tuple[CheckpointFile, ...]
    tensors: dict[str, FileTensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all files together."""
        return sum(file.nbytes for file in self.files)

    def sources(self, full: bool = False) -> list[Source]:
        """What the checkpoint consists of; with `full` every file is read once for its digest."""
        return [
            Source(os.path.basename(file.path), file.nbytes, file.header_digest, _digest(file) if full else None)
            for file in self.files
        ]

    def release(self) -> None:
        """Close the files."""
        for file in self.files:
            FILES.forget(file.path)


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read and check the headers of a checkpoint.

    Args:
        path: a folder, or one ``.safetensors`` file. In a folder the first of these counts: ``model.safetensors``
            (unless the index names it among others), the files of ``model.safetensors.index.json``, the files of the
            only other ``*.safetensors.index.json``, all ``*.safetensors`` files. ``consolidated*.safetensors`` files
            hold the same tensors once more under other names and count only when there is nothing else.

    Raises:
        LadingError: F510 to F527.
    """
    place = Path(path)
    if place.is_file():
        return _assemble(place.parent, [read_file(place)])
    if not place.is_dir():
        raise LadingError("F510", "no such checkpoint folder or file", where=str(path))
    try:
        names = sorted(os.listdir(place))
    except OSError as error:
        raise LadingError("F511", f"cannot read: {error.strerror or error}", where=str(path)) from error
    index = _choose_index(place, names)
    if index is not None:
        return _read_indexed(place, index)
    if SINGLE in names:
        return _assemble(place, [read_file(place / SINGLE)])
    files = [name for name in names if name.endswith(".safetensors")]
    files = [name for name in files if not name.startswith("consolidated")] or files
    if not files:
        raise _nothing_found(place, names)
    _require_shards(place, files)
    return _assemble(place, [read_file(place / name) for name in files])


def _choose_index(folder: Path, names: list[str]) -> str | None:
    if INDEX in names:
        if SINGLE in names and SINGLE not in _weight_map(folder / INDEX).values():
            return None
        return INDEX
    others = [name for name in names if name.endswith(".safetensors.index.json")]
    others = [name for name in others if not name.startswith("consolidated")] or others
    return others[0] if len(others) == 1 and SINGLE not in names else None


def _require_shards(folder: Path, files: list[str]) -> None:
    """Raise F524 where a file is by its name one of several, and not all of them are there."""
    sets: dict[tuple[str, int], set[int]] = {}
    for name in files:
        if found := _SHARD.fullmatch(name):
            sets.setdefault((found[1], int(found[3])), set()).add(int(found[2]))
    for (stem, count), numbers in sets.items():
        # Some exporters count from 0.
        there = len(numbers & set(range(0 if 0 in numbers else 1, count + (0 not in numbers))))
        if there < count:
            message = f"{there} of the {count} files {stem}-...-of-{count} {'is' if there == 1 else 'are'} here"
            raise LadingError("F524", message, str(folder), "the download was not completed: fetch the rest")


def _nothing_found(folder: Path, names: list[str]) -> LadingError:
    pickled = [name for name in names if name.endswith(_PICKLED) or name.endswith(".bin.index.json")]
    if pickled:
        message = f"only pickled weights here ({pickled[0]}); they can run code and are never opened"
        return LadingError("F513", message, where=str(folder), hint=_CONVERT)
    return LadingError("F512", "the folder has no .safetensors file", where=str(folder))


def _read_indexed(folder: Path, index: str) -> Checkpoint:
    wanted = _weight_map(folder / index)
    shards = sorted(set(wanted.values()))
    missing = [name for name in shards if not os.path.lexists(folder / name)]
    if missing:
        some = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        message = f"{index} names {len(shards)} files, and {len(missing)} of them {'is' if len(missing) == 1 else 'are'} missing"
        hint = "the download was not completed: fetch the rest"
        raise LadingError("F524", f"{message}: {some}", where=str(folder), hint=hint)
    files = [read_file(folder / name) for name in shards]
    found = _assemble(folder, files)
    for name, shard in wanted.items():
        tensor = found.tensors.get(name)
        if tensor is None or os.path.basename(tensor.path) != shard:
            message = f"{index} says that tensor {name!r} is in {shard}, but it is not"
            raise LadingError("F526", message, where=str(folder))
    for name, tensor in found.tensors.items():
        if name not in wanted:
            message = f"{os.path.basename(tensor.path)} has tensor {name!r}, which {index} does not list"
            hint = f"remove {index} to read every tensor of the files"
            raise LadingError("F527", message, where=str(folder), hint=hint)
    return found


def _weight_map(path: Path) -> dict[str, str]:
    raw, size = _read_start(str(path), INDEX_LIMIT, "F514")
    if size > INDEX_LIMIT:
        raise LadingError("F514", f"{size} bytes are too many for an index", where=str(path))
    found = _parse(raw, "F514", str(path)).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise LadingError("F514", "the index has no weight_map with entries", where=str(path))
    for name, shard in found.items():
        if not isinstance(shard, str):
            raise LadingError("F514", f"the file of tensor {name!r} is not a string", where=str(path))
        if shard.endswith(_PICKLED):
            raise LadingError("F513", f"{shard!r} is pickled and never opened", where=str(path), hint=_CONVERT)
        if not shard.endswith(".safetensors") or shard != os.path.basename(shard) or set("\\:\0") & set(shard):
            message = f"tensor {name!r} is said to be in {shard!r}, which is not the plain name of a .safetensors file"
            raise LadingError("F515", message, where=str(path))
    return found


def _assemble(folder: Path, files: list[CheckpointFile]) -> Checkpoint:
    tensors: dict[str, FileTensor] = {}
    for file in files:
        for name, tensor in file.tensors.items():
            if name in tensors:
                both = f"{os.path.basename(tensors[name].path)} and {os.path.basename(file.path)}"
                raise LadingError("F525", f"tensor {name!r} is in two files, {both}", where=str(folder))
            tensors[name] = tensor
    return Checkpoint(str(folder), tuple(files), tensors)


# --- one file ---------------------------------------------------------------------------------------------------------


def read_file(path: str | os.PathLike[str]) -> CheckpointFile:
    """Read and check the header of one safetensors file.

    Raises:
        LadingError: F511, F513, F516 to F523.
    """
    place = os.fspath(path)
    if place.endswith(_PICKLED):
        raise LadingError("F513", "a pickled file; it can run code and is never opened", where=place, hint=_CONVERT)
    start, size = _read_start(place, 8, "F511")
    if size < 8:
        raise LadingError("F516", f"{size} bytes are too few for a safetensors file", where=place)
    require_real(Path(place))
    length = int.from_bytes(start, "little")
    if length > min(HEADER_LIMIT, size - 8):
        message = f"the header claims {length} bytes; the file has {size} and a header at most {HEADER_LIMIT}"
        raise LadingError("F517", message, where=place, hint="the file is truncated or not a safetensors file")
    raw, _ = _read_start(place, 8 + length, "F511")
    header = _parse(raw[8:], "F518", place)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise LadingError("F518", "__metadata__ is not an object of strings", where=place)
    entries = [_Entry.read(place, name, entry) for name, entry in header.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    _check_cover(place, entries, size - 8 - length)
    tensors = {entry.name: FileTensor(place, 8 + length + entry.begin, entry.type, entry.name) for entry in entries}
    return CheckpointFile(place, size, hashlib.sha256(raw).hexdigest(), metadata, tensors)


def _read_start(path: str, count: int, code: str) -> tuple[bytes, int]:
    """Up to `count` bytes from the start of a regular file, and the size of the file."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise LadingError(code, "not a regular file", where=path)
        with open(path, "rb") as file:
            return file.read(count), found.st_size
    except OSError as error:
        raise LadingError(code, f"cannot read: {error.strerror or error}", where=path) from error


class _Repeated(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise _Repeated(f"{name!r} is defined twice")
        seen.add(name)
    return found


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _parse(raw: bytes, code: str, where: str) -> dict[str, Any]:
    """A JSON object from outside, or an error of the given code."""
    if raw[:1] != b"{":
        raise LadingError(code, "not a JSON object", where=where)
    try:
        return json.loads(raw.decode(), object_pairs_hook=_object, parse_constant=_no_constant)
    except RecursionError as error:
        raise LadingError(code, "the JSON is nested too deeply", where=where) from error
    except ValueError as error:
        raise LadingError(code, f"damaged JSON: {str(error)[:200]}", where=where) from error


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the header says of one tensor; `begin` and `end` count from the end of the header."""

    name: str
    type: TensorType
    begin: int
    end: int

    @classmethod
    def read(cls, path: str, name: str, entry: Any) -> _Entry:
        """Check one entry on its own."""

        def refuse(code: str, why: str, hint: str = "") -> LadingError:
            return LadingError(code, f"tensor {name!r}: {why}", where=path, hint=hint)

        if not name.isprintable():
            raise refuse("F519", "the name has characters that cannot be printed")
        if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
            raise refuse("F519", "the entry is not an object with a dtype")
        shape, offsets = entry.get("shape"), entry.get("data_offsets")
        if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2 or len(shape) > RANK_LIMIT:
            raise refuse("F519", f"shape {str(shape)[:80]} or data_offsets {str(offsets)[:80]} are not lists of sizes")
        dtype = TYPES.get(entry["dtype"])
        if dtype is None:
            hint = suggest(entry["dtype"], list(TYPES)) or f"known: {', '.join(TYPES)}"
            raise refuse("F520", f"unknown dtype {entry['dtype'][:40]!r}", hint)
        bits = DTYPES[dtype].bits
        if math.prod(size for size in shape if size) * bits > SIZE_LIMIT:
            raise refuse("F519", f"shape {shape} is too large")
        begin, end = offsets
        if (end - begin) * 8 != math.prod(shape) * bits:
            raise refuse("F522", f"{entry['dtype']}{shape} does not fill bytes {begin} to {end}")
        return cls(name, TensorType(DTYPES[dtype], tuple(shape)), begin, end)


def _is_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= SIZE_LIMIT for item in value)


def _check_cover(path: str, entries: list[_Entry], available: int) -> None:
    """Data must follow the header without hole, overlap or rest; entries are sorted by place."""
    reached, before = 0, "the header"
    for entry in entries:
        if entry.end > available:
            message = f"tensor {entry.name!r} ends at byte {entry.end} of {available} bytes of data"
            raise LadingError("F521", message, where=path, hint="the file is truncated; fetch it again")
        if entry.begin != reached:
            what = "overlaps" if entry.begin < reached else f"leaves {entry.begin - reached} bytes after"
            raise LadingError("F523", f"tensor {entry.name!r} {what} {before!r}", where=path)
        reached, before = entry.end, entry.name
    if reached != available:
        raise LadingError("F523", f"{available - reached} bytes after the last tensor belong to none", where=path)


def _digest(file: CheckpointFile) -> str:
    state = hashlib.sha256()
    for start in range(0, file.nbytes, PIECE_BYTES):
        state.update(FILES.read(file.path, start, min(PIECE_BYTES, file.nbytes - start)).data)
    return state.hexdigest()
