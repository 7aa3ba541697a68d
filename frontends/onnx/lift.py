"""ONNX graph messages to `ir.Graph`: names, order, visibility, types and what is kept beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import onnx

from frontends.onnx.attributes import GRAPH, GRAPHS, Attributes, kind_of, stand_in
from frontends.onnx.order import captured, defined, every_name, sort_nodes
from frontends.onnx.tensors import Place, dense, tensor_of
from frontends.onnx.types import Types, denotation
from ir.base.diag import LadingError, suggest
from ir.base.types import ValueType
from ir.graph.graph import EmptyList, Graph, Node, Value
from ir.onnx.keys import ABSENT, DEFAULT, DOC, LOCATION, MODEL, REFS, UNMADE
from ir.tensor.base import Tensor

Free = Literal["error", "input"]
"""What becomes of a tensor that is used but never produced."""

MOST_SUGGESTED = 2000
"""Names among which a similar one is looked for."""
FIRST_WITH_DEFAULTS = 4
"""Format version from which an initializer that is also an input is that input's default; before, it is a constant."""


class Scope:
    """One level of names: a graph and the message it is made from, inside another level or not."""

    def __init__(self, graph: Graph, proto: onnx.GraphProto, parent: Scope | None = None) -> None:
        self.graph = graph
        self.proto = proto
        self.parent = parent
        self.values: dict[str, Value] = {}
        self.types: dict[str, onnx.ValueInfoProto] = {}

    @cached_property
    def defined(self) -> set[str]:
        """Every name that the level defines, sooner or later."""
        return defined(self.proto)

    def find(self, name: str) -> Value | None:
        """The value that a name means here; None when nobody has defined it yet."""
        scope: Scope | None = self
        while scope is not None:
            found = scope.values.get(name)
            if found is not None:
                return found
            scope = None if scope.parent is None or name in scope.defined else scope.parent
        return None

    def is_taken_outside(self, name: str) -> bool:
        """True when a level around this one defines the name."""
        scope = self.parent
        while scope is not None:
            if name in scope.defined:
                return True
            scope = scope.parent
        return False

    @property
    def root(self) -> Scope:
        """The outermost level."""
        scope = self
        while scope.parent is not None:
            scope = scope.parent
        return scope


