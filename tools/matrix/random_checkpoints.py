"""Small random checkpoints, in the files and names that the Hugging Face Hub has, for the matrix and for tests.

They are "hot": attention is peaked, norm gains are far from one, biases are not small, logits reach about 30. A mistake
that hides at the usual initialisation (a forgotten bias, a wrong mask, a transposed matrix) shows in the logits here.

The names and shapes are written down here a second time on purpose, so that they do not follow a mistake in
`frontends.families`.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {"bf16": ml_dtypes.bfloat16, "f16": np.float16, "f32": np.float32, "f64": np.float64}
TORCH_NAMES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "f64": "float64"}
STORED_NAMES = {
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.float16): "F16",
    np.dtype(np.float32): "F32",
    np.dtype(np.float64): "F64",
    np.dtype(np.uint8): "U8",
    np.dtype(np.int8): "I8",
    np.dtype(np.int32): "I32",
    np.dtype(np.int64): "I64",
    np.dtype(ml_dtypes.float8_e4m3fn): "F8_E4M3",
    np.dtype(ml_dtypes.float8_e5m2): "F8_E5M2",
    np.dtype(ml_dtypes.float8_e8m0fnu): "F8_E8M0",
}

BASE = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
"""Configuration of every checkpoint unless overridden."""

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 24},
    "llama": {"architectures": ["LlamaForCausalLM"]},
    "mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": None},
}
"""What each family adds to `BASE`."""

_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_checkpoint(
    folder: str | Path, family: str, *, seed: int = 0, dtype: str = "bf16", shards: int = 1, **config: Any
) -> Path:
    """Write ``config.json``, weights, tokenizer and chat template of a random model; returns the folder.

    Args:
        folder: created if needed.
        family: key of `FAMILIES`.
        seed: other seeds give other weights; the tokenizer is always the same.
        dtype: ``bf16``, ``f16``, ``f32`` or ``f64``.
        shards: number of weight files; more than one adds an index.
        config: keys of ``config.json`` to set; a key set to `...` is left out of the file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    full = {"model_type": family, "dtype": TORCH_NAMES[dtype], **BASE, **FAMILIES[family], **config}
    full = {key: value for key, value in full.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(full, indent=2))
    eos = {"bos_token_id": full.get("bos_token_id"), "eos_token_id": full.get("eos_token_id")}
    (folder / "generation_config.json").write_text(json.dumps(eos))
    write_weights(folder, hot_tensors(full, seed, dtype), shards)
    write_tokenizer(folder, full["vocab_size"])
    return folder


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that a full ``config.json`` of one of the families stands for."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    family = config["model_type"]
    attention_bias = config.get("attention_bias", False)
    bias = {"q": attention_bias, "k": attention_bias, "v": attention_bias, "o": attention_bias}
    if family == "qwen2":
        bias = {"q": True, "k": True, "v": True, "o": False}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for index in range(config["num_hidden_layers"]):
        base = f"model.layers.{index}"
        rows = {"q": heads * head_dim, "k": kv_heads * head_dim, "v": kv_heads * head_dim, "o": hidden}
        for role, out in rows.items():
            module = f"{base}.self_attn.{role}_proj"
            shapes[f"{module}.weight"] = (out, heads * head_dim if role == "o" else hidden)
            if bias[role]:
                shapes[f"{module}.bias"] = (out,)
        for role, out, columns in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
            shapes[f"{base}.mlp.{role}_proj.weight"] = (out, columns)
            if config.get("mlp_bias", False):
                shapes[f"{base}.mlp.{role}_proj.bias"] = (out,)
        shapes[f"{base}.input_layernorm.weight"] = (hidden,)
        shapes[f"{base}.post_attention_layernorm.weight"] = (hidden,)
        if family == "qwen3":
            shapes[f"{base}.self_attn.q_norm.weight"] = shapes[f"{base}.self_attn.k_norm.weight"] = (head_dim,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def hot_tensor(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random float32 contents for a tensor, by the role that its name tells."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return rng.uniform(0.9, 2.2, shape).astype(np.float32)
    if name.endswith("norm.weight"):
        return rng.uniform(0.4, 2.0, shape).astype(np.float32)
    if name.endswith(".bias") or len(shape) == 1:
        return rng.normal(0.0, 0.6, shape).astype(np.float32)
    if name.endswith("embed_tokens.weight"):
        return rng.normal(0.0, 0.5, shape).astype(np.float32)
    gain = 1.0
    if name.endswith(("q_proj.weight", "k_proj.weight", "qkv_proj.weight")):
        gain = 1.4
    elif name.endswith("lm_head.weight"):
        gain = 5.0
    return rng.normal(0.0, gain / shape[1] ** 0.5, shape).astype(np.float32)


def hot_tensors(config: Mapping[str, Any], seed: int = 0, dtype: str = "bf16") -> dict[str, np.ndarray]:
    """All tensors of a configuration, rounded to a storage type."""
    return {name: hot_tensor(name, shape, seed).astype(DTYPES[dtype]) for name, shape in tensor_shapes(config).items()}


def write_weights(folder: Path, tensors: Mapping[str, np.ndarray], shards: int = 1) -> None:
    """Write tensors as ``model.safetensors``, or as shards with an index."""
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return
    weight_map: dict[str, str] = {}
    names = list(tensors)
    for index in range(shards):
        file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[index::shards]}
        write_safetensors(folder / file, part)
        weight_map.update(dict.fromkeys(part, file))
    total = sum(array.nbytes for array in tensors.values())
    index_file = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_file))


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write one safetensors file: header length, JSON header padded to eight bytes, data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, array in tensors.items():
        end = offset + array.nbytes
        header[name] = {"dtype": STORED_NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Write a byte-level BPE tokenizer of at most `vocab_size` and at most 400 entries, with a chat template."""
    (folder / "tokenizer.json").write_text(_tokenizer_json(min(vocab_size, 400)))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    (folder / "chat_template.jinja").write_text(_TEMPLATE)


@lru_cache
def _tokenizer_json(vocab_size: int) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + len(specials):
        raise ValueError(f"a byte-level tokenizer needs {len(alphabet) + len(specials)} entries, not {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=specials, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(_sentences(), trainer)
    return tokenizer.to_str()


def _sentences() -> list[str]:
    rng = np.random.default_rng(7)
    parts = ["ka", "lo", "mi", "ser", "tan", "ru", "vel", "o", "dim", "ship", "ware", "load"]
    words = ["".join(rng.choice(parts, rng.integers(1, 4))) for _ in range(60)]
    return [" ".join(rng.choice(words, 12)) + "." for _ in range(200)]
