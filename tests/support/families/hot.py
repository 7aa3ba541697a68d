"""Weights with which every feature of a model matters: peaked attention, gains far from one, biases that are not small."""

from __future__ import annotations

import zlib
from typing import Any

import ml_dtypes
import numpy as np


def hot(name: str, shape: tuple[int, ...], *, first: Any = None) -> np.ndarray:
    """Random float32 contents that bfloat16 holds, for a tensor by its name.

    Args:
        name: name of the tensor; also the seed.
        shape: its shape.
        first: what the reference fills the tensor with, as a torch tensor; gains of norms lie around its mean, which is
            zero where one is added to them.
    """
    rng = np.random.default_rng([11, zlib.crc32(name.encode())])
    return _values(rng, name, shape, first).astype(ml_dtypes.bfloat16).astype(np.float32)


def _values(rng: np.random.Generator, name: str, shape: tuple[int, ...], first: Any) -> np.ndarray:
    module, _, leaf = name.rpartition(".")
    own = module.rpartition(".")[2]
    if leaf == "inv_freq":
        return np.zeros(shape)
    if leaf == "A_log":
        return rng.uniform(-1.0, 1.0, shape)
    if leaf == "e_score_correction_bias":
        return rng.uniform(-0.3, 0.3, shape)
    if leaf in ("alpha_p", "alpha_n"):
        return rng.uniform(-0.5, 0.5, shape)
    if leaf in ("beta", "eps"):
        return first.float().numpy()
    if leaf == "sinks":
        return rng.normal(0.0, 1.5, shape)
    if "bias" in leaf:
        return rng.normal(0.0, 0.5, shape)
    if _is_norm(own) and leaf == "weight":
        centre = 1.0 if first is None else round(float(first.float().mean()))
        low, high = (-0.3, 0.6) if own[0] in "qk" or "query" in own or "key" in own else (-0.6, 0.9)
        return centre + rng.uniform(low, high, shape)
    if len(shape) == 1:
        return rng.normal(0.0, 0.5, shape)
    if "embed" in own or own in ("wte", "wpe", "embedding"):
        return rng.normal(0.0, 0.8, shape)
    gain = _gain(own, leaf)
    return rng.normal(0.0, gain / min(shape[-1], shape[-2]) ** 0.5, shape)


def _is_norm(own: str) -> bool:
    return "norm" in own or own.startswith("ln_") or own in ("ln_1", "ln_2", "ln_f", "norms")


def _gain(own: str, leaf: str) -> float:
    if own in ("lm_head", "output", "output_layer", "embed_out"):
        return 3.0
    if own in ("q_proj", "k_proj", "qkv_proj", "query_key_value", "wqkv", "W_pack", "q_b_proj"):
        return 1.2
    if own in ("gate", "router", "wg") or own == "layer":
        return 2.0
    if own == "out_proj":
        return 0.6
    return 1.1
