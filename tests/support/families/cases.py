"""Which tiny checkpoints there are: settings of configuration classes, chosen so that every feature changes the logits.

Windows are shorter than the longest prompt and trained lengths lie between two of the lengths, so that what happens
beyond them counts too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

LENGTHS = (5, 23, 40)
"""Prompt lengths that goldens are made for, in this order: some ropes keep the frequencies of the longest one seen."""

Spelling = Literal["saved", "hub", "terse"]


@dataclass(frozen=True)
class Case:
    """One tiny checkpoint.

    Attributes:
        model_type: what ``config.json`` says.
        config: settings for the configuration class, or for `tests.support.families.plain`.
        spelling: ``saved``: files as ``save_pretrained`` of `transformers` 5 writes them, float32; ``hub``: as released
            checkpoints have them, with the older keys and bfloat16; ``terse``: as saved, without the keys that the
            configuration class would fill in alike, with its own epsilon, and embeddings so small that this matters.
        reader: which class of `transformers` computes it: ``causal``, ``picture``, ``any``; or ``plain``.
        lengths: prompt lengths.
        reads_as: model type that the reference knows the configuration by, where it has no such type.
        drop: keys that files of the hub do not have.
        hub: keys that files of the hub have beside.
        edits: names of `tests.support.families.released.EDITS`: what else released files have otherwise, in order.
        computable: False where the compiler may refuse it.
    """

    model_type: str
    config: Mapping[str, Any]
    spelling: Spelling = "saved"
    reader: Literal["causal", "picture", "any", "plain"] = "causal"
    lengths: tuple[int, ...] = LENGTHS
    reads_as: str = ""
    drop: tuple[str, ...] = ()
    hub: Mapping[str, Any] = field(default_factory=dict)
    edits: tuple[str, ...] = ()
    computable: bool = True


BASE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}


def _with(*parts: Mapping[str, Any], without: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    settings = dict(BASE)
    for part in (*parts, more):
        settings.update(part)
    return {key: value for key, value in settings.items() if key not in without}


def _few(**more: Any) -> dict[str, Any]:
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {**{key: BASE[key] for key in keys}, **more}


def _rope(kind: str = "default", theta: float = 10000.0, **more: Any) -> dict[str, Any]:
    return {"rope_theta": theta, "rope_type": kind, **more}


YARN = _rope("yarn", factor=4.0, original_max_position_embeddings=16)
LLAMA3 = _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SHARED = {**EXPERTS, "shared_expert_intermediate_size": 40}
ROUTED = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "n_shared_experts": 2,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
}
LATENT = {
    "kv_lora_rank": 20,
    "q_lora_rank": 28,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    "num_key_value_heads": 4,
}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
}
FOURTH = {**DELTA, "num_hidden_layers": 4, "full_attention_interval": 4}
GLM_EYES = {
    "depth": 1,
    "hidden_size": 32,
    "num_heads": 2,
    "out_hidden_size": 64,
    "intermediate_size": 48,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_EYES = {
    "depth": 1,
    "hidden_size": 32,
    "num_heads": 2,
    "out_hidden_size": 64,
    "intermediate_size": 48,
    "patch_size": 4,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [],
}
SIGLIP_EYES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
HUNYUAN_EYES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "patch_size": 8,
    "max_image_size": 32,
}
EARS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_mel_bins": 8}
NAMES_OF_PICTURES = {
    "image_token_id": 310,
    "video_token_id": 311,
    "image_start_token_id": 312,
    "image_end_token_id": 313,
}
MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "logits_scaling": 0.6,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.35,
}
CHATGLM = {
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "multi_query_attention": True,
    "original_rope": True,
    "post_layer_norm": True,
    "rmsnorm": True,
    "use_cache": True,
}
PLAIN = {"hidden_act": "silu", "rms_norm_eps": 0.01}
MINICPM = {"scale_emb": 3.0, "scale_depth": 1.4, "dim_model_base": 160}
GPTJ = {
    "vocab_size": 320,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "rotary_dim": 8,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
FALCON = ("intermediate_size", "num_key_value_heads")
GEMMA = {"head_dim": 24, "query_pre_attn_scalar": 20, "sliding_window": 8, "num_hidden_layers": 4}
HUNYUAN_ROPE = _rope("dynamic", alpha=1000.0, factor=1.0)

QWEN_VL_EYES: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
    "qwen2_5_vl": {
        "depth": 1,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "num_heads": 2,
        "intermediate_size": 48,
        "fullatt_block_indexes": [0],
    },
    "qwen3_vl": {
        "depth": 1,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "num_heads": 2,
        "intermediate_size": 48,
        "deepstack_visual_indexes": [0],
    },
}
"""Towers of Qwen's models that see."""


CLIP_EYES = {**SIGLIP_EYES, "model_type": "clip_vision_model"}
PIXTRAL_EYES = {**SIGLIP_EYES, "model_type": "pixtral"}
INTERNVL_EYES = {**SIGLIP_EYES, "image_size": [28, 28], "patch_size": [14, 14], "model_type": "internvl_vision"}


