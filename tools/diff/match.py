"""Structural difference of two graphs: which node of one is which of the other, and what differs between partners.

Partners are found from the surest sign to the weakest: the same expression over the same inputs and constants, the same
name and operator, the same place beside partners already found, and at last the same name with another operator.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ir.base.types import Dim
from ir.graph.compare import Keys, attr_key, differences, same_contents, tensor_key
from ir.graph.facts import data_of
from ir.graph.graph import Graph, Node, Value
from ir.tensor.base import Tensor
from ir.text.printer import node_text, type_text, value_text

ELEMENT_LIMIT = 1 << 26
"""Constants of at most this many elements are compared element by element."""


@dataclass(frozen=True)
class Change:
    """One difference.

    Attributes:
        kind: ``added`` (only in the second graph), ``removed`` (only in the first) or ``changed``.
        what: ``node``, ``input``, ``output``, ``constant``, ``dimension``, ``table``, ``fact``, ``opset``,
            ``metadata``, ``function`` or ``name``.
        text: the thing itself, in the first graph where it is there.
        details: for ``changed``: field, before, after.
        place: the subgraph or function concerned; empty for the outermost graph.
    """

    kind: str
    what: str
    text: str
    details: tuple[tuple[str, str, str], ...] = ()
    place: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        details = [{"field": name, "before": before, "after": after} for name, before, after in self.details]
        return {"kind": self.kind, "what": self.what, "text": self.text, "details": details, "place": self.place}


@dataclass
class Difference:
    """What `Differ.run` found.

    Attributes:
        changes: in order of kind of thing, then of the graphs.
        nodes: number of nodes of each outermost graph.
        matched: number of nodes with a partner.
        moved: nodes that stand elsewhere in the program order, which is not a change.
    """

    changes: list[Change] = field(default_factory=list)
    nodes: tuple[int, int] = (0, 0)
    matched: int = 0
    moved: int = 0

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of changes by thing and kind."""
        found: dict[str, dict[str, int]] = {}
        for change in self.changes:
            kinds = found.setdefault(change.what, {})
            kinds[change.kind] = kinds.get(change.kind, 0) + 1
        return found

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "same": not self.changes,
            "nodes": list(self.nodes),
            "matched": self.matched,
            "moved": self.moved,
            "counts": self.counts(),
            "changes": [change.as_dict() for change in self.changes],
        }


