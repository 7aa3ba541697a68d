"""GLM and ChatGLM."""

from __future__ import annotations

from typing import Any

from frontends.configuration.specs import Constant, Product, When
from frontends.families.scheme import Family, RopeRule
from frontends.parts.feed_forward import Glu
from frontends.parts.softmax import Softmax

HALF = {"main": RopeRule(partial=("rope.partial_rotary_factor", 0.5))}

FUSED = Glu(fused="gate_up_proj")

SANDWICH: dict[str, Any] = {"attn_out": "post_self_attn_layernorm", "mlp_out": "post_mlp_layernorm"}

PAIRS = Softmax(out_bias=False, pairs=True)

ROWS = (
    Family(("glm",), {"main": PAIRS}, FUSED, ropes=HALF),
    Family(("glm4",), {"main": PAIRS}, FUSED, ropes=HALF, **SANDWICH),
    Family(
        ("glm4v_text",),
        {"main": Softmax(bias=True, out_bias=False, pairs=True)},
        FUSED,
        tied=("tie_word_embeddings", False),
        ropes={"main": RopeRule(partial=("rope.partial_rotary_factor", 1.0), names={"mrope": "default"})},
        **SANDWICH,
    ),
    Family(
        ("chatglm",),
        {
            "main": Softmax(
                at="self_attention.",
                fused="query_key_value",
                o="dense",
                kv_heads=When(("multi_query_attention", False), "multi_query_group_num", "num_attention_heads"),
                head_dim="kv_channels",
                bias=When(("add_bias_linear", False), True, ("add_qkv_bias", False)),
                out_bias=("add_bias_linear", False),
                pairs=True,
            )
        },
        Glu(
            fused="dense_h_to_4h",
            down="dense_4h_to_h",
            inner="ffn_hidden_size",
            activation=Constant("silu"),
            bias=("add_bias_linear", False),
        ),
        embed="embedding.word_embeddings",
        layers="encoder.layers",
        final="encoder.final_layernorm",
        head="output_layer",
        vocab_size="padded_vocab_size",
        layer_count="num_layers",
        max_position="seq_length",
        tied=("tie_word_embeddings", False),
        ropes={"main": RopeRule(theta=Product(((1e4, 1), (("rope_ratio", 1.0), 1))), partial=0.5)},
        fixed={
            "rmsnorm": (True,),
            "apply_residual_connection_post_layernorm": (False,),
            "post_layer_norm": (True,),
            "original_rope": (True,),
            "position_encoding_2d": (False,),
            "prefix_projection": (False,),
            "pre_seq_len": (),
        },
        unread=(
            "apply_query_key_layer_scaling",
            "attention_softmax_in_fp32",
            "bias_dropout_fusion",
            "fp32_residual_connection",
            "interleaved_qkv",
            "quantization_bit",
        ),
    ),
)
