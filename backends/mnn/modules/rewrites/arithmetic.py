"""Element-wise operators and activations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from backends.mnn.modules.biases import taken_for_bias
from backends.mnn.modules.build import Build, numbers, type_of
from backends.mnn.modules.rewrites.types import Rewrite, Table
from backends.mnn.modules.table.row import FLOAT, INT
from ir.base.types import BOOL, F32, I64
from ir.graph.graph import Node, Value

SPLIT = 4097.0
"""What a float32 is multiplied with to be split into two halves of 12 bits each (Dekker 1971, section 3)."""


def _is(value: Value | None, types: frozenset) -> bool:
    found = type_of(value)
    return found is not None and found.dtype in types


def operands_in_turn(op: str, pair: str) -> Rewrite:
    """Several operands two by two; one is the result itself."""

    def rewrite(node: Node, b: Build) -> Sequence[Value] | None:
        if len(node.inputs) == 2 and op == pair:
            return None
        found = node.operand(0)
        for index in range(1, len(node.inputs)):
            found = b.add(pair, found, node.operand(index))
        return [found]

    rewrite.__doc__ = operands_in_turn.__doc__
    return rewrite


def mean(node: Node, b: Build) -> Sequence[Value]:
    """The sum over the number of operands."""
    total = operands_in_turn("Mean", "Add")(node, b)
    assert total is not None and total[0] is not None
    return [b.add("Div", total[0], b.like(len(node.inputs), node.operand(0)))]


def integer_extreme(largest: bool) -> Rewrite:
    """The larger or smaller of two integers by a comparison: the runtime would take it in float32."""

    def rewrite(node: Node, b: Build) -> Sequence[Value] | None:
        if len(node.inputs) != 2 or not _is(node.input(0), INT):
            return None
        x, y = node.operand(0), node.operand(1)
        return [b.add("Where", b.add("Greater", x, y), *((x, y) if largest else (y, x)))]

    rewrite.__doc__ = integer_extreme.__doc__
    return rewrite


def integer_abs(node: Node, b: Build) -> Sequence[Value] | None:
    """``x < 0 ? -x : x``: the runtime would take it in float32."""
    x = node.operand(0)
    return [b.add("Where", b.add("Less", x, b.like(0, x)), b.add("Neg", x), x)] if _is(x, INT) else None


def integer_relu(node: Node, b: Build) -> Sequence[Value] | None:
    """``x > 0 ? x : 0``: the runtime would take it in float32."""
    x = node.operand(0)
    return [b.add("Where", b.add("Greater", x, b.like(0, x)), x, b.like(0, x))] if _is(x, INT) else None


def remainder(node: Node, b: Build) -> Sequence[Value] | None:
    """The remainder of a division of floats, with the sign of the dividend (C's ``fmod``) or of the divisor (Python's).

    The quotient is rounded, and the product with it is made exactly, as a sum of two numbers (Dekker 1971), so that the
    difference is exact for quotients below 2**24. It is on the wrong side of zero where the quotient was rounded up.
    """
    x, y = node.operand(0), node.operand(1)
    if not _is(x, FLOAT):
        return None
    zero = b.like(0, x)
    ratio = b.add("Div", x, y)
    turns = b.add("Where", b.add("Less", ratio, zero), b.add("Ceil", ratio), b.add("Floor", ratio))
    product = b.add("Mul", turns, y)
    (high, low), (wide, rest) = _halves(turns, b), _halves(y, b)
    lost = b.add("Sub", b.add("Mul", high, wide), product)
    lost = b.add("Add", lost, b.add("Mul", high, rest))
    lost = b.add("Add", lost, b.add("Mul", low, wide))
    lost = b.add("Add", lost, b.add("Mul", low, rest))
    left = b.add("Sub", b.add("Sub", x, product), lost)
    sign, size = b.add("Sign", x), b.add("Abs", y)
    left = b.add("Mul", left, sign)
    left = b.add("Where", b.add("Less", left, zero), b.add("Add", left, size), left)
    left = b.add("Where", b.add("GreaterOrEqual", left, size), b.add("Sub", left, size), left)
    endless = b.add("GreaterOrEqual", size, b.like(np.inf, y))
    left = b.add("Where", endless, b.add("Add", x, b.add("Sub", x, x)), b.add("Mul", left, sign))
    if b.attr("fmod"):
        return [left]
    other = b.add("Less", b.add("Mul", b.add("Sign", left), b.add("Sign", y)), zero)
    return [b.add("Where", other, b.add("Add", left, y), left)]


def _halves(value: Value, b: Build) -> tuple[Value, Value]:
    scaled = b.add("Mul", value, b.like(SPLIT, value))
    high = b.add("Sub", scaled, b.add("Sub", scaled, value))
    return high, b.add("Sub", value, high)


def no_bias(node: Node, b: Build) -> Sequence[Value] | None:
    """A sum with a constant as a difference, where the converter would take the constant for a bias."""
    found = taken_for_bias(node)
    if found is None:
        return None
    other, constant = found
    return [b.add("Sub", other, b.add("Neg", constant))]


def power(node: Node, b: Build) -> Sequence[Value] | None:
    """A cube as products; else base and exponent of one type: of the base, or float where the exponent is."""
    x, y = node.operand(0), node.operand(1)
    if not _is(x, FLOAT | INT) or not _is(y, FLOAT | INT):
        return None
    exponent = numbers(y)
    if _is(x, FLOAT) and _is(y, FLOAT) and exponent is not None and exponent.size == 1 and exponent.reshape(-1)[0] == 3:
        cube = b.add("Mul", b.add("Mul", x, x), x)
        return [b.add("Mul", cube, b.const(np.ones(exponent.shape, x.dtype.numpy))) if exponent.ndim else cube]
    if _is(x, FLOAT):
        return [b.add("Pow", x, b.cast(y, x.dtype))] if _is(y, INT) else None
    return [b.cast(b.add("Pow", b.cast(x, F32), b.cast(y, F32)), x.dtype)] if _is(y, FLOAT) else None


def clip(node: Node, b: Build) -> Sequence[Value] | None:
    """The larger of the value and the lower bound, then the smaller of that and the upper bound."""
    x = node.operand(0)
    if not _is(x, FLOAT | INT):
        return None
    low, high = node.input(1), node.input(2)
    found = b.add("Max", x, low) if low is not None else x
    return [b.add("Min", found, high) if high is not None else found]


def p_relu(node: Node, b: Build) -> Sequence[Value]:
    """``x < 0 ? x * slope : x``."""
    x, slope = node.operand(0), node.operand(1)
    return [b.add("Where", b.add("Less", x, b.like(0, x)), b.add("Mul", x, slope), x)]


def round_half_to_even(node: Node, b: Build) -> Sequence[Value]:
    """The next lower whole number, plus one where the rest is more than a half, or a half and the number is odd."""
    x = node.operand(0)
    half, two = b.like(0.5, x), b.like(2, x)
    floor = b.add("Floor", x)
    rest = b.add("Sub", x, floor)
    odd = b.add("Sub", floor, b.add("Mul", b.add("Floor", b.add("Mul", floor, half)), two))
    tie = b.add("And", b.add("GreaterOrEqual", rest, half), b.add("Greater", odd, half))
    up = b.add("Or", b.add("Greater", rest, half), tie)
    return [b.add("Add", floor, b.cast(up, x.dtype))]


def softplus(node: Node, b: Build) -> Sequence[Value]:
    """``max(x, 0) + log(1 + exp(-|x|))``: the runtime's own ends at 87."""
    x = node.operand(0)
    small = b.add("Exp", b.add("Neg", b.add("Abs", x)))
    return [b.add("Add", b.add("Max", x, b.like(0, x)), b.add("Log", b.add("Add", small, b.like(1, x))))]


