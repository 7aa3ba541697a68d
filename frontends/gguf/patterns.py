"""How text is cut into words before byte-level BPE, by the name in ``tokenizer.ggml.pre``.

GGUF files do not hold the regular expressions of a tokenizer but a name that llama.cpp has given to them. A row has the
steps of the original ``tokenizer.json`` for each name, and what else llama.cpp ties to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Step = dict[str, Any]

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(pattern: str) -> Step:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _bytes(regex: bool) -> Step:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": regex}


def _by(*patterns: str) -> tuple[Step, ...]:
    return (*map(_split, patterns), _bytes(False))


def _words(digits: str) -> tuple[Step, ...]:
    """Words as of cl100k, with so many digits together."""
    return _by(rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}|{_REST}")


def _cased(ending: str, digits: str) -> tuple[Step, ...]:
    """Words as of o200k, cut where a capital follows a small letter."""
    start = r"[^\r\n\p{L}\p{N}]?"
    small, large = f"{start}{_UPPER}*{_LOWER}+{ending}", f"{start}{_UPPER}+{_LOWER}*{ending}"
    return _by(rf"{small}|{large}|\p{{N}}{digits}|{_SLASHES}")


_DIGITS: Step = {"type": "Digits", "individual_digits": True}

_DEEPSEEK_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Pattern:
    """What a name stands for.

    Attributes:
        names: the names.
        steps: pre-tokenizers in order.
        composed: text is brought to NFC first.
        whole: a word that is a token by itself is not put together by merges.
        begin: a token is put in front of every text unless the file says otherwise.
    """

    names: tuple[str, ...]
    steps: Sequence[Step]
    composed: bool = False
    whole: bool = False
    begin: bool = False


ROWS: tuple[Pattern, ...] = (
    Pattern(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "lfm2", "midm-2.0"),
        _words("{1,3}"),
        whole=True,
        begin=True,
    ),
    Pattern(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), _words("{1,3}")),
    Pattern(("qwen2", "deepseek-r1-qwen", "megrez"), _words(""), composed=True),
    Pattern(("tekken",), _cased("", ""), whole=True, begin=True),
    Pattern(("gpt-4o", "llama4"), _cased(rf"{_CONTRACTIONS}?", "{1,3}")),
    Pattern(("gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "roberta-bpe"), (_bytes(True),)),
    Pattern(("olmo", "mpt"), (_bytes(True),), composed=True),
    Pattern(("starcoder", "refact", "smollm", "codeshell"), (_DIGITS, _bytes(True))),
    Pattern(("command-r",), (_DIGITS, _bytes(True)), composed=True),
    Pattern(("deepseek-v3",), _by(r"\p{N}{1,3}", r"[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK_WORDS)),
    Pattern(
        ("falcon",),
        (
            {"type": "Punctuation", "behavior": "Contiguous"},
            _bytes(True),
            {"type": "Digits", "individual_digits": False},
            _split("[0-9][0-9][0-9]"),
        ),
    ),
)
"""The rows, of which a name has one."""

PATTERNS: dict[str, Pattern] = {name: row for row in ROWS for name in row.names}

__all__ = ["PATTERNS", "Pattern"]
