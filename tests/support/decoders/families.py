"""Decoders of the families that exporters write, and of forms that only some of them have."""

from __future__ import annotations

from tests.support.decoders.forms import Form

FORMS = {
    "llama": Form(own_head=True),
    "mistral": Form(windows=(5,)),
    "qwen3": Form(query_norm="rms", bias=True),
    "phi": Form(
        norm="layer", block="parallel", rotary=8, gated=False, activation="gelu-tanh", bias=True, own_head=True,
        head_bias=True, kv_heads=4,
    ),
    "phi3": Form(own_head=True, windows=(7,), scale=0.3),
    "cohere": Form(
        norm="layer-plain", block="parallel", interleaved=True, logit_scale=0.0625, query_norm="layer"
    ),
    "cohere with gains by head": Form(block="parallel", interleaved=True, query_norm="layer-by-head"),
    "cohere2": Form(
        norm="layer-plain", block="parallel", interleaved=True, logit_scale=0.25, windows=(6, 0), turned=(True, False)
    ),
    "norms behind the rotation": Form(query_norm="rms", norm_behind=True),
    "glm": Form(interleaved=True, rotary=8, bias=True, own_head=True),
    "stablelm": Form(norm="layer", rotary=4, own_head=True),
    "stablelm2": Form(norm="layer", rotary=4, own_head=True, query_norm="layer", block="parallel"),
    "gpt-neox": Form(
        norm="layer", block="two-norms", rotary=4, own_head=True, gated=False, activation="gelu", bias=True, kv_heads=4
    ),
    "gemma": Form(activation="gelu-tanh", embedding_scale=8.0),
    "gemma3": Form(
        activation="gelu-tanh", embedding_scale=8.0, query_norm="rms", block="sandwich", windows=(5, 0), scale=0.2
    ),
    "olmo2": Form(query_norm="row", block="sandwich"),
    "granite": Form(embedding_scale=3.0, residual_scale=0.3, logit_scale=0.2, scale=0.1),
    "logits under a cap": Form(cap=5.0),
    "tables of numbers": Form(tables="baked"),
    "tables of numbers times a factor": Form(tables="baked", factor=1.2, rotary=8),
    "tables by an outer product": Form(tables="product", factor=1.2),
    "tables by rows of numbers": Form(tables="positions"),
    "narrow values": Form(value_size=8),
    "wide values": Form(value_size=40, scale=0.3),
    "products of rows alone": Form(products="rows", bias=True, head_bias=True, own_head=True, gated=False),
    "one key for all queries": Form(kv_heads=1, hidden=48, size=32, rotary=32, query_norm="rms"),
    "heads apart": Form(split=True, windows=(0, 5), value_size=8, rotary=8, query_norm="rms"),
    "gpt-oss": Form(sinks=True, windows=(5, 0), bias=True, own_head=True),
    "sinks without windows": Form(sinks=True),
    "sinks and one width of window": Form(sinks=True, windows=(6,), value_size=8),
    "latent attention": Form(mixers=("latent",), size=24, rotary=8, value_size=12),
    "latent attention with wide values": Form(mixers=("latent", "softmax"), size=16, rotary=8, value_size=20, scale=0.3),
    "growing queries": Form(growth=(0.3, 4)),
    "gated attention": Form(gate=True, rotary=4, query_norm="rms"),
    "sizes that fill no packs": Form(hidden=60, size=10, heads=6, kv_heads=3, rotary=10, inner=70),
}  # fmt: skip

RECURRENT = {
    "qwen3-next": Form(mixers=("delta", "delta", "softmax"), layers=3, gate=True, rotary=4, query_norm="rms"),
    "the delta rule alone": Form(mixers=("delta",)),
}
"""Decoders with layers that only some releases compute."""
