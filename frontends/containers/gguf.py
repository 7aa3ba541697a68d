"""Read GGUF files: metadata and the list of tensors now, numbers when they are asked for.

The files come from strangers. Every length is held against what is left of the file before anything is made of it, every
tensor lies inside the file's data, follows the one before, and has the size that its type says.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from frontends.containers.stand_ins import require_real
from ir.base.diag import LadingError
from ir.base.types import DTYPES, U8, TensorType
from ir.quant.ggml_blocks import BLOCK_TYPES, ggml_blocks
from ir.tensor.base import Tensor
from ir.tensor.files import FileTensor
from ir.tensor.rearranged import reshaped

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = "general.alignment"
USUAL_ALIGNMENT = 32
MOST_ALIGNMENT = 1 << 20
HEADER_LIMIT = 1 << 28
"""Bytes of metadata and tensor list that are believed; vocabularies take some megabytes."""
MOST_KEYS, MOST_TENSORS, MOST_DIMS, MOST_NESTING, LONGEST_NAME = 1 << 16, 1 << 20, 4, 4, 1 << 16
SIZE_LIMIT = 1 << 62
PIECE = 1 << 20

_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
SPLIT_NUMBER, SPLIT_COUNT = "split.no", "split.count"

_NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
"""Numbers by the code of their type, as numpy calls them."""
_TEXT, _LIST = 8, 9

FLOATS = {0: "f32", 1: "f16", 28: "f64", 30: "bf16"}
"""Float types of tensors by their code."""
BLOCKS = {
    2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0",
    10: "q2_k", 11: "q3_k", 12: "q4_k", 13: "q5_k", 14: "q6_k", 39: "mxfp4",
}  # fmt: skip
"""Block formats by their code, keys of `ir.quant.ggml_blocks.BLOCK_TYPES`."""
OTHERS = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0",
    40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
"""Types that are known by name and not read."""

READ = ", ".join(name.upper() for name in (*FLOATS.values(), *BLOCKS.values()))


@dataclass(frozen=True)
class GgufFile:
    """One file whose header was read and checked.

    Attributes:
        path: the file.
        nbytes: size of the file.
        header_digest: SHA-256 (hex) of everything before the data.
        metadata: values by key: numbers, booleans, texts, lists of texts or of lists, arrays of numbers.
        tensors: tensors by name, in the order of the file; matrices of block formats as float32.
        kinds: how each tensor is stored, such as ``f16`` or ``q4_k``.
    """

    path: str
    nbytes: int
    header_digest: str
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    kinds: Mapping[str, str]


@dataclass(frozen=True)
class Gguf:
    """A model in one file or in several: the metadata of the first, the tensors of all."""

    files: tuple[GgufFile, ...]
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    kinds: Mapping[str, str]


def open_gguf(path: str | os.PathLike[str]) -> Gguf:
    """Read and check the headers of a model; of one that is split, any of its files names all of them.

    Raises:
        LadingError: F510 no such file, F511 unreadable, F524 parts are missing, F525 a tensor is in two of them, F563
            or F564 something else lies in its place, F583 it is damaged, F584 its types are not read.
    """
    first = _read_file(Path(path))
    names = _parts(Path(path), first.metadata)
    files = tuple(first if name == Path(path) else _read_file(name) for name in names)
    tensors: dict[str, Tensor] = {}
    kinds: dict[str, str] = {}
    for number, file in enumerate(files):
        if len(files) > 1 and file.metadata.get(SPLIT_NUMBER) != number:
            message = f"it says that it is part {file.metadata.get(SPLIT_NUMBER)}, and its name that it is {number}"
            raise LadingError("F583", message, file.path, "files of several models were mixed; fetch them again")
        for name in file.tensors:
            if name in tensors:
                both = f"two files, {tensors[name].loc.partition(':')[0]} and {os.path.basename(file.path)}"
                raise LadingError("F525", f"tensor {name!r} is in {both}", str(names[0].parent))
        tensors.update(file.tensors)
        kinds.update(file.kinds)
    _refuse_unread(kinds, str(path))
    return Gguf(files, files[0].metadata, tensors, kinds)


def is_gguf(path: Path) -> bool:
    """True for a file that begins as GGUF files do."""
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except (OSError, ValueError):
        return False


def first_parts(names: list[str]) -> list[str]:
    """Of file names those of GGUF models, of a split one its first part."""
    found = [name for name in sorted(names) if name.lower().endswith(".gguf")]
    return [name for name in found if (part := _SPLIT.fullmatch(name)) is None or int(part[2]) == 1]


def _parts(path: Path, metadata: Mapping[str, Any]) -> list[Path]:
    """All files of the model that one file belongs to, in order."""
    count = metadata.get(SPLIT_COUNT, 1)
    if not isinstance(count, int) or not 0 <= count <= 99_999:
        raise LadingError("F583", f"{SPLIT_COUNT} is {count!r}; it must be a number of files", str(path))
    named = _SPLIT.fullmatch(path.name)
    if count <= 1 and named is None:
        return [path]
    if named is None or int(named[3]) != max(count, 1):
        message = f"the file is one of {count} parts, but its name does not say which"
        hint = f"give it its own name again, such as model-00001-of-{count:05}.gguf, beside the other parts"
        raise LadingError("F583", message, str(path), hint)
    found = [path.with_name(f"{named[1]}-{number + 1:05}-of-{count:05}.gguf") for number in range(count)]
    missing = [part.name for part in found if not part.exists()]
    if missing:
        there = count - len(missing)
        verb = "is" if there == 1 else "are"
        message = f"{there} of the {count} files of the model {verb} here; the first that is missing is {missing[0]}"
        raise LadingError("F524", message, str(path.parent), "the download was not completed: fetch the rest")
    return found


def _refuse_unread(kinds: Mapping[str, str], where: str) -> None:
    for kind in dict.fromkeys(kinds.values()):
        if kind in OTHERS.values():
            those = [name for name, other in kinds.items() if other == kind]
            verb = "is" if len(those) == 1 else "are"
            message = (
                f"{len(those)} of {len(kinds)} tensors {verb} stored as {kind}, which is not read, such as {those[0]}"
            )
            raise LadingError("F584", message, where, f"take a file of the model in other types; read are {READ}")


# ---- one file ----


class _Header:
    """The beginning of a file, read as far as it is asked for."""

    def __init__(self, file: BinaryIO, size: int, where: str) -> None:
        self._file, self.size, self.where = file, size, where
        self.raw = bytearray()
        self.at = 0

    def bad(self, what: str, hint: str = "the file is damaged or was cut short; fetch it again") -> LadingError:
        """The error of a file that is not as it must be."""
        return LadingError("F583", what, self.where, hint)

    def take(self, count: int, what: str) -> int:
        """Offset of the next `count` bytes, which are there from now on."""
        start, end = self.at, self.at + count
        if end > self.size:
            raise self.bad(f"{what} at byte {start} takes {count} bytes, and the file ends at {self.size}")
        if end > HEADER_LIMIT:
            raise self.bad(f"{what} at byte {start} takes {count} bytes; metadata of {HEADER_LIMIT} at most is read")
        while len(self.raw) < end:
            more = self._file.read(max(PIECE, end - len(self.raw)))
            if not more:
                raise self.bad(f"{what} at byte {start} takes {count} bytes, and the file ends at {len(self.raw)}")
            self.raw += more
        self.at = end
        return start

    def number(self, form: str, what: str) -> Any:
        """One number; `form` is of the module struct."""
        return struct.unpack_from(form, self.raw, self.take(struct.calcsize(form), what))[0]

    def text(self, what: str, longest: int = HEADER_LIMIT) -> str:
        """A text behind its length."""
        length = self.number("<Q", f"the length of {what}")
        if length > longest:
            raise self.bad(f"{what} is said to have {length} bytes")
        start = self.take(length, what)
        try:
            return str(memoryview(self.raw)[start : start + length], "utf-8")
        except UnicodeDecodeError:
            raise self.bad(f"{what} at byte {start} is not UTF-8") from None

    def count(self, most: int, least_bytes: int, what: str) -> int:
        """A number of things that take at least so many bytes each."""
        found = self.number("<Q", f"the number of {what}")
        if found > most or found * least_bytes > self.size - self.at:
            raise self.bad(f"it claims {found} {what}, more than the file has room for")
        return found


def _read_file(path: Path) -> GgufFile:
    where = str(path)
    if not path.exists():
        raise LadingError("F510", "no such GGUF file", where)
    require_real(path)
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise LadingError("F511", "not a regular file", where)
            return _read(_Header(file, found.st_size, where))
    except OSError as error:
        raise LadingError("F511", f"cannot read: {error.strerror or error}", where) from error


def _read(header: _Header) -> GgufFile:
    _check_version(header)
    tensor_count = header.count(MOST_TENSORS, 24, "tensors")
    metadata: dict[str, Any] = {}
    for _ in range(header.count(MOST_KEYS, 13, "metadata keys")):
        key = header.text("a metadata key", LONGEST_NAME)
        if not key.isprintable() or key in metadata:
            raise header.bad(
                f"metadata key {key[:80]!r} {'is there twice' if key in metadata else 'cannot be printed'}"
            )
        metadata[key] = _value(header, header.number("<I", f"the type of {key}"), key, 0)
    entries = [_entry(header) for _ in range(tensor_count)]
    alignment = metadata.get(ALIGNMENT, USUAL_ALIGNMENT)
    if type(alignment) is not int or not 8 <= alignment <= MOST_ALIGNMENT or alignment & (alignment - 1):
        raise header.bad(f"{ALIGNMENT} is {alignment!r}; it must be a power of two from 8 to {MOST_ALIGNMENT}")
    end = header.at
    data = -(-end // alignment) * alignment
    _check_cover(header, entries, alignment, data)
    tensors = {entry.name: entry.tensor(header.where, data) for entry in entries if entry.kind not in OTHERS.values()}
    kinds = {entry.name: entry.kind for entry in entries}
    digest = hashlib.sha256(memoryview(header.raw)[:end]).hexdigest()
    return GgufFile(header.where, header.size, digest, metadata, tensors, kinds)


def _check_version(header: _Header) -> None:
    start = header.take(8, "the beginning")
    if header.raw[start : start + 4] != MAGIC:
        raise header.bad("the file does not begin as GGUF files do", "is it another kind of file?")
    version = int.from_bytes(header.raw[4:8], "little")
    if version in VERSIONS:
        return
    if version and not version & 0xFFFF:
        raise header.bad("the file is for machines with big-endian numbers", "take the usual file of the model")
    hint = "convert the model again with a current llama.cpp" if version == 1 else "versions 2 and 3 are read"
    raise header.bad(f"the file is of version {version} of GGUF, which is not read", hint)


def _value(header: _Header, kind: int, key: str, depth: int) -> Any:
    """One metadata value."""
    if kind == _TEXT:
        return header.text(f"the value of {key}")
    if kind == _LIST:
        return _list(header, key, depth)
    return _array(header, kind, 1, key)[0].item()


def _array(header: _Header, kind: int, count: int, key: str) -> np.ndarray:
    if kind not in _NUMBERS:
        raise header.bad(f"the value of {key} is of type {kind}, which does not exist")
    dtype = np.dtype(_NUMBERS[kind])
    start = header.take(count * dtype.itemsize, f"the value of {key}")
    if dtype.kind == "b":
        raw = np.frombuffer(header.raw, np.uint8, count, start)
        if raw.size and int(raw.max()) > 1:
            raise header.bad(f"the value of {key} is neither true nor false but {int(raw.max())}")
    # A copy: the buffer grows, which it cannot while somebody looks into it.
    return np.frombuffer(bytes(memoryview(header.raw)[start : header.at]), dtype, count)


def _list(header: _Header, key: str, depth: int) -> Any:
    if depth == MOST_NESTING:
        raise header.bad(f"the value of {key} is a list of lists, {MOST_NESTING} levels deep and more")
    kind = header.number("<I", f"the type of {key}")
    size = np.dtype(_NUMBERS[kind]).itemsize if kind in _NUMBERS else 8
    count = header.count(HEADER_LIMIT, size, f"elements of {key}")
    if kind == _TEXT:
        return [header.text(f"element {index} of {key}") for index in range(count)]
    if kind == _LIST:
        return [_list(header, key, depth + 1) for _ in range(count)]
    return _array(header, kind, count, key)


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the header says of one tensor; `begin` counts from the start of the data."""

    name: str
    kind: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int

    def tensor(self, path: str, data: int) -> Tensor:
        """The tensor, given where the data of the file begins."""
        at = data + self.begin
        if self.kind in DTYPES:
            return FileTensor(path, at, TensorType(DTYPES[self.kind], self.shape), self.name)
        rows = math.prod(self.shape[:-1])
        raw = FileTensor(path, at, TensorType(U8, (rows, self.nbytes // max(1, rows))), self.name)
        return reshaped(ggml_blocks(raw, self.kind), self.shape)


def _entry(header: _Header) -> _Entry:
    name = header.text("a tensor's name", LONGEST_NAME)
    if not name.isprintable():
        raise header.bad(f"tensor {name[:80]!r}: the name has characters that cannot be printed")
    rank = header.number("<I", f"the number of axes of {name}")
    if rank > MOST_DIMS:
        raise header.bad(f"tensor {name} has {rank} axes; {MOST_DIMS} are the most")
    sizes = [header.number("<Q", f"a size of {name}") for _ in range(rank)]
    code = header.number("<I", f"the type of {name}")
    begin = header.number("<Q", f"the place of {name}")
    shape = tuple(reversed(sizes))
    kind = FLOATS.get(code) or BLOCKS.get(code) or OTHERS.get(code)
    if kind is None:
        raise header.bad(f"tensor {name} is of type {code}, which is not known", f"read are {READ}")
    if any(size == 0 for size in shape) or math.prod(shape) > SIZE_LIMIT:
        raise header.bad(f"tensor {name} has the shape {list(shape)}")
    if begin > SIZE_LIMIT:
        raise header.bad(f"tensor {name} begins at byte {begin} of the data")
    return _Entry(name, kind, shape, begin, _nbytes(header, name, kind, shape))


def _nbytes(header: _Header, name: str, kind: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor; 0 for types that are not read."""
    if kind in DTYPES:
        return DTYPES[kind].nbytes(math.prod(shape))
    if kind not in BLOCK_TYPES:
        return 0
    row = BLOCK_TYPES[kind]
    if not shape or shape[-1] % row.values:
        message = (
            f"tensor {name} has the shape {list(shape)}, whose rows are no blocks of {row.values} as {kind.upper()} has"
        )
        raise header.bad(message)
    return math.prod(shape) // row.values * row.nbytes


def _check_cover(header: _Header, entries: list[_Entry], alignment: int, data: int) -> None:
    """Data must follow the header, each tensor the one before but for padding, to the end of the file."""
    names: set[str] = set()
    for entry in entries:
        if entry.name in names:
            raise header.bad(f"tensor {entry.name} is there twice")
        names.add(entry.name)
    known = not any(entry.kind in OTHERS.values() for entry in entries)
    reached, before = 0, "the header"
    for entry in sorted(entries, key=lambda entry: entry.begin):
        if entry.begin % alignment:
            raise header.bad(
                f"tensor {entry.name} begins at byte {entry.begin} of the data, no multiple of {alignment}"
            )
        if data + entry.begin + entry.nbytes > header.size:
            end = data + entry.begin + entry.nbytes
            raise header.bad(f"tensor {entry.name} ends at byte {end}, and the file at {header.size}")
        place = -(-reached // alignment) * alignment
        if known and entry.begin != place:
            what = "overlaps" if entry.begin < reached else f"leaves {entry.begin - reached} bytes after"
            raise header.bad(f"tensor {entry.name} {what} {before}")
        reached, before = entry.begin + entry.nbytes, entry.name
    rest = header.size - data - reached
    if known and entries and rest >= alignment:
        raise header.bad(f"{rest} bytes after the last tensor belong to none")


__all__ = ["Gguf", "GgufFile", "first_parts", "is_gguf", "open_gguf"]
