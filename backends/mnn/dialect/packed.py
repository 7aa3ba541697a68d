"""Operators that MNN computes in one step since 3.6.1, where earlier releases need several.

"Packed" is MNN's layout NC4HW4 of ``[rows, channels, 1, 1]``, in which its convolutions work. The numbers are those of
the plain operators (`backends.mnn.dialect.operators`), so each definition is made of the same ONNX operators. Sources
at the tag 3.6.1: ``source/backend/cpu/CPULayerNorm.cpp``, ``CPURoPE.cpp``, ``CPUBinary.cpp`` and ``CPUAttention.cpp``,
and ``source/shape/ShapeAttention.cpp``.
"""

from __future__ import annotations

from backends.mnn.dialect.operators import PURE, attended, attrs_of, normalized
from ir.base.types import TensorType, ValueType
from ir.graph.graph import Node, Value
from ir.infer.inference import Inference
from ir.infer.numeric import arithmetic, tensor
from ir.infer.rule_table import TypeMismatch
from ir.ops.meaning import Body
from ir.ops.registry import AttrDef, OpDef


def _is_packed(type_: TensorType) -> bool:
    return type_.shape is None or (len(type_.shape) == 4 and type_.shape[2:] == (1, 1))


def _packed_like_first(run: Inference, node: Node) -> tuple[ValueType | None, ...]:
    x = tensor(node.inputs[0])
    if x is not None and not _is_packed(x):
        raise TypeMismatch(f"{x} is not [rows, channels, 1, 1]")
    return (x,) * len(node.outputs)


def _packed_normalized(body: Body, x: Value, gamma: Value, beta: Value) -> Value:
    """A norm over the channels of ``[rows, channels, 1, 1]``."""
    flat = body.op("Flatten", x, axis=1)
    result = normalized(body, flat, gamma, beta, 1, float(body.attr("epsilon")), bool(body.attr("rms")))
    return body.op("Unsqueeze", result, body.ints(2, 3))


def _packed_norm(body: Body) -> list[Value]:
    return [_packed_normalized(body, *body.inputs)]  # type: ignore[arg-type]


def _add_norm(body: Body) -> list[Value]:
    x, y, gamma, beta = body.inputs
    total = body.op("Add", x, y)
    return [total, _packed_normalized(body, total, gamma, beta)]  # type: ignore[arg-type]


def _mul_silu(body: Body) -> list[Value]:
    x, gate = body.inputs
    return [body.op("Mul", x, body.op("Mul", gate, body.op("Sigmoid", gate)))]


def _rope_types(run: Inference, node: Node) -> tuple[ValueType | None, ...]:
    found: list[ValueType | None] = []
    size = node._attrs["size"]
    for value, heads in zip(node.inputs, (node._attrs["heads"], node._attrs["kv_heads"]), strict=False):
        x = tensor(value)
        if x is not None and x.shape is not None:
            if not _is_packed(x) or (type(x.shape[1]) is int and x.shape[1] != heads * size):
                raise TypeMismatch(f"{x} is not [rows, {heads} * {size}, 1, 1]")
            x = TensorType(x.dtype, (1, x.shape[0], heads, size))
        found.append(x)
    return tuple(found)


def _rope(body: Body) -> list[Value]:
    q, k, cos, sin, *norms = body.inputs
    results = []
    for index, (x, heads) in enumerate(((q, body.attr("heads")), (k, body.attr("kv_heads")))):
        wide = body.op("Reshape", x, body.ints(1, -1, heads, body.attr("size")))
        gamma, beta = (*norms, None, None, None, None)[2 * index : 2 * index + 2]
        if gamma is not None:
            wide = normalized(body, wide, gamma, beta, 1, float(body.attr("epsilon")), bool(body.attr("rms")))
        results.append(_turned(body, wide, cos, sin))
    return results


