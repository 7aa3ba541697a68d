"""Qwen3-Next and Qwen3.5: three layers with the gated delta rule to each one with attention."""

from __future__ import annotations

from typing import Any

from frontends.families.rows.mixtures import EVERY, QWEN_SHARED
from frontends.families.scheme import FULL, Family, Kind, Kinds, RopeRule
from frontends.parts.delta import Delta
from frontends.parts.experts import Experts
from frontends.parts.feed_forward import Glu
from frontends.parts.norms import Norm
from frontends.parts.softmax import Softmax

GATED = Softmax(qk_norm="head", gated=True)

LAYERS: dict[str, Any] = {
    "kinds": Kinds("layer_types", period=("full_attention_interval", 4), miss="linear_attention"),
    "of_kind": {FULL: Kind(), "linear_attention": Kind("linear", rope=None)},
    "norm": Norm(offset=1.0),
    "ropes": {"main": RopeRule(partial=("rope.partial_rotary_factor", 0.25), names={"mrope": "default"})},
}

ROWS = (
    Family(
        ("qwen3_next",),
        {"main": GATED, "linear": Delta(fused=True)},
        experts=QWEN_SHARED,
        sparse=EVERY,
        **LAYERS,
    ),
    Family(("qwen3_5_text",), {"main": GATED, "linear": Delta()}, **LAYERS),
    Family(
        ("qwen3_5_moe_text",),
        {"main": GATED, "linear": Delta()},
        experts=Experts(
            renorm=True,
            shared=Glu(at="shared_expert.", inner="shared_expert_intermediate_size"),
            shared_gate="shared_expert_gate",
        ),
        **LAYERS,
    ),
)