def _towers(
    model_type: str, text: str, towers: dict[str, Any], reader: Literal["picture", "any"] = "picture", **keys: Any
) -> Case:
    """A model of several towers around a language model of a type of its own."""
    return Case(model_type, {"text_config": {**_with(**keys), "model_type": text}, **towers}, reader=reader)


def _qwen_eyes(model_type: str, spelling: Spelling) -> Case:
    """A Qwen that sees; its text has one axis of positions."""
    text = _with(head_dim=16, rope_parameters=_rope(mrope_section=[4, 2, 2]))
    if model_type != "qwen3_vl":
        del text["head_dim"]
    config = {"text_config": text, "vision_config": QWEN_VL_EYES[model_type], "tie_word_embeddings": False}
    return Case(model_type, {**config, **NAMES_OF_PICTURES}, spelling, reader="picture")


DENSE: dict[str, Case] = {
    "qwen2": Case("qwen2", _with()),
    "qwen2_windows_tied": Case(
        "qwen2",
        _with(use_sliding_window=True, sliding_window=7, max_window_layers=1, tie_word_embeddings=True),
        "hub",
        drop=("layer_types",),
    ),
    "qwen2_window_off": Case(
        "qwen2",
        _with(),
        "hub",
        drop=("layer_types",),
        hub={"use_sliding_window": False, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen2_yarn": Case("qwen2", _with(rope_parameters=YARN), "hub"),
    "qwen3": Case("qwen3", _with(head_dim=24)),
    "qwen3_yarn_bias": Case("qwen3", _with(head_dim=24, attention_bias=True, rope_parameters=YARN), "hub"),
    "qwen3_windows": Case(
        "qwen3",
        _with(head_dim=16, use_sliding_window=True, sliding_window=7, max_window_layers=1),
        "hub",
        drop=("layer_types",),
    ),
    "llama_llama3": Case("llama", _with(rope_parameters=LLAMA3), "hub", edits=("frequencies",)),
    "llama_linear_biases": Case(
        "llama", _with(attention_bias=True, mlp_bias=True, rope_parameters=_rope("linear", factor=4.0))
    ),
    "llama_dynamic": Case(
        "llama",
        _with(max_position_embeddings=16, rope_parameters=_rope("dynamic", factor=2.0)),
        "hub",
        lengths=(5, 14, 31),
    ),
    "llama_yarn": Case("llama", _with(head_dim=24, rope_parameters=YARN)),
    "llama_one_kv_head_tied": Case(
        "llama", _with(num_key_value_heads=1, tie_word_embeddings=True, hidden_act="gelu"), "hub"
    ),
    "internlm3": Case(
        "internlm3",
        _with(head_dim=16, qkv_bias=True, bias=True, rope_parameters=_rope("dynamic", factor=6.0)),
        "hub",
    ),
    "seed_oss": Case("seed_oss", _with(head_dim=24, attention_bias=True, attention_out_bias=False)),
    "seed_oss_biases": Case(
        "seed_oss", _with(head_dim=16, attention_bias=False, attention_out_bias=True, mlp_bias=True), "hub"
    ),
    "mistral_window": Case("mistral", _with(sliding_window=9, head_dim=24)),
    "mistral_plain": Case("mistral", _with(sliding_window=None), "hub"),
    "ministral3": Case(
        "ministral3",
        _with(
            head_dim=24,
            sliding_window=None,
            rope_parameters=_rope(
                "yarn",
                1e6,
                factor=4.0,
                original_max_position_embeddings=16,
                max_position_embeddings=64,
                beta_fast=32.0,
                beta_slow=1.0,
                mscale=1.0,
                mscale_all_dim=1.0,
                llama_4_scaling_beta=0.1,
            ),
        ),
    ),
    "ministral3_window": Case(
        "ministral3",
        _with(
            head_dim=16,
            sliding_window=9,
            rope_parameters=_rope(
                "yarn", 1e6, factor=4.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=1.0
            )
            | {"max_position_embeddings": 64, "beta_fast": 32.0, "beta_slow": 1.0, "llama_4_scaling_beta": 0.2},
        ),
    ),
    "arcee": Case("arcee", _with(rope_parameters=YARN)),
    "arcee_biases": Case("arcee", _with(attention_bias=True, mlp_bias=True, head_dim=24), "hub"),
    "helium": Case("helium", _with(head_dim=16)),
    "helium_biases": Case("helium", _with(head_dim=16, attention_bias=True, mlp_bias=True), "hub"),
    "gemma": Case("gemma", _with(head_dim=24)),
    "gemma_tied": Case("gemma", _with(head_dim=24, num_key_value_heads=1, tie_word_embeddings=True), "hub"),
    "gemma2": Case("gemma2", _with(GEMMA, attn_logit_softcapping=5.0, final_logit_softcapping=10.0)),
    "gemma2_no_cap": Case(
        "gemma2",
        _with(GEMMA, attn_logit_softcapping=None, final_logit_softcapping=10.0, tie_word_embeddings=True),
        "hub",
        drop=("layer_types",),
    ),
    "gemma3_text_linear": Case(
        "gemma3_text",
        _with(
            GEMMA,
            rope_parameters={
                "full_attention": _rope("linear", 1e6, factor=8.0),
                "sliding_attention": _rope(),
            },
            layer_types=["sliding_attention", "full_attention"] * 2,
        ),
    ),
    "gemma3_text": Case(
        "gemma3_text",
        _with(GEMMA, sliding_window_pattern=2, tie_word_embeddings=True),
        "hub",
        drop=("layer_types", "_sliding_window_pattern"),
        hub={"sliding_window_pattern": 2},
    ),
    "gemma3_text_capped": Case(
        "gemma3_text",
        _with(GEMMA, final_logit_softcapping=6.0, attention_bias=True, sliding_window_pattern=2),
        "hub",
        drop=("layer_types", "_sliding_window_pattern"),
        hub={
            "sliding_window_pattern": 2,
            "rope_theta": 5000.0,
            "rope_local_base_freq": 300.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
    "gemma3": Case(
        "gemma3",
        {
            "text_config": _with(GEMMA, layer_types=["sliding_attention", "full_attention"] * 2),
            "vision_config": SIGLIP_EYES,
            "mm_tokens_per_image": 4,
            "image_token_index": 310,
            "boi_token_index": 311,
            "eoi_token_index": 312,
            "tie_word_embeddings": False,
        },
        reader="picture",
    ),
    "phi3_window": Case("phi3", _with(sliding_window=11)),
    "phi3_plain": Case("phi3", _with(sliding_window=None), "hub"),
    "phi3_longrope": Case(
        "phi3",
        _with(
            max_position_embeddings=128,
            original_max_position_embeddings=32,
            partial_rotary_factor=0.75,
            rope_parameters=_rope(
                "longrope",
                partial_rotary_factor=0.75,
                short_factor=[1.0, 1.1, 1.3, 1.5, 1.6, 2.0],
                long_factor=[1.5, 2.0, 3.0, 4.0, 6.0, 9.0],
            ),
        ),
        "hub",
        edits=("su",),
    ),
    "phi3_longrope_long": Case(
        "phi3",
        _with(
            max_position_embeddings=64,
            original_max_position_embeddings=4,
            rope_parameters=_rope(
                "longrope",
                short_factor=[1.0 + 0.1 * i for i in range(8)],
                long_factor=[1.5 + i for i in range(8)],
            ),
        ),
    ),
    "phi": Case("phi", _with(partial_rotary_factor=0.5, hidden_act="gelu_new")),
    "phi_query_norms": Case("phi", _with(partial_rotary_factor=0.25, qk_layernorm=True), "hub"),
    "glm": Case("glm", _with(head_dim=16, attention_bias=True)),
    "glm_hub": Case("glm", _with(head_dim=16, attention_bias=True, partial_rotary_factor=0.25), "hub"),
    "glm4": Case("glm4", _with(head_dim=16, attention_bias=True)),
    "glm4_plain": Case("glm4", _with(head_dim=16, attention_bias=False, partial_rotary_factor=1.0), "hub"),
    "glm4v": Case(
        "glm4v",
        {
            "text_config": _with(
                head_dim=16, rope_parameters=_rope(partial_rotary_factor=0.5, mrope_section=[1, 1, 2])
            ),
            "vision_config": GLM_EYES,
            **NAMES_OF_PICTURES,
            "tie_word_embeddings": False,
        },
        reader="picture",
    ),
    "glm4v_whole_head": Case(
        "glm4v",
        {
            "text_config": _with(
                head_dim=16, rope_parameters=_rope(partial_rotary_factor=1.0, mrope_section=[2, 3, 3])
            ),
            "vision_config": GLM_EYES,
            **NAMES_OF_PICTURES,
            "tie_word_embeddings": False,
        },
        "hub",
        reader="picture",
    ),
    "llava": _towers("llava", "llama", {"vision_config": CLIP_EYES}),
    "llava_next": _towers("llava_next", "mistral", {"vision_config": CLIP_EYES}, sliding_window=None),
    "mistral3": _towers("mistral3", "mistral", {"vision_config": PIXTRAL_EYES}, sliding_window=None),
    "internvl": _towers("internvl", "qwen2", {"vision_config": INTERNVL_EYES}),
    "voxtral": _towers("voxtral", "llama", {"audio_config": {**EARS, "model_type": "voxtral_encoder"}}, "any"),
    "qwen2_vl": _qwen_eyes("qwen2_vl", "saved"),
    "qwen2_5_vl_hub": _qwen_eyes("qwen2_5_vl", "hub"),
    "qwen3_vl": _qwen_eyes("qwen3_vl", "saved"),
    "olmo2": Case("olmo2", _with(rope_parameters=_rope(theta=500000.0))),
    "olmo2_bias": Case("olmo2", _with(attention_bias=True, num_key_value_heads=4), "hub"),
    "olmo3": Case(
        "olmo3",
        _with(
            num_hidden_layers=4,
            sliding_window=8,
            rope_parameters={
                "sliding_attention": _rope(),
                "full_attention": {**YARN, "attention_factor": 1.2},
            },
        ),
    ),
    "olmo3_hub": Case(
        "olmo3",
        _with(
            num_hidden_layers=4,
            sliding_window=8,
            rope_parameters={
                "sliding_attention": _rope(theta=500000.0),
                "full_attention": {**YARN, "rope_theta": 500000.0, "attention_factor": 1.2},
            },
        ),
        "hub",
    ),
    "minicpm": Case("minicpm", _with(PLAIN, MINICPM, tie_word_embeddings=True), "hub", reader="plain"),
    "minicpm_longrope": Case(
        "minicpm",
        _with(
            PLAIN,
            MINICPM,
            max_position_embeddings=64,
            rope_scaling={
                "rope_type": "longrope",
                "short_factor": [1.0 + 0.1 * i for i in range(8)],
                "long_factor": [1.5 + i for i in range(8)],
                "original_max_position_embeddings": 32,
            },
        ),
        "hub",
        reader="plain",
    ),
    "minicpm3": Case(
        "minicpm3",
        _with(
            {key: value for key, value in LATENT.items() if key != "v_head_dim"},
            MINICPM,
            v_head_dim=16,
            rope_parameters=_rope(
                "longrope",
                short_factor=[1.0, 1.1, 1.2, 1.3],
                long_factor=[2.0, 3.0, 4.0, 5.0],
                original_max_position_embeddings=32,
            ),
        ),
    ),
    "internlm2": Case("internlm2", _with(PLAIN, bias=False), "hub", reader="plain"),
    "internlm2_dynamic_bias": Case(
        "internlm2",
        _with(
            PLAIN,
            bias=True,
            rope_theta=1e6,
            max_position_embeddings=32,
            rope_scaling={"type": "dynamic", "factor": 2.0},
        ),
        "hub",
        reader="plain",
    ),
    "baichuan": Case(
        "baichuan",
        _with(PLAIN, without=("num_key_value_heads",)),
        "hub",
        reader="plain",
        hub={
            "architectures": ["BaichuanForCausalLM"],
            "auto_map": {"AutoConfig": "configuration_baichuan.BaichuanConfig"},
            "model_max_length": 128,
            "tokenizer_class": "BaichuanTokenizer",
            "use_cache": True,
        },
    ),
    "chatglm": Case(
        "chatglm",
        {
            **CHATGLM,
            "num_layers": 2,
            "padded_vocab_size": 320,
            "hidden_size": 64,
            "ffn_hidden_size": 96,
            "kv_channels": 16,
            "num_attention_heads": 4,
            "multi_query_group_num": 2,
            "seq_length": 64,
            "layernorm_epsilon": 0.01,
        },
        "hub",
        reader="plain",
    ),
    "chatglm_rope_ratio": Case(
        "chatglm",
        {
            **CHATGLM,
            "num_layers": 2,
            "padded_vocab_size": 320,
            "vocab_size": 320,
            "hidden_size": 64,
            "ffn_hidden_size": 96,
            "kv_channels": 24,
            "num_attention_heads": 4,
            "multi_query_group_num": 1,
            "seq_length": 64,
            "layernorm_epsilon": 0.02,
            "rope_ratio": 500,
        },
        "hub",
        reader="plain",
    ),
    "internlm2_few_keys": Case(
        "internlm2", _few(num_key_value_heads=2, max_position_embeddings=64), "terse", reader="plain"
    ),
    "baichuan_few_keys": Case("baichuan", _few(max_position_embeddings=64), "terse", reader="plain"),
    "minicpm_few_keys": Case("minicpm", _few(dim_model_base=64), "terse", reader="plain"),
    "chatglm_biases": Case(
        "chatglm",
        {
            **CHATGLM,
            "add_bias_linear": True,
            "add_qkv_bias": False,
            "num_layers": 2,
            "padded_vocab_size": 320,
            "hidden_size": 64,
            "ffn_hidden_size": 96,
            "kv_channels": 16,
            "num_attention_heads": 4,
            "multi_query_group_num": 2,
            "seq_length": 64,
            "layernorm_epsilon": 0.01,
        },
        "hub",
        reader="plain",
    ),
    "chatglm_few_keys": Case(
        "chatglm",
        {
            "num_layers": 2,
            "padded_vocab_size": 320,
            "hidden_size": 64,
            "ffn_hidden_size": 96,
            "kv_channels": 16,
            "num_attention_heads": 4,
            "seq_length": 64,
        },
        "terse",
        reader="plain",
    ),
    "hunyuan_v1_dense": Case("hunyuan_v1_dense", _with(head_dim=24, rope_parameters=HUNYUAN_ROPE), "hub"),
    "hunyuan_v1_dense_plain": Case("hunyuan_v1_dense", _with(head_dim=16)),
    "hunyuan_vl": Case(
        "hunyuan_vl",
        {
            "text_config": _with(
                head_dim=16,
                rope_scaling={
                    "type": "xdrope",
                    "alpha": 1000.0,
                    "factor": 1.0,
                    "beta_fast": 32,
                    "beta_slow": 1,
                    "mscale": 1.0,
                    "mscale_all_dim": 1.0,
                    "xdrope_section": [2, 2, 2, 2],
                },
                rope_theta=10000.0,
            ),
            "tie_word_embeddings": False,
            "vision_config": HUNYUAN_EYES,
        },
        reader="picture",
    ),
    "hunyuan_vl_hub": Case(
        "hunyuan_vl",
        {
            "text_config": _with(
                head_dim=16,
                rope_scaling={
                    "type": "xdrope",
                    "alpha": 1000.0,
                    "factor": 1.0,
                    "beta_fast": 32,
                    "beta_slow": 1,
                    "mscale": 1.0,
                    "mscale_all_dim": 1.0,
                    "xdrope_section": [2, 2, 2, 2],
                },
                rope_theta=10000.0,
                tie_word_embeddings=True,
            ),
            "tie_word_embeddings": True,
            "vision_config": HUNYUAN_EYES,
        },
        "hub",
        reader="picture",
        edits=("flat", "xdrope"),
    ),
    "granite": Case("granite", _with(MULTIPLIERS)),
    "granite_biases_tied": Case(
        "granite",
        _with(MULTIPLIERS, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
        "hub",
    ),
    "smollm3": Case("smollm3", _with(num_hidden_layers=4, no_rope_layer_interval=2)),
    "smollm3_listed": Case(
        "smollm3",
        _with(
            num_hidden_layers=3,
            no_rope_layers=[1, 0, 1],
            attention_bias=True,
            mlp_bias=True,
            rope_parameters=_rope(theta=300.0),
        ),
        "hub",
    ),
    "exaone4": Case("exaone4", _with(num_hidden_layers=4, sliding_window=8, sliding_window_pattern=4, head_dim=16)),
    "exaone4_no_window": Case(
        "exaone4", _with(sliding_window=None, layer_types=["full_attention"] * 2, head_dim=16), "hub"
    ),
    "falcon_new": Case(
        "falcon",
        _with(new_decoder_architecture=True, num_kv_heads=2, bias=False, without=FALCON),
    ),
    "falcon_7b": Case(
        "falcon",
        _with(new_decoder_architecture=False, multi_query=True, parallel_attn=True, bias=True, without=FALCON),
        "hub",
    ),
    "falcon_serial": Case(
        "falcon",
        _with(new_decoder_architecture=False, multi_query=False, parallel_attn=False, bias=True, without=FALCON),
    ),
    "falcon_11b": Case(
        "falcon",
        _with(
            new_decoder_architecture=True,
            num_kv_heads=2,
            bias=False,
            num_ln_in_parallel_attn=1,
            ffn_hidden_size=96,
            without=FALCON,
        ),
        "hub",
    ),
    "starcoder2": Case("starcoder2", _with(sliding_window=9, use_bias=True)),
    "starcoder2_plain": Case("starcoder2", _with(sliding_window=None, use_bias=False, tie_word_embeddings=True), "hub"),
    "cohere": Case("cohere", _with(logit_scale=0.25)),
    "cohere_query_norms": Case(
        "cohere", _with(logit_scale=0.25, use_qk_norm=True, attention_bias=True, tie_word_embeddings=True), "hub"
    ),
    "cohere2": Case(
        "cohere2",
        _with(num_hidden_layers=4, sliding_window=8, logit_scale=0.25, layer_types=None),
    ),
    "cohere2_hub": Case(
        "cohere2",
        _with(num_hidden_layers=4, sliding_window=8, logit_scale=0.25, sliding_window_pattern=2, head_dim=24),
        "hub",
        drop=("layer_types", "_sliding_window_pattern"),
        hub={"sliding_window_pattern": 2},
    ),
    "glmasr": Case(
        "glmasr",
        {
            "text_config": _with(model_type="llama"),
            "audio_config": EARS,
            "audio_token_id": 310,
            "tie_word_embeddings": False,
        },
        reader="any",
    ),
    "ernie4_5": Case("ernie4_5", _with(head_dim=24, use_bias=True)),
    "ernie4_5_hub": Case("ernie4_5", _with(head_dim=24, use_bias=False, tie_word_embeddings=True), "hub"),
    "stablelm": Case("stablelm", _with(use_qkv_bias=True)),
    "stablelm_parallel": Case(
        "stablelm",
        _with(use_parallel_residual=True, qk_layernorm=True, partial_rotary_factor=0.5),
        "hub",
    ),
    "nemotron": Case("nemotron", _with(head_dim=24)),
    "nemotron_biases": Case("nemotron", _with(attention_bias=True, mlp_bias=True, partial_rotary_factor=0.25), "hub"),
    "gpt2": Case(
        "gpt2",
        {
            "vocab_size": 320,
            "n_embd": 64,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "tie_word_embeddings": True,
        },
    ),
    "gpt2_hub": Case(
        "gpt2",
        {
            "vocab_size": 320,
            "n_embd": 64,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "n_inner": 96,
            "activation_function": "gelu",
            "tie_word_embeddings": True,
        },
        "hub",
        edits=("no prefix", "masks"),
    ),
    "gptj": Case("gptj", GPTJ),
    "gptj_hub": Case("gptj", {**GPTJ, "rotary_dim": 16, "n_inner": 96}, "hub"),
    "gpt_neox": Case(
        "gpt_neox",
        _with(rotary_pct=0.75, rotary_emb_base=500, without=("num_key_value_heads",)),
        "hub",
        edits=("rotary_pct",),
        hub={"hidden_dropout": 0.0, "attention_dropout": 0.0},
    ),
    "gpt_neox_serial": Case(
        "gpt_neox",
        _with(
            use_parallel_residual=False,
            attention_bias=False,
            rope_parameters=_rope(theta=300.0, partial_rotary_factor=0.5),
            without=("num_key_value_heads",),
        ),
    ),
    "opt": Case(
        "opt",
        {
            "vocab_size": 320,
            "hidden_size": 64,
            "ffn_dim": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 64,
            "tie_word_embeddings": True,
            "do_layer_norm_before": True,
        },
        "hub",
    ),
    "apertus": Case("apertus", _with(rope_parameters=LLAMA3)),
    "apertus_hub": Case("apertus", _with(rope_parameters=LLAMA3, attention_bias=True), "hub"),
}

EXPERT_MODELS: dict[str, Case] = {
    "mixtral": Case("mixtral", _with(num_local_experts=4, num_experts_per_tok=2, sliding_window=None)),
    "mixtral_window": Case(
        "mixtral", _with(num_local_experts=4, num_experts_per_tok=2, sliding_window=9, head_dim=24), "hub"
    ),
    "olmoe": Case("olmoe", _with(EXPERTS, norm_topk_prob=False, num_key_value_heads=4)),
    "olmoe_normed": Case("olmoe", _with(EXPERTS, norm_topk_prob=True), "hub"),
    "qwen2_moe": Case("qwen2_moe", _with(SHARED, norm_topk_prob=False, decoder_sparse_step=2)),
    "qwen2_moe_windows": Case(
        "qwen2_moe",
        _with(
            SHARED, qkv_bias=False, use_sliding_window=True, sliding_window=7, max_window_layers=2, num_hidden_layers=3
        ),
        "hub",
        drop=("layer_types",),
    ),
    "qwen2_moe_window_off": Case(
        "qwen2_moe",
        _with(SHARED),
        "hub",
        drop=("layer_types",),
        hub={"use_sliding_window": False, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen2_moe_hub": Case("qwen2_moe", _with(SHARED, norm_topk_prob=True, mlp_only_layers=[0]), "hub"),
    "qwen3_moe": Case("qwen3_moe", _with(EXPERTS, head_dim=24, norm_topk_prob=True, mlp_only_layers=[1])),
    "qwen3_moe_window": Case(
        "qwen3_moe",
        _with(EXPERTS, head_dim=16, use_sliding_window=True, sliding_window=7, decoder_sparse_step=2),
        "hub",
    ),
    "qwen3_moe_window_off": Case(
        "qwen3_moe", _with(EXPERTS, head_dim=16), "hub", hub={"use_sliding_window": False, "sliding_window": 4}
    ),
    "qwen3_moe_hub": Case("qwen3_moe", _with(EXPERTS, head_dim=24, norm_topk_prob=False), "hub"),
    "qwen3_next": Case("qwen3_next", _with(SHARED, DELTA, head_dim=16)),
    "qwen3_next_hub": Case(
        "qwen3_next", _with(SHARED, FOURTH, head_dim=16, mlp_only_layers=[1]), "hub", drop=("layer_types",)
    ),
    "qwen3_5_text": Case(
        "qwen3_5_text",
        _with(
            DELTA,
            head_dim=32,
            rope_parameters=_rope(partial_rotary_factor=0.5, mrope_section=[3, 3, 2], mrope_interleaved=True),
        ),
    ),
    "qwen3_5": Case(
        "qwen3_5",
        {
            "text_config": _with(
                DELTA,
                head_dim=32,
                rope_parameters=_rope(partial_rotary_factor=0.5, mrope_section=[3, 3, 2], mrope_interleaved=True),
            ),
            "vision_config": QWEN_EYES,
            "image_token_id": 310,
            "video_token_id": 311,
            "vision_start_token_id": 312,
            "vision_end_token_id": 313,
            "tie_word_embeddings": False,
        },
        "hub",
        reader="picture",
    ),
    "qwen3_5_text_by_interval": Case(
        "qwen3_5_text",
        _with(DELTA, head_dim=32, rope_parameters=_rope(partial_rotary_factor=0.125)),
        "hub",
        drop=("layer_types",),
        hub={"full_attention_interval": 2},
    ),
    "qwen3_5_moe_text_by_interval": Case(
        "qwen3_5_moe_text",
        _with(SHARED, DELTA, head_dim=32, rope_parameters=_rope(partial_rotary_factor=0.5)),
        "hub",
        drop=("layer_types",),
        hub={"full_attention_interval": 2},
    ),
    "qwen3_next_by_interval": Case(
        "qwen3_next",
        _with(SHARED, DELTA, head_dim=16, norm_topk_prob=False, rope_parameters=_rope(partial_rotary_factor=0.5)),
        "hub",
        drop=("layer_types",),
        hub={"full_attention_interval": 2},
    ),
    "qwen3_5_moe_text": Case("qwen3_5_moe_text", _with(SHARED, DELTA, head_dim=16)),
    "qwen3_5_moe": Case(
        "qwen3_5_moe",
        {
            "text_config": _with(SHARED, DELTA, head_dim=32),
            "vision_config": QWEN_EYES,
            "image_token_id": 310,
            "video_token_id": 311,
            "vision_start_token_id": 312,
            "vision_end_token_id": 313,
            "tie_word_embeddings": False,
        },
        "hub",
        reader="picture",
        edits=("stacked experts",),
    ),
    "deepseek_v2": Case(
        "deepseek_v2",
        _with(
            ROUTED,
            LATENT,
            norm_topk_prob=False,
            topk_method="group_limited_greedy",
            rope_parameters={**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        ),
    ),
    "deepseek_v2_lite": Case(
        "deepseek_v2",
        _with(
            ROUTED,
            LATENT,
            norm_topk_prob=False,
            q_lora_rank=None,
            n_group=1,
            topk_group=1,
            routed_scaling_factor=1.0,
            topk_method="greedy",
        ),
        "hub",
    ),
    "deepseek_v3": Case(
        "deepseek_v3",
        _with(
            ROUTED,
            LATENT,
            rope_parameters={**YARN, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 0.8},
        ),
    ),
    "deepseek_v3_hub": Case(
        "deepseek_v3",
        _with(
            ROUTED,
            LATENT,
            norm_topk_prob=False,
            q_lora_rank=None,
            attention_bias=True,
            rope_parameters={**YARN, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0},
        ),
        "hub",
        edits=("next tokens",),
    ),
    "deepseek_v3_halves": Case(
        "deepseek_v3",
        _with(
            {**ROUTED, "n_shared_experts": 1, "first_k_dense_replace": 0},
            LATENT,
            rope_interleave=False,
            n_group=2,
            topk_group=1,
        ),
    ),
    "kimi_k2": Case(
        "kimi_k2",
        _with(
            ROUTED,
            LATENT,
            n_group=1,
            topk_group=1,
            n_shared_experts=1,
            routed_scaling_factor=2.827,
            rms_norm_eps=0.01,
            rope_parameters=_rope(
                "yarn",
                50000.0,
                factor=4.0,
                beta_fast=1.0,
                beta_slow=1.0,
                mscale=1.0,
                mscale_all_dim=1.0,
                original_max_position_embeddings=16,
            ),
        ),
        "hub",
        reads_as="deepseek_v3",
        hub={
            "architectures": ["DeepseekV3ForCausalLM"],
            "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
            "aux_loss_alpha": 0.001,
            "ep_size": 1,
            "moe_layer_freq": 1,
            "num_nextn_predict_layers": 0,
            "pretraining_tp": 1,
            "scoring_func": "sigmoid",
            "seq_aux": True,
            "topk_method": "noaux_tc",
        },
    ),
    "hunyuan_v1_moe": Case("hunyuan_v1_moe", _with(head_dim=16, num_experts=4, moe_topk=2)),
    "hunyuan_v1_moe_hub": Case(
        "hunyuan_v1_moe",
        _with(head_dim=16, num_experts=4, moe_topk=[1, 1], rope_parameters=HUNYUAN_ROPE),
        "hub",
    ),
    "granitemoe": Case("granitemoe", _with(MULTIPLIERS, num_local_experts=4, num_experts_per_tok=2)),
    "granitemoe_tied": Case(
        "granitemoe",
        _with(MULTIPLIERS, num_local_experts=6, num_experts_per_tok=3, tie_word_embeddings=True),
        "hub",
    ),
    "gpt_oss": Case(
        "gpt_oss",
        _with(
            head_dim=16,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=7,
            rope_parameters=_rope(
                "yarn",
                150000.0,
                factor=4.0,
                beta_fast=32.0,
                beta_slow=1.0,
                truncate=False,
                original_max_position_embeddings=16,
            ),
        ),
    ),
    "gpt_oss_hub": Case(
        "gpt_oss",
        _with(
            head_dim=24,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=8,
            rope_parameters=_rope("yarn", 150000.0, factor=4.0, truncate=False, original_max_position_embeddings=16),
            num_hidden_layers=3,
        ),
        "hub",
        drop=("layer_types",),
    ),
    "glm4_moe": Case(
        "glm4_moe",
        _with(ROUTED, head_dim=16, use_qk_norm=True, attention_bias=True, partial_rotary_factor=0.5),
    ),
    "glm4_moe_hub": Case(
        "glm4_moe",
        _with(ROUTED, head_dim=16, use_qk_norm=False, attention_bias=True, n_group=1, topk_group=1),
        "hub",
        edits=("next tokens",),
    ),
    "glm4_moe_dense_first": Case(
        "glm4_moe",
        _with(
            {**ROUTED, "first_k_dense_replace": 2, "norm_topk_prob": False},
            head_dim=16,
            num_hidden_layers=3,
            partial_rotary_factor=0.25,
        ),
        "hub",
    ),
    "glm4v_moe": Case(
        "glm4v_moe",
        {
            "text_config": _with(
                ROUTED, head_dim=16, rope_parameters=_rope(partial_rotary_factor=0.5, mrope_section=[1, 1, 2])
            ),
            "vision_config": GLM_EYES,
            **NAMES_OF_PICTURES,
            "tie_word_embeddings": False,
        },
        reader="picture",
    ),
    "glm4v_moe_hub": Case(
        "glm4v_moe",
        {
            "text_config": _with(
                {**ROUTED, "n_shared_experts": 1, "norm_topk_prob": False, "first_k_dense_replace": 0},
                head_dim=16,
                attention_bias=False,
                rope_parameters=_rope(partial_rotary_factor=0.25, mrope_section=[1, 1, 0]),
            ),
            "vision_config": GLM_EYES,
            **NAMES_OF_PICTURES,
            "tie_word_embeddings": False,
        },
        "hub",
        reader="picture",
    ),
    "ernie4_5_moe": Case(
        "ernie4_5_moe",
        _with(
            moe_num_experts=6,
            moe_k=2,
            moe_intermediate_size=24,
            moe_num_shared_experts=2,
            moe_layer_start_index=1,
            use_bias=False,
        ),
    ),
    "ernie4_5_moe_hub": Case(
        "ernie4_5_moe",
        _with(
            moe_num_experts=6,
            moe_k=3,
            moe_intermediate_size=24,
            moe_num_shared_experts=1,
            moe_layer_start_index=1,
            moe_layer_end_index=2,
            moe_layer_interval=1,
            moe_norm_min=0.6,
            num_hidden_layers=4,
            use_bias=True,
        ),
        "hub",
    ),
    "ernie4_5_moe_every_second": Case(
        "ernie4_5_moe",
        _with(
            moe_num_experts=6,
            moe_k=2,
            moe_intermediate_size=24,
            moe_num_shared_experts=1,
            moe_layer_start_index=0,
            moe_layer_interval=2,
            use_bias=False,
        ),
        "hub",
    ),
    "minimax_m2": Case(
        "minimax_m2",
        _with(
            num_local_experts=6,
            num_experts_per_tok=2,
            head_dim=24,
            rope_parameters=_rope(partial_rotary_factor=0.5),
        ),
    ),
    "minimax_m2_hub": Case(
        "minimax_m2",
        _with(
            num_local_experts=6,
            num_experts_per_tok=2,
            head_dim=24,
            rope_parameters=_rope(theta=5e6, partial_rotary_factor=0.5),
        ),
        "hub",
        edits=("rotary_dim",),
        hub={
            "attn_type_list": [1, 1],
            "layernorm_full_attention_beta": 1.0,
            "mlp_intermediate_size": 96,
            "mtp_transformer_layers": 1,
            "num_mtp_modules": 3,
            "qk_norm_type": "per_layer",
            "scoring_func": "sigmoid",
            "shared_intermediate_size": 0,
            "shared_moe_mode": "sigmoid",
            "use_mtp": True,
            "use_qk_norm": True,
            "use_routing_bias": True,
        },
    ),
    "phimoe": Case(
        "phimoe",
        _with(num_local_experts=4, num_experts_per_tok=2, attention_bias=True, lm_head_bias=True, sliding_window=None),
    ),
    "phimoe_window": Case(
        "phimoe",
        _with(num_local_experts=4, num_experts_per_tok=2, sliding_window=9, router_jitter_noise=0.05),
        "hub",
    ),
}

REFUSED: dict[str, Case] = {
    "falcon_alibi": Case(
        "falcon",
        _with(alibi=True, new_decoder_architecture=False, multi_query=False, parallel_attn=False, without=FALCON),
        computable=False,
    ),
    "opt_norm_after": Case(
        "opt",
        {
            "vocab_size": 320,
            "hidden_size": 64,
            "ffn_dim": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 32,
            "do_layer_norm_before": False,
        },
        computable=False,
    ),
    "baichuan_13b": Case(
        "baichuan",
        _with(PLAIN, model_max_length=64, without=("num_key_value_heads", "max_position_embeddings")),
        "hub",
        reader="plain",
        computable=False,
    ),
}
"""Models of these types that need something which is not there: never silently compiled as something else."""


def _terse() -> dict[str, Case]:
    """The first case of each model type that `transformers` knows, with the fewest keys.

    The usual epsilon leaves norms of the results of delta rules nothing to hold on to where these are small, and rounding
    grows with every token: their prompts are shorter.
    """
    first: dict[str, Case] = {}
    for case in (*DENSE.values(), *EXPERT_MODELS.values()):
        if case.reader != "plain" and not case.reads_as:
            first.setdefault(case.model_type, case)
    return {
        f"{kind}_terse": replace(
            case,
            spelling="terse",
            drop=(),
            hub={},
            edits=(),
            lengths=(4, 8) if "linear_key_head_dim" in case.config.get("text_config", case.config) else case.lengths,
        )
        for kind, case in first.items()
    }


CASES: dict[str, Case] = {**DENSE, **EXPERT_MODELS, **_terse(), **REFUSED}
