"""The text tokenizer files of MNN, the only ones that 3.4.0 and 3.4.1 read.

All begin with the header described in `tokenizer_mtok`. Source: transformers/llm/engine/src/tokenizer.cpp at 3.4.0.

    type 0  "<size>\\n", then "base64(piece) score kind" per id; kinds: 1 normal, 2 unknown, 3 control,
            4 user defined, 5 unused, 6 byte
    type 1  "<size>\\n", then base64 of each token's bytes
    type 2  "<size>\\n", then base64 of each WordPiece
    type 3  "<size> <merges>\\n", then each token on a line, spelled in the byte alphabet, then "left right" per merge

The reader replaces every id that the header lists as special wherever the text holds what that id decodes to, first
in listed order. It knows no other kind of added token, so all of them are listed, longest first.

Type 3 cuts words with one fixed pattern that takes every byte beyond ASCII for punctuation and each digit for a word.
Numbers are brought nearer to the original by listing the vocabulary's number tokens as special too: the longest
number token is then taken wherever a number stands, which is what a pattern such as `\\p{N}{1,3}` does.

Type 0 joins neighbours whenever their text together is a normal piece, best score first. A merge list says the same:
inside the text of a token no foreign merge can reach, so a token always comes from the same two parts; its score is
minus the rank of that merge. Tokens that merging does not reach are user defined, which are never joined. Scores are
read as float32, which holds ranks up to 2^24.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable

import numpy as np

from backends.mnn.tokenizer.files.mtok import header
from backends.mnn.tokenizer.merges import BYTE_CHARS, final_merges, merge_words, spell_bytes
from backends.mnn.tokenizer.spec import AddedToken, TokenizerSpec
from backends.mnn.tokenizer.stages import META, Plan
from ir.base.diag import LadingError

SENTENCEPIECE, TIKTOKEN, BERT, BYTE_LEVEL = 0, 1, 2, 3


def text_type(spec: TokenizerSpec, plan: Plan) -> int:
    """The type that comes nearest to the tokenizer."""
    if spec.kind == "wordpiece":
        return BERT
    if any(part.kind == "byte_level" for part in plan.cutters):
        return BYTE_LEVEL
    return SENTENCEPIECE if _prefixed(plan) else TIKTOKEN


def _prefixed(plan: Plan) -> bool:
    """Whether each stretch of text gets a leading U+2581, as type 0 always does."""
    before = any(part.kind == "prepend" and part.fields[0] in (" ", META) for part in plan.normalizers)
    return before or any(part.kind == "metaspace" and part.fields[1] for part in plan.cutters)


def write_text(spec: TokenizerSpec, plan: Plan) -> tuple[int, bytes]:
    """Type and bytes of the text file.

    Raises:
        LadingError: B651 if the reader would stop for want of a token.
    """
    kind = text_type(spec, plan)
    specials = sorted(spec.added, key=lambda token: (-len(token.content.encode()), token.id))
    ids = [token.id for token in specials if _listable(spec, token, kind)]
    if kind == BYTE_LEVEL:
        ids += number_tokens(spec)
        lines = _byte_level_lines(spec)
    else:
        lines = {SENTENCEPIECE: _piece_lines, TIKTOKEN: _plain_lines, BERT: _wordpiece_lines}[kind](spec)
    return kind, header(kind, ids, spec.stop_ids, spec.encode_prefix_ids) + b"\n".join([*lines, b""])


def _listable(spec: TokenizerSpec, token: AddedToken, kind: int) -> bool:
    """Whether the old reader finds the token by its own text, which it takes from decoding the id."""
    if kind == SENTENCEPIECE:
        return META not in token.content
    return kind != BYTE_LEVEL or not _is_word_part(spec, token)


def _is_word_part(spec: TokenizerSpec, token: AddedToken) -> bool:
    """Whether an added token is at the same time a byte or a part of merges, so that its line must stay."""
    if token.content not in spec.vocab:
        return False
    return len(token.content) == 1 or token.id in spec.merges


def text_reasons(spec: TokenizerSpec, plan: Plan) -> list[str]:
    """How ids of the text file may differ from the original's."""
    kind = text_type(spec, plan)
    reasons = []
    if kind == BYTE_LEVEL:
        reasons.append("words are cut by a pattern of MNN 3.4, in which letters beyond ASCII are punctuation")
        reasons.append("a stretch of ten thousand letters (or characters beyond ASCII) in a row may stop MNN 3.4")
        if spec.options.get("ignore_merges"):
            reasons.append("a word that is a token as a whole is still put together by merges")
        if any(part.kind == "metaspace" for part in plan.cutters):
            reasons.append("no space is put before a text")
    if kind == SENTENCEPIECE:
        reasons += _piece_reasons(spec, plan)
    if kind == TIKTOKEN:
        reasons.append("words become the longest tokens from the left, without regard to merges or scores")
    if kind == BERT:
        reasons.append("words are lowercased and cut by rules for ASCII; an unknown word keeps its known beginning")
    if kind != SENTENCEPIECE and _normalizes(spec):
        reasons.append("text is not normalized")
    for token in spec.added:
        if token.lstrip or token.rstrip or token.single_word:
            reasons.append(f"{token.content!r} is found without regard to the whitespace or words around it")
            break
    lost = next((token for token in spec.added if not _listable(spec, token, kind)), None)
    if lost is not None:
        reasons.append(f"{lost.content!r} is not found in a text")
    return reasons


