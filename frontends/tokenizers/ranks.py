"""Tables of byte strings and ranks: files of tiktoken (a line of base64 and rank for each token) and ``tekken.json``.

They join the two neighbouring parts of a word whose joint bytes have the lowest rank, and look a word up as a whole
before that. So every way to split a token into two tokens is a merge of the token's rank, and ``ignore_merges`` holds.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from frontends.tokenizers.document import Special, TokenizerData, around, byte_level, byte_pairs, document, split
from frontends.tokenizers.settings import Settings
from ir.base.diag import LadingError

MOST_BYTES = 4096
"""Bytes of a token; longer ones, which do not occur, would take long to split."""


@dataclass(frozen=True)
class RankRules:
    """What a program adds to a table of ranks.

    Attributes:
        pattern: how text is cut into words.
        specials: texts of the tokens that follow the table, in order.
        reserved: number of tokens that follow the table, named by ``added_tokens_decoder`` or by `filler`.
        filler: name of such a token that is not named, with its id for ``{}``.
        before: tokens that every text begins with.
        composed: text is brought to Unicode's form NFC first.
        counted: ids are the numbers of lines, each token counted once, whatever ranks say.
    """

    pattern: str
    specials: Sequence[str] = ()
    reserved: int = 0
    filler: str = "<|reserved_token_{}|>"
    before: Sequence[str] = ()
    composed: bool = False
    counted: bool = False
    named: Mapping[str, str] = field(default_factory=dict)


def is_rank_table(head: bytes) -> bool:
    """Whether a file begins as a table of ranks does."""
    lines = head.split(b"\n")
    return len(lines) > 1 and bool(lines[0].strip()) and _row(lines[0]) is not None


def _row(line: bytes) -> tuple[bytes, int] | None:
    """Bytes and rank of a line; None for what is none."""
    parts = line.split()
    if len(parts) != 2 or not parts[1].isdigit() or len(parts[1]) > 9:
        return None
    try:
        return base64.b64decode(parts[0], validate=True), int(parts[1])
    except (binascii.Error, ValueError):
        return None


def read_ranks(raw: bytes, where: str, counted: bool = False) -> dict[bytes, int]:
    """The table in the bytes of a file.

    Raises:
        LadingError: Q435 a line is no token with its rank, or two tokens have one rank.
    """
    found: dict[bytes, int] = {}
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        row = _row(line)
        if row is None:
            raise _damaged(f"line {number} is no token in base64 and its rank: {line[:40]!r}", where)
        found.setdefault(row[0], len(found) if counted else row[1])
    return _checked(found, where)


def _checked(ranks: dict[bytes, int], where: str) -> dict[bytes, int]:
    if not ranks or len(set(ranks.values())) != len(ranks):
        raise _damaged("two tokens have one rank" if ranks else "it has no token", where)
    longest = max(ranks, key=len)
    if len(longest) > MOST_BYTES:
        raise _damaged(f"a token has {len(longest)} bytes: {longest[:20]!r}", where)
    return ranks


def _damaged(problem: str, where: str) -> LadingError:
    return LadingError("Q435", f"the table of ranks cannot be read: {problem}", where)


def from_ranks(ranks: Mapping[bytes, int], rules: RankRules, settings: Settings) -> TokenizerData:
    """What a program with these rules makes of a table."""
    start = max(ranks.values()) + 1
    texts = dict(enumerate(rules.specials, start))
    flags: dict[int, bool] = {}
    end = max((start + rules.reserved - 1, *settings.listed)) if rules.reserved or settings.listed else start - 1
    for number in range(start, min(end + 1, start + len(ranks) + 1)):
        content, special = settings.listed.get(number, ("", True))
        if content:
            texts[number], flags[number] = content, special
        elif rules.reserved:
            texts.setdefault(number, rules.filler.format(number))
    specials = [Special(text, number, flags.get(number, True)) for number, text in texts.items()]
    return _data(ranks, specials, rules, f"ranks of {len(ranks)} tokens")


def _data(ranks: Mapping[bytes, int], specials: Sequence[Special], rules: RankRules, form: str) -> TokenizerData:
    vocab, merges = spelled(ranks, {item.content for item in specials})
    by_text = {item.content: item for item in specials}
    model = byte_pairs({**{item.content: item.id for item in specials}, **vocab}, merges, ignore_merges=True)
    return TokenizerData(
        document(
            model,
            specials,
            normalizer=[{"type": "NFC"}] if rules.composed else [],
            cutters=[split(rules.pattern), byte_level()],
            decoder=byte_level(),
            processor=around(by_text[text] for text in rules.before if text in by_text),
        ),
        form,
        rules.named,
    )


def spelled(ranks: Mapping[bytes, int], without: Iterable[str] = ()) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges in the alphabet of byte-level tokenizers.

    Args:
        ranks: token to id; a lower id is joined earlier.
        without: texts that special tokens have, which no token of the table may have too.
    """
    taken = set(without)
    spelling = {token: name for token in sorted(ranks, key=ranks.__getitem__) if (name := spell(token)) not in taken}
    vocab = {name: ranks[token] for token, name in spelling.items()}
    merges: list[tuple[str, str]] = []
    for name in vocab:
        # One character stands for one byte, so that spelled tokens split where their bytes do.
        pairs = [(name[:at], name[at:]) for at in range(1, len(name)) if name[:at] in vocab and name[at:] in vocab]
        merges += sorted(pairs, key=lambda pair: (vocab[pair[0]], vocab[pair[1]])) if len(pairs) > 1 else pairs
    return vocab, merges


