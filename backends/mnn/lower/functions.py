"""Elementwise operators of ONNX in MNN's: functions of one and several tensors, comparisons, casts and choices.

What the runtime computes was compared by value on x86, on the releases 3.4.0 and 3.6.1. Where an operator of its own is
wrong there, another form is used: ``LESS`` of two negative numbers is false; comparisons of two tensors that are both
stretched are wrong; ``Select`` does not stretch its last operand when the one before has all elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from backends.mnn.lower.lowering import Lowering
from ir.base.types import BOOL, F32, I32, I64, TensorType
from ir.graph.graph import Node, Value
from ir.ops.registry import attribute

UNARY = {
    "Abs": "ABS", "Acos": "ACOS", "Acosh": "ACOSH", "Asin": "ASIN", "Asinh": "ASINH", "Atan": "ATAN", "Atanh": "ATANH",
    "Ceil": "CEIL", "Cos": "COS", "Cosh": "COSH", "Erf": "ERF", "Exp": "EXP", "Floor": "FLOOR", "HardSwish": "HARDSWISH",
    "Log": "LOG", "Neg": "NEG", "Reciprocal": "RECIPROCAL", "Sigmoid": "SIGMOID", "Sign": "SIGN", "Sin": "SIN",
    "Sinh": "SINH", "Softplus": "BNLL", "Sqrt": "SQRT", "Tan": "TAN", "Tanh": "TANH",
}  # fmt: skip
"""ONNX operator to ``UnaryOpOperation`` of MNN's schema."""

BINARY = {"Add": "ADD", "Div": "REALDIV", "Max": "MAXIMUM", "Min": "MINIMUM", "Mul": "MUL", "Sub": "SUB", "Sum": "ADD"}
"""ONNX operator to ``BinaryOpOperation`` of MNN's schema; with more than two operands it is applied from the left."""

LOGICAL = {"And": "MUL", "Or": "MAXIMUM", "Xor": "NOTEQUAL"}
"""The same on the integers 0 and 1, which booleans are in MNN."""

COMPARED = {
    "Greater": ("GREATER", False), "GreaterOrEqual": ("GREATER_EQUAL", False), "Less": ("GREATER", True),
    "LessOrEqual": ("GREATER_EQUAL", True), "Equal": ("EQUAL", False),
}  # fmt: skip
"""ONNX operator to ``BinaryOpOperation``, and whether the operands change places."""


def lower_unary(node: Node, low: Lowering) -> None:
    """A function that MNN has, in single precision; integers are negated by a subtraction."""
    x = low.plain(node.operand(0))
    if isinstance(x.type, TensorType) and x.dtype in (I32, I64) and node.op in ("Neg", "Abs"):
        negative = low.binary("SUB", low.scalar(0, I32), x, low.type_of(node.output))
        found = negative if node.op == "Neg" else low.binary("MAXIMUM", x, negative)
        low.replace(node.output, found)
        return
    low.replace(node.output, low.unary(UNARY[node.op], low.floats(x), node.output.type))


# ---- activations ----


def _swish(low: Lowering, x: Value) -> Value:
    alpha = float(low.node.attrs.get("alpha", 1.0))
    if alpha == 1.0:
        return low.unary("SILU", x)
    return low.binary("MUL", x, low.unary("SIGMOID", low.times(x, alpha)))


def _gelu(low: Lowering, x: Value) -> Value:
    """The error function's form is one operator. That of the tanh formula is off by 1.6e-4 in the runtime, so the formula
    is written out."""
    if low.node.attrs.get("approximate", "none") == "none":
        return low.unary("GELU_STANDARD", x)
    cube = low.times(low.binary("MUL", low.binary("MUL", x, x), x), 0.044715)
    wave = low.unary("TANH", low.times(low.binary("ADD", x, cube), math.sqrt(2 / math.pi)))
    return low.binary("MUL", x, low.times(low.plus(wave, 1), 0.5))


def _positive(low: Lowering, x: Value) -> Value:
    return low.binary("MAXIMUM", x, low.scalar(0))


def _negative(low: Lowering, x: Value) -> Value:
    return low.binary("MINIMUM", x, low.scalar(0))


def _elu(low: Lowering, x: Value) -> Value:
    """``max(x, 0) + alpha * (exp(min(x, 0)) - 1)``; of Celu with the exponent over alpha, of Selu times gamma."""
    alpha, gamma = float(attribute(low.node, "alpha")), float(attribute(low.node, "gamma") or 1.0)
    below = _negative(low, x)
    if low.node.op == "Celu":
        below = low.times(below, 1 / alpha)
    curve = low.times(low.unary("EXPM1", below), alpha)
    return low.times(low.binary("ADD", _positive(low, x), curve), gamma)


def _leaky(low: Lowering, x: Value) -> Value:
    slope = float(attribute(low.node, "alpha"))
    return low.binary("ADD", _positive(low, x), low.times(_negative(low, x), slope))


def _prelu(low: Lowering, x: Value) -> Value:
    below = low.binary("MUL", _negative(low, x), low.floats(low.node.operand(1)), x.type)
    return low.binary("ADD", _positive(low, x), below)


def _hard_sigmoid(low: Lowering, x: Value) -> Value:
    line = low.plus(low.times(x, float(attribute(low.node, "alpha"))), float(attribute(low.node, "beta")))
    return low.binary("MINIMUM", _positive(low, line), low.scalar(1))


def _softsign(low: Lowering, x: Value) -> Value:
    return low.binary("REALDIV", x, low.plus(low.unary("ABS", x), 1))


def _mish(low: Lowering, x: Value) -> Value:
    return low.binary("MUL", x, low.unary("TANH", low.unary("BNLL", x)))


