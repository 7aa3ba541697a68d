"""How text is cut into words before byte-level BPE, by the name in ``tokenizer.ggml.pre``.

GGUF files do not hold the regular expressions of a tokenizer but a name that llama.cpp has given to them. A row has the
steps of the original ``tokenizer.json`` for each name, and what else llama.cpp ties to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from frontends.tokenizers.document import byte_level, split
from frontends.tokenizers.patterns import CL100K, KIMI, O200K, QWEN2, QWEN3_5

Step = dict[str, Any]

_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _by(*patterns: str) -> tuple[Step, ...]:
    return (*map(split, patterns), byte_level())


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
        _by(CL100K),
        whole=True,
        begin=True,
    ),
    Pattern(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), _by(CL100K)),
    Pattern(("qwen2", "deepseek-r1-qwen", "megrez"), _by(QWEN2), composed=True),
    Pattern(("qwen35",), _by(QWEN3_5), composed=True),
    Pattern(("kimi-k2",), _by(KIMI), whole=True),
    Pattern(("tekken",), _by(_TEKKEN), whole=True, begin=True),
    Pattern(("gpt-4o", "llama4"), _by(O200K)),
    Pattern(("gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "roberta-bpe"), (byte_level(regex=True),)),
    Pattern(("olmo", "mpt"), (byte_level(regex=True),), composed=True),
    Pattern(("starcoder", "refact", "smollm", "codeshell"), (_DIGITS, byte_level(regex=True))),
    Pattern(("command-r",), (_DIGITS, byte_level(regex=True)), composed=True),
    Pattern(("deepseek-v3",), _by(r"\p{N}{1,3}", r"[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK_WORDS)),
    Pattern(
        ("falcon",),
        (
            {"type": "Punctuation", "behavior": "Contiguous"},
            byte_level(regex=True),
            {"type": "Digits", "individual_digits": False},
            split("[0-9][0-9][0-9]"),
        ),
    ),
)
"""The rows, of which a name has one."""

PATTERNS: dict[str, Pattern] = {name: row for row in ROWS for name in row.names}

__all__ = ["PATTERNS", "Pattern"]
