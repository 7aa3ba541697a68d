"""Decoders that `transformers` has no code for, in a few lines of torch each, as their publishers describe them.

One function for each model type gives the shapes of its tensors, another computes logits from them. Nothing here is
shared with the compiler, and families share only norms, ropes and attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

Shapes = dict[str, tuple[int, ...]]
Weights = Mapping[str, Tensor]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square norm over the last axis."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def half_rope(x: Tensor, angles: Tensor, factor: float = 1.0) -> Tensor:
    """Turn [heads, seq, n]: element i and i + n/2 are one pair. Angles are [seq, n/2]."""
    cos, sin = angles.cos() * factor, angles.sin() * factor
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def pair_rope(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the first 2n elements of [heads, seq, d]: neighbours are one pair. Angles are [seq, n]."""
    width = 2 * angles.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    cos, sin = angles.cos(), angles.sin()
    even, odd = turned[..., 0::2], turned[..., 1::2]
    pairs = torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1)
    return torch.cat([pairs.flatten(-2), rest], -1)


def angles_of(frequencies: Tensor, length: int) -> Tensor:
    """Angles [seq, n] of positions from 0."""
    return torch.outer(torch.arange(length, dtype=torch.float32), frequencies)


def frequencies_of(base: float, width: int) -> Tensor:
    """The usual frequencies of a rotated width."""
    return 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float32) / width)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Causal attention of [heads, seq, d]; key heads are shared by runs of query heads. Returns [seq, heads * d]."""
    share = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(share, 0), v.repeat_interleave(share, 0)
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    if bias is not None:
        scores = scores + bias
    length = q.shape[1]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, float("-inf")).softmax(-1)
    return (weights @ v).transpose(0, 1).reshape(length, -1)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[seq, heads * d] as [heads, seq, d]."""
    return x.reshape(x.shape[0], heads, -1).transpose(0, 1)


DEFAULTS: dict[str, dict[str, Any]] = {
    "internlm2": {"bias": True, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 2048},
    "baichuan": {"rms_norm_eps": 1e-6},
    "minicpm": {
        "dim_model_base": 1,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "scale_depth": 1,
        "scale_emb": 1,
        "tie_word_embeddings": True,
    },
    "chatglm": {
        "add_bias_linear": False,
        "add_qkv_bias": False,
        "layernorm_epsilon": 1e-5,
        "multi_query_attention": False,
        "multi_query_group_num": 1,
        "rope_ratio": 1,
    },
}
"""What the publishers' configuration classes give to absent keys."""


def _sizes(config: Mapping[str, Any]) -> tuple[int, int, int, int, int, int]:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    return config["vocab_size"], hidden, config["intermediate_size"], heads, kv_heads, hidden // heads


# ---- InternLM2: queries of a group of heads, their key and their value stand together ----


def internlm2_shapes(config: Mapping[str, Any]) -> Shapes:
    """Tensors of InternLM2."""
    vocab, hidden, inner, heads, kv_heads, width = _sizes(config)
    shapes: Shapes = {"model.tok_embeddings.weight": (vocab, hidden)}
    for index in range(config["num_hidden_layers"]):
        at = f"model.layers.{index}."
        shapes[f"{at}attention.wqkv.weight"] = ((heads + 2 * kv_heads) * width, hidden)
        shapes[f"{at}attention.wo.weight"] = (hidden, hidden)
        if config["bias"]:
            shapes[f"{at}attention.wqkv.bias"] = ((heads + 2 * kv_heads) * width,)
            shapes[f"{at}attention.wo.bias"] = (hidden,)
        shapes[f"{at}feed_forward.w1.weight"] = shapes[f"{at}feed_forward.w3.weight"] = (inner, hidden)
        shapes[f"{at}feed_forward.w2.weight"] = (hidden, inner)
        shapes[f"{at}attention_norm.weight"] = shapes[f"{at}ffn_norm.weight"] = (hidden,)
    return {**shapes, "model.norm.weight": (hidden,), "output.weight": (vocab, hidden)}


