"""The tokenizer of a GGUF file in the words of ``tokenizer.json`` and ``tokenizer_config.json``.

The metadata holds tokens, their kinds, scores or merges, and numbers of special tokens; the rest (how text is cut into
words, what stands in front of it) follows from names that llama.cpp gives to tokenizers.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frontends.configuration.keys import shown
from frontends.containers.gguf import open_gguf
from frontends.gguf.patterns import PATTERNS
from frontends.tokenizers.document import META, Special, TokenizerData, around, byte_level, byte_pairs
from ir.base.diag import LadingError, suggest

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens."""

SPARING = ("<unk>", "<s>", "<|endoftext|>")
"""Special tokens of phi-3 that leave whitespace alone."""

_HINT = "give the folder of the model's own tokenizer with --tokenizer DIR"


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a file.

    Attributes:
        metadata: all metadata.
        where: the file, for messages.
        tokens: tokens by number.
        kinds: kind of each token.
    """

    metadata: Mapping[str, Any]
    where: str
    tokens: Sequence[str]
    kinds: Sequence[int]

    def get(self, key: str) -> Any:
        """A value below ``tokenizer.ggml``."""
        return self.metadata.get(f"tokenizer.ggml.{key}")

    def special(self, name: str) -> str | None:
        """The text of a special token such as ``bos``; None where the file names none.

        Raises:
            LadingError: F588 its number is that of no token.
        """
        number = self.get(f"{name}_token_id")
        if number is None or number == 0xFFFFFFFF:
            return None
        if type(number) is not int or not 0 <= number < len(self.tokens):
            raise self.bad(
                f"tokenizer.ggml.{name}_token_id is {shown(number)}, and there are {len(self.tokens)} tokens"
            )
        return self.tokens[number]

    def flag(self, key: str, otherwise: bool) -> bool:
        """True or false, or what it is where the file does not say."""
        value = self.get(key)
        if value is None:
            return otherwise
        if not isinstance(value, bool):
            raise self.bad(f"tokenizer.ggml.{key} is {shown(value)}; it must be true or false")
        return value

    def bad(self, message: str) -> LadingError:
        """The error of a tokenizer that cannot be made."""
        return LadingError("F588", message, self.where, _HINT)


def read_gguf(path: Path) -> TokenizerData:
    """The tokenizer of a file; errors F510 to F586 for the file, F588 as below."""
    place = path.resolve()
    return tokenizer_of(open_gguf(place).metadata, str(place))


def tokenizer_of(metadata: Mapping[str, Any], where: str) -> TokenizerData:
    """The tokenizer that the metadata of a file holds.

    Raises:
        LadingError: F588 it holds none, or one of a kind that is not known, or damaged.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind in (None, "none", "no_vocab"):
        raise LadingError("F588", "the file holds no tokenizer", where, _HINT)
    vocabulary = _vocabulary(metadata, where)
    if kind not in MODELS:
        near = suggest(str(kind)[:60], list(MODELS))
        raise vocabulary.bad(f"a tokenizer of the kind {shown(kind)} is not known. {near}".strip())
    body, begin, end = MODELS[kind](vocabulary)
    begin, end = vocabulary.flag("add_bos_token", begin), vocabulary.flag("add_eos_token", end)
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(vocabulary),
        "post_processor": _post_processor(vocabulary, begin, end, body.pop("post_processor", None)),
        **body,
    }
    return TokenizerData(data, "GGUF", _named(metadata))


def settings_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What ``tokenizer_config.json`` would hold: special tokens by name and the chat template, as far as they are sound."""
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizer", "clean_up_tokenization_spaces": False}
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        settings["chat_template"] = template
    return {**settings, **_named(metadata)}


def _named(metadata: Mapping[str, Any]) -> dict[str, str]:
    tokens = metadata.get("tokenizer.ggml.tokens")
    found = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        number = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(tokens, list) and type(number) is int and 0 <= number < len(tokens):
            found[f"{key}_token"] = tokens[number]
    return found


def _vocabulary(metadata: Mapping[str, Any], where: str) -> Vocabulary:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(item, str) for item in tokens):
        raise LadingError("F588", "tokenizer.ggml.tokens is no list of texts", where, _HINT)
    kinds = metadata.get("tokenizer.ggml.token_type")
    if kinds is None:
        kinds = np.full(len(tokens), NORMAL)
    if not isinstance(kinds, np.ndarray) or kinds.dtype.kind not in "iu" or len(kinds) != len(tokens):
        raise LadingError("F588", f"tokenizer.ggml.token_type is no list of {len(tokens)} numbers", where, _HINT)
    return Vocabulary(metadata, where, tokens, kinds.tolist())


def _added(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Tokens that are found in text before anything else.

    Files do not say which of them take the whitespace behind them along; that those of phi-3 do is known of old.
    """
    greedy = vocabulary.metadata.get("general.architecture") == "phi3" and vocabulary.get("model") == "llama"
    found = []
    for number, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True)):
        if kind in (CONTROL, USER, UNKNOWN) and text:
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            flags["rstrip"] = greedy and kind == CONTROL and text not in SPARING
            found.append({"id": number, "content": text, **flags, "special": kind != USER})
    return found