def _clip(low: Lowering, x: Value) -> Value:
    for place, name, kind in ((1, "min", "MAXIMUM"), (2, "max", "MINIMUM")):
        bound = low.node.input(place)
        if bound is not None:
            x = low.binary(kind, x, low.floats(bound), x.type)
        elif name in low.node.attrs:
            x = low.binary(kind, x, low.scalar(float(low.node.attrs[name])))
    return x


ACTIVATIONS: dict[str, Callable[[Lowering, Value], Value]] = {
    "Relu": _positive,
    "Swish": _swish,
    "Gelu": _gelu,
    "Elu": _elu,
    "Celu": _elu,
    "Selu": _elu,
    "LeakyRelu": _leaky,
    "PRelu": _prelu,
    "HardSigmoid": _hard_sigmoid,
    "Softsign": _softsign,
    "Mish": _mish,
    "Clip": _clip,
}
"""Functions of an operand of single precision that MNN's own functions are put together to."""


def lower_activation(node: Node, low: Lowering) -> None:
    """A function of `ACTIVATIONS`."""
    x = low.floats(node.operand(0))
    low.replace(node.output, ACTIVATIONS[node.op](low, x))


# ---- two and more operands ----


def lower_binary(node: Node, low: Lowering) -> None:
    """Sums, products and their like of any number of operands, from the left."""
    values = [low.plain(value) for value in node.inputs if value is not None]
    kind = {**BINARY, **LOGICAL}[node.op]
    total = values[0]
    for place, value in enumerate(values[1:], 1):
        last = place == len(values) - 1
        total = low.binary(kind, total, value, low.type_of(node.output) if last else _stretched(low, total, value))
    low.replace(node.output, total)


def _stretched(low: Lowering, left: Value, right: Value) -> TensorType:
    """The type of an elementwise result."""
    one, two = low.dims(left), low.dims(right)
    rank = max(len(one), len(two))
    one, two = ((1,) * (rank - len(dims)) + tuple(dims) for dims in (one, two))
    return TensorType(left.dtype, tuple(b if a == 1 else a for a, b in zip(one, two, strict=True)))


def lower_mean(node: Node, low: Lowering) -> None:
    """The mean of several tensors."""
    values = [low.floats(value) for value in node.inputs if value is not None]
    total = values[0]
    for value in values[1:]:
        total = low.binary("ADD", total, value, _stretched(low, total, value))
    low.replace(node.output, low.times(total, 1 / len(values)))


def lower_power(node: Node, low: Lowering) -> None:
    """Powers; small whole exponents as products, which are exact for negative numbers too."""
    x, exponent = low.floats(node.operand(0)), node.operand(1)
    number = exponent.tensor.load() if exponent.const is not None else None
    whole = float(number.reshape(-1)[0]) if number is not None and number.size == 1 else None
    if whole == 2:
        found = low.binary("MUL", x, x)
    elif whole == 3:
        found = low.binary("MUL", low.binary("MUL", x, x), x)
    elif whole == 0.5:
        found = low.unary("SQRT", x)
    elif number is not None:
        found = low.binary("POW", x, low.const(number.astype(np.float32), exponent.name), low.type_of(node.output))
    else:
        found = low.binary("POW", x, low.floats(exponent), low.type_of(node.output))
    if found.shape != node.output.shape:
        raise low.refused("an exponent of more axes than its base has no MNN form")
    low.replace(node.output, found)


def lower_comparison(node: Node, low: Lowering) -> None:
    """Comparisons, whose results are the integers 0 and 1."""
    kind, swapped = COMPARED[node.op]
    left, right = (low.plain(node.operand(place)) for place in (0, 1))
    type_ = low.type_of(node.output)
    if swapped:
        left, right = right, left
    if kind != "EQUAL" and node.output.shape not in (left.shape, right.shape):
        between = low.binary("SUB", left, right, TensorType(left.dtype, node.output.shape))
        left, right = between, low.scalar(0, F32 if left.dtype == F32 else I32)
    low.replace(node.output, low.binary(kind, left, right, type_))


def lower_not(node: Node, low: Lowering) -> None:
    """The other of 0 and 1."""
    low.replace(node.output, _other(low, low.plain(node.operand(0))))


def _other(low: Lowering, flags: Value) -> Value:
    return low.binary("SUB", low.scalar(1, I32), flags, TensorType(I32, flags.shape))


def lower_cast(node: Node, low: Lowering) -> None:
    """Another element type; 64-bit integers and booleans are 32-bit integers in MNN."""
    value, to = low.plain(node.operand(0)), node.output.dtype
    if to not in (F32, I32, I64, BOOL):
        raise low.refused(f"MNN has single precision and 32-bit integers, not {to}")
    if to == BOOL and node.operand(0).dtype != BOOL:
        zero = low.scalar(0, F32 if value.dtype == F32 else I32)
        low.replace(node.output, low.binary("NOTEQUAL", value, zero, TensorType(I32, value.shape)))
        return
    kept = F32 if to == F32 else I32
    if value.dtype == kept or (kept == I32 and value.dtype in (I64, BOOL)):
        low.replace(node.output, value)
        return
    low.replace(node.output, low.add("Cast", [value], TensorType(kept, node.output.shape), {"to": kept.onnx}))


def lower_where(node: Node, low: Lowering) -> None:
    """A choice by elements."""
    choose, x, y = (low.plain(node.operand(place)) for place in range(3))
    full = node.output.shape
    if y.shape != full and (not isinstance(y.type, TensorType) or y.type.size != 1):
        choose, x, y = _other(low, choose), y, x
    low.replace(node.output, low.add("Select", [choose, x, y], low.type_of(node.output)))
