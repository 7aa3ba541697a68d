"""Dataflow analyses: dominators, cuts, frontiers, regions, reachability.

Every function reads the views of `ir.graph.view`, changes nothing and works on one graph: a node that holds subgraphs
counts as one vertex that also reads what its subgraphs capture. A *vertex* is a node or a value. Unless said otherwise
the cost is linear in vertices and edges. Memory use over time is in `ir.analysis.liveness`, repeated blocks are in
`ir.analysis.repeats`.

==================================  ===============================================================================
`reachable`                         everything before or after some vertices
`depths`                            longest path from the beginning, by node
`dominators`, `post_dominators`     what every path from the inputs, or to the outputs, goes through
`dominance_frontiers`               where the influence of a vertex stops being exclusive
`single_value_cuts`                 values that carry everything from some sources to a target, in order
`frontier`                          boundary between what known values determine and the rest
`minimum_cut`                       cheapest set of values that separates sources from targets
`regions`                           connected groups of nodes that satisfy a predicate
==================================  ===============================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf
from typing import Any

from ir.graph.graph import Graph, Node, Value
from ir.graph.view import Flow, Vertex, cached, flow

UNREACHED = -1


def reachable(graph: Graph, start: Iterable[Vertex], *, backward: bool = False) -> set[Vertex]:
    """The vertices on paths that begin at `start`, or end there when `backward`; `start` included."""
    view = flow(graph)
    marks = _marks(view, view.numbers(start), backward)
    return {item for item, mark in zip(view.items, marks, strict=True) if mark}


def _marks(view: Flow, start: Iterable[int], backward: bool) -> bytearray:
    links = view.preds if backward else view.succs
    marks = bytearray(len(view.items))
    waiting = list(start)
    for number in waiting:
        marks[number] = 1
    while waiting:
        for other in links[waiting.pop()]:
            if not marks[other]:
                marks[other] = 1
                waiting.append(other)
    return marks


def depths(graph: Graph) -> dict[Node, int]:
    """Number of nodes on the longest path that ends just before each node; 0 when it reads no node's output."""
    return cached(graph, "depths", lambda: _depths(graph))


def _depths(graph: Graph) -> dict[Node, int]:
    view = flow(graph)
    level = [0] * len(view.items)
    found: dict[Node, int] = {}
    for number, item in enumerate(view.items):
        before = max((level[pred] for pred in view.preds[number]), default=0)
        if isinstance(item, Node):
            found[item] = before
            before += 1
        level[number] = before
    return found


# ---- dominators ----


