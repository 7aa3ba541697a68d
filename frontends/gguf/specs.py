"""Where a value of ``config.json`` stands in a GGUF file: the words that the rows of `frontends.gguf.architectures` use.

A spec is a function of the `Facts`; None leaves the key out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from frontends.gguf.facts import Facts
from ir.base.diag import LadingError

Spec = Callable[[Facts], Any]

BASE = 10_000.0
"""Base of the rope where a file names none."""

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What models with llama3's rope have stated so far, beside its factor."""


def size(key: str, otherwise: int | None = None) -> Spec:
    """A positive integer."""
    return lambda facts: facts.size(key, otherwise)


def number(key: str, otherwise: float | None = None) -> Spec:
    """A number."""
    return lambda facts: facts.number(key, otherwise)


def flag(key: str, otherwise: bool | None = None) -> Spec:
    """True or false."""
    return lambda facts: facts.flag(key, otherwise)


def inverse(key: str) -> Spec:
    """One over a number."""
    return lambda facts: 1.0 / facts.number(key)


def optional(key: str) -> Spec:
    """A number of some kind, or nothing where it is missing or 0."""
    return lambda facts: None if not facts.get(key) else facts.number(key)


def window(key: str = "attention.sliding_window") -> Spec:
    """A window in tokens; nothing where it is missing or 0."""
    return lambda facts: None if not facts.get(key) else facts.size(key)


def fixed(value: Any) -> Spec:
    """A value that is part of the architecture."""
    return lambda facts: value


def stored(*names: str) -> Spec:
    """Whether tensors of one of these names are there."""
    return lambda facts: any(facts.has(name) for name in names)


def layers(facts: Facts) -> int:
    """Layers of the decoder."""
    return facts.layers


def heads(facts: Facts) -> int:
    """Attention heads."""
    return facts.heads


def kv_heads(facts: Facts) -> int:
    """Key/value heads."""
    return facts.kv_heads


def head_dim(facts: Facts) -> int:
    """Width of a head."""
    return facts.head_dim


def rows(name: str) -> Spec:
    """Rows of a matrix."""

    def spec(facts: Facts) -> int:
        if name not in facts.tensors:
            raise LadingError("F586", f"tensor {name} is missing", facts.where, "is this the whole model?")
        return facts.tensors[name].row_count

    return spec


def tied(facts: Facts) -> bool:
    """Whether the embedding is the output matrix too: no other is stored."""
    return "output.weight" not in facts.tensors


def turned(facts: Facts) -> float:
    """Share of a head that the rope turns."""
    return facts.size("rope.dimension_count", facts.head_dim) / facts.head_dim


def partly_turned(facts: Facts) -> float | None:
    """The same, nothing for whole heads."""
    share = turned(facts)
    return None if share == 1 else share


def every(period: int, *, first: int = 0) -> Spec:
    """``layer_types``: one full layer in each `period`, the last; those before see a window.

    A list in the metadata (true for layers with a window) comes first.
    """

    def spec(facts: Facts) -> list[str]:
        pattern = facts.get("attention.sliding_window_pattern")
        if isinstance(pattern, np.ndarray):
            if len(pattern) != facts.layers:
                raise facts.bad(
                    "attention.sliding_window_pattern", f"a list with one entry for each of {facts.layers} layers"
                )
            windowed = [bool(item) for item in pattern]
        else:
            length = period if pattern is None else facts.size("attention.sliding_window_pattern")
            windowed = [(index + 1 + first) % length != 0 for index in range(facts.layers)]
        return ["sliding_attention" if item else "full_attention" for item in windowed]

    return spec


# ---- rope ----


def theta(facts: Facts) -> float:
    """Base of the rope."""
    return facts.number("rope.freq_base", BASE)


def scaling(facts: Facts) -> dict[str, Any] | None:
    """The rope record: its kind and parameters, nothing for a rope as it was trained.

    Raises:
        LadingError: F585 a kind that is not known.
    """
    kind = facts.get("rope.scaling.type") or "none"
    factors, long = facts.vector("rope_freqs.weight"), _long_factors(facts)
    if factors is not None and any(item != 1.0 for item in factors):
        return _by_factors(facts, factors)
    if long is not None:
        return long
    factor = facts.get("rope.scaling.factor") or facts.get("rope.scale_linear")
    original = facts.get("rope.scaling.original_context_length")
    if kind == "none" or factor in (None, 0, 1):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(factor)}
    if kind != "yarn":
        hint = "known are none, linear, yarn and longrope"
        raise LadingError("F585", f"rope scaling of the kind {kind!r} is not known", facts.where, hint)
    return _yarn(facts, float(factor), original)


def _yarn(facts: Facts, factor: float, original: Any) -> dict[str, Any]:
    record: dict[str, Any] = {"rope_type": "yarn", "factor": factor}
    if original:
        record["original_max_position_embeddings"] = facts.size("rope.scaling.original_context_length")
    for key, name in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
        if facts.get(f"rope.scaling.{key}") is not None:
            record[name] = facts.number(f"rope.scaling.{key}")
    logarithmic = facts.get("rope.scaling.yarn_log_multiplier")
    if logarithmic:
        # The multiplier of the scores, a tenth of which converters store; that of sines and cosines is 1 beside it.
        record["mscale"] = record["mscale_all_dim"] = round(10 * facts.number("rope.scaling.yarn_log_multiplier"), 6)
    return record


def _by_factors(facts: Facts, factors: list[float]) -> dict[str, Any]:
    """The record of a divisor for each frequency: llama3 where its formula gives them, else the divisors themselves."""
    original = LLAMA3["original_max_position_embeddings"]
    found = {"rope_type": "llama3", "factor": max(factors), **LLAMA3}
    if np.allclose(_llama3(facts, len(factors), found), factors, rtol=1e-5, atol=0):
        return found
    return {
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": facts.size("rope.scaling.original_context_length", int(original)),
    }


def _llama3(facts: Facts, count: int, record: dict[str, Any]) -> np.ndarray:
    """Divisors of the frequencies by the formula of Llama 3.1 (arXiv:2407.21783)."""
    frequencies = theta(facts) ** (-np.arange(count) / count)
    waves = record["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high, factor = record["low_freq_factor"], record["high_freq_factor"], record["factor"]
    blend = np.clip((waves - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - blend) / factor + blend)


def _long_factors(facts: Facts) -> dict[str, Any] | None:
    short, long = facts.vector("rope_factors_short.weight"), facts.vector("rope_factors_long.weight")
    if short is None or long is None:
        return None
    original = facts.size("rope.scaling.original_context_length")
    record: dict[str, Any] = {"rope_type": "longrope", "short_factor": short, "long_factor": long}
    if facts.get("rope.scaling.attn_factor") is not None:
        record["attention_factor"] = facts.number("rope.scaling.attn_factor")
    return {**record, "original_max_position_embeddings": original}


__all__ = [
    "Spec",
    "every",
    "fixed",
    "flag",
    "head_dim",
    "heads",
    "inverse",
    "kv_heads",
    "layers",
    "number",
    "optional",
    "partly_turned",
    "rows",
    "scaling",
    "size",
    "stored",
    "theta",
    "tied",
    "turned",
    "window",
]
