"""Families whose code comes with their checkpoints, so that ``transformers`` has no class for them."""

from __future__ import annotations

from frontends.configuration.specs import Product
from frontends.families.scheme import Family
from frontends.parts.feed_forward import Glu
from frontends.parts.softmax import Softmax

LIKE_LLAMA = {
    "hidden_act": "silu",
    "num_key_value_heads": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "max_position_embeddings": 2048,
}
"""Defaults of their configuration classes."""

ROWS = (
    Family(
        ("internlm2",),
        {
            "main": Softmax(
                at="attention.",
                fused="wqkv",
                order="g:q|k|v",
                o="wo",
                bias=("bias", False),
                out_bias=("bias", False),
            )
        },
        Glu(at="feed_forward.", gate="w1", up="w3", down="w2"),
        attn_in="attention_norm",
        mlp_in="ffn_norm",
        embed="tok_embeddings",
        head="output",
        defaults={**LIKE_LLAMA, "bias": True},
    ),
    Family(
        ("minicpm",),
        {"main": Softmax()},
        embed_scale="scale_emb",
        residual=Product((("scale_depth", 1), ("num_hidden_layers", -0.5))),
        logits=Product((("dim_model_base", 1), ("hidden_size", -1))),
        defaults={
            **LIKE_LLAMA,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "scale_emb": 1,
            "scale_depth": 1,
            "dim_model_base": 1,
        },
    ),
    Family(
        # The larger models of this name have no rope and no key max_position_embeddings.
        ("baichuan",),
        {"main": Softmax(fused="W_pack", kv_heads="num_attention_heads", bias=False, out_bias=False)},
        max_position="max_position_embeddings",
        fixed={"z_loss_weight": (), "alibi": (False,)},
        defaults={key: value for key, value in LIKE_LLAMA.items() if key != "max_position_embeddings"},
    ),
)
