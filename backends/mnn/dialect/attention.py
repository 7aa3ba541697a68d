"""Attention, whose operator in MNN keeps the keys and values of earlier calls.

The packed form is since 3.6.1: ``source/backend/cpu/CPUAttention.cpp`` and ``source/shape/ShapeAttention.cpp``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from backends.mnn.dialect.builder import Builder
from backends.mnn.dialect.operator import Decoded, Main, MnnOperator, Operands, is_packed
from backends.mnn.target.releases import Release
from backends.mnn.write.weight_layout import Layout
from ir.base.types import F32, TensorType, ValueType
from ir.dialects.older_opsets import plain_attention
from ir.dialects.sinks import sink_attention
from ir.graph.graph import Node, Value
from ir.infer.inference import Inference
from ir.infer.numeric import tensor, typed
from ir.infer.rule_table import TypeMismatch
from ir.infer.symbolic import Extent
from ir.ops.meaning import Body
from ir.ops.registry import OpDef

SINKS = 4
"""The input of sinks, where attention has them."""


def _attention_type(run: Inference, node: Node) -> ValueType | None:
    q, k, v = (tensor(value) for value in node.inputs[:3])
    if q is None:
        return None
    if q.shape is None:
        return typed(q.dtype, (None, None, None))
    for operand in (q, k, v):
        if operand is not None and operand.shape is not None and len(operand.shape) != 4:
            raise TypeMismatch("q, k and v are [1, S, heads, size]")
    one, length, heads, size = q.shape
    for operand in (k, v):
        if operand is not None and operand.shape is not None:
            _check_heads(heads, size, operand.shape)
    check_sinks(node, heads)
    return TensorType(q.dtype, (one, length, run.table.multiply(heads, size)))


def check_sinks(node: Node, heads: Extent) -> None:
    """TypeMismatch when there is not one sink for each query head, where there are sinks."""
    sinks = tensor(node.input(SINKS))
    if sinks is not None and type(heads) is int and sinks.shape not in (None, (heads,)):
        raise TypeMismatch(f"sinks {sinks} are not one for each of {heads} heads")


def _check_heads(heads: Extent, size: Extent, shape: tuple) -> None:
    """TypeMismatch when keys or values do not serve the query heads."""
    if type(size) is int and type(shape[3]) is int and size != shape[3]:
        raise TypeMismatch(f"heads of size {size} meet keys or values of size {shape[3]}")
    if type(heads) is int and type(shape[2]) is int and heads % shape[2]:
        raise TypeMismatch(f"{heads} query heads cannot share {shape[2]} key and value heads evenly")


def _attention(body: Body) -> list[Value]:
    return [attended(body, *(body.operand(place) for place in range(3)))]


def attended(body: Body, q: Value, k: Value, v: Value) -> Value:
    """A first call, whose cache holds this call's keys and values only: ``[1, S, heads, D]`` to ``[1, S, heads*D]``."""
    mask = body.operand(3) if body.rank(3) else None
    sinks = body.inputs[SINKS] if len(body.inputs) > SINKS else None
    q, k, v = (body.op("Transpose", value, perm=(0, 2, 1, 3)) for value in (q, k, v))
    if sinks is not None:
        # With sinks the runtime takes a mask without axes for one that hides nothing.
        found = sink_attention(body, q, k, v, sinks, mask, causal=False, scale=None)
    elif body.opset < 23:
        found = plain_attention(body, q, k, v, mask)
    elif mask is None:
        found = body.op("Attention", q, k, v, is_causal=1)
    else:
        found = body.op("Attention", q, k, v, mask)
    rows = body.op("Transpose", found, perm=(0, 2, 1, 3))
    return body.op("Reshape", rows, body.ints(0, 0, -1))


def _write_attention(node: Node, layout: Layout) -> dict[str, Any]:
    return {"kv_cache": True}


