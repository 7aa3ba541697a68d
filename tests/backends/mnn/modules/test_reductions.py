"""Reductions for MNN: the numbers of what they are made of, and MNN's own."""

from __future__ import annotations

import numpy as np
import pytest

from backends.mnn.modules.child import Converter
from ir.base.diag import LadingError
from tests.support.modules.models import legal
from tests.support.modules.sweep import OneNode, assert_same, evaluated, run_on_mnn

RNG = np.random.default_rng(4)
PLAIN = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")
COMPOSED = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare")


def floats(*shape: int) -> np.ndarray:
    return np.abs(RNG.normal(size=shape) * 3).astype(np.float32) + np.float32(0.1)


def reductions() -> list[OneNode]:
    cases = []
    for op in (*PLAIN, *COMPOSED):
        for shape, axes in (((3,), [0]), ((2, 3, 4), [1]), ((2, 3, 4), [-1, 0]), ((2, 1, 3, 2, 2, 2), [3, 5])):
            for keep in (0, 1):
                operands = [floats(*shape), np.array(axes)]
                cases += [OneNode(op, operands, constant, attrs={"keepdims": keep}) for constant in ((), (1,))]
        x = floats(2, 3)
        for attrs in ({}, {"noop_with_empty_axes": 1}):
            cases += [OneNode(op, [x], attrs=attrs), OneNode(op, [x, np.zeros(0, np.int64)], (1,), attrs=attrs)]
    for op in ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceSumSquare"):
        cases.append(OneNode(op, [RNG.integers(-4, 5, (2, 3, 4)).astype(np.int32), np.array([1])], (1,)))
    cases += [OneNode(op, [floats(2, 3) > 2, np.array([1])], (1,)) for op in ("ReduceMax", "ReduceMin")]
    cases.append(OneNode("ReduceLogSumExp", [np.array([[100, 99.5], [-200, -201]], np.float32), np.array([1])], (1,)))
    return cases


def empty() -> list[OneNode]:
    x = np.zeros((2, 0, 4), np.float32)
    return [OneNode(op, [x, np.array([1])], (1,)) for op in ("ReduceMax", "ReduceMin", "ReduceSum", "ReduceProd")]


def places() -> list[OneNode]:
    cases = []
    for op in ("ArgMax", "ArgMin"):
        for axis in (0, 1, -1):
            ties = np.round(RNG.normal(size=(3, 4, 5))).astype(np.float32)
            cases += [OneNode(op, [x], attrs={"axis": axis, "keepdims": 0}) for x in (ties, ties.astype(np.int32))]
    cases.append(OneNode("ArgMax", [np.array([2**24, 2**24 + 1, 2**24 - 1], np.int32)]))
    for axis in (0, 2):
        for attrs in ({}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}):
            cases.append(OneNode("CumSum", [floats(2, 3, 4), np.array(axis)], (1,), attrs=attrs))
    return cases


def products() -> list[OneNode]:
    cases = []
    for attrs in ({}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}):
        cases += [OneNode("CumProd", [floats(2, 5), np.array(axis)], (1,), 26, attrs=attrs) for axis in (0, -1)]
        cases.append(OneNode("CumProd", [floats(2, 5), np.array(1)], opset=26, attrs=attrs))
    return cases


ALL = [*products(), *reductions(), *empty(), *places()]


def test_numbers_of_what_reductions_are_made_of():
    with np.errstate(all="ignore"):
        for case in ALL:
            assert_same(evaluated(case), case.wanted(), case)


@pytest.mark.mnn
def test_mnn_computes_them(tmp_path):
    with Converter() as converter, np.errstate(all="ignore"):
        for case in ALL:
            if case.feeds["x0"].size:
                assert_same(run_on_mnn(case, converter, tmp_path), case.wanted(), case)


def test_axes_that_may_be_none_are_refused():
    case = OneNode("ReduceSum", [floats(2, 3), np.array([1])])
    model = case.model()
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_param = "n"
    with pytest.raises(LadingError, match="ReduceSum has no form that MNN computes right: its axes may be none"):
        legal(model)
