"""Phi, and StarCoder 2, whose parts are like those of the first ones."""

from __future__ import annotations

from frontends.families.rows.llama import ALL_WINDOW
from frontends.families.scheme import Family, RopeRule
from frontends.parts.feed_forward import Glu, Mlp
from frontends.parts.norms import LAYER_NORM
from frontends.parts.softmax import Softmax

ROWS = (
    Family(
        ("phi3",),
        {"main": Softmax(fused="qkv_proj", bias=False, out_bias=False)},
        Glu(fused="gate_up_proj"),
        of_kind=ALL_WINDOW,
        ropes={
            "main": RopeRule(partial=("rope.partial_rotary_factor", 1.0), names={"su": "longrope", "yarn": "longrope"})
        },
    ),
    Family(
        ("phi",),
        {
            "main": Softmax(
                o="dense",
                bias=True,
                out_bias=True,
                qk_norm="head",
                qk_norm_if=("qk_layernorm", False),
                q_norm="q_layernorm",
                k_norm="k_layernorm",
            )
        },
        Mlp(up="fc1", down="fc2", bias=True),
        norm=LAYER_NORM,
        parallel=True,
        mlp_in="",
        final="final_layernorm",
        head_bias=True,
        ropes={"main": RopeRule(partial=("rope.partial_rotary_factor", 0.5))},
    ),
    Family(
        ("starcoder2",),
        {"main": Softmax(bias="use_bias", out_bias="use_bias")},
        Mlp(up="c_fc", down="c_proj", bias="use_bias"),
        norm=LAYER_NORM,
        of_kind=ALL_WINDOW,
    ),
)
