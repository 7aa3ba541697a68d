"""Vocabularies in plain lists: ``vocab.json`` with ``merges.txt``, and the lines of ``vocab.txt``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frontends.tokenizers.document import Special, TokenizerData, around, byte_level, byte_pairs, document, split
from frontends.tokenizers.settings import Settings, read_json
from ir.base.diag import LadingError


@dataclass(frozen=True)
class PairRules:
    """What a program adds to a vocabulary and merges of bytes.

    Attributes:
        pattern: how text is cut into words; None for GPT-2's way.
        composed: text is brought to Unicode's form NFC first.
        defaults: special tokens by name where ``tokenizer_config.json`` names none.
        before, after: names of the special tokens around every text.
    """

    pattern: str | None = None
    composed: bool = False
    defaults: Mapping[str, str] | None = None
    before: str | None = None
    after: str | None = None


def from_pairs(folder: Path, rules: PairRules, settings: Settings) -> TokenizerData:
    """The tokenizer of ``vocab.json`` and ``merges.txt``.

    Raises:
        LadingError: Q435 a file is missing or is not what its name says.
    """
    path = folder / "vocab.json"
    vocab = read_json(path)
    if not isinstance(vocab, dict) or not vocab or set(map(type, vocab.values())) != {int}:
        raise LadingError("Q435", "the vocabulary is no object of texts and ids", where=str(path))
    named = {**(rules.defaults or {}), **{name: text for name in _NAMES if (text := settings.text(name)) is not None}}
    merges = _read_merges(folder / "merges.txt")
    if rules.pattern is None:
        cutters = [byte_level(regex=True, prefix=settings.flag("add_prefix_space", False))]
    else:
        cutters = [split(rules.pattern), byte_level()]
    specials = [Special(text, vocab[text]) for text in dict.fromkeys(named.values()) if text in vocab]
    by_text = {item.content: item for item in specials}

    def placed(name: str | None) -> list[Special]:
        text = named.get(name or "")
        return [by_text[text]] if text in by_text else []

    data = document(
        byte_pairs(vocab, merges),
        specials,
        normalizer=[{"type": "NFC"}] if rules.composed else [],
        cutters=cutters,
        decoder=byte_level(),
        processor=around(placed(rules.before), placed(rules.after)),
    )
    return TokenizerData(data, "vocab.json and merges.txt", named)


_NAMES = tuple(name + "_token" for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask"))


def _read_merges(path: Path) -> list[tuple[str, str]]:
    merges = []
    for number, line in enumerate(_lines(path), 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise LadingError("Q435", f"line {number} is no merge of two tokens: {line[:40]!r}", where=str(path))
        merges.append((left, right))
    return merges


def _lines(path: Path) -> Sequence[str]:
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LadingError("Q435", f"the file cannot be read: {reason}", where=str(path)) from error


def from_words(folder: Path, settings: Settings) -> TokenizerData:
    """The WordPiece tokenizer of a ``vocab.txt``, as BERT has it.

    Raises:
        LadingError: Q435 the file cannot be read, or lacks the unknown token.
    """
    path = folder / "vocab.txt"
    vocab: dict[str, int] = {}
    for number, line in enumerate(_lines(path)):
        vocab.setdefault(line.rstrip("\r"), number)
    usual = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
    named = {name + "_token": settings.text(name + "_token") or text for name, text in usual.items()}
    if named["unk_token"] not in vocab:
        raise LadingError("Q435", f"no line is the unknown token {named['unk_token']!r}", where=str(path))
    accents = settings.values.get("strip_accents")
    model: dict[str, Any] = {
        "type": "WordPiece", "unk_token": named["unk_token"], "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": vocab,
    }  # fmt: skip
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": settings.flag("tokenize_chinese_chars", True),
        "strip_accents": accents if isinstance(accents, bool) else None,
        "lowercase": settings.flag("do_lower_case", True),
    }
    specials = {name: Special(text, vocab[text]) for name, text in named.items() if text in vocab}
    data = document(
        model,
        specials.values(),
        normalizer=[normalizer],
        cutters=[{"type": "BertPreTokenizer"}],
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
        processor=around(*([specials[name]] if name in specials else [] for name in ("cls_token", "sep_token"))),
    )
    return TokenizerData(data, "vocab.txt", named)


__all__ = ["PairRules", "from_pairs", "from_words"]
