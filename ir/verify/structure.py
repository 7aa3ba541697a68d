"""The verifier: every way in which a graph is not well formed, at any time or at a stage of compilation.

`verify` reports all problems, not the first. Structure is checked by direct reading of what `Graph` keeps, so that it
also finds what a pass did behind its back. What a stage allows is data: rows of `ir.verify.stages.STAGES`.

"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

from ir.base.diag import Diagnostic
from ir.base.types import Dim, MapType, OptionalType, SequenceType, TensorType
from ir.graph.facts import data_of
from ir.graph.graph import Fact, Graph, Node, Value
from ir.graph.order import reads
from ir.tensor.base import Tensor
from ir.text.printer import snippet

# ---- structure ----


def circle(graph: Graph) -> Diagnostic | None:
    """A chain of nodes without end, which nothing else could walk along."""
    seen: set[Node] = set()
    node = graph._first
    while node is not None:
        if node in seen:
            return Diagnostic("I116", f"the chain of nodes comes back to {node!r}", where(node))
        seen.add(node)
        for sub in node.subgraphs:
            found = circle(sub)
            if found is not None:
                return found
        node = node._next
    return None


def structure(graph: Graph) -> Iterator[Diagnostic]:
    values = list(_values_of(graph))
    yield from _names(graph, values)
    yield from _constants(graph)
    yield from _dimensions(graph)
    yield from _chain(graph)
    yield from _nodes(graph)
    yield from _uses(graph, values)
    yield from _exits(graph)
    yield from _pins(graph)
    for value in values:
        yield from _shape(value)


def _values_of(graph: Graph) -> Iterator[Value]:
    yield from graph.inputs
    yield from graph.consts.values()
    for node in graph.nodes:
        yield from node.outputs


def place_of_value(value: Value) -> str:
    """Where a value is: its node's place, or its graph and location."""
    if value.producer is not None and value in value.producer.outputs:
        return where(value.producer, output=value.producer.outputs.index(value))
    return f"graph {value.graph.name}: {value!r}" + (f" from {value.loc}" if value.loc else "")


def where(node: Node, *, operand: int | None = None, output: int | None = None) -> str:
    """The place of a node for a diagnostic: graph, node name and location, and the printed line with its neighbours."""
    named = f" {node.name!r}" if node.name else ""
    loc = f" from {node.loc}" if node.loc else ""
    graph = node.graph.name if node.graph is not None else "(erased)"
    return f"graph {graph}, node{named}{loc}\n{snippet(node, operand=operand, output=output)}"


def _names(graph: Graph, values: list[Value]) -> Iterator[Diagnostic]:
    seen: dict[str, Value] = {}
    outer = graph.parent
    for value in values:
        if value.name in seen and seen[value.name] is not value:
            yield Diagnostic("I113", f"two values are called {value.name!r}", place_of_value(value))
        elif graph._names.get(value.name) is not value:
            yield Diagnostic("I113", f"{value!r} is not in the graph's table of names", place_of_value(value))
        if outer is not None and outer.has(value.name):
            yield Diagnostic(
                "I114", f"{value.name!r} is also the name of a value around the subgraph", place_of_value(value)
            )
        seen[value.name] = value
    for name in graph._names:
        if name not in seen:
            yield Diagnostic("I113", f"the table of names has {name!r}, but the graph does not", f"graph {graph.name}")


def _constants(graph: Graph) -> Iterator[Diagnostic]:
    for name, value in graph.consts.items():
        if value.const is None or value.name != name or value.graph is not graph or value.producer is not None:
            yield Diagnostic("I119", f"the entry {name!r} of the constants is {value!r}", f"graph {graph.name}")
        elif value.type != value.const.type:
            message = f"@{name} is recorded as {value.type}, its tensor is {value.const.type}"
            yield Diagnostic("T273", message, place_of_value(value))
    for value in graph.inputs:
        if value.producer is not None or value.const is not None or value.graph is not graph:
            yield Diagnostic(
                "I115", f"the input {value!r} is computed, constant or of another graph", place_of_value(value)
            )


