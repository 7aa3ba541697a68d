"""Rules of the operators that move numbers without changing them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ir.base.types import dtype_of_onnx
from ir.evaluate.backward.words import Applied, Arrays, Rule, fitted
from ir.graph.graph import Node


def _first(inputs: Arrays) -> np.ndarray:
    found = inputs[0]
    assert found is not None
    return found


def _numbers(inputs: Arrays, place: int) -> list[int] | None:
    """The integers of an input, None where it is left out."""
    found = inputs[place] if place < len(inputs) else None
    return None if found is None else [int(number) for number in found.reshape(-1)]


def _reshaped(inputs: Arrays, shape: list[int] | tuple[int, ...]) -> Applied:
    x = _first(inputs)
    rest = (None,) * (len(inputs) - 1)
    return Applied(x.reshape(shape), lambda g: (g.reshape(x.shape), *rest))


def _reshape(node: Node, inputs: Arrays) -> Applied:
    x, shape = _first(inputs), _numbers(inputs, 1) or []
    if not node.attrs.get("allowzero", 0):
        shape = [x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    return _reshaped(inputs, shape)


def _unsqueeze(node: Node, inputs: Arrays) -> Applied:
    axes = _numbers(inputs, 1) or []
    return _reshaped(inputs, np.expand_dims(_first(inputs), tuple(axes)).shape)


def _squeeze(node: Node, inputs: Arrays) -> Applied:
    axes = _numbers(inputs, 1)
    return _reshaped(inputs, np.squeeze(_first(inputs), None if axes is None else tuple(axes)).shape)


def _transpose(node: Node, inputs: Arrays) -> Applied:
    x = _first(inputs)
    order = list(node.attrs.get("perm", range(x.ndim)[::-1]))
    back = np.argsort(order)
    return Applied(x.transpose(order), lambda g: (g.transpose(back),))


def _cast(node: Node, inputs: Arrays) -> Applied:
    x = _first(inputs)
    return Applied(x.astype(dtype_of_onnx(node.attrs["to"]).numpy), lambda g: (g.astype(x.dtype),))


def _identity(node: Node, inputs: Arrays) -> Applied:
    return Applied(_first(inputs), lambda g: (g,))


def _concat(node: Node, inputs: Arrays) -> Applied:
    parts = [part for part in inputs if part is not None]
    axis = node.attrs["axis"]
    edges = np.cumsum([part.shape[axis] for part in parts])[:-1]
    return Applied(np.concatenate(parts, axis), lambda g: tuple(np.split(g, edges, axis)))


def _picked(x: np.ndarray, where: tuple, inputs: Arrays) -> Applied:
    def pull(gradient: np.ndarray) -> Arrays:
        whole = np.zeros_like(x)
        np.add.at(whole, where, gradient)
        return whole, *(None,) * (len(inputs) - 1)

    return Applied(x[where], pull)


def _gather(node: Node, inputs: Arrays) -> Applied:
    x, chosen = _first(inputs), inputs[1]
    assert chosen is not None
    axis = node.attrs.get("axis", 0) % x.ndim
    return _picked(x, (*(slice(None),) * axis, chosen), inputs)


def _slice(node: Node, inputs: Arrays) -> Applied:
    x = _first(inputs)
    starts, stops = _numbers(inputs, 1) or [], _numbers(inputs, 2) or []
    axes, steps = _numbers(inputs, 3) or list(range(len(starts))), _numbers(inputs, 4) or [1] * len(starts)
    where = [slice(None)] * x.ndim
    for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True):
        size = x.shape[axis]
        if step < 0:
            # Backwards, a start before the first element is the first one, and a stop before it has no number.
            where[axis] = slice(max(start, -size), None if stop < -size else stop, step)
        else:
            where[axis] = slice(start, stop, step)

    def pull(gradient: np.ndarray) -> Arrays:
        whole = np.zeros_like(x)
        whole[tuple(where)] = gradient
        return whole, *(None,) * (len(inputs) - 1)

    return Applied(x[tuple(where)], pull)


def _expand(node: Node, inputs: Arrays) -> Applied:
    x = _first(inputs)
    shape = np.broadcast_shapes(x.shape, tuple(_numbers(inputs, 1) or []))
    return Applied(np.broadcast_to(x, shape), lambda g: (fitted(g, x), None))


SHAPE_RULES: Mapping[str, Rule] = {
    "Reshape": _reshape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Cast": _cast,
    "Identity": _identity,
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    "Expand": _expand,
}
"""How gradients pass operators that move numbers, by name."""

__all__ = ["SHAPE_RULES"]
