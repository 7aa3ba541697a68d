"""SentencePiece models (``tokenizer.model``): a protocol buffer with pieces, their scores and how text is normalized.

The wire format is read here, since neither the sentencepiece library nor its message classes are needed for that. Field
numbers are those of ``sentencepiece_model.proto`` of the SentencePiece project.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from frontends.tokenizers.document import META, Special, TokenizerData, around, byte_pairs, document
from frontends.tokenizers.settings import Settings
from ir.base.diag import LadingError

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2
AFTER_USER = "text behind a token of the user's gets a leading space"
"""SentencePiece puts its space before a whole text, the tokenizers library before each stretch between such tokens."""
MARKS = "letters with combining marks of their own are looked up one by one in the table of normal forms"
MIXED_RUNS = "runs of spaces that are tokens of their own are put together by merges"


@dataclass(frozen=True)
class Piece:
    """One token: its text, score (higher is merged earlier, or more likely) and kind."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class PieceModel:
    """A model file, with the defaults that the format has for what it leaves out."""

    pieces: Sequence[Piece]
    model: int = UNIGRAM
    byte_fallback: bool = False
    suffix: bool = False
    unknown: int = 0
    begin: int = 1
    end: int = 2
    charsmap: bytes = b""
    prefix: bool = True
    trim: bool = True
    escape: bool = True


def is_piece_model(head: bytes) -> bool:
    """Whether a file begins as a SentencePiece model does: with a piece (field 1) that has a text (its field 1)."""
    try:
        fields = _fields(head[: 3 + head[1]], "")
        number, piece = next(fields)
        return number == 1 and isinstance(piece, bytes) and next(_fields(piece, ""))[0] == 1
    except (LadingError, IndexError, StopIteration):
        return False


def read_pieces(raw: bytes, where: str) -> PieceModel:
    """The model in the bytes of a file.

    Raises:
        LadingError: Q435 the bytes are no such model.
    """
    pieces: list[Piece] = []
    trainer: Mapping[int, Any] = {}
    normalizer: Mapping[int, Any] = {}
    for number, value in _fields(raw, where):
        if number == 1:
            pieces.append(_piece(dict(_fields(_message(value, where), where)), where))
        elif number == 2:
            trainer = dict(_fields(_message(value, where), where))
        elif number == 3:
            normalizer = dict(_fields(_message(value, where), where))
    if not pieces:
        raise _damaged("it has no pieces", where)
    texts = {piece.text for piece in pieces}
    if len(texts) != len(pieces):
        raise _damaged("two of its pieces are alike", where)
    return PieceModel(
        pieces,
        _number(trainer, 3, UNIGRAM),
        bool(trainer.get(35, 0)),
        bool(trainer.get(24, 0)),
        _number(trainer, 40, 0),
        _number(trainer, 41, 1),
        _number(trainer, 42, 2),
        _message(normalizer.get(2, b""), where),
        bool(normalizer.get(3, 1)),
        bool(normalizer.get(4, 1)),
        bool(normalizer.get(5, 1)),
    )


def _piece(fields: Mapping[int, Any], where: str) -> Piece:
    score = fields.get(2, 0.0)
    if not isinstance(score, float):
        raise _damaged("the score of a piece is no number", where)
    try:
        text = _message(fields.get(1, b""), where).decode()
    except UnicodeDecodeError as error:
        raise _damaged(f"the text of a piece is not UTF-8: {error.reason}", where) from error
    if not text:
        raise _damaged("a piece has no text", where)
    return Piece(text, score, _number(fields, 3, NORMAL))


def _number(fields: Mapping[int, Any], number: int, default: int) -> int:
    value = fields.get(number, default)
    if not isinstance(value, int):
        return default
    return value - (1 << 64) if value >> 63 else value


def _message(value: Any, where: str) -> bytes:
    if not isinstance(value, bytes):
        raise _damaged("a part of it is of another kind than the format has", where)
    return value