class Dominators:
    """A dominator tree over the vertices of a graph.

    Vertices that no path from the entries reaches are not in the tree. Several entries hang under a virtual root, which
    is written None. Dominance is reflexive.
    """

    def __init__(self, view: Flow, entries: Iterable[int], reverse: bool) -> None:
        self._view = view
        size = len(view.items)
        # Vertex `size` is the virtual root. `_jump` points at an ancestor chosen so that any ancestor of a given depth
        # is found in O(log depth) steps (jump pointers of a skew-binary counter), which bounds every join.
        self._parent = [UNREACHED] * size + [size]
        self._depth = [0] * (size + 1)
        self._jump = [size] * (size + 1)
        self._links = view.succs if reverse else view.preds
        self._fill(set(entries), range(size - 1, -1, -1) if reverse else range(size))

    def _fill(self, entries: set[int], order: range) -> None:
        root, parent, depth, jump = len(self._view.items), self._parent, self._depth, self._jump
        for number in order:
            if number in entries:
                above = root
            else:
                above = UNREACHED
                for before in self._links[number]:
                    if parent[before] == UNREACHED:
                        continue
                    above = before if above == UNREACHED else self._join(above, before)
                if above == UNREACHED:
                    continue
            parent[number] = above
            depth[number] = depth[above] + 1
            far = jump[above]
            even = depth[above] - depth[far] == depth[far] - depth[jump[far]]
            jump[number] = jump[far] if even else above

    def _rise(self, number: int, depth: int) -> int:
        depths, jump = self._depth, self._jump
        while depths[number] > depth:
            far = jump[number]
            number = far if depths[far] >= depth else self._parent[number]
        return number

    def _join(self, one: int, two: int) -> int:
        depth = min(self._depth[one], self._depth[two])
        one, two = self._rise(one, depth), self._rise(two, depth)
        while one != two:
            if self._jump[one] != self._jump[two]:
                one, two = self._jump[one], self._jump[two]
            else:
                one, two = self._parent[one], self._parent[two]
        return one

    def _item(self, number: int) -> Vertex | None:
        return self._view.items[number] if number < len(self._view.items) else None

    def __contains__(self, vertex: Vertex) -> bool:
        number = self._view.index.get(vertex)
        return number is not None and self._parent[number] != UNREACHED

    def immediate(self, vertex: Vertex) -> Vertex | None:
        """The nearest dominator other than the vertex itself; None when that is the virtual root.

        KeyError when the vertex is not in the tree.
        """
        number = self._view.index[vertex]
        if self._parent[number] == UNREACHED:
            raise KeyError(vertex)
        return self._item(self._parent[number])

    def depth(self, vertex: Vertex) -> int:
        """Number of dominators of a vertex, itself included; KeyError when it is not in the tree."""
        if vertex not in self:
            raise KeyError(vertex)
        return self._depth[self._view.index[vertex]]

    def dominates(self, one: Vertex, two: Vertex) -> bool:
        """True when every path from the entries to `two` goes through `one`; O(log depth)."""
        if one not in self or two not in self:
            return False
        high, low = self._view.index[one], self._view.index[two]
        return self._depth[high] <= self._depth[low] and self._rise(low, self._depth[high]) == high

    def chain(self, vertex: Vertex) -> list[Vertex]:
        """The dominators of a vertex other than itself, nearest first."""
        found = []
        above = self.immediate(vertex)
        while above is not None:
            found.append(above)
            above = self.immediate(above)
        return found

    def common(self, vertices: Iterable[Vertex]) -> Vertex | None:
        """The nearest vertex that dominates all of some vertices; None when only the virtual root does."""
        numbers = [self._view.index[vertex] for vertex in vertices if vertex in self]
        if not numbers:
            return None
        joined = numbers[0]
        for number in numbers[1:]:
            joined = self._join(joined, number)
        return self._item(joined)

    def as_dict(self) -> dict[Vertex, Vertex | None]:
        """Immediate dominator by vertex, for the vertices in the tree, in topological order."""
        return {
            item: self._item(above)
            for item, above in zip(self._view.items, self._parent, strict=False)
            if above != UNREACHED
        }


def entries(graph: Graph) -> list[Value]:
    """Where data enters a graph: its inputs and, for a subgraph, the values that it captures; no constants."""
    view = flow(graph)
    return [
        item
        for item, before in zip(view.items, view.preds, strict=True)
        if isinstance(item, Value) and not before and item.const is None
    ]


def exits(graph: Graph) -> list[Value]:
    """Where data leaves a graph: its outputs and tables, without repeats."""
    return list(dict.fromkeys((*graph.outputs, *graph.tables.values())))


def dominators(graph: Graph, sources: Iterable[Vertex] | None = None) -> Dominators:
    """The dominator tree of paths from `sources`, by default `entries`."""
    chosen = tuple(entries(graph) if sources is None else sources)
    view = flow(graph)
    return cached(graph, ("dominators", chosen), lambda: Dominators(view, view.numbers(chosen), False))


def post_dominators(graph: Graph, targets: Iterable[Vertex] | None = None) -> Dominators:
    """The dominator tree of reversed paths from `targets`, by default `exits`: what every path to them goes through."""
    chosen = tuple(exits(graph) if targets is None else targets)
    view = flow(graph)
    return cached(graph, ("post-dominators", chosen), lambda: Dominators(view, [view.index[v] for v in chosen], True))


def immediate_dominators(graph: Graph, sources: Iterable[Vertex] | None = None) -> dict[Vertex, Vertex | None]:
    """Immediate dominator by vertex; None is the virtual root above the sources. Unreached vertices are left out."""
    return dominators(graph, sources).as_dict()


def immediate_post_dominators(graph: Graph, targets: Iterable[Vertex] | None = None) -> dict[Vertex, Vertex | None]:
    """Immediate post-dominator by vertex; None is the virtual exit. Vertices that reach no target are left out."""
    return post_dominators(graph, targets).as_dict()


