"""DeepSeek, Kimi K2 and MiniCPM3: latent attention."""

from __future__ import annotations

from typing import Any

from frontends.configuration.specs import Equals, Given, Product, Quotient, When
from frontends.families.rows.mixtures import NO_AUXILIARY, SHARED
from frontends.families.scheme import Family, Sparse
from frontends.parts.experts import Experts
from frontends.parts.feed_forward import Glu
from frontends.parts.latent import Latent

LATER = Sparse(first="first_k_dense_replace")

MADE_ANEW = ("head_dim", "qk_head_dim")
"""Keys that the reference implementation computes from others, whatever the file says."""

COMMON: dict[str, Any] = {
    "sparse": LATER,
    "extra_layers": True,
    "unread": (*MADE_ANEW, "aux_loss_alpha", "ep_size", "num_nextn_predict_layers", "seq_aux"),
}

ROWS = (
    Family(
        ("deepseek_v2",),
        {"main": Latent()},
        Glu(bias=("mlp_bias", False)),
        Experts(
            groups=("n_group", 1),
            keep=("topk_group", 1),
            grouped=Equals("topk_method", "group_limited_greedy"),
            scale=("routed_scaling_factor", 1.0),
            shared=SHARED,
            shared_count="n_shared_experts",
        ),
        fixed={
            "topk_method": ("greedy", "group_limited_greedy"),
            "scoring_func": ("softmax",),
            "norm_topk_prob": (False,),
            "moe_layer_freq": (1,),
        },
        **COMMON,
    ),
    Family(
        ("deepseek_v3", "kimi_k2"),
        {"main": Latent(pairs=("rope_interleave", True))},
        experts=NO_AUXILIARY,
        fixed={"topk_method": ("noaux_tc",), "scoring_func": ("sigmoid",), "moe_layer_freq": (1,)},
        like={"kimi_k2": "deepseek_v3"},
        **COMMON,
    ),
    Family(
        ("minicpm3",),
        {"main": Latent(pairs=False, value=("v_head_dim", Quotient("hidden_size", "num_attention_heads")))},
        Glu(bias=("mlp_bias", False)),
        embed_scale="scale_emb",
        residual=When(Given("scale_depth"), Product((("scale_depth", 1), ("num_hidden_layers", -0.5))), 1.0),
        logits=When(Given("dim_model_base"), Product((("dim_model_base", 1), ("hidden_size", -1))), 1.0),
        unread=MADE_ANEW,
    ),
)
