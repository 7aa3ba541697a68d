"""Fold what scales and shifts the channels of a convolution into its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ir.graph.graph import Graph, Node, Value
from ir.tensor.inline import InlineTensor
from passes.framework.base import Pass
from passes.framework.context import PassContext
from passes.static_quant.operators import is_floats, only_reader

FOLDED = ("BatchNormalization", "Mul", "Div", "Add", "Sub")
CHANNEL_AXES = {"Conv": 0, "ConvTranspose": 1}
"""Axis of the weight that output channels run along, by operator."""


@dataclass(frozen=True)
class FoldBatchNorms(Pass):
    """Fold batch normalizations into the convolutions before them.

    A normalization with constant statistics, and a product or sum with a constant for each channel, is a factor and a
    summand for each channel, which are put into weight and bias when it is the only reader. What is folded need not be
    rounded to 8 bits by itself.
    """

    name = "fold-batch-norms"
    requires = ("typed",)

    def run(self, graph: Graph, ctx: PassContext) -> Mapping[str, int]:
        """See `Pass.run`."""
        folded = 0
        for node in graph.nodes:
            while _is_plain(node):
                reader = only_reader(node.output, FOLDED)
                found = _channels(reader, node.output) if reader is not None else None
                if reader is None or found is None:
                    break
                _fold(graph, node, *found)
                _take_place(graph, node, reader)
                folded += 1
        return {"folded": folded}


def _is_plain(node: Node) -> bool:
    """True for a convolution with constant weights of single precision."""
    if node.op not in CHANNEL_AXES or (node.op == "ConvTranspose" and node.attrs.get("group", 1) != 1):
        return False
    weight, bias = node.operand(1), node.input(2)
    constant = weight.const is not None and (bias is None or bias.const is not None)
    return constant and is_floats(weight) and node.output.rank is not None


def _channels(reader: Node, value: Value) -> tuple[np.ndarray, np.ndarray] | None:
    """Factor and summand, of one element or one for each channel, of what a node does with a value."""
    if reader.op == "BatchNormalization":
        return _normalization(reader, value)
    place = 0 if reader.operand(0) is value else 1
    other = reader.operand(1 - place)
    if other is value or other.const is None or not is_floats(other):
        return None
    numbers = _by_channel(other.const.load(), value.rank or 0)
    if numbers is None or (reader.op == "Div" and place == 1):
        return None
    one, zero = np.ones(1), np.zeros(1)
    if reader.op == "Mul":
        return numbers, zero
    if reader.op == "Div":
        return (1 / numbers, zero) if numbers.all() else None
    if reader.op == "Add":
        return one, numbers
    return (one, -numbers) if place == 0 else (-one, numbers)


def _normalization(node: Node, value: Value) -> tuple[np.ndarray, np.ndarray] | None:
    rest = [node.operand(place) for place in range(1, 5)]
    if node.attrs.get("training_mode", 0) or len(node.outputs) != 1 or node.operand(0) is not value:
        return None
    if any(item.const is None or not is_floats(item) for item in rest):
        return None
    gain, shift, mean, variance = (item.tensor.load().astype(np.float64) for item in rest)
    factor = gain / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
    return factor, shift - mean * factor


def _by_channel(array: np.ndarray, rank: int) -> np.ndarray | None:
    """float64[1] or float64[channels] of a constant that is spread over a tensor with channels along axis 1; else None."""
    if array.ndim > rank:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    if any(size != 1 for axis, size in enumerate(shape) if axis != 1):
        return None
    return array.reshape(-1).astype(np.float64)


def _fold(graph: Graph, node: Node, factor: np.ndarray, summand: np.ndarray) -> None:
    weight, bias = node.operand(1), node.input(2)
    axis = CHANNEL_AXES[node.op]
    array = weight.tensor.load().astype(np.float64)
    shape = [1] * array.ndim
    shape[axis] = factor.size
    old = bias.tensor.load().astype(np.float64) if bias is not None else np.zeros(array.shape[axis])
    added = (old * factor + summand).astype(np.float32)
    replace_const(graph, node, 1, (array * factor.reshape(shape)).astype(np.float32), f"{node.output.name}.weight")
    if added.any() or bias is not None:
        replace_const(graph, node, 2, added, f"{node.output.name}.bias")


def replace_const(graph: Graph, node: Node, place: int, array: np.ndarray, name: str) -> None:
    """Make a node read another array as a constant input, which it alone reads, at a place that it may lack."""
    old = node.input(place)
    if old is not None and old.use_count == 1 and old.graph is graph:
        graph.set_const(old, InlineTensor(array, loc=old.loc))
        return
    inputs = [*node.inputs, *[None] * (place + 1 - len(node.inputs))]
    inputs[place] = graph.add_const(old.name if old is not None else name, InlineTensor(array))
    graph.set_inputs(node, inputs)


def _take_place(graph: Graph, node: Node, reader: Node) -> None:
    """The result of a node takes the place and the name of that of its reader, which goes away."""
    name, loc = reader.output.name, reader.output.loc
    rest = [value for value in reader.inputs if value is not None and value.const is not None]
    graph.replace(reader.output, node.output)
    graph.erase(reader)
    for value in dict.fromkeys(rest):
        if value.graph is graph and not value.use_count:
            graph.erase_const(value)
    graph.rename(node.output, name)
    graph.set_loc(node.output, loc or node.output.loc)


__all__ = ["FoldBatchNorms", "replace_const"]
