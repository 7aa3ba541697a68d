"""Put codes in the place of floats: weights of 2 to 8 bits and half floats, and tensors of 8-bit integers.

The converter makes neither from ONNX. What it makes is a net of floats, which is edited here.
"""

from __future__ import annotations

from pathlib import Path

from backends.mnn.modules.edit.codes import ActivationCodes
from backends.mnn.modules.edit.edited import Edited
from backends.mnn.modules.edit.integers import Integers
from backends.mnn.modules.edit.net import Net
from backends.mnn.modules.edit.weights import Weights
from ir.graph.graph import Graph


def edit_net(net: Path, graph: Graph, out: Path, *, inside: bool = True) -> Edited:
    """Write a converted net anew, with the codes of the graph that it was converted from.

    Args:
        net: what the converter wrote with ``--saveExternalData``, and the weight file beside it.
        graph: the legal graph: its constants remember their codes, and its facts those of tensors.
        out: the file to write; its weight file is written beside it unless they are to be inside.

    Raises:
        LadingError: B710, B711, B791, B792; Q402 numbers that have no codes.
    """
    held = Net(net)
    result = Edited()
    fact = graph.fact(ActivationCodes)
    weights = Weights(held, graph, result, fact is not None)
    for level in held.levels:
        for operator in level:
            weights.store(operator)
    if fact is not None:
        Integers(held, fact.ranges, weights.integers, result).describe()
    held.write(out, inside=inside)
    return result


__all__ = ["Edited", "edit_net"]
