"""Whether the weights of convolutions and matrix products are in a converted net.

The converter arranges them anew, splits them by groups and joins scales to them, so that only their count is sure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from backends.mnn.modules.build import type_of
from backends.mnn.read.net_file import numbers as listed
from ir.graph.graph import Graph

OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose second operand is their weight."""

_MATRICES = {
    "Convolution": "Convolution2D", "ConvolutionDepthwise": "Convolution2D", "Deconvolution": "Convolution2D",
    "DeconvolutionDepthwise": "Convolution2D", "Convolution3D": "Convolution3D", "ConvTranspose3D": "Convolution3D",
    "InnerProduct": "InnerProduct", "MatMul": "MatMul",
}  # fmt: skip
"""Parameters that hold a weight, by type of the operator."""
_NUMBERS = ("float32s", "int32s", "int8s", "uint8s")


def lost_weights(ops: Iterable[Mapping[str, Any]], graph: Graph) -> Iterator[tuple[str, str]]:
    """Weights of a graph that its net has not: a sentence, and the node that reads it. One number may be folded into others.

    Args:
        ops: operators of the net, those of its subgraphs too.
        graph: what the net was made from.
    """
    held = _held(ops)
    for node in graph.walk():
        weight = node.input(1) if node.op in OPERATORS else None
        found = type_of(weight)
        if weight is None or weight.const is None or found is None or found.size is None or found.size < 2:
            continue
        if not any(size > 1 and found.size % size == 0 and size * held[size] >= found.size for size in held):
            yield f"the weight {weight.name!r} of {found.size:,} numbers is nowhere in the converted model", repr(node)


def _held(ops: Iterable[Mapping[str, Any]]) -> Mapping[int, int]:
    """How many weights and constants of each count of numbers a net holds."""
    counts: dict[int, int] = {}
    for op in ops:
        main = op.get("main")
        if not isinstance(main, Mapping):
            continue
        size = _constant(main) if op.get("type") == "Const" else _weight(main) if op.get("type") in _MATRICES else 0
        counts[size] = counts.get(size, 0) + 1
    return counts


def _constant(main: Mapping[str, Any]) -> int:
    external = listed(main.get("external"))
    if len(external) > 1:
        return int(np.prod(listed(main.get("dims")), dtype=np.int64))
    return max((len(main[name]) for name in _NUMBERS if main.get(name) is not None), default=0)


def _weight(main: Mapping[str, Any]) -> int:
    """Numbers of the weight of an operator: its floats, here or in the weight file (offset, bytes of weight, of bias)."""
    external = listed(main.get("external"))
    if len(external) > 1:
        return int(external[1]) // 4
    weight = main.get("weight")
    return 0 if weight is None else len(weight)


__all__ = ["OPERATORS", "lost_weights"]
