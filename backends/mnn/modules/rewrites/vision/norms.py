"""Normalisations that are not right as they stand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from backends.mnn.modules.build import Build
from backends.mnn.modules.rewrites.types import Table
from backends.mnn.modules.rewrites.vision.sizes import padded, reshaped, sizes, sliced, total
from ir.graph.graph import Node, Value
from ir.ops.registry import attribute


def with_computed_numbers(node: Node, b: Build) -> Sequence[Value | None] | None:
    """``BatchNormalization`` written out, for parameters that are computed."""
    x = node.operand(0)
    if x.rank is None or attribute(node, "training_mode") or len(node.outputs) > 1:
        return None
    shape = [1, -1, *[1] * (x.rank - 2)] if x.rank > 1 else [-1]
    scale, bias, mean, variance = (node.operand(index) for index in range(1, 5))
    spread = b.add("Sqrt", b.add("Add", variance, b.like(attribute(node, "epsilon"), variance)))
    factor = b.add("Div", scale, spread)
    centred = b.add("Sub", x, b.reshape(mean, shape))
    return [b.add("Add", b.add("Mul", centred, b.reshape(factor, shape)), b.reshape(bias, shape))]


def of_the_batch(node: Node, b: Build) -> Sequence[Value | None] | None:
    """``BatchNormalization`` in training: with mean and variance of the batch, and the averages that follow from them."""
    x = node.operand(0)
    if x.rank is None or not attribute(node, "training_mode"):
        return None
    axes = b.ints(0, *range(2, x.rank))
    shape = [1, -1, *[1] * (x.rank - 2)]
    scale, bias, running_mean, running_variance = (node.operand(index) for index in range(1, 5))
    mean = b.add("ReduceMean", x, axes, keepdims=1)
    centred = b.add("Sub", x, mean)
    variance = b.add("ReduceMean", b.add("Mul", centred, centred), axes, keepdims=1)
    spread = b.add("Sqrt", b.add("Add", variance, b.like(attribute(node, "epsilon"), variance)))
    made = b.add("Mul", b.add("Div", centred, spread), b.reshape(scale, shape))
    results: list[Value | None] = [b.add("Add", made, b.reshape(bias, shape))]
    momentum = float(attribute(node, "momentum"))
    for old, new in ((running_mean, mean), (running_variance, variance)):
        kept = b.add("Mul", old, b.like(momentum, old))
        results.append(b.add("Add", kept, b.add("Mul", b.reshape(new, [-1]), b.like(1 - momentum, new))))
    return results[: len(node.outputs)]


def of_groups(node: Node, b: Build) -> Sequence[Value] | None:
    """``GroupNormalization``: a normalisation of instances with groups for channels, then scale and bias of the channels."""
    x, scale, bias = (node.operand(index) for index in range(3))
    groups = int(attribute(node, "num_groups"))
    if x.rank is None or x.rank < 3:
        return None
    before = sizes(b, x)
    ones = b.const(np.ones(groups, np.float32), "ones")
    zeros = b.const(np.zeros(groups, np.float32), "zeros")
    grouped = reshaped(b, x, [before[0], groups, -1]) if isinstance(before[0], int) else b.reshape(x, [0, groups, -1])
    made = b.add("InstanceNormalization", grouped, ones, zeros, epsilon=attribute(node, "epsilon"))
    shape = [1, -1, *[1] * (x.rank - 2)]
    made = reshaped(b, made, before)
    return [b.add("Add", b.add("Mul", made, b.reshape(scale, shape)), b.reshape(bias, shape))]


def over_layers(node: Node, b: Build) -> Sequence[Value | None] | None:
    """``LayerNormalization`` written out."""
    x, scale, bias = node.operand(0), node.operand(1), node.input(2)
    if x.rank is None:
        return None
    axis = int(attribute(node, "axis")) % x.rank
    axes = b.ints(*range(axis, x.rank))
    mean = b.add("ReduceMean", x, axes, keepdims=1)
    centred = b.add("Sub", x, mean)
    variance = b.add("ReduceMean", b.add("Mul", centred, centred), axes, keepdims=1)
    inverse = b.add("Reciprocal", b.add("Sqrt", b.add("Add", variance, b.like(attribute(node, "epsilon"), variance))))
    made = b.add("Mul", b.add("Mul", centred, inverse), scale)
    if bias is not None:
        made = b.add("Add", made, bias)
    return [made, mean, inverse][: len(node.outputs)]


def over_neighbours(node: Node, b: Build) -> Sequence[Value] | None:
    """``LRN`` written out: squares summed over channels nearby, an odd number of them; for others no two agree."""
    x = node.operand(0)
    count = int(attribute(node, "size"))
    if x.rank is None or not count % 2:
        return None
    before, behind = (count - 1) // 2, count // 2
    squares = padded(b, b.add("Mul", x, x), {1: (before, behind)})
    ends = [index - count + 1 for index in range(count)]
    parts = [
        sliced(b, squares, 1, index, end) if end else sliced(b, squares, 1, index) for index, end in enumerate(ends)
    ]
    summed = total(b, "Add", parts)
    scaled = b.add("Mul", summed, b.like(float(attribute(node, "alpha")) / count, x))
    base = b.add("Add", scaled, b.like(attribute(node, "bias"), x))
    return [b.add("Div", x, b.add("Pow", base, b.like(attribute(node, "beta"), x)))]


def to_length_one(node: Node, b: Build) -> Sequence[Value] | None:
    """``LpNormalization`` written out: where all is zero it stays so."""
    x = node.operand(0)
    axis = b.ints(int(attribute(node, "axis")))
    if attribute(node, "p") == 1:
        norm = b.add("ReduceSum", b.add("Abs", x), axis, keepdims=1)
    else:
        norm = b.add("Sqrt", b.add("ReduceSum", b.add("Mul", x, x), axis, keepdims=1))
    nothing = b.add("Equal", norm, b.like(0, x))
    return [b.add("Div", x, b.add("Where", nothing, b.like(1, x), norm))]


REWRITES: Table = {
    "BatchNormalization": (with_computed_numbers, of_the_batch),
    "GroupNormalization": (of_groups,),
    "LayerNormalization": (over_layers,),
    "LRN": (over_neighbours,),
    "LpNormalization": (to_length_one,),
}
"""Rewrites by operator."""
