"""How families cut text into words: the pre-tokenizers of their ``tokenizer.json``, and strings that tell them apart."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from frontends.tokenizers import patterns
from frontends.tokenizers.document import byte_level, split
from tests.support.tokenizer_data import DEEPSEEK3, GPT2, QWEN2

_DIGITS = {"type": "Digits", "individual_digits": True}
_TOGETHER = {"type": "Digits", "individual_digits": False}
_SIGNS = {"type": "Punctuation", "behavior": "Contiguous"}
_REGEX = byte_level(regex=True)
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_END = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_CJK = "[一-龥\u0800-一가-\ud7ff]+"
_DEEPSEEK_CJK = "[一-龥\u3040-ゟ゠-ヿ]+"
_CASCADE = "".join(rf"|\s{{{size}}}(?!\S)" for size in (512, 256, 128, 64, 32, 16, 8, 4)) + r"|\s{1,2}(?!\S)|\s{1}"
TEKKEN = patterns.O200K.replace(_SHORT + "?", "").replace("{1,3}", "")

PATTERNS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "gpt-neox": [_REGEX],
    "starcoder2, granite, command-r, exaone": [_DIGITS, _REGEX],
    "falcon": [_SIGNS, _REGEX, _TOGETHER, split("[0-9][0-9][0-9]")],
    "phi-4, glm4, olmo2": [split(patterns.CL100K), byte_level()],
    "qwen3.5": [split(patterns.QWEN3_5), byte_level()],
    "gpt-oss, llama4": [split(patterns.O200K), byte_level()],
    "mistral": [split(TEKKEN), byte_level()],
    "kimi": [split(patterns.KIMI), byte_level()],
    "deepseek llm": [
        split("[\r\n]"),
        split(r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿͰ-ͳΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯḀ-ἕἘ-ἝＡ-Ｚａ-ｚ]+"),
        split(r"\s?[!-/:-~！-／：-～‘-‟\u3000-。]+"),
        split(r"\s+$"),
        split(_CJK),
        _DIGITS,
        byte_level(),
    ],
    "deepseek coder": [
        split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split(_CJK), _DIGITS, byte_level(),
    ],
    "deepseek v3, hunyuan": [split(r"\p{N}{1,3}"), split(_DEEPSEEK_CJK), split(DEEPSEEK3), byte_level()],
    "exaone 4": [
        split(
            _SHORT
            + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?"
            + r"|\s*[\r\n]|\s+(?!\S)|\s+"
        ),
        byte_level(),
    ],
    "bailing": [
        split(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
            r"|\s+(?!\S)|\s+"
        ),
        byte_level(),
    ],
    "seed-coder": [
        split(rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+{_END}"), byte_level(),
    ],
    "jais 2": [split(patterns.CL100K.replace(r"|\s+(?!\S)|\s+", _CASCADE)), byte_level()],
    "youtu": [
        split("[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u3040-ゟ゠-ヿ]+"),
        split(patterns.O200K.replace("{1,3}", "")),
        byte_level(),
    ],
    "laguna": [split(r"[^\n]+|[\n]+"), split(QWEN2), byte_level()],
    "chatglm, gpt-2": [split(GPT2), byte_level()],
    "groups of three digits": [split(r"[0-9]{1,3}(?=(?:[0-9]{3})*(?![0-9]))"), split(patterns.O200K), byte_level()],
}  # fmt: skip
"""Pre-tokenizers by the families that have them, with small character sets where a family's is long."""

INEXACT: Mapping[str, tuple[Sequence[Mapping[str, Any]], str]] = {
    "words behind digits": (
        [split(r"\d{1,3}(?=(?:\d{3})*\b)"), split(patterns.O200K), byte_level()],
        "fractions, superscripts and the like count as digits",
    ),
}
"""The same with a part of the reason for which rare texts differ."""

_PIECES = (
    "É", "é", "Ö", "ß", "A", "b", "Z", "z", "日", "本", "ア", "ن", "İ", "ı", "'s", "'T", "'ll", "'", "’", " ", "  ", "-", "!!",
    "!\u0301", "\u0301", "\ufe0f", "❤", "1", "23", "4567", "\n", "\r\n", "ǅ", "ʰ", "ª", "ЖЖ", "ж", "Ω", "ω", "/", "\t",
    "\u3000", "好", "。", "_", "(", "〇", "⺀", "ＡＢ", "１２", "한",
)  # fmt: skip


def cut_strings(count: int, seed: int = 3) -> list[str]:
    """Short strings with capitals, marks, scripts, digits and spaces in every order."""
    rng = random.Random(seed)
    return ["".join(rng.choice(_PIECES) for _ in range(rng.randint(1, 9))) for _ in range(count)]


__all__ = ["INEXACT", "PATTERNS", "TEKKEN", "cut_strings"]
