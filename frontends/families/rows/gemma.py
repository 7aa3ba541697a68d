"""Gemma."""

from __future__ import annotations

from typing import Any

from frontends.configuration.specs import Product, Renamed
from frontends.families.scheme import FULL, SLIDING, Family, Kind, Kinds, RopeRule
from frontends.parts.feed_forward import Glu
from frontends.parts.norms import Norm
from frontends.parts.softmax import Softmax

COMMON: dict[str, Any] = {"norm": Norm(offset=1.0), "embed_scale": Product((("hidden_size", 0.5),))}

SANDWICH: dict[str, Any] = {
    "attn_out": "post_attention_layernorm",
    "mlp_in": "pre_feedforward_layernorm",
    "mlp_out": "post_feedforward_layernorm",
}

QUERY_SCALE = Product((("query_pre_attn_scalar", -0.5),))

WINDOWED = {FULL: Kind(), SLIDING: Kind(window=("sliding_window", None))}

ROWS = (
    # The first files say "gelu" and mean its approximation.
    Family(
        ("gemma",),
        ffn=Glu(activation=Renamed("hidden_act", {"gelu": "gelu_pytorch_tanh"})),
        unread=("hidden_activation",),
        **COMMON,
    ),
    Family(
        ("gemma2",),
        {"main": Softmax(scale=QUERY_SCALE, cap=("attn_logit_softcapping", None))},
        logit_cap=("final_logit_softcapping", None),
        kinds=Kinds("layer_types", period=2),
        of_kind=WINDOWED,
        **COMMON,
        **SANDWICH,
    ),
    Family(
        ("gemma3_text",),
        {"main": Softmax(scale=QUERY_SCALE, qk_norm="head")},
        logit_cap=("final_logit_softcapping", None),
        kinds=Kinds("layer_types", period=("sliding_window_pattern", 6)),
        of_kind={FULL: Kind(rope=FULL), SLIDING: Kind(window=("sliding_window", None), rope=SLIDING)},
        ropes={
            FULL: RopeRule(theta=("rope_theta", 1e6)),
            SLIDING: RopeRule(theta=("rope_local_base_freq", 1e4), scaled=False),
        },
        **COMMON,
        **SANDWICH,
    ),
)