def _dimensions(graph: Graph) -> Iterator[Diagnostic]:
    for name, dim in graph.dims.items():
        if dim.name != name:
            yield Diagnostic("I120", f"dimension {dim.name!r} is declared as {name!r}", f"graph {graph.name}")
        top = dim.high if dim.high is not None else dim.low + max(dim.multiple_of, 1)
        first = -(-dim.low // dim.multiple_of) * dim.multiple_of if dim.multiple_of > 0 else top + 1
        if dim.low < 0 or first > top:
            high = "" if dim.high is None else dim.high
            message = f"no size of dimension {name!r} lies in {dim.low}..{high} and is a multiple of {dim.multiple_of}"
            yield Diagnostic("I120", message, f"graph {graph.name}")


def _chain(graph: Graph) -> Iterator[Diagnostic]:
    place = f"graph {graph.name}"
    before, node, count = None, graph._first, 0
    while node is not None:
        if node._prev is not before:
            yield Diagnostic("I116", f"{node!r} does not point back at the node before it", where(node))
        if node.graph is not graph:
            yield Diagnostic("I116", f"{node!r} is in the chain of a graph that it does not belong to", place)
        before, node, count = node, node._next, count + 1
    if count != graph._count or before is not graph._last:
        yield Diagnostic("I116", f"the chain has {count} nodes, the graph counts {graph._count}", place)


def _nodes(graph: Graph) -> Iterator[Diagnostic]:
    position = {node: index for index, node in enumerate(graph.nodes)}
    visible = {graph}
    outer = graph.parent
    while outer is not None:
        visible.add(outer)
        outer = outer.parent
    for node, index in position.items():
        for at, value in enumerate(node.outputs):
            if value.producer is not node or value.index != at or value.graph is not graph or value.const is not None:
                message = f"output {at}, {value!r}, does not agree with its node"
                yield Diagnostic("I115", message, where(node, output=at))
        for at, read in enumerate(node.inputs):
            if read is not None:
                yield from _operand(node, at, read, visible, position, index)
        yield from _attributes(node)
        for sub in node.subgraphs:
            if sub.owner is not node or sub._region is not graph._region:
                message = f"subgraph {sub.name!r} does not belong to the node that holds it"
                yield Diagnostic("I118", message, where(node))
                continue
            yield from structure(sub)
        if node.subgraphs:
            yield from _captures(node, position, index)


def _operand(
    node: Node, at: int, value: Value, visible: set[Graph], position: Mapping[Node, int], index: int
) -> Iterator[Diagnostic]:
    if (node, at) not in value._uses:
        message = f"input {at} reads {value!r}, which does not list it as a reader"
        yield Diagnostic("I110", message, where(node, operand=at))
    if value.graph not in visible:
        message = f"input {at} reads {value!r} of graph {value.graph.name!r}, which it cannot see"
        yield Diagnostic("I112", message, where(node, operand=at))
    elif value.graph._names.get(value.name) is not value:
        yield Diagnostic("I112", f"input {at} reads {value!r}, which has been erased", where(node, operand=at))
    elif value.producer is not None and position.get(value.producer, -1) >= index:
        yield Diagnostic("I111", f"input {at} reads {value!r} before it is computed", where(node, operand=at))


def _captures(node: Node, position: Mapping[Node, int], index: int) -> Iterator[Diagnostic]:
    direct = set(node.inputs)
    for value in dict.fromkeys(reads(node)):
        if value not in direct and value.producer is not None and position.get(value.producer, -1) >= index:
            yield Diagnostic("I111", f"a subgraph of the node reads {value!r} before it is computed", where(node))


_PLAIN = (int, float, str, bytes, Tensor, Graph, TensorType, SequenceType, OptionalType, MapType)


def _attributes(node: Node) -> Iterator[Diagnostic]:
    for name, value in node._attrs.items():
        items = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(item, _PLAIN) for item in items):
            yield Diagnostic("I122", f"attribute {name!r} is {type(value).__name__}: {value!r}", where(node))