def internlm2_logits(config: Mapping[str, Any], w: Weights, ids: Tensor) -> Tensor:
    """Logits [seq, vocab] of InternLM2."""
    _, _, _, heads, kv_heads, width = _sizes(config)
    eps, length, base = config["rms_norm_eps"], len(ids), config["rope_theta"]
    scaling = config.get("rope_scaling") or {}
    trained = config["max_position_embeddings"]
    if scaling.get("type") == "dynamic" and length > trained:
        stretch = scaling["factor"] * length / trained - (scaling["factor"] - 1)
        base = base * stretch ** (width / (width - 2))
    angles = angles_of(frequencies_of(base, width), length)
    x = w["model.tok_embeddings.weight"][ids]
    for index in range(config["num_hidden_layers"]):
        at = f"model.layers.{index}."
        h = rms_norm(x, w[f"{at}attention_norm.weight"], eps)
        both = linear(h, w[f"{at}attention.wqkv.weight"], w.get(f"{at}attention.wqkv.bias"))
        groups = both.reshape(length, kv_heads, heads // kv_heads + 2, width)
        q = split_heads(groups[:, :, :-2].reshape(length, -1), heads)
        k, v = groups[:, :, -2].transpose(0, 1), groups[:, :, -1].transpose(0, 1)
        y = attend(half_rope(q, angles), half_rope(k, angles), v)
        x = x + linear(y, w[f"{at}attention.wo.weight"], w.get(f"{at}attention.wo.bias"))
        h = rms_norm(x, w[f"{at}ffn_norm.weight"], eps)
        gate, up = (linear(h, w[f"{at}feed_forward.{name}.weight"]) for name in ("w1", "w3"))
        x = x + linear(silu(gate) * up, w[f"{at}feed_forward.w2.weight"])
    return linear(rms_norm(x, w["model.norm.weight"], eps), w["output.weight"])


# ---- Baichuan: one tensor of queries, keys and values; the 13B model adds a slope instead of turning ----


def baichuan_shapes(config: Mapping[str, Any]) -> Shapes:
    """Tensors of Baichuan."""
    vocab, hidden, inner, _, _, _ = _sizes(config)
    shapes: Shapes = {"model.embed_tokens.weight": (vocab, hidden)}
    for index in range(config["num_hidden_layers"]):
        at = f"model.layers.{index}."
        shapes[f"{at}self_attn.W_pack.weight"] = (3 * hidden, hidden)
        shapes[f"{at}self_attn.o_proj.weight"] = (hidden, hidden)
        shapes[f"{at}mlp.gate_proj.weight"] = shapes[f"{at}mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{at}mlp.down_proj.weight"] = (hidden, inner)
        shapes[f"{at}input_layernorm.weight"] = shapes[f"{at}post_attention_layernorm.weight"] = (hidden,)
    return {**shapes, "model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}


def baichuan_logits(config: Mapping[str, Any], w: Weights, ids: Tensor) -> Tensor:
    """Logits [seq, vocab] of Baichuan; a configuration without trained positions is the one with slopes, and the second
    generation, known by its vocabulary of 125,696, has rows of length one in its head."""
    _, hidden, _, heads, _, width = _sizes(config)
    eps, length = config["rms_norm_eps"], len(ids)
    sloped = "max_position_embeddings" not in config
    angles = angles_of(frequencies_of(10000.0, width), length)
    steps = torch.arange(length)
    slopes = 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)
    bias = slopes[:, None, None] * (steps[None] - steps[:, None]) if sloped else None
    x = w["model.embed_tokens.weight"][ids]
    for index in range(config["num_hidden_layers"]):
        at = f"model.layers.{index}."
        h = rms_norm(x, w[f"{at}input_layernorm.weight"], eps)
        both = linear(h, w[f"{at}self_attn.W_pack.weight"])
        q, k, v = (split_heads(part, heads) for part in both.split(hidden, -1))
        if not sloped:
            q, k = half_rope(q, angles), half_rope(k, angles)
        x = x + linear(attend(q, k, v, bias), w[f"{at}self_attn.o_proj.weight"])
        h = rms_norm(x, w[f"{at}post_attention_layernorm.weight"], eps)
        gate, up = (linear(h, w[f"{at}mlp.{name}_proj.weight"]) for name in ("gate", "up"))
        x = x + linear(silu(gate) * up, w[f"{at}mlp.down_proj.weight"])
    head = w["lm_head.weight"]
    if config["vocab_size"] == 125696:
        head = head / head.norm(dim=-1, keepdim=True)
    return linear(rms_norm(x, w["model.norm.weight"], eps), head)


# ---- ChatGLM2, ChatGLM3, GLM-4-9b: neighbours are turned, in the first half of a head ----


def chatglm_shapes(config: Mapping[str, Any]) -> Shapes:
    """Tensors of ChatGLM since its second generation."""
    vocab, hidden, inner = config["padded_vocab_size"], config["hidden_size"], config["ffn_hidden_size"]
    q = config["num_attention_heads"] * config["kv_channels"]
    k = _groups(config) * config["kv_channels"]
    shapes: Shapes = {"transformer.embedding.word_embeddings.weight": (vocab, hidden)}
    shapes["transformer.rotary_pos_emb.inv_freq"] = (config["kv_channels"] // 4,)
    for index in range(config["num_layers"]):
        at = f"transformer.encoder.layers.{index}."
        shapes[f"{at}input_layernorm.weight"] = shapes[f"{at}post_attention_layernorm.weight"] = (hidden,)
        shapes[f"{at}self_attention.query_key_value.weight"] = (q + 2 * k, hidden)
        if config["add_qkv_bias"] or config["add_bias_linear"]:
            shapes[f"{at}self_attention.query_key_value.bias"] = (q + 2 * k,)
        linears = {"self_attention.dense": (hidden, q), "mlp.dense_h_to_4h": (2 * inner, hidden)}
        for name, (rows, columns) in {**linears, "mlp.dense_4h_to_h": (hidden, inner)}.items():
            shapes[f"{at}{name}.weight"] = (rows, columns)
            if config["add_bias_linear"]:
                shapes[f"{at}{name}.bias"] = (rows,)
    shapes["transformer.encoder.final_layernorm.weight"] = (hidden,)
    return {**shapes, "transformer.output_layer.weight": (vocab, hidden)}


def _linear(x: Tensor, w: Weights, name: str) -> Tensor:
    return linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def _groups(config: Mapping[str, Any]) -> int:
    groups: int = config["multi_query_group_num" if config["multi_query_attention"] else "num_attention_heads"]
    return groups


def chatglm_logits(config: Mapping[str, Any], w: Weights, ids: Tensor) -> Tensor:
    """Logits [seq, vocab] of ChatGLM since its second generation."""
    heads, groups, width = config["num_attention_heads"], _groups(config), config["kv_channels"]
    eps, length = config["layernorm_epsilon"], len(ids)
    angles = angles_of(frequencies_of(10000.0 * config["rope_ratio"], width // 2), length)
    x = w["transformer.embedding.word_embeddings.weight"][ids]
    for index in range(config["num_layers"]):
        at = f"transformer.encoder.layers.{index}."
        h = rms_norm(x, w[f"{at}input_layernorm.weight"], eps)
        both = _linear(h, w, f"{at}self_attention.query_key_value")
        q, k, v = both.split([heads * width, groups * width, groups * width], -1)
        q, k, v = split_heads(q, heads), split_heads(k, groups), split_heads(v, groups)
        y = attend(pair_rope(q, angles), pair_rope(k, angles), v)
        x = x + _linear(y, w, f"{at}self_attention.dense")
        h = rms_norm(x, w[f"{at}post_attention_layernorm.weight"], eps)
        gate, up = _linear(h, w, f"{at}mlp.dense_h_to_4h").chunk(2, -1)
        x = x + _linear(silu(gate) * up, w, f"{at}mlp.dense_4h_to_h")
    return linear(
        rms_norm(x, w["transformer.encoder.final_layernorm.weight"], eps), w["transformer.output_layer.weight"]
    )


# ---- MiniCPM: the names of Llama, and three multipliers ----


def minicpm_shapes(config: Mapping[str, Any]) -> Shapes:
    """Tensors of MiniCPM."""
    vocab, hidden, inner, heads, kv_heads, width = _sizes(config)
    shapes: Shapes = {"model.embed_tokens.weight": (vocab, hidden)}
    for index in range(config["num_hidden_layers"]):
        at = f"model.layers.{index}."
        for name, rows in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            shapes[f"{at}self_attn.{name}_proj.weight"] = (rows * width, hidden)
        shapes[f"{at}self_attn.o_proj.weight"] = (hidden, hidden)
        shapes[f"{at}mlp.gate_proj.weight"] = shapes[f"{at}mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{at}mlp.down_proj.weight"] = (hidden, inner)
        shapes[f"{at}input_layernorm.weight"] = shapes[f"{at}post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    return shapes if config["tie_word_embeddings"] else {**shapes, "lm_head.weight": (vocab, hidden)}


def minicpm_logits(config: Mapping[str, Any], w: Weights, ids: Tensor) -> Tensor:
    """Logits [seq, vocab] of MiniCPM, its fourth generation with frequencies for long texts."""
    _, hidden, _, heads, kv_heads, width = _sizes(config)
    eps, length = config["rms_norm_eps"], len(ids)
    frequencies, factor = frequencies_of(config["rope_theta"], width), 1.0
    if scaling := config.get("rope_scaling"):
        trained = scaling["original_max_position_embeddings"]
        factors = scaling["long_factor" if length > trained else "short_factor"]
        frequencies = frequencies / torch.tensor(factors)
        stretch = config["max_position_embeddings"] / trained
        factor = math.sqrt(1 + math.log(stretch) / math.log(trained))
    angles = angles_of(frequencies, length)
    branch = config["scale_depth"] / math.sqrt(config["num_hidden_layers"])
    x = w["model.embed_tokens.weight"][ids] * config["scale_emb"]
    for index in range(config["num_hidden_layers"]):
        at = f"model.layers.{index}."
        h = rms_norm(x, w[f"{at}input_layernorm.weight"], eps)
        q, k, v = (linear(h, w[f"{at}self_attn.{name}_proj.weight"]) for name in "qkv")
        q, k = half_rope(split_heads(q, heads), angles, factor), half_rope(split_heads(k, kv_heads), angles, factor)
        y = attend(q, k, split_heads(v, kv_heads))
        x = x + branch * linear(y, w[f"{at}self_attn.o_proj.weight"])
        h = rms_norm(x, w[f"{at}post_attention_layernorm.weight"], eps)
        gate, up = (linear(h, w[f"{at}mlp.{name}_proj.weight"]) for name in ("gate", "up"))
        x = x + branch * linear(silu(gate) * up, w[f"{at}mlp.down_proj.weight"])
    x = rms_norm(x, w["model.norm.weight"], eps) / (hidden / config["dim_model_base"])
    return linear(x, w.get("lm_head.weight", w["model.embed_tokens.weight"]))


_FAMILIES: dict[str, tuple[Callable[..., Shapes], Callable[..., Tensor]]] = {
    "internlm2": (internlm2_shapes, internlm2_logits),
    "baichuan": (baichuan_shapes, baichuan_logits),
    "chatglm": (chatglm_shapes, chatglm_logits),
    "minicpm": (minicpm_shapes, minicpm_logits),
}


def plain_shapes(model_type: str, config: Mapping[str, Any]) -> Shapes:
    """Names and shapes of the tensors of a model."""
    return _FAMILIES[model_type][0]({**DEFAULTS[model_type], **config})


def plain_logits(model_type: str, config: Mapping[str, Any], weights: Weights, ids: Tensor) -> Tensor:
    """Logits float32[seq, vocab] of a model for ids int64[seq]."""
    return _FAMILIES[model_type][1]({**DEFAULTS[model_type], **config}, weights, ids)
