"""What MNN 3.4.0 and 3.4.1 make of a text tokenizer file, in plain Python.

The compiler can so say how often a text file's ids differ from the original tokenizer's without running those
releases. This follows transformers/llm/engine/src/tokenizer.cpp at the tags 3.4.0 and 3.4.1 (the same file), quirks
included; later releases treat files of type 0 to 3 the same way. One thing cannot be reproduced: a very long stretch
of one character class overflows the C++ stack there.
"""

from __future__ import annotations

import heapq
import re
from itertools import pairwise

from backends.mnn.tokenizer.files.read import TextFile
from backends.mnn.tokenizer.merges import BYTE_CHARS, CHAR_BYTES
from ir.base.diag import LadingError

# The fixed pattern of type 3: std::regex on bytes in the C locale, case-insensitive.
_WORDS = re.compile(
    rb"(?:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    re.IGNORECASE,
)
_META = "\u2581".encode()
_NORMAL, _UNKNOWN, _UNUSED = 1, 2, 5


class TextTokenizer:
    """Encoder and decoder over a parsed file of type 0 to 3."""

    def __init__(self, file: TextFile) -> None:
        self.file = file
        self.decode = {0: self._decode_piece, 1: self._decode_plain, 2: self._decode_plain, 3: self._decode_bytes}[
            file.header.type
        ]
        self._segment = {0: self._pieces, 1: self._longest, 2: self._bert, 3: self._byte_level}[file.header.type]
        self._specials: dict[int, list[tuple[bytes, int]]] = {}
        for index in file.header.special_ids:
            text = self.decode(index)
            if text:
                self._specials.setdefault(text[0], []).append((text, index))
        self._ids: dict[bytes, int] = {}
        for index, text in enumerate(file.tokens):
            self._ids.setdefault(text, index)
        self._cache: dict[bytes, list[int]] = {}
        self._prepare()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, the prefix ids first."""
        data = text.encode()
        ids = list(self.file.header.prefix_ids)
        start = at = 0
        while at < len(data):
            hit = next((row for row in self._specials.get(data[at], ()) if data.startswith(row[0], at)), None)
            if hit is None:
                at += 1
                continue
            if at > start:
                ids += self._segment(data[start:at])
            ids.append(hit[1])
            start = at = at + len(hit[0])
        if start < len(data):
            ids += self._segment(data[start:])
        return ids

    def _prepare(self) -> None:
        """Tables that only one type needs."""
        file = self.file
        if file.header.type == 3:
            self._ranks: dict[tuple[bytes, bytes], int] = {}
            for rank, pair in enumerate(file.merges):
                self._ranks.setdefault(pair, rank)
            self._bytes = [char.encode() for char in BYTE_CHARS]
        if file.header.type == 0:
            rows = list(zip(file.tokens, file.piece_kinds, strict=True))
            self._normal: dict[bytes, int] = {}
            self._reserved: dict[bytes, int] = {}
            for index, (text, kind) in enumerate(rows):
                (self._normal if kind == _NORMAL else self._reserved).setdefault(text, index)
            self._unknown = max((index for index, (_, kind) in enumerate(rows) if kind == _UNKNOWN), default=0)
        if file.header.type == 1:
            self._longest_token = max(map(len, file.tokens), default=0)

    # -- type 3 -------------------------------------------------------------------------------------------------------

    def _byte_level(self, data: bytes) -> list[int]:
        ids: list[int] = []
        for word in _WORDS.findall(data):
            known = self._cache.get(word)
            if known is None:
                known = self._cache[word] = self._merge_bytes(word)
            ids += known
        return ids

    def _merge_bytes(self, word: bytes) -> list[int]:
        parts = [self._bytes[byte] for byte in word]
        while len(parts) > 1:
            ranked = [(self._ranks.get(pair, -1), at) for at, pair in enumerate(pairwise(parts))]
            best = min((row for row in ranked if row[0] >= 0), default=None)
            if best is None:
                break
            at = best[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        missing = [part for part in parts if part not in self._ids]
        if missing:
            raise LadingError("B651", f"MNN 3.4 stops at {missing[0].decode()!r}, which is not in the vocabulary")
        return [self._ids[part] for part in parts]

    def _decode_bytes(self, index: int) -> bytes:
        if not 0 <= index < len(self.file.tokens):
            return b""
        text = self.file.tokens[index].decode()
        return bytes(CHAR_BYTES[char] for char in text if char in CHAR_BYTES)

    # -- type 0 -------------------------------------------------------------------------------------------------------

    def _pieces(self, data: bytes) -> list[int]:
        ids: list[int] = []
        for piece in self._merge_pieces(_META + data.replace(b" ", _META)):
            index = self._piece_id(piece)
            if index != self._unknown:
                ids.append(index)
                continue
            ids += [self._piece_id(b"<0x%02X>" % byte) for byte in piece]
        return ids

    def _piece_id(self, piece: bytes) -> int:
        index = self._reserved.get(piece)
        return self._normal.get(piece, self._unknown) if index is None else index

    def _merge_pieces(self, data: bytes) -> list[bytes]:
        """Merge neighbours whose joint text is a normal piece, best score first, leftmost among equals."""
        parts = []
        at = 0
        while at < len(data):
            size = (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 4)[data[at] >> 4]
            parts.append(data[at : at + size])
            at += size
        before, after = list(range(-1, len(parts) - 1)), [*range(1, len(parts)), -1]
        agenda: list[tuple[float, int, int, int]] = []

        def consider(left: int, right: int) -> None:
            index = self._normal.get(parts[left] + parts[right]) if left >= 0 and right >= 0 else None
            if index is not None:
                heapq.heappush(agenda, (-self.file.scores[index], left, right, len(parts[left]) + len(parts[right])))

        for right in range(1, len(parts)):
            consider(right - 1, right)
        while agenda:
            _, left, right, size = heapq.heappop(agenda)
            if not parts[left] or not parts[right] or len(parts[left]) + len(parts[right]) != size:
                continue
            parts[left] += parts[right]
            parts[right] = b""
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            consider(before[left], left)
            consider(left, after[left])
        return [part for part in parts if part]

    def _decode_piece(self, index: int) -> bytes:
        """One piece: its first U+2581 becomes a space; the caller of the C++ turns `<0x0A>` into its byte."""
        if not 0 <= index < len(self.file.tokens):
            return b""
        piece = self.file.tokens[index].replace(_META, b" ", 1)
        return bytes((int(piece[3:5], 16),)) if re.fullmatch(rb"<0x[0-9A-Fa-f]{2}>", piece) else piece

    # -- types 1 and 2 ------------------------------------------------------------------------------------------------

    def _longest(self, data: bytes) -> list[int]:
        ids = []
        at = 0
        while at < len(data):
            sizes = range(min(self._longest_token, len(data) - at), 0, -1)
            size = next((size for size in sizes if data[at : at + size] in self._ids), 0)
            if size:
                ids.append(self._ids[data[at : at + size]])
            at += size or 1
        return ids

    def _decode_plain(self, index: int) -> bytes:
        return self.file.tokens[index] if 0 <= index < len(self.file.tokens) else b""

    def _bert(self, data: bytes) -> list[int]:
        """ASCII words lowercased, other ASCII and each character beyond it alone, control characters included."""
        found = re.findall(rb"[0-9A-Za-z]+|[\xc0-\xdf].|[\xe0-\xef]..|[\xf0-\xf7]...|[^\s]", data, re.DOTALL)
        return [index for word in found for index in self._wordpiece(word.lower() if word.isalnum() else word)]

    def _wordpiece(self, word: bytes) -> list[int]:
        ids: list[int] = []
        at = 0
        while at < len(word):
            head = b"##" if at else b""
            size = next((size for size in range(len(word) - at, 0, -1) if head + word[at : at + size] in self._ids), 0)
            if not size:
                return [*ids, self._ids.get(b"[UNK]", 100)]
            ids.append(self._ids[head + word[at : at + size]])
            at += size
        return ids
