"""OLMo and EXAONE: norms on what the branches give."""

from __future__ import annotations

from typing import Any

from frontends.configuration.specs import Given
from frontends.families.scheme import FULL, SLIDING, Family, Kind, Kinds, RopeRule
from frontends.parts.softmax import Softmax

POST: dict[str, Any] = {
    "attn_in": "",
    "attn_out": "post_attention_layernorm",
    "mlp_in": "",
    "mlp_out": "post_feedforward_layernorm",
}

WHOLE = Softmax(qk_norm="full")

ROWS = (
    Family(("olmo2",), {"main": WHOLE}, **POST),
    Family(
        ("olmo3",),
        {"main": WHOLE},
        kinds=Kinds("layer_types", period=4),
        of_kind={FULL: Kind(rope=FULL), SLIDING: Kind(window=("sliding_window", None), rope=SLIDING)},
        # A base of the whole model is that of the full layers alone.
        ropes={FULL: RopeRule(), SLIDING: RopeRule(theta=5e5, scaled=False)},
        **POST,
    ),
    Family(
        ("exaone4",),
        {"main": Softmax(bias=False, out_bias=False, qk_norm="head")},
        # Full layers turn nothing, unless there are no others.
        kinds=Kinds(
            "layer_types", period=("sliding_window_pattern", 4), only_if=Given("sliding_window"), otherwise="all"
        ),
        of_kind={FULL: Kind(rope=None), SLIDING: Kind(window=("sliding_window", None)), "all": Kind()},
        **POST,
    ),
)
