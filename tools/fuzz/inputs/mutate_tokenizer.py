"""Tokens, patterns and settings of tokenizers that no sane file has, for what damage to values seldom makes."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from typing import Any

from tools.fuzz.inputs.mutate import BIG

_TEXTS = (
    "", " ", "\n", "\x00", "\ud800", "\U0010ffff", "a" * 70_000, "é" * 40_000, "<|x|>" * 900, "a\u0301", "▁", "##", "👩‍👩‍👧",
    "a b", "\u200b", "ſ", "İ", "<0x41>", "Ġ", "\ufffd",
)  # fmt: skip
_PATTERNS = (
    "", "(", "(a+)+$", "(?<=a{1,9})b", "a{1000}{1000}", "[", "\\p{Nope}", "(?i)ß", "\\b", "^", ".*", "(?:)", "\\1", "(?P<x>a)",
    "[\\ud800]", "\\x{110000}", "(a|b|ab)*c", "(" * 500 + ")" * 500, "\\s+(?!\\S)", "(?s:.)", "[^\\s\\p{L}]{0,70000}",
)  # fmt: skip
_STEPS: tuple[dict[str, Any], ...] = (
    {"type": "Replace", "pattern": {"Regex": "@"}, "content": "@"},
    {"type": "Replace", "pattern": {"String": "@"}, "content": "@"},
    {"type": "Split", "pattern": {"Regex": "@"}, "behavior": "Removed", "invert": True},
    {"type": "Split", "pattern": {"String": "@"}, "behavior": "MergedWithNext", "invert": False},
    {"type": "Prepend", "prepend": "@"},
    {"type": "CharDelimiterSplit", "delimiter": "@"},
    {"type": "FixedLength", "length": 0},
    {"type": "Metaspace", "replacement": "@", "prepend_scheme": "first", "split": False},
    {"type": "Precompiled", "precompiled_charsmap": "@"},
)


def strange_tokenizer(rng: random.Random, data: dict[str, Any]) -> dict[str, Any]:
    """The data of a ``tokenizer.json`` with one to three parts made strange; it is changed in place."""
    for _ in range(rng.choice([1, 1, 3])):
        rng.choice(_ACTIONS)(rng, data)
    return data


def _number(rng: random.Random) -> int:
    return rng.choice([*BIG, -1, 0, 1, 5, 271, 272, 300, 2**31 + 5, 10**30])


def _added(rng: random.Random, data: dict[str, Any]) -> None:
    """More added tokens, or many."""
    tokens = data.setdefault("added_tokens", [])
    for number in range(rng.choice([1, 2, 3000])):
        flags = {key: rng.random() < 0.4 for key in ("special", "single_word", "lstrip", "rstrip", "normalized")}
        text = rng.choice([*_TEXTS, f"<t{number}>", f"<t{number}>", f"<t{number}>"])
        near = 272 + number
        tokens.append({"id": rng.choice([near, near, near, _number(rng)]), "content": text, **flags})
        if len(tokens) > 3 and len(text) > 1000:
            return


def _vocabulary(rng: random.Random, data: dict[str, Any]) -> None:
    """A token of the model gets another text or id."""
    vocab = data.get("model", {}).get("vocab")
    if isinstance(vocab, dict) and vocab:
        name = rng.choice(sorted(vocab))
        number = vocab.pop(name)
        vocab[rng.choice([name, name, *_TEXTS])] = rng.choice([number, _number(rng)])
    elif isinstance(vocab, list) and vocab:
        place = rng.randrange(len(vocab))
        vocab[place] = [rng.choice(_TEXTS), rng.choice([0.0, -1e300, 1e308, float(place)])]


def _merges(rng: random.Random, data: dict[str, Any]) -> None:
    merges = data.get("model", {}).get("merges")
    if isinstance(merges, list):
        merges.insert(
            0, rng.choice(["a b", ["a", "b"], ["", "a"], ["a"], "a", "a  b", ["a" * 70_000, "b"], [" ", "a"]])
        )


def _step(rng: random.Random, data: dict[str, Any]) -> None:
    """A normalizer, pre-tokenizer or decoder with a strange pattern or text."""
    key = rng.choice(["normalizer", "pre_tokenizer", "decoder"])
    many = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}[key]
    steps = [_filled(rng, rng.choice(_STEPS)) for _ in range(rng.choice([1, 1, 2]))]
    steps += [data[key]] if isinstance(data.get(key), dict) else []
    made: Any = {"type": "Sequence", many: steps}
    for _ in range(rng.choice([0, 0, 0, 100])):
        made = {"type": "Sequence", many: [made]}
    data[key] = made


def _filled(rng: random.Random, value: Any) -> Any:
    """A step with something in the places marked with an at sign."""
    if isinstance(value, dict):
        return {key: _filled(rng, item) for key, item in value.items()}
    if value == "@":
        return rng.choice([*_PATTERNS, *_TEXTS, base64.b64encode(rng.randbytes(rng.choice([4, 40, 900]))).decode()])
    return value


def _processor(rng: random.Random, data: dict[str, Any]) -> None:
    """Ids around a text, named as they should not be."""
    number, name = _number(rng), rng.choice(["a", *_TEXTS])
    piece = {"SpecialToken": {"id": name, "type_id": rng.choice([0, 1, _number(rng)])}}
    special = {name: {"id": name, "ids": [number] * rng.choice([0, 1, 1, 3]), "tokens": [name]}}
    text = {"Sequence": {"id": rng.choice("AB"), "type_id": 0}}
    data["post_processor"] = {
        "type": "TemplateProcessing", "single": [piece, text][: rng.choice([1, 2, 2])], "pair": [text, text],
        "special_tokens": rng.choice([special, {}]),
    }  # fmt: skip


def _cutting(rng: random.Random, data: dict[str, Any]) -> None:
    """Truncation and padding, which a compiler turns off."""
    data["truncation"] = {
        "direction": "Right", "max_length": _number(rng), "strategy": "LongestFirst", "stride": _number(rng)
    }  # fmt: skip
    data["padding"] = {
        "strategy": rng.choice(["BatchLongest", {"Fixed": _number(rng)}]), "direction": "Left", "pad_id": _number(rng),
        "pad_to_multiple_of": rng.choice([None, _number(rng)]), "pad_type_id": 0, "pad_token": "",
    }  # fmt: skip


_ACTIONS: tuple[Callable[[random.Random, dict[str, Any]], None], ...] = (
    _added, _added, _added, _vocabulary, _merges, _step, _step, _processor, _cutting,
)  # fmt: skip

__all__ = ["strange_tokenizer"]