def shrink(node: Node, b: Build) -> Sequence[Value]:
    """Nearer to zero by the bias; zero within the threshold."""
    x = node.operand(0)
    edge, bias = float(b.attr("lambd")), float(b.attr("bias"))
    above = b.add("Where", b.add("Greater", x, b.like(edge, x)), b.add("Sub", x, b.like(bias, x)), b.like(0, x))
    return [b.add("Where", b.add("Less", x, b.like(-edge, x)), b.add("Add", x, b.like(bias, x)), above)]


def is_nan(node: Node, b: Build) -> Sequence[Value]:
    """What is not at least minus infinity: the runtime takes NaN for equal to itself."""
    x = node.operand(0)
    return [b.add("Not", b.add("GreaterOrEqual", x, b.like(-np.inf, x)))]


def is_inf(node: Node, b: Build) -> Sequence[Value]:
    """What is at least infinity, or at most minus infinity, as asked for."""
    x = node.operand(0)
    above, below = bool(b.attr("detect_positive")), bool(b.attr("detect_negative"))
    if above and below:
        x = b.add("Abs", x)
    if not above and not below:
        zeros = b.add("Expand", b.const(np.array(0, np.int64)), b.add("Shape", x))
        return [b.cast(zeros, BOOL)]
    return [b.add("GreaterOrEqual", x, b.like(np.inf, x)) if above else b.add("LessOrEqual", x, b.like(-np.inf, x))]


def dropout(node: Node, b: Build) -> Sequence[Value | None] | None:
    """Nothing is dropped where the model does not train, or drops with probability 0."""
    training, ratio = numbers(node.input(2)), numbers(node.input(1))
    inference = node.input(2) is None or (training is not None and not training.any())
    if not inference and (ratio is None or ratio.any()):
        return None
    x = node.operand(0)
    if len(node.outputs) == 1:
        return [b.add("Identity", x)]
    return [b.add("Identity", x), b.cast(b.add("Expand", b.scalar(1, I64), b.add("Shape", x)), BOOL)]


REWRITES: Table = {
    "Abs": (integer_abs,),
    "Add": (no_bias,),
    "Clip": (clip,),
    "Dropout": (dropout,),
    "IsInf": (is_inf,),
    "IsNaN": (is_nan,),
    "Max": (operands_in_turn("Max", "Max"), integer_extreme(True)),
    "Mean": (mean,),
    "Min": (operands_in_turn("Min", "Min"), integer_extreme(False)),
    "Mod": (remainder,),
    "PRelu": (p_relu,),
    "Pow": (power,),
    "Relu": (integer_relu,),
    "Round": (round_half_to_even,),
    "Shrink": (shrink,),
    "Softplus": (softplus,),
    "Sum": (operands_in_turn("Sum", "Add"),),
}
"""Rewrites by operator."""
