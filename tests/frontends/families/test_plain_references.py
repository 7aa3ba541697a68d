"""The references in `tests.support.families.plain` against models of `transformers` that compute the same.

Nobody publishes an implementation of these families that runs here, but each of them equals a known one once its
tensors are put in another order or its multipliers are one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.families.hot import hot
from tests.support.families.plain import plain_logits, plain_shapes

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "rms_norm_eps": 0.01,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "pad_token_id": None,
}
Named = dict[str, Any]


def internlm2_as_llama(w: Named) -> Named:
    """Groups of two query heads, a key head and a value head, each 16 wide, taken apart."""
    renamed = {
        "model.tok_embeddings.weight": "model.embed_tokens.weight",
        "model.norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    found = {new: w[old] for old, new in renamed.items()}
    for index in range(2):
        old, new = f"model.layers.{index}.", f"model.layers.{index}."
        groups = w[f"{old}attention.wqkv.weight"].reshape(2, 4, 16, 64)
        found[f"{new}self_attn.q_proj.weight"] = groups[:, :2].reshape(64, 64)
        found[f"{new}self_attn.k_proj.weight"] = groups[:, 2].reshape(32, 64)
        found[f"{new}self_attn.v_proj.weight"] = groups[:, 3].reshape(32, 64)
        found[f"{new}self_attn.o_proj.weight"] = w[f"{old}attention.wo.weight"]
        for theirs, ours in (("w1", "gate"), ("w3", "up"), ("w2", "down")):
            found[f"{new}mlp.{ours}_proj.weight"] = w[f"{old}feed_forward.{theirs}.weight"]
        found[f"{new}input_layernorm.weight"] = w[f"{old}attention_norm.weight"]
        found[f"{new}post_attention_layernorm.weight"] = w[f"{old}ffn_norm.weight"]
    return found


def baichuan_as_llama(w: Named) -> Named:
    """One tensor of queries, keys and values taken apart."""
    found = {name: array for name, array in w.items() if "W_pack" not in name}
    for index in range(2):
        at = f"model.layers.{index}.self_attn."
        for name, rows in zip("qkv", w[f"{at}W_pack.weight"].split(64), strict=True):
            found[f"{at}{name}_proj.weight"] = rows
    return found


def chatglm_as_glm(w: Named) -> Named:
    """The same rope and the same fused tensors of the MLP under other names."""
    at = "transformer.encoder."
    found = {
        "model.embed_tokens.weight": w["transformer.embedding.word_embeddings.weight"],
        "model.norm.weight": w[f"{at}final_layernorm.weight"],
        "lm_head.weight": w["transformer.output_layer.weight"],
    }
    for index in range(2):
        old, new = f"{at}layers.{index}.", f"model.layers.{index}."
        for kind in ("weight", "bias"):
            rows = w[f"{old}self_attention.query_key_value.{kind}"].split([64, 32, 32])
            for name, part in zip("qkv", rows, strict=True):
                found[f"{new}self_attn.{name}_proj.{kind}"] = part
        found[f"{new}self_attn.o_proj.weight"] = w[f"{old}self_attention.dense.weight"]
        found[f"{new}mlp.gate_up_proj.weight"] = w[f"{old}mlp.dense_h_to_4h.weight"]
        found[f"{new}mlp.down_proj.weight"] = w[f"{old}mlp.dense_4h_to_h.weight"]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{new}{norm}.weight"] = w[f"{old}{norm}.weight"]
    return found


DYNAMIC = {"type": "dynamic", "factor": 2.0}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
    "original_max_position_embeddings": 8,
}
CHATGLM = {
    "num_layers": 2,
    "padded_vocab_size": 96,
    "hidden_size": 64,
    "ffn_hidden_size": 80,
    "kv_channels": 16,
    "num_attention_heads": 4,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "layernorm_epsilon": 0.01,
    "add_qkv_bias": True,
    "rope_ratio": 3,
}
MINICPM = {**SIZES, "scale_emb": 3.0, "scale_depth": 1.4, "dim_model_base": 32}
GRANITE = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 1.4 / 2**0.5,
    "logits_scaling": 2.0,
    "attention_multiplier": 0.25,
}
CASES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], Any]] = {
    "internlm2": ("internlm2", {**SIZES, "bias": False}, "llama", SIZES, internlm2_as_llama),
    "internlm2 beyond its trained length": (
        "internlm2",
        {**SIZES, "bias": False, "rope_scaling": DYNAMIC},
        "llama",
        {**SIZES, "rope_scaling": DYNAMIC},
        internlm2_as_llama,
    ),
    "baichuan": (
        "baichuan",
        {**SIZES, "num_key_value_heads": 4},
        "llama",
        {**SIZES, "num_key_value_heads": 4},
        baichuan_as_llama,
    ),
    "chatglm": (
        "chatglm",
        CHATGLM,
        "glm",
        {**SIZES, "head_dim": 16, "attention_bias": True, "rope_theta": 30000.0, "partial_rotary_factor": 0.5},
        chatglm_as_glm,
    ),
    "minicpm": ("minicpm", MINICPM, "granite", {**SIZES, **GRANITE}, dict),
    "minicpm with a rope for long texts": (
        "minicpm",
        {**MINICPM, "scale_emb": 1.0, "scale_depth": 2**0.5, "dim_model_base": 64, "rope_scaling": LONGROPE},
        "llama",
        {**SIZES, "rope_scaling": LONGROPE},
        dict,
    ),
}


@pytest.mark.parametrize("title", CASES)
def test_equals_a_known_model(title: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, config, known, known_config, rearranged = CASES[title]
    weights = {name: torch.from_numpy(hot(name, shape)) for name, shape in plain_shapes(kind, config).items()}
    settings = AutoConfig.for_model(known, **known_config)
    model = AutoModelForCausalLM.from_config(settings, attn_implementation="eager").eval()
    model.load_state_dict(rearranged(weights), strict=True)
    for length in (7, 40):
        ids = torch.from_numpy(np.random.default_rng(length).integers(0, 96, length))
        with torch.no_grad():
            expected = model(ids[None], use_cache=False).logits[0].numpy()
        found = plain_logits(kind, config, weights, ids).numpy()
        assert np.abs(expected).max() > 5
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
