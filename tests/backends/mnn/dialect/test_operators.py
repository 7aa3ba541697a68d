"""What the operators of MNN compute, against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest

from backends.mnn.dialect.arithmetic import BINARY, COMPARE, UNARY
from backends.mnn.dialect.reductions import REDUCTIONS
from ir.base.diag import LadingError
from ir.base.types import F32, I32, TensorType
from ir.evaluate.evaluator import evaluate
from ir.graph.graph import Graph
from ir.ops.meaning import define
from tests.support.contrib.one_operator import normal, run

RNG = np.random.default_rng(7)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def erf(x: np.ndarray) -> np.ndarray:
    from math import erf as exact

    return np.vectorize(exact)(x)


UNARY_FORMULAS = {
    "ABS": np.abs, "NEG": np.negative, "FLOOR": np.floor, "CEIL": np.ceil, "SQRT": np.sqrt, "EXP": np.exp, "LOG": np.log,
    "SIN": np.sin, "COS": np.cos, "TAN": np.tan, "ASIN": np.arcsin, "ACOS": np.arccos, "ATAN": np.arctan,
    "RECIPROCAL": lambda x: 1 / x, "ACOSH": lambda x: np.arccosh(x + 1), "SINH": np.sinh, "ASINH": np.arcsinh,
    "ATANH": np.arctanh, "SIGN": np.sign, "COSH": np.cosh, "ERF": erf, "SIGMOID": lambda x: 1 / (1 + np.exp(-x)),
    "TANH": np.tanh, "SQUARE": np.square, "RSQRT": lambda x: 1 / np.sqrt(x), "LOG1P": np.log1p, "EXPM1": np.expm1,
    "ERFC": lambda x: 1 - erf(x), "BNLL": lambda x: np.log1p(np.exp(x)),
    "ROUND": lambda x: np.sign(x) * np.floor(np.abs(x) + 0.5), "HARDSWISH": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "GELU": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "GELU_STANDARD": lambda x: 0.5 * x * (1 + erf(x / np.sqrt(2))), "SILU": silu,
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(UNARY))
def test_unary(kind: str) -> None:
    x = RNG.uniform(0.05, 0.95, (2, 5)).astype(np.float32)
    if kind in ("ROUND", "SIGN", "ABS", "NEG", "HARDSWISH", "SILU", "FLOOR", "CEIL", "GELU", "BNLL"):
        x = np.array([[-2.5, -1.5, -0.5, 0.5, 1.5], [2.5, -3.25, 4.0, 0.0, 7.5]], np.float32)
    (found,) = run("mnn.Unary", x + (1 if kind == "ACOSH" else 0), kind=kind)
    np.testing.assert_allclose(found, UNARY_FORMULAS[kind](x.astype(np.float64)), rtol=2e-6, atol=2e-6)


BINARY_FORMULAS = {
    "ADD": np.add, "SUB": np.subtract, "MUL": np.multiply, "REALDIV": np.divide, "POW": lambda x, y: np.abs(x) ** y,
    "MINIMUM": np.minimum, "MAXIMUM": np.maximum, "FLOORDIV": np.floor_divide, "FLOORMOD": np.mod, "MOD": np.fmod,
    "SquaredDifference": lambda x, y: (x - y) ** 2, "GREATER": np.greater, "GREATER_EQUAL": np.greater_equal,
    "LESS": np.less, "LESS_EQUAL": np.less_equal, "EQUAL": np.equal, "NOTEQUAL": np.not_equal,
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted((*BINARY, *COMPARE, "NOTEQUAL")))
def test_binary_broadcasts(kind: str) -> None:
    x, y = normal(2, 3, 4), normal(3, 1)
    x[0, 0, 0] = y[0, 0]
    x = np.abs(x) if kind == "POW" else x
    (found,) = run("mnn.Binary", x, y, kind=kind)
    assert found.dtype == (np.float32 if kind in BINARY else np.int32)
    np.testing.assert_allclose(found, BINARY_FORMULAS[kind](x, y), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("kind", "want"), [("REALDIV", [-2, 2, 2]), ("FLOORDIV", [-3, 2, 2]), ("FLOORMOD", [1, 1, -1])]
)
def test_integer_division_rounds_as_in_c_or_down(kind: str, want: list[int]) -> None:
    x, y = np.array([-5, 5, -5], np.int32), np.array([2, 2, -2], np.int32)
    (found,) = run("mnn.Binary", x, y, kind=kind)
    assert found.tolist() == want


@pytest.mark.parametrize("kind", sorted(REDUCTIONS))
@pytest.mark.parametrize(("axes", "keep"), [((-1,), 1), ((0, 2), 0), ((), 1), ((), 0)])
def test_reduction(kind: str, axes: tuple[int, ...], keep: int) -> None:
    formulas = {
        "SUM": np.sum, "ASUM": lambda x, **k: np.sum(np.abs(x), **k), "SUMSQ": lambda x, **k: np.sum(x * x, **k),
        "MEAN": np.mean, "MAXIMUM": np.max, "MINIMUM": np.min, "PROD": np.prod,
    }  # fmt: skip
    x = normal(2, 3, 4)
    (found,) = run("mnn.Reduction", x, kind=kind, axes=axes, keep_dims=keep)
    want = formulas[kind](x, axis=axes or None, keepdims=bool(keep))
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


def test_reshape_copies_and_fills() -> None:
    x = normal(2, 6, 8)
    assert run("mnn.Reshape", x, dims=(0, -1, 2, 4), dim_type="NCHW")[0].shape == (2, 6, 2, 4)
    np.testing.assert_array_equal(run("mnn.Reshape", x, dims=(-1,), dynamic=True)[0], x.reshape(-1))


def test_slice_concat_squeeze_convert() -> None:
    x = normal(1, 2, 3, 8)
    parts = run("mnn.Slice", x, outputs=3, axis=3, points=(2, 5))
    for part, want in zip(parts, np.split(x, [2, 5], 3), strict=True):
        np.testing.assert_array_equal(part, want)
    np.testing.assert_array_equal(run("mnn.Concat", *parts, axis=-1)[0], x)
    np.testing.assert_array_equal(run("mnn.Squeeze", x, axes=(0,))[0], x[0])
    np.testing.assert_array_equal(run("mnn.Unsqueeze", x[0], axes=(0, -1))[0], x[0][None, ..., None])
    np.testing.assert_array_equal(run("mnn.ConvertTensor", x, source="NCHW", dest="NC4HW4")[0], x)


@pytest.mark.parametrize("first", [-1, 0])
def test_strided_slice_keeps_the_wanted_rows(first: int) -> None:
    x = normal(1, 5, 3)
    bounds = [np.array([number], np.int32) for number in (first, 2**31 - 1, 1, 1)]
    np.testing.assert_array_equal(run("mnn.StridedSlice", x, *bounds, dynamic=True)[0], x[:, first:])


def test_select_and_cast() -> None:
    x, y = normal(2, 3), normal(3)
    choose = np.array([[1, 0, 2], [0, 0, -1]], np.int32)
    np.testing.assert_array_equal(run("mnn.Select", choose, x, y)[0], np.where(choose != 0, x, y))
    values = np.array([-1.7, -0.2, 0.9, 2.5], np.float32)
    assert run("mnn.Cast", values, to=I32.onnx)[0].tolist() == [-1, 0, 0, 2]


@pytest.mark.parametrize("with_bias", [True, False])
def test_convolution_is_a_linear_layer(with_bias: bool) -> None:
    x, weight, bias = normal(3, 4, 1, 1), normal(4, 5), normal(5)
    (found,) = run("mnn.Convolution", x, weight, *([bias] if with_bias else []))
    want = x[:, :, 0, 0] @ weight + (bias if with_bias else 0)
    np.testing.assert_allclose(found, want[:, :, None, None], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rms", [0, 1])
@pytest.mark.parametrize("axis", [(-1,), (-2, -1)])
def test_layer_norm(rms: int, axis: tuple[int, ...]) -> None:
    x = normal(2, 3, 4)
    gamma, beta = (normal(*x.shape[axis[0] :]) for _ in range(2))
    (found,) = run("mnn.LayerNorm", x, gamma, beta, rms=rms, axis=axis, epsilon=1e-3)
    centred = x if rms else x - x.mean(axis, keepdims=True)
    want = centred / np.sqrt((centred**2).mean(axis, keepdims=True) + 1e-3) * gamma + beta
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """q [1, S, Hq, D], k and v [1, S, Hkv, D], mask [S, S] added to the scores."""
    group = q.shape[2] // k.shape[2]
    k, v = np.repeat(k, group, 2), np.repeat(v, group, 2)
    scores = np.einsum("bshd,bthd->bhst", q, k) / np.sqrt(q.shape[-1]) + mask
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhst,bthd->bshd", weights, v).reshape(1, q.shape[1], -1)


@pytest.mark.parametrize("window", [0, 2])
def test_attention(window: int) -> None:
    q, k, v = normal(1, 5, 4, 8), normal(1, 5, 2, 8), normal(1, 5, 2, 8)
    gap = np.arange(5)[:, None] - np.arange(5)
    visible = (gap >= 0) & (gap < (window or 5))
    full = np.where(visible, 0, np.finfo(np.float32).min).astype(np.float32)
    mask = full[None, None] if window else np.zeros((), np.float32)
    (found,) = run("mnn.Attention", q, k, v, mask)
    np.testing.assert_allclose(found, attention(q, k, v, full), rtol=1e-5, atol=1e-6)


def test_definitions_at_too_old_an_opset_are_refused() -> None:
    graph = Graph("old", {"": 12})
    graph.set_outputs([graph.add("mnn.Unary", [graph.add_input("x", TensorType(F32, (1,)))], {"kind": "COS"}).output])
    with pytest.raises(LadingError, match="opset 13 or later") as caught:
        evaluate(graph, {"x": normal(1)})
    assert caught.value.code == "T230"


def test_definitions_are_plain_onnx() -> None:
    graph = Graph("g")
    x = graph.add_input("x", TensorType(F32, (2,)))
    body = define(graph.add("mnn.Unary", [x], {"kind": "SILU"}))
    assert [node.op for node in body.nodes] == ["Sigmoid", "Mul"]
