"""Cross-layer equalization: channels of neighbouring convolutions get weights of like size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ir.graph.graph import Graph, Node, Value
from passes.framework.base import Pass
from passes.framework.context import PassContext
from passes.framework.options import option
from passes.static_quant.fold_batch_norms import replace_const
from passes.static_quant.operators import is_floats, only_reader

KEEPS_FACTORS = ("Relu", "LeakyRelu", "Identity", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
"""Operators by which a positive factor of a channel passes unchanged."""
MOST_FACTOR = 2.0**12
"""Factors lie between this and its inverse."""


@dataclass(frozen=True)
class Pair:
    """Two convolutions, the second of which reads channels that the first makes, and nothing else does.

    Attributes:
        first, second: the convolutions.
    """

    first: Node
    second: Node


@dataclass(frozen=True)
class Equalize(Pass):
    """Give the channels between two convolutions weights of like size on both sides.

    What a channel is multiplied with in the first convolution is divided by a factor, and what reads the channel in the
    second multiplied by it: ``s = sqrt(r1 r2) / r2``, where r1 and r2 are the largest weights of the channel on either
    side (Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction, 2019, section 4.1). Between
    them stands at most what positive factors pass through, such as Relu and pooling; Clip is no such thing. Depthwise
    convolutions are equalized with both neighbours, and chains are gone through until nothing changes. The function stays
    the same but for rounding. It pays where a weight has one scale for all channels.
    """

    name = "equalize"
    requires = ("typed",)
    breaks = ("activation-ranges",)

    rounds: int = option(20, help="times that all pairs are gone through, at most", low=1)
    tolerance: float = option(0.01, help="change of a factor below which a pair counts as settled", low=0.0)

    def run(self, graph: Graph, ctx: PassContext) -> Mapping[str, int]:
        """See `Pass.run`."""
        pairs = pairs_of(graph)
        weights = {node: node.operand(1).tensor.load().astype(np.float64) for pair in pairs for node in _both(pair)}
        biases = {
            node: value.tensor.load().astype(np.float64) for node in weights if (value := node.input(2)) is not None
        }
        rounds = 0
        while pairs and rounds < self.rounds:
            rounds += 1
            moved = [_equalized(pair, weights, biases) for pair in pairs]
            if max(moved) <= self.tolerance:
                break
        for node, array in weights.items():
            replace_const(graph, node, 1, array.astype(np.float32), f"{node.output.name}.weight")
        for node, array in biases.items():
            replace_const(graph, node, 2, array.astype(np.float32), f"{node.output.name}.bias")
        return {"pairs": len(pairs), "rounds": rounds}


def pairs_of(graph: Graph) -> list[Pair]:
    """The pairs of convolutions that can be equalized, in program order."""
    found = []
    for node in graph.nodes:
        if not _can_scale(node):
            continue
        value = node.output
        reader = only_reader(value, (*KEEPS_FACTORS, "Conv"))
        while reader is not None and reader.op != "Conv":
            reader = only_reader(reader.output, (*KEEPS_FACTORS, "Conv")) if len(reader.outputs) == 1 else None
        if reader is not None and _can_scale(reader) and reader.operand(1) is not node.operand(1):
            found.append(Pair(node, reader))
    return found


def _both(pair: Pair) -> tuple[Node, Node]:
    return pair.first, pair.second


def _can_scale(node: Node) -> bool:
    """True for a convolution whose weights and bias are constants of its own."""
    if node.op != "Conv":
        return False
    weight, bias = node.operand(1), node.input(2)
    return _is_own(weight) and (bias is None or _is_own(bias))


def _is_own(value: Value) -> bool:
    return value.const is not None and is_floats(value) and value.use_count == 1


def _equalized(pair: Pair, weights: dict[Node, np.ndarray], biases: dict[Node, np.ndarray]) -> float:
    """Equalize one pair; returns how far from 1 the factor that moves most is."""
    first, second = weights[pair.first], weights[pair.second]
    made = np.abs(first).reshape(first.shape[0], -1).max(axis=1, initial=0.0)
    group = pair.second.attrs.get("group", 1)
    # [group, channels out of a group, channels into it, taps]; channels in are numbered group by group.
    parts = second.reshape(group, second.shape[0] // group, second.shape[1], -1)
    read = np.abs(parts).max(axis=(1, 3), initial=0.0).reshape(-1)
    usual = (made > 0) & (read > 0)
    factor = np.ones_like(made)
    factor[usual] = np.sqrt(made[usual] * read[usual]) / read[usual]
    factor = np.clip(factor, 1 / MOST_FACTOR, MOST_FACTOR)
    weights[pair.first] = first / factor.reshape(-1, *[1] * (first.ndim - 1))
    if pair.first in biases:
        biases[pair.first] = biases[pair.first] / factor
    scaled = parts * factor.reshape(group, 1, second.shape[1], 1)
    weights[pair.second] = scaled.reshape(second.shape)
    return float(np.abs(np.log(factor)).max(initial=0.0))


__all__ = ["Equalize", "Pair", "pairs_of"]
