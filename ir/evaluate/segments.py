"""How an evaluation is cut into segments whose constants fit a memory limit; see `ir.evaluate.evaluator`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod

from ir.base.diag import LadingError
from ir.base.types import TensorType
from ir.evaluate import large_weights as pieces
from ir.evaluate.kernels import OpenModel
from ir.graph.describe import describe
from ir.graph.graph import Graph, Node, Value
from ir.onnx.export import outside_reads, stored_bytes
from ir.ops.registry import opdef

INLINE_BYTES = 4096
"""Constants up to this size are part of the model, where operators that need constant shapes look for them."""
MODEL_BYTES = 1 << 20
"""Bytes of small float constants that a segment's model may hold; further ones are fed."""
GATHER_BYTES = 16 << 20
"""A table above this size is read row by row even when there is no memory limit."""
LARGE_BYTES = 1 << 16
"""Weights above this size that are computed from constants are computed once for all feeds."""
GROUP_BYTES = 128 << 20
"""Weights of about this size are computed in one go."""
USUAL_SIZE = 256
"""Size that is assumed of a symbolic dimension to judge where little has to be carried from one segment to the next."""
MOST_NODES = 1024
"""Nodes of a segment: onnxruntime takes time that grows with the square of the nodes to load some models."""


@dataclass
class Segment:
    """Nodes that one session runs, or a single node that is computed in pieces.

    Attributes:
        nodes: the nodes; small computations on constants come before their first reader.
        weights: segments that compute the large weights that the nodes read, from constants alone.
        inputs: values carried into the segment.
        outputs: values carried out of it.
        consts: constants that are fed.
        in_pieces: the one node is computed by `ir.evaluate.large_weights`.
        session: the loaded model, once it has run.
        dead: values that nothing reads after it.
    """

    nodes: list[Node]
    in_pieces: bool = False
    weights: list[Segment] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    consts: list[Value] = field(default_factory=list)
    session: OpenModel | None = None
    dead: list[Value] = field(default_factory=list)

    @property
    def constants(self) -> list[Value]:
        """The constants that are fed, those of the weights it computes included."""
        return [*self.consts, *(value for part in self.weights for value in part.consts)]


@dataclass(frozen=True)
class Plan:
    """What a plan of segments has to consider besides the wanted values.

    Attributes:
        limit: bytes of constants to hold at once; None for no limit.
        keep: wanted values stay to the end; False when they may go once nothing reads them any more.
        reserve: bytes that an observer of a wanted value needs from when it is made to the end of its segment; the
            limit counts for them too, but apart from the constants.
        fed: constants that are fed whatever their size, because other contents may take their place.
        ends: values that no segment both makes and reads, and that are there behind it even if nothing reads them; those
            that do not depend on each other are made in one go.
    """

    limit: int | None = None
    keep: bool = True
    reserve: Mapping[Value, int] = field(default_factory=dict)
    fed: Set[Value] = frozenset()
    ends: Set[Value] = frozenset()


def plan_segments(graph: Graph, wanted: list[Value], plan: Plan) -> list[Segment]:
    """Cut the nodes that the wanted values need into segments."""
    nodes = _ancestors(graph, wanted)
    asked = {value.producer for value in wanted}
    planner = _Planner(plan)
    placed = [node for node in nodes if not planner.is_weight(node) or node in asked]
    levels = _levels(placed, plan.ends)
    placed.sort(key=levels.__getitem__)
    planner.crossing = _crossing(placed)
    for before, node in zip([None, *placed], placed, strict=False):
        if before is not None and levels[before] != levels[node]:
            planner.end()
        planner.place(node)
    segments = planner.segments
    for segment in segments:
        if not segment.in_pieces:
            _set_weights_apart(segment, planner.weights - asked, plan.fed)
    _connect(segments, wanted, plan)
    return segments


