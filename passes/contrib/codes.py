"""Operators on codes, as those on numbers between a dequantization and a quantization."""

from __future__ import annotations

from ir.base.types import F32
from ir.graph.graph import Value
from passes.contrib.building import Site, expansion


@expansion("com.microsoft.QuantizeLinear")
def quantize(site: Site) -> Value:
    """QuantizeLinear of ONNX."""
    return _storage(site, "QuantizeLinear")


@expansion("com.microsoft.DequantizeLinear")
def dequantize(site: Site) -> Value:
    """DequantizeLinear of ONNX."""
    return _storage(site, "DequantizeLinear")


def _storage(site: Site, op: str) -> Value:
    site.need_opset(21)
    axis = site.node.attrs.get("axis")
    return site.op(op, site.operand(0), site.operand(1), site.input(2), axis=axis)


@expansion("com.microsoft.QLinearAdd")
def add_codes(site: Site) -> Value:
    """Add, between dequantization and quantization."""
    return _of_pair(site, "Add")


@expansion("com.microsoft.QLinearMul")
def multiply_codes(site: Site) -> Value:
    """Mul, between dequantization and quantization."""
    return _of_pair(site, "Mul")


@expansion("com.microsoft.QLinearSigmoid")
def sigmoid_codes(site: Site) -> Value:
    """Sigmoid, between dequantization and quantization."""
    return _of_one(site, "Sigmoid")


@expansion("com.microsoft.QLinearLeakyRelu")
def leaky_relu_codes(site: Site) -> Value:
    """LeakyRelu, between dequantization and quantization."""
    return _of_one(site, "LeakyRelu", alpha=site.attr("alpha"))


def _of_pair(site: Site, op: str) -> Value:
    a, b = (site.op("DequantizeLinear", *(site.input(place + index) for index in range(3))) for place in (0, 3))
    return site.op("QuantizeLinear", site.op(op, a, b), site.operand(6), site.input(7))


def _of_one(site: Site, op: str, **attrs: float) -> Value:
    x = site.op("DequantizeLinear", *(site.input(index) for index in range(3)))
    return site.op("QuantizeLinear", site.op(op, x, **attrs), site.operand(3), site.input(4))


@expansion("com.microsoft.QLinearSoftmax")
def softmax_codes(site: Site) -> Value:
    """Softmax, between dequantization and quantization."""
    x, axis = site.operand(0), site.attr("axis")
    site.need(site.attr("opset") >= 13 or axis in (-1, site.rank(x) - 1), "it takes several axes together")
    return _of_one(site, "Softmax", axis=axis)


@expansion("com.microsoft.QLinearConcat")
def concat_codes(site: Site) -> Value:
    """Concat, between dequantization and quantization."""
    given = site.node.inputs[2:]
    site.need(len(given) % 3 == 0, f"it has {len(given)} operands, not three for each part")
    parts = [site.op("DequantizeLinear", *given[place : place + 3]) for place in range(0, len(given), 3)]
    return site.op("QuantizeLinear", site.op("Concat", *parts, axis=site.attr("axis")), *site.node.inputs[:2])


@expansion("com.microsoft.QLinearWhere")
def where_codes(site: Site) -> Value:
    """Where, between dequantization and quantization."""
    yes, no = (site.op("DequantizeLinear", *(site.input(place + index) for index in range(3))) for place in (1, 4))
    return site.op("QuantizeLinear", site.op("Where", site.operand(0), yes, no), site.operand(7), site.input(8))


@expansion("com.microsoft.QGemm")
def gemm_codes(site: Site) -> Value:
    """Gemm, between dequantization and, where asked for, quantization."""
    rows = site.rank(site.operand(4)) == 1 and not site.attr("transB")
    scale = site.operand(4)
    a = site.op("DequantizeLinear", *(site.input(index) for index in range(3)))
    per_row = site.rank(scale) == 1 and site.attr("transB")
    b = site.op(
        "DequantizeLinear", *(site.input(index) for index in range(3, 6)), axis=0 if per_row else 1 if rows else None
    )
    product = site.op(
        "Gemm", a, b, transA=site.attr("transA") or None, transB=site.attr("transB") or None, alpha=site.attr("alpha")
    )
    if site.input(6) is not None:
        # The addend comes in whole numbers of the product of both scales.
        unit = site.op("Mul", site.operand(1), scale)
        addend = site.op("Mul", site.op("Cast", site.operand(6), to=F32.onnx), unit)
        product = site.op(
            "Add",
            product,
            addend if site.attr("alpha") == 1 else site.op("Mul", addend, site.like(site.attr("alpha"), addend)),
        )
    return product if site.input(7) is None else site.op("QuantizeLinear", product, site.operand(7), site.input(8))
