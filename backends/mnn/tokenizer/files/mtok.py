"""The binary tokenizer file of MNN 3.5.0 and later (`tokenizer.mtok`, type 4).

Format, little endian, from transformers/llm/engine/src/tokenizer/tokenizer.cpp (`load_special`,
`load_vocab_binary`) at the tags 3.5.0, 3.6.0 and 3.6.1; `str` is a u16 byte count and UTF-8 bytes:

    text header     "430 4\\n", "<specials> <stops> <prefixes>\\n", then those ids on one line
    normalizer      u8 kind: 0 none, 2 prepend str, 3 replace str str, 4 sequence u32 n + n normalizers,
                    5 bert 4 x u8 (clean, chinese, accents, lower), 6 table, 7 bert and table,
                    8 strip u8 left, u8 right (from 3.6.0 on)
    pre-tokenizer   u8 kind: 0 none, 1 byte level u8 regex, 2 digits u8, 3 metaspace str, u8 prefix,
                    4 split str regex, u8 invert, u8 behavior (0 isolated, 1 removed, 2 merged with previous),
                    5 bert, 6 sequence u32 n + n pre-tokenizers
    model           u8 kind, u32 size, then
                    0 BPE: u8 byte fallback, u8 byte level, u32 merges; entries (str, u32 id) sorted by bytes;
                      merges (u32 left id, u32 right id, u32 rank) sorted by left id, then right id
                    1 WordPiece: str unknown, str prefix, u32 longest word; entries as for BPE
                    2 Unigram: u32 unknown id, u8 byte fallback; entries (str, u32 id, f64 score) sorted by bytes
    decoder         u8 kind: 0 byte level, 1 byte fallback, 2 metaspace str, u8, 3 WordPiece str, u8, 4 fuse,
                    5 replace str str, 6 strip str, u32 start, u32 stop, 7 sequence u32 n + n decoders
    added tokens    u32 n, then (u32 id, u8 special, u8 lstrip, u8 rstrip, str)
    tail            u32 length + chat template, str eos, u8 flags (bit 0: clean up spaces), str bos

What the reader does with it shapes the writer:

* It indexes an array of `size` with each id, unchecked, and reads exactly `size` entries. So every id has an entry;
  an id without token has the empty text, which no look-up ever asks for and which decodes to nothing.
* Added tokens stand in the vocabulary too, else they decode to nothing. In byte-level files they are spelled in the
  byte alphabet, because single-token decoding turns U+2581 into a space and maps every other character as a byte.
* Ids listed as special in the header are looked for first, by the text they decode to, without lstrip or rstrip, and
  left out when a list of ids is decoded. So a special token is listed only where that finds exactly what the
  tokenizers library finds; the others are found as added tokens, in a second step that does it right.
* The BPE reader keeps no "unknown" token and no ignore_merges; `tokenizer_words` makes up for the latter.
* Single-token decoding never cleans up spaces, so the flag of tokenizer_config.json is not copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from struct import pack
from typing import Any

import numpy as np

from backends.mnn.tokenizer.merges import CHAR_BYTES, spell_bytes
from backends.mnn.tokenizer.spec import AddedToken, TokenizerSpec
from backends.mnn.tokenizer.stages import Part, Plan
from backends.mnn.tokenizer.whole_words import WholeWords
from ir.base.diag import LadingError

MAGIC, PIPELINE = 430, 4
# Kind -> (number, fields): s text, B u8, I u32, T table of (code point, bytes).
_NORMALIZERS = {
    "none": (0, ""), "prepend": (2, "s"), "replace": (3, "ss"), "sequence": (4, ""), "bert": (5, "BBBB"),
    "bert_table": (7, "BBBBT"), "strip": (8, "BB"),
}  # fmt: skip
_CUTTERS = {
    "none": (0, ""), "byte_level": (1, "B"), "metaspace": (3, "sB"), "split": (4, "sBB"), "bert": (5, ""),
    "sequence": (6, ""),
}  # fmt: skip
_DECODERS = {
    "byte_level": (0, ""), "byte_fallback": (1, ""), "metaspace": (2, "sB"), "wordpiece": (3, "sB"), "fuse": (4, ""),
    "replace": (5, "ss"), "strip": (6, "sII"), "sequence": (7, ""),
}  # fmt: skip
# Longer special tokens, which do not occur, are not worth the search for clashes.
_LONGEST_LISTED = 256


def write_mtok(spec: TokenizerSpec, plan: Plan) -> bytes:
    """The bytes of `tokenizer.mtok`.

    Raises:
        LadingError: B642 for a Unigram model without unknown token; B649 for a text too long for its u16 count.
    """
    texts = DisplayTexts(spec, plan)
    out = [header(PIPELINE, listed_specials(spec, texts), spec.stop_ids, spec.encode_prefix_ids)]
    out += [_part(plan.normalizer, _NORMALIZERS), _part(plan.pre_tokenizer, _CUTTERS)]
    out += _model(spec, texts, plan.words)
    out += [_part(plan.decoder, _DECODERS), pack("<I", len(spec.added))]
    for token in spec.added:
        out += [pack("<IBBB", token.id, token.special, token.lstrip, token.rstrip), _string(token.content)]
    template = (spec.chat_template or "").encode()
    out += [pack("<I", len(template)), template, _string(spec.eos or ""), b"\0", _string(spec.bos or "")]
    return b"".join(out)


def header(kind: int, specials: Sequence[int], stops: Sequence[int], prefixes: Sequence[int]) -> bytes:
    """The three lines of text that begin every tokenizer file of MNN."""
    counts = f"{len(specials)} {len(stops)} {len(prefixes)}"
    return f"{MAGIC} {kind}\n{counts}\n{' '.join(map(str, (*specials, *stops, *prefixes)))}\n".encode()


class DisplayTexts:
    """The text under which each added token stands in the written vocabulary, and what MNN shows for it."""

    def __init__(self, spec: TokenizerSpec, plan: Plan) -> None:
        self.spec = spec
        self.byte_level = any(part.kind == "byte_level" for part in plan.decoders)
        self.wordpiece = next((part.fields[0] for part in plan.decoders if part.kind == "wordpiece"), None)

    @cached_property
    def by_id(self) -> dict[int, str]:
        """Id of each added token -> its text in the vocabulary."""
        return {token.id: self._spelled(token) for token in self.spec.added}

    def _spelled(self, token: AddedToken) -> str:
        # The library's decoder takes the token for bytes if every character stands for one, else for plain text.
        if not self.byte_level or all(char in CHAR_BYTES for char in token.content):
            return token.content
        if token.content in self.spec.vocab and self._merged(token):
            return token.content
        return spell_bytes(token.content.encode())

    def _merged(self, token: AddedToken) -> bool:
        return bool(np.any(self.spec.merges == token.id))

    def shown(self, token: AddedToken) -> bytes:
        """What decoding this one id gives (`PipelineTokenizer::decode(int)`)."""
        text = self.by_id[token.id].replace("\u2581", " ")
        if self.wordpiece is not None:
            cut = len(self.wordpiece)
            return (text[cut:] if self.wordpiece and text.startswith(self.wordpiece) else " " + text).encode()
        if not self.byte_level:
            return text.encode()
        return b"".join(bytes((CHAR_BYTES[char],)) if char in CHAR_BYTES else char.encode() for char in text)

    def found_as(self, token: AddedToken) -> str | None:
        """The text in which MNN finds this token if the header lists it, None if that is no text.

        A WordPiece token is shown with a space before it; the space it takes along means nothing to such a vocabulary.
        """
        try:
            text = self.shown(token).decode()
        except UnicodeDecodeError:
            return None
        return text.removeprefix(" ") if self.wordpiece is not None else text


def listed_specials(spec: TokenizerSpec, texts: DisplayTexts) -> list[int]:
    """Special tokens that the header may name: longest text first, as the first match in order wins."""
    listed = [
        token
        for token in spec.added
        if token.special
        and not (token.lstrip or token.rstrip or "<0x" in token.content)
        and len(token.content) <= _LONGEST_LISTED
        and texts.found_as(token) == token.content
    ]
    while True:
        names = {token.content for token in listed}
        clash = _Clashes([token.content for token in spec.added if token.content not in names])
        kept = [token for token in listed if not clash.with_text(token.content)]
        if len(kept) == len(listed):
            break
        listed = kept
    return [token.id for token in sorted(kept, key=lambda token: (-len(token.content.encode()), token.id))]


class _Clashes:
    """Which texts can share characters of a longer text with one of `others`, so that the order of search matters."""

    def __init__(self, others: Sequence[str]) -> None:
        self.whole = set(others)
        # No text that is asked about is longer, so that longer parts of others need not be kept.
        short = [(text, min(len(text), _LONGEST_LISTED)) for text in others]
        self.heads = {text[:size] for text, most in short for size in range(1, most + 1)}
        self.tails = {text[len(text) - size :] for text, most in short for size in range(1, most + 1)}
        self.all = "\0".join(others)

    def with_text(self, text: str) -> bool:
        size = len(text)
        return (
            text in self.all
            or any(text[at:] in self.heads or text[:at] in self.tails for at in range(1, size))
            or any(text[start:end] in self.whole for start in range(size) for end in range(start + 1, size + 1))
        )


# -- parts ------------------------------------------------------------------------------------------------------------


def _string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    if len(data) > 0xFFFF:
        raise LadingError("B649", f"a text has {len(data)} bytes; at most 65535 fit: {data[:40]!r}...")
    return pack("<H", len(data)) + data


def _table(rows: Iterable[tuple[int, bytes]]) -> bytes:
    rows = list(rows)
    return pack("<I", len(rows)) + b"".join(pack("<I", code) + _string(text) for code, text in rows)


def _part(part: Part, kinds: dict[str, tuple[int, str]]) -> bytes:
    number, layout = kinds[part.kind]
    out = [bytes((number,))]
    for code, value in zip(layout, part.fields, strict=True):
        out.append(_field(code, value))
    if part.kind == "sequence":
        out.append(pack("<I", len(part.children)))
        out += [_part(child, kinds) for child in part.children]
    return b"".join(out)


def _field(code: str, value: Any) -> bytes:
    if code == "s":
        return _string(value)
    return _table(value) if code == "T" else pack("<" + code, value)


# -- vocabulary -------------------------------------------------------------------------------------------------------


def _model(spec: TokenizerSpec, texts: DisplayTexts, words: WholeWords | None) -> list[bytes]:
    names, ids = _entries(spec, texts, words.entries if words else ())
    if spec.kind == "wordpiece":
        prefix = spec.options.get("continuing_subword_prefix", "##")
        longest = spec.options.get("max_input_chars_per_word", 100)
        head = pack("<BI", 1, len(ids)) + _string(spec.unk or "") + _string(prefix) + pack("<I", longest)
        return [head, _pack_entries(names, ids)]
    if spec.kind == "unigram":
        unknown, scores = _scores(spec, names, ids)
        head = pack("<BIIB", 2, len(ids), unknown, bool(spec.options.get("byte_fallback")))
        return [head, _pack_entries(names, ids, scores)]
    pairs = spec.merges[:, :2].astype(np.int64)
    if words is not None:
        pairs = np.concatenate((pairs, np.array(words.merges, np.int64)))
    order = np.argsort(pairs[:, 0] << 32 | pairs[:, 1])
    merges = np.column_stack((pairs[order], order)).astype("<u4")
    fallback = bool(spec.options.get("byte_fallback"))
    return [pack("<BIBBI", 0, len(ids), fallback, 0, len(order)), _pack_entries(names, ids), merges.tobytes()]


def _entries(spec: TokenizerSpec, texts: DisplayTexts, more: Sequence[tuple[str, int]]) -> tuple[list[str], np.ndarray]:
    """Texts, in any order, and their ids.

    Where an added token has the text of another token, that other one stands first, as the first is found.
    """
    added = texts.by_id
    names = list(spec.vocab)
    ids = np.fromiter(spec.vocab.values(), np.int64, len(names))
    renamed = [at for at in np.flatnonzero(np.isin(ids, list(added))).tolist() if added[int(ids[at])] != names[at]]
    for at in reversed(renamed):
        del names[at]
    ids = np.delete(ids, renamed)
    free = np.ones(spec.table_size, bool)
    free[ids] = False
    extra = [*((text, index) for index, text in added.items() if free[index]), *more]
    free[list(added)] = False
    missing = np.flatnonzero(free)
    names += [text for text, _ in extra] + [""] * len(missing)
    return names, np.concatenate((ids, np.array([index for _, index in extra], np.int64), missing)).astype("<u4")


def _pack_entries(names: list[str], ids: np.ndarray, scores: np.ndarray | None = None) -> bytes:
    """Entries in the order of their UTF-8 bytes; those of one text stay in their order."""
    try:
        encoded = [name.encode() for name in names]
    except UnicodeEncodeError as error:
        raise LadingError("B649", f"a token is not valid Unicode: {error}") from error
    longest = max(encoded, key=len)
    if len(longest) > 0xFFFF:
        raise LadingError("B649", f"a token has {len(longest)} bytes; at most 65535 fit: {longest[:40]!r}...")
    order, sizes = byte_order(encoded), np.fromiter(map(len, encoded), np.int32, len(encoded))
    counts = sizes[order]
    tail = np.empty(len(order), [("id", "<u4"), *([("score", "<f8")] if scores is not None else [])])
    tail["id"] = ids[order]
    if scores is not None:
        tail["score"] = scores[order]
    places = np.cumsum(counts + np.int32(2 + tail.itemsize), dtype=np.int64) - counts - tail.itemsize
    out = np.empty(int(places[-1] + counts[-1]) + tail.itemsize, np.uint8)
    for array, at in ((counts.astype("<u2"), places - 2), (tail, places + counts)):
        out[_spans(at, np.full(len(at), array.itemsize))] = array.view(np.uint8)
    text = np.frombuffer(b"".join(encoded), np.uint8)
    out[_spans(places, counts)] = text[_spans((np.cumsum(sizes, dtype=np.int64) - sizes)[order], counts)]
    return out.tobytes()


def _spans(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The indices of stretches, one stretch after the other."""
    before = np.cumsum(counts, dtype=np.int64) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum(dtype=np.int64)))


