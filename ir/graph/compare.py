"""Structural comparison of two graphs, apart from ``==``, which is identity.

Also structural keys: hash-consed numbers under which nodes that compute the same thing in the same way meet.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from itertools import islice, zip_longest
from typing import Any

import numpy as np

from ir.base.types import Dim
from ir.graph.facts import data_of
from ir.graph.graph import EmptyList, Graph, Node, Value
from ir.tensor.base import Tensor, same_tensor
from ir.tensor.files import FileTensor
from ir.tensor.inline import InlineTensor

SMALL_TENSOR_BYTES = 4096
"""Tensors in attributes up to this size take part in structural keys by their bytes, larger ones by type alone."""


def equal(a: Graph, b: Graph, *, names: bool = True, ordered: bool = True, locs: bool = False) -> bool:
    """True when `differences` finds none."""
    return not differences(a, b, limit=1, names=names, ordered=ordered, locs=locs)


def differences(
    a: Graph, b: Graph, *, limit: int = 20, names: bool = True, ordered: bool = True, locs: bool = False
) -> list[str]:
    """What makes two graphs differ, one sentence each, at most `limit` of them; empty when they are equal.

    Types, attributes (floats bit for bit), constants' contents, dimensions with their ranges, tables, facts, functions,
    metadata and opsets are compared. The order of constants, dimensions and tables is not.

    Args:
        a, b: the graphs.
        limit: how many differences to collect.
        names: names of values, nodes and graphs must be the same; without it, inputs and outputs correspond by position
            and constants by where they are read.
        ordered: nodes correspond by program order. Otherwise by dataflow from outputs and tables upwards, so that two
            legal orders of one graph are equal; nodes whose results nothing reads are then matched among themselves.
        locs: source locations must be the same.
    """
    return list(islice(_Comparison(names, ordered, locs).roots(a, b), limit))


def attr_key(value: Any) -> Hashable:
    """A hashable form of an attribute value: equal for attributes that `differences` finds equal.

    Different graphs may share a key, and so may different tensors above `SMALL_TENSOR_BYTES`.
    """
    if isinstance(value, float | np.floating):
        return ("float", struct.pack("<d", value))
    if isinstance(value, int | np.integer):
        return ("int", int(value))
    if isinstance(value, EmptyList):
        return ("empty", value.kind)
    if isinstance(value, tuple):
        return (type(value).__name__, *map(attr_key, value))
    if isinstance(value, Graph):
        return ("graph", len(value.nodes), len(value.inputs), len(value.outputs))
    if isinstance(value, Tensor):
        return ("tensor", tensor_key(value))
    return (type(value).__name__, value)


def tensor_key(tensor: Tensor) -> Hashable:
    """Type of a tensor, with its bytes when it is small."""
    nbytes = tensor.type.nbytes
    if nbytes is None or nbytes > SMALL_TENSOR_BYTES or tensor.type.dtype.bits == 0:
        return (str(tensor.type),)
    return (str(tensor.type), tensor.load().tobytes())


def same_contents(a: Tensor, b: Tensor) -> bool:
    """`same_tensor`, or one tensor is inline and the other holds the same bytes in a file."""
    if same_tensor(a, b):
        return True
    kinds = {type(a), type(b)}
    return kinds == {InlineTensor, FileTensor} and a.type == b.type and a.digest() == b.digest()


class Keys:
    """Structural keys of nodes, hash-consed: equal numbers mean equal expressions over equal leaves.

    Args:
        leaf: the key of a value at which an expression begins; None for a value computed by a node already keyed.
    """

    def __init__(self, leaf: Callable[[Value], Hashable | None]) -> None:
        self._leaf = leaf
        self._numbers: dict[Hashable, int] = {}
        self._of: dict[Node | None, int] = {}
        self._inner: dict[Value, Hashable] = {}

    def add(self, nodes: Iterable[Node]) -> list[int]:
        """Key some nodes, producers first; returns their numbers."""
        return [self._add(node) for node in nodes]

    def _add(self, node: Node) -> int:
        attrs = tuple([(name, self._attr(value)) for name, value in sorted(node._attrs.items())])
        operands = tuple([self.value(value) for value in node.inputs])
        key = (node.op, node.overload, len(node.outputs), attrs, operands)
        self._of[node] = number = self._numbers.setdefault(key, len(self._numbers))
        return number

    def _attr(self, value: Any) -> Hashable:
        if isinstance(value, Graph):
            return self._body(value)
        if isinstance(value, tuple) and any(isinstance(item, Graph) for item in value):
            return tuple(self._attr(item) for item in value)
        return attr_key(value)

    def _body(self, graph: Graph) -> Hashable:
        """A subgraph: what its outputs compute and which nodes it has, in any order."""
        self._inner.update((value, ("input", index)) for index, value in enumerate(graph.inputs))
        numbers = []
        for node in graph.nodes:
            numbers.append(self._add(node))
            self._inner.update((value, (self._of[node], value.index)) for value in node.outputs)
        return ("graph", tuple(self.value(value) for value in graph.outputs), tuple(sorted(numbers)))

    def value(self, value: Value | None) -> Hashable:
        """Key of an operand."""
        if value is None:
            return None
        found = self._inner.get(value)
        if found is None:
            found = self._leaf(value)
        return (self._of[value.producer], value.index) if found is None else found


Place = tuple[Any, ...]
"""Where a comparison is: texts and nodes that are only put together when there is a difference to report."""


class _Comparison:
    """One run of `differences`: which value of the second graph stands for which of the first."""

    def __init__(self, names: bool, ordered: bool, locs: bool) -> None:
        self.names = names
        self.ordered = ordered
        self.locs = locs
        self.forth: dict[Value, Value] = {}
        self.back: dict[Value, Value] = {}
        self.matched: dict[Node, Node] = {}
        self.unread: set[Node] = set()

    # ---- graphs ----

    def roots(self, a: Graph, b: Graph) -> Iterator[str]:
        yield from _same((), "opsets", a.opsets, b.opsets)
        yield from self._graphs(a, b, ())
        for name in sorted({*a.functions, *b.functions}):
            one, two = a.functions.get(name), b.functions.get(name)
            if one is None or two is None:
                yield f"function {name!r} exists in only one graph"
                continue
            inner = _Comparison(self.names, self.ordered, self.locs)
            yield from (f"function {name!r}: {text}" for text in inner.roots(one, two))

    def _graphs(self, a: Graph, b: Graph, place: Place) -> Iterator[str]:
        yield from self._header(a, b, place)
        yield from _same(place, "number of inputs", len(a.inputs), len(b.inputs))
        for index, (one, two) in enumerate(zip(a.inputs, b.inputs, strict=False)):
            yield from self._values(one, two, (*place, "input ", index, " "))
        if self.names:
            yield from self._named_consts(a, b, place)
        if self.ordered:
            yield from self._in_order(a, b, place)
        yield from self._exits(a, b, place)
        if not self.ordered:
            yield from self._dead(a, b, place)
        if not self.names:
            yield from self._other_consts(a, b, place)

    def _header(self, a: Graph, b: Graph, place: Place) -> Iterator[str]:
        if self.names:
            yield from _same(place, "graph name", a.name, b.name)
        yield from _same(place, "metadata", _plain(a.metadata), _plain(b.metadata))
        for name in sorted({*a.dims, *b.dims}):
            yield from _same(place, f"dimension {name!r}", _range(a.dims.get(name)), _range(b.dims.get(name)))
        for name in sorted({*a.facts, *b.facts}):
            one, two = a.facts.get(name), b.facts.get(name)
            if one is None or two is None:
                yield _say(place, f"fact {name!r} exists in only one graph")
            else:
                yield from _same(place, f"fact {name!r}", _plain(data_of(one)), _plain(data_of(two)))

    def _exits(self, a: Graph, b: Graph, place: Place) -> Iterator[str]:
        yield from _same(place, "number of outputs", len(a.outputs), len(b.outputs))
        for index, (one, two) in enumerate(zip(a.outputs, b.outputs, strict=False)):
            yield from self._reads(one, two, (*place, "output ", index, " "))
        for name in sorted({*a.tables, *b.tables}):
            if name not in a.tables or name not in b.tables:
                yield _say(place, f"table {name!r} exists in only one graph")
            else:
                yield from self._reads(a.tables[name], b.tables[name], (*place, "table ", name, " "))

    def _in_order(self, a: Graph, b: Graph, place: Place) -> Iterator[str]:
        for index, (one, two) in enumerate(zip_longest(a.nodes, b.nodes)):
            if one is None or two is None:
                counts = f"number of nodes {len(a.nodes)}, {len(b.nodes)} in the other"
                yield _say(place, counts, "; without partner: ", one or two)
                return
            here = (*place, "node ", index, " ", one, ": ")
            yield from self._nodes(one, two, here)
            for position, (x, y) in enumerate(zip(one.inputs, two.inputs, strict=False)):
                yield from self._reads(x, y, (*here, "input ", position, " "))

    def _dead(self, a: Graph, b: Graph, place: Place) -> Iterator[str]:
        """Match the nodes that lead to no output or table, beginning with those that nothing reads."""
        left = [node for node in a.nodes if node not in self.matched]
        taken = set(self.matched.values())
        right = [node for node in b.nodes if node not in taken]
        yield from _same(place, "number of unread nodes", len(left), len(right))
        keys = Keys(self._leaf)
        self.unread = {*left, *right}
        groups: dict[int, list[Node]] = {}
        for number, node in zip(keys.add(right), right, strict=True):
            if _is_last(node):
                groups.setdefault(number, []).append(node)
        for number, one in zip(keys.add(left), left, strict=True):
            if not _is_last(one):
                continue
            group = groups.get(number, [])
            if not group:
                yield _say(place, "unread ", one, " has no partner")
                continue
            two = next((node for node in group if self.names and _name(node) == _name(one)), group[0])
            group.remove(two)
            yield from self._pull([(one, two)], place)

    def _leaf(self, value: Value) -> Hashable | None:
        # Values of the first graph are written as their partners in the second, so that one table serves both.
        partner = self.forth.get(value, value)
        if partner.const is not None:
            return ("const", tensor_key(partner.const))
        if value in self.forth or value in self.back or value.producer is None:
            return ("value", id(partner))
        # A value around a subgraph may not have a partner yet.
        return None if value.producer in self.unread else ("outer", str(value.type))

    # ---- values ----

    def _values(self, one: Value, two: Value, place: Place) -> Iterator[str]:
        """Compare two definitions and make them partners."""
        self.forth[one] = two
        self.back[two] = one
        if self.names and one.name != two.name:
            yield from _same(place, "name", one.name, two.name)
        if one.type is not two.type and one.type != two.type:
            yield _say(place, f"%{one.name}: type {one.type}, {two.type} in the other")
        if self.locs:
            yield from _same(place, f"%{one.name}: location", one.loc, two.loc)
        if one.const is not None and two.const is not None and not same_contents(one.const, two.const):
            yield _say(place, f"@{one.name}: the contents differ")

    def _named_consts(self, a: Graph, b: Graph, place: Place) -> Iterator[str]:
        for name, one in a.consts.items():
            if name in b.consts:
                yield from self._values(one, b.consts[name], (*place, "constant "))
            else:
                yield _say(place, f"constant @{name} is missing in the other")
        yield from (_say(place, f"constant @{n} is only in the other") for n in b.consts if n not in a.consts)

    def _other_consts(self, a: Graph, b: Graph, place: Place) -> Iterator[str]:
        rest = [value for value in b.consts.values() if value not in self.back]
        for one in a.consts.values():
            if one in self.forth:
                continue
            two = next((v for v in rest if v.type == one.type and same_contents(one.tensor, v.tensor)), None)
            if two is None:
                yield _say(place, f"unread constant @{one.name} has no partner")
                return
            rest.remove(two)
        if rest:
            yield _say(place, f"{len(rest)} unread constants only in the other, such as @{rest[0].name}")

    def _reads(self, one: Value | None, two: Value | None, place: Place) -> Iterator[str]:
        """Compare two references; partners are made for what has none yet, where the options allow it."""
        if one is None or two is None:
            if one is not two:
                yield _say(place, "is left out in only one graph")
        elif one in self.forth or two in self.back:
            partner = self.forth.get(one)
            if partner is not two:
                yield _say(place, f"reads {one!r}, {two!r} in the other", f", not {partner!r}" if partner else "")
        elif one.is_const and two.is_const and not self.names:
            yield from self._values(one, two, place)
        elif not self.ordered and one.producer is not None and two.producer is not None and one.index == two.index:
            yield from self._pull([(one.producer, two.producer)], place)
        else:
            yield _say(place, f"reads {one!r}, {two!r} in the other")

    # ---- nodes ----

    def _nodes(self, one: Node, two: Node, place: Place) -> Iterator[str]:
        """Compare two nodes without their operands and make their outputs partners."""
        self.matched[one] = two
        for x, y in zip(one.outputs, two.outputs, strict=False):
            yield from self._values(x, y, place)
        if one.op != two.op or one.overload != two.overload:
            yield from _same(place, "operator", (one.op, one.overload), (two.op, two.overload))
        if one.metadata or two.metadata:
            yield from _same(place, "metadata", _plain(one.metadata), _plain(two.metadata))
        yield from _same(place, "number of inputs", len(one.inputs), len(two.inputs))
        yield from _same(place, "number of outputs", len(one.outputs), len(two.outputs))
        if self.names:
            yield from _same(place, "node name", one.name, two.name)
        if self.locs:
            yield from _same(place, "location", one.loc, two.loc)
        if one._attrs or two._attrs:
            yield from self._attributes(one, two, place)

    def _attributes(self, one: Node, two: Node, place: Place) -> Iterator[str]:
        for name in sorted({*one.attrs, *two.attrs}):
            if name not in one.attrs or name not in two.attrs:
                yield _say(place, f"attribute {name} exists in only one graph")
            else:
                yield from self._attrs(one.attrs[name], two.attrs[name], (*place, "attribute ", name, " "))

    def _attrs(self, one: Any, two: Any, place: Place) -> Iterator[str]:
        if isinstance(one, Graph) and isinstance(two, Graph):
            yield from self._graphs(one, two, place)
        elif isinstance(one, Tensor) and isinstance(two, Tensor):
            if one.type != two.type or not same_contents(one, two):
                yield _say(place, f"is {one!r}, {two!r} in the other")
        elif isinstance(one, tuple) and isinstance(two, tuple) and one and len(one) == len(two):
            for index, (x, y) in enumerate(zip(one, two, strict=True)):
                yield from self._attrs(x, y, (*place, "[", index, "] "))
        elif attr_key(one) != attr_key(two):
            yield _say(place, f"is {_short(one)}, {_short(two)} in the other")

    def _pull(self, pairs: list[tuple[Node, Node]], place: Place) -> Iterator[str]:
        """Compare nodes and everything above them by dataflow, without recursion."""
        while pairs:
            one, two = pairs.pop()
            if one in self.matched or any(value in self.back for value in two.outputs):
                if self.matched.get(one) is not two:
                    yield _say(place, f"{one!r} and {two!r} are shared differently")
                continue
            here = (*place, one, ": ")
            yield from self._nodes(one, two, here)
            for index, (x, y) in enumerate(zip(one.inputs, two.inputs, strict=False)):
                fresh = x not in self.forth and y not in self.back
                if x is not None and y is not None and fresh and x.producer and y.producer and x.index == y.index:
                    pairs.append((x.producer, y.producer))
                else:
                    yield from self._reads(x, y, (*here, "input ", index, " "))


def _say(place: Place, *more: Any) -> str:
    return "".join(part if isinstance(part, str) else repr(part) for part in (*place, *more))


def _same(place: Place, what: str, one: Any, two: Any) -> Iterator[str]:
    if one != two:
        yield _say(place, f"{what} {_short(one)}, {_short(two)} in the other")


def _is_last(node: Node) -> bool:
    return not any(value._uses for value in node.outputs)


def _name(node: Node) -> tuple[str, ...]:
    return tuple(value.name for value in node.outputs)


def _plain(data: Mapping[str, Any]) -> Any:
    import json

    return json.dumps(data, sort_keys=True)


def _range(dim: Dim | None) -> tuple[int, int | None, int] | None:
    return None if dim is None else (dim.low, dim.high, dim.multiple_of)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


__all__ = ["Keys", "attr_key", "differences", "equal", "same_contents", "tensor_key"]
