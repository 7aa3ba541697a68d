"""Models that people ask for by name: small checkpoints with the rules of their shapes, and folders with headers alone.

The configurations are those of ``tests/data/systems``. A small one keeps everything that is not a size: names, orders,
ropes, numbers of groups, storage formats, and the shares of sizes that rules tie together.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tests.support.checkpoints import write_safetensors
from tests.support.families.cases import Case
from tests.support.families.checkpoints import Golden, build_model, prompts, read_model
from tests.support.families.released import write_config
from tests.support.paths import ROOT

CONFIGS = ROOT / "tests" / "data" / "systems"

_TEXT = {"vocab_size": 320, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": None}
_GLM_EYES = {
    "depth": 1,
    "hidden_size": 32,
    "num_heads": 2,
    "out_hidden_size": 64,
    "intermediate_size": 48,
    "image_size": 28,
}
_GLM_TOKENS = {
    "image_token_id": 310,
    "video_token_id": 311,
    "image_start_token_id": 312,
    "image_end_token_id": 313,
    "video_start_token_id": 314,
    "video_end_token_id": 315,
}

SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2.5-7b-instruct": (
        "causal",
        {**_TEXT, "hidden_size": 112, "intermediate_size": 160, "num_attention_heads": 14, "num_key_value_heads": 2}
        | {"num_hidden_layers": 2},
    ),
    "autoglm-phone-9b": (
        "picture",
        {
            **_GLM_TOKENS,
            "text_config": {**_TEXT, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
            | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
            | {"rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default"}},
            "vision_config": _GLM_EYES,
        },
    ),
    "kimi-k2-thinking": (
        "causal",
        {**_TEXT, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_hidden_layers": 3}
        | {"num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 48, "kv_lora_rank": 24}
        | {"qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 12}
        | {"num_experts_per_tok": 4, "max_position_embeddings": 1024}
        | {"rope_scaling": {"original_max_position_embeddings": 16}},
    ),
    "glm-4.6v-fp8": (
        "picture",
        {
            **_GLM_TOKENS,
            "text_config": {**_TEXT, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
            | {"num_attention_heads": 12, "num_key_value_heads": 1, "head_dim": 16, "moe_intermediate_size": 24}
            | {"n_routed_experts": 8, "num_experts_per_tok": 2}
            | {"rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default"}},
            "vision_config": _GLM_EYES,
        },
    ),
    "hunyuan-ocr": (
        "picture",
        {**_TEXT, "hidden_size": 64, "intermediate_size": 224, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"num_key_value_heads": 2, "head_dim": 16, "attention_head_dim": 16}
        | {"rope_scaling": {"xdrope_section": [2, 2, 2, 2]}}
        | {"im_start_id": 310, "im_end_id": 311, "im_newline_id": 312, "image_token_id": 313, "eod_token_id": 2}
        | {
            "vision_config": {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "patch_size": 8}
            | {"num_hidden_layers": 1, "max_image_size": 32, "out_hidden_size": 64}
        },
    ),
    "glm-asr-nano-2512": (
        "any",
        {
            "hidden_size": 64,
            "audio_token_id": 310,
            "tie_word_embeddings": False,
            "text_config": {**_TEXT, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2}
            | {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16},
            "audio_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_mel_bins": 8}
            | {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16},
        },
    ),
}
"""Which class reads a system, and the sizes of its small checkpoint; keys of inner records are added to theirs."""

READ_AS = {"kimi_k2": "deepseek_v3"}
"""Model types that the reference knows by another name."""


def full_config(name: str) -> dict[str, Any]:
    """The configuration of a system at its full size."""
    config: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text())
    return config


def small_config(name: str) -> dict[str, Any]:
    """The configuration of its small checkpoint, keys in the places where the full one has them."""
    return _merged(full_config(name), SMALL[name][1])


def _merged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(config)
    for key, value in changes.items():
        merged[key] = _merged(merged[key], value) if isinstance(value, dict) and key in merged else value
    return merged


def make_small(folder: Path, name: str) -> Golden:
    """Write the small checkpoint of a system, stored as the published one is, and compute its logits.

    Where weights are quantized the logits are those of the numbers that the stored codes stand for.
    """
    from safetensors.numpy import load_file

    config = small_config(name)
    quantization = config.pop("quantization_config", None)
    kind = config["model_type"]
    case = Case(kind, {}, reader=SMALL[name][0], reads_as=READ_AS.get(kind, ""))  # type: ignore[arg-type]
    plain = folder / "plain"
    plain.mkdir(parents=True)
    write_config(plain, {**config, "model_type": case.reads_as or kind})
    build_model(case, plain).save_pretrained(plain)
    write_config(plain, {**config, "model_type": case.reads_as or kind})
    tensors = load_file(plain / "model.safetensors")
    stored: dict[str, np.ndarray] = {}
    for key, array in tensors.items():
        pieces, meant = _stored(key, array, quantization)
        stored.update(pieces)
        tensors[key] = meant
    write_safetensors(plain / "model.safetensors", tensors)
    model = read_model(plain, case)
    golden = _golden(model, prompts(case))
    for file in plain.iterdir():
        file.unlink()
    plain.rmdir()
    write_config(folder, {**config, "quantization_config": quantization} if quantization else config)
    write_safetensors(folder / "model.safetensors", stored)
    return golden


def _golden(model: Any, ids: tuple[np.ndarray, ...]) -> Golden:
    import torch

    with torch.no_grad():
        logits = tuple(model(input_ids=torch.from_numpy(one), use_cache=False).logits[0].numpy() for one in ids)
    return Golden(ids, logits)


def _stored(
    name: str, array: np.ndarray, quantization: Mapping[str, Any] | None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """How a published checkpoint stores a tensor, and the float32 numbers that this stands for."""
    module = name.removesuffix(".weight")
    if quantization is None or not _is_linear(name) or _ignored(module, quantization["ignore"]):
        half = array.astype(ml_dtypes.bfloat16)
        return {name: half}, half.astype(np.float32)
    if quantization["format"] == "pack-quantized":
        return _packed(module, array)
    return _float8(name, array)


def _is_linear(name: str) -> bool:
    return name.endswith(("_proj.weight", "gate.weight", "lm_head.weight")) or bool(
        re.search(r"visual.*\d.*weight$", name)
    )


def _ignored(module: str, patterns: list[str]) -> bool:
    return any(
        re.match(pattern.removeprefix("re:"), module) if pattern.startswith("re:") else pattern == module
        for pattern in patterns
    )


def _packed(module: str, array: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Symmetric 4-bit codes of groups of 32 along the input, eight in a word of 32 bits, the lowest first."""
    out, width = array.shape
    groups = array.reshape(out, width // 32, 32)
    scale = (np.abs(groups).max(-1) / 7.5).astype(ml_dtypes.bfloat16)
    codes = np.clip(np.round(groups / scale.astype(np.float32)[..., None]), -8, 7).astype(np.int64)
    nibbles = (codes.reshape(out, width // 8, 8) + 8).astype(np.uint32)
    words = (nibbles << np.arange(0, 32, 4, dtype=np.uint32)).sum(-1).astype(np.uint32).view(np.int32)
    pieces = {
        f"{module}.weight_packed": words,
        f"{module}.weight_scale": scale,
        f"{module}.weight_shape": np.array([out, width], np.int64),
    }
    meant = codes.astype(np.float32) * scale.astype(np.float32)[..., None]
    return pieces, meant.reshape(out, width)


def _float8(name: str, array: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Eight-bit floats with one scale for each row."""
    scale = (np.abs(array).max(-1, keepdims=True) / 448).astype(ml_dtypes.bfloat16)
    codes = (array / scale.astype(np.float32)).astype(ml_dtypes.float8_e4m3fn)
    return {name: codes, f"{name}_scale": scale}, codes.astype(np.float32) * scale.astype(np.float32)


# ---- headers alone ----


def write_headers(folder: Path, name: str, shards: int = 1) -> None:
    """Write the full-size checkpoint of a system with headers and no data: its files are holes of the right length."""
    config = full_config(name)
    write_config(folder, config)
    named = list(full_tensors(config))
    weight_map = {}
    for index in range(shards):
        file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        part = named[index::shards]
        header: dict[str, Any] = {}
        offset = 0
        for key, dtype, shape in part:
            end = offset + int(np.prod(shape)) * _BYTES[dtype]
            header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
            weight_map[key] = file
            offset = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + offset)
    index_file = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_file))


_BYTES = {"BF16": 2, "F32": 4, "I32": 4, "I64": 8, "F8_E4M3": 1}
Header = tuple[str, str, tuple[int, ...]]


def full_tensors(config: Mapping[str, Any]) -> Iterator[Header]:
    """Name, element type and shape of every tensor of the language model of a full-size checkpoint."""
    text = {**config, **config.get("text_config", {})}
    wrapped = {
        "glm4v": "model.language_model.",
        "glm4v_moe": "model.language_model.",
        "glmasr": "language_model.model.",
    }
    prefix = wrapped.get(config["model_type"], "model.")
    head = "language_model.lm_head" if config["model_type"] == "glmasr" else "lm_head"
    quantization = config.get("quantization_config")
    for name, shape in _plain_tensors(config["model_type"], text, prefix, head):
        module = name.removesuffix(".weight")
        if quantization is None or not _is_linear(name) or _ignored(module, quantization["ignore"]):
            yield name, "BF16", shape
        elif quantization["format"] == "pack-quantized":
            out, width = shape
            yield f"{name}_packed", "I32", (out, width // 8)
            yield f"{name}_scale", "BF16", (out, width // 32)
            yield f"{name}_shape", "I64", (2,)
        else:
            yield name, "F8_E4M3", shape
            yield f"{name}_scale", "BF16", (shape[0], 1)


def _plain_tensors(kind: str, c: Mapping[str, Any], prefix: str, head: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden = c["hidden_size"]
    yield f"{prefix}embed_tokens.weight", (c["vocab_size"], hidden)
    for index in range(c["num_hidden_layers"]):
        at = f"{prefix}layers.{index}."
        yield f"{at}input_layernorm.weight", (hidden,)
        yield f"{at}post_attention_layernorm.weight", (hidden,)
        if kind == "glm4v":
            yield f"{at}post_self_attn_layernorm.weight", (hidden,)
            yield f"{at}post_mlp_layernorm.weight", (hidden,)
        yield from _latent(c, f"{at}self_attn.") if "kv_lora_rank" in c else _attention(kind, c, f"{at}self_attn.")
        if "n_routed_experts" in c and index >= c["first_k_dense_replace"]:
            yield from _experts(c, f"{at}mlp.")
        elif kind == "glm4v":
            yield f"{at}mlp.gate_up_proj.weight", (2 * c["intermediate_size"], hidden)
            yield f"{at}mlp.down_proj.weight", (hidden, c["intermediate_size"])
        else:
            yield from _glu(f"{at}mlp.", hidden, c["intermediate_size"])
    yield f"{prefix}norm.weight", (hidden,)
    if not c.get("tie_word_embeddings", False):
        yield f"{head}.weight", (c["vocab_size"], hidden)


def _glu(at: str, hidden: int, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{at}gate_proj.weight", (inner, hidden)
    yield f"{at}up_proj.weight", (inner, hidden)
    yield f"{at}down_proj.weight", (hidden, inner)


def _experts(c: Mapping[str, Any], at: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner, count = c["hidden_size"], c["moe_intermediate_size"], c["n_routed_experts"]
    yield f"{at}gate.weight", (count, hidden)
    yield f"{at}gate.e_score_correction_bias", (count,)
    for expert in range(count):
        yield from _glu(f"{at}experts.{expert}.", hidden, inner)
    yield from _glu(f"{at}shared_experts.", hidden, inner * c["n_shared_experts"])


def _latent(c: Mapping[str, Any], at: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, heads, rank = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"]
    nope, rope, value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    yield f"{at}q_a_proj.weight", (c["q_lora_rank"], hidden)
    yield f"{at}q_a_layernorm.weight", (c["q_lora_rank"],)
    yield f"{at}q_b_proj.weight", (heads * (nope + rope), c["q_lora_rank"])
    yield f"{at}kv_a_proj_with_mqa.weight", (rank + rope, hidden)
    yield f"{at}kv_a_layernorm.weight", (rank,)
    yield f"{at}kv_b_proj.weight", (heads * (nope + value), rank)
    yield f"{at}o_proj.weight", (hidden, heads * value)


def _attention(kind: str, c: Mapping[str, Any], at: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, heads, kv_heads = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
    width = c.get("head_dim") or hidden // heads
    biased = kind == "qwen2" or c.get("attention_bias", False)
    for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
        yield f"{at}{name}_proj.weight", (count * width, hidden)
        if biased:
            yield f"{at}{name}_proj.bias", (count * width,)
    yield f"{at}o_proj.weight", (hidden, heads * width)
    if kind == "hunyuan_vl":
        yield f"{at}query_layernorm.weight", (width,)
        yield f"{at}key_layernorm.weight", (width,)
