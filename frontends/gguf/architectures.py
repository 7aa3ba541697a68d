"""Architectures of GGUF files as rows: the configuration that a Hugging Face checkpoint of the model has, and its names.

``general.architecture`` chooses the row. What the file does not store because llama.cpp has it in its code is in the row:
activations, which layers have a window, scales. A new architecture is a new row, and a case of
``tests/frontends/gguf/test_architectures.py`` that compares with another reader of such files.

Sources: the conversion script and the graph builders of https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from frontends.gguf.facts import Facts
from frontends.gguf.naming import (
    DENSE,
    TOP,
    Joined,
    Names,
    To,
    as_row,
    from_neighbours,
    gate_and_up,
    gate_between_up,
    grouped,
    keys_and_values,
    minus_one,
    stacked_turned,
    turned_over,
)
from frontends.gguf.specs import (
    Spec,
    every,
    fixed,
    flag,
    head_dim,
    heads,
    kv_heads,
    layers,
    number,
    optional,
    partly_turned,
    rows,
    scaling,
    size,
    stored,
    theta,
    tied,
    turned,
    window,
)
from ir.base.diag import LadingError
from ir.tensor.rearranged import row_concat


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Attributes:
        name: ``general.architecture``.
        model_type: that of the checkpoint, or a function that tells.
        config: keys of ``config.json``.
        top, layer: names of tensors by stem.
        base: what stands before the number of a layer in the checkpoint.
        joined: tensors that the file has in parts.
    """

    name: str
    model_type: str | Spec
    config: Mapping[str, Spec]
    top: Names = field(default_factory=lambda: TOP)
    layer: Names = field(default_factory=lambda: DENSE)
    base: str = "model.layers"
    joined: tuple[Joined, ...] = ()


SIZES: Mapping[str, Spec] = {
    "vocab_size": rows("token_embd.weight"),
    "hidden_size": size("embedding_length"),
    "intermediate_size": size("feed_forward_length"),
    "num_hidden_layers": layers,
    "num_attention_heads": heads,
    "num_key_value_heads": kv_heads,
    "max_position_embeddings": size("context_length"),
    "tie_word_embeddings": tied,
    "rope_theta": theta,
    "rope_scaling": scaling,
}

RMS: Mapping[str, Spec] = {
    **SIZES,
    "rms_norm_eps": number("attention.layer_norm_rms_epsilon"),
    "hidden_act": fixed("silu"),
}

LAYER_NORM: Mapping[str, Spec] = {**SIZES, "layer_norm_eps": number("attention.layer_norm_epsilon")}

LLAMA: Mapping[str, Spec] = {
    **RMS,
    "head_dim": head_dim,
    "attention_bias": stored("attn_q.bias"),
    "mlp_bias": stored("ffn_up.bias"),
}

NEIGHBOURS: Names = {
    **DENSE,
    "attn_q": To("self_attn.q_proj", from_neighbours()),
    "attn_k": To("self_attn.k_proj", from_neighbours(kv=True)),
}
"""Of families whose rope llama.cpp computes for neighbours."""

QWEN_EXPERTS: Names = {
    **DENSE,
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{e}.gate_proj",
    "ffn_up_exps": "mlp.experts.{e}.up_proj",
    "ffn_down_exps": "mlp.experts.{e}.down_proj",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "ffn_gate_inp_shexp": To("mlp.shared_expert_gate", as_row),
}

QWEN_ROUTER: Mapping[str, Spec] = {
    "num_experts": size("expert_count"),
    "num_experts_per_tok": size("expert_used_count"),
    "moe_intermediate_size": size("expert_feed_forward_length"),
    "decoder_sparse_step": fixed(1),
    "mlp_only_layers": fixed([]),
}


def _qwen(name: str, model_type: str, more: Mapping[str, Spec], layer: Names = DENSE) -> Architecture:
    return Architecture(name, model_type, {**RMS, "use_sliding_window": fixed(False), **more}, layer=layer)


# ---- llama and mixtral ----


def _is_mixtral(facts: Facts) -> bool:
    return bool(facts.get("expert_count"))


def _if_mixtral(spec: Spec, otherwise: Spec) -> Spec:
    return lambda facts: spec(facts) if _is_mixtral(facts) else otherwise(facts)


