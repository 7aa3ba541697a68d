"""Products with something in front of them or behind."""

from __future__ import annotations

from ir.base.types import F32
from ir.graph.graph import Value
from passes.contrib.building import Site, expansion


@expansion("com.microsoft.FusedMatMul", "com.microsoft.TransposeMatMul")
def fused_matmul(site: Site) -> Value:
    """Transposes, a product, and a factor."""
    site.need(not site.attr("transBatchA") and not site.attr("transBatchB"), "it transposes the batch")
    a = _swapped(site, site.operand(0)) if site.attr("transA") else site.operand(0)
    b = _swapped(site, site.operand(1)) if site.attr("transB") else site.operand(1)
    product = site.op("MatMul", a, b)
    alpha = site.attr("alpha")
    return product if alpha == 1 else site.op("Mul", product, site.like(alpha, product))


def _swapped(site: Site, value: Value) -> Value:
    """The last two axes the other way round; a vector stays."""
    rank = site.rank(value)
    if rank < 2:
        return value
    return site.op("Transpose", value, perm=(*range(rank - 2), rank - 1, rank - 2))


@expansion("com.microsoft.DynamicQuantizeMatMul")
def dynamic_product(site: Site) -> Value:
    """DynamicQuantizeLinear and MatMulInteger."""
    codes, scale, zero = site.ops("DynamicQuantizeLinear", site.operand(0), outputs=3)
    return _integer_product(
        site, codes, site.operand(1), (scale, site.operand(2)), (zero, site.input(3)), site.input(4)
    )


@expansion("com.microsoft.MatMulIntegerToFloat")
def integer_product(site: Site) -> Value:
    """MatMulInteger, and its result as floats."""
    a, b = site.operand(0), site.operand(1)
    scales, zeros = (site.operand(2), site.operand(3)), (site.input(4), site.input(5))
    return _integer_product(site, a, b, scales, zeros, site.input(6))


def _integer_product(
    site: Site,
    a: Value,
    b: Value,
    scales: tuple[Value, Value],
    zeros: tuple[Value | None, Value | None],
    bias: Value | None,
) -> Value:
    product = site.op("Cast", site.op("MatMulInteger", a, b, *zeros), to=F32.onnx)
    return site.sum_of(site.op("Mul", product, site.op("Mul", *scales)), bias)


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
