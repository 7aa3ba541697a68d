"""Which file of a folder holds its tokenizer, and what it says in the words of a ``tokenizer.json``.

``tokenizer.json`` goes first. The other kinds leave things to the program that reads them: how text is cut into words,
which tokens follow the table, what every text begins with. Programs are rows of `PROGRAMS`, found by the class that
``tokenizer_config.json`` names; code that comes with a checkpoint is never run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frontends.containers.links import TOKENIZER_LINK
from frontends.tokenizers.document import TokenizerData
from frontends.tokenizers.lists import PairRules, from_pairs, from_words
from frontends.tokenizers.patterns import CL100K, KIMI, QWEN2, QWEN3_5
from frontends.tokenizers.pieces import from_pieces, is_piece_model, read_pieces
from frontends.tokenizers.ranks import RankRules, from_ranks, from_tekken, is_rank_table, read_ranks
from frontends.tokenizers.settings import Settings, read_json
from ir.base.diag import LadingError

TOKENIZER = "tokenizer.json"
PIECES = (
    "tokenizer.model", "tokenizer.model.v3", "tokenizer.model.v2", "tokenizer.model.v1", "spiece.model",
    "sentencepiece.bpe.model", "spm.model",
)  # fmt: skip
RANKS = ("tiktoken.model", "qwen.tiktoken", "hy.tiktoken", "vocab.tiktoken", "cl100k_base.tiktoken")
MOST_BYTES = 1 << 30
"""Bytes of a vocabulary file that are read."""


@dataclass(frozen=True)
class Program:
    """How a class reads each kind of file; a kind that it does not read is None.

    Attributes:
        pieces: of a SentencePiece model, whether a text begins with BOS by default.
        ranks: rules for a table of ranks.
        pairs: rules for a vocabulary with merges.
        words: it reads ``vocab.txt``.
    """

    pieces: bool | None = None
    ranks: RankRules | None = None
    pairs: PairRules | None = None
    words: bool = False


_END = "<|endoftext|>"
_EXTRAS = tuple(f"<|extra_{number}|>" for number in range(205))
_GPT2 = PairRules(defaults={"bos_token": _END, "eos_token": _END, "unk_token": _END})
_QWEN2 = {"eos_token": _END, "pad_token": _END}
_BERT = Program(words=True)
_PLAIN = Program(pieces=True)

PROGRAMS: Mapping[str, Program] = {
    **dict.fromkeys(("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "Phi3Tokenizer"), _PLAIN),
    **dict.fromkeys(("InternLMTokenizer", "InternLM2Tokenizer", "BaichuanTokenizer", "OrionTokenizer"), _PLAIN),
    "Ernie4_5_Tokenizer": Program(pieces=False),
    "TikTokenTokenizer": Program(ranks=RankRules(KIMI, reserved=256)),
    "QWenTokenizer": Program(
        ranks=RankRules(QWEN2, (_END, "<|im_start|>", "<|im_end|>", *_EXTRAS), composed=True, named={"eos_token": _END})
    ),
    "HYTokenizer": Program(
        ranks=RankRules(
            QWEN2,
            (_END, "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>", *_EXTRAS),
            composed=True,
            counted=True,
            named={"eos_token": "<|eos|>", "bos_token": "<|startoftext|>", "pad_token": "<|pad|>"},
        )
    ),
    "ChatGLM4Tokenizer": Program(ranks=RankRules(CL100K, before=("[gMASK]", "<sop>"))),
    "Qwen2Tokenizer": Program(pairs=PairRules(QWEN2, True, _QWEN2)),
    "Qwen3_5Tokenizer": Program(pairs=PairRules(QWEN3_5, True, _QWEN2)),
    "GPT2Tokenizer": Program(pairs=_GPT2),
    "CodeGenTokenizer": Program(pairs=_GPT2),
    "RobertaTokenizer": Program(
        pairs=PairRules(
            defaults={
                "bos_token": "<s>",
                "eos_token": "</s>",
                "sep_token": "</s>",
                "cls_token": "<s>",
                "unk_token": "<unk>",
                "pad_token": "<pad>",
                "mask_token": "<mask>",
            },
            before="cls_token",
            after="sep_token",
        )
    ),
    **dict.fromkeys(("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer"), _BERT),
}
"""Classes by name, without the word Fast at its end."""

MODELS: Mapping[str, str] = {
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), "Qwen2Tokenizer"),
    "gpt2": "GPT2Tokenizer",
    **dict.fromkeys(("kimi_k2", "kimi_linear", "kimi_vl"), "TikTokenTokenizer"),
    "qwen": "QWenTokenizer",
    **dict.fromkeys(("bert", "distilbert"), "BertTokenizer"),
}
"""The class of a model that names none, by ``model_type``."""


def tokenizer_file(folder: Path) -> Path | None:
    """The file with a folder's vocabulary; None where there is none of a known name."""
    names = (TOKENIZER, TOKENIZER_LINK, "tekken.json", *RANKS, *PIECES)
    found = next((name for name in names if (folder / name).is_file()), None)
    if found is None and (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        found = "vocab.json"
    if found is None and (folder / "vocab.txt").is_file():
        found = "vocab.txt"
    return None if found is None else folder / found


def tokenizer_files(folder: Path) -> tuple[Path, ...]:
    """All files that a folder's tokenizer is made of besides settings; empty where there is none."""
    found = tokenizer_file(folder)
    if found is None:
        return ()
    return (found, folder / "merges.txt") if found.name == "vocab.json" else (found,)


def read_tokenizer(folder: Path) -> TokenizerData:
    """The tokenizer of a folder without ``tokenizer.json``.

    Raises:
        LadingError: Q435 there is none, or its file is damaged; F587 the file leaves to a program what no row says; F588
            that of a GGUF file is of a kind that is not known.
    """
    path = tokenizer_file(folder)
    if path is None:
        hint = "save the checkpoint's tokenizer with transformers"
        raise LadingError("Q435", "the folder has no tokenizer", where=str(folder), hint=hint)
    if path.name == TOKENIZER_LINK:
        from frontends.gguf.tokenizer import read_gguf

        return read_gguf(path)
    settings = Settings(folder)
    if path.name == "tekken.json":
        return from_tekken(read_json(path), settings, str(path))
    if path.name == "vocab.json":
        return from_pairs(folder, _rules(settings, path, lambda program: program.pairs), settings)
    if path.name == "vocab.txt":
        _rules(settings, path, lambda program: program.words or None)
        return from_words(folder, settings)
    raw = _read(path)
    if is_rank_table(raw[:4096]):
        ranks = _rules(settings, path, lambda program: program.ranks)
        return from_ranks(read_ranks(raw, str(path), ranks.counted), ranks, settings)
    if not is_piece_model(raw[:4096]):
        raise LadingError("Q435", "the file is neither a SentencePiece model nor a table of ranks", where=str(path))
    # A SentencePiece model says itself how it is read, unless a program is named that does more.
    bos = True if settings.program is None else _rules(settings, path, lambda program: program.pieces)
    return from_pieces(read_pieces(raw, str(path)), settings, str(path), bos)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise LadingError("Q435", f"the file has more than {MOST_BYTES} bytes", where=str(path))
        return path.read_bytes()
    except OSError as error:
        raise LadingError("Q435", f"the file cannot be read: {error.strerror}", where=str(path)) from error


def _rules(settings: Settings, path: Path, part: Callable[[Program], Any]) -> Any:
    """What a row says of a kind of file.

    Raises:
        LadingError: F587 no row says anything.
    """
    model = settings.config.get("model_type")
    name = settings.program or (MODELS.get(model) if isinstance(model, str) else None)
    program = PROGRAMS.get(name or "")
    found = part(program) if program is not None else None
    if found is not None:
        return found
    known = ", ".join(sorted(name for name, row in PROGRAMS.items() if part(row) is not None))
    if name is None:
        problem = f"nothing names the class that reads {path.name}, and the file alone does not say how text is cut"
        hint = f"name it as tokenizer_class in tokenizer_config.json: {known}; or save tokenizer.json"
    else:
        problem = f"how {name} reads {path.name} is not known here, and its code is not run"
        hint = f"save tokenizer.json with it; classes that are known: {known}"
    raise LadingError("F587", problem, str(path), hint)


__all__ = ["MODELS", "PROGRAMS", "TOKENIZER", "Program", "read_tokenizer", "tokenizer_file", "tokenizer_files"]
