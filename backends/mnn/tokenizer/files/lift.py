"""Read a binary tokenizer file back into what it was written from, so that a text form can be written of it.

What the file does not say, such as the rules of a post-processor, is left out; ids of the text form are approximate
anyway for most tokenizers, and the reasons are told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from backends.mnn.tokenizer.files.read import MtokFile, Stage
from backends.mnn.tokenizer.spec import AddedToken, TokenizerSpec

_BEHAVIORS = ("Isolated", "Removed", "MergedWithPrevious")


def spec_of(file: MtokFile, where: str = "") -> TokenizerSpec:
    """The tokenizer that a binary file holds; the reader has checked that each merge gives a token."""
    added_ids = {row[0] for row in file.added}
    vocab = {text.decode("utf-8", "replace"): index for text, index in file.entries if index not in added_ids}
    texts = dict(file.entries)
    by_id = {index: text for text, index in file.entries}
    rows = []
    for left, right, _ in sorted(file.merges, key=lambda row: row[2]):
        rows.append((left, right, texts[by_id[left] + by_id[right]]))
    unk = file.model_fields.get("unk")
    return TokenizerSpec(
        folder=where,
        kind=file.model,
        vocab=vocab,
        merges=np.array(rows, np.int32).reshape(-1, 3),
        scores=np.array(file.scores, np.float64) if file.model == "unigram" else None,
        unk=by_id[unk].decode("utf-8", "replace") if isinstance(unk, int) and unk in by_id else unk or None,
        options={"byte_fallback": bool(file.model_fields.get("byte_fallback"))},
        normalizer=_normalizer(file.normalizer),
        pre_tokenizer=_cutter(file.pre_tokenizer),
        decoder=_decoder(file.decoder),
        added=tuple(AddedToken(index, text, special, left, right) for index, text, special, left, right in file.added),
        prefix_ids=file.header.prefix_ids,
        suffix_ids=(),
        stop_ids=file.header.stop_ids,
        end_sources=dict.fromkeys(file.header.stop_ids, ("the tokenizer file",)),
        end_problems=(),
        special_texts={key: text for key, text in (("bos", file.bos), ("eos", file.eos)) if text},
        chat_template=file.chat_template,
        model_vocab_size=len(file.tokens),
        notes=(),
    )


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _sequence(key: str, convert: Callable[[Stage], dict[str, Any] | None]) -> Callable[[Stage], dict[str, Any]]:
    def build(stage: Stage) -> dict[str, Any]:
        children = [item for child in stage.children if (item := convert(child)) is not None]
        return {"type": "Sequence", key: children}

    return build


def _replace(stage: Stage) -> dict[str, Any]:
    pattern, content = _text(stage.fields["pattern"]), _text(stage.fields["content"])
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def _metaspace(stage: Stage) -> dict[str, Any]:
    scheme = "always" if stage.fields["prefix"] else "never"
    return {"type": "Metaspace", "replacement": stage.fields["replacement"], "prepend_scheme": scheme, "split": True}


def _split(stage: Stage) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": _text(stage.fields["pattern"])},
        "behavior": _BEHAVIORS[min(stage.fields["behavior"], 2)],
        "invert": bool(stage.fields["invert"]),
    }


def _byte_level(stage: Stage) -> dict[str, Any]:
    use_regex = bool(stage.fields.get("regex", 1))
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _normalizer(stage: Stage) -> dict[str, Any] | None:
    """Tables of code points and stripping have no spelling here and are left out, as the text form has none either."""
    return _build(_NORMALIZERS, stage)


def _cutter(stage: Stage) -> dict[str, Any] | None:
    return _build(_CUTTERS, stage)


def _decoder(stage: Stage) -> dict[str, Any] | None:
    return _build(_DECODERS, stage)


def _build(kinds: Mapping[str, Callable[[Stage], dict[str, Any]]], stage: Stage) -> dict[str, Any] | None:
    build = kinds.get(stage.kind)
    return None if build is None else build(stage)


_NORMALIZERS: dict[str, Callable[[Stage], dict[str, Any]]] = {
    "prepend": lambda stage: {"type": "Prepend", "prepend": stage.fields["text"]},
    "replace": _replace,
    "sequence": _sequence("normalizers", _normalizer),
}
_CUTTERS: dict[str, Callable[[Stage], dict[str, Any]]] = {
    "byte level": _byte_level,
    "digits": lambda stage: {"type": "Digits", "individual_digits": bool(stage.fields["individual"])},
    "metaspace": _metaspace,
    "split": _split,
    "bert": lambda stage: {"type": "BertPreTokenizer"},
    "sequence": _sequence("pretokenizers", _cutter),
}
_DECODERS: dict[str, Callable[[Stage], dict[str, Any]]] = {
    "byte level": _byte_level,
    "byte fallback": lambda stage: {"type": "ByteFallback"},
    "metaspace": _metaspace,
    "fuse": lambda stage: {"type": "Fuse"},
    "replace": _replace,
    "sequence": _sequence("decoders", _decoder),
}
