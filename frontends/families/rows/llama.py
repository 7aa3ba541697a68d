"""Llama, Mistral and the families that are like them."""

from __future__ import annotations

from typing import Any

from frontends.configuration.specs import Product
from frontends.families.scheme import FULL, Family, Kind, Kinds, RopeRule
from frontends.parts.feed_forward import Glu, Mlp
from frontends.parts.softmax import Growth, Softmax

ALL_WINDOW = {FULL: Kind(window=("sliding_window", None))}
"""Every layer has the window of the file, if there is one."""

BIASED = Glu(bias=("mlp_bias", False))

UNBIASED = Softmax(bias=False, out_bias=False)

MULTIPLIERS: dict[str, Any] = {
    "embed_scale": ("embedding_multiplier", 1.0),
    "residual": ("residual_multiplier", 1.0),
    "logits": Product(((("logits_scaling", 1.0), -1),)),
}

ROWS = (
    Family(("llama",), ffn=BIASED),
    Family(("internlm3",), {"main": Softmax(out_bias=("mlp_bias", False))}, BIASED),
    Family(("mistral",), {"main": UNBIASED}, of_kind=ALL_WINDOW),
    Family(("ministral3",), {"main": Softmax(bias=False, out_bias=False, growth=Growth())}, of_kind=ALL_WINDOW),
    Family(("seed_oss",), {"main": Softmax(out_bias=("attention_out_bias", False))}, BIASED),
    Family(
        ("smollm3",),
        ffn=BIASED,
        kinds=Kinds(
            "no_rope_layers",
            {1: FULL, 0: "no_rope"},
            period=("no_rope_layer_interval", 4),
            hit="no_rope",
            miss=FULL,
        ),
        of_kind={FULL: Kind(), "no_rope": Kind(rope=None)},
        ropes={"main": RopeRule(theta=("rope_theta", 2e6))},
        unread=("layer_types", "use_sliding_window", "sliding_window", "max_window_layers"),
    ),
    Family(("granite",), {"main": Softmax(scale="attention_multiplier")}, BIASED, **MULTIPLIERS),
    Family(("arcee",), ffn=Mlp(bias=("mlp_bias", False))),
    Family(("helium",), {"main": Softmax(out_bias=False, pairs=True)}, BIASED),
    Family(
        ("apertus",),
        {"main": Softmax(qk_norm="head")},
        Mlp(),
        attn_in="attention_layernorm",
        mlp_in="feedforward_layernorm",
    ),
)
