"""The older families: GPT-2, GPT-NeoX, GPT-J, OPT, Falcon."""

from __future__ import annotations

from frontends.configuration.specs import Product, When
from frontends.families.scheme import FULL, Family, Kind, RopeRule
from frontends.parts.feed_forward import Mlp
from frontends.parts.norms import LAYER_NORM
from frontends.parts.softmax import Softmax

NO_ROPE = {FULL: Kind(rope=None)}

FOUR_TIMES = Product((("hidden_size", 1), (4.0, 1)))

FUSED = Softmax(
    at="attention.",
    fused="query_key_value",
    order="g:q|k|v",
    o="dense",
    bias="attention_bias",
    out_bias="attention_bias",
)

ROWS = (
    Family(
        ("gpt2",),
        {"main": Softmax(at="attn.", fused="c_attn", o="c_proj", bias=True, out_bias=True)},
        Mlp(up="c_fc", down="c_proj", inner=("n_inner", FOUR_TIMES), bias=True),
        norm=LAYER_NORM,
        attn_in="ln_1",
        mlp_in="ln_2",
        embed="wte",
        layers="h",
        final="ln_f",
        positions=("wpe", 0),
        transposed=True,
        of_kind=NO_ROPE,
        ignore=(r"h\.\d+\.attn\.(masked_)?bias$",),
        unread=("reorder_and_upcast_attn", "n_ctx"),
    ),
    Family(
        ("gpt_neox",),
        {"main": FUSED},
        Mlp(up="dense_h_to_4h", down="dense_4h_to_h", bias=True),
        norm=LAYER_NORM,
        parallel="use_parallel_residual",
        embed="embed_in",
        final="final_layer_norm",
        head="embed_out",
        ropes={
            "main": RopeRule(
                theta=("rope_theta", "rotary_emb_base", None),
                partial=("rotary_pct", "rope.partial_rotary_factor", 0.25),
            )
        },
        ignore=(r".*attention\.(rotary_emb\.inv_freq|bias|masked_bias)$",),
    ),
    Family(
        ("gptj",),
        {"main": Softmax(at="attn.", o="out_proj", bias=False, out_bias=False, pairs=True)},
        Mlp(up="fc_in", down="fc_out", inner=("n_inner", FOUR_TIMES), bias=True),
        norm=LAYER_NORM,
        attn_in="ln_1",
        mlp_in="",
        parallel=True,
        embed="wte",
        layers="h",
        final="ln_f",
        head_bias=True,
        ropes={
            "main": RopeRule(
                theta=1e4, partial=Product((("rotary_dim", 1), ("n_embd", -1), ("n_head", 1))), scaled=False
            )
        },
        ignore=(r"h\.\d+\.attn\.(masked_bias|bias|embed_positions)$",),
    ),
    Family(
        ("opt",),
        {"main": Softmax(o="out_proj", bias="enable_bias", out_bias="enable_bias")},
        Mlp(at="", up="fc1", down="fc2", inner="ffn_dim", bias="enable_bias"),
        norm=LAYER_NORM,
        attn_in="self_attn_layer_norm",
        mlp_in="final_layer_norm",
        final="final_layer_norm",
        positions=("embed_positions", 2),
        of_kind=NO_ROPE,
        fixed={"_remove_final_layer_norm": (False,)},
        unread=("word_embed_proj_dim",),
    ),
    Family(
        ("falcon",),
        {
            "main": Softmax(
                at="self_attention.",
                fused="query_key_value",
                order="g:q|k|v",
                o="dense",
                kv_heads=When(
                    "new_decoder_architecture",
                    ("num_kv_heads", "num_attention_heads"),
                    When("multi_query", 1, "num_attention_heads"),
                ),
                bias="bias",
                out_bias="bias",
            )
        },
        Mlp(up="dense_h_to_4h", down="dense_4h_to_h", inner=("ffn_hidden_size", FOUR_TIMES), bias="bias"),
        norm=LAYER_NORM,
        parallel=When("new_decoder_architecture", True, "parallel_attn"),
        attn_in=("ln_attn", "input_layernorm"),
        mlp_in_parallel=("ln_mlp", ""),
        embed="word_embeddings",
        layers="h",
        final="ln_f",
        unread=("num_ln_in_parallel_attn", "n_layer", "n_head", "apply_residual_connection_post_layernorm"),
    ),
)