class Matching:
    """Partners between two graphs of one level; values captured from around them come with `forth`."""

    def __init__(self, a: Graph, b: Graph, forth: Mapping[Value, Value] | None = None) -> None:
        self.a, self.b = a, b
        self.nodes: dict[Node, Node] = {}
        self.back: dict[Node, Node] = {}
        self.forth: dict[Value, Value] = dict(forth or {})
        self._taken: set[Value] = set(self.forth.values())
        self._interface(a.inputs, b.inputs)
        for name, one in a.consts.items():
            if name in b.consts and one.type == b.consts[name].type:
                self._pair(one, b.consts[name])
        self._by_expression()
        self._by_name(lambda one, two: one.op == two.op)
        self._spread(list(self.nodes.items()))
        self._by_output()
        self._by_name(lambda one, two: True)
        self._rest_of_constants()

    # ---- steps ----

    def _interface(self, ones: tuple[Value, ...], twos: tuple[Value, ...]) -> None:
        names = {value.name: value for value in twos}
        for one in ones:
            if one.name in names:
                self._pair(one, names[one.name])
        left = [value for value in twos if value not in self._taken]
        for one, two in zip([value for value in ones if value not in self.forth], left, strict=False):
            if one.type == two.type or len(ones) == len(twos):
                self._pair(one, two)

    def _by_expression(self) -> None:
        """Nodes that compute the same from the same inputs and constants; of several, those of one name first."""
        keys = Keys(self._leaf)
        named: dict[Hashable, Node] = {}
        groups: dict[int, list[Node]] = {}
        for number, node in zip(keys.add(self.b.nodes), self.b.nodes, strict=True):
            named[number, _name(node)] = node
            groups.setdefault(number, []).append(node)
        found = list(zip(self.a.nodes, keys.add(self.a.nodes), strict=True))
        for node, number in found:
            two = named.get((number, _name(node)))
            if two is not None:
                self._match(node, two)
        rest = {number: iter(group) for number, group in groups.items()}
        for node, number in found:
            if node not in self.nodes:
                two = next((other for other in rest.get(number, ()) if other not in self.back), None)
                if two is not None:
                    self._match(node, two)

    def _leaf(self, value: Value) -> Hashable | None:
        if value.const is not None:
            return ("const", tensor_key(value.const))
        if value in self.forth:
            return ("value", id(self.forth[value]))
        if value.producer is None or value.graph not in (self.a, self.b):
            return ("value", id(value))
        return None

    def _by_name(self, accept: Callable[[Node, Node], bool]) -> None:
        names = {_name(node): node for node in self.b.nodes if node not in self.back}
        for node in self.a.nodes:
            two = names.get(_name(node))
            if node not in self.nodes and two is not None and two not in self.back and accept(node, two):
                self._match(node, two)

    def _spread(self, waiting: list[tuple[Node, Node]]) -> None:
        """From partners to the nodes before and after them, where operator and place agree."""
        while waiting:
            one, two = waiting.pop()
            fresh: list[tuple[Node, Node]] = []
            for x, y in zip(one.inputs, two.inputs, strict=False):
                if x is not None and y is not None and x.index == y.index:
                    fresh.append((x.producer, y.producer))  # type: ignore[arg-type]
            for x, y in zip(one.outputs, two.outputs, strict=False):
                fresh += self._readers(x, y)
            for x, y in fresh:
                if self._may_match(x, y):
                    self._match(x, y)
                    waiting.append((x, y))

    def _readers(self, one: Value, two: Value) -> Iterator[tuple[Node, Node]]:
        left = [(node, index) for node, index in two.uses if node not in self.back]
        for node, index in one.uses:
            if node in self.nodes:
                continue
            other = next((n for n, i in left if i == index and n.op == node.op and n not in self.back), None)
            if other is not None and self._may_match(node, other):
                yield node, other

    def _may_match(self, one: Node | None, two: Node | None) -> bool:
        if one is None or two is None or one in self.nodes or two in self.back:
            return False
        return one.op == two.op and one.graph is self.a and two.graph is self.b

    def _by_output(self) -> None:
        fresh = []
        for x, y in zip(self.a.outputs, self.b.outputs, strict=False):
            if x.index == y.index and self._may_match(x.producer, y.producer):
                self._match(x.producer, y.producer)  # type: ignore[arg-type]
                fresh.append((x.producer, y.producer))
        self._spread(fresh)  # type: ignore[arg-type]

    def _rest_of_constants(self) -> None:
        for one, two in self.nodes.items():
            for x, y in zip(one.inputs, two.inputs, strict=False):
                if x is not None and y is not None and x.const is not None and y.const is not None:
                    self._pair(x, y)
        for name, one in self.a.consts.items():
            if name in self.b.consts:
                self._pair(one, self.b.consts[name])

    # ---- pairing ----

    def _match(self, one: Node, two: Node) -> None:
        self.nodes[one] = two
        self.back[two] = one
        for x, y in zip(one.outputs, two.outputs, strict=False):
            self._pair(x, y)

    def _pair(self, one: Value, two: Value) -> None:
        if one not in self.forth and two not in self._taken:
            self.forth[one] = two
            self._taken.add(two)

    def has_partner(self, value: Value) -> bool:
        """True when a value of the second graph stands for one of the first."""
        return value in self._taken

    def moved(self) -> int:
        """Nodes to move so that partners are in the same order: all but a longest increasing subsequence."""
        place = {node: index for index, node in enumerate(self.b.nodes)}
        tails: list[int] = []
        for node in self.a.nodes:
            if node in self.nodes:
                at = place[self.nodes[node]]
                spot = bisect_left(tails, at)
                tails[spot : spot + 1] = [at]
        return len(self.nodes) - len(tails)


