"""Shrinks graphs while a condition holds: delta debugging over everything that a graph consists of.

Big steps come first: what a few values separate from the rest (cones of the post-dominator tree, minimum cuts, whole
components), then ever smaller groups of nodes, then what single nodes, inputs and constants can do without. Each
candidate is a text; it is tried only when it is well-formed, or as malformed as the graph was at the beginning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf
from pathlib import Path
from time import monotonic

from ir.analysis.dataflow import entries, exits, minimum_cut, post_dominators, reachable, regions
from ir.base.diag import LadingError
from ir.base.whole_files import write_whole
from ir.graph.graph import Graph, GraphError, Node, Value
from ir.text.parser import parse
from ir.text.printer import print_graph, save_graph
from ir.verify.stages import verify
from tools.reduce.smaller_sizes import dims, extents, fill, resize, resize_dim, short_names

Edit = Callable[[Graph], object]
Test = Callable[[Path], bool]
PARTS = (0.95, 0.8, 0.6, 0.4, 0.2)
"""Parts of the graph that a cut tries to remove, the largest first."""


class _OutOfTime(Exception):
    pass


class Reducer:
    """Reduces one graph.

    Attributes:
        best: the smallest graph so far.
        path: the file with it.
        runs: how often the condition was tested.

    Raises:
        LadingError: U922 the file cannot be written.
    """

    def __init__(self, graph: Graph, path: Path, deadline: float, say: Callable[[str], None]) -> None:
        self.path = path.absolute()
        self.runs = 0
        self._deadline = deadline
        self._say = say
        self._tried: set[int] = set()
        self._candidate = self.path.with_name(self.path.stem + ".candidate.lading")
        self._side = self.path.with_suffix(".bin")
        try:
            self._text, self._has_side = save_graph(graph, self.path, base=self.path.parent)
        except OSError as error:
            raise LadingError("U922", f"cannot write: {error.strerror}", str(self.path)) from None
        self.best = self._parsed()
        self._allowed = Counter(item.code for item in verify(self.best) if item.severity == "error")

    def run(self, test: Test) -> bool:
        """Shrink as far as possible; False when time ran out or it was interrupted before that."""
        self._test = test
        steps: Sequence[tuple[str, Callable[[], Iterator[Edit]]]] = (
            ("cuts", self._cuts),
            ("outputs", self._outputs),
            ("components", self._components),
            ("nodes", self._nodes),
            ("bypasses", self._bypasses),
            ("inputs", self._inputs),
            ("annotations", self._annotations),
            ("sizes", self._sizes),
            ("constants", self._constants),
            ("attributes", self._attributes),
            ("names", lambda: iter((short_names,))),
        )
        try:
            while True:
                before = self._text
                for name, edits in steps:
                    self._step(name, edits)
                if self._text == before:
                    return True
        except (_OutOfTime, KeyboardInterrupt):
            return False
        finally:
            self._candidate.unlink(missing_ok=True)
            if self._has_side and self._side.name not in self._text:
                self._side.unlink(missing_ok=True)

    def _step(self, name: str, edits: Callable[[], Iterator[Edit]]) -> None:
        """Try the edits of one kind, made for the best graph; begin again with those of a new best one."""
        before = size_of(self.best)
        again = True
        while again:
            again = False
            for edit in edits():
                if self._attempt(edit):
                    again = True
                    break
        after = size_of(self.best)
        if after != before:
            self._say(f"{name}: {after}")

    # ---- candidates ----

    def _attempt(self, edit: Edit) -> bool:
        if monotonic() > self._deadline:
            raise _OutOfTime
        graph = self._parsed()
        idle = _idle(graph)
        try:
            edit(graph)
            _tidy(graph, idle)
            text = self._print(graph)
        except GraphError:
            return False
        if hash(text) in self._tried or text == self._text:
            return False
        self._tried.add(hash(text))
        if Counter(item.code for item in verify(graph) if item.severity == "error") - self._allowed:
            return False
        self._write(self._candidate, text)
        self.runs += 1
        if not self._test(self._candidate):
            return False
        self._text = text
        self.best = self._parsed()
        self._write(self.path, text)
        return True

    def _parsed(self) -> Graph:
        return parse(self._text, base=self.path.parent, source=str(self.path))

    def _print(self, graph: Graph) -> str:
        return print_graph(graph, base=self.path.parent)

    def _write(self, path: Path, text: str) -> None:
        try:
            with write_whole(path, durable=False) as part:
                part.write_text(text, encoding="utf-8")
        except OSError as error:
            raise LadingError("U922", f"cannot write: {error.strerror}", str(path)) from None

    # ---- large parts ----

    def _cuts(self) -> Iterator[Edit]:
        """Cut everything before or behind one value, or before the narrowest place."""
        graph = self.best
        total = len(graph.nodes)
        if total < 2:
            return
        order = {node: index for index, node in enumerate(graph.walk())}
        tree = post_dominators(graph)
        cone: Counter[Node] = Counter()
        for node in graph.nodes:
            cone[node] += 1
            above = next((item for item in tree.chain(node) if isinstance(item, Node)), None) if node in tree else None
            if above is not None:
                cone[above] += cone[node]
        before = {node: index + 1 for index, node in enumerate(graph.nodes)}
        for part in PARTS:
            behind = [node for node in graph.nodes if total - before[node] >= part * total]
            if behind:
                yield lambda g, at=order[behind[-1]]: _end_at(g, at)
            fitting = [node for node in graph.nodes if 1 < cone[node] <= part * total]
            if fitting:
                best = max(fitting, key=lambda node: (cone[node], -before[node]))
                yield lambda g, at=order[best]: _begin_at(g, [at])
        kept = {*exits(graph), *entries(graph)}
        cost, cut = minimum_cut(graph, entries(graph), exits(graph), lambda value: inf if value in kept else 1.0)
        if cut and cost < inf:
            yield lambda g: _begin_at(g, [order[value.producer] for value in cut if value.producer is not None])

    def _outputs(self) -> Iterator[Edit]:
        count = len(self.best.outputs)
        for group in halves(range(count)):
            if len(group) < count:
                yield lambda g, gone=set(group): g.set_outputs([v for i, v in enumerate(g.outputs) if i not in gone])
        for name in self.best.tables:
            yield lambda g, name=name: g.set_table(name, None)

    def _components(self) -> Iterator[Edit]:
        order = {node: index for index, node in enumerate(self.best.walk())}
        groups = regions(self.best, lambda node: True)
        if len(groups) > 1:
            for group in sorted(groups, key=len, reverse=True):
                yield lambda g, at=[order[node] for node in group]: _remove(g, at)

    def _nodes(self) -> Iterator[Edit]:
        for group in halves(range(sum(1 for _ in self.best.walk()))):
            yield lambda g, at=group: _remove(g, at)

    def _bypasses(self) -> Iterator[Edit]:
        for place, node in enumerate(self.best.walk()):
            if len(node.outputs) != 1:
                continue
            for index, value in enumerate(node.inputs):
                if value is not None and value.type == node.output.type:
                    yield lambda g, at=place, index=index: _bypass(g, at, index)

    # ---- small parts ----

    def _inputs(self) -> Iterator[Edit]:
        inputs = self.best.inputs
        for index, value in enumerate(inputs):
            if not value.use_count:
                yield lambda g, index=index: g.remove_input(g.inputs[index])
        for index, value in enumerate(inputs):
            for earlier in range(index):
                if inputs[earlier].type == value.type and value.use_count:
                    yield lambda g, i=index, j=earlier: _merge_inputs(g, i, j)

    def _constants(self) -> Iterator[Edit]:
        for name, value in self.best.consts.items():
            if not value.use_count:
                yield lambda g, name=name: g.erase_const(g.consts[name])
            for number in (0, 1):
                yield lambda g, name=name, number=number: fill(g, name, number)

    def _sizes(self) -> Iterator[Edit]:
        for dim in self.best.dims:
            yield lambda g, dim=dim: resize_dim(g, dim, None)
            for size in (1, 2):
                yield lambda g, dim=dim, size=size: resize_dim(g, dim, size)
        for old in sorted(extents(self.best), reverse=True):
            for new in dict.fromkeys((1, 2, 3, old // 4, old // 2)):
                if 0 < new < old:
                    yield lambda g, old=old, new=new: resize(g, old, new)

    def _attributes(self) -> Iterator[Edit]:
        for place, node in enumerate(self.best.walk()):
            for name in node.attrs:
                yield lambda g, at=place, name=name: _drop_attribute(g, at, name)
            for index in range(len(node.inputs)):
                if node.inputs[index] is not None:
                    yield lambda g, at=place, index=index: _drop_input(g, at, index)

    def _annotations(self) -> Iterator[Edit]:
        yield _drop_annotations
        for name in self.best.facts:
            yield lambda g, name=name: g.set_fact(name, None)
        for name in self.best.functions:
            yield lambda g, name=name: g.functions.pop(name)
        for key in self.best.metadata:
            yield lambda g, key=key: g.metadata.pop(key)
        for name in [name for name in self.best.opsets if name]:
            yield lambda g, name=name: g.opsets.pop(name)


def halves(items: Sequence[int]) -> Iterator[list[int]]:
    """The whole of a sequence, its halves, its quarters and so on down to single items, the last ones first."""
    size = len(items)
    while size:
        for stop in range(len(items), 0, -size):
            yield list(items[max(0, stop - size) : stop])
        size //= 2


def size_of(graph: Graph) -> str:
    """The size of a graph for people."""
    nodes = sum(1 for _ in graph.walk())
    total = sum(value.type.size or 0 for value in graph.consts.values())  # type: ignore[union-attr]
    counts = {"node": nodes, "input": len(graph.inputs), "output": len(graph.outputs), "constant": len(graph.consts)}
    text = ", ".join(f"{count} {what}{'' if count == 1 else 's'}" for what, count in counts.items())
    return f"{text} ({total} elements)" if total else text


# ---- edits ----


def _at(graph: Graph, places: Iterable[int]) -> list[Node]:
    found = list(graph.walk())
    return [found[place] for place in places]


def _end_at(graph: Graph, place: int) -> None:
    """Make the results of a node the outputs, which leaves everything behind it unread."""
    (node,) = _at(graph, [place])
    for name in list(graph.tables):
        graph.set_table(name, None)
    graph.set_outputs(node.outputs)
    _sweep(graph)


def _begin_at(graph: Graph, places: Iterable[int]) -> None:
    """Make the results of nodes inputs, which leaves everything that only led to them unread."""
    for node in _at(graph, places):
        _to_inputs(graph, node)
    _sweep(graph)


def _sweep(graph: Graph) -> None:
    needed = reachable(graph, exits(graph), backward=True)
    for node in reversed(list(graph.nodes)):
        if node not in needed and not any(value.use_count for value in node.outputs):
            graph.erase(node)


def _remove(graph: Graph, places: Iterable[int]) -> None:
    """Remove nodes; what others read of them becomes inputs. Outputs that they made go while others are left."""
    nodes = _at(graph, places)
    gone = {value for node in nodes for value in node.outputs}
    for holder in {node.graph for node in nodes}:
        kept = [value for value in holder.outputs if value not in gone]  # type: ignore[union-attr]
        if kept and holder is graph:
            holder.set_outputs(kept)
    for name, value in list(graph.tables.items()):
        if value in gone:
            graph.set_table(name, None)
    for node in reversed(nodes):
        # A node inside a removed one is gone with it.
        if node.graph is not None and _is_inside(node.graph, graph):
            _to_inputs(graph, node)
            node.graph.erase(node)


def _is_inside(graph: Graph, root: Graph) -> bool:
    while graph.owner is not None:
        if graph.owner.graph is None:
            return False
        graph = graph.owner.graph
    return graph is root


def _to_inputs(root: Graph, node: Node) -> None:
    for value in node.outputs:
        if value.use_count:
            name = value.name
            graph = value.graph
            graph.rename(value, graph.fresh_name(f"{name}.old"))
            graph.replace(value, root.add_input(root.fresh_name(name), value.type))


def _bypass(graph: Graph, place: int, index: int) -> None:
    (node,) = _at(graph, [place])
    operand = node.inputs[index]
    assert operand is not None
    node.graph.replace(node.output, operand)  # type: ignore[union-attr]
    node.graph.erase(node)  # type: ignore[union-attr]


def _merge_inputs(graph: Graph, index: int, earlier: int) -> None:
    value = graph.inputs[index]
    graph.replace(value, graph.inputs[earlier])
    graph.remove_input(value)


def _drop_attribute(graph: Graph, place: int, name: str) -> None:
    (node,) = _at(graph, [place])
    node.graph.set_attrs(node, **{name: None})  # type: ignore[union-attr]


def _drop_input(graph: Graph, place: int, index: int) -> None:
    (node,) = _at(graph, [place])
    kept: list[Value | None] = [None if at == index else value for at, value in enumerate(node.inputs)]
    while kept and kept[-1] is None:
        kept.pop()
    node.graph.set_inputs(node, kept)  # type: ignore[union-attr]


def _drop_annotations(graph: Graph) -> None:
    graph.metadata.clear()
    graph.functions.clear()
    graph.facts.clear()
    for node in graph.walk():
        node.graph.set_name(node, "")  # type: ignore[union-attr]
        node.metadata.clear()
        for item in (node, *node.outputs):
            graph.set_loc(item, "")
    for value in (*graph.inputs, *graph.consts.values()):
        graph.set_loc(value, "")


def _idle(graph: Graph) -> set[str]:
    """Names of inputs and constants that nothing reads."""
    return {value.name for value in (*graph.inputs, *graph.consts.values()) if not value.use_count}


def _tidy(graph: Graph, idle: set[str]) -> None:
    """Drop inputs and constants that nothing reads any more, and dimensions that no type mentions."""
    for value in list(graph.consts.values()):
        if not value.use_count and value.name not in idle:
            graph.erase_const(value)
    for value in graph.inputs:
        if not value.use_count and value.name not in idle:
            graph.remove_input(value)
    used = dims(graph)
    graph.dims = {name: dim for name, dim in graph.dims.items() if name in used}


__all__ = ["Reducer", "halves", "size_of"]
