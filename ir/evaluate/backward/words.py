"""What rules of operators are given and give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ir.graph.graph import Node

Arrays = Sequence[np.ndarray | None]
Pull = Callable[[np.ndarray], Arrays]
"""From the gradient with respect to an output to those with respect to the inputs."""


class Applied(NamedTuple):
    """The output of an operator, and the way back from it."""

    output: np.ndarray
    pull: Pull


Rule = Callable[[Node, Arrays], Applied]


def only(inputs: Arrays) -> list[np.ndarray]:
    """The inputs of an operator that has all of them."""
    return [item for item in inputs if item is not None]


def fitted(gradient: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The gradient of an operand that was broadcast: summed over the axes along which it was repeated."""
    if gradient.shape == like.shape:
        return gradient
    extra = gradient.ndim - like.ndim
    repeated = [axis + extra for axis, size in enumerate(like.shape) if size == 1 and gradient.shape[axis + extra] > 1]
    return gradient.sum(axis=(*range(extra), *repeated), keepdims=True).reshape(like.shape)


__all__ = ["Applied", "Arrays", "Pull", "Rule", "fitted", "only"]
