"""What a graph means whose tensors are integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from backends.mnn.modules.edit.codes import ActivationCodes, CodeRange
from ir.base.types import DTYPES, TensorType
from ir.evaluate.evaluator import Evaluator
from ir.graph.copy import copied
from ir.graph.graph import Graph, Value
from ir.tensor.inline import InlineTensor


def rounded(graph: Graph) -> Graph:
    """A copy of a graph in which every tensor whose codes are recorded is rounded to them, but for its outputs.

    Where an output is computed in floats the module does not round it either, and rounding hides how far it is off.
    """
    twin = copied(graph)
    fact = twin.fact(ActivationCodes)
    for name, codes in (fact.ranges if fact is not None else {}).items():
        for one in twin.graphs():
            if one.has(name) and not one.value(name).is_output:
                _round(one, one.value(name), codes)
                break
    return twin


def _round(graph: Graph, value: Value, codes: CodeRange) -> None:
    first = value.producer
    nodes = list(graph.nodes)
    place = nodes[nodes.index(first) + 1] if first is not None and nodes[-1] is not first else None
    before = graph.first if first is None else place
    users = list(value.uses)
    scale = graph.add_const(f"{value.name}.scale", InlineTensor(np.array(codes.scale, np.float32)))
    zero = graph.add_const(f"{value.name}.zero", InlineTensor(np.array(codes.zero, np.int8)))
    kind = value.type
    whole = TensorType(DTYPES["i8"], kind.shape) if isinstance(kind, TensorType) else None
    down = graph.add("QuantizeLinear", [value, scale, zero], types=[whole], before=before)
    up = graph.add("DequantizeLinear", [down.output, scale, zero], types=[kind], after=down)
    for user, index in users:
        user.home.set_input(user, index, up.output)


class Rounding:
    """Whether a module of integers is no further from floats than rounding alone makes it.

    Both are measured as root mean square of what they are off the graph of floats.
    """

    FACTOR, SHARE = 1.25, 0.01
    """How much further the module may be, as a factor and as a share of the output. One step of the output is free: where
    outputs are next to nothing, such as those of a detector that finds nothing, it is larger than they are."""

    def __init__(self, graph: Graph) -> None:
        fact = graph.required_fact(ActivationCodes)
        known = [fact.ranges.get(value.name) for value in graph.outputs]
        self._floats = Evaluator(graph)
        self._steps = [codes.scale if codes is not None else 0.0 for codes in known]
        self._sums = np.zeros((len(known), 4))

    def add(self, feeds: Mapping[str, np.ndarray], got: Sequence[np.ndarray], meant: Sequence[np.ndarray]) -> None:
        """Count one run: what the module gave, and what the rounded graph does."""
        floats = self._floats.run(dict(feeds)).values()
        for place, (exact, one, other) in enumerate(zip(floats, got, meant, strict=True)):
            size = exact.astype(np.float64)
            for column, part in enumerate((one.reshape(exact.shape) - size, other - size, size)):
                self._sums[place, column] += np.square(part).sum()
            self._sums[place, 3] += exact.size

    def beyond(self) -> str:
        """What is wrong, to follow the release; empty when nothing is."""
        for place, (mine, rounding, size) in enumerate(
            np.sqrt(self._sums[:, :3] / np.maximum(self._sums[:, 3:], 1)).tolist()
        ):
            if not mine <= self.FACTOR * rounding + self.SHARE * size + self._steps[place]:
                whole = max(size, 1e-30)
                return (
                    f"output {place} is off by {mine / whole:.3g} of its size from the graph of floats, and rounding "
                    f"accounts for {rounding / whole:.3g}"
                )
        return ""


__all__ = ["Rounding", "rounded"]