def _post_processor(vocabulary: Vocabulary, begin: bool, end: bool, inner: Any) -> Any:
    """What puts special tokens around a text."""
    before, after = (
        [Special(text, vocabulary.get(f"{name}_token_id"))] if wanted and (text := vocabulary.special(name)) else []
        for wanted, name in ((begin, "bos"), (end, "eos"))
    )
    template = around(before, after)
    if template is None or inner is None:
        return template or inner
    return {"type": "Sequence", "processors": [inner, template]}


# ---- kinds ----

Body = tuple[dict[str, Any], bool, bool]
"""Parts of ``tokenizer.json``, and whether a token is put in front of and behind a text unless the file says otherwise."""


def _byte_level(vocabulary: Vocabulary) -> Body:
    """Byte-level BPE: merges are stored, the cutting into words is a name."""
    name = vocabulary.get("pre")
    if name not in PATTERNS:
        said = "does not name" if name in (None, "default") else f"names {shown(name)}, which is not known, as"
        raise vocabulary.bad(f"the file {said} the pattern by which text is cut into words")
    pattern = PATTERNS[name]
    merges = vocabulary.get("merges")
    if not isinstance(merges, list) or not all(isinstance(item, str) and item.count(" ") == 1 for item in merges):
        raise vocabulary.bad("tokenizer.ggml.merges is no list of pairs")
    vocab = {
        text: number
        for number, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if kind != UNUSED
    }
    for merge in merges:
        left, right = merge.split(" ")
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise vocabulary.bad(f"merge {merge[:80]!r} is not of tokens")
    model = byte_pairs(vocab, [merge.split(" ") for merge in merges], ignore_merges=pattern.whole)
    steps = list(pattern.steps)
    body = {
        "normalizer": {"type": "NFC"} if pattern.composed else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0],
        "decoder": byte_level(regex=True, prefix=True),
        "post_processor": {**byte_level(regex=True, prefix=True), "trim_offsets": False},
        "model": model,
    }
    return body, pattern.begin, False


def _sentence_pieces(vocabulary: Vocabulary) -> Body:
    """BPE of SentencePiece: the pair is merged whose whole has the highest score; unknown characters become bytes."""
    merges = _merges(vocabulary, _scores(vocabulary))
    vocab = {
        text: number
        for number, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if kind != UNUSED
    }
    unknown = vocabulary.special("unknown")
    prefix = vocabulary.flag("add_space_prefix", True)
    as_space = {"type": "Replace", "pattern": {"String": " "}, "content": META}
    steps = [{"type": "Prepend", "prepend": META}, as_space] if prefix else [as_space]
    back: list[Any] = [
        {"type": "Replace", "pattern": {"String": META}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    model = byte_pairs(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=BYTE in vocabulary.kinds)
    body = {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [*back, {"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else back,
        },
        "model": model,
    }
    return body, True, False


def _unigram(vocabulary: Vocabulary) -> Body:
    """SentencePiece's unigram model: the likeliest pieces, after the normal forms that the file holds."""
    scores = _scores(vocabulary)
    unknown = vocabulary.special("unknown")
    charsmap = vocabulary.get("precompiled_charsmap")
    steps: list[Any] = []
    if isinstance(charsmap, np.ndarray) and charsmap.size:
        text = base64.b64encode(charsmap.astype(np.uint8).tobytes()).decode("ascii")
        steps.append({"type": "Precompiled", "precompiled_charsmap": text})
    if vocabulary.flag("remove_extra_whitespaces", False):
        steps.append({"type": "Strip", "strip_left": False, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    scheme = "always" if vocabulary.flag("add_space_prefix", True) else "never"
    space = {"type": "Metaspace", "replacement": META, "prepend_scheme": scheme, "split": True}
    model = {
        "type": "Unigram",
        "unk_id": vocabulary.tokens.index(unknown) if unknown is not None else None,
        "vocab": [[text, score] for text, score in zip(vocabulary.tokens, scores, strict=True)],
        "byte_fallback": BYTE in vocabulary.kinds,
    }
    body = {
        "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
        "pre_tokenizer": space,
        "decoder": space,
        "model": model,
    }
    return body, False, True


def _scores(vocabulary: Vocabulary) -> list[float]:
    scores = vocabulary.get("scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(vocabulary.tokens):
        raise vocabulary.bad(f"tokenizer.ggml.scores is no list of {len(vocabulary.tokens)} numbers")
    return scores.tolist()


def _merges(vocabulary: Vocabulary, scores: Sequence[float]) -> list[list[str]]:
    """All pairs of pieces that make a piece, those first whose piece has the highest score.

    Pairs of the same piece are in the order of their parts, which decides nothing: the piece is the same.
    """
    usable = {
        text: number
        for number, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if kind == NORMAL
    }
    found = []
    for text, number in usable.items():
        for cut in range(1, len(text)):
            left, right = usable.get(text[:cut]), usable.get(text[cut:])
            if left is not None and right is not None:
                found.append((-scores[number], number, left, right, text[:cut], text[cut:]))
    found.sort(key=lambda item: item[:4])
    return [[item[4], item[5]] for item in found]


MODELS: dict[str, Callable[[Vocabulary], Body]] = {"gpt2": _byte_level, "llama": _sentence_pieces, "t5": _unigram}
"""Kinds of tokenizers by ``tokenizer.ggml.model``."""

__all__ = ["read_gguf", "settings_of", "tokenizer_of"]
