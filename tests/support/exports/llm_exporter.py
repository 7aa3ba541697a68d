"""Decoders by hand in the form that MNN's own exporter leaves on its way to a model directory.

One sequence, embedding rows f32[seq, 1, hidden] as ``input_ids``, a mask f32[1, 1, seq, seq] that is added to scores,
positions i32[1, seq], and rows chosen by ``logits_index`` i32[1] with a Slice. Attention is
``LlmExporter.FusedAttention``, which keeps its history itself, and with ``fused`` rotary embedding is
``LlmExporter.FusedRoPE``. onnxruntime has neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.exports.export import Export, Options
from tests.support.exports.writer import Writer

_DOMAIN = {"domain": "LlmExporter"}


def make(family: str, options: Options, folder: Path, build: Mapping[str, Any]) -> Export:
    """Write into a folder; ``fused`` of `build` says whether rotary embedding is an operator of its own."""
    writer = Writer(family)
    _Decoder(writer, bool(build.get("fused", True))).write()
    hidden, vocab = writer.config.hidden_size, writer.config.vocab_size
    inputs: dict[str, tuple[type, list[int | str]]] = {
        "input_ids": (np.float32, ["seq", 1, hidden]),
        "attention_mask": (np.float32, [1, 1, "seq", "seq"]),
        "position_ids": (np.int32, [1, "seq"]),
        "logits_index": (np.int32, [1]),
    }
    path = folder / "model.onnx"
    shapes: dict[str, list[int | str]] = {"logits": [1, "rows", vocab], "hidden_states": [1, "rows", hidden]}
    writer.finish(path, inputs, shapes, onnx=15, LlmExporter=1)
    roles = {"input_ids": "rows of the embedding", "attention_mask": "added mask", "position_ids": "positions"}
    shown = replace(options, opset=15, embeddings=True, mask=True, positions=True, rows="slice", batch=False)
    return Export(path, family, "llm-exporter", shown, {**roles, "logits_index": "rows"})


class _Decoder:
    def __init__(self, writer: Writer, fused: bool):
        self.w, self.fused = writer, fused

    def write(self) -> None:
        w = self.w
        layers = w.config.num_hidden_layers
        cos, sin = (w.const(np.concatenate([table, table], -1)) for table in w.tables())
        at = w.op("Reshape", w.op("Cast", "position_ids", to=7), w.const([-1], "flat"))
        self.cos, self.sin = (
            w.op("Reshape", w.op("Gather", table, at), w.const([1, -1, 1, w.size], "for heads")) for table in (cos, sin)
        )
        x = w.op("Reshape", "input_ids", w.const([1, -1, w.config.hidden_size]))
        for layer in range(layers):
            name = f"model.layers.{layer}"
            normed = self._norm(x, w.vector(f"{name}.input_layernorm.weight"))
            x = w.op("Add", x, w.linear(self._attention(normed, name, layer), f"{name}.self_attn.o_proj"))
            x = w.op("Add", x, w.mlp(self._norm(x, w.vector(f"{name}.post_attention_layernorm.weight")), name))
        first = w.op("Cast", "logits_index", to=7)
        ends = [w.const([np.iinfo(np.int64).max], "end"), w.const([1], "axis"), w.const([1], "step")]
        chosen = w.op("Slice", x, first, *ends)
        w.head(self._norm(chosen, w.vector("model.norm.weight"), ["hidden_states"]))

    def _norm(self, x: str, gain: str, outputs: list[str] | None = None) -> str:
        w = self.w
        mean = w.op("ReduceMean", w.op("Pow", x, w.const(np.float32(2), "two")), axes=[-1], keepdims=1)
        root = w.op("Sqrt", w.op("Add", mean, w.const(np.float32(w.epsilon), "epsilon")))
        unit = w.op("Mul", x, w.op("Div", w.const(np.float32(1), "one"), root))
        return w.op("Mul", gain, unit, outputs=outputs or ())

    def _attention(self, x: str, name: str, layer: int) -> str:
        w = self.w
        q, k, v = (
            w.op(
                "Reshape",
                w.linear(x, f"{name}.self_attn.{part}_proj"),
                w.const([1, -1, heads, w.size], f"{heads} heads"),
            )
            for part, heads in (("q", w.heads), ("k", w.groups), ("v", w.groups))
        )
        norms = [f"{name}.self_attn.{part}_norm.weight" for part in "qk"]
        normed = norms[0] in w.weights
        if self.fused:
            gains = [w.vector(item) if normed else w.const(np.zeros(0, np.float32), "no gain") for item in norms]
            names = [f"{name} queries", f"{name} keys"]
            epsilon = w.epsilon if normed else 0.0
            w.op(
                "FusedRoPE",
                *(q, k, self.cos, self.sin, *gains),
                outputs=names,
                head_dim=w.size,
                k_norm=int(normed),
                k_norm_eps=epsilon,
                kv_num_head=w.groups,
                name=f"/layers.{layer}/self_attn/FusedRoPE",
                num_head=w.heads,
                q_norm=int(normed),
                q_norm_eps=epsilon,
                rope_cut_head_dim=w.size,
                **_DOMAIN,
            )
            q, k = names
        else:
            if normed:
                q, k = (self._norm(item, w.vector(gain)) for item, gain in zip((q, k), norms, strict=True))
            q, k = self._turned(q), self._turned(k)
        return w.op(
            "FusedAttention",
            *(q, k, v, "attention_mask"),
            head_dim=w.size,
            kv_cache=1,
            kv_shared_layer_index=-1,
            layer_index=layer,
            name=f"/layers.{layer}/self_attn/FusedAttention",
            output_dim=w.heads * w.size,
            **_DOMAIN,
        )

    def _turned(self, x: str) -> str:
        w = self.w
        bounds = [w.const([number], f"at {number}") for number in (0, w.size // 2, w.size, -1)]
        left = w.op("Slice", x, bounds[0], bounds[1], bounds[3])
        right = w.op("Slice", x, bounds[1], bounds[2], bounds[3])
        other = w.op("Concat", w.op("Neg", right), left, axis=-1)
        return w.op("Add", w.op("Mul", x, self.cos), w.op("Mul", other, self.sin))
