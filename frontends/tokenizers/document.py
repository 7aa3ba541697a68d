"""The parts of a ``tokenizer.json``, put together for vocabularies that come in other files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

META = "\u2581"
"""What stands for a space in SentencePiece."""


@dataclass(frozen=True)
class Special:
    """A token that is found in the text before anything else is done to it."""

    content: str
    id: int
    special: bool = True


@dataclass(frozen=True)
class TokenizerData:
    """A tokenizer that was read from files of another kind.

    Attributes:
        data: what a ``tokenizer.json`` would hold.
        form: the kind of file, for people.
        named: special tokens by name (``bos_token``) as the file itself has them; ``tokenizer_config.json`` goes first.
        reasons: how rare texts may become other ids than in the program that the files were made for.
    """

    data: dict[str, Any]
    form: str
    named: Mapping[str, str] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()


def split(pattern: str) -> dict[str, Any]:
    """The stage that cuts text into the matches of a pattern and what lies between them."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def byte_level(regex: bool = False, prefix: bool = False) -> dict[str, Any]:
    """The stage that spells text as bytes."""
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}


def byte_pairs(vocab: Mapping[str, int], merges: Sequence[Sequence[str]], **options: Any) -> dict[str, Any]:
    """A BPE model."""
    plain = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    switches = {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    merged = [list(merge) for merge in merges]
    return {"type": "BPE", **plain, **switches, **options, "vocab": dict(vocab), "merges": merged}


def around(before: Iterable[Special], after: Iterable[Special] = ()) -> dict[str, Any] | None:
    """The stage that puts tokens before and after a text; None where there are none."""
    before, after = list(before), list(after)
    if not before and not after:
        return None

    def listed(items: Sequence[Special], kind: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": item.content, "type_id": kind}} for item in items]

    one, two = ({"Sequence": {"id": name, "type_id": kind}} for kind, name in enumerate("AB"))
    tokens = {item.content: item for item in (*before, *after)}
    return {
        "type": "TemplateProcessing",
        "single": [*listed(before, 0), one, *listed(after, 0)],
        "pair": [*listed(before, 0), one, *listed(after, 0), *listed(before, 1), two, *listed(after, 1)],
        "special_tokens": {
            text: {"id": text, "ids": [item.id], "tokens": [text]} for text, item in sorted(tokens.items())
        },
    }


def document(
    model: Mapping[str, Any],
    specials: Iterable[Special],
    *,
    normalizer: Sequence[Mapping[str, Any]] = (),
    cutters: Sequence[Mapping[str, Any]] = (),
    decoder: Mapping[str, Any],
    processor: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A whole ``tokenizer.json``; added tokens in the order of their ids."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    rows = [
        {"id": item.id, "content": item.content, **flags, "special": item.special}
        for item in sorted(specials, key=lambda item: item.id)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": rows,
        "normalizer": _staged(normalizer, "normalizers"),
        "pre_tokenizer": _staged(cutters, "pretokenizers"),
        "post_processor": processor,
        "decoder": dict(decoder),
        "model": dict(model),
    }


def _staged(stages: Sequence[Mapping[str, Any]], key: str) -> Mapping[str, Any] | None:
    if len(stages) < 2:
        return stages[0] if stages else None
    return {"type": "Sequence", key: list(stages)}


__all__ = ["META", "Special", "TokenizerData", "around", "byte_level", "byte_pairs", "document", "split"]