def _normalizes(spec: TokenizerSpec) -> bool:
    stage = spec.normalizer
    stages = stage.get("normalizers", ()) if stage and stage.get("type") == "Sequence" else [stage] if stage else []
    return any(item.get("type") not in ("Replace", "Prepend") for item in stages)


def _piece_reasons(spec: TokenizerSpec, plan: Plan) -> list[str]:
    reasons = ["a run of spaces decodes to one space and U+2581"] if any(META * 2 in t for t in spec.vocab) else []
    if spec.kind == "unigram":
        reasons.append("most words come out otherwise: MNN 3.4 joins the likeliest neighbours, it has no Unigram model")
    if _normalizes(spec):
        reasons.append("text is not normalized")
    if not any(part.kind == "prepend" for part in plan.normalizers):
        reasons.append("a text that begins with a space gets another one")
    if plan.always_prefix is not None:
        reasons.append("text that follows an added token gets a leading space too")
    return reasons


# -- type 3 -----------------------------------------------------------------------------------------------------------


def _byte_level_lines(spec: TokenizerSpec) -> list[bytes]:
    missing = [char for char in BYTE_CHARS if char not in spec.vocab]
    if missing:
        raise LadingError(
            "B651",
            f"the vocabulary lacks {len(missing)} of the 256 byte tokens, {missing[0]!r} first",
            where=f"{spec.folder}/tokenizer.json",
        )
    names = [""] * spec.table_size
    for text, index in spec.vocab.items():
        names[index] = text
    for token in spec.added:
        if not _is_word_part(spec, token):
            names[token.id] = spell_bytes(token.content.encode())
    broken = next((name for name in names if "\n" in name), None)
    if broken is not None:
        raise LadingError("B651", f"the token {broken!r} holds a line break", where=f"{spec.folder}/tokenizer.json")
    parts = ["\n"] * (4 * len(spec.merges))
    parts[1::4] = [names[index] for index in spec.merges[:, 0].tolist()]
    parts[2::4] = [" "] * len(spec.merges)
    parts[3::4] = [names[index] for index in spec.merges[:, 1].tolist()]
    return [("\n".join([f"{len(names)} {len(spec.merges)}", *names]) + "".join(parts)).encode()]


