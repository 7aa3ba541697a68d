"""Damaged GGUF files: lengths, types, places, metadata and vocabulary of a tiny model."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

from tools.fuzz.inputs.mutate import damage_bytes
from tools.fuzz.target import Case, Target, require

_HIDDEN, _VOCABULARY, _ALIGNMENT = 64, 12, 32
_TEXT, _LIST, _NUMBER, _REAL, _FLAG = 8, 9, 4, 6, 7
_F32, _Q4_0 = 0, 2

_LAYER = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    """A value of metadata behind its type."""
    if isinstance(value, list):
        kind = _TEXT if isinstance(value[0], str) else _REAL if isinstance(value[0], float) else _NUMBER
        items = b"".join(_value(item)[4:] for item in value)
        return struct.pack("<IIQ", _LIST, kind, len(value)) + items
    if isinstance(value, str):
        return struct.pack("<I", _TEXT) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<IB", _FLAG, value)
    return struct.pack("<If", _REAL, value) if isinstance(value, float) else struct.pack("<II", _NUMBER, value)


def _metadata(rng: random.Random) -> dict[str, Any]:
    model = {"block_count": 1, "context_length": 64, "embedding_length": _HIDDEN, "feed_forward_length": _HIDDEN,
             "attention.head_count": 4, "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-5,
             "rope.dimension_count": 16}  # fmt: skip
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{number:02X}>" for number in range(4)),
        "\u2581",
        "a",
        "b",
        "ab",
        "\u2581ab",
    ]
    vocabulary = {"model": rng.choice(["llama", "gpt2", "t5"]), "pre": rng.choice(["qwen2", "llama-bpe"]),
                  "tokens": tokens, "scores": [0.0] * len(tokens), "token_type": [2, 3, 3, 6, 6, 6, 6, 1, 1, 1, 1, 1],
                  "merges": ["a b"], "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0,
                  "add_bos_token": True}  # fmt: skip
    found: dict[str, Any] = {"general.architecture": rng.choice(["llama", "qwen3"])}
    found |= {f"{found['general.architecture']}.{key}": value for key, value in model.items()}
    return found | {f"tokenizer.ggml.{key}": value for key, value in vocabulary.items()}


def _shapes() -> dict[str, tuple[int, ...]]:
    """Sizes of the tensors, the row length first."""
    found: dict[str, tuple[int, ...]] = {"token_embd": (_HIDDEN, _VOCABULARY), "output_norm": (_HIDDEN,)}
    for stem in _LAYER:
        rows = _HIDDEN // 2 if stem in ("attn_k", "attn_v") else _HIDDEN
        found[f"blk.0.{stem}"] = (_HIDDEN,) if stem.endswith("norm") else (_HIDDEN, rows)
    return found


def _file(rng: random.Random) -> bytes:
    """A whole file."""
    metadata, shapes = _metadata(rng), _shapes()
    infos, data = b"", b""
    for name, sizes in shapes.items():
        kind = _F32 if len(sizes) == 1 else rng.choice([_F32, _Q4_0])
        count = sizes[0] * (sizes[1] if len(sizes) > 1 else 1)
        size = count * 4 if kind == _F32 else count // 32 * 18
        infos += _text(f"{name}.weight") + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
        infos += struct.pack("<IQ", kind, len(data))
        raw = (
            rng.randbytes(size)
            if kind == _Q4_0
            else struct.pack(f"<{count}f", *(rng.gauss(0, 1) for _ in range(count)))
        )
        data += raw + bytes(-size % _ALIGNMENT)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(metadata))
    head += b"".join(_text(key) + _value(value) for key, value in metadata.items()) + infos
    return head + bytes(-len(head) % _ALIGNMENT) + data


def _gguf(case: Case) -> Path:
    raw = _file(case.rng)
    limit = len(raw) if case.rng.random() < 0.2 else raw.find(b"output_norm")
    damaged = damage_bytes(case.rng, raw[:limit]) if case.rng.random() < 0.95 else raw[:limit]
    path = case.folder / "model.gguf"
    path.write_bytes(damaged + raw[limit:])
    return path


def _load(path: Path, case: Case) -> None:
    from frontends.checkpoint.hub import resolve
    from frontends.checkpoint.load import load
    from frontends.text.tokenizer import open_tokenizer
    from ir.verify.stages import verify

    graph = load(path)
    problems = [item for item in verify(graph) if item.severity == "error"]
    require(not problems, f"the decoder is malformed: {problems[:1]}")
    for value in graph.consts.values():
        require(value.tensor.load().shape == value.tensor.shape, "a tensor has another shape than its type says")
    open_tokenizer(resolve(path)).encode("ab a\n")


DAMAGED_GGUF = (Target("gguf", "damaged GGUF files, read with their tokenizers", _gguf, _load, seconds=60),)