def _levels(nodes: list[Node], ends: Set[Value]) -> dict[Node, int]:
    """How many of some values lie before each node, one behind the other, or may do so without making anything later."""
    before: dict[Node, int] = {}
    for node in nodes:
        made = [(value, before[value.producer]) for value in outside_reads(node) if value.producer in before]
        before[node] = max((level + (value in ends) for value, level in made), default=0)
    found: dict[Node, int] = {}
    for node in reversed(nodes):
        level = found.setdefault(node, before[node])
        for value in outside_reads(node):
            if value.producer in before:
                late = level - (value in ends)
                found[value.producer] = min(found.get(value.producer, late), late)
    return found


def _set_weights_apart(segment: Segment, weights: set[Node], fed: Set[Value]) -> None:
    """Move the computation of large weights into segments of their own, which run once for all feeds."""
    large: dict[Value, None] = {}
    for node in segment.nodes:
        if node not in weights:
            large.update((v, None) for v in outside_reads(node) if v.producer in weights and _is_large(v))
    if not large:
        return
    mine = [node for node in segment.nodes if node not in weights]
    reads = [value for node in mine for value in outside_reads(node) if value not in large]
    kept = _made_from(reads, weights, large)
    for group in _groups(list(large)):
        apart = _made_from(group, weights)
        nodes = [node for node in segment.nodes if node in apart]
        segment.weights.append(Segment(nodes, outputs=group, consts=_fed_constants(nodes, fed)))
    segment.nodes = [node for node in segment.nodes if node not in weights or node in kept]


def _groups(values: list[Value]) -> Iterator[list[Value]]:
    """Weights in order, in groups of about `GROUP_BYTES`."""
    group: list[Value] = []
    size = 0
    for value in values:
        more = _computed_bytes([value.producer] if value.producer is not None else [])
        if group and size + more > GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(value)
        size += more
    yield group


def _made_from(values: list[Value], weights: set[Node], given: Iterable[Value] = ()) -> set[Node]:
    """The weight computations behind some values, those behind given ones left out."""
    found: set[Node] = set()
    known = set(given)
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        node = value.producer
        if value not in known and node in weights and node not in found:
            found.add(node)
            waiting.extend(outside_reads(node))
    return found


def _is_large(value: Value) -> bool:
    size = value.type.nbytes if isinstance(value.type, TensorType) else None
    return size is not None and size > LARGE_BYTES


def _ancestors(graph: Graph, wanted: Iterable[Value]) -> list[Node]:
    """The nodes that the wanted values need, in program order."""
    needed: set[Node] = set()
    waiting = [value.producer for value in wanted if value.producer is not None]
    while waiting:
        node = waiting.pop()
        if node in needed:
            continue
        needed.add(node)
        waiting.extend(v.producer for v in outside_reads(node) if v.producer is not None and v.graph is graph)
    return [node for node in graph.nodes if node in needed]


def _crossing(nodes: list[Node]) -> dict[Node, int]:
    """About how many bytes are live after each node, for sequences of `USUAL_SIZE`."""
    place: dict[Node | None, int] = {node: index for index, node in enumerate(nodes)}
    change = [0] * (len(nodes) + 1)
    last: dict[Value, int] = {}
    for index, node in enumerate(nodes):
        last.update((value, index) for value in outside_reads(node) if value.producer in place)
    for value, end in last.items():
        size = _usual_bytes(value)
        change[place[value.producer]] += size
        change[end] -= size
    return dict(zip(nodes, accumulate(change), strict=False))


def _usual_bytes(value: Value) -> int:
    if not isinstance(value.type, TensorType) or value.shape is None:
        return 0
    sizes = (dim if type(dim) is int else USUAL_SIZE for dim in value.shape)
    return prod(sizes) * value.dtype.bits // 8