_MIXTRAL: Names = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{e}.w1",
    "ffn_down_exps": "block_sparse_moe.experts.{e}.w2",
    "ffn_up_exps": "block_sparse_moe.experts.{e}.w3",
}

_LLAMA_ROW = Architecture(
    "llama",
    lambda facts: "mixtral" if _is_mixtral(facts) else "llama",
    {
        **RMS,
        "head_dim": head_dim,
        "attention_bias": _if_mixtral(fixed(None), stored("attn_q.bias")),
        "mlp_bias": _if_mixtral(fixed(None), stored("ffn_up.bias")),
        "num_local_experts": _if_mixtral(size("expert_count"), fixed(None)),
        "num_experts_per_tok": _if_mixtral(size("expert_used_count"), fixed(None)),
    },
    layer={**NEIGHBOURS, **_MIXTRAL},
)


def _is_parallel(facts: Facts) -> bool:
    """Whether both branches of a layer read the same norm; what counts in llama.cpp is whether there is a second one."""
    facts.get("use_parallel_residual")
    return not facts.has("ffn_norm.weight")


# ---- gemma ----

_GEMMA_TOP: Names = {**TOP, "output_norm": To("model.norm", minus_one)}

_GEMMA_ACTIVATION: Mapping[str, Spec] = {
    "hidden_act": fixed("gelu_pytorch_tanh"),
    "hidden_activation": fixed("gelu_pytorch_tanh"),
    "head_dim": head_dim,
    "attention_bias": stored("attn_q.bias"),
}

_FOUR_NORMS: Names = {
    **DENSE,
    "attn_norm": To("input_layernorm", minus_one),
    "post_attention_norm": To("post_attention_layernorm", minus_one),
    "ffn_norm": To("pre_feedforward_layernorm", minus_one),
    "post_ffw_norm": To("post_feedforward_layernorm", minus_one),
    "attn_q_norm": To("self_attn.q_norm", minus_one),
    "attn_k_norm": To("self_attn.k_norm", minus_one),
}


def _query_scale(layers_of_largest: int) -> Spec:
    """``query_pre_attn_scalar``: the width of a head, of the largest model that of an equal share of the hidden size."""

    def spec(facts: Facts) -> int:
        largest = facts.layers == layers_of_largest
        return facts.size("embedding_length") // facts.heads if largest else facts.head_dim

    return spec


# ---- deepseek ----


def _is_sigmoid(facts: Facts) -> bool:
    return facts.get("expert_gating_func", 1) == 2


def _rope_width(facts: Facts) -> int:
    return facts.size("rope.dimension_count")


def _latent_key(facts: Facts) -> int:
    """Width of a key before it is compressed, of files of either layout."""
    return facts.size("attention.key_length_mla", facts.size("attention.key_length"))


def _latent_value(facts: Facts) -> int:
    return facts.size("attention.value_length_mla", facts.size("attention.value_length"))


def _latent_heads(facts: Facts) -> int:
    """Every head has keys of its own, whatever is stored: llama.cpp sees the one latent key as that of a single head."""
    facts.get("attention.head_count_kv")
    return facts.heads


_SHARED_ROUTER: Mapping[str, Spec] = {
    "first_k_dense_replace": lambda facts: int(facts.get("leading_dense_block_count", 0)),
    "moe_intermediate_size": size("expert_feed_forward_length"),
    "n_routed_experts": size("expert_count"),
    "num_experts_per_tok": size("expert_used_count"),
    "n_shared_experts": lambda facts: int(facts.get("expert_shared_count", 0)),
    "n_group": size("expert_group_count", 1),
    "topk_group": size("expert_group_used_count", 1),
    "routed_scaling_factor": number("expert_weights_scale", 1.0),
    "norm_topk_prob": flag("expert_weights_norm", False),
}

_DEEPSEEK: Mapping[str, Spec] = {
    **RMS,
    **_SHARED_ROUTER,
    "num_key_value_heads": _latent_heads,
    "attention_bias": fixed(False),
    "q_lora_rank": lambda facts: facts.get("attention.q_lora_rank") or None,
    "kv_lora_rank": size("attention.kv_lora_rank"),
    "qk_rope_head_dim": _rope_width,
    "qk_nope_head_dim": lambda facts: _latent_key(facts) - _rope_width(facts),
    "v_head_dim": _latent_value,
    "scoring_func": lambda facts: "sigmoid" if _is_sigmoid(facts) else "softmax",
    "topk_method": lambda facts: "noaux_tc" if _is_sigmoid(facts) else "greedy",
}