def _fields(raw: bytes, where: str) -> Iterator[tuple[int, Any]]:
    """Field numbers and values: whole numbers, bytes, and floats of 32 bits."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at, where)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(raw, at, where)
            yield number, value
            continue
        size, at = _varint(raw, at, where) if kind == 2 else ({1: 8, 5: 4}.get(kind, -1), at)
        if size < 0 or at + size > len(raw):
            raise _damaged(f"it ends too early or has an unknown part at byte {at}", where)
        data = raw[at : at + size]
        at += size
        yield number, data if kind != 5 else struct.unpack("<f", data)[0]


def _varint(raw: bytes, at: int, where: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(raw):
            break
        value |= (raw[at] & 0x7F) << shift
        at += 1
        if raw[at - 1] < 0x80:
            return value, at
    raise _damaged(f"a number at byte {at} does not end", where)


def _damaged(problem: str, where: str) -> LadingError:
    return LadingError("Q435", f"the SentencePiece model cannot be read: {problem}", where)


# ---- as a tokenizer.json ----


def from_pieces(model: PieceModel, settings: Settings, where: str, bos: bool = True) -> TokenizerData:
    """What a SentencePiece model does, in the stages of a ``tokenizer.json``.

    Args:
        bos: a text begins with BOS where ``add_bos_token`` is not given.

    Raises:
        LadingError: F587 a kind of model or option that has no equal.
    """
    _check(model, where)
    specials, texts = _specials(model, settings)
    reasons = []
    if model.prefix and any(piece.kind == USER for piece in model.pieces):
        reasons.append(AFTER_USER)
    if model.prefix and any(piece.kind == USER and META in piece.text for piece in model.pieces):
        reasons.append(MIXED_RUNS)
    if model.charsmap:
        reasons.append(MARKS)
    first = model.prefix and not settings.flag("legacy", True)
    normalizer = _normalizer(model, first)
    cutters = [{"type": "Metaspace", "replacement": META, "prepend_scheme": "first", "split": False}] if first else []
    named = _named(model, settings, texts)
    by_text = {item.content: item for item in specials}
    data = document(
        _unigram(model, texts) if model.model == UNIGRAM else _bpe(model, texts),
        specials,
        normalizer=normalizer,
        cutters=cutters,
        decoder=_decoder(model.prefix),
        processor=around(
            _wanted(by_text, named.get("bos_token"), settings.flag("add_bos_token", bos)),
            _wanted(by_text, named.get("eos_token"), settings.flag("add_eos_token", False)),
        ),
    )
    kind = "Unigram" if model.model == UNIGRAM else "BPE"
    return TokenizerData(data, f"SentencePiece {kind}", named, tuple(reasons))


def _check(model: PieceModel, where: str) -> None:
    kinds = {3: "words", 4: "characters"}
    problem = ""
    if model.model not in (UNIGRAM, BPE):
        problem = f"is made of {kinds.get(model.model, f'parts of kind {model.model}')}, neither Unigram nor BPE"
    elif model.suffix:
        problem = "writes spaces behind words (treat_whitespace_as_suffix)"
    elif not model.escape:
        problem = "leaves spaces as they are (escape_whitespaces is false)"
    elif any(piece.kind == UNUSED for piece in model.pieces):
        problem = "has pieces that are switched off"
    elif not 0 <= model.unknown < len(model.pieces):
        problem = f"has no unknown token: its id is {model.unknown} of {len(model.pieces)}"
    if problem:
        hint = "save its tokenizer.json with the program that it was made for"
        raise LadingError("F587", f"the SentencePiece model {problem}", where, hint)


def _specials(model: PieceModel, settings: Settings) -> tuple[list[Special], list[str]]:
    """Tokens that are found in the text as it stands, and the text of every id.

    ``added_tokens_decoder`` renames pieces, such as those that are kept for later use. A user's piece of spaces is
    found as spaces where no other space is put before a text.
    """
    texts = [piece.text for piece in model.pieces]
    taken = set(texts)
    for number, (content, _) in settings.listed.items():
        if number < len(texts) and content not in taken:
            texts[number] = content
            taken.add(content)
    found = []
    for number, piece in enumerate(model.pieces):
        listed = settings.listed.get(number)
        if piece.kind in (CONTROL, UNKNOWN):
            found.append(Special(texts[number], number))
        elif piece.kind == USER and (META not in piece.text or not model.prefix):
            texts[number] = texts[number].replace(META, " ")
            found.append(Special(texts[number], number, bool(listed and listed[1])))
    return found, texts


def _named(model: PieceModel, settings: Settings, texts: Sequence[str]) -> dict[str, str]:
    """Special tokens by name: those of the settings, else those of the model."""
    own = {"bos_token": model.begin, "eos_token": model.end, "unk_token": model.unknown}
    found = {}
    for name, number in own.items():
        given = settings.text(name)
        if given is not None:
            found[name] = given
        elif 0 <= number < len(texts) and model.pieces[number].kind in (CONTROL, UNKNOWN):
            found[name] = texts[number]
    return found


def _wanted(specials: Mapping[str, Special], text: str | None, wanted: bool) -> list[Special]:
    return [specials[text]] if wanted and text is not None and text in specials else []


def _normalizer(model: PieceModel, first: bool) -> list[dict[str, Any]]:
    stages: list[dict[str, Any]] = []
    if model.charsmap:
        stages.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(model.charsmap).decode()})
    if model.trim:
        stages.append({"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""})
        stages.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if model.prefix and not first:
        stages.append({"type": "Prepend", "prepend": META})
    if not first:
        stages.append({"type": "Replace", "pattern": {"String": " "}, "content": META})
    return stages


def _decoder(prefix: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": META}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _unigram(model: PieceModel, texts: Sequence[str]) -> dict[str, Any]:
    rows = [[text, piece.score] for text, piece in zip(texts, model.pieces, strict=True)]
    return {"type": "Unigram", "unk_id": model.unknown, "vocab": rows, "byte_fallback": model.byte_fallback}


def _bpe(model: PieceModel, texts: Sequence[str]) -> dict[str, Any]:
    """SentencePiece joins the two neighbours whose joint text has the highest score; so each way to split a piece into
    two is a merge, and those of better pieces come first."""
    joined = {
        texts[number]: (-piece.score, number)
        for number, piece in enumerate(model.pieces)
        if piece.kind == NORMAL or (piece.kind == USER and META in texts[number])
    }
    merges = sorted(
        (*rank, at, text)
        for text, rank in joined.items()
        for at in range(1, len(text))
        if text[:at] in joined and text[at:] in joined
    )
    pairs = [(text[:at], text[at:]) for _, _, at, text in merges]
    vocab = {text: number for number, text in enumerate(texts)}
    unknown = texts[model.unknown]
    return byte_pairs(vocab, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=model.byte_fallback)


__all__ = ["AFTER_USER", "Piece", "PieceModel", "from_pieces", "is_piece_model", "read_pieces"]
