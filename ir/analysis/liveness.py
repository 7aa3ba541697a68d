"""How many bytes of values are alive while a graph runs in program order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ir.base.types import Dim, TensorType, ValueType
from ir.graph.graph import Graph, Node, Value
from ir.graph.order import reads


@dataclass(frozen=True)
class Memory:
    """Peak memory of one run; made by `peak_memory`.

    Attributes:
        peak: bytes alive at the worst moment, constants not counted.
        node: the node that runs at that moment; None for a graph without nodes.
        alive: the values alive at that moment, in program order.
        constants: packed bytes of the graph's constants.
        profile: bytes alive while each node runs, in program order.
        unknown: values whose size is not known; they count as 0.
    """

    peak: int
    node: Node | None
    alive: tuple[Value, ...]
    constants: int
    profile: tuple[int, ...]
    unknown: tuple[Value, ...]


def size_of(type: ValueType | None, sizes: Mapping[str, int]) -> int | None:
    """Packed bytes of a tensor type with `sizes` put in for its dimensions; None when that does not give a size."""
    if not isinstance(type, TensorType) or type.shape is None or type.dtype.bits == 0:
        return None
    count = 1
    for dim in type.shape:
        size = sizes.get(dim.name) if isinstance(dim, Dim) else dim
        if size is None:
            return None
        count *= size
    return type.dtype.nbytes(count)


def last_reads(graph: Graph) -> dict[Value, int]:
    """Position in program order of the last node that reads each value that a node reads, captures included."""
    last: dict[Value, int] = {}
    for position, node in enumerate(graph.nodes):
        for value in reads(node):
            last[value] = position
    return last


def peak_memory(graph: Graph, sizes: Mapping[str, int]) -> Memory:
    """Peak of the bytes alive when every value is freed after its last reader.

    A node's inputs and outputs are alive together. Graph inputs, outputs and tables stay alive from where they are made
    to the end (inputs belong to the caller). While a node runs its subgraphs, the larger of their peaks is added.

    Args:
        graph: the graph.
        sizes: run-time size of each symbolic dimension by name.
    """
    last = last_reads(graph)
    kept = {*graph.inputs, *graph.outputs, *graph.tables.values()}
    unknown: list[Value] = []

    def size(value: Value) -> int:
        found = size_of(value.type, sizes)
        if found is None:
            unknown.append(value)
        return found or 0

    bytes_of = {value: size(value) for value in graph.inputs}
    now = sum(bytes_of.values())
    profile: list[int] = []
    for position, node in enumerate(graph.nodes):
        for value in node.outputs:
            bytes_of[value] = size(value)
            now += bytes_of[value]
        inner = max((peak_memory(sub, sizes).peak for sub in node.subgraphs), default=0)
        profile.append(now + inner)
        done = {*reads(node), *node.outputs}
        now -= sum(
            bytes_of[value]
            for value in done
            if value in bytes_of and value not in kept and last.get(value, position) == position
        )
    constants = sum(size_of(value.type, {}) or 0 for value in graph.consts.values())
    if not profile:
        return Memory(now, None, tuple(graph.inputs), constants, (), tuple(unknown))
    worst = profile.index(max(profile))
    alive = _alive_at(graph, worst, last, kept)
    return Memory(profile[worst], list(graph.nodes)[worst], alive, constants, tuple(profile), tuple(unknown))


def _alive_at(graph: Graph, moment: int, last: Mapping[Value, int], kept: set[Value]) -> tuple[Value, ...]:
    alive = list(graph.inputs)
    for position, node in enumerate(graph.nodes):
        if position > moment:
            break
        alive += [v for v in node.outputs if v in kept or last.get(v, position) >= moment]
    return tuple(alive)


__all__ = ["Memory", "last_reads", "peak_memory", "size_of"]
