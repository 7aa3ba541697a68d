"""The tokenizer of a GGUF file as ``tokenizer.json`` and ``tokenizer_config.json``.

The metadata holds tokens, their kinds, scores or merges, and numbers of special tokens; the rest (how text is cut into
words, what stands in front of it) follows from names that llama.cpp gives to tokenizers.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from frontends.configuration.keys import shown
from frontends.gguf.patterns import PATTERNS
from ir.base.diag import LadingError, suggest

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens."""

SPACE = "\u2581"
"""Stands for a space in pieces of SentencePiece."""

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


def tokenizer_files(metadata: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The files of the tokenizer by name, as JSON data; empty where the file holds none.

    Raises:
        LadingError: F588 a tokenizer of a kind that is not known, or damaged.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind in (None, "none", "no_vocab"):
        return {}
    vocabulary = _vocabulary(metadata, where)
    if kind not in MODELS:
        near = suggest(str(kind)[:60], list(MODELS))
        raise vocabulary.bad(f"a tokenizer of the kind {shown(kind)} is not known. {near}".strip())
    body, begin, end = MODELS[kind](vocabulary)
    begin, end = vocabulary.flag("add_bos_token", begin), vocabulary.flag("add_eos_token", end)
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(vocabulary),
        "post_processor": _post_processor(vocabulary, begin, end, body.pop("post_processor", None)),
        **body,
    }
    return {"tokenizer.json": document, "tokenizer_config.json": _settings(vocabulary, begin, end)}


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
    pieces: list[Any] = [{"Sequence": {"id": "A", "type_id": 0}}]
    special: dict[str, Any] = {}
    for wanted, name in ((begin, "bos"), (end, "eos")):
        text = vocabulary.special(name) if wanted else None
        if text is None:
            continue
        number = vocabulary.get(f"{name}_token_id")
        special[text] = {"id": text, "ids": [number], "tokens": [text]}
        piece = {"SpecialToken": {"id": text, "type_id": 0}}
        pieces = [piece, *pieces] if name == "bos" else [*pieces, piece]
    if not special:
        return inner
    pair = [*pieces, {"Sequence": {"id": "B", "type_id": 1}}]
    template = {"type": "TemplateProcessing", "single": pieces, "pair": pair, "special_tokens": special}
    return template if inner is None else {"type": "Sequence", "processors": [inner, template]}


def _settings(vocabulary: Vocabulary, begin: bool, end: bool) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": begin and vocabulary.special("bos") is not None,
        "add_eos_token": end and vocabulary.special("eos") is not None,
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        text = vocabulary.special(name)
        if text is not None:
            settings[f"{key}_token"] = text
    template = vocabulary.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        settings["chat_template"] = template
    return settings


# ---- kinds ----

Body = tuple[dict[str, Any], bool, bool]
"""Parts of ``tokenizer.json``, and whether a token is put in front of and behind a text unless the file says otherwise."""


def _byte_level(vocabulary: Vocabulary) -> Body:
    """Byte-level BPE: merges are stored, the cutting into words is a name."""
    name = vocabulary.get("pre")
    if name not in PATTERNS:
        near = suggest(str(name)[:60], list(PATTERNS))
        said = "does not name" if name in (None, "default") else f"names {shown(name)} as"
        raise vocabulary.bad(f"the file {said} the pattern by which text is cut into words. {near}".strip())
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
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": pattern.whole,
        "vocab": vocab,
        "merges": [merge.split(" ") for merge in merges],
    }
    steps = list(pattern.steps)
    body = {
        "normalizer": {"type": "NFC"} if pattern.composed else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0],
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
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
    as_space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    steps = [{"type": "Prepend", "prepend": SPACE}, as_space] if prefix else [as_space]
    back: list[Any] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": BYTE in vocabulary.kinds,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": merges,
    }
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
    space = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": True}
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

__all__ = ["tokenizer_files"]