def _uses(graph: Graph, values: list[Value]) -> Iterator[Diagnostic]:
    for value in values:
        for node, at in value._uses:
            if node.graph is None:
                yield Diagnostic(
                    "I110", f"{value!r} is said to be read by a node that has been erased", place_of_value(value)
                )
            elif at >= len(node.inputs) or node.inputs[at] is not value:
                message = f"{value!r} is said to be input {at} of {node!r}, which reads another value there"
                yield Diagnostic("I110", message, place_of_value(value))


def _exits(graph: Graph) -> Iterator[Diagnostic]:
    rows = [(f"output {index}", value) for index, value in enumerate(graph.outputs)]
    rows += [(f"table {name!r}", value) for name, value in graph.tables.items()]
    for what, value in rows:
        inner: Graph | None = graph
        while inner is not None and inner is not value.graph:
            inner = inner.parent
        if inner is None:
            message = f"{what} is {value!r} of graph {value.graph.name!r}, which cannot be seen here"
            yield Diagnostic("I112", message, f"graph {graph.name}")
        elif value.graph._names.get(value.name) is not value:
            yield Diagnostic("I112", f"{what} is {value!r}, which has been erased", f"graph {graph.name}")


def _pins(graph: Graph) -> Iterator[Diagnostic]:
    counted: dict[Value, int] = {}
    waiting = [graph]
    while waiting:
        inner = waiting.pop()
        for value in (*inner.outputs, *inner.tables.values()):
            if value.graph is graph:
                counted[value] = counted.get(value, 0) + 1
        waiting.extend(sub for node in inner.nodes for sub in node.subgraphs)
    for value in dict.fromkeys((*counted, *graph._pins)):
        real, kept = counted.get(value, 0), graph._pins.get(value, 0)
        if real != kept:
            message = f"{value!r} is held by {real} outputs and tables, not {kept}"
            yield Diagnostic("I117", message, f"graph {graph.name}")


def _shape(value: Value) -> Iterator[Diagnostic]:
    if isinstance(value.type, TensorType) and value.type.shape is not None:
        bad = [dim for dim in value.type.shape if not isinstance(dim, Dim) and dim < 0]
        if bad:
            yield Diagnostic(
                "T271", f"%{value.name} has type {value.type}; a size cannot be {bad[0]}", place_of_value(value)
            )


# ---- operators and types ----


def operators(graph: Graph) -> list[tuple[Node, Diagnostic]]:
    """Names, arity and attributes of all nodes against the operator table (`ir.ops.check.check_node`)."""
    from ir.ops.check import check_node

    return [
        (node, Diagnostic(problem.code, problem.message, where(node), problem.hint, problem.severity))
        for node in graph.walk()
        for problem in check_node(node)
    ]


def types(graph: Graph, skip: Set[Node] = frozenset()) -> list[Diagnostic]:
    """Recorded types that inference contradicts (T210) and nodes whose inputs do not fit their operator (T212).

    The graph must be well formed, and nodes whose operator, arity or attributes are wrong be named in `skip`. Types
    that a file records are hints until they are inferred, so that nothing is wrong with them before.
    """
    if graph.hinted:
        return []
    from ir.infer.recheck import recheck

    return [Diagnostic(code, text, where(node, output=output)) for code, text, node, output in recheck(graph, skip)]


def facts(graph: Graph) -> list[Diagnostic]:
    """Facts stored under a wrong name or not printable, and what the facts themselves find."""
    found: list[Diagnostic] = []
    for name, fact in graph.facts.items():
        place = f"graph {graph.name}, fact {name}"
        if isinstance(fact, Fact) and fact.name != name:
            found.append(Diagnostic("I121", f"the fact {fact.name!r} is recorded as {name!r}", place))
        try:
            data_of(fact)
        except (TypeError, ValueError) as error:
            found.append(Diagnostic("I121", f"the fact {name!r} cannot be written as JSON: {error}", place))
            continue
        if isinstance(fact, Fact):
            found += fact.check(graph)
    return found


# ---- stages ----


# ---- invariants ----


__all__ = ["where"]
