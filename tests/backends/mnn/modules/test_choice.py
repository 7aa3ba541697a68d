"""Operators that take elements by their places, and products, for MNN: what they are made of, and MNN's own numbers."""

from __future__ import annotations

import numpy as np
import pytest

from backends.mnn.modules.child import Converter
from tests.support.modules.sweep import OneNode, assert_same, evaluated, run_on_mnn

RNG = np.random.default_rng(6)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def whole(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def places(size: int, *shape: int) -> np.ndarray:
    """Indices of both signs."""
    return RNG.integers(-size, size, shape).astype(np.int64)


def gathers() -> list[OneNode]:
    x = floats(3, 4, 5)
    cases = [OneNode("Gather", [x, places(size, 2, 2)], attrs={"axis": axis}) for axis, size in ((0, 3), (-1, 5))]
    for constant in ((), (1,)):
        cases += [
            OneNode("GatherElements", [x, places(4, 3, 6, 5)], constant, attrs={"axis": 1}),
            OneNode("GatherND", [x, np.stack([places(3, 6), places(4, 6)], -1)], constant),
            OneNode("GatherND", [x, places(4, 3, 2, 1)], constant, attrs={"batch_dims": 1}),
            OneNode(
                "GatherND", [x, np.stack([places(4, 3, 6), places(5, 3, 6)], -1)], constant, attrs={"batch_dims": 1}
            ),
            OneNode("GatherND", [x, places(5, 3, 4, 1)], constant, attrs={"batch_dims": 2}),
        ]
    cases += [OneNode("Compress", [x, np.array([True, False, True])], attrs={"axis": axis}) for axis in (0, 1, -1)]
    cases += [OneNode("Compress", [x, floats(60) > 0]), OneNode("NonZero", [x > 0])]
    for rank in (2, 3, 4):
        y = floats(*range(3, 3 + rank))
        for batch in (0, 1):
            lengths = RNG.integers(1, y.shape[1 - batch] + 1, y.shape[batch]).astype(np.int64)
            attrs = {"batch_axis": batch, "time_axis": 1 - batch}
            cases.append(OneNode("ReverseSequence", [y, lengths], attrs=attrs))
    return cases


def scatters() -> list[OneNode]:
    cases = []
    for dtype in (np.float32, np.int32):
        x = (floats(3, 4, 5) * 9).astype(dtype)
        for reduction in ("none", "add", "mul", "max", "min"):
            for axis in (0, 1, -1):
                shape = [2 if place == axis % 3 else size for place, size in enumerate(x.shape)]
                given = places(x.shape[axis], *shape)
                if reduction == "none":
                    order = np.argsort(RNG.random(x.shape), axis=axis)
                    given = np.take(order, [0, 1], axis=axis) - x.shape[axis]
                put = (floats(*shape) * 9).astype(dtype)
                attrs = {"axis": axis, "reduction": reduction}
                cases.append(OneNode("ScatterElements", [x, given, put], attrs=attrs))
            few = places(3, 2, 2, 2) if reduction != "none" else np.array([[[0, 1]], [[-1, -2]]])
            put = (floats(*few.shape) * 9).astype(dtype)
            cases.append(OneNode("ScatterElements", [x, few, put], attrs={"reduction": reduction}))
            for width in (1, 2, 3):
                flat = RNG.permutation(int(np.prod(x.shape[:width])))[:3]
                if reduction != "none":
                    flat = flat[[0, 0, 1]]
                given = np.stack(np.unravel_index(flat, x.shape[:width]), -1) - np.array(x.shape[:width])
                put = (floats(3, *x.shape[width:]) * 9).astype(dtype)
                attrs = {"reduction": reduction}
                cases += [OneNode("ScatterND", [x, given, put], constant, attrs=attrs) for constant in ((), (1,))]
    return cases


def fills() -> list[OneNode]:
    x, ties = floats(3, 9, 4), RNG.integers(0, 3, (3, 9, 4))
    cases = []
    for axis in (0, 1, -1):
        for largest in (0, 1):
            attrs = {"axis": axis, "largest": largest}
            for data in (x, ties.astype(np.float32), ties.astype(np.int32)):
                cases.append(OneNode("TopK", [data, whole(3)], (1,), outputs=2, attrs=attrs))
    indices = RNG.integers(-5, 6, (2, 3)).astype(np.int64)
    for axis in (-1, 0, 1):
        for depth in (np.array(4.0, np.float32), np.array([4], np.int64)):
            for values in (np.array([2, 5], np.float32), np.array([0, 1], np.int64)):
                for constant in ((1, 2), ()):
                    cases.append(OneNode("OneHot", [indices, depth, values], constant, attrs={"axis": axis}))
    cases += [
        OneNode("EyeLike", [floats(3, 4)], attrs={"k": k, "dtype": kind}) for k in (-1, 0, 2) for kind in (1, 6, 9)
    ]
    cases += [OneNode("ConstantOfShape", [whole(2, 3)]), OneNode("Trilu", [floats(2, 3, 4)], attrs={"upper": 0})]
    cases += [OneNode("Trilu", [np.zeros((2, 0, 3), np.float32)])]
    cases += [OneNode("Range", [np.array(n, np.int32) for n in (5, -3, -2)])]
    return cases


def products() -> list[OneNode]:
    shapes = [((4,), (4,)), ((4,), (4, 3)), ((2, 4), (4,)), ((5, 2, 4), (4,)), ((4,), (5, 4, 3)), ((2, 4), (4, 3))]
    shapes += [((2, 1, 2, 4), (5, 4, 3)), ((2, 1, 2, 3, 2, 4), (1, 2, 2, 3, 4, 2)), ((1, 4), (4, 1))]
    cases = []
    for first, second in shapes:
        x, y = floats(*first) * 9, floats(*second) * 9
        cases += [OneNode("MatMul", [x, y]), OneNode("MatMul", [x, y], (1,)), OneNode("MatMul", [x, y], (0,))]
        if x.ndim < 6:
            cases.append(OneNode("MatMul", [x.astype(np.int32), y.astype(np.int32)]))
    for first in (0, 1):
        for second in (0, 1):
            for added in (None, (), (1,), (3,), (2, 1), (2, 3)):
                for constant in ((), (1,), (1, 2)):
                    x, y = floats(*((4, 2) if first else (2, 4))), floats(*((3, 4) if second else (4, 3)))
                    operands = [x, y] + ([] if added is None else [floats(*added)])
                    attrs = {"transA": first, "transB": second, "alpha": 0.5, "beta": 2.0}
                    cases.append(OneNode("Gemm", operands, constant[: len(operands) - 1], attrs=attrs))
    for op in ("Softmax", "LogSoftmax", "Hardmax"):
        for rank in (1, 2, 3, 4):
            for axis in range(-rank, rank):
                x = floats(*range(3, 3 + rank)) * (9 if op == "LogSoftmax" else 100)
                cases.append(OneNode(op, [x], attrs={"axis": axis}))
        cases.append(OneNode(op, [floats(3, 4)]))
        cases.append(OneNode(op, [floats(3, 4, 5)], opset=11, attrs={"axis": 1}))
    return cases


def equations() -> list[OneNode]:
    sizes = {"b": 2, "h": 3, "i": 4, "j": 5, "k": 6, "l": 2}
    texts = [
        "ij->ji",
        "ij->i",
        "ij->",
        "ii->i",
        "ii",
        "bii->bi",
        "bii->b",
        "i,i",
        "i,i->i",
        "i,j->ij",
        "ij,jk->ik",
        "ij,jk",
    ]
    texts += ["bij,bjk->bik", "bhij,bhjk->bhik", "bhid,bhjd->bhij".replace("d", "k"), "ij,kj,il->kl", "bi,bj,bk->bijk"]
    texts += ["ij,ij->", "ijk,jl->ikl", "bijk,bljk->bil", " i j , j -> i", "ijk->kij", "ki,kj->kij", "ij,jk,kl->il"]
    cases = []
    for text in texts:
        terms = text.replace(" ", "").partition("->")[0].split(",")
        operands = [floats(*(sizes[letter] for letter in term)) for term in terms]
        cases.append(OneNode("Einsum", operands, attrs={"equation": text}))
    cases += [
        OneNode("Einsum", [floats(2, 3, 4), floats(2, 4, 5)], attrs={"equation": "...ij,...jk->...ik"}),
        OneNode("Einsum", [floats(2, 3, 4), floats(4, 5)], attrs={"equation": "...ij,jk->...ik"}),
        OneNode("Einsum", [floats(2, 3, 4)], attrs={"equation": "...ij->...ji"}),
        OneNode("Einsum", [floats(2, 3, 3)], attrs={"equation": "...ii->...i"}),
        OneNode("Einsum", [floats(2, 3), floats(2, 3)], attrs={"equation": "...i,...i->..."}),
    ]
    return cases


def suppressions() -> list[OneNode]:
    corner, extent = RNG.random((2, 9, 2)).astype(np.float32), RNG.random((2, 9, 2)).astype(np.float32) * 0.5
    cases = []
    for center in (0, 1):
        boxes = np.concatenate([corner, extent if center else corner + extent], -1)
        scores = RNG.random((2, 3, 9)).astype(np.float32)
        numbers = [whole(4), np.array([0.3], np.float32), np.array([0.2], np.float32)]
        for count in range(2 - center, 4):
            attrs = {"center_point_box": center}
            cases.append(OneNode("NonMaxSuppression", [boxes, scores, *numbers[:count]], attrs=attrs))
    return [*cases, OneNode("NonMaxSuppression", [boxes, scores])]


ALL = [*gathers(), *scatters(), *fills(), *products(), *equations(), *suppressions()]


def test_numbers_of_what_operators_are_made_of():
    for case in ALL:
        assert_same(evaluated(case), case.wanted(), case)


@pytest.mark.mnn
def test_mnn_computes_them(tmp_path):
    with Converter() as converter:
        for case in ALL:
            assert_same(run_on_mnn(case, converter, tmp_path), case.wanted(), case)
