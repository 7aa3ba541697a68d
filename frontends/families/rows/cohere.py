"""Command R, Ernie 4.5, Hunyuan, StableLM and Nemotron."""

from __future__ import annotations

from typing import Any

from frontends.families.scheme import FULL, SLIDING, Family, Kind, Kinds, RopeRule
from frontends.parts.feed_forward import Glu, Mlp
from frontends.parts.norms import LAYER_NORM, Norm
from frontends.parts.softmax import Softmax

PLAIN_LAYER_NORM = Norm("layer")

PARALLEL: dict[str, Any] = {"norm": PLAIN_LAYER_NORM, "parallel": True, "mlp_in": "", "logits": "logit_scale"}

QUARTER = {"main": RopeRule(partial=("rope.partial_rotary_factor", 0.25))}

HUNYUAN = Softmax(qk_norm="head", q_norm="query_layernorm", k_norm="key_layernorm", after_rope=True)

STRETCHED = {"main": RopeRule(alpha=True, names={"xdrope": "dynamic"})}

ROWS = (
    Family(
        ("cohere",),
        {"main": Softmax(pairs=True, qk_norm="each", qk_norm_if=("use_qk_norm", False), norm=PLAIN_LAYER_NORM)},
        **PARALLEL,
    ),
    Family(
        ("cohere2",),
        {"main": Softmax(pairs=True)},
        kinds=Kinds("layer_types", period=("sliding_window_pattern", 4)),
        of_kind={FULL: Kind(rope=None), SLIDING: Kind(window=("sliding_window", None))},
        **PARALLEL,
    ),
    Family(("ernie4_5",), {"main": Softmax(bias="use_bias", out_bias="use_bias", pairs=True)}, Glu(bias="use_bias")),
    Family(("hunyuan_v1_dense",), {"main": HUNYUAN}, ropes=STRETCHED),
    Family(("hunyuan_vl_text",), {"main": HUNYUAN}, ropes=STRETCHED),
    Family(
        ("stablelm",),
        {
            "main": Softmax(
                bias="use_qkv_bias",
                out_bias=False,
                qk_norm="each",
                qk_norm_if="qk_layernorm",
                q_norm="q_layernorm",
                k_norm="k_layernorm",
                each="norms.{h}",
                norm=PLAIN_LAYER_NORM,
            )
        },
        norm=LAYER_NORM,
        parallel="use_parallel_residual",
        mlp_in_parallel="",
        ropes=QUARTER,
    ),
    Family(
        ("nemotron",),
        ffn=Mlp(bias=("mlp_bias", False)),
        norm=Norm("layer", offset=1.0, bias=True),
        ropes={"main": RopeRule(partial=("rope.partial_rotary_factor", 0.5))},
    ),
)
