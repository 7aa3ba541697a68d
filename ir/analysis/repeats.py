"""Isomorphic repeated blocks, found by structure and not by name: the layers of a decoder, the stages of a tower.

The graph is cut at every value through which everything from one value to the deepest output goes (in a decoder: the
residual stream). The pieces between the cuts are compared by structure, runs of equal pieces are collected, and the
nodes of the blocks so found are put in correspondence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import islice

from ir.analysis.dataflow import Dominators, depths, entries, exits, post_dominators, reachable
from ir.base.types import BOOL, I32, I64, TensorType
from ir.graph.compare import Keys, tensor_key
from ir.graph.graph import Graph, Node, Value
from ir.graph.view import Flow, cached, flow

MAX_STARTS = 256
"""How many values are considered as the beginning of the chain, those nearest to the inputs first."""

SHORTEST = 0.3
"""Chains of less than this part of the greatest length are not tried."""

MAX_CHAINS = 6
"""How many chains are tried, until one explains more than half of the nodes."""

SMALL_CONSTANT = 64
"""Integer constants of at most this many elements are shapes and axes, which blocks must share."""

MAX_PERIODS = 64
"""How many lengths of a block, in pieces, are tried."""


@dataclass(frozen=True)
class Block:
    """One occurrence of a repeated block.

    Attributes:
        entry, exit: the values through which everything enters and leaves along the chain.
        nodes: the nodes; position i corresponds to position i of every other occurrence.
        constants: the constants that the nodes read, in corresponding order.
        reads: other values from outside that the nodes read (masks, tables of angles, caches), in corresponding order.
    """

    entry: Value
    exit: Value
    nodes: tuple[Node, ...]
    constants: tuple[Value, ...]
    reads: tuple[Value, ...]


@dataclass(frozen=True)
class Repeat:
    """A block that occurs several times in a row; consecutive occurrences meet at exit and entry."""

    blocks: tuple[Block, ...]

    def partners(self, node: Node) -> tuple[Node, ...]:
        """The node's counterpart in every block, its own block included; KeyError when it is in none."""
        for block in self.blocks:
            if node in block.nodes:
                place = block.nodes.index(node)
                return tuple(other.nodes[place] for other in self.blocks)
        raise KeyError(node)


def repeats(graph: Graph, *, minimum: int = 2) -> list[Repeat]:
    """The repeated blocks of at least `minimum` nodes, in program order, without overlap.

    Blocks correspond when they have the same operators, attributes and wiring, constants of the same types (small
    integer and boolean constants also the same contents, being shapes and axes), the same outside values in the same
    places, or outside values of the same type that no other block reads. The correspondence is one to one. A longer
    stretch of the graph is preferred to a shorter one, then the shorter block. Near-linear in the size of the graph.
    """
    return cached(graph, ("repeats", minimum), lambda: _repeats(graph, minimum))


def chains(graph: Graph) -> Iterator[list[Value]]:
    """Chains of values to the deepest output, each going through all paths from its first value, best bets first.

    The beginning may be any value that data flows through, since one input often feeds both the main stream and a side
    computation. Beginnings that reach more nodes come first, those of short chains and those on an earlier chain not
    at all.
    """
    deep = depths(graph)
    targets = [value for value in exits(graph) if value.producer in deep]
    if not targets:
        return
    target = max(targets, key=lambda value: _depth(deep, value))
    tree = post_dominators(graph, [target])
    data = reachable(graph, entries(graph))
    inner = [item for item in flow(graph).items if isinstance(item, Value) and item in data and item in tree]
    least = SHORTEST * max(map(tree.depth, inner), default=0)
    long = [value for value in inner if tree.depth(value) >= least]
    starts = nsmallest(MAX_STARTS, long, key=lambda value: (_depth(deep, value), -tree.depth(value)))
    reach = _reach(graph, tree, starts)
    seen: set[Value] = set()
    for start in sorted(starts, key=lambda value: (-reach[value], -tree.depth(value))):
        if start in seen:
            continue
        found = [item for item in (start, *tree.chain(start)) if isinstance(item, Value)]
        seen.update(found)
        yield found


def _reach(graph: Graph, tree: Dominators, sources: Sequence[Value]) -> Counter[Value]:
    """Number of nodes in the tree that each source reaches."""
    view = flow(graph)
    bits = [0] * len(view.items)
    for place, value in enumerate(sources):
        bits[view.index[value]] = 1 << place
    alike: Counter[int] = Counter()
    for number, item in enumerate(view.items):
        for pred in view.preds[number]:
            bits[number] |= bits[pred]
        if isinstance(item, Node) and item in tree:
            alike[bits[number]] += 1
    found: Counter[Value] = Counter()
    for mask, count in alike.items():
        for place, value in enumerate(sources):
            if mask >> place & 1:
                found[value] += count
    return found


