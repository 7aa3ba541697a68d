"""What a graph means whose tensors are integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from backends.mnn.modules.closeness import Gap
from backends.mnn.modules.edit.codes import ActivationCodes, CodeRange
from ir.base.types import DTYPES, TensorType
from ir.evaluate.evaluator import Evaluator
from ir.graph.copy import copied
from ir.graph.graph import Graph, Value
from ir.tensor.inline import InlineTensor


def rounded(graph: Graph) -> Graph:
    """A copy of a graph in which every tensor whose codes are recorded is rounded to them."""
    twin = copied(graph)
    fact = twin.fact(ActivationCodes)
    for name, codes in (fact.ranges if fact is not None else {}).items():
        for one in twin.graphs():
            if one.has(name):
                _round(one, one.value(name), codes)
                break
    return twin


def _round(graph: Graph, value: Value, codes: CodeRange) -> None:
    first = value.producer
    nodes = list(graph.nodes)
    place = nodes[nodes.index(first) + 1] if first is not None and nodes[-1] is not first else None
    before = graph.first if first is None else place
    users, outputs = list(value.uses), list(graph.outputs)
    scale = graph.add_const(f"{value.name}.scale", InlineTensor(np.array(codes.scale, np.float32)))
    zero = graph.add_const(f"{value.name}.zero", InlineTensor(np.array(codes.zero, np.int8)))
    kind = value.type
    whole = TensorType(DTYPES["i8"], kind.shape) if isinstance(kind, TensorType) else None
    down = graph.add("QuantizeLinear", [value, scale, zero], types=[whole], before=before)
    up = graph.add("DequantizeLinear", [down.output, scale, zero], types=[kind], after=down)
    for user, index in users:
        user.home.set_input(user, index, up.output)
    if value in outputs:
        name = value.name
        graph.set_outputs([up.output if item is value else item for item in outputs])
        graph.rename(value, f"{name}.exact")
        graph.rename(up.output, name)


class Rounding:
    """Whether a module of integers is no further from floats than rounding alone makes it.

    Both are measured as root mean square of what they are off the graph of floats, relative to that of the output.
    """

    FACTOR, SHARE = 1.25, 0.01
    """How much further the module may be, as a factor and as a share of the output."""

    def __init__(self, graph: Graph, outputs: int) -> None:
        self._floats = Evaluator(graph)
        self._gaps = [(Gap(), Gap()) for _ in range(outputs)]

    def add(self, feeds: Mapping[str, np.ndarray], got: Sequence[np.ndarray], meant: Sequence[np.ndarray]) -> None:
        """Count one run: what the module gave, and what the rounded graph does."""
        floats = self._floats.run(dict(feeds)).values()
        for place, (exact, one, other) in enumerate(zip(floats, got, meant, strict=True)):
            self._gaps[place][0].add(place, exact, one.reshape(exact.shape))
            self._gaps[place][1].add(place, exact, other)

    def beyond(self) -> str:
        """What is wrong, to follow the release; empty when nothing is."""
        for place, (mine, rounding) in enumerate(self._gaps):
            if not mine.relative <= self.FACTOR * rounding.relative + self.SHARE:
                return (
                    f"output {place} is off by {mine.relative:.3g} of its size from the graph of floats, and rounding "
                    f"accounts for {rounding.relative:.3g}"
                )
        return ""


__all__ = ["Rounding", "rounded"]
