"""Attention regions: what lies between the products that make queries, keys and values and the one that reads the mix."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from ir.base.types import TensorType
from ir.graph.graph import Graph, Node, Value
from passes.raising.content import Content, Linear
from passes.raising.cuts import SIZES, upstream

ANCHORS = frozenset(
    {
        "Softmax", "Attention", "com.microsoft.Attention", "com.microsoft.GroupQueryAttention",
        "com.microsoft.MultiHeadAttention", "LlmExporter.FusedAttention",
    }
)  # fmt: skip
"""Operators that only attention has in a decoder."""


@dataclass(frozen=True)
class AttentionRegion:
    """One attention.

    Attributes:
        anchor: the node it was found at.
        linears: the products that it reads, in program order.
        history: the inputs with earlier keys and values that it reads, in the order of the inputs.
        result: the mix, as the next product reads it.
        nodes: its nodes.
        values: all values read in it.
    """

    anchor: Node
    linears: tuple[Linear, ...]
    history: tuple[Value, ...]
    result: Value
    nodes: frozenset[Node]
    values: frozenset[Value]

    @property
    def where(self) -> str:
        """Its place in the source of the graph."""
        return self.anchor.loc or self.anchor.name

    def known(self, content: Content) -> list[Value]:
        """What the runtime knows of what is computed in it, in no order."""
        return [value for value in self.values if value.producer is not None and content.is_known(value)]


def attention_regions(graph: Graph, content: Content) -> list[AttentionRegion]:
    """Every attention of a decoder, in program order."""
    read = {linear.read for linear in content.linears.values()}
    order = {value: place for place, value in enumerate(content.linears)}
    found: dict[Value, AttentionRegion] = {}
    for node in graph.nodes:
        if node.op not in ANCHORS or not any(value in content.values for value in node.inputs if value is not None):
            continue
        result = _first_read(node, read)
        if result is None or result in found:
            continue
        nodes, values = upstream([result], content.linears)
        linears = sorted((value for value in values if value in order), key=order.__getitem__)
        history = [value for value in content.history if value in values]
        found[result] = AttentionRegion(
            node,
            tuple(content.linears[value] for value in linears),
            tuple(history),
            result,
            frozenset(nodes),
            frozenset(values),
        )
    return list(found.values())


def _first_read(node: Node, read: set[Value]) -> Value | None:
    """The first value behind a node that a product reads."""
    waiting = deque(node.outputs)
    seen = set(waiting)
    while waiting:
        value = waiting.popleft()
        if value in read:
            return value
        for user in value.users:
            for made in user.outputs:
                if made not in seen and user.op not in SIZES:
                    seen.add(made)
                    waiting.append(made)
    return None


def rows_of_known(region: AttentionRegion, content: Content) -> Iterator[Value]:
    """Known values with a row of numbers for each token, which tables of cosines are among."""
    for value in region.known(content):
        if isinstance(value.type, TensorType) and value.dtype.is_float and value.rank is not None and value.rank >= 2:
            last = value.dims[-1]
            if isinstance(last, int) and last > 1:
                yield value


def masks_of_known(region: AttentionRegion, content: Content) -> Iterator[Value]:
    """Known values that content is masked by: read by a node of content, with two axes of unknown size."""
    for value in region.known(content):
        if not isinstance(value.type, TensorType) or value.rank is None or value.rank < 2:
            continue
        if value.dtype.is_integer or isinstance(value.dims[-1], int):
            continue
        if any(any(made in content.values for made in user.outputs) for user in value.users):
            yield value
