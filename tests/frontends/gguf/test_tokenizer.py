"""Tokenizers of GGUF files: the ids of the original one for thousands of texts, and errors for what is not known."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from frontends.gguf.patterns import PATTERNS
from frontends.gguf.tokenizer import settings_of, tokenizer_of
from ir.base.diag import LadingError
from tests.support.gguf_files import tokenizer_metadata
from tests.support.tokenizer_data import sample_strings, tokenizer_text

BYTE_LEVEL = {
    "example": "gpt-2",
    "gpt2": "gpt-2",
    "qwen2": "qwen2",
    "llama3": "llama-bpe",
    "llama3-ranks": "llama-bpe",
    "o200k": "gpt-4o",
    "deepseek": "deepseek-v3",
}
"""Kinds of `tests.support.tokenizer_data` and what llama.cpp calls their patterns."""


def metadata_of(kind: str, pre: str | None, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A tokenizer, and the metadata of a file with it as the reader gives it."""
    data = json.loads(tokenizer_text(kind))
    found = tokenizer_metadata(data, pre, **more)
    return data, {key: as_read(value) for key, value in found.items()}


def as_read(value: Any) -> Any:
    return np.array(value) if isinstance(value, list) and not isinstance(value[0], str) else value


def rebuilt(metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(tokenizer_of(metadata, "x.gguf").data, ensure_ascii=False))


def texts_for(data: dict[str, Any]) -> list[str]:
    return sample_strings(2000, [item["content"] for item in data["added_tokens"]])


def assert_same(ours: Tokenizer, theirs: Tokenizer, texts: list[str], special: bool = True) -> None:
    for text, a, b in zip(
        texts,
        ours.encode_batch(texts, add_special_tokens=special),
        theirs.encode_batch(texts, add_special_tokens=special),
        strict=True,
    ):
        assert a.ids == b.ids, text
    for text in texts[:300]:
        ids = theirs.encode(text).ids
        assert ours.decode(ids) == theirs.decode(ids), text
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids, skip_special_tokens=False), text


@pytest.mark.parametrize("kind", BYTE_LEVEL)
def test_byte_level_tokenizers(kind: str) -> None:
    data = json.loads(tokenizer_text(kind))
    processor = data.get("post_processor") or {}
    begins = "SpecialToken" in json.dumps(processor)
    more: dict[str, Any] = {"bos_token_id": data["added_tokens"][0]["id"], "add_bos_token": begins}
    _, metadata = metadata_of(kind, BYTE_LEVEL[kind], **more)
    # Files do not say which tokens take whitespace along.
    original = {**data, "added_tokens": [{**item, "rstrip": False} for item in data["added_tokens"]]}
    assert_same(rebuilt(metadata), Tokenizer.from_str(json.dumps(original)), texts_for(data))


def test_special_tokens_of_phi_3_take_whitespace_along() -> None:
    _, metadata = metadata_of("sp-legacy", None, bos_token_id=1, unknown_token_id=0)
    metadata["tokenizer.ggml.tokens"][100] = "<|user|>"
    metadata["tokenizer.ggml.token_type"][100] = 3
    plain, phi = rebuilt(metadata), rebuilt({**metadata, "general.architecture": "phi3"})
    assert phi.encode("<|user|>\nx").ids == plain.encode("<|user|>x").ids
    assert phi.encode("<s> x").ids == plain.encode("<s> x").ids


@pytest.mark.parametrize(("kind", "prefix"), [("sp-legacy", True), ("sp-gemma", False)])
def test_sentence_pieces(kind: str, prefix: bool) -> None:
    more = {"bos_token_id": 1, "unknown_token_id": 0, "add_space_prefix": prefix}
    data, metadata = metadata_of(kind, None, **more)
    original = Tokenizer.from_str(tokenizer_text(kind))
    texts = [text for text in texts_for(data) if "<unk>" not in text]
    assert_same(rebuilt(metadata), original, texts)


