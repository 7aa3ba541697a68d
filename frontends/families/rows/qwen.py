"""Qwen."""

from __future__ import annotations

from frontends.families.scheme import FULL, SLIDING, Family, Kind, Kinds, RopeRule
from frontends.parts.softmax import Softmax

UPPER = Kinds("layer_types", after="max_window_layers", only_if=("use_sliding_window", False))
"""Windows in the layers from one on, where windows are used at all."""

OF_KIND = {FULL: Kind(), SLIDING: Kind(window=("sliding_window", None))}

EYES = {"main": RopeRule(names={"mrope": "default"})}
"""Several axes of positions, which are one for text."""

ROWS = (
    Family(("qwen2",), {"main": Softmax(bias=True, out_bias=False)}, kinds=UPPER, of_kind=OF_KIND),
    Family(("qwen3",), {"main": Softmax(qk_norm="head")}, kinds=UPPER, of_kind=OF_KIND),
    Family(
        ("qwen2_vl_text", "qwen2_5_vl_text"),
        {"main": Softmax(bias=True, out_bias=False)},
        kinds=UPPER,
        of_kind=OF_KIND,
        tied=("tie_word_embeddings", False),
        ropes=EYES,
    ),
    Family(
        ("qwen3_vl_text",),
        {"main": Softmax(qk_norm="head")},
        tied=("tie_word_embeddings", False),
        ropes=EYES,
    ),
)
