"""Attention and rotary embedding in plain numpy: the hypotheses that regions are compared with.

Shapes: S tokens after P earlier ones, h query heads, g key heads, d elements a head.
"""

from __future__ import annotations

import numpy as np

LOW = -1e30


def rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, interleaved: bool) -> np.ndarray:
    """Rotary embedding of x[S, h, d] by cos, sin[S, R/2]; elements from R on stay (RoFormer, arXiv 2104.09864)."""
    half = cos.shape[1]
    turning, rest = x[..., : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, None], sin[:, None]
    if interleaved:
        left, right = turning[..., 0::2], turning[..., 1::2]
    else:
        left, right = turning[..., :half], turning[..., half:]
    first, second = left * cos - right * sin, right * cos + left * sin
    if interleaved:
        turned = np.empty_like(turning)
        turned[..., 0::2], turned[..., 1::2] = first, second
    else:
        turned = np.concatenate([first, second], -1)
    return np.concatenate([turned, rest], -1)


def normalized(x: np.ndarray, gain: np.ndarray, bias: np.ndarray | None, epsilon: float, rms: bool) -> np.ndarray:
    """Normalization of the last axis: RMSNorm (arXiv 1910.07467) or LayerNorm (arXiv 1607.06450)."""
    centred = x if rms else x - x.mean(-1, keepdims=True)
    out = centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + epsilon) * gain
    return out if bias is None else out + bias


def seen(tokens: int, past: int, window: int) -> np.ndarray:
    """bool[tokens, past + tokens]: who sees whom; a window of 0 is none."""
    query, key = np.arange(past, past + tokens)[:, None], np.arange(past + tokens)[None]
    mask = key <= query
    return mask & (key > query - window) if window else mask


def mixed(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray, scale: float, cap: float) -> np.ndarray:
    """Grouped attention of q[S, h, d], k[T, g, d], v[T, g, dv] under mask[S, T]: float64[S, h * dv]."""
    group = q.shape[1] // k.shape[1]
    keys, values = k.repeat(group, 1), v.repeat(group, 1)
    scores = np.einsum("shd,thd->hst", q, keys) * scale
    if cap:
        scores = cap * np.tanh(scores / cap)
    scores = np.where(mask, scores, LOW)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hst,thd->shd", weights, values).reshape(len(q), -1)
