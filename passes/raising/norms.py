"""Norms that are written out: found at their mean, evaluated, and fitted with RMSNorm or LayerNorm.

The value that is normalized and the normalized one are found by shape, whatever lies between them; the epsilon is one
of the numbers found there, chosen at a scale at which it shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ir.base.types import F32, TensorType
from ir.facts.raised import Region
from ir.graph.graph import Graph, Node, Value
from ir.tensor.inline import InlineTensor
from passes.raising.content import Content
from passes.raising.cuts import Cut, numbers_of, upstream
from passes.raising.reference import normalized

SCALES = (1.0, 1e-3)
"""Sizes of the values that a norm is probed with; at the second an epsilon of 1e-6 is as large as the mean square."""
TOLERANCE = 3e-6
"""Largest difference, relative to the largest value, that rounding in single precision explains."""
_STEPS = 8


@dataclass
class _Candidate:
    """What may be a norm.

    Attributes:
        anchor: the node that takes the mean of squares.
        source: what is normalized.
        plain: the normalized value, before gain and bias.
        result: the value behind gain and bias.
        gain, bias: constants of the width of a row, or None.
    """

    anchor: Node
    source: Value
    plain: Value
    result: Value
    gain: Value | None = None
    bias: Value | None = None
    epsilons: list[float] = field(default_factory=list)
    nodes: int = 0


def raise_norms(graph: Graph, content: Content) -> list[Region]:
    """Replace written-out norms by operators; those that do not fit stay as they are."""
    found = [item for node in graph.nodes if (item := _candidate(node, content)) is not None]
    # A norm of a norm's own parts is the same norm.
    found = list({item.plain: item for item in found}.values())
    if not found:
        return []
    cut = Cut(graph, dict.fromkeys(item.source for item in found), [item.plain for item in found])
    rng = np.random.default_rng(0)
    shapes = {item.source: _probe_shape(item.source) for item in found}
    probes = [
        {source: (rng.normal(0, 1, shape) * scale).astype(np.float32) for source, shape in shapes.items()}
        for scale in SCALES
    ]
    results = cut.run_many(probes)
    regions = []
    for item in found:
        fit = _fit(
            item, [(probe[item.source], result[item.plain]) for probe, result in zip(probes, results, strict=True)]
        )
        if fit is not None:
            regions.append(_replace(graph, item, *fit))
    return regions


def _candidate(node: Node, content: Content) -> _Candidate | None:
    if node.op != "ReduceMean" or not _over_rows(node) or node.operand(0) not in content.values:
        return None
    source = _source(node)
    if source is None or source.dtype != F32:
        return None
    plain = _first_of_shape(node.output, source)
    if plain is None:
        return None
    item = _Candidate(node, source, plain, plain)
    nodes, values = upstream([plain], [source])
    if any(value.producer is None and not value.is_const and value is not source for value in values):
        return None
    item.nodes = len(nodes)
    item.epsilons = [number for number in numbers_of(values) if 0 < number < 0.01] + [0.0]
    _extend(item, content)
    return item


def _over_rows(node: Node) -> bool:
    """True for a mean of the last axis that keeps it as one element."""
    value, axes = node.operand(0), node.input(1)
    if value.rank is None or not node.attrs.get("keepdims", 1):
        return False
    named = (
        node.attrs.get("axes") if axes is None else axes.const.load().reshape(-1) if axes.const is not None else None
    )
    return named is not None and [int(axis) % value.rank for axis in named] == [value.rank - 1]


def _source(node: Node) -> Value | None:
    """What is normalized, from the mean of its squares, or of the squares of its distances from its mean."""
    squares = node.operand(0).producer
    if squares is None or not _squares(squares):
        return None
    value = squares.operand(0)
    made = value.producer
    if made is not None and made.op == "Sub":
        mean = made.operand(1).producer
        if mean is not None and mean.op == "ReduceMean" and mean.operand(0) is made.operand(0) and _over_rows(mean):
            return made.operand(0)
    return value


def _squares(node: Node) -> bool:
    if node.op == "Mul":
        return node.operand(0) is node.operand(1)
    if node.op != "Pow":
        return False
    power = node.operand(1).const
    return power is not None and power.type.size == 1 and float(power.load().reshape(-1)[0]) == 2.0


def _first_of_shape(value: Value, like: Value) -> Value | None:
    """The first value behind `value` that is as large as `like`."""
    for _ in range(_STEPS):
        if value.use_count != 1 or value.is_output:
            return None
        node = value.users[0]
        if len(node.outputs) != 1 or node.subgraphs:
            return None
        value = node.output
        if value.shape is not None and value.dims == like.dims:
            return value
    return None


def _extend(item: _Candidate, content: Content) -> None:
    """Take in the gain and the bias that follow."""
    for op, name in (("Mul", "gain"), ("Add", "bias")):
        value = item.result
        if value.use_count != 1 or value.is_output or value.users[0].op != op:
            continue
        node = value.users[0]
        rest = [other for other in node.inputs if other is not value]
        if len(rest) == 1 and rest[0] is not None and _is_row(rest[0], value):
            setattr(item, name, rest[0])
            item.result = node.output
            item.nodes += 1


def _is_row(value: Value, like: Value) -> bool:
    return value.const is not None and value.const.type.size == like.dims[-1] and value.dims[-1] == like.dims[-1]


def _probe_shape(value: Value) -> tuple[int, ...]:
    return tuple(dim if isinstance(dim, int) else 3 for dim in value.dims)


def _fit(item: _Candidate, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[bool, float, float] | None:
    """Whether it is RMSNorm, its epsilon, and the largest relative difference; None when nothing fits."""
    best: tuple[bool, float, float] | None = None
    one = np.ones(())
    for rms in (True, False):
        for epsilon in item.epsilons:
            differences = [
                float(np.abs(normalized(x.astype(np.float64), one, None, epsilon, rms) - y).max() / np.abs(y).max())
                for x, y in pairs
            ]
            worst = max(differences)
            if best is None or worst < best[2]:
                best = (rms, epsilon, worst)
    return best if best is not None and best[2] <= TOLERANCE else None


def _replace(graph: Graph, item: _Candidate, rms: bool, epsilon: float, difference: float) -> Region:
    width = item.source.dims[-1]
    assert isinstance(width, int)
    gain = _row(graph, item.gain, f"{item.plain.name}.gain", np.ones(width, np.float32))
    inputs = [item.source, gain]
    if item.bias is not None:
        inputs.append(_row(graph, item.bias, f"{item.plain.name}.bias", None))
    node = item.result.producer
    assert node is not None
    made = graph.add(
        "RMSNormalization" if rms else "LayerNormalization",
        inputs[:2] if rms else inputs,
        {"axis": -1, "epsilon": epsilon},
        types=[TensorType(F32, item.result.shape)],
        before=node,
        name=node.name,
        loc=node.loc,
    )
    result = made.output
    if rms and item.bias is not None:
        result = graph.add("Add", [result, inputs[2]], types=[made.output.type], before=node, loc=node.loc).output
    graph.replace(item.result, result)
    kind = "RMSNorm" if rms else "LayerNorm"
    return Region(
        "norm",
        node.loc or node.name,
        item.nodes,
        f"{kind} of {width}, epsilon {epsilon:g}",
        {"rms": rms, "width": width, "epsilon": epsilon, "gain": item.gain is not None, "bias": item.bias is not None},
        difference,
        tuple(f"values of size {scale:g}" for scale in SCALES),
    )


def _row(graph: Graph, value: Value | None, name: str, otherwise: np.ndarray | None) -> Value:
    """A constant of one axis with the same numbers."""
    if value is not None and value.rank == 1:
        return value
    array = otherwise if value is None or value.const is None else value.const.load().reshape(-1)
    assert array is not None
    return graph.add_const(graph.fresh_name(name), InlineTensor(array))