class _Planner:
    """Puts nodes into segments, each weight computation before its first reader in the segment."""

    def __init__(self, plan: Plan) -> None:
        self.segments: list[Segment] = []
        self.weights: set[Node] = set()
        self._limit = plan.limit
        self._reserve = plan.reserve
        self._open: Segment | None = None
        self._placed: set[Node] = set()
        self._loaded: set[Value] = set()
        self.crossing: dict[Node, int] = {}
        self._bytes = 0
        self._reserved = 0
        self._filled: list[tuple[Node, int]] = []

    def is_weight(self, node: Node) -> bool:
        """True for a node that follows from constants alone and may be computed again; asked in program order."""
        if any(v is not None and v.const is None and v.producer not in self.weights for v in node.inputs):
            return False
        definition = opdef(node)
        if node.subgraphs or definition is None or not definition.has("constant_foldable") or self._in_pieces(node):
            return False
        self.weights.add(node)
        return True

    def place(self, node: Node) -> None:
        """Put the next node in program order."""
        if self._in_pieces(node):
            self.segments.append(Segment([node], in_pieces=True))
            self._open = None
            return
        if self._open is not None and self._is_full(node):
            self._cut()
        if self._open is None or self._is_full(node):
            self._start()
        self._append(node)

    def end(self) -> None:
        """Begin another segment with the next node."""
        self._open = None

    def _start(self) -> None:
        self._open = Segment([])
        self.segments.append(self._open)
        self._placed, self._loaded, self._filled = set(), set(), []
        self._bytes = self._reserved = 0

    def _append(self, node: Node) -> None:
        self._add(self._closure(node), node)
        self._reserved += self._room(node)
        self._filled.append((node, self._bytes + self._reserved))

    def _cut(self) -> None:
        """End the open segment where least is live, of the places that leave it half full; the rest is open again."""
        enough = self._filled[-1][1] // 2
        places = [index for index, (_, size) in enumerate(self._filled) if size >= enough]
        best = min(places, key=lambda index: (self.crossing[self._filled[index][0]], -index))
        nodes = [node for node, _ in self._filled]
        self.segments.pop()
        self._start()
        for node in nodes[: best + 1]:
            self._append(node)
        if best + 1 < len(nodes):
            self._start()
        for node in nodes[best + 1 :]:
            self._append(node)

    def _room(self, node: Node) -> int:
        return sum(self._reserve.get(value, 0) for value in node.outputs)

    def _is_full(self, node: Node) -> bool:
        assert self._open is not None
        if len(self._open.nodes) >= MOST_NODES:
            return True
        if self._limit is None or not self._filled:
            return False
        reserve = self._room(node)
        over = reserve > 0 and self._reserved + reserve > self._limit
        return over or self._size(self._closure(node)) > self._limit

    def _in_pieces(self, node: Node) -> bool:
        index = pieces.weight_input(node)
        weight = node.input(index) if index is not None else None
        if weight is None or (weight.const is None and weight.producer not in self.weights):
            return False
        size = _weight_bytes(weight, self.weights)
        over = self._limit is not None and size > self._limit
        if not over and not (node.op == "Gather" and size > GATHER_BYTES):
            return False
        return pieces.can_run(node)

    def _closure(self, node: Node) -> list[Node]:
        """The weight computations a node needs, then the node."""
        found: dict[Node, None] = {}
        waiting = [(node, False)]
        while waiting:
            item, ready = waiting.pop()
            if ready:
                found[item] = None
                continue
            if item in found:
                continue
            waiting.append((item, True))
            for value in outside_reads(item):
                if value.producer in self.weights:
                    waiting.append((value.producer, False))
        return list(found)

    def _size(self, closure: list[Node]) -> int:
        """Bytes of the open segment's constants and computed weights with a closure added."""
        more: dict[Value, int] = {}
        for node in closure:
            more.update((v, size) for v, size in _const_bytes(node).items() if v not in self._loaded)
        return self._bytes + sum(more.values()) + _computed_bytes(n for n in closure[:-1] if n not in self._placed)

    def _add(self, closure: list[Node], node: Node) -> None:
        assert self._open is not None
        self._bytes = self._size(closure)
        alone: dict[Value, int] = {}
        for item in closure:
            alone.update(_const_bytes(item))
            if item not in self._placed:
                self._placed.add(item)
                self._open.nodes.append(item)
        self._loaded.update(alone)
        size = sum(alone.values()) + _computed_bytes(closure[:-1])
        if self._limit is not None and size > self._limit:
            raise LadingError(
                "T224",
                f"the constants of {node.op} take {size >> 20} MiB, the memory limit is {self._limit >> 20} MiB",
                describe(node),
                f"allow at least {size} bytes",
            )


