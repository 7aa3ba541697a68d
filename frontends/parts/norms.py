"""Norms: RMSNorm and LayerNorm over the last axis, with or without a bias and an offset of the weight."""

from __future__ import annotations

from dataclasses import dataclass

from frontends.configuration.specs import Setting, flag, number

EPSILON = (
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "norm_epsilon",
    "norm_eps",
    "layernorm_epsilon",
    1e-5,
)
"""Where configurations say what is added to the mean square or the variance."""


@dataclass(frozen=True)
class Norm:
    """A norm over the last axis.

    RMSNorm is ``x / sqrt(mean(x ** 2) + epsilon) * (weight + offset)`` (Zhang and Sennrich 2019, arXiv:1910.07467),
    LayerNorm the same of ``x - mean(x)`` with a bias (Ba et al. 2016, arXiv:1607.06450).

    Attributes:
        kind: ``"rms"`` or ``"layer"``.
        epsilon: added under the root.
        offset: added to every stored weight.
        bias: a bias is stored.
    """

    kind: str = "rms"
    epsilon: Setting = number(EPSILON, 0.0, 1.0)
    offset: float = 0.0
    bias: Setting = flag(False)


LAYER_NORM = Norm("layer", bias=True)
"""LayerNorm as it usually is."""

__all__ = ["EPSILON", "LAYER_NORM", "Norm"]