def dominance_frontiers(graph: Graph, sources: Iterable[Vertex] | None = None) -> dict[Vertex, set[Vertex]]:
    """The vertices just beyond what each vertex dominates.

    Computed as in Cooper, Harvey and Kennedy, "A Simple, Fast Dominance Algorithm" (2006), section 4. The result itself
    can be quadratic in the depth of the dominator tree.
    """
    tree = dominators(graph, sources)
    view = flow(graph)
    found: dict[Vertex, set[Vertex]] = {item: set() for item in view.items if item in tree}
    for item in found:
        before = [view.items[pred] for pred in view.preds[view.index[item]] if view.items[pred] in tree]
        stop = tree.immediate(item)
        for runner in before:
            above: Vertex | None = runner
            while above is not None and above is not stop:
                found[above].add(item)
                above = tree.immediate(above)
    return found


# ---- cuts ----


def single_value_cuts(graph: Graph, sources: Iterable[Vertex], target: Vertex) -> list[Value]:
    """All values through which every path from `sources` to `target` goes, from the sources to the target.

    The target is the last of them; a lone source is the first. Empty when no path exists. Paths from constants and
    from inputs that are not sources do not count.
    """
    view = flow(graph)
    starts = view.numbers(sources)
    goal = view.index[target]
    ahead, behind = _marks(view, starts, False), _marks(view, [goal], True)
    if not ahead[goal]:
        return []
    # In topological order a vertex lies on all paths exactly when no edge between path vertices passes over it.
    reach = max(number for number in starts if behind[number])
    cuts: list[Value] = []
    for number in range(min(starts), goal + 1):
        if not (ahead[number] and behind[number]):
            continue
        item = view.items[number]
        if reach <= number and isinstance(item, Value):
            cuts.append(item)
        reach = max(reach, max((other for other in view.succs[number] if behind[other]), default=0))
    return cuts


@dataclass(frozen=True)
class Frontier:
    """The boundary between what known values determine and the rest; made by `frontier`.

    Nodes that compute from constants alone belong to neither side, and their results are no boundary.

    Attributes:
        boundary: determined values that the rest reads, or that were wanted themselves, in program order.
        missing: values that the wanted ones need and that are neither known nor produced: inputs, captured values.
        computed: the nodes, in program order, that compute the boundary from the known values.
        rest: the nodes, in program order, between the boundary and the wanted values.
    """

    boundary: tuple[Value, ...]
    missing: tuple[Value, ...]
    computed: tuple[Node, ...]
    rest: tuple[Node, ...]


SHAPE_OPS = frozenset({"Shape", "Size"})
_OPEN, _CONSTANT, _KNOWN = 0, 1, 2


def frontier(graph: Graph, known: Iterable[Value], wanted: Iterable[Value], *, shapes: bool = True) -> Frontier:
    """Where the part of a graph that `known` values and constants determine ends on the way to the `wanted` values.

    Args:
        graph: the graph.
        known: values given from outside. What lies before them is not looked at.
        wanted: values asked for.
        shapes: the results of Shape and Size count as known whatever they read.
    """
    view = flow(graph)
    goals = view.numbers(wanted)
    free = set(view.numbers(known))
    if shapes:
        free |= {view.index[node] for node in graph.nodes if node.op in SHAPE_OPS}
    state = _determined(view, free)
    is_needed = bytearray(len(view.items))
    waiting, edge = list(goals), {number for number in goals if state[number] == _KNOWN}
    while waiting:
        number = waiting.pop()
        if is_needed[number]:
            continue
        is_needed[number] = 1
        if number in free:
            continue
        waiting.extend(view.preds[number])
        if state[number] == _OPEN:
            edge.update(pred for pred in view.preds[number] if state[pred] == _KNOWN)
    needed = [(n, item) for n, item in enumerate(view.items) if is_needed[n]]
    return Frontier(
        boundary=tuple(item for n, item in needed if n in edge and isinstance(item, Value)),
        missing=tuple(i for n, i in needed if isinstance(i, Value) and state[n] == _OPEN and not view.preds[n]),
        computed=tuple(item for n, item in needed if isinstance(item, Node) and state[n] == _KNOWN),
        rest=tuple(item for n, item in needed if isinstance(item, Node) and state[n] == _OPEN),
    )


