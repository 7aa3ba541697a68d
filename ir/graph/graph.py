"""The graph: nodes, values and use-def links, edited only through `Graph` methods.

Every edit checks first, then changes, then adds one to `Graph.version` and sends an `Edit` to the listeners, so links
cannot go stale, analyses can be cached by version, and a rewrite driver can follow what a rule did.

Operators are named by one string: ``MatMul`` for the ONNX domain, ``domain.Op`` for others
(``lading.SlidingWindowMask``).

While walking ``graph.nodes`` edits are safe: a node inserted after the current one is visited, one inserted before it
is not, and an erased node is skipped (erasing the current node continues with the one that followed it).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

from ir.base.diag import Diagnostic
from ir.base.types import Dim, DType, Shape, TensorType, ValueType
from ir.tensor.base import Tensor

OPSET = 24
"""ONNX opset of graphs built from checkpoints: the first that has every operator of a decoder layer."""


class GraphError(Exception):
    """An edit that would break the graph: a mistake of the pass or frontend author."""


class EmptyList(tuple):
    """An attribute that is a list without elements but of a known kind.

    Attributes:
        kind: ``ints``, ``floats``, ``strings``, ``tensors``, ``graphs`` or ``types``.
    """

    kind: str

    def __new__(cls, kind: str) -> EmptyList:
        """An empty tuple that remembers its kind."""
        made = super().__new__(cls)
        made.kind = kind
        return made

    def __repr__(self) -> str:
        return f"EmptyList({self.kind!r})"


class Fact(ABC):
    """Base of recorded decisions; subclasses are best frozen dataclasses.

    Attributes:
        name: key in ``Graph.facts`` and in the text form, such as ``precision-plan``.
    """

    name: ClassVar[str]

    @abstractmethod
    def to_data(self) -> dict[str, Any]:
        """The fact as JSON-able data: dicts with string keys, lists, strings, numbers, booleans, None."""

    @classmethod
    @abstractmethod
    def from_data(cls, data: Mapping[str, Any]) -> Fact:
        """Inverse of `to_data`; KeyError, TypeError or ValueError when the data cannot be such a fact."""

    def check(self, graph: Graph) -> list[Diagnostic]:
        """Every way in which the fact disagrees with the graph it is recorded on."""
        return []

    def renamed(self, old: str, new: str) -> Fact:
        """The fact with the value `old` called `new`; the fact itself when it does not speak of `old`.

        Facts follow the values of the graph that holds them.
        """
        return self

    def renamed_all(self, renames: Sequence[tuple[str, str]]) -> Fact:
        """The fact after renames (old, new), one after the other; the fact itself when it speaks of none.

        Facts that speak of many values do better than one `renamed` for each; see `ir.graph.facts.followed`.
        """
        fact: Fact = self
        for old, new in renames:
            fact = fact.renamed(old, new)
        return fact

    def mentions(self, name: str) -> bool:
        """True when the fact speaks of a value of this name."""
        return self.renamed(name, f"{name}.") is not self


F = TypeVar("F", bound=Fact)


@dataclass(frozen=True, slots=True)
class Edit:
    """One finished edit: `kind` is the method name, `node` and `value` what it touched."""

    kind: str
    node: Node | None = None
    value: Value | None = None


class Value:
    """A tensor-valued edge: the output of one node, a graph input, or a constant.

    Attributes are read-only for everybody but `Graph`. Equality is identity.
    """

    __slots__ = ("_uses", "const", "graph", "index", "loc", "name", "producer", "type")

    def __init__(
        self,
        graph: Graph,
        name: str,
        type: ValueType | None,
        producer: Node | None = None,
        index: int = 0,
        const: Tensor | None = None,
        loc: str = "",
    ) -> None:
        self.graph = graph
        self.name = name
        self.type = type
        self.producer = producer
        self.index = index
        self.const = const
        self.loc = loc
        self._uses: dict[tuple[Node, int], None] = {}

    @property
    def uses(self) -> tuple[tuple[Node, int], ...]:
        """Every (node, input index) that reads this value, subgraph nodes included, in order of linking."""
        return tuple(self._uses)

    @property
    def users(self) -> tuple[Node, ...]:
        """The distinct nodes that read this value."""
        return tuple(dict.fromkeys(node for node, _ in self._uses))

    @property
    def use_count(self) -> int:
        """Number of node inputs, graph outputs and tables that read this value."""
        return len(self._uses) + self.graph._pins.get(self, 0)

    @property
    def is_const(self) -> bool:
        """True for a constant."""
        return self.const is not None

    @property
    def is_input(self) -> bool:
        """True for an input of its graph."""
        return self.producer is None and self.const is None

    @property
    def is_output(self) -> bool:
        """True when the graph returns this value."""
        # Outputs are pinned; looking there first keeps this cheap in graphs with hundreds of outputs.
        return self in self.graph._pins and any(value is self for value in self.graph.outputs)

    @property
    def dtype(self) -> DType:
        """Element type; AttributeError when the type is unknown or not a tensor."""
        return self.type.dtype  # type: ignore[union-attr]

    @property
    def shape(self) -> Shape | None:
        """Shape tuple, or None when unknown."""
        return self.type.shape if isinstance(self.type, TensorType) else None

    @property
    def rank(self) -> int | None:
        """Number of dimensions, or None when unknown or not a tensor."""
        return self.type.rank if isinstance(self.type, TensorType) else None

    @property
    def dims(self) -> Shape:
        """The shape; GraphError when it is unknown."""
        if self.shape is None:
            raise GraphError(f"%{self.name} is {self.type}, not a tensor of a known shape")
        return self.shape

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape in numbers; GraphError when it is not known in numbers."""
        found = self.type.sizes if isinstance(self.type, TensorType) else None
        if found is None:
            raise GraphError(f"%{self.name} is {self.type}, not a tensor of known sizes")
        return found

    @property
    def tensor(self) -> Tensor:
        """The tensor of a constant; GraphError for every other value."""
        if self.const is None:
            raise GraphError(f"%{self.name} is not a constant")
        return self.const

    def __repr__(self) -> str:
        return f"{'@' if self.is_const else '%'}{self.name}: {self.type}"