def _repeats(graph: Graph, minimum: int) -> list[Repeat]:
    best: list[Repeat] = []
    for cuts in islice(chains(graph), MAX_CHAINS):
        best = max(best, _along(graph, cuts, minimum), key=_size)
        if 2 * _size(best) > len(graph.nodes):
            break
    return best


def _size(found: list[Repeat]) -> int:
    return sum(len(block.nodes) for repeat in found for block in repeat.blocks)


def _along(graph: Graph, cuts: list[Value], minimum: int) -> list[Repeat]:
    """The repeated blocks between the cuts of one chain."""
    if len(cuts) < 3:
        return []
    pieces = _pieces(graph, cuts)
    marks, numbers = _fingerprints(graph, pieces, cuts)
    found: list[Repeat] = []
    for first, period, count in _runs(marks, [len(piece) for piece in pieces], minimum):
        blocks = []
        for start in range(first, first + period * count, period):
            nodes = [node for piece in pieces[start : start + period] for node in piece]
            blocks.append((cuts[start], cuts[start + period], nodes))
        found.extend(_aligned(blocks, numbers))
    return found


# ---- pieces ----


def _pieces(graph: Graph, cuts: Sequence[Value]) -> list[list[Node]]:
    """The nodes between consecutive cuts: those on the way, and those that serve or follow them alone."""
    view = flow(graph)
    piece_of: dict[int, int] = {}
    places = [view.index[value] for value in cuts]
    on_path = _between(view, places[0], places[-1])
    at = 0
    for number in on_path:
        while at + 1 < len(places) and number > places[at + 1]:
            at += 1
        piece_of[number] = at
    after = _forward(view, places[0])
    for number, item in enumerate(view.items):
        if number in piece_of or not after[number] or not isinstance(item, Node):
            continue
        # Reads the chain but does not lead to its end, as the caches that a layer returns.
        owners = [piece_of[p] for p in _producers(view, number) if p in piece_of]
        if owners:
            piece_of[number] = max(owners)
    ahead = reachable(graph, [cuts[0]], backward=True)
    for number in range(len(view.items) - 1, -1, -1):
        item = view.items[number]
        if number in piece_of or after[number] or item in ahead or not isinstance(item, Node):
            continue
        readers = {piece_of.get(view.index[user]) for value in item.outputs for user in _local(value, graph)}
        piece = readers.pop() if len(readers) == 1 else None
        if piece is not None:
            piece_of[number] = piece
    pieces: list[list[Node]] = [[] for _ in range(len(cuts) - 1)]
    for number in sorted(piece_of):
        item = view.items[number]
        if isinstance(item, Node):
            pieces[piece_of[number]].append(item)
    return pieces


def _depth(deep: dict[Node, int], value: Value) -> int:
    """The depth of the node that makes a value; -1 for what no node of the graph makes."""
    return deep.get(value.producer, -1) if value.producer is not None else -1


def _local(value: Value, graph: Graph) -> set[Node]:
    """The nodes of `graph` that read a value, subgraphs counting as the node that holds them."""
    found = set()
    for user in value.users:
        while user.home is not graph and user.home.owner is not None:
            user = user.home.owner
        found.add(user)
    return found


def _producers(view: Flow, number: int) -> list[int]:
    return [before for pred in view.preds[number] for before in view.preds[pred]]


def _forward(view: Flow, start: int) -> bytearray:
    marks = bytearray(len(view.items))
    marks[start] = 1
    for number in range(start + 1, len(view.items)):
        if any(marks[pred] for pred in view.preds[number]):
            marks[number] = 1
    return marks


def _between(view: Flow, start: int, end: int) -> list[int]:
    """Numbers of the vertices on paths from `start` to `end`, both left out, in topological order."""
    ahead = _forward(view, start)
    behind = bytearray(len(view.items))
    behind[end] = 1
    found = []
    for number in range(end - 1, start, -1):
        if any(behind[other] for other in view.succs[number]):
            behind[number] = 1
            if ahead[number]:
                found.append(number)
    return found[::-1]


# ---- fingerprints ----


