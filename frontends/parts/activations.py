"""Activations by the names that configurations give them."""

from __future__ import annotations

from collections.abc import Callable

from frontends.parts.builder import Builder
from ir.graph.graph import Value

Activation = Callable[[Builder, Value, str], Value]
"""Adds the nodes that activate a value; the text is the name of the result."""


def _one(op: str, **attrs: object) -> Activation:
    """One standard operator."""

    def make(b: Builder, x: Value, name: str) -> Value:
        return b.add(op, [x], name, x.shape, attrs)

    return make


def _squared_relu(b: Builder, x: Value, name: str) -> Value:
    """``max(x, 0) ** 2`` (So et al. 2021, arXiv:2109.08668)."""
    positive = b.same("Relu", [x], f"{name}.positive")
    return b.same("Mul", [positive, positive], name)


def _quick_gelu(b: Builder, x: Value, name: str) -> Value:
    """``x * sigmoid(1.702 * x)`` (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
    return b.add("Swish", [x], name, x.shape, {"alpha": 1.702})


def xielu(b: Builder, x: Value, name: str) -> Value:
    """An activation with stored numbers (Huang and Schlag 2024, arXiv:2411.13010).

    ``alpha_p * x ** 2 + beta * x`` above zero, ``alpha_n * (expm1(min(x, eps)) - x) + beta * x`` elsewhere, where alpha_p
    is the softplus of the stored number and alpha_n that plus beta. Both sides are computed of what lies on their own
    side of zero, so that nothing overflows.
    """

    def stored(key: str, shape: tuple[int, ...]) -> Value:
        return b.const(f"{name}.{key}", b.stored.get(f"{name}.{key}", shape))

    beta, eps = stored("beta", ()), stored("eps", ())
    alpha_p = b.add("Softplus", [stored("alpha_p", (1,))], f"{name}.positive_gain", (1,))
    alpha_n = b.add("Softplus", [stored("alpha_n", (1,))], f"{name}.soft_negative", (1,))
    alpha_n = b.add("Add", [alpha_n, beta], f"{name}.negative_gain", (1,))
    zero = b.setting("zero", 0.0)
    above, below = b.same("Max", [x, zero], f"{name}.above"), b.same("Min", [x, zero], f"{name}.below")
    square = b.same("Mul", [above, above], f"{name}.square")
    square = b.same("Mul", [square, alpha_p], f"{name}.quadratic")
    limited = b.same("Min", [below, eps], f"{name}.limited")
    curve = b.same("Elu", [limited], f"{name}.expm1")
    curve = b.same("Sub", [curve, below], f"{name}.curve")
    curve = b.same("Mul", [curve, alpha_n], f"{name}.exponential")
    both = b.same("Add", [square, curve], f"{name}.curves")
    return b.same("Add", [both, b.same("Mul", [x, beta], f"{name}.linear")], name)


ACTIVATIONS: dict[str, Activation] = {
    "silu": _one("Swish"),
    "swish": _one("Swish"),
    "gelu": _one("Gelu", approximate="none"),
    "gelu_new": _one("Gelu", approximate="tanh"),
    "gelu_pytorch_tanh": _one("Gelu", approximate="tanh"),
    "gelu_fast": _one("Gelu", approximate="tanh"),
    "quick_gelu": _quick_gelu,
    "relu": _one("Relu"),
    "relu2": _squared_relu,
    "sigmoid": _one("Sigmoid"),
    "tanh": _one("Tanh"),
    "xielu": xielu,
}
"""By name; what each adds to the graph."""

__all__ = ["ACTIVATIONS", "Activation"]
