"""Decoders as tracing exporters write them, of any length: the input of the graph-size measurements.

Every literal is a ``Constant`` node, every shape is computed from ``Shape`` again and again, and nothing is shared
between layers: about 220 nodes a layer with grouped-query attention, rotary positions and a key/value cache.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HIDDEN, HEADS, KV_HEADS, WIDTH, INNER, VOCAB = 64, 4, 2, 16, 128, 256
OPSET = 17


class _Tracer:
    """Appends nodes to a graph the way a tracer does: names from the module path, constants in place."""

    def __init__(self, graph: onnx.GraphProto, random: np.random.Generator) -> None:
        self.graph = graph
        self.random = random
        self.counts: dict[str, int] = {}
        self.scope = ""

    def op(self, op_type: str, *inputs: str, output: str = "", **attrs: object) -> str:
        """Append a node; returns the name of its output."""
        path = f"{self.scope}/{op_type}"
        number = self.counts[path] = self.counts.get(path, -1) + 1
        name = f"{path}_{number}" if number else path
        output = output or f"{name}_output_0"
        self.graph.node.append(helper.make_node(op_type, inputs, [output], name, **attrs))
        return output

    def const(self, data: object, dtype: type = np.int64) -> str:
        """A literal."""
        return self.op("Constant", value=numpy_helper.from_array(np.asarray(data, dtype)))

    def weight(self, name: str, *shape: int) -> str:
        """An initializer with small random numbers."""
        data = (self.random.standard_normal(shape) * 0.05).astype(np.float32)
        self.graph.initializer.append(numpy_helper.from_array(data, name))
        return name

    def size(self, value: str, axis: int) -> str:
        """``value.size(axis)``."""
        return self.op("Gather", self.op("Shape", value), self.const(axis), axis=0)

    def shape(self, *sizes: str | int) -> str:
        """A shape vector of traced sizes and numbers."""
        parts = [self.const([s]) if isinstance(s, int) else self.op("Unsqueeze", s, self.const([0])) for s in sizes]
        return self.op("Concat", *parts, axis=0)


def make_decoder(layers: int, seed: int = 0) -> onnx.ModelProto:
    """A decoder with inputs ``input_ids``, ``attention_mask``, ``position_ids`` and past keys and values of each
    layer."""
    graph = onnx.GraphProto(name="main_graph")
    t = _Tracer(graph, np.random.default_rng(seed))
    for name, shape in (
        ("input_ids", ("batch", "seq")),
        ("attention_mask", ("batch", "total")),
        ("position_ids", ("batch", "seq")),
    ):
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, shape))
    for layer in range(layers):
        for kind in ("key", "value"):
            shape = ("batch", KV_HEADS, "past", WIDTH)
            name = f"past_key_values.{layer}.{kind}"
            graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    t.scope = "/model"
    hidden = t.op("Gather", t.weight("model.embed_tokens.weight", VOCAB, HIDDEN), "input_ids")
    mask, rotary = _mask(t), _rotary(t)
    for layer in range(layers):
        hidden = _layer(t, hidden, mask, rotary, layer)
    t.scope = "/lm_head"
    t.op("MatMul", _norm(t, hidden, "model.norm.weight"), t.weight("lm_head.weight", HIDDEN, VOCAB), output="logits")
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("batch", "seq", VOCAB)))
    for layer in range(layers):
        for kind in ("key", "value"):
            shape = ("batch", KV_HEADS, "total", WIDTH)
            graph.output.append(helper.make_tensor_value_info(f"present.{layer}.{kind}", TensorProto.FLOAT, shape))
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8, producer_name="pytorch"
    )


def _mask(t: _Tracer) -> str:
    """An additive causal mask ``[batch, 1, seq, total]``."""
    seq, total = t.size("input_ids", 1), t.size("attention_mask", 1)
    columns = t.op("Range", t.const(0), total, t.const(1))
    rows = t.op("Add", t.op("Range", t.const(0), seq, t.const(1)), t.op("Sub", total, seq))
    later = t.op("Greater", columns, t.op("Unsqueeze", rows, t.const([1])))
    padded = t.op("Equal", t.op("Unsqueeze", "attention_mask", t.const([1, 2])), t.const(0))
    hidden = t.op("Or", t.op("Unsqueeze", later, t.const([0, 1])), padded)
    return t.op("Where", hidden, t.const(-1e9, np.float32), t.const(0.0, np.float32))


def _rotary(t: _Tracer) -> tuple[str, str]:
    frequencies = t.const(1.0 / 10000.0 ** (np.arange(0, WIDTH, 2) / WIDTH), np.float32)
    positions = t.op("Cast", t.op("Unsqueeze", "position_ids", t.const([2])), to=TensorProto.FLOAT)
    angles = t.op("Mul", positions, frequencies)
    both = t.op("Concat", angles, angles, axis=-1)
    return t.op("Cos", both), t.op("Sin", both)


def _norm(t: _Tracer, x: str, weight: str) -> str:
    square = t.op("Pow", x, t.const(2.0, np.float32))
    mean = t.op("ReduceMean", square, axes=[-1])
    root = t.op("Sqrt", t.op("Add", mean, t.const(1e-6, np.float32)))
    scaled = t.op("Mul", x, t.op("Div", t.const(1.0, np.float32), root))
    return t.op("Mul", t.weight(weight, HIDDEN), t.op("Cast", scaled, to=TensorProto.FLOAT))


def _project(t: _Tracer, x: str, name: str, heads: int) -> str:
    """A linear layer, its result split into heads: ``[batch, heads, seq, WIDTH]``."""
    product = t.op("MatMul", x, t.weight(f"{name}.weight", HIDDEN, heads * WIDTH))
    flat = t.op("Add", t.weight(f"{name}.bias", heads * WIDTH), product)
    parts = t.op("Reshape", flat, t.shape(t.size(x, 0), t.size(x, 1), -1, WIDTH))
    return t.op("Transpose", parts, perm=[0, 2, 1, 3])


def _rotate(t: _Tracer, x: str, cos: str, sin: str) -> str:
    half = t.op("Div", t.size(x, 3), t.const(2))
    half = t.op("Cast", t.op("Cast", half, to=TensorProto.INT64), to=TensorProto.INT64)
    first = t.op("Slice", x, t.const([0]), t.op("Unsqueeze", half, t.const([0])), t.const([3]), t.const([1]))
    end = t.const([np.iinfo(np.int64).max])
    second = t.op("Slice", x, t.op("Unsqueeze", half, t.const([0])), end, t.const([3]), t.const([1]))
    turned = t.op("Concat", t.op("Neg", second), first, axis=-1)
    return t.op("Add", t.op("Mul", x, cos), t.op("Mul", turned, sin))


def _repeat(t: _Tracer, x: str) -> str:
    """Keys or values once for every query head, by an expansion with a computed shape."""
    groups = HEADS // KV_HEADS
    batch, total = t.size(x, 0), t.size(x, 2)
    wide = t.op("Unsqueeze", x, t.const([2]))
    wanted = t.shape(batch, KV_HEADS, groups, total, WIDTH)
    ones = t.op("ConstantOfShape", t.op("Shape", wanted), value=numpy_helper.from_array(np.array([1], np.int64)))
    kept = t.op("Equal", wanted, t.op("Mul", ones, t.const(-1)))
    expanded = t.op("Expand", wide, t.op("Where", kept, ones, wanted))
    return t.op("Reshape", expanded, t.shape(t.size(x, 0), HEADS, t.size(x, 2), WIDTH))


def _layer(t: _Tracer, x: str, mask: str, rotary: tuple[str, str], layer: int) -> str:
    scope, name = f"/model/layers.{layer}", f"model.layers.{layer}"
    t.scope = f"{scope}/input_layernorm"
    normed = _norm(t, x, f"{name}.input_layernorm.weight")
    t.scope = f"{scope}/self_attn"
    q = _project(t, normed, f"{name}.self_attn.q_proj", HEADS)
    k = _project(t, normed, f"{name}.self_attn.k_proj", KV_HEADS)
    v = _project(t, normed, f"{name}.self_attn.v_proj", KV_HEADS)
    cos, sin = (t.op("Unsqueeze", part, t.const([1])) for part in rotary)
    q, k = _rotate(t, q, cos, sin), _rotate(t, k, cos, sin)
    past = f"past_key_values.{layer}"
    k = t.op("Concat", f"{past}.key", k, axis=2, output=f"present.{layer}.key")
    v = t.op("Concat", f"{past}.value", v, axis=2, output=f"present.{layer}.value")
    keys, values = _repeat(t, k), _repeat(t, v)
    scale = t.op("Sqrt", t.op("Div", t.const(1.0, np.float32), t.const(float(WIDTH) ** 0.5, np.float32)))
    turned = t.op("Mul", t.op("Transpose", keys, perm=[0, 1, 3, 2]), scale)
    scores = t.op("MatMul", t.op("Mul", q, scale), turned)
    end = t.op("Unsqueeze", t.size(keys, 2), t.const([0]))
    shown = t.op("Slice", mask, t.const([0]), end, t.const([3]), t.const([1]))
    weights = t.op("Softmax", t.op("Add", scores, shown), axis=-1)
    mixed = t.op("Transpose", t.op("MatMul", t.op("Identity", weights), values), perm=[0, 2, 1, 3])
    flat = t.op("Reshape", mixed, t.shape(t.size(normed, 0), t.size(normed, 1), HEADS * WIDTH))
    x = t.op("Add", x, t.op("MatMul", flat, t.weight(f"{name}.self_attn.o_proj.weight", HEADS * WIDTH, HIDDEN)))
    t.scope = f"{scope}/mlp"
    normed = _norm(t, x, f"{name}.post_attention_layernorm.weight")
    gate = t.op("MatMul", normed, t.weight(f"{name}.mlp.gate_proj.weight", HIDDEN, INNER))
    up = t.op("MatMul", normed, t.weight(f"{name}.mlp.up_proj.weight", HIDDEN, INNER))
    inner = t.op("Mul", t.op("Mul", gate, t.op("Sigmoid", gate)), up)
    return t.op("Add", x, t.op("MatMul", inner, t.weight(f"{name}.mlp.down_proj.weight", INNER, HIDDEN)))


def feeds(layers: int, batch: int = 2, seq: int = 3, past: int = 4, seed: int = 1) -> dict[str, np.ndarray]:
    """Inputs for `make_decoder` of as many layers."""
    random = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {
        "input_ids": random.integers(0, VOCAB, (batch, seq)),
        "attention_mask": np.ones((batch, past + seq), np.int64),
        "position_ids": np.broadcast_to(np.arange(past, past + seq), (batch, seq)).copy(),
    }
    for layer in range(layers):
        for kind in ("key", "value"):
            shape = (batch, KV_HEADS, past, WIDTH)
            made[f"past_key_values.{layer}.{kind}"] = random.standard_normal(shape).astype(np.float32)
    return made


__all__ = ["feeds", "make_decoder"]
