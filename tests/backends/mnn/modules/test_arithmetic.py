"""Element-wise operators, comparisons and conversions for MNN: the numbers of what they are made of, and MNN's own."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from backends.mnn.modules.child import Converter
from ir.base.diag import LadingError
from tests.support.modules.models import legal
from tests.support.modules.sweep import OneNode, assert_same, evaluated, run_on_mnn

RNG = np.random.default_rng(3)
SPECIAL = np.array([-np.inf, np.inf, -0.0, 0, 1e30, -1e30, 88, -88, 100, 2.5, -2.5, 0.5, 1.5, -0.5, 3], np.float32)
NAN = np.array([np.nan, 1, -1, np.inf, -np.inf], np.float32)
BIG = np.array([2**31 - 1, -(2**31) + 1, 2**24 + 1, -(2**24) - 1, 7, -7, 1, 0], np.int32)
SHAPES = [(), (3,), (2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 2, 3, 2, 3), (2, 1, 2, 3, 2, 2)]
ONE_STRETCHED = [((2, 3, 4), (4,)), ((4,), (2, 3, 4)), ((2, 3, 4, 5), (3, 1, 1)), ((1,), (2, 3)), ((3, 1), (2, 3, 4))]
BOTH_STRETCHED = [((2, 1, 4), (1, 3, 1)), ((2, 1, 4, 5), (2, 3, 1, 5)), ((1, 1), (3,))]


def floats(shape) -> np.ndarray:
    return np.asarray(RNG.normal(size=shape) * 3, np.float32)


def whole(shape, dtype=np.int32) -> np.ndarray:
    return np.asarray(RNG.integers(-20, 20, shape), dtype)


def unary(op: str, x: np.ndarray, **attrs) -> OneNode:
    return OneNode(op, [x], attrs=attrs)


def activations() -> list[OneNode]:
    cases = [unary(op, floats(shape)) for op in ("Round", "Softplus", "Shrink", "Gelu", "Mish") for shape in SHAPES]
    cases += [unary(op, SPECIAL) for op in ("Round", "Softplus", "Shrink", "IsInf", "IsNaN")]
    cases += [unary("Shrink", floats(9), bias=0.5, lambd=1.5), unary("Shrink", whole(9), bias=1.0, lambd=3.0)]
    cases += [unary("Gelu", floats(9), approximate="tanh"), unary("Swish", floats(9), alpha=1.5)]
    cases += [
        unary("IsInf", NAN, detect_positive=positive, detect_negative=negative)
        for positive, negative in ((1, 1), (1, 0), (0, 1))
    ]
    cases += [unary("IsNaN", NAN), unary("Abs", BIG), unary("Relu", BIG), unary("Sign", BIG), unary("Neg", BIG)]
    return cases


def pairs() -> list[OneNode]:
    cases = []
    for op in ("Max", "Min", "Add", "Sub", "Mul", "Div", "Less", "Greater", "Equal", "LessOrEqual", "GreaterOrEqual"):
        for a, b in [(shape, shape) for shape in SHAPES] + ONE_STRETCHED:
            x, y = floats(a), floats(b)
            cases += [OneNode(op, [x, y]), OneNode(op, [x, y], (1,))]
        x, y = (each.reshape(-1) for each in np.meshgrid(BIG, BIG[BIG != 0]))
        if op != "Mul":
            cases += [OneNode(op, [x, y]), OneNode(op, [x, y], (0,))]
    for op in ("Less", "Greater", "Equal", "LessOrEqual", "GreaterOrEqual"):
        x, y = (each.reshape(-1) for each in np.meshgrid([*SPECIAL[:6], np.nan], [*SPECIAL[:6], np.nan]))
        cases.append(OneNode(op, [x.astype(np.float32), y.astype(np.float32)]))
        for a, b in BOTH_STRETCHED:
            cases += [OneNode(op, [floats(a), floats(b)]), OneNode(op, [floats(a), floats(b)], (0,))]
    cases += [OneNode("Max", [whole(a), whole(b)]) for a, b in (*ONE_STRETCHED, *BOTH_STRETCHED)]
    cases.append(OneNode("Where", [floats(4) > 0, floats((2, 3, 4)), floats((3, 1))]))
    for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
        x, y = (each.reshape(-1) for each in np.meshgrid(BIG, BIG))
        cases += [OneNode(op, [x, y]), OneNode(op, [whole((2, 3, 4), np.int64), whole((3, 1), np.int64)], (1,))]
    cases += [OneNode("BitShift", [np.array([1, 5, -7, 9], np.int32), np.array([31, 3, 1, -1], np.int32)], opset=28,
                      attrs={"direction": way}) for way in ("LEFT", "RIGHT")]  # fmt: skip
    for op in ("Sum", "Mean", "Max", "Min"):
        for count in (1, 3, 4):
            several = [floats((2, 3, 4)) for _ in range(count)]
            cases += [OneNode(op, several), OneNode(op, [*several[1:], several[0][:1, :, :1]])]
    several = [whole((2, 3)) for _ in range(3)]
    cases += [OneNode("Max", several), OneNode("Min", several, (1,))]
    return cases


def others() -> list[OneNode]:
    positive = np.abs(floats(6)) + 0.1
    cases = [
        OneNode("Pow", [positive, np.array([0, 1, 2, 3, -1, 5], np.int32)]),
        OneNode("Pow", [whole(6), np.array([2, 3, 1, 0, 2, 2], np.float32)]),
        OneNode("Pow", [np.array([1, 2, 3, -2], np.int64), np.array([4, 5, 6, 3], np.int32)]),
        OneNode("Mod", [whole((5, 6)), np.array([-3, 5, 7, -1, 2, 9], np.int32)]),
        OneNode("Mod", [whole(6), np.array([-3, 5, 7, -1, 2, 9], np.int32)], attrs={"fmod": 1}),
        OneNode("Clip", [floats(9), np.float32(1).reshape(()), np.float32(-1).reshape(())], (1, 2)),
        OneNode("Clip", [whole(9), None, np.array(3, np.int32)], (2,)),
        OneNode("Clip", [whole(9, np.int64), np.array(-3), np.array(4)]),
        OneNode("Clip", [floats(9), np.array(-1, np.float32)]),
        OneNode("Clip", [whole(9)]),
        OneNode("PRelu", [floats((2, 3, 4)), floats(4)], (1,)),
        OneNode("PRelu", [floats((2, 3, 4)), floats((3, 1))], (1,)),
        OneNode("PRelu", [whole((2, 3)), np.array(3, np.int32)], (1,)),
        OneNode("Where", [floats((2, 3)) > 0, floats((2, 3)), floats(())]),
        OneNode("Where", [floats((4,)) > 0, floats((3, 1)), floats((2, 3, 4))]),
        OneNode("Where", [np.array([True, False]), BIG[:2], BIG[2:4]]),
        OneNode("Dropout", [floats((2, 3)), np.array(0.3, np.float32)], (1,)),
    ]
    for x in (SPECIAL[1:], whole(9), whole(9, np.int64), SPECIAL.astype(np.float64)):
        cases.append(unary("Cast", x, to=TensorProto.BOOL))
        cases.append(OneNode("CastLike", [x, np.array(True)]))
    cases += [unary("Cast", np.array([0.5, -0.5, 2.9, -2.9], np.float32), to=kind) for kind in (6, 7)]
    cases += [unary("Cast", floats(4) > 0, to=kind) for kind in (1, 6, 7, 11)]
    return cases


def remainders() -> OneNode:
    """Quotients that round up to a whole number, large ones, and both signs."""
    x = np.concatenate([[10, -10, 10, 6, -6, 0.3, 1e6, 12345.678, 5], floats(40) * 50]).astype(np.float32)
    y = np.concatenate([[0.1, 0.1, -0.1, 3, 3, 0.1, 0.7, -0.01, np.pi], floats(40)]).astype(np.float32)
    return OneNode("Mod", [x, y], attrs={"fmod": 1})


ALL = [*activations(), *pairs(), *others()]


def test_numbers_of_what_operators_are_made_of():
    with np.errstate(all="ignore"):
        for case in ALL:
            assert_same(evaluated(case), case.wanted(), case)


def test_remainders_are_exact():
    case = remainders()
    x, y = case.operands
    for found in (evaluated(case)[0],):
        np.testing.assert_array_equal(found, np.fmod(x, y))


@pytest.mark.mnn
def test_mnn_computes_them(tmp_path):
    with Converter() as converter, np.errstate(all="ignore"):
        for case in ALL:
            assert_same(run_on_mnn(case, converter, tmp_path), case.wanted(), case)
        case = remainders()
        np.testing.assert_array_equal(run_on_mnn(case, converter, tmp_path)[0], np.fmod(*case.operands))


def test_training_is_refused():
    case = OneNode("Dropout", [floats(3), np.array(0.3, np.float32), np.array(True)], (1, 2))
    with pytest.raises(LadingError, match="Dropout has no form that MNN computes right: it trains"):
        legal(case.model())


@pytest.mark.mnn
def test_sums_of_codes_are_whole_numbers_before_they_are_converted(tmp_path):
    """MNN convolves by Winograd's method, whose sums of integers lie a little beside them."""
    codes = [RNG.integers(0, 256, shape).astype(np.uint8) for shape in ((1, 24, 16, 32), (96, 24, 3, 3))]
    node = OneNode(
        "ConvInteger", [*codes, np.array(121, np.uint8), np.array(119, np.uint8)], (1, 2, 3), attrs={"pads": [1] * 4}
    )
    with Converter() as converter:
        (found,) = run_on_mnn(node, converter, tmp_path)
    off = np.abs(found.astype(np.int64) - node.wanted()[0])
    assert off.max() <= 1 and np.mean(off) < 0.01
