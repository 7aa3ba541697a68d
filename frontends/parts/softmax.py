"""Softmax attention: grouped heads, norms of queries and keys, ropes, windows, gates, sinks, caps, growing queries."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from frontends.configuration.specs import Quotient, Setting, flag, number, size
from frontends.parts.builder import Builder, Layer
from frontends.parts.fused import Matrix, for_heads, halves_of_pairs, split
from frontends.parts.norms import Norm
from frontends.parts.rope_table import rope_table
from ir.base.types import F32
from ir.graph.graph import Value
from ir.tensor.inline import InlineTensor
from ir.tensor.rearranged import reshaped, row_concat, row_gather, transposed


@dataclass(frozen=True)
class Growth:
    """Queries that grow with the position p: ``q * (1 + beta * ln(1 + floor(p / original)))``.

    As Llama 4 scales them ("temperature" of its report); `original` is the trained length in tokens.
    """

    beta: Setting = number(("rope.llama_4_scaling_beta", None), 0.0, optional=True)
    original: Setting = size(("rope.original_max_position_embeddings", None), most=1 << 31, optional=True)


@dataclass(frozen=True)
class Softmax:
    """Attention by softmax over the scores of queries and keys (Vaswani et al. 2017, arXiv:1706.03762).

    Attributes:
        at: what stands before the names of the modules.
        q, k, v, o: the modules.
        fused, order: one module for the rows of q, k and v, and their order (see `frontends.parts.fused`); groups are the
            key/value heads.
        gated: ``q`` holds for each head its query and then a gate; the result is multiplied by the gate's sigmoid.
        heads, kv_heads, head_dim: numbers and width of the heads.
        bias, out_bias: q, k and v, or o, have a bias; None leaves it to the checkpoint.
        qk_norm: ``""``, ``"head"`` (over each head, one weight for all), ``"each"`` (over each head, a weight of its own) or
            ``"full"`` (over the projection).
        qk_norm_if: whether there is such a norm at all.
        q_norm, k_norm: modules of the norms.
        norm: what kind of norm they are; None for that of the family.
        each: the modules that hold the rows of such a weight one by one, below the norm's, with ``{h}`` for the head;
            empty for one tensor.
        after_rope: they follow the rotation.
        pairs: stored for a rope that turns neighbours (2i, 2i + 1) instead of the halves (i, i + n/2).
        scale: multiplier of the scores; None for one over the root of the head width.
        cap: the scores become ``cap * tanh(scores / cap)``.
        sinks: tensor of one more score for each head, which takes its share of the softmax and gives nothing.
        growth: how queries grow with the position.
    """

    at: str = "self_attn."
    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"
    o: str = "o_proj"
    fused: str = ""
    order: str = "q|k|v"
    gated: bool = False
    heads: Setting = size("num_attention_heads", most=1 << 16)
    kv_heads: Setting = size(("num_key_value_heads", "num_attention_heads"), most=1 << 16)
    head_dim: Setting = size(("head_dim", Quotient("hidden_size", "num_attention_heads")), most=1 << 16)
    bias: Setting = flag(("attention_bias", False))
    out_bias: Setting = flag(("attention_bias", False))
    qk_norm: str = ""
    qk_norm_if: Setting = flag(True)
    q_norm: str = "q_norm"
    k_norm: str = "k_norm"
    norm: Norm | None = None
    each: str = ""
    after_rope: bool = False
    pairs: bool = False
    scale: Setting = number(None, optional=True)
    cap: Setting = number(None, optional=True)
    sinks: str = ""
    growth: Growth | None = None

    @property
    def rope_width(self) -> int:
        """Width of the heads that a rope turns, wholly or in part."""
        return self.head_dim

    @property
    def how(self) -> str:
        """The kind of norm of queries and keys that the model has."""
        return self.qk_norm if self.qk_norm_if else ""

    def build(self, b: Builder, x: Value, layer: Layer) -> Value:
        """f32[1, seq, hidden] of the same."""
        q, k, v, gate = self._matrices(b, layer)
        query = self._turned(b, q, x, layer, "q", self.heads)
        key = self._turned(b, k, x, layer, "k", self.kv_heads)
        mixed = self._attend(b, self._grown(b, query, layer), key, b.apply(x, v), layer)
        at, width = f"{layer.base}.{self.at}", self.heads * self.head_dim
        if gate is not None:
            open_ = b.same("Sigmoid", [b.apply(x, gate)], f"{at}gate")
            mixed = b.same("Mul", [mixed, open_], f"{at}gated")
        return b.linear(mixed, at + self.o, b.hidden, width, self.out_bias)

    # ---- projections ----

    def _matrices(self, b: Builder, layer: Layer) -> tuple[Matrix, Matrix, Matrix, Matrix | None]:
        """The matrices of queries, keys, values and gates."""
        at, width = f"{layer.base}.{self.at}", self.head_dim
        wide, narrow = self.heads * width, self.kv_heads * width
        if self.fused:
            whole = b.matrix(at + self.fused, wide + 2 * narrow, b.hidden, self.bias)
            parts = split(whole, self.order, {"q": wide, "k": narrow, "v": narrow}, self.kv_heads)
            q, k, v = (parts[name].called(at + module) for name, module in zip("qkv", self._modules, strict=True))
            return q, k, v, None
        q = b.matrix(at + self.q, wide * (2 if self.gated else 1), b.hidden, self.bias)
        k = b.matrix(at + self.k, narrow, b.hidden, self.bias)
        v = b.matrix(at + self.v, narrow, b.hidden, self.bias)
        if not self.gated:
            return q, k, v, None
        parts = split(q, "g:q|gate", {"q": wide, "gate": wide}, self.heads)
        return parts["q"].called(q.module), k, v, parts["gate"].called(f"{at}gate_proj")

    @property
    def _modules(self) -> tuple[str, str, str]:
        return self.q, self.k, self.v

    def _turned(self, b: Builder, matrix: Matrix, x: Value, layer: Layer, role: str, heads: int) -> Value:
        """Queries or keys: projection, norm and rope in the part's order, f32[1, seq, heads * head_dim]."""
        order = None
        if self.pairs and layer.rope is not None:
            order = halves_of_pairs(b.turned(layer.rope, self.head_dim), self.head_dim)
        value = b.apply(x, matrix if order is None else matrix.gather(for_heads(order, heads)))
        if self.how and not self.after_rope:
            value = self._normed(b, value, layer, role, heads, order)
        if layer.rope is not None:
            value = self._rotated(b, value, layer, role, heads)
        if self.how and self.after_rope:
            value = self._normed(b, value, layer, role, heads, order)
        return value

    def _rotated(self, b: Builder, value: Value, layer: Layer, role: str, heads: int) -> Value:
        assert layer.rope is not None
        cos, sin = rope_table(b, layer.rope, self.head_dim)
        attrs: dict[str, object] = {"num_heads": heads}
        turned = b.turned(layer.rope, self.head_dim)
        if turned != self.head_dim:
            attrs["rotary_embedding_dim"] = turned
        name = f"{layer.base}.{self.at}{role}_rope"
        return b.add("RotaryEmbedding", [value, cos, sin], name, value.shape, attrs)

    def _normed(self, b: Builder, value: Value, layer: Layer, role: str, heads: int, order: np.ndarray | None) -> Value:
        module = f"{layer.base}.{self.at}{self.q_norm if role == 'q' else self.k_norm}"
        norm, width = self.norm or layer.norm, self.head_dim
        if self.how == "full":
            return b.norm(value, module, norm, heads * width, None if order is None else for_heads(order, heads))
        split_value = b.heads(value, heads, width, f"{module}.heads")
        if self.how == "head":
            normed = b.norm(split_value, module, norm, width, order)
        else:
            normed = self._normed_each(b, split_value, module, norm, heads, order)
        return b.merged(normed, heads * width, f"{module}.merged")

    def _normed_each(
        self, b: Builder, value: Value, module: str, norm: Norm, heads: int, order: np.ndarray | None
    ) -> Value:
        """A norm with a weight for each head: one without a weight, and a product."""
        if self.each:
            modules = [f"{module}.{self.each.format(h=head)}" for head in range(heads)]
            rows = [b.norm_weight(name, norm, (self.head_dim,)) for name in modules]
            weight = row_concat([reshaped(row, (1, self.head_dim)) for row in rows])
        else:
            weight = b.norm_weight(module, norm, (heads, self.head_dim))
        if order is not None:
            weight = transposed(row_gather(transposed(weight), order))
        ones = InlineTensor(np.ones(self.head_dim, np.float32))
        attrs = {"axis": -1, "epsilon": norm.epsilon}
        op = "RMSNormalization" if norm.kind == "rms" else "LayerNormalization"
        plain = b.add(op, [value, b.const(f"{module}.ones", ones)], f"{module}.plain", value.shape, attrs)
        return b.same("Mul", [plain, b.const(f"{module}.weight", weight)], module)

    def _grown(self, b: Builder, query: Value, layer: Layer) -> Value:
        growth = self.growth
        if growth is None or not growth.beta or not growth.original or growth.original >= b.context:
            return query
        name = f"query_growth_{growth.beta:g}"
        if name not in b.made:
            shape = (1, b.seq, 1)
            real = b.add("Cast", [b.positions], f"{name}.positions", (1, b.seq), {"to": F32.onnx})
            real = b.add("Unsqueeze", [real, b.ints("axis_2", 2)], f"{name}.column", shape)
            turns = b.add("Div", [real, b.setting(f"{name}.original", growth.original)], f"{name}.turns", shape)
            turns = b.add("Floor", [turns], f"{name}.floor", shape)
            one = b.setting("one", 1.0)
            log = b.add("Log", [b.add("Add", [turns, one], f"{name}.counted", shape)], f"{name}.log", shape)
            log = b.add("Mul", [log, b.setting(f"{name}.beta", growth.beta)], f"{name}.scaled", shape)
            b.made[name] = b.add("Add", [log, one], name, shape)
        return b.same("Mul", [query, b.made[name]], f"{layer.base}.{self.at}q_grown")

    # ---- attention ----

    def _attend(self, b: Builder, query: Value, key: Value, value: Value, layer: Layer) -> Value:
        inputs: list[Value | None] = [query, key, value]
        attrs: dict[str, object] = {"q_num_heads": self.heads, "kv_num_heads": self.kv_heads, "is_causal": 1}
        op = "Attention"
        if self.sinks:
            name = f"{layer.base}.{self.at}{self.sinks}"
            op = "lading.SinkAttention"
            inputs.append(b.const(name, b.stored.get(name, (self.heads,))))
        if layer.window is not None and layer.window < b.context:
            attrs["is_causal"] = 0
            inputs.append(b.mask(layer.window))
        if self.scale is not None and not math.isclose(self.scale, self.head_dim**-0.5, rel_tol=1e-7):
            attrs["scale"] = self.scale
        if self.cap is not None:
            attrs["softcap"] = self.cap
        name = f"{layer.base}.{self.at}attention"
        return b.add(op, inputs, name, b.rows(self.heads * self.head_dim), attrs)


__all__ = ["Growth", "Softmax"]
