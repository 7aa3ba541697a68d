"""Attention whose operator in MNN keeps a memory of one size, however long the history: the gated delta rule.

Since 3.4.1: ``source/backend/cpu/CPULinearAttention.cpp`` and ``source/shape/ShapeAttention.cpp``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.mnn.dialect.builder import Builder
from backends.mnn.dialect.operator import Decoded, Main, MnnOperator, Operands
from backends.mnn.target.releases import Release
from backends.mnn.write.weight_layout import Layout
from ir.base.types import F32, TensorType, ValueType
from ir.dialects.delta_rule import ATTRS, SIZES, check_sizes, delta_rule
from ir.graph.graph import Node, Value
from ir.infer.inference import Inference
from ir.infer.numeric import tensor, typed
from ir.ops.meaning import Body
from ir.ops.registry import OpDef

KIND = "gated_delta_rule"
"""``attn_type`` of the parameters; releases from 3.6.0 on know another."""


def _type(run: Inference, node: Node) -> ValueType | None:
    x = tensor(node.inputs[0])
    check_sizes(node, x, 1)
    if x is None:
        return None
    length = x.shape[2] if x.shape is not None else None
    return typed(x.dtype, (1, length, node._attrs["num_v_heads"], node._attrs["head_v_dim"]))


def _define(body: Body) -> list[Value]:
    mixed = delta_rule(body, *(body.operand(place) for place in range(4)))
    return [body.op("Reshape", mixed, body.ints(1, -1, body.attr("num_v_heads"), body.attr("head_v_dim")))]


def _write(node: Node, layout: Layout) -> dict[str, Any]:
    return {"attn_type": KIND, **{name: node.attrs[name] for name in SIZES}, "use_qk_l2norm": True}


def _read(builder: Builder, main: Main, operands: Operands) -> Decoded:
    kind = main.get("attn_type")
    if kind != KIND or not main.get("use_qk_l2norm", False) or len(operands) != 4:
        raise builder.error("F644", f"linear attention of the kind {kind!r}, or with queries as they are, is not read")
    values = [builder.value(item) for item in operands]
    shape = builder.dims(values[0])
    if len(shape) != 3:
        raise builder.error(
            "F644", "linear attention of packed channels, whose heads come one below another, is not read"
        )
    type_ = TensorType(F32, (shape[0], shape[2], main["num_v_heads"], main["head_v_dim"]))
    return builder.add("LinearAttention", values, type_, **{name: main[name] for name in SIZES})


def reads_linear_attention(release: Release, attrs: Mapping[str, Any]) -> bool:
    """Whether a release has the operator."""
    return "LinearAttention" not in release.missing_ops


ROWS = (
    MnnOperator(
        type="LinearAttention",
        parameter="LinearAttentionParam",
        definition=OpDef(
            "mnn.LinearAttention",
            inputs=("qkv", "gate", "beta", "conv"),
            min_inputs=4,
            max_inputs=4,
            attrs=ATTRS,
            traits=frozenset({"stateful", "mixing"}),
            infer=_type,
            define=_define,
            role="attention",
            doc="lading.GatedDeltaRule of qkv [1, C, S], gate [1, S, heads] and beta [1, S, heads], to "
            "[1, S, heads, size]. Keeps memory and channels of earlier calls; the definition is that of a first call.",
        ),
        encode=_write,
        decode=_read,
        reads=reads_linear_attention,
    ),
)
"""Rows for `backends.mnn.dialect.table`."""
