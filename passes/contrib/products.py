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
