"""Operators that look at shapes, cut and join, for MNN: the numbers of what they are made of, and MNN's own."""

from __future__ import annotations

import numpy as np
import pytest

from backends.mnn.modules.child import Converter
from tests.support.modules.models import legal
from tests.support.modules.sweep import OneNode, assert_same, evaluated, run_on_mnn

RNG = np.random.default_rng(5)
LAST = 2**63 - 1


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def whole(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def shapes() -> list[OneNode]:
    cases = []
    for rank in range(6):
        x = floats(*range(2, 2 + rank))
        cases += [OneNode("Shape", [x]), OneNode("Size", [x]), OneNode("Transpose", [x])]
        cases += [OneNode("Shape", [x], attrs=attrs) for attrs in ({"start": 1}, {"end": -1}, {"start": -2, "end": -1})]
        cases += [
            OneNode("Reshape", [x, whole(1, -1)], (1,)),
            OneNode("Reshape", [x, whole(-1)], attrs={"allowzero": 1}),
        ]
        cases += [OneNode("Reshape", [x, whole(-1)], (1,), attrs={"allowzero": 1})]
        cases += [OneNode("Unsqueeze", [x, whole(-1)], (1,)), OneNode("Flatten", [x], attrs={"axis": rank // 2})]
        cases += [OneNode("Expand", [x, whole(2, *x.shape)], (1,)), OneNode("Squeeze", [x[None], whole(0)], (1,))]
    return [case for case in cases if not (case.attrs.get("allowzero") and not case.constant)]


def joins() -> list[OneNode]:
    cases = []
    for axis in range(-3, 3):
        x = floats(7, 7, 7)
        cases += [OneNode("Concat", [x, x[:, :, ::-1]], attrs={"axis": axis})]
        cases += [OneNode("Split", [x], outputs=n, attrs={"axis": axis, "num_outputs": n}) for n in (1, 2, 3, 7)]
        cases += [
            OneNode("Split", [x, whole(*parts)], (1,), outputs=len(parts), attrs={"axis": axis})
            for parts in ((2, 4, 1), (3, 0, 4), (0, 7), (7,))
        ]
    return cases


def slices() -> list[OneNode]:
    cases = []
    bounds = [(1, 5, 1), (-5, -1, 1), (2, LAST, 2), (-1000, 3, 1), (-LAST, 3, 1), (5, 2, 1), (20, 30, 1), (0, -1000, 1)]
    bounds += [(-1, -LAST - 1, -1), (5, 1, -1), (4, 0, -2), (100, -100, -3), (1, 5, -1), (-2, -6, -2)]
    for rank in (1, 3, 4, 5):
        for axis in {0, rank - 1, -2 % rank}:
            x = floats(*[7 if place == axis else 2 for place in range(rank)])
            for start, end, step in bounds:
                operands = [x, whole(start), whole(end), whole(axis), whole(step)]
                cases.append(OneNode("Slice", operands, (1, 2, 3, 4)))
                if abs(start) < 2**31 and abs(end) < 2**31:
                    cases.append(OneNode("Slice", operands, (3, 4)))
    x = floats(4, 5, 6)
    cases += [
        OneNode("Slice", [x, whole(1, -9, -1), whole(LAST, 4, -9), whole(-1, 0, 1), whole(1, 1, -2)], (1, 2, 3, 4)),
        OneNode("Slice", [x, whole(1, -9, -1), whole(7, 4, -9), whole(-1, 0, 1), whole(1, 1, -2)], (3, 4)),
        OneNode("Slice", [x, whole(1, -9), whole(7, 4)]),
        OneNode("Slice", [x, whole(1, -9), whole(7, 4), None, whole(2, 1)], (1, 2, 4)),
    ]
    return cases


def pads() -> list[OneNode]:
    cases = []
    for rank in (1, 2, 4, 5):
        x = floats(*range(4, 4 + rank))
        fill = np.array(7, np.float32)
        kinds = [[1, 2] * rank, [0] * (2 * rank - 1) + [2]]
        for mode in ("constant", "reflect", "edge", "wrap"):
            attrs = {"mode": mode}
            operands = [[x, whole(*pads), fill] if mode == "constant" else [x, whole(*pads)] for pads in kinds]
            cases += [OneNode("Pad", each, (1,), attrs=attrs) for each in operands]
            cases.append(OneNode("Pad", [x, whole(1, 2), fill, whole(-1)], (1, 3), attrs=attrs))
        cut = whole(*[-1, 1] * rank)
        cases += [OneNode("Pad", [x, cut, fill], (1,)), OneNode("Pad", [x, whole(1, -2), None, whole(-1)], (3,))]
        cases += [OneNode("Pad", [x, cut], ()), OneNode("Pad", [x, cut, fill], (1, 2)), OneNode("Pad", [x, cut], (1,))]
    cases += [OneNode("Pad", [floats(2, 3)], opset=10, attrs={"pads": [1, 0, 0, 2], "value": 3.5})]
    return cases


ALL = [*shapes(), *joins(), *slices(), *pads()]


def test_numbers_of_what_operators_are_made_of():
    for case in ALL:
        for release in ("3.4.0", "3.6.1"):
            assert_same(evaluated(case, release=release), case.wanted(), case)


@pytest.mark.mnn
def test_mnn_computes_them(tmp_path):
    with Converter() as converter:
        for case in ALL:
            assert_same(run_on_mnn(case, converter, tmp_path), case.wanted(), case)


@pytest.mark.parametrize(
    ("sizes", "start", "ops"),
    [((5, 7), -4, ["Slice"]), (("n", 7), -1, ["Slice"]), (("n", 7), 2, ["Slice"])],
)
def test_starts_inside_an_axis_stay(sizes, start, ops):
    case = OneNode("Slice", [floats(5, 7), whole(start), whole(9), whole(0)], (1, 2, 3))
    model = case.model()
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, sizes, strict=True):
        if isinstance(size, str):
            dim.dim_param = size
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    for size in ("m", "k"):
        model.graph.output[0].type.tensor_type.shape.dim.add().dim_param = size
    assert [node.op for node in legal(model).nodes] == ops
