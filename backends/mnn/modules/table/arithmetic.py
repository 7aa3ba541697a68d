"""Element-wise operators, activations, comparisons, logic and conversions.

"Sweep" stands for runs of one node on all releases, with values of both signs, zeros and large ones, for 0 to 6 axes, with
computed and constant operands and 39 pairs of shapes that stretch one operand, the other, or both.
"""

from __future__ import annotations

from backends.mnn.modules.biases import taken_for_bias
from backends.mnn.modules.broadcast import covers, is_single
from backends.mnn.modules.build import numbers, type_of
from backends.mnn.modules.table.row import FLOAT, HELD, INT, NUMBER, Right
from ir.base.types import BOOL, DType, dtype_of_onnx
from ir.graph.graph import Node

TRUTH = frozenset({BOOL})


def two_operands(node: Node) -> str | None:
    """With more, those that are stretched are read past their ends; with one the converter dies."""
    return None if len(node.inputs) == 2 else f"it is not right for {len(node.inputs)} operands"


def whole_comes_first(node: Node) -> str | None:
    """The operand that has the common shape comes first, a constant second where both have it.

    Elsewhere, and where both are stretched, the runtime may compare the bits of numbers as integers.
    """
    a, b = node.operand(0), node.operand(1)
    if a is b or is_single(a) or is_single(b) or (covers(a, b) and not (a.const is not None and covers(b, a))):
        return None
    return "it is not right where the first operand is stretched"


def no_false_bias(node: Node) -> str | None:
    """See `backends.mnn.modules.biases`."""
    return "the converter takes its constant for a bias" if taken_for_bias(node) is not None else None


def no_cube(node: Node) -> str | None:
    """A cube in the middle of products, sums and a hyperbolic tangent is taken for GELU, whatever its constants are."""
    power = numbers(node.input(1))
    return (
        "its cube may be taken for a part of GELU"
        if power is not None and power.size == 1 and power.item() == 3
        else None
    )


def second_choice_is_whole(node: Node) -> str | None:
    """The runtime looks at the size of the first choice where it should look at that of the second."""
    first, second = node.operand(1), node.operand(2)
    if is_single(first) or is_single(second) or covers(second, first):
        return None
    return "it is not right where the second choice is stretched and the first is not"


def inference_alone(node: Node) -> str | None:
    """Nothing is dropped, and nobody asks what was."""
    if len(node.outputs) > 1:
        return "its mask is read"
    if node.input(2) is None:
        return None
    training = numbers(node.input(2))
    return "it trains" if training is None or training.any() else None


def to_a_number(node: Node) -> str | None:
    """A number becomes no truth value by the conversion, it stays as it is."""
    given, to = type_of(node.input(0)), _element_type(node)
    if given is None or to not in HELD or (to == BOOL and given.dtype != BOOL):
        return f"it is not right to {to}"
    return None


def one_slope_for_each_channel(node: Node) -> str | None:
    """A constant slope is taken for one of each channel."""
    slope = node.operand(1)
    if slope.const is None or is_single(slope):
        return None
    x, shape = type_of(node.operand(0)), slope.shape
    if x is None or x.shape is None or shape is None or len(x.shape) < 3 or len(shape) > len(x.shape):
        return "its constant slope is not one for each channel"
    padded = (1,) * (len(x.shape) - len(shape)) + tuple(shape)
    channels = padded[1] == x.shape[1] and all(size == 1 for place, size in enumerate(padded) if place != 1)
    return None if channels else "its constant slope is not one for each channel"


def bounds_are_numbers(node: Node) -> str | None:
    """A lower bound above the upper one is given to all elements."""
    low, high = numbers(node.input(1)), numbers(node.input(2))
    if low is not None and high is not None and low.size and high.size and low.reshape(-1)[0] > high.reshape(-1)[0]:
        return "its lower bound is above its upper one"
    return None


def _element_type(node: Node) -> DType | None:
    try:
        return dtype_of_onnx(int(node.attrs["to"]))
    except (KeyError, TypeError, ValueError):
        return None


def _each(ops: str, evidence: str, types: frozenset[DType]) -> tuple[Right, ...]:
    return tuple(Right(op, f"test_{op.lower()}; {evidence}", types) for op in ops.split())


ROWS = (
    Right("Identity", "test_identity; sweep: floats, integers, truth values", HELD),
    *_each(
        "Abs Acos Acosh Asin Asinh Atan Atanh Ceil Cos Cosh Erf Floor HardSwish Log Neg Reciprocal Sign Sin Sinh Softsign "
        "Sqrt Tan",
        "sweep: random, -200 to 200, infinities, halves, 1e-30 to 1e30",
        FLOAT,
    ),
    *_each("Relu Sigmoid Tanh", "sweep: random, -200 to 200, halves, 1e-30 to 1e30", FLOAT),
    Right("Exp", "test_exp; sweep: up to 87, beyond which it gives 6e37 instead of up to 3e38 and infinity", FLOAT),
    *_each("LeakyRelu Elu Selu Celu ThresholdedRelu HardSigmoid", "sweep: five values of each attribute", FLOAT),
    *_each("Neg Sign", "sweep: up to 2**31 - 1", INT),
    Right("Add", "test_add; sweep: floats; integers up to 2**31 with wrap-around", NUMBER, when=no_false_bias),
    Right("Sub", "test_sub; sweep: floats; integers up to 2**31 with wrap-around", NUMBER),
    Right("Mul", "test_mul; sweep: floats; integers, whose products the runtime makes in float32: up to 2**24", NUMBER),
    Right("Div", "test_div; sweep: floats, also by zero; integers up to 2**31, also negative", NUMBER),
    Right("Mod", "test_mod_int; sweep: integers up to 2**31, both signs, fmod or not", INT),
    Right("Pow", "test_pow; sweep: positive numbers, exponents of both signs; integers", FLOAT, when=no_cube),
    Right("Pow", "test_pow_types_int32_int32; sweep: both signs, exponents 0 to 9", INT),
    *(Right(op, f"test_{op.lower()}_float32; sweep", FLOAT, when=two_operands) for op in ("Max", "Min", "Sum")),
    Right("Clip", "test_clip; sweep: constant, computed and missing bounds", FLOAT, when=bounds_are_numbers),
    Right(
        "PRelu",
        "test_prelu; sweep: computed slopes, constant ones for channels",
        FLOAT,
        when=one_slope_for_each_channel,
    ),
    Right("Equal", "test_equal_bool; test_equal; sweep: up to 2**31", (INT | TRUTH,)),
    *(
        Right(op, f"test_{op.lower()}; sweep: zeros, infinities, NaN", (FLOAT,), when=whole_comes_first)
        for op in ("Greater", "GreaterOrEqual", "LessOrEqual")
    ),
    *(
        Right(op, f"test_{op.lower()}; sweep: up to 2**31", (INT,))
        for op in ("Greater", "GreaterOrEqual", "LessOrEqual", "Less")
    ),
    *_each("And Or Xor Not", "sweep", TRUTH),
    Right("Where", "test_where_example; sweep: 20 shapes", HELD, when=second_choice_is_whole),
    Right("Cast", "sweep: each pair of types, up to 2**31; not to truth values", HELD, when=to_a_number),
    Right("Dropout", "test_dropout_default; sweep", (FLOAT, FLOAT, TRUTH), when=inference_alone),
)
"""What is right."""
