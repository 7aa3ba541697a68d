"""Tokenizers put together from parts that exist, as the data of a ``tokenizer.json``."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

_SPLIT = {
    "type": "Split",
    "pattern": {"Regex": r"\s+|\p{L}+|\p{N}{1,3}|[^\s]"},
    "behavior": "Isolated",
    "invert": False,
}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_META = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
_BLANK = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_META_BACK = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
_BERT = {
    "type": "BertNormalizer",
    "clean_text": True,
    "handle_chinese_chars": True,
    "strip_accents": None,
    "lowercase": True,
}
_TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "a", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [],
    "special_tokens": {"a": {"id": "a", "ids": [0], "tokens": ["a"]}},
}

_PARTS: dict[str, tuple[Any, ...]] = {
    "normalizer": (
        None,
        {"type": "NFC"},
        {"type": "NFKC"},
        {"type": "Lowercase"},
        {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, _BLANK]},
        {"type": "Strip", "strip_left": True, "strip_right": False},
        {"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="},
        _BERT,
    ),
    "pre_tokenizer": (
        None,
        _BYTES,
        _META,
        {"type": "BertPreTokenizer"},
        {"type": "Whitespace"},
        {"type": "Digits", "individual_digits": True},
        {"type": "Punctuation", "behavior": "Isolated"},
        {"type": "Sequence", "pretokenizers": [_SPLIT, {**_BYTES, "use_regex": False}]},
    ),
    "decoder": (
        None,
        _BYTES,
        _META,
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "Sequence", "decoders": [_META_BACK, {"type": "ByteFallback"}, {"type": "Fuse"}]},
    ),
    "post_processor": (None, _BYTES, {"type": "BertProcessing", "sep": ["b", 1], "cls": ["a", 0]}, _TEMPLATE),
}

_WORDS = ("<unk>", "a", "b", "c", "▁", "ab", "##c", "▁a", "abc", *(f"<0x{number:02X}>" for number in range(256)))


def tokenizer(rng: random.Random, folder: Path) -> dict[str, Any]:
    """The tokenizer of a checkpoint as it is, or with other parts."""
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    if rng.random() < 0.3:
        return data
    for key, choices in _PARTS.items():
        if rng.random() < 0.5:
            data[key] = rng.choice(choices)
    if rng.random() < 0.5:
        data["model"] = _model(rng)
        data["added_tokens"] = rng.choice([[], data["added_tokens"][:1]])
    return data


def _model(rng: random.Random) -> dict[str, Any]:
    vocab = {word: index for index, word in enumerate(_WORDS)}
    pieces = [[word, -float(index)] for index, word in enumerate(_WORDS)]
    models: tuple[dict[str, Any], ...] = (
        {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": True},
        {"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##", "vocab": vocab},
        {"type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "vocab": vocab, "merges": ["a b", "ab c"]},
        {"type": "BPE", "fuse_unk": True, "ignore_merges": True, "vocab": vocab, "merges": [["a", "b"], ["ab", "c"]]},
    )
    return rng.choice(models)


__all__ = ["tokenizer"]
