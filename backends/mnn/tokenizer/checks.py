"""What MNN's vocabulary models and added tokens cannot do, found before anything is written."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

from backends.mnn.tokenizer.files.mtok import DisplayTexts, listed_specials
from backends.mnn.tokenizer.merges import CHAR_BYTES, unreachable_tokens
from backends.mnn.tokenizer.spec import TokenizerSpec
from backends.mnn.tokenizer.stages import LIST_DECODE, META, Plan
from ir.base.diag import LadingError


def check_model(spec: TokenizerSpec) -> None:
    """Raise B642 for a vocabulary option that changes ids and that MNN does not have."""
    where = f"{spec.folder}/tokenizer.json"
    if spec.options.get("dropout"):
        raise LadingError("B642", "merges are dropped at random (dropout), so ids are not defined", where=where)
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if spec.kind == "bpe" and spec.options.get(name):
            raise LadingError("B642", f"BPE with {name} {spec.options[name]!r}", where=where)


def check_added(spec: TokenizerSpec) -> None:
    """Raise B647 for an added token that MNN would find inside words where the tokenizer does not."""
    for token in spec.added:
        if token.single_word and (_in_word(token.content[0]) or _in_word(token.content[-1])):
            raise LadingError(
                "B647",
                f"added token {token.content!r:.60} counts only as a word of its own, MNN finds it inside words too",
                where=f"{spec.folder}/tokenizer.json",
            )


def _in_word(char: str) -> bool:
    return char == "_" or unicodedata.category(char)[0] in "LNM"


def model_reasons(spec: TokenizerSpec, plan: Plan) -> list[str]:
    """How ids of rare texts differ because of the vocabulary model."""
    kinds = {part.kind for part in plan.cutters}
    reasons = []
    if spec.kind == "bpe":
        if spec.options.get("ignore_merges"):
            reasons += _unmerged(spec, plan)
        if "byte_level" not in kinds:
            reasons += _unknown_characters(spec)
        odd = next((text for text in spec.vocab if "<0x" in text and len(text.encode()) > 6), None)
        if "byte_level" in kinds and odd is not None:
            reasons.append(f"decoding takes a part of the token {odd!r} for a byte")
    if spec.kind == "unigram":
        reasons.append("of equally likely ways to split a word another may be taken")
    if spec.kind == "wordpiece":
        reasons.append("the longest word is counted in bytes, not in characters")
    return reasons


def affix_reasons(spec: TokenizerSpec) -> list[str]:
    """What the library puts around a text and MNN does not, whatever the form."""
    reasons = []
    if spec.suffix_ids:
        reasons.append(f"the ids {list(spec.suffix_ids)} are not appended to the text")
    if spec.prefix_ids != spec.encode_prefix_ids:
        reasons.append("raw text gets no BOS, because the chat template writes it")
    return reasons


def _unmerged(spec: TokenizerSpec, plan: Plan) -> list[str]:
    found = set(plan.words.texts) if plan.words else set()
    lost = [text for text in map(_readable, unreachable_tokens(spec)) if text not in found]
    if not lost:
        return []
    shown = ", ".join(map(repr, lost[:3]))
    return [f"{len(lost)} of {len(spec.vocab)} tokens, which no merge reaches, are put together from parts: {shown}"]


def _readable(text: str) -> str:
    if all(char in CHAR_BYTES for char in text):
        return bytes(CHAR_BYTES[char] for char in text).decode(errors="replace")
    return text


def _unknown_characters(spec: TokenizerSpec) -> list[str]:
    byte_tokens = sum(f"<0x{byte:02X}>" in spec.vocab for byte in range(256))
    fallback = bool(spec.options.get("byte_fallback"))
    if fallback and byte_tokens == 256:
        return []
    if byte_tokens and (not fallback or byte_tokens < 256):
        return ["characters outside the vocabulary become the byte tokens that exist"]
    return ["characters outside the vocabulary give no id"] if spec.unk else []


def added_reasons(spec: TokenizerSpec, plan: Plan) -> list[str]:
    """How added tokens are found or shown otherwise in rare texts."""
    reasons = []
    for token in spec.added:
        if token.single_word:
            reasons.append(f"{token.content!r} is found next to letters too")
        if token.lstrip or token.rstrip:
            reasons.append(f"{token.content!r} takes only ASCII whitespace beside it along")
        if token.normalized and spec.normalizer is not None and _changed(spec.normalizer, token.content):
            reasons.append(f"{token.content!r} is found in the text as written, not as normalized")
    listed = set(listed_specials(spec, DisplayTexts(spec, plan)))
    shown = [token.content for token in spec.added if token.special and token.id not in listed]
    if shown:
        reasons.append(f"{LIST_DECODE} keeps special tokens such as {shown[0]!r}")
    return _shortened(reasons)


def _shortened(reasons: list[str], most: int = 6) -> list[str]:
    if len(reasons) <= most:
        return reasons
    return [*reasons[:most], f"and {len(reasons) - most} more added tokens with such differences"]


def _changed(stage: Mapping[str, Any], text: str) -> bool:
    """Whether a token that is matched in normalized text is matched elsewhere than in the text as written."""
    kind = stage.get("type")
    if kind == "Sequence":
        return any(_changed(child, text) for child in stage.get("normalizers") or ())
    if kind in ("NFC", "NFKC"):
        return unicodedata.normalize(kind, text) != text
    if kind == "Replace":
        pattern = (stage.get("pattern") or {}).get("String")
        return pattern is None or pattern in text or bool(set(stage.get("content", "")) & set(text) - {META})
    return True