def _fingerprints(
    graph: Graph, pieces: Sequence[Sequence[Node]], cuts: Sequence[Value]
) -> tuple[list[int], dict[Node, int]]:
    """One number for each piece, and one for each node; only those with equal numbers may correspond."""
    piece_of = {node: index for index, piece in enumerate(pieces) for node in piece}
    readers: dict[Value, set[int | None]] = {}
    numbers: dict[Hashable, int] = {}
    marks = []
    number_of: dict[Node, int] = {}
    current = 0

    def leaf(value: Value) -> Hashable | None:
        if value is cuts[current]:
            return ("entry", _type_key(value))
        if value.const is not None:
            return ("const", tensor_key(value.const) if _is_structure(value) else _type_key(value))
        if value.producer is not None:
            return None if piece_of.get(value.producer) == current else ("shared", id(value))
        if value not in readers:
            readers[value] = {piece_of.get(user) for user in _local(value, graph)}
        return ("own", _type_key(value)) if readers[value] == {current} else ("shared", id(value))

    keys = Keys(leaf)
    for index, piece in enumerate(pieces):
        current = index
        found = keys.add(piece)
        number_of.update(zip(piece, found, strict=True))
        mark = (tuple(sorted(found)), keys.value(cuts[index + 1]))
        marks.append(numbers.setdefault(mark, len(numbers)))
    return marks, number_of


def _is_structure(value: Value) -> bool:
    type = value.type
    return isinstance(type, TensorType) and type.dtype in (I32, I64, BOOL) and (type.size or 0) <= SMALL_CONSTANT


# ---- runs ----


def _runs(marks: Sequence[int], weights: Sequence[int], minimum: int) -> list[tuple[int, int, int]]:
    """Non-overlapping runs ``(first piece, pieces in a block, blocks)``, best first chosen, in order of place."""
    last: dict[int, int] = {}
    distances: Counter[int] = Counter()
    for place, mark in enumerate(marks):
        if mark in last:
            distances[place - last[mark]] += 1
        last[mark] = place
    periods = sorted(period for period, _ in distances.most_common(MAX_PERIODS))
    total = [0]
    for weight in weights:
        total.append(total[-1] + weight)
    candidates = []
    for period in periods:
        for first, length in _equal_stretches(marks, period):
            count = length // period + 1
            nodes = total[first + period] - total[first]
            if count >= 2 and nodes >= minimum:
                candidates.append((-(total[first + period * count] - total[first]), period, first, count))
    chosen: list[tuple[int, int, int]] = []
    taken = bytearray(len(marks))
    for _, period, first, count in sorted(candidates):
        first, count = _free_part(taken, first, period, count)
        if count >= 2:
            taken[first : first + period * count] = b"\1" * (period * count)
            chosen.append((first, period, count))
    return sorted(chosen)


def _equal_stretches(marks: Sequence[int], period: int) -> list[tuple[int, int]]:
    """Maximal stretches ``(first, length)``, of at least a period, where a piece equals the one a period later."""
    found, first = [], 0
    for place in range(len(marks) - period + 1):
        same = place < len(marks) - period and marks[place] == marks[place + period]
        if same:
            continue
        if place - first >= period:
            found.append((first, place - first))
        first = place + 1
    return found


def _free_part(taken: bytearray, first: int, period: int, count: int) -> tuple[int, int]:
    """The longest part of a run, in whole blocks, of which nothing is taken."""
    best, start = (first, 0), 0
    for index in range(count + 1):
        low = first + index * period
        if index == count or any(taken[low : low + period]):
            if index - start > best[1]:
                best = (first + start * period, index - start)
            start = index + 1
    return best


# ---- correspondence ----

_Raw = tuple[Value, Value, list[Node]]


def _aligned(blocks: Sequence[_Raw], numbers: Mapping[Node, int]) -> list[Repeat]:
    """Blocks with corresponding nodes; where two neighbours turn out to differ, the run is split."""
    found: list[Repeat] = []
    run: list[Block] = []
    for block in blocks:
        made = _align(run[0], block, numbers) if run else None
        if made is None:
            if len(run) > 1:
                found.append(Repeat(tuple(run)))
            run = [_first(block)]
        else:
            run.append(made)
    if len(run) > 1:
        found.append(Repeat(tuple(run)))
    return found


def _first(block: _Raw) -> Block:
    entry, exit, nodes = block
    inside = {value for node in nodes for value in node.outputs}
    outside = dict.fromkeys(v for n in nodes for v in n.inputs if v is not None and v not in inside and v is not entry)
    constants = tuple(value for value in outside if value.const is not None)
    return Block(entry, exit, tuple(nodes), constants, tuple(value for value in outside if value.const is None))