def test_unigram() -> None:
    data = json.loads(tokenizer_text("unigram-bytes"))
    pieces = data["model"]["vocab"]
    kinds = [
        2 if text == "<unk>" else 3 if text in ("<s>", "</s>") else 6 if text.startswith("<0x") else 1
        for text, _ in pieces
    ]
    metadata = {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": [text for text, _ in pieces],
        "tokenizer.ggml.scores": np.array([score for _, score in pieces]),
        "tokenizer.ggml.token_type": np.array(kinds),
        "tokenizer.ggml.unknown_token_id": data["model"]["unk_id"],
        "tokenizer.ggml.add_eos_token": False,
    }
    original = Tokenizer.from_str(tokenizer_text("unigram-bytes"))
    texts = [text for text in sample_strings(2000) if "<unk>" not in text]
    found = rebuilt(metadata).encode_batch(texts)
    wanted = original.encode_batch(texts, add_special_tokens=False)
    for text, ours, theirs in zip(texts, found, wanted, strict=True):
        assert ours.ids == theirs.ids, text


def test_tokens_around_a_text_follow_the_file() -> None:
    begin = json.loads(tokenizer_text("llama3"))["added_tokens"][0]["id"]
    for more, wanted in (
        ({}, []),
        ({"bos_token_id": begin}, [begin]),
        ({"bos_token_id": begin, "add_bos_token": False}, []),
        ({"bos_token_id": begin, "eos_token_id": begin + 1, "add_eos_token": True}, [begin, begin + 1]),
    ):
        _, metadata = metadata_of("llama3", "llama-bpe", **more)
        assert rebuilt(metadata).encode("").ids == wanted, more


def test_settings_beside_the_vocabulary() -> None:
    data = json.loads(tokenizer_text("qwen2"))
    number = data["added_tokens"][2]["id"]
    _, metadata = metadata_of("qwen2", "qwen2", eos_token_id=number)
    metadata["tokenizer.chat_template"] = "{{ messages }}"
    found = settings_of(metadata)
    assert found["eos_token"] == "<|im_end|>" and found["chat_template"] == "{{ messages }}"
    assert "bos_token" not in found


@pytest.mark.parametrize("metadata", [{}, {"tokenizer.ggml.model": "none"}])
def test_a_file_without_tokenizer_says_so(metadata: dict[str, Any]) -> None:
    assert set(settings_of(metadata)) == {"tokenizer_class", "clean_up_tokenization_spaces"}
    with pytest.raises(LadingError, match="the file holds no tokenizer"):
        tokenizer_of(metadata, "x.gguf")


@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_every_pattern_is_one_that_the_library_reads(name: str) -> None:
    _, metadata = metadata_of("gpt2", name)
    tokenizer = rebuilt(metadata)
    for text in ("Hello, world! 12345 don't\n\n  x", "naïve 漢字 ÀÉ", "\t\r\n a"):
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode([item for item in ids if item != metadata.get("tokenizer.ggml.bos_token_id")]) == text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "rwkv"}, "'rwkv' is not known"),
        ({"pre": "default"}, "does not name the pattern"),
        ({"pre": "qwen3"}, "names 'qwen3', which is not known"),
        ({"tokens": []}, "no list of texts"),
        ({"token_type": np.array([1, 2])}, "token_type is no list of"),
        ({"merges": ["a"]}, "no list of pairs"),
        ({"merges": ["no-such token"]}, "is not of tokens"),
        ({"bos_token_id": 1 << 20, "add_bos_token": True}, "bos_token_id is 1048576"),
        ({"add_bos_token": 1}, "must be true or false"),
    ],
)
def test_tokenizers_that_cannot_be_made(change: dict[str, Any], says: str) -> None:
    _, metadata = metadata_of("qwen2", "qwen2")
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    with pytest.raises(LadingError) as caught:
        tokenizer_of(metadata, "x.gguf")
    assert caught.value.code == "F588" and says in str(caught.value)


def test_pieces_need_scores() -> None:
    _, metadata = metadata_of("sp-legacy", None)
    del metadata["tokenizer.ggml.scores"]
    with pytest.raises(LadingError, match="scores is no list"):
        tokenizer_of(metadata, "x.gguf")
