"""Decoders of many families in the canonical form, from a short description: random weights, standard operators.

The form is that of graphs from checkpoints (`frontends.families.decoder`): token ids ``i64[1, seq]`` to the logits of all
positions, positions from the shape of the ids, no history and no mask but windows. What differs between families is a
field of `Form`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backends.mnn.target.releases import target as releases
from backends.mnn.tokenizer.placeholder import write_placeholder
from backends.mnn.write.configs import config_for
from backends.mnn.write.llm_folder import Settings, emit
from ir.base.types import I64, Dim, TensorType
from ir.graph.graph import OPSET, Graph, Value
from ir.tensor.inline import InlineTensor
from passes.framework.context import PassContext
from passes.framework.manager import PassManager

CONTEXT = 256
VOCABULARY = 130


@dataclass(frozen=True)
class Form:
    """What a family's decoder looks like.

    Attributes:
        hidden, heads, kv_heads, size, inner, layers: sizes; `size` is that of a head.
        value_size: that of the values of a head, where it is another.
        norm: ``rms``, ``layer``, ``layer-plain`` (no shift).
        block: ``serial``, ``parallel`` (one norm, attention and MLP side by side), ``two-norms`` (side by side, each
            with a norm of its own) or ``sandwich`` (norms behind attention and MLP too).
        query_norm: norms of queries and keys before they are turned: ``rms`` or ``layer`` of each head,
            ``layer-by-head`` with gains of their own for each head, ``row`` of all heads together, or nothing.
        norm_behind: those norms come behind the rotation.
        rotary: elements of a head that are turned.
        turned: whether each layer turns queries and keys at all, repeated.
        interleaved: neighbours are turned, not halves.
        tables: ``computed`` from positions, by an outer ``product`` and a choice of half the width, ``baked`` and
            gathered by positions, ``positions`` where baked tables are operands of the rotation and so are positions.
        factor: of the tables.
        gated: the MLP has a gate.
        activation: of the MLP, see `ACTIVATIONS`.
        bias: linear layers have biases.
        split: attention is over ``[1, heads, seq, size]``, and so is the rotation.
        scale: of the scores; None for the usual one.
        score_cap: scores are ``cap * tanh(scores / cap)``.
        windows: width of the window of each layer, 0 for none, repeated.
        products: ``rows`` where linear layers are ``Gemm`` of ``[seq, width]``, between reshapes.
        sinks: attention has a sink for each head.
        gate: attention's result is multiplied by the sigmoid of a product of its own.
        growth: queries grow by ``beta * log(1 + floor(position / length))``, these two; nothing without a length.
        mixers: what joins the positions in each layer, repeated: ``softmax``, ``delta`` for the gated delta rule with
            two heads of keys, four of values and a convolution of four, or ``latent`` for keys and values that are
            products with a vector of 24 elements, `rotary` elements of the keys being turned and shared.
        own_head: the logits' matrix is not the embedding.
        head_bias: the logits have a bias.
        embedding_scale, residual_scale, logit_scale: factors.
        cap: the logits are ``cap * tanh(logits / cap)``.
    """

    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    size: int = 16
    value_size: int = 0
    inner: int = 96
    layers: int = 2
    norm: str = "rms"
    block: str = "serial"
    query_norm: str = ""
    norm_behind: bool = False
    turned: tuple[bool, ...] = (True,)
    rotary: int = 16
    interleaved: bool = False
    tables: str = "computed"
    factor: float = 1.0
    gated: bool = True
    activation: str = "silu"
    bias: bool = False
    split: bool = False
    scale: float | None = None
    score_cap: float = 0.0
    windows: tuple[int, ...] = (0,)
    products: str = ""
    sinks: bool = False
    gate: bool = False
    growth: tuple[float, int] = (0.0, 0)
    mixers: tuple[str, ...] = ("softmax",)
    own_head: bool = False
    head_bias: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    cap: float = 0.0


class Builder:
    """Adds nodes to a graph, whose types the pass ``infer-types`` finds out; constants are random unless given."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.graph = Graph("decoder", {"": OPSET, "lading": 1})
        self.seq = self.graph.add_dim(Dim("seq", 1, CONTEXT))
        self.ids = self.graph.add_input("input_ids", TensorType(I64, (1, self.seq)))

    def op(self, op: str, *inputs: Value | None, outputs: int = 1, **attrs: object) -> Value:
        """A node; its first result."""
        names = [f"{op.lower()}{place or ''}" for place in range(outputs)]
        return self.graph.add(op, inputs, attrs, outputs=names, types=[None] * outputs).outputs[0]

    def const(self, array: np.ndarray, name: str = "const") -> Value:
        """A constant."""
        return self.graph.add_const(name, InlineTensor(array))

    def number(self, value: float) -> Value:
        """A scalar of single precision."""
        return self.const(np.array(value, np.float32), "number")

    def ints(self, *values: int) -> Value:
        """An int64 vector."""
        return self.const(np.array(values, np.int64), "ints")

    def vector(self, size: int, around: float = 0.0, spread: float = 0.5) -> Value:
        """A random vector."""
        return self.const(self.random.normal(around, spread, size).astype(np.float32), "vector")

    def matrix(self, rows: int, columns: int, spread: float = 1.0, name: str = "weight") -> Value:
        """A random matrix ``[rows, columns]`` that keeps the size of what it multiplies, times `spread`."""
        made = self.random.normal(0, spread / np.sqrt(rows), (rows, columns))
        return self.const(made.astype(np.float32), name)


