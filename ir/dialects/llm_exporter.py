"""Operators that an exporter of language models writes for parts that its runtime computes in one piece.

They compute what the exporter's own layers do, from which the meanings here are written down: rotation of the first
channels by halves, and attention over the history that the runtime keeps, which is empty here.
"""

from __future__ import annotations

from math import sqrt

from ir.base.types import ValueType
from ir.graph.graph import Node, Value
from ir.infer.inference import Inference
from ir.infer.numeric import positive, tensor, typed
from ir.ops.meaning import Body
from ir.ops.registry import AttrDef, OpDef

RMS_SINCE, ATTENTION_SINCE = 23, 24
"""First opsets with RMSNormalization, and with an Attention whose mask and history mean what they do here."""


def _linear_type(run: Inference, node: Node) -> ValueType | None:
    positive(node, "out_features")
    x = tensor(node.inputs[0])
    return None if x is None or not x.shape else typed(x.dtype, (*x.shape[:-1], node._attrs["out_features"]))


def _same_type(run: Inference, node: Node) -> ValueType | None:
    return tensor(node.inputs[0])


def _recurrent_type(run: Inference, node: Node) -> ValueType | None:
    positive(node, "num_v_heads", "head_v_dim")
    x = tensor(node.inputs[0])
    if x is None or x.shape is None or len(x.shape) != 3:
        return None
    return typed(x.dtype, (x.shape[0], x.shape[2], node._attrs["num_v_heads"], node._attrs["head_v_dim"]))


def _rope_type(run: Inference, node: Node) -> tuple[ValueType | None, ...]:
    return tuple(tensor(value) for value in node.inputs[:2])


def _attention_type(run: Inference, node: Node) -> ValueType | None:
    positive(node, "output_dim")
    q = tensor(node.inputs[0])
    return None if q is None or q.shape is None else typed(q.dtype, (*q.shape[:2], node._attrs["output_dim"]))


