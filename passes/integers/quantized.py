"""Operators on codes of quantized tensors as the arithmetic that ONNX defines them by, in single precision.

Codes have at most 16 bits, so that they, their differences, and sums of 256 products of two of 8 bits are exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ir.base.types import I32, DType
from ir.graph.graph import Node, Value
from ir.ops.registry import attribute
from passes.integers.steps import Builder, as_float, converted, ints, like, tensor_type

CONV_ATTRS = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def spread(b: Builder, value: Value, axis: int, like_: Value, block: int = 0) -> Value | None:
    """Scales or zero points in a shape that stretches to that of a tensor.

    Args:
        b: makes nodes.
        value: one number, one for each place of an axis, or with a block size one for each block along it.
        axis: the axis.
        like_: the tensor.
        block: numbers of elements that share one; 0 for none.

    Returns:
        None where shapes that have to be known are not.
    """
    found, given = tensor_type(value), tensor_type(like_)
    if found is None or found.shape is None or given is None or given.shape is None:
        return None
    if all(size == 1 for size in found.shape):
        return b.add("Reshape", value, ints(b)) if found.shape else value
    place = axis % max(len(given.shape), 1)
    if len(found.shape) == 1 and not block:
        behind = len(given.shape) - 1 - place
        return b.add("Reshape", value, ints(b, -1, *[1] * behind)) if behind else value
    length = given.shape[place]
    if len(found.shape) != len(given.shape) or not block or not isinstance(length, int):
        return None
    return b.add("Gather", value, b.const(np.arange(length) // block, "blocks"), axis=place)


def dequantized(b: Builder, codes: Value, scale: Value, zero: Value | None, axis: int, block: int = 0) -> Value | None:
    """``(codes - zero) * scale`` (ONNX, DequantizeLinear); None where shapes that have to be known are not."""
    number = as_float(b, codes)
    if zero is not None:
        offset = spread(b, as_float(b, zero), axis, codes, block)
        if offset is None:
            return None
        number = b.add("Sub", number, offset)
    factor = spread(b, as_float(b, scale), axis, codes, block)
    return b.add("Mul", number, factor) if factor is not None else None


def rounded(b: Builder, ratio: Value, zero: Value | None, kind: DType) -> Value:
    """The codes of numbers that are divided by their scale already: rounded half to even, and kept within their type."""
    number = b.add("Round", ratio)
    if zero is not None:
        number = b.add("Add", number, zero)
    return converted(b, b.add("Clip", number, like(b, kind.low, number), like(b, kind.high, number)), I32)


def whole(b: Builder, number: Value) -> Value:
    """Integers that were summed up in floats. Runtimes multiply by Winograd's and Strassen's methods, which give sums of
    integers that are no integers, and conversion drops what is behind the point."""
    return converted(b, b.add("Round", number), I32)


def dequantize_linear(node: Node, b: Builder) -> Sequence[Value] | None:
    """See `dequantized`."""
    found = dequantized(
        b, node.operand(0), node.operand(1), node.input(2), attribute(node, "axis"), attribute(node, "block_size") or 0
    )
    return [found] if found is not None else None


def quantize_linear(node: Node, b: Builder, kind: DType) -> Sequence[Value] | None:
    """``saturate(round(x / scale) + zero)`` (ONNX, QuantizeLinear)."""
    x, zero = node.operand(0), node.input(2)
    axis, block = attribute(node, "axis"), attribute(node, "block_size") or 0
    factor = spread(b, as_float(b, node.operand(1)), axis, x, block)
    offset = spread(b, as_float(b, zero), axis, x, block) if zero is not None else None
    if factor is None or (zero is not None and offset is None):
        return None
    return [rounded(b, b.add("Div", as_float(b, x), factor), offset, kind)]


def dynamic_quantize_linear(node: Node, b: Builder, kind: DType) -> Sequence[Value]:
    """Scale and zero point by the smallest and largest number (ONNX, DynamicQuantizeLinear)."""
    x = node.operand(0)
    nothing = like(b, 0, x)
    low = b.add("Min", b.add("ReduceMin", x, keepdims=0), nothing)
    high = b.add("Max", b.add("ReduceMax", x, keepdims=0), nothing)
    scale = b.add("Div", b.add("Sub", high, low), like(b, kind.high, x))
    zero = b.add("Clip", b.add("Round", b.add("Div", b.add("Neg", low), scale)), nothing, like(b, kind.high, x))
    return [rounded(b, b.add("Div", x, scale), zero, kind), scale, converted(b, zero, I32)]


def mat_mul_integer(node: Node, b: Builder) -> Sequence[Value] | None:
    """The product of the differences (ONNX, MatMulInteger)."""
    found = _product(b, node.operand(0), node.input(2), node.operand(1), node.input(3))
    return [whole(b, found)] if found is not None else None


def _product(b: Builder, x: Value, x_zero: Value | None, y: Value, y_zero: Value | None) -> Value | None:
    left, right = as_float(b, x), as_float(b, y)
    if x_zero is not None:
        offset = spread(b, as_float(b, x_zero), -2, x)
        if offset is None:
            return None
        left = b.add("Sub", left, offset)
    if y_zero is not None:
        offset = spread(b, as_float(b, y_zero), -1, y)
        if offset is None:
            return None
        right = b.add("Sub", right, offset)
    return b.add("MatMul", left, right)


def conv_integer(node: Node, b: Builder) -> Sequence[Value] | None:
    """The convolution of the differences (ONNX, ConvInteger)."""
    found = _convolution(node, b, node.operand(0), node.input(2), node.operand(1), node.input(3), None)
    return [whole(b, found)] if found is not None else None


def _convolution(
    node: Node, b: Builder, x: Value, x_zero: Value | None, w: Value, w_zero: Value | None, bias: Value | None
) -> Value | None:
    image, weights = as_float(b, x), as_float(b, w)
    if x_zero is not None:
        offset = spread(b, as_float(b, x_zero), 1, x)
        if offset is None:
            return None
        image = b.add("Sub", image, offset)
    if w_zero is not None:
        offset = spread(b, as_float(b, w_zero), 0, w)
        if offset is None:
            return None
        weights = b.add("Sub", weights, offset)
    attrs = {name: node.attrs[name] for name in CONV_ATTRS if name in node.attrs}
    return b.add("Conv", image, weights, *([as_float(b, bias)] if bias is not None else []), **attrs)


def q_linear_mat_mul(node: Node, b: Builder, kind: DType) -> Sequence[Value] | None:
    """The product of the differences, times the scales, in codes (ONNX, QLinearMatMul)."""
    x, x_scale, x_zero, y, y_scale, y_zero, scale, zero = (node.operand(index) for index in range(8))
    product = _product(b, x, x_zero, y, y_zero)
    factors = [spread(b, as_float(b, x_scale), -2, x), spread(b, as_float(b, y_scale), -1, y)]
    return _in_codes(b, product, factors, scale, zero, -2, kind)


def q_linear_conv(node: Node, b: Builder, kind: DType) -> Sequence[Value] | None:
    """The convolution of the differences, times the scales, in codes (ONNX, QLinearConv)."""
    x, x_scale, x_zero, w, w_scale, w_zero, scale, zero = (node.operand(index) for index in range(8))
    product = _convolution(node, b, x, x_zero, w, w_zero, node.input(8))
    # The scales of weights are those of the channels of the result, which stand where those of the input do.
    factors = [spread(b, as_float(b, x_scale), 1, x), spread(b, as_float(b, w_scale), 1, x)]
    return _in_codes(b, product, factors, scale, zero, 1, kind)


def _in_codes(
    b: Builder,
    product: Value | None,
    factors: Sequence[Value | None],
    scale: Value,
    zero: Value,
    axis: int,
    kind: DType,
) -> Sequence[Value] | None:
    if product is None:
        return None
    divisor, offset = spread(b, as_float(b, scale), axis, product), spread(b, as_float(b, zero), axis, product)
    if divisor is None or offset is None or None in factors:
        return None
    factor = b.add("Div", b.add("Mul", *factors), divisor)
    return [rounded(b, b.add("Mul", product, factor), offset, kind)]


__all__ = [
    "conv_integer",
    "dequantize_linear",
    "dequantized",
    "dynamic_quantize_linear",
    "mat_mul_integer",
    "q_linear_conv",
    "q_linear_mat_mul",
    "quantize_linear",
]