def _determined(view: Flow, free: set[int]) -> bytearray:
    state = bytearray(len(view.items))
    for number, item in enumerate(view.items):
        before = view.preds[number]
        if number in free:
            state[number] = _KNOWN
        elif before:
            found = {state[pred] for pred in before}
            state[number] = _OPEN if _OPEN in found else max(found)
        else:
            state[number] = _CONSTANT if isinstance(item, Node) or item.const is not None else _OPEN
    return state


def minimum_cut(
    graph: Graph, sources: Iterable[Value], targets: Iterable[Value], cost: Callable[[Value], float]
) -> tuple[float, list[Value]]:
    """The cheapest set of values without which no path leads from `sources` to `targets`.

    Sources and targets may be part of the cut. Among equally cheap cuts the one nearest to the sources is returned, in
    topological order. When every cut contains a value of infinite cost, the result is ``(inf, [])``. Maximum flow with
    every value split in two (Menger), by shortest augmenting paths: the time grows with the number of values in the
    cut.

    Args:
        graph: the graph.
        sources, targets: values to separate.
        cost: non-negative cost of cutting at a value; ``math.inf`` forbids it.
    """
    from networkx import DiGraph, NetworkXUnbounded
    from networkx.algorithms.flow import shortest_augmenting_path

    view = flow(graph)
    starts, goals = view.numbers(sources), view.numbers(targets)
    ahead, behind = _marks(view, starts, False), _marks(view, goals, True)
    on = [number for number in range(len(view.items)) if ahead[number] and behind[number]]
    if not on:
        return 0.0, []
    net = DiGraph()
    # A missing capacity is infinite; vertex n enters at 2n and leaves at 2n + 1.
    net.add_edges_from(("source", 2 * n) for n in starts if behind[n])
    net.add_edges_from((2 * n + 1, "target") for n in goals if ahead[n])
    for number in on:
        item = view.items[number]
        price = cost(item) if isinstance(item, Value) else inf
        net.add_edge(2 * number, 2 * number + 1, **({} if price == inf else {"capacity": price}))
        net.add_edges_from((2 * number + 1, 2 * n) for n in view.succs[number] if ahead[n] and behind[n])
    try:
        residual = shortest_augmenting_path(net, "source", "target")
    except NetworkXUnbounded:
        return inf, []
    left = _residual_side(residual)
    items = (view.items[n] for n in on if 2 * n in left and 2 * n + 1 not in left)
    cut = [item for item in items if isinstance(item, Value)]
    return sum(map(cost, cut)), cut


def _residual_side(residual: Any) -> set:
    left, waiting = {"source"}, ["source"]
    while waiting:
        for other, edge in residual[waiting.pop()].items():
            if other not in left and edge["flow"] < edge["capacity"]:
                left.add(other)
                waiting.append(other)
    return left


def regions(graph: Graph, predicate: Callable[[Node], bool]) -> list[list[Node]]:
    """The nodes that satisfy `predicate`, grouped: two are together when a value leads from one to the other.

    Groups and their nodes are in program order. Reading the same value does not connect two nodes.
    """
    view = flow(graph)
    group: dict[Node, Node] = {}

    def leader(node: Node) -> Node:
        while group[node] is not node:
            group[node] = group[group[node]]
            node = group[node]
        return node

    for node in graph.nodes:
        if not predicate(node):
            continue
        group[node] = node
        for pred in view.preds[view.index[node]]:
            item = view.items[pred]
            producer = item.producer if isinstance(item, Value) else None
            if producer is not None and producer in group:
                one, two = leader(node), leader(producer)
                group[one] = two
    found: dict[Node, list[Node]] = {}
    for node in group:
        found.setdefault(leader(node), []).append(node)
    return list(found.values())


__all__ = [
    "Dominators",
    "Frontier",
    "depths",
    "dominance_frontiers",
    "dominators",
    "entries",
    "exits",
    "frontier",
    "immediate_dominators",
    "immediate_post_dominators",
    "minimum_cut",
    "post_dominators",
    "reachable",
    "regions",
    "single_value_cuts",
]
