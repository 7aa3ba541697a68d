"""What a compilation would write and what the result would take, from shapes alone: for backends that can tell.

A plan is made of a graph that may hold one layer for many alike; whatever is counted is multiplied by how often it is
there (`Repeats`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ir.base.types import Dim
from ir.graph.graph import Graph, Node, Value

DISPATCH, COMBINE, DELTA_RULE = "lading.Dispatch", "lading.Combine", "lading.GatedDeltaRule"


@dataclass(frozen=True)
class Repeats:
    """How often what is there once in a graph is there in the whole model.

    Attributes:
        layers: what stands before the number of a layer in names.
        counts: for each layer of the graph, how many of the model it stands for.
    """

    layers: str
    counts: Sequence[int]

    def layer_of(self, name: str) -> int | None:
        """The layer that a name belongs to; None for names of no layer."""
        found = re.match(rf"{re.escape(self.layers)}\.(\d{{1,9}})(\.|$)", name)
        return int(found[1]) if found else None

    def of(self, name: str) -> int:
        """How often what has a name is there."""
        layer = self.layer_of(name)
        return 1 if layer is None else self.counts[layer]

    def of_node(self, node: Node) -> int:
        """How often a node is there: by its name, else by those of what it is computed from, nearest first."""
        seen = {node}
        near = [node]
        while near:
            for one in near:
                names = (one.name, *(value.name for value in (*one.outputs, *one.inputs) if value is not None))
                layer = next((found for name in names if (found := self.layer_of(name)) is not None), None)
                if layer is not None:
                    return self.counts[layer]
            producers = [value.producer for one in near for value in one.inputs if value is not None]
            near = [one for one in dict.fromkeys(producers) if one is not None and one not in seen]
            seen.update(near)
        return 1


@dataclass(frozen=True)
class PlannedFile:
    """One file of the result: its size in bytes, and whether that is exact."""

    bytes: int
    exact: bool


@dataclass(frozen=True)
class PlannedWeights:
    """Matrices that are alike but for numbers in their names.

    Attributes:
        name: their name with ``*`` for the numbers.
        count: how many there are.
        elements: numbers in all of them.
        storage: how they are stored, in words.
        bytes: what they take on disk, biases included.
        loaded: what they take in memory.
        streamed: bytes of them that are read for a token that is decoded; of experts the share that is chosen.
    """

    name: str
    count: int
    elements: int
    storage: str
    bytes: int
    loaded: int
    streamed: int


@dataclass(frozen=True)
class PlannedCache:
    """What layers of one kind keep between tokens.

    Attributes:
        kind: in words.
        layers: how many layers there are of it.
        per_token: bytes for each token, of all these layers.
        fixed: bytes whatever the number of tokens, of all these layers.
    """

    kind: str
    layers: int
    per_token: int
    fixed: int = 0


@dataclass(frozen=True)
class PlannedMemory:
    """Bytes that a device needs with so many tokens in the cache, of which the last prompt was all."""

    tokens: int
    weights: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.activations


@dataclass(frozen=True)
class Planned:
    """A planned result.

    Attributes:
        files: by name.
        weights: every stored matrix.
        caches: what is kept between tokens.
        memory: by number of tokens.
        settings: runtime settings that would be written.
        rates: weights a second that one thread of this machine codes and packs, by storage in words, as just measured.
    """

    files: Mapping[str, PlannedFile]
    weights: tuple[PlannedWeights, ...]
    caches: tuple[PlannedCache, ...] = ()
    memory: tuple[PlannedMemory, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """All files."""
        return sum(item.bytes for item in self.files.values())

    @property
    def streamed(self) -> int:
        """Bytes of weights that are read for a token that is decoded."""
        return sum(item.streamed for item in self.weights)


def shares(graph: Graph) -> dict[str, float]:
    """The share of tokens that each constant between the experts' `DISPATCH` and `COMBINE` is needed for, by name.

    And, by the names of the dimensions that count an expert's rows, the share of tokens that it has on average. `graph` is a
    decoder as frontends make it; what is not named is needed for every token.
    """
    found: dict[str, float] = {}
    for node in graph.nodes:
        if node.op != DISPATCH:
            continue
        share = int(node.operand(1).dims[-1]) / len(node.outputs)  # type: ignore[arg-type]
        for output in node.outputs:
            found |= dict.fromkeys(_constants_behind(output), share)
            found |= {dim.name: share for dim in output.dims if isinstance(dim, Dim)}
    return found


def _constants_behind(value: Value) -> set[str]:
    """Names of the constants of all that is computed of a value before it is combined."""
    names: set[str] = set()
    seen: set[Node] = set()
    pending = list(value.users)
    while pending:
        node = pending.pop()
        if node in seen or node.op == COMBINE:
            continue
        seen.add(node)
        names |= {item.name for item in node.inputs if item is not None and item.const is not None}
        pending += [user for output in node.outputs for user in output.users]
    return names


def states(graph: Graph, repeats: Repeats) -> list[PlannedCache]:
    """What linear attention keeps, as frontends make it: a matrix for each head, and the last inputs of its convolution.

    In single precision, and the same whatever the number of tokens.
    """
    found: dict[int, int] = {}
    for node in graph.nodes:
        if node.op == DELTA_RULE:
            heads, key, width = (int(node.attrs[name]) for name in ("num_v_heads", "head_k_dim", "head_v_dim"))
            channels, _, taps = node.operand(3).sizes
            size = 4 * (heads * key * width + channels * (taps - 1))
            found[size] = found.get(size, 0) + repeats.of_node(node)
    return [PlannedCache("linear attention", layers, 0, layers * size) for size, layers in found.items()]


def without_numbers(name: str) -> str:
    """A name with ``*`` for the numbers between its dots."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


__all__ = [
    "Planned", "PlannedCache", "PlannedFile", "PlannedMemory", "PlannedWeights", "Repeats", "shares", "states",
    "without_numbers",
]  # fmt: skip
