"""What newer ONNX operators compute, in operators of opset 13: for definitions inside graphs that keep an older
opset."""

from __future__ import annotations

import math

import numpy as np

from ir.graph.graph import Value
from ir.ops.meaning import Body


def plain_norm(body: Body, x: Value, axes: int, epsilon: float, rms: bool) -> Value:
    """Normalize the last axes; by the root mean square, an ONNX operator since opset 23, or as
    LayerNormalization-17."""
    last = tuple(range(-axes, 0))
    centred = x if rms else body.op("Sub", x, body.reduce("ReduceMean", x, last))
    power = body.reduce("ReduceMean", body.op("Mul", centred, centred), last)
    return body.op("Div", centred, body.op("Sqrt", body.op("Add", power, body.like(epsilon, x))))


def plain_attention(body: Body, q: Value, k: Value, v: Value, mask: Value | None) -> Value:
    """Attention over ``[1, heads, S, D]``; no mask means causal. An ONNX operator since opset 23."""
    kinds = body.operand(0).dtype
    shape = body.op("Shape", k)
    heads, length, size = (body.op("Gather", shape, body.ints(axis)) for axis in (1, 2, 3))
    # Query heads that share a key head lie one after the other.
    grouped = body.op("Concat", body.ints(0), heads, body.ints(-1), size, axis=0)
    joined = body.op("Reshape", q, grouped)
    scores = body.op("MatMul", joined, body.op("Transpose", k, perm=(0, 1, 3, 2)))
    scale = body.op("Sqrt", body.op("Cast", body.op("Squeeze", size, body.ints(0)), to=kinds.onnx))
    apart = body.op("Concat", body.ints(0), body.ints(-1), length, length, axis=0)
    scores = body.op("Reshape", body.op("Div", scores, scale), apart)
    if mask is None:
        steps = body.op("Range", body.int(0), body.op("Squeeze", length, body.ints(0)), body.int(1))
        past = body.op("LessOrEqual", steps, body.op("Unsqueeze", steps, body.ints(1)))
        low = body.like(float(np.finfo(np.float16 if kinds.bits == 16 else np.float32).min), body.operand(0))
        scores = body.op("Where", past, scores, low)
    else:
        scores = body.op("Add", scores, mask)
    weights = body.op("Softmax", scores, axis=-1)
    together = body.op("Concat", body.ints(0), heads, body.ints(-1), length, axis=0)
    found = body.op("MatMul", body.op("Reshape", weights, together), v)
    back = body.op("Concat", body.ints(0), body.ints(-1), length, size, axis=0)
    return body.op("Reshape", found, back)


def plain_gelu_tanh(body: Body, x: Value) -> Value:
    """GELU by its tanh approximation; an ONNX operator since opset 20."""
    cube = body.op("Mul", body.op("Mul", x, x), x)
    inner = body.op("Add", x, body.op("Mul", cube, body.like(0.044715, x)))
    curve = body.op("Tanh", body.op("Mul", inner, body.like(math.sqrt(2 / math.pi), x)))
    return _half_of_one_plus(body, x, curve)


def plain_gelu_erf(body: Body, x: Value) -> Value:
    """GELU by the error function; an ONNX operator since opset 20."""
    return _half_of_one_plus(body, x, body.op("Erf", body.op("Mul", x, body.like(math.sqrt(0.5), x))))


def _half_of_one_plus(body: Body, x: Value, curve: Value) -> Value:
    return body.op("Mul", body.op("Mul", x, body.like(0.5, x)), body.op("Add", curve, body.like(1, x)))


__all__ = ["plain_attention", "plain_gelu_erf", "plain_gelu_tanh", "plain_norm"]