def _rope(body: Body) -> list[Value]:
    """Each of query and key: normalized on request, then its first channels turned by halves."""
    cos, sin = body.operand(2), body.operand(3)
    found = []
    for place, name in enumerate("qk"):
        x = body.operand(place)
        if body.attr(f"{name}_norm"):
            x = _rms_norm(body, x, body.operand(4 + place), body.attr(f"{name}_norm_eps"))
        width, head = body.attr("rope_cut_head_dim"), body.attr("head_dim")
        rest = None
        if width < head:
            x, rest = _halves(body, x, width, head - width)
        low, high = _halves(body, x, width // 2, width - width // 2)
        swapped = body.op("Concat", body.op("Neg", high), low, axis=-1)
        turned = body.op("Add", body.op("Mul", x, cos), body.op("Mul", swapped, sin))
        found.append(turned if rest is None else body.op("Concat", turned, rest, axis=-1))
    return found


def _halves(body: Body, x: Value, first: int, second: int) -> tuple[Value, Value]:
    low, high = body.graph.add("Split", [x, body.ints(first, second)], {"axis": -1}, outputs=("low", "high")).outputs
    return low, high


def _rms_norm(body: Body, x: Value, gain: Value, epsilon: float) -> Value:
    if body.opset >= RMS_SINCE:
        return body.op("RMSNormalization", x, gain, axis=-1, epsilon=epsilon)
    power = body.reduce("ReduceMean", body.op("Mul", x, x), (-1,))
    root = body.op("Sqrt", body.op("Add", power, body.like(epsilon, body.operand(0))))
    return body.op("Mul", body.op("Div", x, root), gain)


def _attention(body: Body) -> list[Value]:
    q, k, v = (body.op("Transpose", body.operand(place), perm=(0, 2, 1, 3)) for place in range(3))
    mask = body.inputs[3] if len(body.inputs) > 3 else None
    if body.attr("kv_shared_layer_index") >= 0:
        raise ValueError("it reads the keys and values that another layer keeps in the runtime")
    newer = body.opset >= ATTENTION_SINCE
    y = body.op("Attention", q, k, v, mask) if newer else _by_products(body, q, k, v, mask)
    joined = body.op("Transpose", y, perm=(0, 2, 1, 3))
    return [body.op("Reshape", joined, body.ints(0, 0, body.attr("output_dim")))]


def _by_products(body: Body, q: Value, k: Value, v: Value, mask: Value | None) -> Value:
    """Attention of grouped heads by matrix products: heads that share a key lie one after the other."""
    shape = tensor(body.node.inputs[0]), tensor(body.node.inputs[1])
    heads, kept = (found.shape[2] if found is not None and found.shape is not None else None for found in shape)
    size = shape[0].shape[3] if shape[0] is not None and shape[0].shape is not None else None
    if not isinstance(heads, int) or not isinstance(kept, int) or not isinstance(size, int):
        raise ValueError("the numbers of heads and their size are unknown")
    if heads != kept:
        k, v = (_repeated(body, item, heads // kept, heads) for item in (k, v))
    scores = body.op("MatMul", q, body.op("Transpose", k, perm=(0, 1, 3, 2)))
    scores = body.op("Mul", scores, body.like(1 / sqrt(size), body.operand(0)))
    if mask is not None:
        scores = body.op("Add", scores, mask)
    return body.op("MatMul", body.op("Softmax", scores, axis=-1), v)


def _repeated(body: Body, x: Value, times: int, heads: int) -> Value:
    """Each head `times` times, in place."""
    apart = body.op("Unsqueeze", x, body.ints(2))
    many = body.op("Concat", *[apart] * times, axis=2)
    shape = body.op("Shape", x)
    parts = [body.op("Gather", shape, body.ints(place), axis=0) for place in (0, 2, 3)]
    wanted = body.op("Concat", parts[0], body.ints(heads), parts[1], parts[2], axis=0)
    return body.op("Reshape", many, wanted)


def _ints(text: str, **defaults: int) -> dict[str, AttrDef]:
    return {name: AttrDef(name, "int", defaults.get(name), name not in defaults) for name in text.split()}


_NAME = {"name": AttrDef("name", "str", "")}

DEFINITIONS = (
    OpDef(
        "LlmExporter.FakeLinear",
        inputs=("input",),
        attrs={**_ints("in_features out_features has_bias", has_bias=0), **_NAME},
        infer=_linear_type,
        traits=frozenset({"pure"}),
        role="linear",
        doc="A linear layer whose weights are in another file, under its name; it cannot be computed without them.",
    ),
    OpDef(
        "LlmExporter.MoE",
        inputs=("hidden_states", "routing_weights", "selected_experts"),
        min_inputs=3,
        max_inputs=3,
        attrs=_ints("num_experts top_k layer_id"),
        infer=_same_type,
        traits=frozenset({"pure"}),
        role="linear",
        doc="A layer of experts whose weights are in another file; it cannot be computed without them.",
    ),
    OpDef(
        "LlmExporter.FusedLinearAttention",
        inputs=("qkv", "gate", "beta", "conv_weight"),
        min_inputs=4,
        max_inputs=4,
        attrs={
            **_ints("num_k_heads num_v_heads head_k_dim head_v_dim use_qk_l2norm gate_fold", gate_fold=0),
            "attn_type": AttrDef("attn_type", "str", required=True),
            "gate_coef": AttrDef("gate_coef", "floats"),
            "gate_bias": AttrDef("gate_bias", "floats"),
            **_NAME,
        },
        infer=_recurrent_type,
        traits=frozenset({"pure", "mixing"}),
        role="attention",
        doc="Attention that is linear in its length, with states that the runtime keeps; nothing here computes it.",
    ),
    OpDef(
        "LlmExporter.FusedRoPE",
        inputs=("query", "key", "cos", "sin", "q_norm_weight", "k_norm_weight"),
        min_inputs=4,
        max_inputs=6,
        min_outputs=2,
        max_outputs=2,
        attrs={
            **_ints("rope_cut_head_dim num_head kv_num_head head_dim q_norm k_norm", q_norm=0, k_norm=0),
            "q_norm_eps": AttrDef("q_norm_eps", "float", 0.0),
            "k_norm_eps": AttrDef("k_norm_eps", "float", 0.0),
            **_NAME,
        },
        infer=_rope_type,
        define=_rope,
        doc="[B, S, heads, D] queries and keys, normalized on request and turned by cos and sin, halves against halves.",
    ),
    OpDef(
        "LlmExporter.FusedAttention",
        inputs=("query", "key", "value", "attention_mask"),
        min_inputs=3,
        max_inputs=4,
        attrs={
            **_ints(
                "output_dim kv_cache layer_index kv_shared_layer_index head_dim",
                kv_cache=1,
                layer_index=-1,
                kv_shared_layer_index=-1,
                head_dim=0,
            ),
            **_NAME,
        },
        infer=_attention_type,
        define=_attention,
        traits=frozenset({"pure", "constant_foldable", "mixing"}),
        role="attention",
        doc="Attention of [B, S, heads, D] operands with an added mask; with a history, the runtime keeps it.",
    ),
)
"""Rows for `ir.ops.registry.OPERATORS`."""