def _turned(body: Body, x: Value, cos: Value | None, sin: Value | None) -> Value:
    """`x` with its first `turned` features rotated, the first half of the tables for the left half, the second for the
    right."""
    width, turned = body.attr("size"), body.attr("turned")
    half = turned // 2

    def part(value: Value | None, start: int, stop: int) -> Value:
        return body.op("Slice", value, body.ints(start), body.ints(stop), body.ints(3))

    left, right = part(x, 0, half), part(x, half, turned)
    first = body.op(
        "Sub", body.op("Mul", left, part(cos, 0, half)), body.op("Mul", right, part(sin, 0, half))
    )  # fmt: skip
    second = body.op(
        "Add", body.op("Mul", right, part(cos, half, turned)), body.op("Mul", left, part(sin, half, turned))
    )  # fmt: skip
    rest = [part(x, turned, width)] if turned < width else []
    return body.op("Concat", first, second, *rest, axis=3)


def _packed_attention_type(run: Inference, node: Node) -> ValueType | None:
    q, v = tensor(node.inputs[0]), tensor(node.inputs[2])
    if v is not None and not _is_packed(v):
        raise TypeMismatch(f"values {v} are not [rows, channels, 1, 1]")
    if q is None or q.shape is None:
        return q
    if len(q.shape) != 4:
        raise TypeMismatch("q and k are [1, S, heads, size]")
    return TensorType(q.dtype, (q.shape[1], run.table.multiply(q.shape[2], q.shape[3]), 1, 1))


def _packed_attention(body: Body) -> list[Value]:
    q, k, v, mask = body.inputs
    plain = body.op("Reshape", v, body.op("Shape", k))
    rows = attended(body, q, k, plain, None if body.rank(3) == 0 else mask)
    return [body.op("Unsqueeze", body.op("Squeeze", rows, body.ints(0)), body.ints(2, 3))]


_NORM = (AttrDef("epsilon", "float", 1e-5), AttrDef("rms", "int", 0))

DEFINITIONS = (
    OpDef(
        "mnn.PackedNorm",
        inputs=("x", "gamma", "beta"),
        min_inputs=3,
        max_inputs=3,
        attrs=attrs_of(*_NORM),
        traits=PURE,
        infer=_packed_like_first,
        define=_packed_norm,
        doc="Normalizes the channels of a packed tensor, by their root mean square when `rms`; then times gamma plus beta.",
    ),
    OpDef(
        "mnn.AddNorm",
        inputs=("x", "y", "gamma", "beta"),
        min_inputs=4,
        max_inputs=4,
        min_outputs=2,
        max_outputs=2,
        attrs=attrs_of(*_NORM),
        traits=PURE,
        infer=_packed_like_first,
        define=_add_norm,
        doc="The sum of two packed tensors, and that sum normalized as by mnn.PackedNorm.",
    ),
    OpDef(
        "mnn.MulSilu",
        inputs=("x", "gate"),
        min_inputs=2,
        max_inputs=2,
        traits=PURE | {"elementwise"},
        infer=arithmetic,
        define=_mul_silu,
        doc="x times SiLU of the gate; both have one shape.",
    ),
    OpDef(
        "mnn.RoPE",
        inputs=("q", "k", "cos", "sin", "q_gamma", "q_beta", "k_gamma", "k_beta"),
        min_inputs=4,
        max_inputs=8,
        min_outputs=2,
        max_outputs=2,
        attrs=attrs_of(
            AttrDef("heads", "int", required=True),
            AttrDef("kv_heads", "int", required=True),
            AttrDef("size", "int", required=True),
            AttrDef("turned", "int", required=True),
            *_NORM,
        ),
        traits=PURE,
        infer=_rope_types,
        define=_rope,
        doc="Packed queries [S, heads*size, 1, 1] and keys to [1, S, heads, size], each head normalized when gains and shifts "
        "are given, and its first `turned` features rotated by halves. The tables are [1, S, 1, turned].",
    ),
    OpDef(
        "mnn.PackedAttention",
        inputs=("q", "k", "v", "mask"),
        min_inputs=4,
        max_inputs=4,
        traits=frozenset({"stateful"}),
        infer=_packed_attention_type,
        define=_packed_attention,
        doc="mnn.Attention with packed values [S, Hkv*D, 1, 1] and a packed result [S, Hq*D, 1, 1].",
    ),
)
"""Rows for `ir.ops.registry.OPERATORS`."""