def _align(model: Block, block: _Raw, numbers: Mapping[Node, int]) -> Block | None:
    """The block in the order of `model`, or None when it does not correspond."""
    entry, exit, nodes = block
    if len(nodes) != len(model.nodes):
        return None
    match = _Matching(model, nodes, numbers)
    if not match.meet(model.entry, entry) or not match.pull(model.exit, exit) or not match.push():
        return None
    values = match.values
    return Block(
        entry,
        exit,
        tuple(match.nodes[node] for node in model.nodes),
        tuple(values[value] for value in model.constants),
        tuple(values[value] for value in model.reads),
    )


class _Matching:
    """The correspondence of one block to the model block, grown along the wires; one to one for nodes and values.

    Attributes:
        numbers: of nodes, from `_fingerprints`: nodes of equal numbers compute the same from alike outside values.
        nodes, values: what corresponds to which of the model block.
        origins: the reverse of `values`.
    """

    def __init__(self, model: Block, nodes: Sequence[Node], numbers: Mapping[Node, int]) -> None:
        self.model = model
        self.inside = set(model.nodes)
        self.candidates = set(nodes)
        self.order = nodes
        self.numbers = numbers
        self.nodes: dict[Node, Node] = {}
        self.taken: set[Node] = set()
        self.values: dict[Value, Value] = {}
        self.origins: dict[Value, Value] = {}

    def meet(self, one: Value, two: Value) -> bool:
        """Let two values correspond; False when one of them corresponds to another value already."""
        return self.values.setdefault(one, two) is two and self.origins.setdefault(two, one) is one

    def pull(self, one: Value, two: Value) -> bool:
        """Match everything inside the block on which two corresponding values depend."""
        waiting = [(one, two)]
        while waiting:
            one, two = waiting.pop()
            known = one in self.values
            if not self.meet(one, two):
                return False
            if known:
                continue
            node, other = one.producer, two.producer
            if node is None or node not in self.inside:
                if other in self.candidates or (one.const is None) != (two.const is None):
                    return False
                continue
            if other is None or one.index != two.index or not self._pair(node, other):
                return False
            waiting.extend(_operands(node, other))
        return True

    def _pair(self, node: Node, other: Node) -> bool:
        if node in self.nodes:
            return self.nodes[node] is other
        if other in self.taken or other not in self.candidates or self._mark(node) != self._mark(other):
            return False
        self.nodes[node] = other
        self.taken.add(other)
        return True

    def push(self) -> bool:
        """Match the nodes that do not lead to the block's exit, by what they read."""
        waiting: dict[Hashable, list[Node]] = {}
        for node in self.order:
            if node not in self.taken:
                waiting.setdefault(self._mark(node), []).append(node)
        for node in self.model.nodes:
            if node in self.nodes:
                continue
            other = next((item for item in waiting.get(self._mark(node), ()) if self._fits(node, item)), None)
            if other is None or not self._pair(node, other):
                return False
            pairs = [*_operands(node, other), *zip(node.outputs, other.outputs, strict=True)]
            if not all(self.meet(one, two) for one, two in pairs):
                return False
        return True

    def _fits(self, node: Node, other: Node) -> bool:
        """True when the operands of two nodes of equal marks may all correspond, each to one alone."""
        if other in self.taken:
            return False
        pairs = set(_operands(node, other))
        if not len(pairs) == len({one for one, _ in pairs}) == len({two for _, two in pairs}):
            return False
        return all(self._may_meet(one, two) for one, two in pairs)

    def _may_meet(self, one: Value, two: Value) -> bool:
        if one in self.values or two in self.origins:
            return self.values.get(one) is two
        return two.producer not in self.candidates

    def _mark(self, node: Node) -> Hashable:
        return (self.numbers[node], tuple(_type_key(value) for value in node.outputs))


def _operands(node: Node, other: Node) -> list[tuple[Value, Value]]:
    """The operands of two nodes of equal numbers in pairs; what one leaves out, the other leaves out too."""
    pairs = zip(node.inputs, other.inputs, strict=True)
    return [(one, two) for one, two in pairs if one is not None and two is not None]


def _type_key(value: Value) -> Hashable:
    # Symbolic dimensions that inference had to name differ from block to block, so only their places count.
    type = value.type
    if not isinstance(type, TensorType) or type.shape is None:
        return str(type)
    return (type.dtype, tuple(dim if isinstance(dim, int) else None for dim in type.shape))


__all__ = ["Block", "Repeat", "chains", "repeats"]
