"""Tokenizers in other files than ``tokenizer.json``, trained here in the settings that families have."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from backends.mnn.tokenizer.merges import CHAR_BYTES
from frontends.tokenizers import patterns
from tests.support import tokenizer_data as data

_IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
_BPE = {"model_type": "bpe", "byte_fallback": True, "split_digits": True, "allow_whitespace_only_pieces": True}
_LLAMA = {**_BPE, **_IDENTITY}
_RUNS = ["\u2581" * size for size in range(2, 6)]
_GEMMA_OWN = ["<mask>", "<start_of_turn>", "<end_of_turn>", "\n", "\n\n", "\n\n\n", *_RUNS, "<b>"]

PIECES: Mapping[str, Mapping[str, Any]] = {
    "llama2": _LLAMA,
    "baichuan": {**_LLAMA, "add_dummy_prefix": False},
    "gemma": {
        **_LLAMA, "add_dummy_prefix": False, "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3,
        "user_defined_symbols": _GEMMA_OWN,
    },
    "internlm2": {**_LLAMA, "user_defined_symbols": ["[UNUSED_TOKEN_140]", "[UNUSED_TOKEN_141]"]},
    "minicpm": {**_LLAMA, "user_defined_symbols": ["<user>", *_RUNS]},
    "unigram": {"model_type": "unigram", "byte_fallback": True, **_IDENTITY},
    "nfkc": {**_BPE, "normalization_rule_name": "nfkc", "remove_extra_whitespaces": False},
    "nmt": {"model_type": "unigram"},
}  # fmt: skip
"""Settings of SentencePiece's trainer by the family that has them."""


@cache
def piece_model(kind: str) -> bytes:
    """A SentencePiece model of 1,500 pieces."""
    lines = [line.rstrip("\n") for line in data.training_text() if line.strip()]
    return trained(lines, vocab_size=1500, character_coverage=0.995, **PIECES[kind])


def trained(lines: list[str], **settings: Any) -> bytes:
    """A SentencePiece model of some lines."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, num_threads=1, minloglevel=2, **settings
    )
    return model.getvalue()


def piece_folder(folder: Path, kind: str, **settings: Any) -> Path:
    """A folder with ``tokenizer.model``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(piece_model(kind))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@cache
def ranks(pattern: str) -> dict[bytes, int]:
    """A table of 1,500 tokens, bytes first, as tiktoken has it."""
    vocab = json.loads(data.trained_bpe(pattern))["model"]["vocab"]
    tokens = [bytes(CHAR_BYTES[char] for char in text) for text in sorted(vocab, key=vocab.__getitem__)]
    ordered = [*sorted(token for token in tokens if len(token) == 1), *(token for token in tokens if len(token) > 1)]
    return {token: number for number, token in enumerate(ordered)}


def listed(start: int, *texts: str) -> dict[str, Any]:
    """``added_tokens_decoder`` of special tokens with ids from a number on."""
    flags = {"special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    return {str(number): {"content": text, **flags} for number, text in enumerate(texts, start)}


def rank_folder(folder: Path, name: str, program: str | None, table: Mapping[bytes, int], **settings: Any) -> Path:
    """A folder with a table of ranks, read by code that would come with the checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [base64.b64encode(token) + b" %d\n" % number for token, number in table.items()]
    (folder / name).write_bytes(b"".join(rows))
    own = {"tokenizer_class": program, "auto_map": {"AutoTokenizer": [f"tokenization.{program}", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps({**(own if program else {}), **settings}))
    return folder


def tekken(pattern: str, specials: int = 100, cut: int = 20, listed: bool = False) -> dict[str, Any]:
    """A ``tekken.json`` whose table has more rows than the vocabulary."""
    table = ranks(patterns.O200K)
    rows = [{"rank": rank, "token_bytes": base64.b64encode(token).decode()} for token, rank in table.items()]
    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[THINK]"]
    config = {
        "pattern": pattern,
        "num_vocab_tokens": len(table),
        "default_vocab_size": len(table) + specials - cut,
        "default_num_special_tokens": specials,
        "version": "v3",
    }
    found: dict[str, Any] = {"config": config, "vocab": rows}
    if listed:
        found["special_tokens"] = [{"rank": number, "token_str": text} for number, text in enumerate(names)]
    return found


def tekken_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tekken.json").write_text(json.dumps(tekken(patterns.O200K)))
    return folder


def pair_folder(folder: Path, pattern: str, more: tuple[str, ...] = (), **settings: Any) -> Path:
    """A folder with ``vocab.json`` and ``merges.txt``."""
    folder.mkdir(parents=True, exist_ok=True)
    model = json.loads(data.trained_bpe(pattern))["model"]
    vocab = {**model["vocab"], **{text: number for number, text in enumerate(more, len(model["vocab"]))}}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    merges = "".join(" ".join(pair) + "\n" for pair in model["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def word_folder(folder: Path, **settings: Any) -> Path:
    """A folder with ``vocab.txt``."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab = json.loads(data.tokenizer_text("wordpiece"))["model"]["vocab"]
    lines = "".join(text + "\n" for text in sorted(vocab, key=vocab.__getitem__))
    (folder / "vocab.txt").write_text(lines, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **settings}))
    return folder


_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
FOLDERS: Mapping[str, Callable[[Path], Path]] = {
    **{kind: lambda folder, kind=kind: piece_folder(folder, kind) for kind in PIECES if kind != "nmt"},  # type: ignore[misc]
    "kimi": lambda folder: rank_folder(
        folder, "tiktoken.model", "TikTokenTokenizer", ranks(data.O200K),
        added_tokens_decoder=listed(1500, "[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>"),
    ),
    "qwen": lambda folder: rank_folder(folder, "qwen.tiktoken", "QWenTokenizer", ranks(data.QWEN2)),
    "hunyuan": lambda folder: rank_folder(folder, "hy.tiktoken", "HYTokenizer", ranks(data.QWEN2)),
    "glm4": lambda folder: rank_folder(
        folder, "tokenizer.model", "ChatGLM4Tokenizer", ranks(data.LLAMA3),
        added_tokens_decoder=listed(1500, "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"),
    ),
    "tekken": tekken_folder,
    "qwen2": lambda folder: pair_folder(
        folder, data.QWEN2, tokenizer_class="Qwen2Tokenizer", eos_token="<|im_end|>", pad_token="<|endoftext|>",
        added_tokens_decoder=listed(1500, *_IM),
    ),
    "gpt2": lambda folder: pair_folder(folder, data.GPT2, _IM[:1], tokenizer_class="GPT2Tokenizer"),
    "roberta": lambda folder: pair_folder(
        folder, data.GPT2, ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), tokenizer_class="RobertaTokenizer"
    ),
    "bert": lambda folder: word_folder(folder, do_lower_case=True),
    "bert-cased": lambda folder: word_folder(folder, do_lower_case=False, tokenize_chinese_chars=False),
}  # fmt: skip
"""Writers of folders by family."""
