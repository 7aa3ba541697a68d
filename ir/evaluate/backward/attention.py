"""Rules of attention and of rotary position embeddings, as ONNX defines them from opset 23 on."""

from __future__ import annotations

import numpy as np

from ir.evaluate.backward.words import Applied, Arrays
from ir.graph.graph import Node

NEVER = np.float32(-1e30)
"""Score of a position that is not looked at."""


def _by_heads(x: np.ndarray, heads: int) -> np.ndarray:
    """``[batch, heads, positions, size]`` of an operand of either layout; a view."""
    if x.ndim == 4:
        return x
    batch, positions, width = x.shape
    return x.reshape(batch, positions, heads, width // heads).transpose(0, 2, 1, 3)


def _as_given(x: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Inverse of `_by_heads`."""
    return x if like.ndim == 4 else np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(like.shape)


def _bias(node: Node, mask: np.ndarray | None, positions: int, keys: int) -> np.ndarray | None:
    """What is added to the scores, broadcastable to them; None for nothing."""
    found = None
    if mask is not None:
        found = np.where(mask, np.float32(0), NEVER) if mask.dtype == np.bool_ else np.maximum(mask, NEVER)
        found = found.reshape(*(1,) * (4 - found.ndim), *found.shape)
        if found.shape[-3] != 1:
            raise ValueError("masks that differ by head have no rule")
    if node.attrs.get("is_causal", 0):
        ahead = np.where(np.tri(positions, keys, dtype=bool), np.float32(0), NEVER)
        found = ahead if found is None else found + ahead
    return found


def attention(node: Node, inputs: Arrays) -> Applied:
    """Scaled dot products with grouped heads, mask, causality and soft cap; the cap comes before the mask.

    Raises:
        ValueError: the node has a past or a mask for each head, which training windows never have.
    """
    padded = [*inputs, *[None] * (4 - len(inputs))]
    query, key, value, mask = padded[:4]
    if any(item is not None for item in padded[4:]):
        raise ValueError("attention with a past has no rule")
    assert query is not None and key is not None and value is not None
    heads = node.attrs.get("q_num_heads", query.shape[1])
    groups = node.attrs.get("kv_num_heads", key.shape[1])
    q, k, v = _by_heads(query, heads), _by_heads(key, groups), _by_heads(value, groups)
    batch, _, positions, width = q.shape
    keys, each = k.shape[2], heads // groups
    scale = np.float32(node.attrs.get("scale") or 1 / np.sqrt(width))
    cap = np.float32(node.attrs.get("softcap", 0.0))
    # Queries that share keys are rows of one product.
    q = q.reshape(batch, groups, each * positions, width)
    scores = (q @ k.swapaxes(-1, -2)) * scale
    bent = np.tanh(scores / cap) if cap else None
    if bent is not None:
        scores = bent * cap
    bias = _bias(node, mask, positions, keys)
    weights = scores.reshape(batch, groups, each, positions, keys)
    if bias is not None:
        weights = weights + (bias if bias.ndim == 2 else bias[:, :, None])
    weights = np.exp(weights - weights.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    weights = weights.reshape(scores.shape)
    out = (weights @ v).reshape(batch, heads, positions, v.shape[-1])
    like = np.empty((batch, positions, heads * v.shape[-1]), np.float32) if query.ndim == 3 else out

    def pull(gradient: np.ndarray) -> Arrays:
        grown = _by_heads(gradient, heads).reshape(batch, groups, each * positions, v.shape[-1])
        back = grown @ v.swapaxes(-1, -2)
        back = weights * (back - (back * weights).sum(axis=-1, keepdims=True))
        if bent is not None:
            back *= 1 - bent * bent
        back *= scale
        dq = (back @ k).reshape(batch, heads, positions, width)
        dk, dv = back.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ grown
        found = (_as_given(dq, query), _as_given(dk, key), _as_given(dv, value))
        return *found, *(None,) * (len(inputs) - 3)

    return Applied(_as_given(out, like), pull)


def _turned(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, interleaved: bool) -> np.ndarray:
    """Pairs of ``x[..., size]`` turned by angles ``[..., size / 2]``."""
    out = np.empty_like(x)
    half = x.shape[-1] // 2
    pairs = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(0, half), slice(half, None))
    first, second = x[..., pairs[0]], x[..., pairs[1]]
    out[..., pairs[0]] = first * cos - second * sin
    out[..., pairs[1]] = second * cos + first * sin
    return out


def rotary(node: Node, inputs: Arrays) -> Applied:
    """Rotation of pairs of features by position; the way back turns the other way."""
    x, cos, sin, *rest = inputs
    assert x is not None and cos is not None and sin is not None
    if rest and rest[0] is not None:
        cos, sin = cos[rest[0]], sin[rest[0]]
    # Three axes: [batch, positions, heads * size]; four: [batch, heads, positions, size].
    heads = node.attrs.get("num_heads", 0)
    wide = x if x.ndim == 4 else x.reshape(*x.shape[:2], heads or 1, -1)
    cos, sin = (part[:, None] if x.ndim == 4 else part[:, :, None] for part in (cos, sin))
    turned = node.attrs.get("rotary_embedding_dim", 0) or wide.shape[-1]
    interleaved = bool(node.attrs.get("interleaved", 0))
    cos, sin = cos[..., : turned // 2], sin[..., : turned // 2]

    def turn(numbers: np.ndarray, sine: np.ndarray) -> np.ndarray:
        found = numbers.reshape(wide.shape).copy()
        found[..., :turned] = _turned(found[..., :turned], cos, sine, interleaved)
        return found.reshape(x.shape)

    return Applied(turn(x, sin), lambda g: (turn(g, -sin), *(None,) * (len(inputs) - 1)))


__all__ = ["attention", "rotary"]