def _const_bytes(node: Node) -> dict[Value, int]:
    found: dict[Value, int] = {}
    for value in outside_reads(node):
        if value.const is not None and value not in found:
            found[value] = stored_bytes(value.const) if value.const.type.dtype.kind != "s" else 0
    return found


def _computed_bytes(nodes: Iterable[Node]) -> int:
    """Bytes of the weights that nodes compute. All count: onnxruntime may compute each before the first is used."""
    total = 0
    for node in nodes:
        type_ = node.outputs[0].type
        size = type_.nbytes if isinstance(type_, TensorType) else None
        # A real-valued zero is spread to the size of the weight before it is added.
        total += (size or 0) * (2 if node.op == "lading.AffineDequantize" else 1)
    return total


def _weight_bytes(weight: Value, weights: set[Node]) -> int:
    """Bytes needed to have a weight whole."""
    if weight.const is not None:
        return stored_bytes(weight.const)
    nodes: dict[Node, None] = {}
    consts: dict[Value, int] = {}
    waiting = [weight.producer]
    while waiting:
        node = waiting.pop()
        if node in weights and node not in nodes:
            nodes[node] = None
            consts.update(_const_bytes(node))
            waiting.extend(value.producer for value in node.inputs if value is not None)
    return sum(consts.values()) + _computed_bytes(nodes)


def _connect(segments: list[Segment], wanted: list[Value], plan: Plan) -> None:
    """Find what each segment takes in, hands on and makes obsolete."""
    last: dict[Value, int] = {}
    made: list[dict[Value, None]] = []
    for place, segment in enumerate(segments):
        inside: dict[Value, None] = {value: None for node in segment.nodes for value in node.outputs}
        made.append(inside)
        computed = {value for part in segment.weights for value in part.outputs}
        taken: dict[Value, None] = {}
        for node in segment.nodes:
            for value in outside_reads(node):
                if value.const is None and value not in inside and value not in computed:
                    if segment.in_pieces and value is pieces.large_weight(node):
                        continue
                    taken[value] = None
        segment.inputs = list(taken)
        for value in taken:
            last[value] = place
        if not segment.in_pieces:
            segment.consts = _fed_constants(segment.nodes, plan.fed)
    asked = set(wanted)
    keep = asked if plan.keep else set()
    for place, segment in enumerate(segments):
        segment.outputs = [v for v in made[place] if v in asked or last.get(v, -1) > place]
        segment.dead = [value for value, end in last.items() if end == place and value not in keep]
        if not plan.keep:
            segment.dead += [value for value in segment.outputs if value not in last and value not in plan.ends]


def _fed_constants(nodes: list[Node], fed: Set[Value]) -> list[Value]:
    """The constants that are fed; the others are part of the model."""
    consts = dict.fromkeys(value for node in nodes for value in _const_bytes(node))
    sizes = {value: stored_bytes(value.tensor) for value in consts if value.tensor.type.dtype.kind != "s"}
    large = [value for value, size in sizes.items() if size > INLINE_BYTES or value in fed]
    room = MODEL_BYTES
    for value, size in sizes.items():
        if size <= INLINE_BYTES and value not in fed:
            room -= size
            if room < 0 and not value.dtype.is_integer:
                large.append(value)
    return large


__all__ = ["Plan", "Segment", "plan_segments"]
