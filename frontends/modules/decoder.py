"""The graph of a decoder: a checked configuration and the checkpoint's tensors to standard operators.

The graph has one input, the token ids of one sequence, and one output, the logits of every position. Positions are
computed from the shape of the input, and the tables of the rope from the positions: what a runtime feeds itself is for
later passes to find out. Nothing is simplified here beyond what the family's definition says, weights keep their own
constants (recipes over the files, nothing is read), and values are named after the modules whose output they are.

Queries and keys turned by neighbours (`Family.rope_pairs`) are turned by halves after a permutation of the rows of the
weights that make them; the product of a query and a key does not change when both are permuted alike.

A table that depends on the length of the sequence (see `frontends.modules.rope`) is computed from the largest position
of the call. With a key/value cache old keys keep the rotation they were stored with, as in the reference
implementation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from frontends.checkpoint.config_file import ACTIVATIONS, ModelConfig
from frontends.checkpoint.match_tensors import LayerLayout, Layout, Linear
from frontends.modules.rope import RopeTable, Stretch, Switch, table
from ir.base.types import BOOL, F32, I64, Dim, DType, Shape, TensorType
from ir.graph.graph import OPSET, Graph, Value
from ir.tensor.base import Tensor
from ir.tensor.elementwise import cast, shifted
from ir.tensor.inline import InlineTensor
from ir.tensor.rearranged import row_gather, row_slice, transposed

OWN_DOMAIN = "lading"


def build_decoder(config: ModelConfig, layout: Layout, tensors: Mapping[str, Tensor], name: str) -> Graph:
    """The graph ``input_ids: i64[1, seq] -> logits: f32[1, seq, vocab]``.

    Args:
        config: the configuration.
        layout: where its tensors are; every key of ``layout.shapes`` must be in `tensors` with that shape.
        tensors: stored tensors of any float type.
        name: name of the graph.
    """
    return _Decoder(config, layout, tensors, name).build()


class _Decoder:
    """One construction; methods add the nodes of one part and return its result."""

    def __init__(self, config: ModelConfig, layout: Layout, tensors: Mapping[str, Tensor], name: str) -> None:
        self.config = config
        self.layout = layout
        self.tensors = tensors
        self.graph = Graph(name, opsets={"": OPSET, OWN_DOMAIN: 1})
        self.seq = self.graph.add_dim(Dim("seq", 1, config.context))
        self.order = _pairs_to_halves(config) if config.family.rope_pairs else None
        self.masks: dict[int, Value] = {}
        self.numbers: dict[tuple[str, tuple[int, ...] | float], Value] = {}

    def build(self) -> Graph:
        config, layout, names = self.config, self.layout, self.config.family.names
        ids = self.graph.add_input("input_ids", TensorType(I64, (1, self.seq)))
        self.positions = self._positions(ids)
        if any(layer.rope for layer in config.layers):
            self.cos, self.sin = self._rope_table()
        embedding = self.graph.add_const(layout.embed, cast(self.tensors[layout.embed], F32))
        hidden = self._add("Gather", [embedding, ids], f"{layout.prefix}{names.embed}", self._rows(), {"axis": 0})
        hidden = self._times(hidden, config.embedding_scale, "embedding_scale")
        for index in range(len(config.layers)):
            hidden = self._layer(hidden, index)
        hidden = self._norm(hidden, layout.norm)
        self.graph.set_outputs([self._head(hidden, embedding)])
        return self.graph

    # ---- small parts ----

    def _add(
        self,
        op: str,
        inputs: Sequence[Value | None],
        name: str,
        shape: Shape | None,
        attrs: Mapping[str, object] | None = None,
        dtype: DType = F32,
        loc: str = "",
    ) -> Value:
        types = (TensorType(dtype, shape),)
        return self.graph.add(op, inputs, attrs, outputs=(name,), types=types, name=name, loc=loc).output

    def _rows(self, width: int | None = None) -> Shape:
        return (1, self.seq, self.config.hidden_size if width is None else width)

    def _const(self, name: str, array: np.ndarray) -> Value:
        return self.graph.add_const(name, InlineTensor(array))

    def _setting(self, name: str, value: float | np.ndarray) -> Value:
        """A float32 constant that follows from the configuration."""
        return self.graph.add_const(name, InlineTensor(np.asarray(value, np.float32), loc="config.json"))

    def _ints(self, name: str, *values: int) -> Value:
        """A shared int64 vector."""
        found = self.numbers.get((name, values))
        if found is None:
            found = self.numbers[name, values] = self._const(name, np.array(values, np.int64))
        return found

    def _times(self, value: Value, factor: float, name: str, of: str = "") -> Value:
        """Multiply by a number of the configuration; one is left out."""
        if factor == 1.0:
            return value
        scale = self.numbers.get((name, factor))
        if scale is None:
            scale = self.numbers[name, factor] = self._setting(name, factor)
        return self._add("Mul", [value, scale], of or f"{value.name}.scaled", value.shape)

    def _norm_weight(self, module: str) -> Tensor:
        return shifted(cast(self.tensors[f"{module}.weight"], F32), self.config.family.norm_offset)

    def _norm(self, value: Value, module: str, weight: Tensor | None = None) -> Value:
        weight = self._norm_weight(module) if weight is None else weight
        const = self.graph.add_const(f"{module}.weight", weight)
        attrs = {"axis": -1, "epsilon": self.config.epsilon}
        return self._add("RMSNormalization", [value, const], module, value.shape, attrs, loc=const.loc)

    def _linear(self, value: Value, linear: Linear, order: np.ndarray | None = None) -> Value:
        """``value @ W.T + b``; `order` permutes the output elements."""
        weight = self.graph.add_const(f"{linear.module}.weight", transposed(self._part(linear, linear.weight, order)))
        shape = self._rows(linear.outputs)
        name = linear.module if linear.bias is None else f"{linear.module}.matmul"
        result = self._add("MatMul", [value, weight], name, shape, loc=weight.loc)
        if linear.bias is None:
            return result
        bias = self.graph.add_const(f"{linear.module}.bias", self._part(linear, linear.bias, order))
        return self._add("Add", [result, bias], linear.module, shape, loc=bias.loc)

    def _part(self, linear: Linear, key: str, order: np.ndarray | None) -> Tensor:
        tensor = row_slice(cast(self.tensors[key], F32), linear.rows, linear.rows + linear.outputs)
        return tensor if order is None else row_gather(tensor, order)

    # ---- positions, rope, masks ----

    def _positions(self, ids: Value) -> Value:
        shape = self._add("Shape", [ids], "input_shape", (2,), dtype=I64)
        axis = self._const("sequence_axis", np.array(1, np.int64))
        length = self._add("Gather", [shape, axis], "sequence_length", (), {"axis": 0}, I64)
        start = self._const("range_start", np.array(0, np.int64))
        step = self._const("range_step", np.array(1, np.int64))
        steps = self._add("Range", [start, length, step], "range", (self.seq,), dtype=I64)
        return self._add("Unsqueeze", [steps, self._ints("axis_0", 0)], "positions", (1, self.seq), dtype=I64)

    def _rope_table(self) -> tuple[Value, Value]:
        """cos and sin of every position, f32[1, seq, rotary_dim / 2]."""
        ropes = table(self.config.rope)
        real = self._add("Cast", [self.positions], "rope.positions", (1, self.seq), {"to": F32.onnx})
        column = self._add("Unsqueeze", [real, self._ints("axis_2", 2)], "rope.column", (1, self.seq, 1))
        shape = self._rows(self.config.rotary_dim // 2)
        angles = self._add("Mul", [column, self._frequencies(ropes, column)], "rope.angles", shape)
        found = []
        for op, name in (("Cos", "rope.cos"), ("Sin", "rope.sin")):
            wave = self._add(op, [angles], name, shape)
            found.append(self._times(wave, ropes.attention_factor, "rope.attention_factor"))
        return found[0], found[1]

    def _frequencies(self, ropes: RopeTable, column: Value) -> Value:
        """The frequencies: a constant f32[n/2], or f32[1, 1, n/2] computed from the largest position."""
        base = self._setting("rope.inv_freq", ropes.inv_freq)
        variant = ropes.variant
        if variant is None or self.config.context <= variant.limit:
            return base
        last = self._add("ReduceMax", [column, self._ints("axis_1", 1)], "rope.last", (1, 1, 1), {"keepdims": 1})
        if isinstance(variant, Switch):
            return self._switched(base, variant, last)
        return self._stretched(base, variant, last)

    def _switched(self, base: Value, variant: Switch, last: Value) -> Value:
        """The other frequencies when the sequence (last position + 1) is longer than the threshold."""
        shape = (1, 1, self.config.rotary_dim // 2)
        bound = self._setting("rope.threshold", variant.limit - 1)
        longer = self._add("Greater", [last, bound], "rope.longer", (1, 1, 1), dtype=BOOL)
        other = self._setting("rope.inv_freq_long", variant.inv_freq)
        return self._add("Where", [longer, other, base], "rope.frequencies", shape)

    def _stretched(self, base: Value, variant: Stretch, last: Value) -> Value:
        """``base * exp(-exponents * ln(1 + slope * max(0, last + 1 - limit)))``."""
        one, shape = (1, 1, 1), (1, 1, self.config.rotary_dim // 2)
        offset = self._setting("rope.offset", 1 - variant.limit)
        zero = self._setting("rope.zero", 0.0)
        slope = self._setting("rope.slope", variant.slope)
        unit = self._setting("rope.one", 1.0)
        exponents = self._setting("rope.exponents", -variant.exponents)
        beyond = self._add("Add", [last, offset], "rope.beyond", one)
        beyond = self._add("Max", [beyond, zero], "rope.excess", one)
        growth = self._add("Mul", [beyond, slope], "rope.growth", one)
        ratio = self._add("Add", [growth, unit], "rope.ratio", one)
        power = self._add("Log", [ratio], "rope.log_ratio", one)
        power = self._add("Mul", [power, exponents], "rope.powers", shape)
        factor = self._add("Exp", [power], "rope.factors", shape)
        return self._add("Mul", [factor, base], "rope.frequencies", shape)

    def _mask(self, window: int) -> Value:
        """The mask shared by all layers with a window."""
        if window not in self.masks:
            shape = (1, 1, self.seq, self.seq)
            op, name = f"{OWN_DOMAIN}.SlidingWindowMask", f"mask.window_{window}"
            self.masks[window] = self._add(op, [self.positions], name, shape, {"window": window}, BOOL)
        return self.masks[window]

    # ---- layers ----

    def _layer(self, hidden: Value, index: int) -> Value:
        layer = self.layout.layers[index]
        value = self._attention(self._slot_norm(hidden, layer, "attn_in"), index)
        hidden = self._residual(hidden, self._slot_norm(value, layer, "attn_out"), f"{layer.base}.attn_residual")
        value = self._mlp(self._slot_norm(hidden, layer, "mlp_in"), layer)
        return self._residual(hidden, self._slot_norm(value, layer, "mlp_out"), layer.base)

    def _slot_norm(self, value: Value, layer: LayerLayout, slot: str) -> Value:
        """The norm of a slot, where the family has one."""
        return self._norm(value, layer.norms[slot]) if slot in layer.norms else value

    def _residual(self, hidden: Value, value: Value, name: str) -> Value:
        value = self._times(value, self.config.residual_scale, "residual_scale")
        return self._add("Add", [hidden, value], name, self._rows())

    def _attention(self, value: Value, index: int) -> Value:
        config, layer, settings = self.config, self.layout.layers[index], self.config.layers[index]
        query = self._queries(value, layer, "q", config.heads, settings.rope)
        key = self._queries(value, layer, "k", config.kv_heads, settings.rope)
        inputs = [query, key, self._linear(value, layer.linears["v"])]
        attrs: dict[str, object] = {"q_num_heads": config.heads, "kv_num_heads": config.kv_heads, "is_causal": 1}
        if settings.window is not None and settings.window < config.context:
            attrs["is_causal"] = 0
            inputs.append(self._mask(settings.window))
        scale = config.attention_scale
        if scale is not None and not math.isclose(scale, config.head_dim**-0.5, rel_tol=1e-7):
            attrs["scale"] = scale
        name = f"{layer.base}.self_attn.attention"
        mixed = self._add("Attention", inputs, name, self._rows(config.heads * config.head_dim), attrs)
        return self._linear(mixed, layer.linears["o"])

    def _queries(self, value: Value, layer: LayerLayout, role: str, heads: int, turned: bool) -> Value:
        """Queries or keys: projection, norm and rope in the family's order, f32[1, seq, heads * head_dim]."""
        family = self.config.family
        order = None if self.order is None else _for_heads(self.order, heads)
        value = self._linear(value, layer.linears[role], order)
        if family.qk_norm and not family.qk_norm_after_rope:
            value = self._query_norm(value, layer, role, heads, order)
        if turned:
            value = self._rope(value, layer, role, heads)
        if family.qk_norm and family.qk_norm_after_rope:
            value = self._query_norm(value, layer, role, heads, order)
        return value

    def _rope(self, value: Value, layer: LayerLayout, role: str, heads: int) -> Value:
        attrs = {"num_heads": heads}
        if self.config.rotary_dim != self.config.head_dim:
            attrs["rotary_embedding_dim"] = self.config.rotary_dim
        name = f"{layer.base}.self_attn.{role}_rope"
        return self._add("RotaryEmbedding", [value, self.cos, self.sin], name, value.shape, attrs)

    def _query_norm(self, value: Value, layer: LayerLayout, role: str, heads: int, order: np.ndarray | None) -> Value:
        module, width = layer.norms[f"{role}_norm"], self.config.head_dim
        weight = self._norm_weight(module)
        if self.config.family.qk_norm == "full":
            return self._norm(value, module, weight if order is None else row_gather(weight, order))
        shape = (1, self.seq, heads, width)
        split = self._ints(f"heads_{heads}", 0, 0, heads, width)
        value = self._add("Reshape", [value, split], f"{module}.heads", shape)
        value = self._norm(value, module, weight if self.order is None else row_gather(weight, self.order))
        merge = self._ints("merge_heads", 0, 0, -1)
        return self._add("Reshape", [value, merge], f"{module}.merged", self._rows(heads * width))

    def _mlp(self, value: Value, layer: LayerLayout) -> Value:
        op, attrs = ACTIVATIONS[self.config.activation]
        gate = self._linear(value, layer.linears["gate"])
        up = self._linear(value, layer.linears["up"])
        active = self._add(op, [gate], f"{layer.base}.mlp.act_fn", gate.shape, attrs)
        product = self._add("Mul", [active, up], f"{layer.base}.mlp.product", up.shape)
        return self._linear(product, layer.linears["down"])

    def _head(self, hidden: Value, embedding: Value) -> Value:
        key = self.layout.head
        name = self.config.family.names.head if key is None else key.removesuffix(".weight")
        tensor = embedding.tensor if key is None else cast(self.tensors[key], F32)
        weight = self.graph.add_const(f"{name}.weight", transposed(tensor))
        scale, shape = self.config.logit_scale, self._rows(self.config.vocab_size)
        logits = self._add("MatMul", [hidden, weight], "logits" if scale == 1.0 else name, shape, loc=weight.loc)
        return self._times(logits, scale, "logit_scale", "logits")


def _pairs_to_halves(config: ModelConfig) -> np.ndarray:
    """Order of the elements of one head that makes the halves of neighbours: even ones, odd ones, the rest."""
    turned = np.arange(config.rotary_dim)
    return np.concatenate([turned[::2], turned[1::2], np.arange(config.rotary_dim, config.head_dim)])


def _for_heads(order: np.ndarray, heads: int) -> np.ndarray:
    """The order of one head, repeated for all heads of a projection."""
    return (np.arange(heads)[:, None] * len(order) + order).reshape(-1)