def _gelu_by_erf(b: Builder, x: Value) -> Value:
    gate = b.op("Add", b.op("Erf", b.op("Div", x, b.number(2**0.5))), b.number(1))
    return b.op("Mul", b.op("Mul", x, gate), b.number(0.5))


ACTIVATIONS: dict[str, Callable[[Builder, Value], Value]] = {
    "silu": lambda b, x: b.op("Swish", x),
    "silu-parts": lambda b, x: b.op("Mul", x, b.op("Sigmoid", x)),
    "quick-gelu": lambda b, x: b.op("Swish", x, alpha=1.702),
    "quick-gelu-parts": lambda b, x: b.op("Mul", x, b.op("Sigmoid", b.op("Mul", b.number(1.702), x))),
    "gelu": lambda b, x: b.op("Gelu", x),
    "gelu-tanh": lambda b, x: b.op("Gelu", x, approximate="tanh"),
    "gelu-erf": _gelu_by_erf,
    "relu": lambda b, x: b.op("Relu", x),
    "relu-squared": lambda b, x: b.op("Pow", b.op("Relu", x), b.number(2)),
    "sigmoid": lambda b, x: b.op("Sigmoid", x),
    "tanh": lambda b, x: b.op("Tanh", x),
    "softplus": lambda b, x: b.op("Softplus", x),
    "softsign": lambda b, x: b.op("Softsign", x),
    "mish": lambda b, x: b.op("Mish", x),
    "elu": lambda b, x: b.op("Elu", x, alpha=0.7),
    "celu": lambda b, x: b.op("Celu", x, alpha=0.7),
    "selu": lambda b, x: b.op("Selu", x),
    "leaky": lambda b, x: b.op("LeakyRelu", x, alpha=0.2),
    "hard-swish": lambda b, x: b.op("HardSwish", x),
    "hard-sigmoid": lambda b, x: b.op("HardSigmoid", x),
    "clip": lambda b, x: b.op("Clip", x, b.number(-0.5), b.number(0.8)),
    "clip-low": lambda b, x: b.op("Clip", x, b.number(-0.5)),
    "clip-high": lambda b, x: b.op("Clip", x, None, b.number(0.8)),
}
"""Activations by name."""


