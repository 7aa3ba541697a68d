"""Independent reader of the tokenizer files of MNN, to check what was written and to look at files from elsewhere.

It shares no code with the writers. The formats are those of transformers/llm/engine/src/tokenizer.cpp at the tags
3.4.0 and 3.4.1 (types 0 to 3, text) and of transformers/llm/engine/src/tokenizer/tokenizer.cpp at 3.5.0 to 3.6.1
(those and type 4, binary); they are described in `tokenizer_text` and `tokenizer_mtok`. MNN itself checks almost
nothing while loading: a short file is read past its end, an id out of range is written past an array. So every
rule it relies on is checked here.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ir.base.diag import LadingError

TEXT_KINDS = {0: "sentencepiece", 1: "tiktoken", 2: "bert", 3: "byte-level bpe"}


@dataclass(frozen=True)
class Header:
    """What every tokenizer file begins with: its type and the special, stop and prefix ids in file order."""

    type: int
    special_ids: tuple[int, ...]
    stop_ids: tuple[int, ...]
    prefix_ids: tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """A normalizer, pre-tokenizer or decoder: kind by name, fields by name, children of a sequence."""

    kind: str
    fields: dict[str, Any]
    children: tuple[Stage, ...] = ()


@dataclass(frozen=True)
class MtokFile:
    """A parsed `tokenizer.mtok`.

    `tokens` holds the text of each id as bytes, that of its last entry, as MNN decodes it; `entries` the (text, id)
    pairs as stored; `merges` (left id, right id, rank) as stored; `scores` by id; `added` (id, text, special, lstrip,
    rstrip). `model` is `bpe`, `wordpiece` or `unigram`, with its settings in `model_fields`. Parts of the tail that
    the file leaves out are None. `post_ops` is an extension that MNN up to 3.6.1 ignores and later versions run after
    encoding: None for the encoded text, or an id.
    """

    header: Header
    normalizer: Stage
    pre_tokenizer: Stage
    model: str
    model_fields: dict[str, Any]
    tokens: tuple[bytes, ...]
    entries: tuple[tuple[bytes, int], ...]
    merges: tuple[tuple[int, int, int], ...]
    scores: tuple[float, ...]
    decoder: Stage
    added: tuple[tuple[int, str, bool, bool, bool], ...]
    chat_template: str | None
    eos: str | None
    flags: int | None
    bos: str | None
    post_ops: tuple[int | None, ...] | None = None


@dataclass(frozen=True)
class TextFile:
    """A parsed tokenizer file of type 0 to 3.

    `tokens` holds the bytes of each id: the piece (type 0), the decoded base64 (1, 2) or the line (3). `scores` and
    `piece_kinds` belong to type 0, `merges` (left, right, as text) to type 3.
    """

    header: Header
    tokens: tuple[bytes, ...]
    scores: tuple[float, ...] = ()
    piece_kinds: tuple[int, ...] = ()
    merges: tuple[tuple[bytes, bytes], ...] = ()


def read_tokenizer(data: bytes, where: str = "") -> MtokFile | TextFile:
    """Either kind of file, told apart as MNN does: by the type number in the first line."""
    header, _ = read_header(data, where)
    return read_mtok(data, where) if header.type == 4 else read_text(data, where)


# -- header -----------------------------------------------------------------------------------------------------------


def read_header(data: bytes, where: str) -> tuple[Header, int]:
    """The header and the position of the byte after it."""
    lines, at = [], 0
    for _ in range(3):
        end = data.find(b"\n", at)
        if end < 0:
            raise LadingError("B655", "the file has fewer than three lines", where=where)
        lines.append(data[at:end])
        at = end + 1
    try:
        first, counts, ids = ([int(word) for word in line.split()] for line in lines)
    except ValueError as error:
        raise LadingError("B655", f"the header holds something else than numbers: {error}", where=where) from None
    if len(first) != 2 or first[0] != 430:
        raise LadingError("B655", "the file does not begin with 430 and a type", where=where)
    if first[1] not in (*TEXT_KINDS, 4):
        raise LadingError("B655", f"type {first[1]} is unknown", where=where)
    if len(counts) != 3 or min(counts) < 0 or len(ids) != sum(counts):
        raise LadingError("B655", f"the header counts {counts} ids, and lists {len(ids)}", where=where)
    special, stop = counts[0], counts[0] + counts[1]
    return Header(first[1], tuple(ids[:special]), tuple(ids[special:stop]), tuple(ids[stop:])), at


def _check_header_ids(header: Header, size: int, where: str) -> None:
    for name, ids in (("special", header.special_ids), ("stop", header.stop_ids), ("prefix", header.prefix_ids)):
        bad = [index for index in ids if not 0 <= index < size]
        if bad:
            raise LadingError("B657", f"{name} id {bad[0]} is not one of the {size} tokens", where=where)


# -- binary -----------------------------------------------------------------------------------------------------------

# Number -> name and fields; s text, B u8, I u32, T table.
_NORMALIZER_KINDS: dict[int, tuple[str, tuple[tuple[str, str], ...]]] = {
    0: ("none", ()),
    1: ("empty table", ()),
    2: ("prepend", (("text", "s"),)),
    3: ("replace", (("pattern", "s"), ("content", "s"))),
    4: ("sequence", ()),
    5: ("bert", (("clean", "B"), ("chinese", "B"), ("accents", "B"), ("lower", "B"))),
    6: ("table", (("rows", "T"),)),
    7: ("bert with table", (("clean", "B"), ("chinese", "B"), ("accents", "B"), ("lower", "B"), ("rows", "T"))),
    8: ("strip", (("left", "B"), ("right", "B"))),
}
_CUTTER_KINDS: dict[int, tuple[str, tuple[tuple[str, str], ...]]] = {
    0: ("none", ()),
    1: ("byte level", (("regex", "B"),)),
    2: ("digits", (("individual", "B"),)),
    3: ("metaspace", (("replacement", "s"), ("prefix", "B"))),
    4: ("split", (("pattern", "s"), ("invert", "B"), ("behavior", "B"))),
    5: ("bert", ()),
    6: ("sequence", ()),
}
_DECODER_KINDS: dict[int, tuple[str, tuple[tuple[str, str], ...]]] = {
    0: ("byte level", ()),
    1: ("byte fallback", ()),
    2: ("metaspace", (("replacement", "s"), ("prefix", "B"))),
    3: ("wordpiece", (("prefix", "s"), ("cleanup", "B"))),
    4: ("fuse", ()),
    5: ("replace", (("pattern", "s"), ("content", "s"))),
    6: ("strip", (("content", "s"), ("start", "I"), ("stop", "I"))),
    7: ("sequence", ()),
}
_TEXT_FIELDS_AS_BYTES = {"pattern", "content"}


class _Cursor:
    """Reads little-endian values and stops with B656 where the file ends."""

    def __init__(self, data: bytes, at: int, where: str) -> None:
        self.data, self.at, self.where = data, at, where

    def error(self, problem: str) -> LadingError:
        return LadingError("B656", f"{problem} at byte {self.at}", where=self.where)

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise self.error(f"the file ends inside {count} bytes that begin")
        piece, self.at = self.data[self.at : end], end
        return piece

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> bytes:
        return self.take(self.number("H"))

    def text(self) -> str:
        start = self.at
        try:
            return self.string().decode()
        except UnicodeDecodeError as error:
            self.at = start
            raise self.error(f"text is not UTF-8 ({error.reason})") from None

    def rows(self) -> tuple[tuple[int, bytes], ...]:
        return tuple((self.number("I"), self.string()) for _ in range(self.number("I")))


def read_mtok(data: bytes, where: str = "") -> MtokFile:
    """Parse and check a file of type 4.

    Raises:
        LadingError: B655 header, B656 body, B657 a rule that MNN relies on is broken.
    """
    header, at = read_header(data, where)
    if header.type != 4:
        raise LadingError("B655", f"type {header.type} where the binary type 4 is expected", where=where)
    cursor = _Cursor(data, at, where)
    normalizer = _read_stage(cursor, _NORMALIZER_KINDS, "normalizer")
    cutter = _read_stage(cursor, _CUTTER_KINDS, "pre-tokenizer")
    model, fields, entries, merges, scores = _read_vocabulary(cursor)
    decoder = _read_stage(cursor, _DECODER_KINDS, "decoder")
    added = _read_added(cursor)
    tail = _read_tail(cursor)
    tokens = _check_vocabulary(entries, merges, header, added, where)
    by_id = [0.0] * len(scores)
    for (_, index), score in zip(entries, scores, strict=False):
        by_id[index] = score
    return MtokFile(
        header, normalizer, cutter, model, fields, tokens, entries, merges, tuple(by_id), decoder, added, *tail
    )


def _read_stage(cursor: _Cursor, kinds: dict[int, tuple[str, tuple[tuple[str, str], ...]]], what: str) -> Stage:
    number = cursor.number("B")
    if number not in kinds:
        cursor.at -= 1
        raise cursor.error(f"{what} of unknown kind {number}")
    name, layout = kinds[number]
    if name == "sequence":
        children = tuple(_read_stage(cursor, kinds, what) for _ in range(cursor.number("I")))
        if any(child.kind == "none" for child in children):
            raise LadingError("B657", f"a {what} sequence holds 'none', which crashes MNN 3.5.0", where=cursor.where)
        return Stage(name, {}, children)
    readers: dict[str, Callable[[], Any]] = {"T": cursor.rows}
    values: dict[str, Any] = {}
    for field, code in layout:
        if name == "bert with table" and field == "rows" and not values["accents"]:
            continue
        if code == "s":
            values[field] = cursor.string() if field in _TEXT_FIELDS_AS_BYTES else cursor.text()
        else:
            values[field] = readers[code]() if code in readers else cursor.number(code)
    if name == "replace" and not values["pattern"]:
        raise LadingError("B657", f"a {what} replaces the empty text, which never ends", where=cursor.where)
    return Stage(name, values)


Entries = tuple[tuple[bytes, int], ...]


def _read_vocabulary(
    cursor: _Cursor,
) -> tuple[str, dict[str, Any], Entries, tuple[tuple[int, int, int], ...], tuple[float, ...]]:
    kind, size = cursor.number("B"), cursor.number("I")
    if kind == 0:
        fields = {"byte_fallback": cursor.number("B"), "byte_level": cursor.number("B")}
        count = cursor.number("I")
        entries = tuple((cursor.string(), cursor.number("I")) for _ in range(size))
        merges = tuple(struct.iter_unpack("<III", cursor.take(12 * count)))
        return "bpe", fields, entries, merges, ()
    if kind == 1:
        fields = {"unk": cursor.text(), "prefix": cursor.text(), "longest": cursor.number("I")}
        return "wordpiece", fields, tuple((cursor.string(), cursor.number("I")) for _ in range(size)), (), ()
    if kind == 2:
        fields = {"unk": cursor.number("I"), "byte_fallback": cursor.number("B")}
        triples = [(cursor.string(), cursor.number("I"), cursor.number("d")) for _ in range(size)]
        return "unigram", fields, tuple(row[:2] for row in triples), (), tuple(row[2] for row in triples)
    raise cursor.error(f"vocabulary model of unknown kind {kind} before the size that ends")


def _read_added(cursor: _Cursor) -> tuple[tuple[int, str, bool, bool, bool], ...]:
    added = []
    for _ in range(cursor.number("I")):
        index = cursor.number("I")
        special, lstrip, rstrip = (bool(cursor.number("B")) for _ in range(3))
        added.append((index, cursor.text(), special, lstrip, rstrip))
    return tuple(added)


def _read_tail(
    cursor: _Cursor,
) -> tuple[str | None, str | None, int | None, str | None, tuple[int | None, ...] | None]:
    """Chat template, eos, flags, bos, post-processor; a file may stop before any of them."""
    end = len(cursor.data)
    template = eos = flags = bos = ops = None
    if cursor.at < end:
        start = cursor.at
        try:
            template = cursor.take(cursor.number("I")).decode()
        except UnicodeDecodeError:
            cursor.at = start
            raise cursor.error("the chat template is not UTF-8") from None
    if cursor.at < end:
        eos = cursor.text()
    if cursor.at < end:
        flags = cursor.number("B")
    if cursor.at < end:
        bos = cursor.text()
    if cursor.at < end:
        ops = tuple(_read_post_op(cursor) for _ in range(cursor.number("H")))
    if cursor.at < end:
        raise cursor.error(f"{end - cursor.at} bytes are left over")
    return template, eos, flags, bos, ops


def _read_post_op(cursor: _Cursor) -> int | None:
    kind = cursor.number("B")
    if kind not in (0, 1):
        raise cursor.error(f"post-processor step of unknown kind {kind} before the byte")
    return cursor.number("I") if kind else None


def _check_vocabulary(
    entries: Entries,
    merges: tuple[tuple[int, int, int], ...],
    header: Header,
    added: tuple[tuple[int, str, bool, bool, bool], ...],
    where: str,
) -> tuple[bytes, ...]:
    """The text of each id, after checking order, range and completeness."""
    size = len(entries)
    tokens: list[bytes | None] = [None] * size
    before = b""
    for text, index in entries:
        if text < before:
            raise LadingError("B657", f"entry {text!r} stands after {before!r}", where=where)
        before = text
        if index >= size:
            raise LadingError("B657", f"id {index} is out of range in a vocabulary of {size}", where=where)
        tokens[index] = text
    known = {text for text, _ in entries}
    last = -1
    for left, right, rank in merges:
        key = left << 32 | right
        if key <= last:
            raise LadingError("B657", f"merge of ids {left} and {right} is out of order", where=where)
        last = key
        if max(left, right) >= size or (tokens[left] or b"") + (tokens[right] or b"") not in known:
            raise LadingError("B657", f"merge {rank} of ids {left} and {right} gives no token", where=where)
    for index, word, *_ in added:
        if index >= size:
            raise LadingError("B657", f"added token {word!r} has id {index} of {size}", where=where)
    _check_header_ids(header, size, where)
    return tuple(text or b"" for text in tokens)


# -- text -------------------------------------------------------------------------------------------------------------


def read_text(data: bytes, where: str = "") -> TextFile:
    """Parse and check a file of type 0 to 3.

    Raises:
        LadingError: B655 header, B656 body, B657 a rule that MNN relies on is broken.
    """
    header, at = read_header(data, where)
    if header.type == 4:
        raise LadingError("B655", "type 4 is binary; a text type is expected", where=where)
    lines = data[at:].split(b"\n")
    if lines.pop() != b"":
        raise LadingError("B656", "the last line has no end", where=where)
    try:
        counts = [int(word) for word in lines[0].split()]
    except (IndexError, ValueError):
        raise LadingError("B656", "the size of the vocabulary is missing", where=where) from None
    if len(counts) != (2 if header.type == 3 else 1) or len(lines) - 1 != sum(counts):
        raise LadingError("B656", f"{len(lines) - 1} lines follow where {counts} are announced", where=where)
    rows = lines[1 : counts[0] + 1]
    _check_header_ids(header, counts[0], where)
    if header.type == 3:
        return _read_byte_level(header, rows, lines[counts[0] + 1 :], where)
    if header.type == 0:
        return _read_pieces(header, rows, where)
    tokens = tuple(_unbase64(row, index, where) for index, row in enumerate(rows))
    if header.type == 1 and b"" in tokens:
        raise LadingError("B657", f"token {tokens.index(b'')} is empty, which never ends in type 1", where=where)
    return TextFile(header, tokens)


def _unbase64(text: bytes, index: int, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise LadingError("B656", f"token {index} is not base64: {error}", where=where) from None


def _read_pieces(header: Header, rows: list[bytes], where: str) -> TextFile:
    tokens, scores, kinds = [], [], []
    for index, row in enumerate(rows):
        parts = row.split(b" ")
        try:
            text, score, kind = parts[0], float(parts[1]), int(parts[2])
        except (IndexError, ValueError):
            raise LadingError("B656", f"piece {index} is not base64, score and kind: {row!r}", where=where) from None
        if not 1 <= kind <= 6:
            raise LadingError("B657", f"piece {index} is of kind {kind}; there are 1 to 6", where=where)
        tokens.append(_unbase64(text, index, where))
        scores.append(score)
        kinds.append(kind)
    return TextFile(header, tuple(tokens), tuple(scores), tuple(kinds))


def _read_byte_level(header: Header, rows: list[bytes], lines: list[bytes], where: str) -> TextFile:
    merges = []
    known = set(rows)
    for rank, line in enumerate(lines):
        left, space, right = line.partition(b" ")
        if not space:
            raise LadingError("B656", f"merge {rank} is not two tokens: {line!r}", where=where)
        if left + right not in known:
            raise LadingError("B657", f"merge {rank} gives {left + right!r}, which is no token", where=where)
        merges.append((left, right))
    return TextFile(header, tuple(rows), merges=tuple(merges))