def number_tokens(spec: TokenizerSpec) -> list[int]:
    """Number tokens to be taken whole, longest first; none where the original cuts numbers into digits.

    Only tokens that stand for a whole word are taken: such that merging their own characters gives them.
    """
    pattern = _number_pattern(spec)
    if "\\p{N}{1,3}" not in pattern and "\\p{N}+" not in pattern:
        return []
    longest = 3 if "\\p{N}{1,3}" in pattern else 1 << 16
    space = "\u0120" if " ?\\p{N}" in pattern else None
    numbers: list[str] = []
    for text in spec.vocab:
        digits = text[1:] if space and text[:1] == space else text
        if digits.isascii() and digits.isdigit() and len(digits) <= longest and len(text) > 1:
            numbers.append(text)
    merged = zip(numbers, merge_words(spec, numbers), strict=True)
    found = [(-len(text), spec.vocab[text]) for text, ids in merged if ids == [spec.vocab[text]]]
    return [index for _, index in sorted(found)]


def _number_pattern(spec: TokenizerSpec) -> str:
    """All patterns of the pre-tokenizer in one text; that of ByteLevel is GPT-2's."""
    stage = spec.pre_tokenizer or {}
    stages = stage.get("pretokenizers", ()) if stage.get("type") == "Sequence" else [stage]
    found = []
    for item in stages:
        if item.get("type") == "ByteLevel" and item.get("use_regex", True):
            found.append(" ?\\p{N}+")
        elif item.get("type") == "Digits":
            return "" if item.get("individual_digits") else "\\p{N}+"
        elif item.get("type") == "Split":
            found.append(str((item.get("pattern") or {}).get("Regex", "")))
    return " ".join(found)


# -- types 0, 1 and 2 -------------------------------------------------------------------------------------------------


def _piece_lines(spec: TokenizerSpec) -> list[bytes]:
    normal, unknown, control, user, unused, byte = 1, 2, 3, 4, 5, 6
    names: list[str] = [""] * spec.table_size
    kinds = np.full(spec.table_size, unused)
    scores = np.zeros(spec.table_size)
    for text, index in spec.vocab.items():
        names[index] = text
        kinds[index] = byte if _is_byte(text) else user
    if spec.scores is not None:
        scores[: len(spec.scores)] = spec.scores
        kinds[kinds == user] = normal
    else:
        ranks = final_merges(spec)
        kinds[ranks >= 0] = normal
        scores = np.where(ranks >= 0, -ranks, 0).astype(np.float64)
    for token in spec.added:
        names[token.id] = token.content
        kinds[token.id] = control if token.special else user
    if spec.unk is not None and spec.unk in spec.vocab:
        kinds[spec.vocab[spec.unk]] = unknown
    elif not all(f"<0x{number:02X}>" in spec.vocab for number in range(256)):
        raise LadingError(
            "B651",
            "the vocabulary has neither an unknown token nor all byte tokens",
            where=f"{spec.folder}/tokenizer.json",
        )
    else:
        names.append("")
        kinds, scores = np.append(kinds, unknown), np.append(scores, 0)
    rows = zip(_encode(names), scores.tolist(), kinds.tolist(), strict=True)
    return [b"%d" % len(names), *(b"%b %.9g %d" % row for row in rows)]


def _plain_lines(spec: TokenizerSpec) -> list[bytes]:
    """Tokens as bytes; no two alike, as the first would be taken, and none empty, as MNN would never end."""
    tokens = [b"\xff<%d>" % index for index in range(spec.table_size)]
    taken = {text.replace(META, " ").encode() for text in spec.vocab if not _is_byte(text)}
    for text, index in spec.vocab.items():
        data = bytes((int(text[3:5], 16),)) if _is_byte(text) else text.replace(META, " ").encode()
        if data and not (_is_byte(text) and data in taken):
            tokens[index] = data
    for token in spec.added:
        tokens[token.id] = token.content.encode()
    return [b"%d" % len(tokens), *map(base64.b64encode, tokens)]


def _wordpiece_lines(spec: TokenizerSpec) -> list[bytes]:
    names = [""] * spec.table_size
    for text, index in spec.vocab.items():
        names[index] = text
    for token in spec.added:
        names[token.id] = token.content
    return [b"%d" % len(names), *_encode(names)]


def _encode(names: Iterable[str]) -> list[bytes]:
    return [base64.b64encode(name.encode()) for name in names]


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")
