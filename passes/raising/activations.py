"""Activations that are written out: functions of one value, evaluated on a line of numbers and told by their values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import erf

import numpy as np

from ir.base.types import F32, TensorType
from ir.facts.raised import Region
from ir.graph.graph import Graph, Node, Value
from ir.ops.registry import ELEMENTWISE
from passes.raising.content import Content
from passes.raising.cuts import Cut, upstream

ANCHORS = frozenset({"Erf", "HardSigmoid", "Sigmoid", "Tanh"})
"""Operators that written-out activations are found at."""
RANGE = 12.0
"""Numbers from minus this to this are tried closely."""
FAR = 1e4
"""Numbers up to this are tried, where a bound may show that nearer ones do not reach."""
TOLERANCE = 2e-6
"""Largest difference that rounding in single precision explains, relative to the number or to 1."""
_LONGEST = 16


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.array([erf(number) for number in x / np.sqrt(2)]))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@dataclass(frozen=True)
class Known:
    """An activation with an operator of its own: the operator, its attributes, and the function in float64."""

    op: str
    attrs: Mapping[str, object]
    compute: Callable[[np.ndarray], np.ndarray]


KNOWN: Mapping[str, Known] = {
    "Swish": Known("Swish", {}, lambda x: 0.5 * x * (1 + np.tanh(0.5 * x))),
    "Gelu": Known("Gelu", {}, _gelu),
    "Gelu by tanh": Known("Gelu", {"approximate": "tanh"}, _gelu_tanh),
    "HardSwish": Known("HardSwish", {}, lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
}
"""What activations are told by, by name. Hendrycks and Gimpel, arXiv 1606.08415; Ramachandran et al., arXiv 1710.05941;
Howard et al., arXiv 1905.02244."""


@dataclass(frozen=True)
class _Function:
    """Values that are functions of one value, in program order."""

    anchor: Node
    source: Value
    values: tuple[Value, ...]


def raise_activations(graph: Graph, content: Content) -> list[Region]:
    """Replace written-out activations by operators; functions that are none of them stay as they are."""
    found: dict[Value, _Function] = {}
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.op in ANCHORS and node.operand(0) in content.values:
            item = _function(node, content, order)
            if item is not None:
                found.setdefault(item.source, item)
    if not found:
        return []
    items = list(found.values())
    cut = Cut(graph, [item.source for item in items], [value for item in items for value in item.values])
    far = np.geomspace(RANGE, FAR, 64)
    line = np.concatenate([-far[::-1], np.linspace(-RANGE, RANGE, 897), far]).astype(np.float32)
    feeds = {item.source: _laid_out(line, item.source) for item in items}
    results = cut.run(feeds)
    truth = {name: known.compute(line.astype(np.float64)) for name, known in KNOWN.items()}
    regions = []
    for item in items:
        region = _raised(graph, item, results, line, truth)
        if region is not None:
            regions.append(region)
    return regions


def _function(anchor: Node, content: Content, order: Mapping[Node, int]) -> _Function | None:
    source = _source(anchor, content)
    if source is None or source.dtype != F32 or not source.shape:
        return None
    members: dict[Value, None] = {source: None}
    waiting = {user for user in source.users if user in order}
    while waiting and len(members) < _LONGEST:
        node = min(waiting, key=order.__getitem__)
        waiting.remove(node)
        if node.op not in ELEMENTWISE or len(node.outputs) != 1 or node.output in members:
            continue
        if all(value is None or value in members or value.is_const or value in content.fixed for value in node.inputs):
            members[node.output] = None
            waiting.update(user for user in node.output.users if user in order)
    values = tuple(value for value in members if value is not source and value.dims == source.dims)
    return _Function(anchor, source, values) if values else None


def _source(anchor: Node, content: Content) -> Value | None:
    """The one value that an operator's operand is a function of, element by element."""
    leaves: dict[Value, None] = {}
    stack, seen = [anchor.operand(0)], 0
    while stack:
        value = stack.pop()
        seen += 1
        if seen > _LONGEST:
            return None
        node = value.producer
        if value not in content.values:
            if not value.is_const and value not in content.fixed:
                return None
        elif node is None or node.op not in ELEMENTWISE or value in content.linears:
            leaves[value] = None
        else:
            stack.extend(item for item in node.inputs if item is not None)
    return next(iter(leaves)) if len(leaves) == 1 else None


def _laid_out(line: np.ndarray, value: Value) -> np.ndarray:
    """The line in the shape of a value, filled up with its last number."""
    last = value.dims[-1]
    width = last if isinstance(last, int) else len(line)
    fixed = [dim if isinstance(dim, int) else 1 for dim in value.dims[:-1]]
    free = next((place for place, dim in enumerate(value.dims[:-1]) if not isinstance(dim, int)), None)
    per = width * int(np.prod(fixed))
    if free is not None:
        fixed[free] = -(-len(line) // per)
    shape = (*fixed, width)
    filled = np.full(int(np.prod(shape)), line[-1], np.float32)
    count = min(len(filled), len(line))
    filled[:count] = line[np.linspace(0, len(line) - 1, count).astype(int)]
    return filled.reshape(shape)


def _raised(
    graph: Graph,
    item: _Function,
    results: Mapping[Value, np.ndarray],
    line: np.ndarray,
    truth: Mapping[str, np.ndarray],
) -> Region | None:
    """Replace the last value that is a known activation, where nothing else reads what lies before."""
    for value in reversed(item.values):
        nodes, values = upstream([value], [item.source])
        inner = (one for one in values if one is not value and one is not item.source and one.producer in nodes)
        if len(nodes) < 2 or any(one.is_output or any(user not in nodes for user in one.users) for one in inner):
            continue
        found = results[value].reshape(-1)
        if found.size < len(line):
            continue
        name, off = _nearest(found[: len(line)].astype(np.float64), line, truth)
        if off <= TOLERANCE:
            return _replace(graph, item, value, name, off, len(nodes))
    return None


def _nearest(found: np.ndarray, line: np.ndarray, truth: Mapping[str, np.ndarray]) -> tuple[str, float]:
    room = np.maximum(1.0, np.abs(line))
    offs = {name: float((np.abs(found - wanted) / room).max()) for name, wanted in truth.items()}
    name = min(offs, key=offs.__getitem__)
    return name, offs[name]


def _replace(graph: Graph, item: _Function, value: Value, name: str, off: float, nodes: int) -> Region:
    last, known = value.producer, KNOWN[name]
    assert last is not None
    made = graph.add(
        known.op,
        [item.source],
        known.attrs,
        types=[TensorType(F32, value.shape)],
        before=last,
        name=last.name,
        loc=last.loc,
    )
    graph.replace(value, made.output)
    where = last.loc or last.name
    probes = (f"numbers from {-FAR:g} to {FAR:g}",)
    return Region("activation", where, nodes, name, {"op": known.op, **known.attrs}, off, probes)


__all__: Sequence[str] = ["KNOWN", "raise_activations"]
