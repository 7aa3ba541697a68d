"""Attention of onnxruntime's transformer operators, as Attention of ONNX with the mask spelled out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ir.base.types import BOOL, I64
from ir.graph.graph import Value
from ir.tensor.inline import InlineTensor
from passes.contrib.building import Site, expansion

ATTENTION_SINCE = 23


@dataclass(frozen=True)
class Heads:
    """Operands of rank 3 and how many heads are in them.

    Attributes:
        q, k, v: ``[batch, length, heads * size]``.
        count, kept: heads of queries, and of keys and values.
        past: keys and values of before, ``[batch, kept, length, size]``.
    """

    q: Value
    k: Value
    v: Value
    count: int
    kept: int
    past: tuple[Value, Value] | None = None


def attend(site: Site, heads: Heads, mask: Value | None, scale: float) -> Sequence[Value]:
    """Result ``[batch, length, heads * size]``, and all keys and values there are; a scale of 0 is that of the size."""
    site.need_opset(ATTENTION_SINCE)
    if mask is not None and mask.shape is not None and mask.shape[-2] == 1:
        # onnxruntime's kernel takes masks with a row for each query only.
        rows = site.op("Concat", site.length(heads.q, 1), site.ints(1), axis=0)
        mask = site.op("Expand", mask, rows)
    return site.ops(
        "Attention",
        heads.q,
        heads.k,
        heads.v,
        mask,
        *(heads.past or ()),
        outputs=3,
        q_num_heads=heads.count,
        kv_num_heads=heads.kept,
        scale=scale or None,
    )


def hidden(site: Site, visible: Value, like: Value, value: float | None = None) -> Value:
    """0 where a bool mask is true, elsewhere a number so low that nothing is left, or the given one."""
    dtype = site.type_of(like).dtype
    low = float(np.finfo(np.float16 if dtype.bits == 16 else np.float32).min) if value is None else value
    return site.op("Where", visible, site.like(0, like), site.like(low, like))


def places(site: Site, length: Value) -> Value:
    """Numbers from 0 below a length, which is a vector of one element."""
    return site.op("Range", site.scalar(0), site.op("Squeeze", length, site.ints(0)), site.scalar(1))


def causal(site: Site, length: Value, before: Value | None) -> Value:
    """Bool ``[length, before + length]``: each place sees itself and all before it."""
    total = length if before is None else site.op("Add", length, before)
    rows = places(site, length)
    if before is not None:
        rows = site.op("Add", rows, before)
    return site.op("LessOrEqual", places(site, total), site.op("Unsqueeze", rows, site.ints(1)))


@expansion("com.microsoft.MultiHeadAttention")
def multi_head(site: Site) -> Sequence[Value | None]:
    """Attention of ONNX, biases added before."""
    q, k, v = site.operand(0), site.input(1), site.input(2)
    site.need(k is not None and v is not None, "queries, keys and values come in one tensor")
    site.need(site.input(8) is None and site.input(9) is None, "its history lies in a larger buffer")
    site.need(not site.wants(3), "its scores are read")
    assert k is not None and v is not None
    count, bias = site.attr("num_heads"), site.input(3)
    q, k, v = _biased(site, (q, k, v), bias)
    if site.rank(k) == 4 or site.rank(v) == 4:
        site.need(bias is None, "it adds a bias to keys of rank 4")
        site.need(site.input(6) is None, "it has a history beside keys of rank 4")
        site.need(not site.wants(1) and not site.wants(2), "it gives back keys of rank 4")
        k, v = _joined(site, k), _joined(site, v)
    past = _both(site.input(6), site.input(7))
    mask = _padding(site, site.input(4), q)
    if site.attr("unidirectional"):
        before = site.length(past[0], 2) if past else None
        seen = causal(site, site.length(q, 1), before)
        mask = site.sum_of(mask, hidden(site, seen, q, site.attr("mask_filter_value")))
    mask = _sum(site, mask, site.input(5))
    return attend(site, Heads(q, k, v, count, count, past), mask, site.attr("scale"))


@expansion("com.microsoft.Attention")
def attention(site: Site) -> Sequence[Value | None]:
    """A product by the joined weights, and Attention of ONNX."""
    site.need(not site.attr("do_rotary"), "it turns queries and keys")
    site.need(site.input(6) is None, "its history lies in a larger buffer")
    x, weights = site.operand(0), site.operand(1)
    sizes = site.attr("qkv_hidden_sizes") or (site.size(weights, 1) // 3,) * 3
    joined = site.sum_of(site.op("MatMul", x, weights), site.input(2))
    q, k, v = site.ops("Split", joined, site.ints(*sizes), outputs=3, axis=2)
    past = None
    if site.input(4) is not None:
        keys, values = site.ops("Split", site.operand(4), outputs=2, axis=0, num_outputs=2)
        past = (site.op("Squeeze", keys, site.ints(0)), site.op("Squeeze", values, site.ints(0)))
    mask = _padding(site, site.input(3), x)
    if site.attr("unidirectional"):
        seen = causal(site, site.length(x, 1), site.length(past[0], 2) if past else None)
        mask = _sum(site, mask, hidden(site, seen, x, site.attr("mask_filter_value")))
    mask = _sum(site, mask, site.input(5))
    count = site.attr("num_heads")
    y, keys, values = attend(site, Heads(q, k, v, count, count, past), mask, site.attr("scale"))
    if not site.wants(1):
        return (y,)
    return (y, site.op("Concat", *(site.op("Unsqueeze", item, site.ints(0)) for item in (keys, values)), axis=0))


def _both(keys: Value | None, values: Value | None) -> tuple[Value, Value] | None:
    return (keys, values) if keys is not None and values is not None else None


def _sum(site: Site, a: Value | None, b: Value | None) -> Value | None:
    return site.sum_of(a, b) if a is not None or b is not None else None


def _biased(site: Site, operands: Sequence[Value], bias: Value | None) -> Sequence[Value]:
    """Each operand with its part of a joined bias added."""
    if bias is None:
        return operands
    sizes = [site.size(value, 2) for value in operands if site.rank(value) == 3]
    site.need(len(sizes) == 3, "it adds a bias to keys of rank 4")
    parts = site.ops("Split", bias, site.ints(*sizes), outputs=3, axis=0)
    return [site.op("Add", value, part) for value, part in zip(operands, parts, strict=True)]


def _joined(site: Site, x: Value) -> Value:
    """``[batch, heads, length, size]`` as rank 3."""
    flat = site.op("Transpose", x, perm=(0, 2, 1, 3))
    return site.op("Reshape", flat, site.ints(0, 0, -1))


def _padding(site: Site, mask: Value | None, like: Value) -> Value | None:
    """What is added to the scores for a mask of ones and zeros ``[batch, keys]`` or ``[batch, queries, keys]``."""
    if mask is None:
        return None
    rank = site.rank(mask)
    site.need(rank in (2, 3), "its mask gives lengths, not places")
    keep = mask if site.type_of(mask).dtype == BOOL else site.op("Cast", mask, to=BOOL.onnx)
    axes = site.ints(1, 2) if rank == 2 else site.ints(1)
    return hidden(site, site.op("Unsqueeze", keep, axes), like, site.attr("mask_filter_value"))


def repeated(site: Site, x: Value, times: int) -> Value:
    """Each head of ``[batch, heads, length, size]`` `times` times, in place."""
    if times == 1:
        return x
    heads = site.size(x, 1)
    index = np.repeat(np.arange(heads), times)
    return site.op("Gather", x, site.const(InlineTensor(index, I64)), axis=1)


__all__ = ["ATTENTION_SINCE", "Heads", "attend", "attention", "causal", "hidden", "multi_head", "places", "repeated"]
