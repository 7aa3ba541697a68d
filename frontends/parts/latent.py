"""Latent attention: keys and values of all heads are products with one vector of each position.

Multi-head latent attention of DeepSeek-V2 (arXiv:2405.04434, section 2.1). What a head compares is a part of its own, made
of the latent vector, and a part that is turned by a rope, for keys one for all heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from frontends.configuration.specs import Setting, flag, size
from frontends.parts.builder import Builder, Layer
from frontends.parts.fused import Matrix, for_heads, halves_of_pairs, split
from frontends.parts.norms import Norm
from frontends.parts.rope_table import rope_table
from ir.base.diag import LadingError
from ir.base.types import TensorType
from ir.graph.graph import Value


@dataclass(frozen=True)
class Latent:
    """Latent attention.

    Attributes:
        at: what stands before the names of the modules.
        heads, kv_heads: number of heads, which those of keys and values must be too.
        own, turned, value: elements of a head that are its own, that a rope turns, and of its values.
        rank, q_rank: width of the latent vector, and of that of the queries; None for queries of one matrix.
        bias: the matrices that read or write the stream have biases.
        pairs: stored for a rope that turns neighbours (2i, 2i + 1) instead of the halves (i, i + n/2).
        epsilon: of the norms of both latent vectors, which the reference does not take from the configuration.
        gain: scores grow with the stretch of the rope, where its record has ``mscale_all_dim``.
    """

    at: str = "self_attn."
    heads: Setting = size("num_attention_heads", most=1 << 16)
    kv_heads: Setting = size(("num_key_value_heads", "num_attention_heads"), most=1 << 16)
    own: Setting = size("qk_nope_head_dim", most=1 << 16)
    turned: Setting = size("qk_rope_head_dim", most=1 << 16)
    value: Setting = size("v_head_dim", most=1 << 16)
    rank: Setting = size("kv_lora_rank", most=1 << 20)
    q_rank: Setting = size(("q_lora_rank", None), most=1 << 20, optional=True)
    bias: Setting = flag(("attention_bias", False))
    pairs: Setting = flag(True)
    epsilon: float = 1e-6
    gain: bool = True

    @property
    def rope_width(self) -> int:
        """Width of what the rope turns, all of it."""
        return self.turned

    def build(self, b: Builder, x: Value, layer: Layer) -> Value:
        """f32[1, seq, hidden] of the same."""
        at, heads = f"{layer.base}.{self.at}", self.heads
        if self.kv_heads != heads:
            message = f"latent attention has keys and values for each of {heads} heads, and not for {self.kv_heads}"
            raise LadingError("F536", message, layer.base)
        latent, shared = self._history(b, x, layer)
        whole = b.matrix(f"{at}kv_b_proj", heads * (self.own + self.value), self.rank)
        parts = split(whole, "g:k|v", {"k": heads * self.own, "v": heads * self.value}, heads)
        keys = b.apply(latent, parts["k"].called(f"{at}k_b_proj"))
        values = b.apply(latent, parts["v"].called(f"{at}v_b_proj"))
        key = self._keys(b, shared, keys, at)
        mixed = self._attend(b, [self._queries(b, x, layer), key, values], layer)
        return b.linear(mixed, f"{at}o_proj", b.hidden, heads * self.value, self.bias)

    # ---- queries ----

    def _queries(self, b: Builder, x: Value, layer: Layer) -> Value:
        """f32[1, seq, heads * (turned + own)], the turned part of each head first."""
        at, width = f"{layer.base}.{self.at}", self.heads * (self.own + self.turned)
        if self.q_rank is None:
            matrix = b.matrix(f"{at}q_proj", width, b.hidden)
        else:
            x = b.linear(x, f"{at}q_a_proj", self.q_rank, b.hidden, self.bias)
            x = b.norm(x, f"{at}q_a_layernorm", self._norm, self.q_rank)
            matrix = b.matrix(f"{at}q_b_proj", width, self.q_rank)
        first = self.own + self._order
        query = b.apply(x, matrix.gather(for_heads(np.concatenate([first, np.arange(self.own)]), self.heads)))
        attrs: dict[str, object] = {"rotary_embedding_dim": self.turned}
        return self._rotated(b, query, layer, self.heads, f"{at}q_rope", attrs)

    @property
    def _norm(self) -> Norm:
        return Norm(epsilon=self.epsilon)

    @property
    def _order(self) -> np.ndarray:
        """Order of the turned elements by which halves are turned."""
        return halves_of_pairs(self.turned, self.turned) if self.pairs else np.arange(self.turned)

    def _rotated(
        self, b: Builder, value: Value, layer: Layer, heads: int, name: str, more: dict[str, object] | None = None
    ) -> Value:
        if layer.rope is None:
            return value
        cos, sin = rope_table(b, layer.rope, self.turned)
        return b.add("RotaryEmbedding", [value, cos, sin], name, value.shape, {"num_heads": heads, **(more or {})})

    # ---- keys and values ----

    def _history(self, b: Builder, x: Value, layer: Layer) -> tuple[Value, Value]:
        """The latent vector f32[1, seq, rank] and the turned part of the keys f32[1, seq, turned]."""
        at = f"{layer.base}.{self.at}"
        matrix: Matrix = b.matrix(f"{at}kv_a_proj_with_mqa", self.rank + self.turned, b.hidden, self.bias)
        if self.pairs:
            matrix = matrix.gather(np.concatenate([np.arange(self.rank), self.rank + self._order]))
        joined = b.apply(x, matrix)
        names = (f"{at}latent", f"{at}shared_key")
        types = [TensorType(joined.dtype, b.rows(width)) for width in (self.rank, self.turned)]
        sizes = b.ints("latent_sizes", self.rank, self.turned)
        parts = b.graph.add("Split", [joined, sizes], {"axis": 2}, outputs=names, types=types, name=names[0]).outputs
        latent = b.norm(parts[0], f"{at}kv_a_layernorm", self._norm, self.rank)
        return latent, self._rotated(b, parts[1], layer, 1, f"{at}k_rope")

    def _keys(self, b: Builder, shared: Value, keys: Value, at: str) -> Value:
        """Keys of all heads f32[1, seq, heads * (turned + own)]."""
        heads, shape = self.heads, (1, b.seq, self.heads, self.turned)
        one = b.heads(shared, 1, self.turned, f"{at}shared_key.apart")
        spread = b.add("Expand", [one, b.ints("spread", 1, 1, heads, 1)], f"{at}shared_key.spread", shape)
        own = b.heads(keys, heads, self.own, f"{at}own_key")
        wide = (1, b.seq, heads, self.turned + self.own)
        joined = b.add("Concat", [spread, own], f"{at}key.apart", wide, {"axis": 3})
        return b.merged(joined, heads * (self.turned + self.own), f"{at}key")

    # ---- attention ----

    def _attend(self, b: Builder, operands: list[Value], layer: Layer) -> Value:
        inputs: list[Value | None] = [*operands]
        attrs: dict[str, object] = {"q_num_heads": self.heads, "kv_num_heads": self.heads, "is_causal": 1}
        if layer.window is not None and layer.window < b.context:
            attrs["is_causal"] = 0
            inputs.append(b.mask(layer.window))
        gain = self._gain(b, layer)
        if gain != 1.0:
            attrs["scale"] = gain / math.sqrt(self.own + self.turned)
        return b.add("Attention", inputs, f"{layer.base}.{self.at}attention", b.rows(self.heads * self.value), attrs)

    def _gain(self, b: Builder, layer: Layer) -> float:
        """What the scores are multiplied by besides: the square of the growth of the wavelengths' attention."""
        rope = None if layer.rope is None else b.ropes[layer.rope, self.turned]
        if not self.gain or rope is None or not rope.mscale_all_dim or not rope.factor or rope.factor <= 1.0:
            return 1.0
        return (0.1 * rope.mscale_all_dim * math.log(rope.factor) + 1.0) ** 2


__all__ = ["Latent"]