class _Decoder(Builder):
    def __init__(self, form: Form, seed: int) -> None:
        super().__init__(seed)
        self.form = form
        self.masks: dict[int, Value] = {}

    def build(self) -> Graph:
        form = self.form
        self.positions = self._positions()
        self.cos, self.sin = self._tables()
        table = self.const(self.random.normal(0, 1, (VOCABULARY, form.hidden)).astype(np.float32), "embedding")
        x = self._times(self.op("Gather", table, self.ids, axis=0), form.embedding_scale)
        for index in range(form.layers):
            x = self._layer(x, index)
        x = self._norm(x, form.hidden)
        rows = self.random.normal(0, 1, (VOCABULARY, form.hidden)).astype(np.float32) if form.own_head else None
        head = (table.tensor.load() if rows is None else rows).T.copy()
        logits = self.linear(x, VOCABULARY, form.hidden, form.head_bias, weight=self.const(head, "head"))
        logits = self._times(logits, form.logit_scale)
        if form.cap:
            logits = self.op("Tanh", self.op("Div", logits, self.number(form.cap)))
            logits = self.op("Mul", logits, self.number(form.cap))
        self.graph.set_outputs([logits])
        return self.graph

    def linear(
        self,
        x: Value,
        columns: int,
        rows: int,
        bias: bool = False,
        spread: float = 1.0,
        weight: Value | None = None,
    ) -> Value:
        """``x @ W`` and a bias."""
        weight = self.matrix(rows, columns, spread) if weight is None else weight
        shift = self.vector(columns) if bias else None
        if not self.form.products:
            product = self.op("MatMul", x, weight)
            return self.op("Add", product, shift) if bias else product
        flat = self.op("Reshape", x, self.ints(-1, rows))
        turned = self.const(weight.tensor.load().T.copy(), "weight")
        self.graph.erase_const(weight)
        return self.op("Reshape", self.op("Gemm", flat, turned, shift, transB=1), self.ints(1, -1, columns))

    def _times(self, x: Value, factor: float) -> Value:
        return x if factor == 1 else self.op("Mul", x, self.number(factor))

    def _positions(self) -> Value:
        length = self.op("Gather", self.op("Shape", self.ids), self.const(np.array(1, np.int64)), axis=0)
        steps = [self.const(np.array(number, np.int64)) for number in (0, 1)]
        return self.op("Unsqueeze", self.op("Range", steps[0], length, steps[1]), self.ints(0))

    def _tables(self) -> tuple[Value, Value]:
        form = self.form
        angles = (100.0 ** -(np.arange(0, form.rotary, 2) / form.rotary)).astype(np.float32)
        if form.tables == "computed":
            column = self.op("Unsqueeze", self.op("Cast", self.positions, to=1), self.ints(2))
            turned = self.op("Mul", column, self.const(angles))
            found = [self.op(op, turned) for op in ("Cos", "Sin")]
        elif form.tables == "product":
            found = self._product_tables(angles)
        else:
            whole = np.arange(CONTEXT, dtype=np.float32)[:, None] * angles
            made = [self.const(table(whole), name) for table, name in ((np.cos, "cos"), (np.sin, "sin"))]
            found = made
            if form.tables == "baked":
                found = [self.op("Gather", table, self.positions, axis=0) for table in made]
        cos, sin = (self._times(table, form.factor) for table in found)
        return cos, sin

    def _product_tables(self, angles: np.ndarray) -> list[Value]:
        column = self.const(angles[None, :, None])
        column = self.op("Expand", column, self.ints(1, len(angles), 1))
        row = self.op("Cast", self.op("Unsqueeze", self.positions, self.ints(1)), to=1)
        turned = self.op("Transpose", self.op("MatMul", column, row), perm=(0, 2, 1))
        both = self.op("Concat", turned, turned, axis=-1)
        bounds = [self.ints(number) for number in (0, len(angles), 2)]
        return [self.op("Slice", self.op(op, both), *bounds) for op in ("Cos", "Sin")]

    def _norm(self, x: Value, size: int) -> Value:
        kind = self.form.norm
        gain = self.vector(size, 1)
        if kind == "rms":
            return self.op("RMSNormalization", x, gain, axis=-1, epsilon=1e-5)
        shift = () if kind == "layer-plain" else (self.vector(size),)
        return self.op("LayerNormalization", x, gain, *shift, axis=-1, epsilon=1e-5)

    def _layer(self, x: Value, index: int) -> Value:
        form = self.form
        normed = self._norm(x, form.hidden)
        mixer = form.mixers[index % len(form.mixers)]
        if mixer in ("delta", "latent"):
            mixed = self._delta(normed) if mixer == "delta" else self._latent(normed)
        else:
            window, turned = form.windows[index % len(form.windows)], form.turned[index % len(form.turned)]
            mixed = self._attention(normed, window, turned)
        if form.block in ("parallel", "two-norms"):
            other = normed if form.block == "parallel" else self._norm(x, form.hidden)
            return self.op("Add", self.op("Add", mixed, self._mlp(other)), x)
        if form.block == "sandwich":
            mixed = self._norm(mixed, form.hidden)
        x = self.op("Add", x, self._times(mixed, form.residual_scale))
        made = self._mlp(self._norm(x, form.hidden))
        if form.block == "sandwich":
            made = self._norm(made, form.hidden)
        return self.op("Add", x, self._times(made, form.residual_scale))

    def _attention(self, x: Value, window: int, turned: bool) -> Value:
        form = self.form
        query, key = (self._query(x, heads, turned) for heads in (form.heads, form.kv_heads))
        wide = form.value_size or form.size
        value = self.linear(x, form.kv_heads * wide, form.hidden, form.bias)
        attrs: dict[str, object] = {"q_num_heads": form.heads, "kv_num_heads": form.kv_heads}
        if form.split:
            attrs, value = {}, self._split(value, form.kv_heads, wide)
        if form.scale is not None:
            attrs["scale"] = form.scale
        if form.score_cap:
            attrs["softcap"] = form.score_cap
        more = [self._mask(window)] if window else []
        if form.sinks:
            more = [self.vector(form.heads, 1, 2), *more]
        op = "lading.SinkAttention" if form.sinks else "Attention"
        mixed = self.op(op, self._grown(query), key, value, *more, is_causal=int(not window), **attrs)
        if form.split:
            mixed = self.op("Reshape", self.op("Transpose", mixed, perm=(0, 2, 1, 3)), self.ints(0, 0, -1))
        if form.gate:
            gate = self.op("Sigmoid", self.linear(x, form.heads * wide, form.hidden, spread=2))
            mixed = self.op("Mul", mixed, gate)
        return self.linear(mixed, form.hidden, form.heads * wide, form.bias)

    def _grown(self, query: Value) -> Value:
        beta, length = self.form.growth
        if not length:
            return query
        place = self.op("Cast", self.op("Unsqueeze", self.positions, self.ints(2)), to=1)
        steps = self.op("Floor", self.op("Div", place, self.number(length)))
        growth = self.op("Mul", self.op("Log", self.op("Add", steps, self.number(1))), self.number(beta))
        return self.op("Mul", query, self.op("Add", growth, self.number(1)))

    def _latent(self, x: Value) -> Value:
        """Latent attention, the turned part of a head first."""
        form, rank = self.form, 24
        heads, own, values = form.heads, form.size - form.rotary, form.value_size or form.size
        query = self._turned(self.linear(x, heads * form.size, form.hidden, spread=1.5), heads)
        joined = self.linear(x, rank + form.rotary, form.hidden)
        parts = self.graph.add(
            "Split", [joined, self.ints(rank, form.rotary)], {"axis": 2}, outputs=["latent", "shared"], types=[None] * 2
        ).outputs
        latent = self._norm(parts[0], rank)
        shared = self.op("RotaryEmbedding", parts[1], self.cos, self.sin, num_heads=1)
        spread = self.op("Reshape", shared, self.ints(0, 0, 1, form.rotary))
        spread = self.op("Expand", spread, self.ints(1, 1, heads, 1))
        keys = self.op("Reshape", self.linear(latent, heads * own, rank, spread=1.5), self.ints(0, 0, heads, own))
        key = self.op("Reshape", self.op("Concat", spread, keys, axis=3), self.ints(0, 0, heads * form.size))
        value = self.linear(latent, heads * values, rank)
        attrs = {"q_num_heads": heads, "kv_num_heads": heads, "is_causal": 1}
        attrs |= {"scale": form.scale} if form.scale is not None else {}
        mixed = self.op("Attention", query, key, value, **attrs)
        return self.linear(mixed, form.hidden, heads * values)

    def _delta(self, x: Value) -> Value:
        """The gated delta rule, its result normalized by heads and gated."""
        hidden, keys, heads, size, width = self.form.hidden, 2, 4, 8, 12
        channels = 2 * keys * size + heads * width
        kernel = self.const(self.random.normal(0, 0.7, (channels, 1, 4)).astype(np.float32), "conv")
        decay = self.op("Softplus", self.op("Add", self.linear(x, heads, hidden), self.vector(heads)))
        decay = self.op("Mul", decay, self.const(-np.exp(self.random.normal(-1, 0.5, heads)).astype(np.float32)))
        beta = self.op("Sigmoid", self.linear(x, heads, hidden, spread=2))
        sizes = {"num_k_heads": keys, "num_v_heads": heads, "head_k_dim": size, "head_v_dim": width}
        mixed = self.op("lading.GatedDeltaRule", self.linear(x, channels, hidden), decay, beta, kernel, **sizes)
        apart = self.op("Reshape", mixed, self.ints(0, 0, heads, width))
        normed = self.op("RMSNormalization", apart, self.vector(width, 1), axis=-1, epsilon=1e-6)
        gate = self.op("Swish", self.linear(x, heads * width, hidden))
        gated = self.op("Mul", self.op("Reshape", normed, self.ints(0, 0, -1)), gate)
        return self.linear(gated, hidden, heads * width)

    def _mask(self, window: int) -> Value:
        if window not in self.masks:
            self.masks[window] = self.op("lading.SlidingWindowMask", self.positions, window=window)
        return self.masks[window]

    def _split(self, x: Value, heads: int, size: int) -> Value:
        return self.op("Transpose", self.op("Reshape", x, self.ints(0, 0, heads, size)), perm=(0, 2, 1, 3))

    def _query(self, x: Value, heads: int, turned: bool) -> Value:
        """Queries or keys."""
        form = self.form
        x = self.linear(x, heads * form.size, form.hidden, form.bias, spread=1.5)
        x = x if form.norm_behind else self._normed_heads(x, heads)
        x = self._turned(x, heads) if turned else x
        x = self._normed_heads(x, heads) if form.norm_behind else x
        return self._split(x, heads, form.size) if form.split and not turned else x

    def _normed_heads(self, x: Value, heads: int) -> Value:
        form = self.form
        if form.query_norm == "row":
            x = self.op("RMSNormalization", x, self.vector(heads * form.size, 1), axis=-1)
        elif form.query_norm:
            x = self.op("Reshape", x, self.ints(0, 0, heads, form.size))
            op = "RMSNormalization" if form.query_norm == "rms" else "LayerNormalization"
            if form.query_norm == "layer-by-head":
                gains = self.random.normal(1, 0.5, (heads, form.size)).astype(np.float32)
                plain = self.op(op, x, self.const(np.ones(form.size, np.float32)), axis=-1)
                x = self.op("Mul", plain, self.const(gains))
            else:
                x = self.op(op, x, self.vector(form.size, 1), axis=-1)
            x = self.op("Reshape", x, self.ints(0, 0, -1))
        return x

    def _turned(self, x: Value, heads: int) -> Value:
        form = self.form
        attrs: dict[str, object] = {"num_heads": heads}
        if form.split:
            x, attrs = self._split(x, heads, form.size), {}
        if form.rotary != form.size:
            attrs["rotary_embedding_dim"] = form.rotary
        places = (self.positions,) if form.tables == "positions" else ()
        return self.op("RotaryEmbedding", x, self.cos, self.sin, *places, interleaved=int(form.interleaved), **attrs)

    def _mlp(self, x: Value) -> Value:
        form = self.form
        made = self.linear(x, form.inner, form.hidden, form.bias, spread=2)
        made = ACTIVATIONS[form.activation](self, made)
        if form.gated:
            made = self.op("Mul", made, self.linear(x, form.inner, form.hidden, form.bias))
        return self.linear(made, form.hidden, form.inner, form.bias)


def decoder(form: Form, seed: int = 0) -> Graph:
    """The graph of a decoder."""
    return _Decoder(form, seed).build()


def written(graph: Graph, folder: Path, pipeline: str = "fp32", target: str = "portable") -> Graph:
    """Lower a graph, which is edited, and write its model directory; returns the lowered graph."""
    wanted = releases(target)
    PassManager(pipeline).run(graph, PassContext(wanted))
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(1) as side:
        emit(
            graph,
            folder,
            tokenizer=lambda: write_placeholder(folder, wanted, VOCABULARY),
            sampling={},
            target=wanted,
            settings=Settings(),
            executor=pool,
            side=side,
        )
    return graph


def logits_in_pieces(folder: Path, version: str, parts: Sequence[Sequence[int]]) -> np.ndarray:
    """Logits of all positions, the ids fed to the cache in pieces, in exact arithmetic; float32[tokens, vocabulary]."""
    from backends.mnn.run.native import run_model
    from tests.support.runs import interpreters

    config = config_for(folder, version)
    action = {"do": "forward", "pieces": [list(map(int, part)) for part in parts]}
    run = run_model(config, [action], interpreter=interpreters()[version], timeout_s=120)
    return np.concatenate(run.require(str(config)).results[0]["logits"])