class Differ:
    """Compares graphs.

    Args:
        names: other names of values, nodes and graphs are differences.
        types: other types of values are differences.
        locs: other source locations are differences.
    """

    def __init__(self, *, names: bool = True, types: bool = True, locs: bool = False) -> None:
        self.names, self.types, self.locs = names, types, locs
        self._found: list[Change] = []

    def run(self, a: Graph, b: Graph) -> Difference:
        """Compare two root graphs."""
        self._found = []
        matching = self._graphs(a, b, "", None)
        result = Difference(self._found, (len(a.nodes), len(b.nodes)), len(matching.nodes), matching.moved())
        self._table("opset", "", a.opsets, b.opsets, str)
        for name in sorted({*a.functions, *b.functions}):
            one, two = a.functions.get(name), b.functions.get(name)
            if one is None or two is None:
                self._found.append(Change("removed" if two is None else "added", "function", name))
            else:
                self._graphs(one, two, f"function {name}", None)
        return result

    # ---- graphs ----

    def _graphs(self, a: Graph, b: Graph, place: str, forth: Mapping[Value, Value] | None) -> Matching:
        matching = Matching(a, b, forth)
        if self.names and a.name != b.name:
            self._add("changed", "name", "of the graph", place, [("name", a.name, b.name)])
        self._table("metadata", place, a.metadata, b.metadata, repr)
        self._table("dimension", place, a.dims, b.dims, _range)
        self._interface(matching, place)
        self._constants(matching, place)
        self._nodes(matching, place)
        self._exits(matching, place)
        self._table("fact", place, a.facts, b.facts, lambda fact: repr(data_of(fact)))
        return matching

    def _add(self, kind: str, what: str, text: str, place: str, details: Iterable[tuple[str, str, str]] = ()) -> None:
        self._found.append(Change(kind, what, text, tuple(details), place))

    def _table(self, what: str, place: str, a: Mapping, b: Mapping, show: Callable[[Any], str]) -> None:
        for key in sorted({*a, *b}):
            name = repr(key) if not key else str(key)
            if key not in a or key not in b:
                kind, item = ("added", b[key]) if key in b else ("removed", a[key])
                self._add(kind, what, f"{name} = {_short(show(item))}", place)
            elif show(a[key]) != show(b[key]):
                self._add("changed", what, name, place, [("value", *_apart(show(a[key]), show(b[key])))])

    def _interface(self, matching: Matching, place: str) -> None:
        for one in matching.a.inputs:
            two = matching.forth.get(one)
            if two is None:
                self._add("removed", "input", _typed(one), place)
            else:
                details = list(self._value(one, two))
                if details:
                    self._add("changed", "input", _typed(one), place, details)
        for two in matching.b.inputs:
            if not matching.has_partner(two):
                self._add("added", "input", _typed(two), place)
        order = [matching.b.inputs.index(matching.forth[v]) for v in matching.a.inputs if v in matching.forth]
        if order != sorted(order):
            names = (", ".join(value.name for value in graph.inputs) for graph in (matching.a, matching.b))
            self._add("changed", "input", "order", place, [("order", *names)])

    def _value(self, one: Value, two: Value, prefix: str = "") -> Iterator[tuple[str, str, str]]:
        if self.names and one.name != two.name:
            yield f"{prefix}name", value_text(one), value_text(two)
        if self.types and one.type != two.type:
            yield f"{prefix}type", _type(one), _type(two)
        if self.locs and one.loc != two.loc:
            yield f"{prefix}location", one.loc or "none", two.loc or "none"

    def _exits(self, matching: Matching, place: str) -> None:
        for what, left, right in (
            ("output", dict(enumerate(matching.a.outputs)), dict(enumerate(matching.b.outputs))),
            ("table", matching.a.tables, matching.b.tables),
        ):
            for key in sorted({*left, *right}):
                if key not in left or key not in right:
                    kind, item = ("added", right[key]) if key in right else ("removed", left[key])
                    self._add(kind, what, f"{key}: {value_text(item)}", place)
                elif matching.forth.get(left[key]) is not right[key]:
                    details = [("value", *_apart(value_text(left[key]), value_text(right[key])))]
                    self._add("changed", what, str(key), place, details)

    # ---- constants ----

    def _constants(self, matching: Matching, place: str) -> None:
        for one in matching.a.consts.values():
            two = matching.forth.get(one)
            if two is None:
                self._add("removed", "constant", _constant(one), place)
                continue
            details = list(self._value(one, two))
            if not same_contents(one.const, two.const):
                change = _contents(one.const, two.const)
                details += [change] if change is not None else []
            if details:
                self._add("changed", "constant", _typed(one), place, details)
        for two in matching.b.consts.values():
            if not matching.has_partner(two):
                self._add("added", "constant", _constant(two), place)

    # ---- nodes ----

    def _nodes(self, matching: Matching, place: str) -> None:
        changed: dict[Node, list[tuple[str, str, str]]] = {}
        for one, two in matching.nodes.items():
            details = list(self._node(matching, one, two, place))
            if details:
                changed[one] = details
        for one in matching.a.nodes:
            if one in changed:
                self._add("changed", "node", _line(one), place, changed[one])
            elif one not in matching.nodes:
                self._add("removed", "node", _line(one), place)
        for two in matching.b.nodes:
            if two not in matching.back:
                self._add("added", "node", _line(two), place)

    def _node(self, matching: Matching, one: Node, two: Node, place: str) -> Iterator[tuple[str, str, str]]:
        if (one.op, one.overload) != (two.op, two.overload):
            yield "operator", *_apart(one.op + one.overload, two.op + two.overload)
        for index in range(max(len(one.inputs), len(two.inputs))):
            x, y = one.input(index), two.input(index)
            if not _stands_for(matching, x, y):
                yield f"input {index}", *_apart(value_text(x), value_text(y))
        for index in range(max(len(one.outputs), len(two.outputs))):
            if index >= len(one.outputs) or index >= len(two.outputs):
                yield (
                    f"output {index}",
                    *(value_text(n.outputs[index]) if index < len(n.outputs) else "none" for n in (one, two)),
                )
            else:
                yield from self._value(one.outputs[index], two.outputs[index], f"output {index} " if index else "")
        for name in sorted({*one.attrs, *two.attrs}):
            yield from self._attribute(matching, one, two, name, place)
        if self.names and one.name != two.name:
            yield "node name", one.name or "none", two.name or "none"
        if one.metadata != two.metadata:
            yield "metadata", repr(one.metadata), repr(two.metadata)

    def _attribute(self, matching: Matching, one: Node, two: Node, name: str, place: str):
        x, y = one.attrs.get(name), two.attrs.get(name)
        if isinstance(x, Graph) and isinstance(y, Graph):
            holder = value_text(one.output) if one.outputs else one.op
            inner = f"{place}, {name} of {holder}" if place else f"{name} of {holder}"
            self._graphs(x, y, inner, matching.forth)
        elif isinstance(x, Tensor) and isinstance(y, Tensor):
            if x.type != y.type or not same_contents(x, y):
                yield name, *_apart(summary(x), summary(y))
        elif not _same_attribute(x, y):
            yield name, *(_short("none" if item is None else _attr_text(item)) for item in (x, y))


