"""What each operator computes and how gradients pass it, in numpy; one row of `RULES` for each.

A rule is given the node and its inputs and gives the output with a `Pull`: from the gradient of a scalar with respect to
the output to those with respect to the inputs, in their order and shapes. Inputs without a gradient (integers, masks,
what is left out) get None. Everything is single precision; leading axes of activations are free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ir.evaluate.backward.attention import attention, rotary
from ir.evaluate.backward.shapes import SHAPE_RULES
from ir.evaluate.backward.words import Applied, Arrays, Rule, fitted, only
from ir.graph.graph import Node


def _matmul(node: Node, inputs: Arrays) -> Applied:
    left, right = inputs[0], inputs[1]
    assert left is not None and right is not None

    def pull(gradient: np.ndarray) -> Arrays:
        if right.ndim == 2:
            rows, grown = left.reshape(-1, left.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
            return (grown @ right.T).reshape(left.shape), rows.T @ grown
        return fitted(gradient @ right.swapaxes(-1, -2), left), fitted(left.swapaxes(-1, -2) @ gradient, right)

    return Applied(left @ right, pull)


def _add(node: Node, inputs: Arrays) -> Applied:
    left, right = only(inputs)
    return Applied(left + right, lambda g: (fitted(g, left), fitted(g, right)))


def _sub(node: Node, inputs: Arrays) -> Applied:
    left, right = only(inputs)
    return Applied(left - right, lambda g: (fitted(g, left), fitted(-g, right)))


def _mul(node: Node, inputs: Arrays) -> Applied:
    left, right = only(inputs)
    return Applied(left * right, lambda g: (fitted(g * right, left), fitted(g * left, right)))


def _div(node: Node, inputs: Arrays) -> Applied:
    left, right = only(inputs)
    found = left / right
    return Applied(found, lambda g: (fitted(g / right, left), fitted(-g * found / right, right)))


def _pow(node: Node, inputs: Arrays) -> Applied:
    base, power = only(inputs)
    found = np.power(base, power).astype(base.dtype, copy=False)
    return Applied(found, lambda g: (fitted(g * power * np.power(base, power - 1), base).astype(base.dtype), None))


class Slope(NamedTuple):
    """An element-wise function of one input: its value and its derivative, the latter from input and value."""

    value: Callable[[Node, np.ndarray], np.ndarray]
    derivative: Callable[[Node, np.ndarray, np.ndarray], np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    """``1 / (1 + exp(-x))`` without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small)).astype(x.dtype, copy=False)


def _erf(x: np.ndarray) -> np.ndarray:
    """The error function, by the series near 0 and the continued fraction beyond, in double precision."""
    wide = np.abs(x.astype(np.float64))
    near = np.minimum(wide, 2.5)
    term, total = near.copy(), near.copy()
    for place in range(1, 40):
        term = term * (-near * near) / place
        total += term / (2 * place + 1)
    far = np.maximum(wide, 2.5)
    tail = far
    for place in range(40, 0, -1):
        tail = far + place / 2 / tail
    beyond = 1 - np.exp(-far * far) / np.sqrt(np.pi) / tail
    return np.copysign(np.where(wide < 2.5, 2 / np.sqrt(np.pi) * total, beyond), x).astype(x.dtype)


def _swish_value(node: Node, x: np.ndarray) -> np.ndarray:
    alpha = np.float32(node.attrs.get("alpha", 1.0))
    return x * sigmoid(alpha * x)


