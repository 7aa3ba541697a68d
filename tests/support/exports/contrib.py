"""Decoders by hand in the operators that onnxruntime adds to ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.exports.export import Export, Options
from tests.support.exports.writer import Writer

_MS = {"domain": "com.microsoft"}
STYLES = ("packed", "separate", "rotary", "multi-head")
"""How attention is written: `GroupQueryAttention` with one or three operands that turns them itself, one that is given
turned ones by `RotaryEmbedding`, `MultiHeadAttention` with repeated heads."""


def make(family: str, options: Options, folder: Path, build: Mapping[str, Any]) -> Export:
    """Write into a folder; ``style`` of `build` is one of `STYLES`."""
    style = build.get("style", "packed")
    writer = Writer(family)
    decoder = _Decoder(writer, style)
    history = style != "multi-head"
    inputs: dict[str, tuple[type, list[int | str]]] = {"input_ids": (np.int64, ["batch", "seq"])}
    roles = {"input_ids": "ids"}
    if history:
        inputs["attention_mask"], roles["attention_mask"] = (np.int64, ["batch", "total"]), "mask"
    if style in ("rotary", "multi-head"):
        inputs["position_ids"], roles["position_ids"] = (np.int64, ["batch", "seq"]), "positions"
    outputs: dict[str, list[int | str]] = {"logits": ["batch", "seq", writer.config.vocab_size]}
    decoder.write()
    for layer in range(writer.config.num_hidden_layers if history else 0):
        for kind in ("key", "value"):
            name, shape = f"past_key_values.{layer}.{kind}", ["batch", writer.groups, "past", writer.size]
            inputs[name], roles[name] = (np.float32, shape), kind
            outputs[f"present.{layer}.{kind}"] = ["batch", writer.groups, "total", writer.size]
    path = folder / "model.onnx"
    writer.finish(path, inputs, outputs, **{"onnx": 21, "com.microsoft": 1})
    shown = replace(options, opset=21, mask=history, positions=not history or style == "rotary", history=history)
    return Export(path, family, "contrib", shown, roles)


class _Decoder:
    def __init__(self, writer: Writer, style: str):
        self.w, self.style = writer, style
        self.scale = writer.size**-0.5

    def write(self) -> None:
        w = self.w
        if self.style != "multi-head":
            ones = w.op("ReduceSum", "attention_mask", w.const([1]), keepdims=0)
            self.last = w.op("Cast", w.op("Sub", ones, w.const([1])), to=6)
            total = w.op("Gather", w.op("Shape", "attention_mask"), w.const(np.array(1)), axis=0)
            self.total = w.op("Cast", total, to=6)
        cos, sin = w.tables()
        self.turn = (w.const(cos, "cos_cache"), w.const(sin, "sin_cache"))
        x = w.op("Gather", w.vector("model.embed_tokens.weight"), "input_ids")
        normed = w.op(
            "SimplifiedLayerNormalization", x, w.vector("model.layers.0.input_layernorm.weight"), epsilon=w.epsilon
        )
        for layer in range(w.config.num_hidden_layers):
            name = f"model.layers.{layer}"
            mixed = w.linear(self._attention(normed, name, layer), f"{name}.self_attn.o_proj")
            normed, x = self._skip(x, mixed, f"{name}.post_attention_layernorm.weight")
            after = f"model.layers.{layer + 1}.input_layernorm.weight"
            if layer + 1 == w.config.num_hidden_layers:
                after = "model.norm.weight"
            normed, x = self._skip(x, w.mlp(normed, name), after)
        w.head(normed)

    def _skip(self, x: str, added: str, gain: str) -> tuple[str, str]:
        names = [f"{gain} normed", "", "", f"{gain} sum"]
        self.w.op(
            "SkipSimplifiedLayerNormalization",
            *(x, added, self.w.vector(gain)),
            outputs=names,
            epsilon=self.w.epsilon,
            **_MS,
        )
        return names[0], names[3]

    def _attention(self, x: str, name: str, layer: int) -> str:
        w = self.w
        q, k, v = (w.linear(x, f"{name}.self_attn.{part}_proj") for part in "qkv")
        if self.style in ("rotary", "multi-head"):
            q, k = (w.op("RotaryEmbedding", item, "position_ids", *self.turn, **_MS) for item in self._split(q, k))
            q, k = self._merged(q), self._merged(k)
        if self.style == "multi-head":
            k, v = self._repeated(k), self._repeated(v)
            return w.op("MultiHeadAttention", q, k, v, num_heads=w.heads, unidirectional=1, scale=self.scale, **_MS)
        operands = [w.op("Concat", q, k, v, axis=-1), "", ""] if self.style == "packed" else [q, k, v]
        turns = self.style in ("packed", "separate")
        past = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")]
        return w.op(
            "GroupQueryAttention",
            *(*operands, *past, self.last, self.total, *(self.turn if turns else ())),
            outputs=[f"{name} mixed", f"present.{layer}.key", f"present.{layer}.value"],
            num_heads=w.heads,
            kv_num_heads=w.groups,
            scale=self.scale,
            do_rotary=int(turns),
            local_window_size=getattr(w.config, "sliding_window", None) or -1,
            **_MS,
        )

    def _split(self, *values: str) -> list[str]:
        w = self.w
        apart = [w.op("Reshape", value, w.const([0, 0, -1, w.size], "heads apart")) for value in values]
        return [w.op("Transpose", value, perm=[0, 2, 1, 3]) for value in apart]

    def _merged(self, value: str) -> str:
        back = self.w.op("Transpose", value, perm=[0, 2, 1, 3])
        return self.w.op("Reshape", back, self.w.const([0, 0, -1], "heads together"))

    def _repeated(self, value: str) -> str:
        w = self.w
        times = w.heads // w.groups
        apart = w.op("Reshape", value, w.const([0, 0, w.groups, 1, w.size], "groups apart"))
        tiled = w.op("Tile", apart, w.const([1, 1, 1, times, 1], "times"))
        return w.op("Reshape", tiled, w.const([0, 0, w.heads * w.size], "groups together"))
