"""Activations under names of their own."""

from __future__ import annotations

from ir.graph.graph import Value
from passes.contrib.building import Site, expansion

GELU_SINCE, SWISH_SINCE = 20, 24


@expansion("com.microsoft.Gelu")
def gelu(site: Site) -> Value:
    """Gelu of ONNX."""
    site.need_opset(GELU_SINCE)
    return site.op("Gelu", site.operand(0))


@expansion("com.microsoft.BiasGelu")
def bias_gelu(site: Site) -> Value:
    """Gelu of a sum."""
    site.need_opset(GELU_SINCE)
    return site.op("Gelu", site.op("Add", site.operand(0), site.operand(1)))


@expansion("com.microsoft.FastGelu")
def fast_gelu(site: Site) -> Value:
    """Gelu by tanh, of a sum where there is a bias."""
    site.need_opset(GELU_SINCE)
    return site.op("Gelu", site.sum_of(site.operand(0), site.input(1)), approximate="tanh")


@expansion("com.microsoft.QuickGelu")
def quick_gelu(site: Site) -> Value:
    """x * sigmoid(alpha * x), which is Swish where alpha is 1."""
    x, alpha = site.operand(0), site.attr("alpha")
    if alpha == 1 and site.opset >= SWISH_SINCE:
        return site.op("Swish", x)
    scaled = x if alpha == 1 else site.op("Mul", x, site.like(alpha, x))
    return site.op("Mul", x, site.op("Sigmoid", scaled))