def spell(data: bytes) -> str:
    """Bytes in the alphabet of byte-level tokenizers: a printable character for each byte, as GPT-2 has them."""
    return data.decode("latin-1").translate(_TO_CHARS)


def _alphabet() -> dict[int, str]:
    kept = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return {byte: chr(next(others)) for byte in range(256) if byte not in kept}


_TO_CHARS = _alphabet()


# ---- tekken.json ----

TEKKEN_SPECIALS = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip
"""Special tokens of files that do not list theirs."""


def from_tekken(data: Any, settings: Settings, where: str) -> TokenizerData:
    """The tokenizer of a ``tekken.json``: special tokens first, then the table up to the size of the vocabulary.

    Raises:
        LadingError: Q435 the file lacks a part or contradicts itself.
    """
    config = data.get("config") if isinstance(data, dict) else None
    if not isinstance(config, dict) or not isinstance(data.get("vocab"), list):
        raise _damaged("it has no objects 'config' and 'vocab'", where)
    size, count, pattern = (config.get(key) for key in ("default_vocab_size", "default_num_special_tokens", "pattern"))
    if not isinstance(size, int) or not isinstance(count, int) or not isinstance(pattern, str) or not 0 <= count < size:
        raise _damaged("its config has no pattern, vocabulary size or number of special tokens", where)
    ranks = {token: rank + count for token, rank in _tekken_rows(data["vocab"], where) if rank < size - count}
    specials = _tekken_specials(data.get("special_tokens"), count, where)
    bos = ("<s>",) if settings.flag("add_bos_token", True) else ()
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    texts = {item.content for item in specials}
    rules = RankRules(pattern, before=bos, named={key: text for key, text in named.items() if text in texts})
    return _data(_checked(ranks, where), specials, rules, "tekken")


def _tekken_rows(rows: Sequence[Any], where: str) -> Iterable[tuple[bytes, int]]:
    for row in rows:
        try:
            yield base64.b64decode(row["token_bytes"], validate=True), int(row["rank"])
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(f"a row of 'vocab' is no token with its rank: {row!r:.60}", where) from error


def _tekken_specials(rows: Any, count: int, where: str) -> list[Special]:
    texts = dict(enumerate(TEKKEN_SPECIALS))
    if isinstance(rows, list):
        try:
            texts = {int(row["rank"]): str(row["token_str"]) for row in rows}
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged("a row of 'special_tokens' has no text or rank", where) from error
    return [Special(texts.get(number, f"<SPECIAL_{number}>"), number) for number in range(count)]


__all__ = ["RankRules", "from_ranks", "from_tekken", "is_rank_table", "read_ranks", "spell", "spelled"]