_SHARED_EXPERTS: Names = {
    **DENSE,
    "ffn_gate_inp": "mlp.gate",
    "exp_probs_b": To("mlp.gate.e_score_correction_bias", bare=True),
    "ffn_gate_exps": "mlp.experts.{e}.gate_proj",
    "ffn_up_exps": "mlp.experts.{e}.up_proj",
    "ffn_down_exps": "mlp.experts.{e}.down_proj",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}

_DEEPSEEK_LAYER: Names = {
    **_SHARED_EXPERTS,
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
}

# ---- gpt-oss ----


def _untruncated(facts: Facts) -> dict[str, Any] | None:
    """Yarn as gpt-oss was trained with: the ends of its ramp are not rounded to whole dimensions."""
    record = scaling(facts)
    return record if record is None or record["rope_type"] != "yarn" else {**record, "truncate": False}


# ---- models whose files are those of another family ----


def _no_alibi(facts: Facts) -> str:
    """Baichuan with a rope is a llama once its fused matrix is apart; the larger one has none, which no key says.

    Raises:
        LadingError: F585 it is the larger one.
    """
    if facts.layers == 40:
        message = "this is a larger Baichuan, whose attention is biased by distance (ALiBi) and has no rope"
        raise LadingError("F585", message, facts.where)
    return "llama"


def _base_width(facts: Facts) -> float:
    """Width that the logits of MiniCPM are scaled to; old files store no scale and mean 256."""
    return facts.size("embedding_length") / facts.number("logit_scale", facts.size("embedding_length") / 256)


def _is_sigmoid_gate(facts: Facts) -> bool:
    """What a router makes of its scores; None of another kind is known for these models."""
    if facts.get("expert_gating_func", 2) != 2:
        raise facts.bad("expert_gating_func", "2, the sigmoid")
    return True


# ---- the table ----

_GRANITE: Mapping[str, Spec] = {
    **RMS,
    "attention_bias": stored("attn_q.bias"),
    "attention_multiplier": number("attention.scale"),
    "embedding_multiplier": number("embedding_scale", 1.0),
    "residual_multiplier": number("residual_scale", 1.0),
    "logits_scaling": number("logit_scale", 1.0),
}

