"""Operators on codes, and operators with an activation behind them, compute the same in standard operators."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.contrib.one_node import contrib, same

RNG = np.random.default_rng(17)
ONE_CODE = 1.001 / 150
"""Kernels for codes round in another place: results differ by one code at most."""


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def codes(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape).astype(np.uint8)


SCALES = {name: np.float32(number) for name, number in (("xs", 0.03), ("ys", 0.05), ("zs", 0.06))}
ZEROS = {name: np.uint8(number) for name, number in (("xz", 100), ("yz", 130), ("zz", 120))}
PARTS = SCALES | ZEROS


def only(*names: str) -> dict[str, np.ndarray]:
    return {name: PARTS[name] for name in names}


@pytest.mark.parametrize("axis", [-1, 1])
def test_softmax(axis):
    parts = {"xs": np.float32(0.03), "xz": np.uint8(100), "ys": np.float32(1 / 256), "yz": np.uint8(0)}
    node = contrib("QLinearSoftmax", ["x", "xs", "xz", "ys", "yz"], ["y"], axis=axis, opset=13)
    same(node, {"x": codes(2, 3, 6)}, parts, tolerance=1.001 / 60)


def test_concat():
    node = contrib("QLinearConcat", ["zs", "zz", "x", "xs", "xz", "y", "ys", "yz"], ["c"], axis=1)
    same(node, {"x": codes(2, 3), "y": codes(2, 5)}, PARTS, tolerance=ONE_CODE)


def test_where():
    node = contrib("QLinearWhere", ["c", "x", "xs", "xz", "y", "ys", "yz", "zs", "zz"], ["w"])
    same(node, {"c": RNG.random((2, 6)) < 0.5, "x": codes(2, 6), "y": codes(2, 6)}, PARTS, tolerance=ONE_CODE)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("to_codes", [False, True])
@pytest.mark.parametrize("rows", [False, True])
def test_gemm(transposed, to_codes, rows):
    w = RNG.integers(-100, 100, (8, 4)).astype(np.int8)
    constants = {
        "xs": np.float32(0.02),
        "xz": np.uint8(120),
        "w": w.T.copy() if transposed else w,
        "ws": np.linspace(0.01, 0.02, 4).astype(np.float32) if rows else np.float32(0.01),
        "wz": np.zeros(4, np.int8) if rows else np.int8(3),
        "c": RNG.integers(-2000, 2000, 4).astype(np.int32),
        "ys": np.float32(0.1),
        "yz": np.uint8(120),
    }
    names = ["x", "xs", "xz", "w", "ws", "wz", "c", *["ys", "yz"] * to_codes]
    used = {name: constants[name] for name in names[1:]}
    node = contrib("QGemm", names, ["y"], transB=transposed)
    same(node, {"x": codes(3, 8)}, used, tolerance=ONE_CODE if to_codes else 1e-5)


ACTIVATIONS = {
    "none": {},
    "Relu": {"activation": "Relu"},
    "Tanh": {"activation": "Tanh"},
    "Sigmoid": {"activation": "Sigmoid"},
    "LeakyRelu": {"activation": "LeakyRelu", "activation_params": [0.2]},
    "Clip": {"activation": "Clip", "activation_params": [-0.5, 0.25]},
    "HardSigmoid": {"activation": "HardSigmoid", "activation_params": [0.3, 0.4]},
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("added", [False, True])
def test_convolutions(kind, added):
    feeds = {"x": floats(1, 3, 6, 6)} | ({"z": floats(1, 4, 6, 6)} if added else {})
    names = ["x", "w", "b", *["z"] * added]
    node = contrib("FusedConv", names, ["y"], pads=[1, 1, 1, 1], **ACTIVATIONS[kind])
    same(node, feeds, {"w": floats(4, 3, 3, 3), "b": floats(4)}, tolerance=1e-5)


@pytest.mark.parametrize("more", [{"activation": "Relu"}, {"activation": "LeakyRelu", "activation_alpha": 0.1}])
def test_products(more):
    node = contrib("FusedGemm", ["x", "w", "b"], ["y"], transB=1, alpha=0.5, beta=2.0, **more)
    same(node, {"x": floats(3, 8)}, {"w": floats(4, 8), "b": floats(4)}, tolerance=1e-5)


@pytest.mark.parametrize("axis", [0, 2, -1])
def test_one_axis_more(axis):
    same(contrib("ExpandDims", ["x", "a"], ["y"]), {"x": floats(2, 3)}, {"a": np.array(axis, np.int32)})


@pytest.mark.parametrize("upper", [0, 1])
def test_triangles(upper):
    same(contrib("Trilu", ["x", "k"], ["y"], upper=upper), {"x": floats(2, 4, 5)}, {"k": np.array(1)})
