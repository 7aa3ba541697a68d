"""Put codes in the place of floats: weights of 2 to 8 bits and half floats, and tensors of 8-bit integers.

The converter makes neither from ONNX. What it makes is a net of floats, which is edited here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from backends.mnn.modules.edit.codes import ActivationCodes, codes_of, is_half
from backends.mnn.modules.edit.edited import Edited, Place
from backends.mnn.modules.edit.integers import Integers
from backends.mnn.modules.edit.net import Net
from backends.mnn.modules.edit.weights import Weights
from backends.mnn.read.net_file import numbers
from ir.graph.graph import Graph


def holds_codes(graph: Graph) -> bool:
    """True when a graph has weights that remember their codes or half floats, or tensors of integers."""
    constants = (value.tensor for one in graph.graphs() for value in one.consts.values())
    wanted = graph.fact(ActivationCodes) is not None
    return wanted or any(codes_of(tensor) is not None or is_half(tensor) for tensor in constants)


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
        Integers(held, fact.ranges, weights.integers, result, graph).describe()
    held.write(out, inside=inside)
    result.places = list(_places(out, result))
    return result


def _places(path: Path, result: Edited) -> Iterator[Place]:
    """Where the written net keeps what was stored."""
    written = Net(path)
    for operator in (each for level in written.levels for each in level):
        if operator.name not in result.weights or not operator.main.get("quanParameter"):
            continue
        name, shape, storage = result.weights[operator.name]
        external = numbers(operator.main.get("external"))
        if external:
            yield Place(name, 1, external[0], external[1] + external[2], shape, storage)
        else:
            start, end = written.span(operator)
            yield Place(name, 0, start, end - start, shape, storage)


__all__ = ["Edited", "edit_net", "holds_codes"]