ROWS: tuple[Architecture, ...] = (
    _LLAMA_ROW,
    _qwen("qwen2", "qwen2", {}),
    _qwen("qwen3", "qwen3", {"head_dim": head_dim, "attention_bias": stored("attn_q.bias")}),
    _qwen(
        "qwen2moe",
        "qwen2_moe",
        {
            **QWEN_ROUTER,
            "shared_expert_intermediate_size": size("expert_shared_feed_forward_length"),
            "norm_topk_prob": fixed(False),
        },
        QWEN_EXPERTS,
    ),
    _qwen(
        "qwen3moe",
        "qwen3_moe",
        {
            **QWEN_ROUTER,
            "head_dim": head_dim,
            "attention_bias": stored("attn_q.bias"),
            "norm_topk_prob": fixed(True),
        },
        QWEN_EXPERTS,
    ),
    Architecture(
        "phi3",
        "phi3",
        {
            **RMS,
            "sliding_window": window(),
            "original_max_position_embeddings": size("rope.scaling.original_context_length"),
            "partial_rotary_factor": partly_turned,
        },
        layer={**DENSE, "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
    ),
    Architecture(
        "gemma",
        "gemma",
        {**RMS, **_GEMMA_ACTIVATION},
        top=_GEMMA_TOP,
        layer={
            **DENSE,
            "attn_norm": To("input_layernorm", minus_one),
            "ffn_norm": To("post_attention_layernorm", minus_one),
        },
    ),
    Architecture(
        "gemma2",
        "gemma2",
        {
            **RMS,
            **_GEMMA_ACTIVATION,
            "attn_logit_softcapping": optional("attn_logit_softcapping"),
            "final_logit_softcapping": optional("final_logit_softcapping"),
            "sliding_window": size("attention.sliding_window", 4096),
            "query_pre_attn_scalar": _query_scale(46),
            "layer_types": every(2),
        },
        top=_GEMMA_TOP,
        layer=_FOUR_NORMS,
    ),
    Architecture(
        "gemma3",
        "gemma3_text",
        {
            **RMS,
            **_GEMMA_ACTIVATION,
            "rope_theta": number("rope.freq_base", 1e6),
            "rope_local_base_freq": number("rope.freq_base_swa", 1e4),
            "final_logit_softcapping": optional("final_logit_softcapping"),
            "sliding_window": size("attention.sliding_window"),
            "query_pre_attn_scalar": _query_scale(62),
            "layer_types": every(6),
        },
        top=_GEMMA_TOP,
        layer=_FOUR_NORMS,
    ),
    Architecture(
        "granite",
        "granite",
        {**_GRANITE, "mlp_bias": stored("ffn_up.bias")},
        layer=NEIGHBOURS,
    ),
    Architecture(
        "granitemoe",
        lambda facts: "granitemoeshared" if facts.get("expert_shared_feed_forward_length") else "granitemoe",
        {
            **_GRANITE,
            "num_local_experts": size("expert_count"),
            "num_experts_per_tok": size("expert_used_count"),
            "shared_intermediate_size": lambda facts: facts.get("expert_shared_feed_forward_length") or None,
        },
        layer={
            **NEIGHBOURS,
            "ffn_gate_inp": "block_sparse_moe.router.layer",
            "ffn_down_exps": "block_sparse_moe.output_linear",
            "ffn_down_shexp": "shared_mlp.output_linear",
        },
        joined=(
            Joined(("ffn_gate_exps.weight", "ffn_up_exps.weight"), "block_sparse_moe.input_linear.weight", gate_and_up),
            Joined(
                ("ffn_gate_shexp.weight", "ffn_up_shexp.weight"),
                "shared_mlp.input_linear.weight",
                lambda facts, parts: row_concat(parts),
            ),
        ),
    ),
    Architecture(
        "starcoder2",
        "starcoder2",
        {
            **SIZES,
            "norm_epsilon": number("attention.layer_norm_epsilon"),
            "hidden_act": fixed("gelu_pytorch_tanh"),
            "use_bias": stored("attn_q.bias"),
            "sliding_window": fixed(None),
        },
        layer={**DENSE, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
    ),
    Architecture(
        "stablelm",
        "stablelm",
        {
            **LAYER_NORM,
            "hidden_act": fixed("silu"),
            "partial_rotary_factor": turned,
            "use_parallel_residual": _is_parallel,
            "use_qkv_bias": stored("attn_q.bias"),
            "qk_layernorm": stored("attn_q_norm.weight"),
        },
        layer={
            **DENSE,
            "attn_q_norm": "self_attn.q_layernorm.norms.{e}",
            "attn_k_norm": "self_attn.k_layernorm.norms.{e}",
        },
    ),
    Architecture(
        "olmo2",
        "olmo2",
        {**RMS, "attention_bias": stored("attn_q.bias")},
        layer={
            **DENSE,
            "post_attention_norm": "post_attention_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
    ),
    Architecture(
        "glm4",
        "glm4",
        {**RMS, "head_dim": head_dim, "partial_rotary_factor": turned, "attention_bias": stored("attn_q.bias")},
        layer={
            **DENSE,
            "post_attention_norm": "post_self_attn_layernorm",
            "ffn_up": "mlp.gate_up_proj",
            "post_ffw_norm": "post_mlp_layernorm",
        },
    ),
    Architecture(
        "deepseek2",
        lambda facts: "deepseek_v3" if _is_sigmoid(facts) else "deepseek_v2",
        _DEEPSEEK,
        layer=_DEEPSEEK_LAYER,
        joined=(Joined(("attn_k_b.weight", "attn_v_b.weight"), "self_attn.kv_b_proj.weight", keys_and_values),),
    ),
    Architecture(
        "command-r",
        "cohere",
        {
            **LAYER_NORM,
            "hidden_act": fixed("silu"),
            "logit_scale": number("logit_scale"),
            "use_qk_norm": stored("attn_q_norm.weight"),
            "attention_bias": stored("attn_q.bias"),
        },
    ),
    Architecture(
        "cohere2",
        "cohere2",
        {
            **LAYER_NORM,
            "hidden_act": fixed("silu"),
            "head_dim": head_dim,
            "logit_scale": number("logit_scale"),
            "sliding_window": size("attention.sliding_window"),
            "layer_types": every(4),
            "attention_bias": stored("attn_q.bias"),
        },
    ),
    Architecture(
        "smollm3",
        "smollm3",
        {
            **RMS,
            "use_sliding_window": fixed(False),
            "attention_bias": stored("attn_q.bias"),
            "mlp_bias": stored("ffn_up.bias"),
            "no_rope_layers": lambda facts: [int((index + 1) % 4 != 0) for index in range(facts.layers)],
        },
        layer=NEIGHBOURS,
    ),
    Architecture(
        "hunyuan-dense",
        "hunyuan_v1_dense",
        {**RMS, "head_dim": head_dim, "attention_bias": stored("attn_q.bias")},
        layer={**DENSE, "attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"},
    ),
    Architecture(
        "ernie4_5",
        "ernie4_5",
        {**RMS, "head_dim": head_dim, "use_bias": stored("attn_q.bias")},
    ),
    Architecture("internlm2", "llama", LLAMA, layer=NEIGHBOURS),
    Architecture("baichuan", _no_alibi, LLAMA, layer=NEIGHBOURS),
    Architecture(
        "arcee",
        "arcee",
        {**LLAMA, "hidden_act": fixed("relu2")},
        layer=NEIGHBOURS,
    ),
    Architecture(
        "minicpm",
        "minicpm",
        {
            **RMS,
            "attention_bias": stored("attn_q.bias"),
            "scale_emb": number("embedding_scale", 12.0),
            "scale_depth": lambda facts: facts.number("residual_scale", 1.4 / facts.layers**0.5) * facts.layers**0.5,
            "dim_model_base": _base_width,
        },
        layer=NEIGHBOURS,
    ),
    Architecture(
        "seed_oss",
        "seed_oss",
        {
            **RMS,
            "head_dim": head_dim,
            "attention_bias": stored("attn_q.bias"),
            "attention_out_bias": stored("attn_output.bias"),
            "mlp_bias": stored("ffn_up.bias"),
        },
        layer={**DENSE, "post_attention_norm": "post_attention_layernorm"},
    ),
    Architecture(
        "exaone4",
        "exaone4",
        {
            **RMS,
            "head_dim": head_dim,
            "sliding_window": window(),
            "layer_types": lambda facts: (every(4) if facts.get("attention.sliding_window") else every(1))(facts),
        },
        layer={
            **DENSE,
            "post_attention_norm": "post_attention_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
    ),
    Architecture(
        "nemotron",
        "nemotron",
        {
            **SIZES,
            "norm_eps": number("attention.layer_norm_epsilon"),
            "hidden_act": fixed("relu2"),
            "partial_rotary_factor": turned,
            "head_dim": head_dim,
            "attention_bias": stored("attn_q.bias"),
            "mlp_bias": stored("ffn_up.bias"),
        },
        top={**TOP, "output_norm": To("model.norm", minus_one, only=".weight")},
        layer={
            **DENSE,
            "attn_norm": To("input_layernorm", minus_one, only=".weight"),
            "ffn_norm": To("post_attention_layernorm", minus_one, only=".weight"),
        },
    ),
    Architecture(
        "phi2",
        "phi",
        {
            **LAYER_NORM,
            "hidden_act": fixed("gelu_new"),
            "partial_rotary_factor": turned,
            "qk_layernorm": fixed(False),
        },
        top={**TOP, "output_norm": "model.final_layernorm"},
        layer={**DENSE, "attn_output": "self_attn.dense", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"},
    ),
    Architecture(
        "olmoe",
        "olmoe",
        {
            **RMS,
            "attention_bias": stored("attn_q.bias"),
            "num_experts": size("expert_count"),
            "num_experts_per_tok": size("expert_used_count"),
            "norm_topk_prob": fixed(False),
        },
        layer=QWEN_EXPERTS,
    ),
    Architecture(
        "glm4moe",
        "glm4_moe",
        {
            **RMS,
            **_SHARED_ROUTER,
            "head_dim": head_dim,
            "partial_rotary_factor": turned,
            "attention_bias": stored("attn_q.bias"),
            "use_qk_norm": stored("attn_q_norm.weight"),
            "norm_topk_prob": lambda facts: _is_sigmoid_gate(facts) and facts.flag("expert_weights_norm", True),
        },
        layer={**_SHARED_EXPERTS, "post_attention_norm": "post_attention_layernorm"},
    ),
    Architecture(
        "gpt2",
        "gpt2",
        {
            "vocab_size": rows("token_embd.weight"),
            "n_embd": size("embedding_length"),
            "n_inner": size("feed_forward_length"),
            "n_layer": layers,
            "n_head": heads,
            "n_positions": size("context_length"),
            "layer_norm_epsilon": number("attention.layer_norm_epsilon"),
            "activation_function": fixed("gelu_new"),
            "tie_word_embeddings": tied,
        },
        top={
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        layer={
            "attn_norm": "ln_1",
            "attn_qkv": To("attn.c_attn", turned_over),
            "attn_output": To("attn.c_proj", turned_over),
            "ffn_norm": "ln_2",
            "ffn_up": To("mlp.c_fc", turned_over),
            "ffn_down": To("mlp.c_proj", turned_over),
        },
        base="transformer.h",
    ),
    Architecture(
        "gptneox",
        "gpt_neox",
        {
            **LAYER_NORM,
            "num_key_value_heads": fixed(None),
            "rotary_pct": turned,
            "use_parallel_residual": flag("use_parallel_residual", True),
            "hidden_act": fixed("gelu"),
        },
        top={
            "token_embd": "gpt_neox.embed_in",
            "output_norm": "gpt_neox.final_layer_norm",
            "output": "embed_out",
        },
        layer={
            "attn_norm": "input_layernorm",
            "attn_qkv": To("attention.query_key_value", grouped),
            "attn_output": "attention.dense",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
        base="gpt_neox.layers",
    ),
    Architecture(
        "falcon",
        "falcon",
        {
            "vocab_size": rows("token_embd.weight"),
            "hidden_size": size("embedding_length"),
            "ffn_hidden_size": size("feed_forward_length"),
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_kv_heads": kv_heads,
            "max_position_embeddings": size("context_length"),
            "layer_norm_epsilon": number("attention.layer_norm_epsilon"),
            "tie_word_embeddings": tied,
            "rope_theta": theta,
            "rope_scaling": scaling,
            "new_decoder_architecture": lambda facts: facts.kv_heads > 1,
            "multi_query": lambda facts: facts.kv_heads == 1,
            "num_ln_in_parallel_attn": lambda facts: 2 if facts.has("attn_norm_2.weight") else 1,
            "parallel_attn": fixed(True),
            "bias": stored("attn_qkv.bias"),
            "alibi": fixed(False),
            "activation": fixed("gelu"),
        },
        top={"token_embd": "transformer.word_embeddings", "output_norm": "transformer.ln_f", "output": "lm_head"},
        layer={
            "attn_norm": To(lambda facts: "ln_mlp" if facts.has("attn_norm_2.weight") else "input_layernorm"),
            "attn_norm_2": "ln_attn",
            "attn_qkv": To("self_attention.query_key_value", grouped),
            "attn_output": "self_attention.dense",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
        base="transformer.h",
    ),
    Architecture(
        "gpt-oss",
        "gpt_oss",
        {
            **RMS,
            "intermediate_size": size("expert_feed_forward_length"),
            "rope_scaling": _untruncated,
            "head_dim": head_dim,
            "attention_bias": stored("attn_q.bias"),
            "sliding_window": size("attention.sliding_window"),
            "layer_types": every(2),
            "num_local_experts": size("expert_count"),
            "num_experts_per_tok": size("expert_used_count"),
        },
        layer={
            **DENSE,
            "attn_sinks": To("self_attn.sinks", bare=True),
            "post_attention_norm": "post_attention_layernorm",
            "ffn_gate_inp": "mlp.router",
            "ffn_down_exps": To("mlp.experts.down_proj"),
        },
        joined=(
            Joined(("ffn_gate_exps.weight", "ffn_up_exps.weight"), "mlp.experts.gate_up_proj", gate_between_up),
            Joined(("ffn_gate_exps.bias", "ffn_up_exps.bias"), "mlp.experts.gate_up_proj_bias", gate_between_up),
            Joined(("ffn_down_exps.weight",), "mlp.experts.down_proj", stacked_turned),
            Joined(("ffn_down_exps.bias",), "mlp.experts.down_proj_bias", lambda facts, parts: parts[0]),
        ),
    ),
)