class Node:
    """One operator application. Attributes are read-only for everybody but `Graph`. Equality is identity."""

    __slots__ = ("_attrs", "_next", "_prev", "graph", "inputs", "loc", "metadata", "name", "op", "outputs", "overload")

    def __init__(self, graph: Graph, op: str, name: str, loc: str) -> None:
        self.graph: Graph | None = graph
        self.op = op
        self.name = name
        self.loc = loc
        self.inputs: tuple[Value | None, ...] = ()
        self.outputs: tuple[Value, ...] = ()
        self._attrs: dict[str, Any] = {}
        self.metadata: dict[str, str] = {}
        self.overload = ""
        self._prev: Node | None = None
        self._next: Node | None = None

    @property
    def attrs(self) -> Mapping[str, Any]:
        """Read-only view of the attributes: int, float, str, bytes, Tensor, Graph, ValueType or tuples of these.

        A list without elements is an `EmptyList` where its kind is known.
        """
        return MappingProxyType(self._attrs)

    @property
    def output(self) -> Value:
        """The first output."""
        return self.outputs[0]

    @property
    def domain(self) -> str:
        """Operator domain; empty for ONNX."""
        return self.op.rpartition(".")[0]

    @property
    def op_type(self) -> str:
        """Operator name without its domain."""
        return self.op.rpartition(".")[2]

    @property
    def subgraphs(self) -> tuple[Graph, ...]:
        """Graphs held by attributes (bodies of If, Loop, Scan)."""
        # Asked of every node in every walk, and nearly always none; the elements of a tuple are of one kind.
        attrs = self._attrs
        if not attrs:
            return ()
        found: list[Graph] = []
        for value in attrs.values():
            kind = type(value)
            if kind is Graph:
                found.append(value)
            elif kind is tuple and value and type(value[0]) is Graph:
                found.extend(value)
        return tuple(found) if found else ()

    def input(self, index: int) -> Value | None:
        """Input `index`, or None when it is absent or left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def operand(self, index: int) -> Value:
        """Input `index`, which the operator needs; GraphError when it is absent or left out."""
        value = self.input(index)
        if value is None:
            raise GraphError(f"{self!r} has no input {index}")
        return value

    @property
    def home(self) -> Graph:
        """The graph that holds the node; GraphError when the node has been erased."""
        if self.graph is None:
            raise GraphError(f"{self!r} has been erased")
        return self.graph

    def __repr__(self) -> str:
        outs = ", ".join(f"%{value.name}" for value in self.outputs)
        ins = ", ".join("_" if v is None else ("@" if v.is_const else "%") + v.name for v in self.inputs)
        return f"{outs} = {self.op}({ins})"


class NodeList:
    """Read-only view of the nodes in program order; see the module docstring for edits while walking."""

    __slots__ = ("_graph",)

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def __iter__(self) -> Iterator[Node]:
        graph = self._graph
        node = graph._first
        while node is not None:
            yield node
            # An erased node keeps its forward link and a None graph, so the walk finds the next live node.
            node = node._next
            while node is not None and node.graph is not graph:
                node = node._next

    def __reversed__(self) -> Iterator[Node]:
        graph = self._graph
        node = graph._last
        while node is not None:
            yield node
            node = node._prev
            while node is not None and node.graph is not graph:
                node = node._prev

    def __len__(self) -> int:
        return self._graph._count


@dataclass(slots=True)
class Region:
    """Counters shared by a root graph and its subgraphs."""

    version: int = 0
    listeners: list[Callable[[Edit], None]] = field(default_factory=list)
    serial: int = 0
    inner: dict[str, list[Graph]] = field(default_factory=dict)
    """Subgraphs by the names they have or once had, so that an outer value never takes a name used below it."""


class Graph:
    """A flat list of nodes in topological order with named inputs, outputs, constants, tables and facts.

    Attributes:
        name: graph name.
        inputs, outputs: tuples of values; change them with `add_input`, `remove_input`, `set_outputs`.
        tables: values that the runtime reads outside the graph (name -> value), such as the embedding rows; they are
            kept alive like outputs.
        dims: symbolic dimensions by name, with their ranges.
        opsets: opset version by domain.
        functions: bodies of model-local functions by operator name.
        metadata: free key/value strings that survive a round trip.
        foreign: read from a file or message, so that its operators, attributes and numbers may be anything: it is
            computed in a process of its own. A graph that the program builds is not.
        hinted: its types are as a file records them, and nobody has compared them with what its operators give: type
            inference overrules those that cannot be true instead of reporting them as errors.
        analyses: results of `ir.graph.view.cached` and the version they belong to.
    """

    def __init__(self, name: str = "main", opsets: Mapping[str, int] | None = None, owner: Node | None = None) -> None:
        self.name = name
        self.owner = owner
        self.inputs: tuple[Value, ...] = ()
        self.outputs: tuple[Value, ...] = ()
        self._consts: dict[Value, None] = {}
        self._consts_by_name: dict[str, Value] | None = {}
        self.tables: dict[str, Value] = {}
        self.dims: dict[str, Dim] = {}
        self._facts: dict[str, Any] = {}
        self._renames: list[tuple[str, str]] = []
        self.opsets: dict[str, int] = dict(opsets) if opsets else {"": OPSET}
        self.functions: dict[str, Graph] = {}
        self.metadata: dict[str, Any] = {}
        self.foreign: bool = owner.home.foreign if owner is not None else False
        self.hinted: bool = False
        self.analyses: tuple[int, dict[Any, Any]] = (-1, {})
        self._names: dict[str, Value] = {}
        self._pins: dict[Value, int] = {}
        self._first: Node | None = None
        self._last: Node | None = None
        self._count = 0
        self._region: Region = owner.home._region if owner is not None else Region()

    # ---- reading ----

    @property
    def version(self) -> int:
        """Number of edits so far, subgraphs included."""
        return self._region.version

    @property
    def consts(self) -> dict[str, Value]:
        """Constants by name, in the order in which they were added."""
        # Renaming drops the table, so that many renames in a row cost one pass over the constants.
        if self._consts_by_name is None:
            self._consts_by_name = {value.name: value for value in self._consts}
        return self._consts_by_name

    @consts.setter
    def consts(self, table: Mapping[str, Value]) -> None:
        self._consts = dict.fromkeys(table.values())
        self._consts_by_name = dict(table)

    @property
    def facts(self) -> dict[str, Any]:
        """Recorded decisions by fact name, which follow the names of values."""
        # Renames since the last look are told to the facts together, for the same reason.
        if self._renames:
            renames, self._renames = self._renames, []
            for key, fact in self._facts.items():
                if isinstance(fact, Fact):
                    self._facts[key] = fact.renamed_all(renames)
        return self._facts

    @property
    def parent(self) -> Graph | None:
        """The graph whose node holds this one as an attribute, or None for a root graph."""
        return self.owner.graph if self.owner is not None else None

    @property
    def nodes(self) -> NodeList:
        """The nodes in program order."""
        return NodeList(self)

    @property
    def first(self) -> Node | None:
        """The first node in program order."""
        return self._first

    @property
    def last(self) -> Node | None:
        """The last node in program order."""
        return self._last

    def value(self, name: str) -> Value:
        """The value or constant of a name in this graph; KeyError when there is none."""
        return self._names[name]

    def has(self, name: str) -> bool:
        """True when this graph or one around it has a value of that name."""
        graph: Graph | None = self
        while graph is not None:
            if name in graph._names:
                return True
            graph = graph.parent
        return False

    def fact(self, kind: type[F]) -> F | None:
        """The recorded decision of a kind, or None."""
        found = self.facts.get(kind.name)
        return found if isinstance(found, kind) else None

    def required_fact(self, kind: type[F]) -> F:
        """The recorded decision of a kind; GraphError when there is none."""
        found = self.fact(kind)
        if found is None:
            raise GraphError(f"nothing is recorded as {kind.name!r} on graph {self.name}")
        return found

    def holds(self, value: Value) -> bool:
        """True for a value of this graph itself that has not been erased."""
        return self._names.get(value.name) is value

    def fresh_name(self, stem: str) -> str:
        """A name that no value visible here or in a subgraph has: the stem itself, or the stem with a number."""
        if stem and not self._taken(stem):
            return stem
        stem = stem or "v"
        while True:
            self._region.serial += 1
            name = f"{stem}.{self._region.serial}"
            if not self._taken(name):
                return name

    def walk(self) -> Iterator[Node]:
        """Every node, those of subgraphs after the node that holds them."""
        for node in self.nodes:
            yield node
            for sub in node.subgraphs:
                yield from sub.walk()

    def graphs(self) -> Iterator[Graph]:
        """This graph and all subgraphs inside it, outer ones first."""
        yield self
        for node in self.walk():
            yield from node.subgraphs

    # ---- inputs, constants, outputs ----

    def add_input(self, name: str, type: ValueType | None, loc: str = "", index: int | None = None) -> Value:
        """Declare an input; `index` None appends."""
        value = self._new_value(name, type, loc=loc)
        at = len(self.inputs) if index is None else index
        self.inputs = (*self.inputs[:at], value, *self.inputs[at:])
        return self._done("add_input", value=value)

    def remove_input(self, value: Value) -> None:
        """Drop an input that nothing reads."""
        if value not in self.inputs:
            raise GraphError(f"%{value.name} is not an input")
        self._require_unused(value)
        self.inputs = tuple(item for item in self.inputs if item is not value)
        del self._names[value.name]
        self._done("remove_input", value=value)

    def order_inputs(self, values: Sequence[Value]) -> None:
        """Declare the same inputs in another order."""
        if len(values) != len(self.inputs) or set(values) != set(self.inputs):
            raise GraphError("order_inputs takes exactly the present inputs")
        self.inputs = tuple(values)
        self._done("order_inputs")

    def add_const(self, name: str, tensor: Tensor, loc: str = "") -> Value:
        """Add a constant under a fresh name made from `name`."""
        value = self._new_value(self.fresh_name(name), tensor.type, const=tensor, loc=loc or tensor.loc)
        self._consts[value] = None
        if self._consts_by_name is not None:
            self._consts_by_name[value.name] = value
        return self._done("add_const", value=value)

    def set_const(self, value: Value, tensor: Tensor) -> None:
        """Give a constant other contents; its type becomes the tensor's."""
        if value.const is None or value.graph is not self:
            raise GraphError(f"%{value.name} is not a constant of this graph")
        value.const, value.type = tensor, tensor.type
        self._done("set_const", value=value)

    def erase_const(self, value: Value) -> None:
        """Drop a constant that nothing reads."""
        if value not in self._consts:
            raise GraphError(f"@{value.name} is not a constant of this graph")
        self._require_unused(value)
        del self._consts[value]
        if self._consts_by_name is not None:
            del self._consts_by_name[value.name]
        del self._names[value.name]
        self._done("erase_const", value=value)

    def set_outputs(self, values: Sequence[Value]) -> None:
        """Replace the list of outputs; the same value may appear more than once."""
        for value in values:
            self._require_visible(value)
        for value in self.outputs:
            self._unpin(value)
        self.outputs = tuple(values)
        for value in self.outputs:
            self._pin(value)
        self._done("set_outputs")

    def set_table(self, name: str, value: Value | None) -> None:
        """Name a value that the runtime reads outside the graph; None drops the table."""
        if value is not None:
            self._require_visible(value)
        old = self.tables.pop(name, None)
        if old is not None:
            self._unpin(old)
        if value is not None:
            self.tables[name] = value
            self._pin(value)
        self._done("set_table", value=value)

    def set_fact(self, name: str, fact: Any) -> None:
        """Record a decision; None removes it."""
        if fact is None:
            self.facts.pop(name, None)
        else:
            self.facts[name] = fact
        self._done("set_fact")

    def add_dim(self, dim: Dim) -> Dim:
        """Declare a symbolic dimension or replace its range."""
        self.dims[dim.name] = dim
        self._done("add_dim")
        return dim

    # ---- nodes ----

    def add(
        self,
        op: str,
        inputs: Sequence[Value | None],
        attrs: Mapping[str, Any] | None = None,
        *,
        outputs: Sequence[str] = ("",),
        types: Sequence[ValueType | None] | None = None,
        before: Node | None = None,
        after: Node | None = None,
        name: str = "",
        loc: str = "",
    ) -> Node:
        """Add a node and return it.

        Args:
            op: operator name, ``Op`` or ``domain.Op``.
            inputs: values; None leaves an optional input out.
            attrs: attributes.
            outputs: one name stem for each output; an empty stem makes a name from the node's.
            types: type of each output, when known.
            before, after: where to insert; neither appends.
            name, loc: node name and source location.
        """
        for value in inputs:
            if value is not None:
                self._require_visible(value)
        anchor = before if before is not None else after
        if anchor is not None and anchor.graph is not self:
            raise GraphError(f"the anchor {anchor!r} is not in this graph")
        node = Node(self, op, name, loc)
        if attrs:
            node._attrs = dict(attrs)
            for sub in node.subgraphs:
                self._adopt(sub, node)
        stem = name or op.rpartition(".")[2].lower()
        made = []
        for index, wanted in enumerate(outputs):
            value_type = types[index] if types is not None else None
            made.append(self._new_value(self.fresh_name(wanted or stem), value_type, node, index, loc=loc))
        node.outputs = tuple(made)
        self._link(node, tuple(inputs))
        self._insert(node, before, after)
        return self._done("add", node=node)

    def move(self, node: Node, *, before: Node | None = None, after: Node | None = None) -> None:
        """Move a node within the program order; neither anchor moves it to the end."""
        for item in (node, before, after):
            if item is not None and item.graph is not self:
                raise GraphError(f"{item!r} is not in this graph")
        if node is before or node is after:
            return
        self._detach(node)
        self._insert(node, before, after)
        self._done("move", node=node)

    def set_input(self, node: Node, index: int, value: Value | None) -> None:
        """Make input `index` of a node read another value."""
        old = node.inputs[index]
        if old is value:
            return
        if value is not None:
            node.home._require_visible(value)
        if old is not None:
            del old._uses[(node, index)]
        node.inputs = (*node.inputs[:index], value, *node.inputs[index + 1 :])
        if value is not None:
            value._uses[(node, index)] = None
        self._done("set_input", node=node, value=old)

    def set_inputs(self, node: Node, inputs: Sequence[Value | None]) -> None:
        """Replace the whole input list of a node."""
        for value in inputs:
            if value is not None:
                node.home._require_visible(value)
        self._unlink(node)
        self._link(node, tuple(inputs))
        self._done("set_inputs", node=node)

    def set_attrs(self, node: Node, /, **attrs: Any) -> None:
        """Set attributes; None removes one."""
        before = node.subgraphs
        for key, value in attrs.items():
            if value is None:
                node._attrs.pop(key, None)
            else:
                node._attrs[key] = value
        after = node.subgraphs
        for sub in after:
            if sub.owner is not node:
                self._adopt(sub, node)
        for sub in before:
            if sub not in after:
                self._release(sub, node)
        self._done("set_attrs", node=node)

    def set_name(self, node: Node, name: str) -> None:
        """Give a node another name; node names are for people and need not be unique."""
        node.name = name
        self._done("set_name", node=node)

    def set_op(self, node: Node, op: str) -> None:
        """Change the operator of a node in place."""
        node.op = op
        self._done("set_op", node=node)

    def set_type(self, value: Value, type: ValueType | None) -> None:
        """Record the type of a value; a constant's type is its tensor's and cannot be changed."""
        if value.const is not None:
            raise GraphError(f"the type of constant @{value.name} is its tensor's")
        if value.type != type:
            value.type = type
            self._done("set_type", value=value)

    def set_loc(self, item: Node | Value, loc: str) -> None:
        """Record the source location of a node or value."""
        item.loc = loc

    def rename(self, value: Value, name: str) -> None:
        """Give a value another name, which must be free."""
        graph = value.graph
        if name == value.name:
            return
        if graph.has(name):
            raise GraphError(f"the name {name!r} is taken")
        del graph._names[value.name]
        graph._names[name] = value
        if value.const is not None:
            graph._consts_by_name = None
        old, value.name = value.name, name
        if graph.owner is not None:
            self._region.inner.setdefault(name, []).append(graph)
        if graph._facts:
            graph._renames.append((old, name))
        self._done("rename", value=value)

    def replace(self, old: Value, new: Value) -> int:
        """Make every reader of `old` (nodes, outputs, tables) read `new`; returns how many reads moved."""
        if old is new:
            return 0
        self._require_visible(new)
        moved = list(old._uses)
        for node, index in moved:
            node.inputs = (*node.inputs[:index], new, *node.inputs[index + 1 :])
            new._uses[(node, index)] = None
        old._uses.clear()
        pinned = old.graph._pins.pop(old, 0)
        if pinned:
            left = pinned
            for graph in _nested(old.graph):
                left -= sum(value is old for value in (*graph.outputs, *graph.tables.values()))
                graph.outputs = tuple(new if value is old else value for value in graph.outputs)
                graph.tables = {name: new if value is old else value for name, value in graph.tables.items()}
                if not left:
                    break  # What is inside need not be looked through, for each of hundreds of outputs.
            new.graph._pins[new] = new.graph._pins.get(new, 0) + pinned
        self._done("replace", node=new.producer, value=new)
        if self._region.listeners:
            for node, _ in moved:
                self._notify(Edit("set_input", node, old))
        return len(moved) + pinned

    def erase(self, node: Node) -> None:
        """Remove a node whose outputs nothing reads."""
        if node.graph is not self:
            raise GraphError(f"{node!r} is not in this graph")
        for value in node.outputs:
            self._require_unused(value)
        for sub in node.subgraphs:
            self._release(sub, node)
        self._unlink(node)
        self._detach(node)
        node.graph = None
        for value in node.outputs:
            del self._names[value.name]
        self._done("erase", node=node)

    def reorder(self, nodes: Sequence[Node]) -> bool:
        """Put the nodes into another order; returns True when it differs from the present one.

        Raises:
            GraphError: `nodes` are not the nodes of the graph, each once.
        """
        present = list(self.nodes)
        if len(nodes) != len(present) or set(nodes) != set(present):
            raise GraphError(f"reorder takes the {len(present)} nodes of {self.name}, each once")
        if all(a is b for a, b in zip(nodes, present, strict=True)):
            return False
        self._first = self._last = None
        self._count = 0
        for node in nodes:
            node._prev = node._next = None
            self._insert(node, None, None)
        self._done("reorder")
        return True

    # ---- listeners ----

    def listen(self, listener: Callable[[Edit], None]) -> Callable[[], None]:
        """Call `listener` after every edit; returns a function that stops it."""
        self._region.listeners.append(listener)
        return lambda: self._region.listeners.remove(listener)

    # ---- private: the only code that writes links ----

    def _new_value(
        self,
        name: str,
        type: ValueType | None,
        producer: Node | None = None,
        index: int = 0,
        const: Tensor | None = None,
        loc: str = "",
    ) -> Value:
        if name in self._names:
            raise GraphError(f"the name {name!r} is taken")
        value = Value(self, name, type, producer, index, const, loc)
        self._names[name] = value
        if self.owner is not None:
            self._region.inner.setdefault(name, []).append(self)
        return value

    def _taken(self, name: str) -> bool:
        return self.has(name) or any(
            name in graph._names and _is_inside(graph, self) for graph in self._region.inner.get(name, ())
        )

    def _require_visible(self, value: Value) -> None:
        graph: Graph | None = self
        while graph is not None:
            if value.graph is graph:
                if graph._names.get(value.name) is not value:
                    raise GraphError(f"%{value.name} has been erased")
                return
            graph = graph.parent
        raise GraphError(f"%{value.name} belongs to another graph")

    def _require_unused(self, value: Value) -> None:
        if value._uses or value in self._pins:
            readers = ", ".join(repr(node) for node in value.users[:3]) or "the graph's outputs or tables"
            raise GraphError(f"%{value.name} is still read by {readers}")

    def _link(self, node: Node, inputs: tuple[Value | None, ...]) -> None:
        node.inputs = inputs
        for index, value in enumerate(inputs):
            if value is not None:
                value._uses[(node, index)] = None

    def _unlink(self, node: Node) -> None:
        for index, value in enumerate(node.inputs):
            if value is not None:
                del value._uses[(node, index)]

    def _pin(self, value: Value) -> None:
        # A subgraph may return a captured value, so the pin is kept by the graph that owns the value.
        pins = value.graph._pins
        pins[value] = pins.get(value, 0) + 1

    def _unpin(self, value: Value) -> None:
        pins = value.graph._pins
        pins[value] -= 1
        if not pins[value]:
            del pins[value]

    def _insert(self, node: Node, before: Node | None, after: Node | None) -> None:
        previous: Node | None
        following: Node | None
        if before is not None:
            previous, following = before._prev, before
        elif after is not None:
            previous, following = after, after._next
        else:
            previous, following = self._last, None
        node._prev, node._next = previous, following
        if previous is None:
            self._first = node
        else:
            previous._next = node
        if following is None:
            self._last = node
        else:
            following._prev = node
        node.graph = self
        self._count += 1

    def _detach(self, node: Node) -> None:
        if node._prev is None:
            self._first = node._next
        else:
            node._prev._next = node._next
        if node._next is None:
            self._last = node._prev
        else:
            node._next._prev = node._prev
        self._count -= 1

    def _adopt(self, sub: Graph, node: Node) -> None:
        sub.owner = node
        for graph in _nested(sub):
            graph._region = self._region
            for name in graph._names:
                self._region.inner.setdefault(name, []).append(graph)

    def _release(self, sub: Graph, node: Node) -> None:
        # A subgraph that another node has adopted meanwhile keeps its links.
        if sub.owner is not node:
            return
        for graph in _nested(sub):
            for inner in graph.nodes:
                graph._unlink(inner)
            for value in (*graph.outputs, *graph.tables.values()):
                graph._unpin(value)

    def _notify(self, edit: Edit) -> None:
        for listener in tuple(self._region.listeners):
            listener(edit)

    def _done(self, kind: str, node: Node | None = None, value: Value | None = None) -> Any:
        self._region.version += 1
        if self._region.listeners:
            self._notify(Edit(kind, node, value))
        return node if kind in ("add", "erase") else value


def _is_inside(graph: Graph, outer: Graph) -> bool:
    found = graph.parent
    while found is not None and found is not outer:
        found = found.parent
    return found is outer


def _nested(graph: Graph) -> Iterable[Graph]:
    yield graph
    for node in graph.nodes:
        for sub in node.subgraphs:
            yield from _nested(sub)


__all__ = ["OPSET", "Edit", "EmptyList", "Graph", "GraphError", "Node", "NodeList", "Value"]