def _read_attention(builder: Builder, main: Main, operands: Operands) -> Decoded:
    if main.get("kv_shared_layer_index", -1) >= 0 or not main.get("kv_cache", True):
        raise builder.error("F644", "attention that shares keys or keeps no cache is not read")
    query, key, values = (builder.value(item) for item in operands[:3])
    size = builder.size(query, -1)
    key, values = (
        x if builder.dims(x)[2:] != (1, 1) else builder.reshape(x, (1, x.dims[0], builder.size(x, 1) // size, size))
        for x in (key, values)
    )
    if builder.attention_scale and not math.isclose(builder.attention_scale, size**-0.5, rel_tol=1e-6):
        factor = builder.const(np.array([builder.attention_scale * math.sqrt(size)], np.float32), "attention.scale")
        query = builder.add("Binary", [query, factor], query.type, kind="MUL")
    mask = builder.value(operands[3]) if len(operands) > 3 else builder.graph.value("attention_mask")
    (one, seq, _, _), heads = builder.dims(query), builder.size(query, 2)
    sinks = [builder.value(item) for item in operands[SINKS:]]
    result = builder.add("Attention", [query, key, values, mask, *sinks], TensorType(F32, (one, seq, heads * size)))
    return builder.reshape(result, (seq, heads * size, 1, 1)) if main.get("output_c4") else result


# ---- packed ----


def _packed_attention_type(run: Inference, node: Node) -> ValueType | None:
    q, v = tensor(node.inputs[0]), tensor(node.inputs[2])
    if v is not None and not is_packed(v):
        raise TypeMismatch(f"values {v} are not [rows, channels, 1, 1]")
    if q is None or q.shape is None:
        return q
    if len(q.shape) != 4:
        raise TypeMismatch("q and k are [1, S, heads, size]")
    check_sinks(node, q.shape[2])
    return TensorType(q.dtype, (q.shape[1], run.table.multiply(q.shape[2], q.shape[3]), 1, 1))


def _packed_attention(body: Body) -> list[Value]:
    q, k, v = (body.operand(place) for place in range(3))
    rows = attended(body, q, k, body.op("Reshape", v, body.op("Shape", k)))
    return [body.op("Unsqueeze", body.op("Squeeze", rows, body.ints(0)), body.ints(2, 3))]


def _write_packed_attention(node: Node, layout: Layout) -> dict[str, Any]:
    return {"kv_cache": True, "output_c4": True}


def _reads_packed_attention(release: Release, attrs: Mapping[str, Any]) -> bool:
    return release.packed_attention


ROWS = (
    MnnOperator(
        type="Attention",
        parameter="AttentionParam",
        definition=OpDef(
            "mnn.Attention",
            inputs=("q", "k", "v", "mask", "sinks"),
            min_inputs=4,
            max_inputs=5,
            traits=frozenset({"stateful", "mixing"}),
            infer=_attention_type,
            define=_attention,
            role="attention",
            doc="q [1, S, Hq, D], k and v [1, S, Hkv, D] to [1, S, Hq*D], scores times 1/sqrt(D), heads grouped by "
            "integer division. A mask of rank 0 means causal, one of [1, 1, S, S] is added to the scores. Sinks [Hq] are "
            "scores that take weight and give nothing; with them a mask of rank 0 hides nothing. Keeps keys and values of "
            "earlier calls; the definition is that of a first call.",
        ),
        encode=_write_attention,
        decode=_read_attention,
    ),
    MnnOperator(
        type="Attention",
        parameter="AttentionParam",
        definition=OpDef(
            "mnn.PackedAttention",
            inputs=("q", "k", "v", "mask", "sinks"),
            min_inputs=4,
            max_inputs=5,
            traits=frozenset({"stateful"}),
            infer=_packed_attention_type,
            define=_packed_attention,
            role="attention",
            doc="mnn.Attention with packed values [S, Hkv*D, 1, 1] and a packed result [S, Hq*D, 1, 1].",
        ),
        encode=_write_packed_attention,
        form="packed-attention",
        reads=_reads_packed_attention,
    ),
)
"""Rows for `backends.mnn.dialect.table`."""
