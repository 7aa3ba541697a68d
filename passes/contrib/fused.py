"""Operators with an activation behind them, and others that ONNX has under another name."""

from __future__ import annotations

from typing import Any

from ir.graph.graph import Value
from passes.contrib.building import Site, expansion

_CONVOLUTION = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


@expansion("com.microsoft.FusedConv")
def fused_conv(site: Site) -> Value:
    """A convolution, a sum, and an activation."""
    made = site.op("Conv", *site.node.inputs[:3], **{name: site.node.attrs.get(name) for name in _CONVOLUTION})
    return _activated(site, site.sum_of(made, site.input(3)), *(site.attr("activation_params") or ()))


@expansion("com.microsoft.FusedGemm")
def fused_gemm(site: Site) -> Value:
    """Gemm and an activation."""
    flags = {name: site.attr(name) or None for name in ("transA", "transB")}
    c = site.input(2)
    beta = site.attr("beta") if c is not None else None
    made = site.op("Gemm", site.operand(0), site.operand(1), c, alpha=site.attr("alpha"), beta=beta, **flags)
    numbers = [site.node.attrs.get(f"activation_{name}") for name in ("alpha", "beta")]
    return _activated(site, made, *(number for number in numbers if number is not None))


def _activated(site: Site, x: Value, *numbers: float) -> Value:
    kind = site.attr("activation")
    if not kind:
        return x
    if kind == "Clip":
        site.need(len(numbers) == 2, "its limits are not told")
        return site.op("Clip", x, *(site.like(number, x) for number in numbers))
    named = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Elu": ("alpha",)}
    site.need(kind in ("Relu", "Tanh", "Sigmoid", *named), f"its activation is {kind}")
    attrs: dict[str, Any] = dict(zip(named.get(kind, ()), numbers, strict=False))
    return site.op(kind, x, **attrs)


@expansion("com.microsoft.ExpandDims")
def expand_dims(site: Site) -> Value:
    """Unsqueeze of ONNX."""
    axis = site.op("Reshape", site.operand(1), site.ints(1))
    return site.op("Unsqueeze", site.operand(0), site.op("Cast", axis, to=7))


@expansion("com.microsoft.Trilu")
def trilu(site: Site) -> Value:
    """Trilu of ONNX."""
    return site.op("Trilu", site.operand(0), site.input(1), upper=site.attr("upper"))