def _same_attribute(x: Any, y: Any) -> bool:
    if x is None or y is None:
        return x is y
    if attr_key(x) != attr_key(y):
        return False
    held = [item for item in (x if isinstance(x, tuple) else ()) if isinstance(item, Graph)]
    return not held or not any(differences(one, two, limit=1) for one, two in zip(x, y, strict=True))


def _stands_for(matching: Matching, x: Value | None, y: Value | None) -> bool:
    if x is None or y is None:
        return x is y
    if matching.forth.get(x) is y:
        return True
    # Constants may be shared differently: what counts is that the contents are the same.
    both = x.const is not None and y.const is not None and x.type == y.type
    return both and same_contents(x.const, y.const)  # type: ignore[arg-type]


# ---- texts ----


def summary(tensor: Tensor) -> str:
    """Element type, shape and a few numbers of a tensor, for people."""
    return f"{tensor.type} {_numbers(tensor)}".rstrip()


def _constant(value: Value) -> str:
    return f"{_typed(value)} {_numbers(value.const)}".rstrip()  # type: ignore[arg-type]


def _numbers(tensor: Tensor) -> str:
    size = tensor.type.size or 0
    if size == 0 or size > ELEMENT_LIMIT or tensor.type.dtype.kind not in "fiub":
        return ""
    if size <= 8:
        return f"[{', '.join(f'{item:g}' for item in np.asarray(tensor.load(), np.float64).reshape(-1))}]"
    low, high, total = np.inf, -np.inf, 0.0
    for _, _, rows in tensor.pieces():
        part = np.asarray(rows, np.float64)
        low, high, total = min(low, part.min()), max(high, part.max()), total + part.sum()
    return f"from {low:g} to {high:g}, mean {total / size:g}"


