"""All expansions of operators that exporters and onnxruntime add to ONNX's."""

from __future__ import annotations

from passes.contrib import (
    activations,
    attention,
    codes,
    exporter,
    fused,
    grouped_attention,
    norms,
    products,
    rotary,
    weights,
)
from passes.rewrite.rules import Rule, RuleSet

_ROOMS = (norms, rotary, activations, products, codes, fused, weights, attention, grouped_attention, exporter)
EXPANSIONS = RuleSet(*(item for room in _ROOMS for item in vars(room).values() if isinstance(item, Rule)))