class Lift:
    """Makes one root graph, or one function body, of messages.

    Attributes:
        constants: constants of the outermost level that are not in its message.
        unmade: inputs that stand for tensors which nothing makes.
    """

    def __init__(
        self, root: Graph, proto: onnx.GraphProto, place: Place, ir_version: int, free: Free, outer: str = ""
    ) -> None:
        self.place = place
        self.ir_version = ir_version
        self.free = free
        self.outer = outer
        self.types = Types(root, place)
        self.attributes = Attributes(place, self.types)
        self.scope = Scope(root, proto)
        self.defaults = ir_version >= FIRST_WITH_DEFAULTS
        self.constants: Mapping[str, Tensor] = {}
        self.operators: dict[tuple[str, str], str] = {}
        self.numbers: dict[str, int] = {}
        self.unmade: list[Value] = []

    @cached_property
    def names(self) -> set[str]:
        """Every name used in the message: what a name of our own must not be."""
        return every_name([self.scope.proto])

    # ---- one level ----

    def fill(self, scope: Scope) -> None:
        """Everything of one level."""
        proto, graph = scope.proto, scope.graph
        for item in (*proto.value_info, *proto.output):
            scope.types[item.name] = item
        self.inputs(scope)
        self.initializers(scope)
        self.nodes(scope, proto.node)
        graph.set_outputs([self.output(scope, item) for item in proto.output])
        if not all(type(name) is str for name in scope.values):
            bad = next(name for name in scope.values if type(name) is not str)
            raise not_text(bad, f"{self.place}{self.outer}")
        about: dict[str, Any] = {}
        if proto.doc_string:
            about["doc"] = text(proto.doc_string, str(self.place))
        if proto.metadata_props:
            about["metadata"] = pairs(proto.metadata_props)
        if proto.quantization_annotation:
            about["annotations"] = [
                [text(item.tensor_name, "an annotation"), pairs(item.quant_parameter_tensor_names)]
                for item in proto.quantization_annotation
            ]
        self.note(graph, about)
        values = {item.name: found for item in (*proto.input, *scope.types.values()) if (found := self.about(item))}
        if values:
            self.note(graph, {"values": values})

    @staticmethod
    def note(graph: Graph, about: dict[str, Any]) -> None:
        """Keep what the IR has no field for."""
        if about:
            graph.metadata.setdefault(MODEL, {}).update(about)

    @staticmethod
    def about(item: onnx.ValueInfoProto) -> dict[str, Any]:
        """What a message says of a value besides its type."""
        found = denotation(item.type)
        if item.doc_string:
            found["doc"] = text(item.doc_string, item.name)
        if item.metadata_props:
            found["metadata"] = pairs(item.metadata_props)
        return found

    def inputs(self, scope: Scope) -> None:
        """Declare the inputs; those that are constants in old files are left to `initializers`."""
        graph, proto = scope.graph, scope.proto
        given = {item.name for item in proto.initializer} | {item.values.name for item in proto.sparse_initializer}
        frozen = given if not self.defaults else set()
        for item in proto.input:
            if not item.name:
                raise LadingError("F612", "an input has no name", f"{self.place}, graph {proto.name!r}")
            if item.name not in frozen:
                type_ = self.types.read(item.type, item.name)
                self.define(scope, item.name, graph.add_input(self.own_name(scope, item.name), type_))
        if frozen and any(item.name in frozen for item in proto.input):
            self.note(graph, {"inputs": [item.name for item in proto.input]})

    def initializers(self, scope: Scope) -> None:
        """Add the constants, and as tables the defaults of inputs."""
        place = self.place
        if scope.parent is None:
            for name, tensor in self.constants.items():
                self.constant(scope, name, tensor)
        for proto in scope.proto.initializer:
            self.constant(scope, proto.name, tensor_of(proto, place, proto.name))
            if proto.doc_string or proto.metadata_props:
                self.note_tensor(scope.graph, proto)
        for sparse in scope.proto.sparse_initializer:
            name = sparse.values.name
            self.constant(scope, name, dense(sparse, place, name))

    def constant(self, scope: Scope, name: str, tensor: Tensor) -> None:
        """Add a constant, or the default of the input that has its name."""
        if not name:
            raise LadingError("F612", "an initializer has no name", f"{self.place}, graph {scope.proto.name!r}")
        graph, known = scope.graph, scope.values.get(name)
        if known is None or known.const is not None:
            self.define(scope, name, graph.add_const(self.own_name(scope, name), tensor))
            return
        table = DEFAULT + known.name
        if table in graph.tables:
            raise self.twice(name)
        graph.set_table(table, graph.add_const(self.new_name(f"{known.name}.default"), tensor))

    def note_tensor(self, graph: Graph, proto: onnx.TensorProto) -> None:
        """Keep what an initializer says besides its contents."""
        found: dict[str, Any] = {"doc": text(proto.doc_string, proto.name)} if proto.doc_string else {}
        if proto.metadata_props:
            found["metadata"] = pairs(proto.metadata_props)
        graph.metadata.setdefault(MODEL, {}).setdefault("tensors", {})[proto.name] = found

    def output(self, scope: Scope, proto: onnx.ValueInfoProto) -> Value:
        """The value that a level returns under a name."""
        found = scope.find(proto.name)
        if found is None:
            raise self.never([proto.name], f"given as an output of graph {scope.proto.name!r}")
        if found.type is None and found.const is None:
            found.graph.set_type(found, self.types.read(proto.type, proto.name))
        return found

    # ---- names ----

    def define(self, scope: Scope, name: str, value: Value) -> None:
        """Make a name mean a value from here on."""
        if name in scope.values:
            raise self.twice(name)
        scope.values[name] = value

    def twice(self, name: str) -> LadingError:
        """The error for a name that is defined twice at one level."""
        return LadingError("F606", f"{name!r} is defined twice", f"{self.place}{self.outer}")

    def own_name(self, scope: Scope, name: str) -> str:
        """The name itself, or another one where it would hide a name from around the subgraph."""
        if name in scope.values:
            raise self.twice(name)
        if scope.parent is not None and scope.is_taken_outside(name):
            return self.new_name(name)
        return name

    def new_name(self, stem: str) -> str:
        """A name that nothing in the message has."""
        number, name = self.numbers.get(stem, 0), stem
        while name in self.names:
            number += 1
            name = f"{stem}.{number}"
        self.numbers[stem] = number
        self.names.add(name)
        return name

    def absent(self, scope: Scope, names: Iterable[str], reader: str) -> None:
        """Inputs of the outermost graph for names that nobody defines; LadingError F604 when that is not wanted."""
        names = [text(name, f"{self.place}{self.outer}, read by {reader}") for name in names]
        if self.free == "error":
            raise self.never(names, f"read by {reader}")
        root = scope.root
        for name in names:
            type_ = self.type_of(scope, name) or self.type_of(root, name)
            value = root.graph.add_input(root.graph.fresh_name(name), type_, loc=f"{UNMADE} read by {reader}")
            root.values[name] = value
            self.unmade.append(value)

    def never(self, names: Sequence[str], how: str) -> LadingError:
        """The error for names that nobody defines."""
        shown = ", ".join(map(repr, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        known = [name for name in self.names if type(name) is str and name not in names]
        near = suggest(names[0], sorted(known)) if how.startswith("given") and len(known) <= MOST_SUGGESTED else ""
        return LadingError("F604", f"never produced: {shown}", f"{self.place}{self.outer}, {how}", near)

    # ---- nodes ----

    def nodes(self, scope: Scope, protos: Sequence[onnx.NodeProto]) -> None:
        """Add the nodes of a level, in the order of the message where that is possible."""
        for position, proto in enumerate(protos):
            if not self.node(scope, proto):
                for later in self.sorted(scope, list(protos)[position:]):
                    self.node(scope, later)
                return

    def sorted(self, scope: Scope, protos: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """Nodes in dataflow order, once the names that nobody produces are dealt with."""
        order, missing, stuck = sort_nodes(protos, lambda name: scope.find(name) is not None)
        if missing:
            wanted = set(missing)
            reader = next(node for node in protos if wanted & set(node.input) or self.reads_inside(node, wanted))
            self.absent(scope, missing, describe(reader))
        if stuck:
            shown = "; ".join(describe(node) for node in stuck[:4])
            message = f"the nodes form a cycle: {shown}" + (f" and {len(stuck) - 4} more" if len(stuck) > 4 else "")
            raise LadingError("F605", message, f"{self.place}{self.outer}")
        return order

    @staticmethod
    def reads_inside(node: onnx.NodeProto, wanted: set[str]) -> bool:
        """True when a subgraph of a node captures one of the names."""
        return any(wanted & set(captured(item.g)) for item in node.attribute if item.HasField("g"))

    def node(self, scope: Scope, proto: onnx.NodeProto) -> bool:
        """Add a node; False when a name it reads is not defined yet."""
        values = scope.values
        inputs: list[Value | None] = []
        for name in proto.input:
            if not name:
                inputs.append(None)
                continue
            value = values.get(name)
            if value is None:
                value = scope.find(name)
                if value is None:
                    return False
            inputs.append(value)
        attrs: dict[str, Any] = {}
        graphs: list[onnx.AttributeProto] = []
        if proto.attribute:
            attrs, graphs = self.read_attributes(proto)
            for item in graphs:
                bodies = (item.g, *item.graphs) if item.HasField("g") else item.graphs
                if not all(scope.find(name) for body in bodies for name in captured(body)):
                    return False
        self.add(scope, proto, inputs, attrs, graphs)
        return True

    def read_attributes(self, proto: onnx.NodeProto) -> tuple[dict[str, Any], list[onnx.AttributeProto]]:
        """Attributes by name, and apart from them those that hold graphs.

        Attributes that refer to a function's are stand-ins; `extras` notes what they stand for.
        """
        label = proto.name or (proto.output[0] if proto.output else proto.op_type)
        attrs: dict[str, Any] = {}
        graphs: dict[str, onnx.AttributeProto] = {}
        for item in proto.attribute:
            name = item.name
            if name in attrs or name in graphs or not name or type(name) is not str:
                text(name, self.where(proto))
                raise LadingError("F612", f"attribute {name!r} is there twice or has no name", self.where(proto))
            if item.ref_attr_name:
                attrs[name] = stand_in(item.type or kind_of(item), label)
            elif item.type in (GRAPH, GRAPHS) or item.HasField("g"):
                graphs[name] = item
            elif item.type == onnx.AttributeProto.SPARSE_TENSOR and proto.op_type == "Constant":
                attrs["value"] = dense(item.sparse_tensor, self.place, label)
            else:
                attrs[name] = self.attributes.read(item, label)
        return attrs, list(graphs.values())

    def where(self, proto: onnx.NodeProto) -> str:
        """The place of a node for an error."""
        return f"{self.place}{self.outer}, {describe(proto)}"

    def add(
        self,
        scope: Scope,
        proto: onnx.NodeProto,
        inputs: list[Value | None],
        attrs: dict[str, Any],
        graphs: list[onnx.AttributeProto],
    ) -> None:
        """Add a node whose operands are known, then the graphs it holds."""
        names = list(proto.output)
        if type(proto.name) is not str:
            raise not_text(proto.name, f"{self.place}{self.outer}")
        outputs = [self.output_name(scope, proto, name) for name in names]
        label = proto.name or (names[0] if names else "")
        node = scope.graph.add(
            self.operator(proto),
            inputs,
            attrs,
            outputs=outputs,
            types=[self.type_of(scope, name) for name in names],
            name=proto.name,
            loc=label,
        )
        values = scope.values
        for name, value in zip(names, node.outputs, strict=True):
            if name:
                if name in values:
                    raise self.twice(name)
                values[name] = value
        self.extras(node, proto, names)
        for item in graphs:
            many = item.type == GRAPHS
            made = tuple(self.subgraph(scope, node, body) for body in (item.graphs if many else (item.g,)))
            scope.graph.set_attrs(node, **{item.name: (made or EmptyList("graphs")) if many else made[0]})

    def output_name(self, scope: Scope, proto: onnx.NodeProto, name: str) -> str:
        """The name that an output has in the IR."""
        if not name:
            return self.new_name(f"{proto.op_type.lower()}.absent")
        if scope.parent is not None and scope.is_taken_outside(name):
            return self.new_name(name)
        return name

    def type_of(self, scope: Scope, name: str) -> ValueType | None:
        """The type that the message records for an output of a node."""
        info = scope.types.get(name) if name else None
        return self.types.read(info.type, name) if info is not None else None

    def operator(self, proto: onnx.NodeProto) -> str:
        """Name of an operator in the IR; LadingError F614 for one that cannot be written there, F617 without
        version."""
        key = (proto.op_type, proto.domain)
        found = self.operators.get(key)
        if found is None:
            op_type, domain = (text(item, self.where(proto)) for item in key)
            if not op_type or "." in op_type:
                raise LadingError("F614", f"an operator cannot be called {op_type!r}", self.where(proto))
            plain = domain in ("", "ai.onnx")
            if plain and "" not in self.scope.graph.opsets:
                message = f"{op_type} is an operator of ONNX, and no version of ONNX's operators is imported"
                raise LadingError("F617", message, self.where(proto))
            found = self.operators[key] = op_type if plain else f"{domain}.{op_type}"
        return found

    def extras(self, node: Node, proto: onnx.NodeProto, names: list[str]) -> None:
        """Overload, documentation, metadata, and notes on what the IR writes differently."""
        if proto.overload:
            node.overload = text(proto.overload, self.where(proto))
        if proto.metadata_props:
            node.metadata = pairs(proto.metadata_props)
            loc = node.metadata.pop(LOCATION, "")
            if loc:
                node.home.set_loc(node, loc)
        if proto.doc_string:
            node.metadata[DOC] = text(proto.doc_string, self.where(proto))
        if "" in names:
            node.metadata[ABSENT] = json.dumps([index for index, name in enumerate(names) if not name])
        if proto.attribute:
            refs = {i.name: text(i.ref_attr_name, self.where(proto)) for i in proto.attribute if i.ref_attr_name}
            if refs:
                if not self.outer:
                    message = "an attribute refers to one of a function, but the node is in no function"
                    raise LadingError("F612", message, self.where(proto))
                node.metadata[REFS] = json.dumps(refs)
        if proto.device_configurations:
            raise LadingError("F611", "device configurations of nodes are not supported", self.where(proto))

    def subgraph(self, scope: Scope, node: Node, proto: onnx.GraphProto) -> Graph:
        """The graph of an attribute."""
        graph = Graph(text(proto.name, str(self.place)), owner=node)
        self.fill(Scope(graph, proto, scope))
        return graph


def pairs(items: Iterable[onnx.StringStringEntryProto]) -> dict[str, str]:
    """Key/value messages as a dict."""
    return {text(item.key, "a metadata entry"): text(item.value, f"the metadata {item.key!r}") for item in items}


def text(item: str, where: str) -> str:
    """A text as it is; LadingError F616 when it is not text, which the decoder gives as bytes."""
    if type(item) is not str:
        raise not_text(item, where)
    return item


def not_text(item: object, where: str) -> LadingError:
    """The error for bytes in the place of text."""
    return LadingError("F616", f"{item!r} is not text", where, "the file is damaged")


def describe(proto: onnx.NodeProto) -> str:
    """A node for an error: operator, name, first output."""
    named = f" {proto.name!r}" if proto.name else ""
    made = f" making {proto.output[0]!r}" if len(proto.output) else ""
    return f"{proto.op_type}{named}{made}"


__all__ = ["Free", "Lift", "Scope", "describe", "pairs", "text"]