def _contents(one: Tensor, two: Tensor) -> tuple[str, str, str] | None:
    """How the elements differ; None when they do not, although they come about in different ways."""
    comparable = one.type == two.type and one.type.dtype.kind in "fiub" and 0 < (one.type.size or 0) <= ELEMENT_LIMIT
    if not comparable:
        return ("contents", *_apart(summary(one), summary(two)))
    count, worst, where = 0, -1.0, (0, 0.0, 0.0)
    start = 0
    for low, high, rows in one.pieces():
        x = np.asarray(rows, np.float64).reshape(-1)
        y = np.asarray(two.rows(low, high), np.float64).reshape(-1)
        apart = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0.0, np.nan_to_num(np.abs(x - y), nan=np.inf))
        count += int(np.count_nonzero(apart))
        at = int(apart.argmax())
        if apart[at] > worst:
            worst, where = float(apart[at]), (start + at, float(x[at]), float(y[at]))
        start += x.size
    if not count:
        return None
    spot = ", ".join(str(int(index)) for index in np.unravel_index(where[0], one.type.shape))  # type: ignore[arg-type]
    text = f"{count} of {one.type.size} elements differ, most at [{spot}]"
    return (text, f"{where[1]:g}", f"{where[2]:g}")


def _apart(one: str, two: str) -> tuple[str, str]:
    """Two texts that differ, shortened so that the difference still shows."""
    if one == two:
        return one, f"{two} (another one)"
    same = next((i for i, (x, y) in enumerate(zip(one, two, strict=False)) if x != y), min(len(one), len(two)))
    skip = max(0, same - 30) if max(len(one), len(two)) > 120 else 0
    return tuple(("..." if skip else "") + _short(text[skip:]) for text in (one, two))  # type: ignore[return-value]


def _short(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _line(node: Node) -> str:
    return _short(node_text(node), 160)


def _typed(value: Value) -> str:
    return f"{value_text(value)}: {_type(value)}"


def _type(value: Value) -> str:
    return "unknown" if value.type is None else type_text(value.type)


def _attr_text(value: Any) -> str:
    return repr(list(value)) if isinstance(value, tuple) else repr(value)


def _range(dim: Dim) -> str:
    step = f" step {dim.multiple_of}" if dim.multiple_of != 1 else ""
    return f"{dim.low}..{'' if dim.high is None else dim.high}{step}"


def _name(node: Node) -> tuple[str, ...]:
    return tuple(value.name for value in node.outputs)


__all__ = ["Change", "Differ", "Difference", "Matching", "summary"]
