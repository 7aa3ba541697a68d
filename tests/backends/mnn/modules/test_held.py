"""Constants that MNN holds in another element type keep their numbers, or are refused."""

from __future__ import annotations

import numpy as np
import pytest

from backends.mnn.modules.child import Converter
from ir.base.diag import LadingError
from tests.support.modules.models import legal
from tests.support.modules.sweep import OneNode, assert_same, evaluated, run_on_mnn

X = np.array([5, -7, 2**31 - 1, -(2**31), 2**30 + 3], np.int64)


def kept() -> list[OneNode]:
    return [
        OneNode("Add", [np.zeros(5, np.int64), X], (1,)),
        OneNode("Min", [X, np.array(2**62)], (1,)),
        OneNode("Max", [X, np.array(-(2**62))], (1,)),
        OneNode("Clip", [X, np.array(-(2**40)), np.array(2**40)], (1, 2)),
        OneNode("Where", [np.array([True, False, True, True, False]), X, X[::-1].copy()], (1, 2)),
        OneNode("Mul", [np.ones(2), np.array([1e30, np.inf])], (1,)),
    ]


@pytest.mark.parametrize("case", kept(), ids=str)
def test_numbers_are_kept(case):
    assert_same(evaluated(case), case.wanted(), case)


@pytest.mark.mnn
def test_mnn_holds_them(tmp_path):
    with Converter() as converter:
        for case in kept():
            assert_same(run_on_mnn(case, converter, tmp_path), case.wanted(), case)


def test_integers_that_do_not_fit_are_refused():
    case = OneNode("Add", [np.zeros(2, np.int64), np.array([3, 2**33])], (1,))
    with pytest.raises(LadingError) as caught:
        legal(case.model())
    assert caught.value.code == "P379" and "holds 8589934592, and MNN holds it as i32" in str(caught.value)


def test_double_precision_beyond_single_is_refused():
    with pytest.raises(LadingError, match=r"holds 1e\+300, and MNN holds it as f32") as caught:
        legal(OneNode("Add", [np.zeros(2), np.array([1.0, 1e300])], (1,)).model())
    assert caught.value.code == "P379"