def _swish_slope(node: Node, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    alpha = np.float32(node.attrs.get("alpha", 1.0))
    gate = sigmoid(alpha * x)
    return gate + alpha * y * (1 - gate)


CUBE = np.float32(0.044715)
ROOT = np.float32(np.sqrt(2 / np.pi))


def _gelu_value(node: Node, x: np.ndarray) -> np.ndarray:
    if node.attrs.get("approximate", "none") == "tanh":
        return np.float32(0.5) * x * (1 + np.tanh(ROOT * (x + CUBE * x * x * x)))
    return np.float32(0.5) * x * (1 + _erf(x * np.float32(np.sqrt(0.5))))


def _gelu_slope(node: Node, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if node.attrs.get("approximate", "none") == "tanh":
        bent = np.tanh(ROOT * (x + CUBE * x * x * x))
        inner = ROOT * (1 + 3 * CUBE * x * x)
        return np.float32(0.5) * (1 + bent) + np.float32(0.5) * x * (1 - bent * bent) * inner
    density = np.exp(-x * x / 2) * np.float32(1 / np.sqrt(2 * np.pi))
    return np.float32(0.5) * (1 + _erf(x * np.float32(np.sqrt(0.5)))) + x * density


SLOPES: Mapping[str, Slope] = {
    "Swish": Slope(_swish_value, _swish_slope),
    "Gelu": Slope(_gelu_value, _gelu_slope),
    "Sigmoid": Slope(lambda node, x: sigmoid(x), lambda node, x, y: y * (1 - y)),
    "Tanh": Slope(lambda node, x: np.tanh(x), lambda node, x, y: 1 - y * y),
    "Relu": Slope(lambda node, x: np.maximum(x, 0), lambda node, x, y: (x > 0).astype(x.dtype)),
    "Exp": Slope(lambda node, x: np.exp(x), lambda node, x, y: y),
    "Neg": Slope(lambda node, x: -x, lambda node, x, y: np.full_like(x, -1)),
    "Sqrt": Slope(lambda node, x: np.sqrt(x), lambda node, x, y: np.float32(0.5) / y),
    "Reciprocal": Slope(lambda node, x: 1 / x, lambda node, x, y: -y * y),
    "Softplus": Slope(lambda node, x: np.logaddexp(x, np.float32(0)), lambda node, x, y: sigmoid(x)),
    "Erf": Slope(lambda node, x: _erf(x), lambda node, x, y: np.float32(2 / np.sqrt(np.pi)) * np.exp(-x * x)),
}


def _by_element(node: Node, inputs: Arrays) -> Applied:
    (x,) = only(inputs)
    slope = SLOPES[node.op]
    y = slope.value(node, x)
    return Applied(y, lambda g: (g * slope.derivative(node, x, y),))


def _softmax(node: Node, inputs: Arrays) -> Applied:
    (x,) = only(inputs)
    axis = node.attrs.get("axis", -1)
    y = np.exp(x - x.max(axis=axis, keepdims=True))
    y /= y.sum(axis=axis, keepdims=True)
    return Applied(y, lambda g: (y * (g - (g * y).sum(axis=axis, keepdims=True)),))


def _axes(node: Node, x: np.ndarray) -> tuple[int, ...]:
    return tuple(range(node.attrs.get("axis", -1) % x.ndim, x.ndim))


def _rms_norm(node: Node, inputs: Arrays) -> Applied:
    x, gain = only(inputs)
    axes = _axes(node, x)
    share = np.float32(1 / np.prod([x.shape[axis] for axis in axes]))
    size = 1 / np.sqrt((x * x).sum(axis=axes, keepdims=True) * share + np.float32(node.attrs.get("epsilon", 1e-5)))
    normal = x * size

    def pull(gradient: np.ndarray) -> Arrays:
        inner = gradient * gain
        along = (inner * normal).sum(axis=axes, keepdims=True) * share
        return size * (inner - normal * along), fitted(gradient * normal, gain)

    return Applied(normal * gain, pull)


def _layer_norm(node: Node, inputs: Arrays) -> Applied:
    x, gain, *rest = inputs
    assert x is not None and gain is not None
    axes = _axes(node, x)
    share = np.float32(1 / np.prod([x.shape[axis] for axis in axes]))
    centered = x - x.sum(axis=axes, keepdims=True) * share
    variance = (centered * centered).sum(axis=axes, keepdims=True) * share
    size = 1 / np.sqrt(variance + np.float32(node.attrs.get("epsilon", 1e-5)))
    normal = centered * size
    bias = rest[0] if rest else None
    found = normal * gain if bias is None else normal * gain + bias

    def pull(gradient: np.ndarray) -> Arrays:
        inner = gradient * gain
        level = inner.sum(axis=axes, keepdims=True) * share
        along = (inner * normal).sum(axis=axes, keepdims=True) * share
        back = size * (inner - level - normal * along)
        return back, fitted(gradient * normal, gain), *(() if bias is None else (fitted(gradient, bias),))

    return Applied(found, pull)


RULES: Mapping[str, Rule] = {
    "MatMul": _matmul,
    "Add": _add,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
    "Pow": _pow,
    "Softmax": _softmax,
    "RMSNormalization": _rms_norm,
    "LayerNormalization": _layer_norm,
    "RotaryEmbedding": rotary,
    "Attention": attention,
    **dict.fromkeys(SLOPES, _by_element),
    **SHAPE_RULES,
}
"""How gradients pass an operator, by its name."""


def lacking(nodes: Sequence[Node]) -> list[str]:
    """Operators among the nodes that gradients cannot pass, each once, in order."""
    return list(dict.fromkeys(node.op for node in nodes if node.op not in RULES))


__all__ = ["RULES", "lacking"]