def byte_order(texts: Sequence[bytes]) -> np.ndarray:
    """Indices of texts in the order of their bytes, equal ones in the order in which they stand."""
    data = np.frombuffer(b"".join(texts) + bytes(8), np.uint8)
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    # The first eight bytes as one number, zeros behind the end.
    heads = np.ndarray(len(data) - 7, ">u8", data, strides=(1,))[np.cumsum(sizes) - sizes].astype(np.uint64)
    beyond = np.uint64(8) * (8 - np.minimum(sizes, 8)).astype(np.uint64)
    # A shift by all 64 bits is none.
    heads = np.where(sizes > 0, heads >> beyond << beyond, 0)
    order = np.argsort(heads)
    alike = np.diff(heads[order]) == 0
    tied = np.flatnonzero(np.append(alike, False) | np.append(False, alike))
    # Texts that begin alike are neighbours, so all of them can be sorted at once.
    order[tied] = sorted(np.sort(order[tied]).tolist(), key=texts.__getitem__)
    return order


def _scores(spec: TokenizerSpec, names: list[str], ids: np.ndarray) -> tuple[int, np.ndarray]:
    """Unknown id, and the scores of the entries.

    The library scores an unknown character 10 below the worst piece and turns it into bytes afterwards. MNN takes
    the score of the unknown token for it, and byte tokens as pieces like any other, so both get that penalty.
    """
    unknown = None if spec.unk is None else spec.vocab.get(spec.unk)
    if unknown is None:
        raise LadingError(
            "B642", "a Unigram model without unknown token, which MNN needs", where=f"{spec.folder}/tokenizer.json"
        )
    assert spec.scores is not None
    penalty = float(spec.scores.min()) - 10.0
    scores = np.full(spec.table_size, penalty)
    scores[: len(spec.scores)] = spec.scores
    scores[unknown] = penalty
    if spec.options.get("byte_fallback"):
        for byte in range(256):
            index = spec.vocab.get(f"<0x{byte:02X}>")
            if index is not None:
                scores[index] = penalty
    return unknown, scores[ids]
