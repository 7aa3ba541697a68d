"""The IR as an ``onnx.ModelProto``: what onnxruntime evaluates, ONNX's inference reads and the ONNX backend writes.

Operators of other domains become model-local functions, one specialisation (an ONNX function overload) for each set of
attributes, element types and ranks in use. Element types that ONNX or the opset lacks are widened to the next type that
holds every value.
"""

from __future__ import annotations

import os
from base64 import b64decode
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ir.base.diag import LadingError
from ir.base.types import TensorType, ValueType
from ir.base.whole_files import write_pair, write_whole
from ir.graph.compare import attr_key
from ir.graph.graph import OPSET, EmptyList, Graph, Node, Value
from ir.onnx.keys import LOCATION, MODEL, RESERVED, references
from ir.onnx.values import onnx_bytes, onnx_dtype, read_type, stored_bytes, tensor_proto, write_constant, write_type
from ir.ops.meaning import OLDEST, define
from ir.ops.registry import opdef, opsets_of, root_of
from ir.tensor.base import Tensor

if TYPE_CHECKING:
    import onnx

IR_VERSION = 11
"""Model format version: function overloads and metadata on nodes, and what onnxruntime reads at opset 24."""
SMALL_BYTES = 1024
"""Constants up to this size stay inside the model when the others go to a file; shapes and axes are among them."""
_ALIGNMENT = 4096

Constants = Callable[[Value], "onnx.TensorProto | None"]


@contextmanager
def fits(item: Node | Graph) -> Iterator[None]:
    """Writing of a node or graph as a message, with a coded error for what messages cannot hold.

    These are integers of more than 64 bits, lone surrogates, and lists of several kinds.

    Raises:
        LadingError: T232.
    """
    try:
        yield
    except (ValueError, OverflowError) as error:
        from ir.graph.describe import describe

        where = describe(item) if isinstance(item, Node) else f"graph {item.name!r}"
        raise LadingError("T232", f"ONNX has no place for this: {error}", where) from error


def fitting(write: Callable[[Any, Any, Any], None]) -> Callable[[Any, Any, Any], None]:
    """A method that writes a node or graph, its last argument, within `fits`."""

    @wraps(write)
    def method(self: Any, proto: Any, item: Any) -> None:
        with fits(item):
            write(self, proto, item)

    return method


def to_model(
    graph: Graph,
    *,
    external: bool = False,
    constants: Constants | None = None,
    functions: bool = True,
    tables: bool = False,
) -> onnx.ModelProto:
    """The graph as a model.

    Args:
        graph: a root graph.
        external: constants above `SMALL_BYTES` refer to a file beside the model, with the layout of `layout_external`;
            `write_model` writes it.
        constants: makes the initializer of a constant; None declares the constant as a graph input instead, whose
            contents are fed at run time. Overrides `external`.
        functions: define operators of other domains by model-local functions.
        tables: return the graph's tables as further outputs.

    Raises:
        LadingError: T230 an operator whose definition needs an input type that is unknown.
    """
    if constants is None and external:
        constants = external_constants(layout_external(graph), f"{graph.name}.onnx.data")
    outputs = list(graph.outputs)
    if tables:
        outputs += [value for value in graph.tables.values() if value not in outputs]
    return export_nodes(graph, graph.nodes, graph.inputs, outputs, constants=constants, functions=functions)


def export_nodes(
    graph: Graph,
    nodes: Iterable[Node],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    *,
    constants: Constants | None = None,
    functions: bool = True,
    types: Mapping[Value, ValueType | None] | None = None,
) -> onnx.ModelProto:
    """A model of some nodes of a graph, in program order.

    Args:
        graph: the graph that holds the nodes.
        nodes: the nodes; every value they read is one of `inputs`, a constant or the output of an earlier node.
        inputs, outputs: what the model takes and returns; an output read twice is returned once.
        constants, functions: as for `to_model`.
        types: types to declare instead of the recorded ones.
    """
    import onnx

    exporter = Exporter(graph, constants, functions, types or {})
    model = onnx.ModelProto(ir_version=IR_VERSION, producer_name="lading")
    exporter.fill(model.graph, graph.name, list(nodes), inputs, outputs)
    for domain, version in exporter.opsets.items():
        model.opset_import.add(domain=domain, version=version)
    model.functions.extend(exporter.functions.values())
    for key, value in graph.metadata.items():
        if isinstance(value, str):
            model.metadata_props.add(key=key, value=value)
    return model


@dataclass
class Exporter:
    """Writes the levels of a graph and its functions into messages.

    Attributes:
        graph: the graph that is written.
        constants, define_functions, types: see `export_nodes`.
        functions: the functions written so far.
        opsets: versions of the operator domains written so far.
        given: the functions that the graph holds.
    """

    graph: Graph
    constants: Constants | None
    define_functions: bool
    types: Mapping[Value, ValueType | None]
    functions: dict[tuple[Hashable, ...], onnx.FunctionProto] = field(default_factory=dict)
    opsets: dict[str, int] = field(default_factory=dict)
    given: Mapping[str, Graph] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.opsets = {"": OPSET, **opsets_of(self.graph)}
        self.given = self.given or root_of(self.graph).functions

    def fill(
        self,
        proto: onnx.GraphProto,
        name: str,
        nodes: Sequence[Node],
        inputs: Sequence[Value],
        outputs: Sequence[Value],
        level: Graph | None = None,
    ) -> None:
        """Write one level of the graph; `level` is the graph whose constants it holds, None for all that it reads."""
        proto.name = name or "main"
        for value in inputs:
            self.declare(proto.input.add(), value)
        for value in self._read_constants(nodes, outputs, level):
            initializer = tensor_proto(value.tensor, value.name, self.opsets[""]) if self.constants is None else None
            if self.constants is not None:
                initializer = self.constants(value)
            if initializer is None:
                self.declare(proto.input.add(), value)
            else:
                proto.initializer.append(initializer)
        for node in nodes:
            self.node(proto.node.add(), node)
        seen: dict[str, None] = {}
        for value in outputs:
            if value.name not in seen:
                seen[value.name] = None
                self.declare(proto.output.add(), value)
        for node in nodes:
            for value in node.outputs:
                if value.type is not None and value.name not in seen:
                    self.declare(proto.value_info.add(), value)

    @staticmethod
    def _read_constants(nodes: Sequence[Node], outputs: Sequence[Value], level: Graph | None = None) -> list[Value]:
        """The constants that nodes, their bodies and outputs read, of one graph or of every one."""
        found: dict[Value, None] = {}
        for node in nodes:
            found.update((value, None) for value in outside_reads(node) if value.const is not None)
        found.update((value, None) for value in outputs if value.const is not None)
        return [value for value in found if level is None or value.graph is level]

    def declare(self, proto: onnx.ValueInfoProto, value: Value) -> None:
        """Write name and type of a value."""
        proto.name = value.name
        type_ = self.types.get(value, value.type)
        if type_ is not None:
            write_type(proto.type, type_, self.opsets[""])

    @fitting
    def node(self, proto: onnx.NodeProto, node: Node) -> None:
        """Write a node, and the function that defines it when its domain is not ONNX's."""
        proto.op_type, proto.domain, proto.name = node.op_type, node.domain, node.name
        proto.input.extend("" if value is None else value.name for value in node.inputs)
        proto.output.extend(value.name for value in node.outputs)
        proto.overload = node.overload
        refs = references(node) if node.metadata else {}
        for name, value in node._attrs.items():
            if name in refs:
                kind = attribute_kind(node, name, value)
                proto.attribute.add(name=name, type=kind, ref_attr_name=refs[name])
            else:
                self.attribute(proto.attribute.add(), node, name, value)
        for key, text in node.metadata.items():
            if key not in RESERVED:
                proto.metadata_props.add(key=key, value=text)
        if node.loc:
            proto.metadata_props.add(key=LOCATION, value=node.loc)
        if node.domain:
            self.opsets.setdefault(node.domain, 1)
        if self.define_functions and (node.domain or self.given):
            self._function(proto, node)

    def attribute(self, proto: onnx.AttributeProto, node: Node, name: str, value: Any) -> None:
        """Write an attribute, of the kind that the operator declares."""
        proto.name = name
        kind = attribute_kind(node, name, value)
        proto.type = kind
        many = isinstance(value, tuple)
        for item in value if many else (value,):
            self._attribute_item(proto, node, kind, many, item)

    def _attribute_item(self, proto: onnx.AttributeProto, node: Node, kind: int, many: bool, item: Any) -> None:
        name = _FIELDS[kind]
        if isinstance(item, Graph):
            sub = proto.graphs.add() if many else proto.g
            self.fill(sub, item.name, list(item.nodes), item.inputs, item.outputs, item)
        elif isinstance(item, Tensor):
            made = tensor_proto(item, "", self.opsets[""])
            (proto.tensors.add() if many else proto.t).CopyFrom(made)
        elif isinstance(item, ValueType):
            write_type(proto.type_protos.add() if many else proto.tp, item, self.opsets[""])
        elif name in ("sparse_tensor", "sparse_tensors"):
            (proto.sparse_tensors.add() if many else proto.sparse_tensor).CopyFrom(item)
        else:
            item = item.encode() if isinstance(item, str) else item
            try:
                if many:
                    getattr(proto, name).append(item)
                else:
                    setattr(proto, name, item)
            except TypeError as error:
                raise ValueError(f"{item!r} in attribute {proto.name!r}: {error}") from error

    # ---- functions ----

    def _function(self, proto: onnx.NodeProto, node: Node) -> None:
        given = self.given.get(f"{node.op}:{node.overload}" if node.overload else node.op)
        if given is not None:
            self.given_function(node.op, node.overload, given)
            return
        definition = opdef(node)
        if definition is None or definition.define is None:
            return
        key = (node.op, *specialisation(node))
        if key not in self.functions:
            count = sum(1 for known in self.functions if known[0] == node.op)
            self._write_function(key, node, self._body(node), f"v{count}" if count else "")
        proto.overload = self.functions[key].overload

    def given_function(self, op: str, overload: str, body: Graph) -> None:
        """Write a function that the graph holds, unless it is written already."""
        import onnx

        if (op, overload) in self.functions:
            return
        domain, _, name = op.rpartition(".")
        proto = onnx.FunctionProto(name=name, domain=domain, overload=overload)
        self.functions[op, overload] = proto
        about = body.metadata.get(MODEL, {}).get("function", {})
        proto.attribute.extend(about.get("attributes", ()))
        for text in about.get("defaults", ()):
            proto.attribute_proto.add().ParseFromString(b64decode(text))
        inner = type(self)(body, None, self.define_functions, {}, self.functions, given=self.given)
        inner.body(proto, body)
        used = {*body.opsets, *(node.domain for node in body.walk())}
        for known, version in inner.opsets.items():
            if known in used:
                proto.opset_import.add(domain=known, version=version)

    @staticmethod
    def _body(node: Node) -> Graph:
        try:
            return define(node)
        except (ValueError, AttributeError) as error:
            from ir.graph.describe import describe

            old = opsets_of(node.graph).get("", OPSET) < OLDEST
            hint = "convert the model to a newer opset" if old else "infer the types of the graph first"
            message = f"{node.op} cannot be defined in ONNX terms: {error}"
            raise LadingError("T230", message, describe(node), hint) from error

    def _write_function(self, key: tuple[Hashable, ...], node: Node, body: Graph, overload: str) -> None:
        import onnx

        proto = onnx.FunctionProto(name=node.op_type, domain=node.domain, overload=overload)
        self.functions[key] = proto
        proto.attribute.extend(node._attrs)
        inner = type(self)(self.graph, None, self.define_functions, {}, self.functions, given=self.given)
        inner.opsets = self.opsets
        inner.body(proto, body)
        used = {"", *(item.domain for item in body.nodes)}
        for domain in used:
            proto.opset_import.add(domain=domain, version=self.opsets.get(domain, 1))

    def body(self, proto: onnx.FunctionProto, body: Graph) -> None:
        """Write inputs, outputs and nodes of a function; constants become ``Constant`` nodes."""
        import onnx

        proto.input.extend(value.name if value is not None else "" for value in body.inputs)
        proto.output.extend(_function_outputs(body))
        for value in self._read_constants(list(body.nodes), body.outputs):
            made = proto.node.add(op_type="Constant", output=[value.name])
            made.attribute.add(name="value", type=onnx.AttributeProto.TENSOR, t=tensor_proto(value.tensor, ""))
        for item in body.nodes:
            self.node(proto.node.add(), item)
        for name, output in zip(_function_outputs(body), body.outputs, strict=True):
            if name != output.name:
                proto.node.add(op_type="Identity", input=[output.name], output=[name])


def outside_reads(node: Node) -> Iterator[Value]:
    """Every value that a node reads from around itself: its inputs and what the graphs inside it capture."""
    for value in node.inputs:
        if value is not None:
            yield value
    if node.subgraphs:
        inside: set[Graph] = set()
        read: list[Value] = []
        waiting = list(node.subgraphs)
        while waiting:
            graph = waiting.pop()
            inside.add(graph)
            read.extend(graph.outputs)
            for inner in graph.nodes:
                read.extend(value for value in inner.inputs if value is not None)
                waiting.extend(inner.subgraphs)
        yield from (value for value in read if value.graph not in inside)


def _function_outputs(body: Graph) -> list[str]:
    """Names of a function's outputs: no input, constant or other output has them."""
    names: list[str] = []
    for index, value in enumerate(body.outputs):
        plain = value.producer is not None and value.name not in names
        names.append(value.name if plain else f"{value.name}.out{index}")
    return names


def specialisation(node: Node) -> tuple[Hashable, ...]:
    """What the definition of a node of another domain depends on besides the operator."""
    attrs = tuple(sorted((name, attr_key(value)) for name, value in node._attrs.items()))
    types = tuple(_signature(value) for value in node.inputs)
    return (attrs, types, len(node.outputs))


def _signature(value: Value | None) -> Hashable:
    if value is None or not isinstance(value.type, TensorType):
        return None
    return (value.type.dtype.name, value.type.rank)


_FIELDS = {1: "f", 2: "i", 3: "s", 4: "t", 5: "g", 6: "floats", 7: "ints", 8: "strings", 9: "tensors", 10: "graphs",
           11: "sparse_tensor", 12: "sparse_tensors", 13: "tp", 14: "type_protos"}  # fmt: skip
"""``AttributeProto`` field by attribute type."""
_EMPTY = {"floats": 6, "ints": 7, "strings": 8, "tensors": 9, "graphs": 10, "types": 14}
"""Attribute type of an empty list by its kind."""


def attribute_kind(node: Node, name: str, value: Any) -> Any:
    """Type of an attribute in ``AttributeProto``: as the operator declares it, where the value can be written so."""
    kind, declared = _plain_kind(value), declared_kind(node, name)
    untold = kind == _OTHER or (value == () and not isinstance(value, EmptyList))
    return declared if declared and (untold or (declared, kind) in _WIDER) else kind


def declared_kind(node: Node, name: str) -> int:
    """Type of an attribute as the operator declares it; 0 when it does not."""
    definition = opdef(node)
    described = definition.attrs.get(name) if definition is not None else None
    return _KINDS[described.kind] if described is not None else 0


_KINDS = {
    "float": 1, "int": 2, "str": 3, "tensor": 4, "graph": 5, "floats": 6, "ints": 7, "strs": 8, "tensors": 9,
    "graphs": 10, "sparse_tensor": 11, "sparse_tensors": 12, "type_proto": 13, "type_protos": 14,
}  # fmt: skip
"""``AttributeProto`` type by kind of `ir.ops.registry.AttrDef`."""
_OTHER = 11
"""Plain type of what is none of the attribute values that graphs have, such as numpy's numbers and sparse tensors."""
_WIDER = {(1, 2), (6, 7)}
"""Declared type and plain type of values that can be written as declared: whole numbers as floats."""


def _plain_kind(value: Any) -> int:
    if isinstance(value, EmptyList):
        return _EMPTY[value.kind]
    if isinstance(value, tuple):
        single = {_plain_kind(item) for item in value} or {2}
        return 6 if single == {1, 2} else {1: 6, 2: 7, 3: 8, 4: 9, 5: 10, 11: 12, 13: 14}[single.pop()]
    for kind, classes in ((2, int), (1, float), (3, str | bytes), (4, Tensor), (5, Graph), (13, ValueType)):
        if isinstance(value, classes):
            return kind
    return _OTHER


# ---- constants ----


def all_constants(graph: Graph) -> Iterator[Value]:
    """Every constant of a graph and of the bodies inside it."""
    yield from graph.consts.values()
    for node in graph.nodes:
        for sub in node.subgraphs:
            yield from all_constants(sub)


def layout_external(graph: Graph, above: int = SMALL_BYTES) -> dict[Value, tuple[int, int]]:
    """Offset and length of each constant of more than `above` bytes in the data file, in the order of the constants."""
    opset = opsets_of(graph).get("", OPSET)
    found: dict[Value, tuple[int, int]] = {}
    offset = 0
    for value in all_constants(graph):
        size = stored_bytes(value.tensor, opset) if value.tensor.type.dtype.kind != "s" else 0
        if size > above:
            offset = -(-offset // _ALIGNMENT) * _ALIGNMENT
            found[value] = (offset, size)
            offset += size
    return found


def external_constants(layout: Mapping[Value, tuple[int, int]], location: str) -> Constants:
    """For `to_model`: constants of a layout refer to the file `location`, the others are inside the model."""

    def make(value: Value) -> onnx.TensorProto:
        import onnx

        opset = opsets_of(value.graph).get("", OPSET)
        if value not in layout:
            return tensor_proto(value.tensor, value.name, opset)
        offset, size = layout[value]
        proto = onnx.TensorProto(name=value.name, data_type=onnx_dtype(value.tensor.type.dtype, opset))
        proto.dims.extend(value.tensor.shape)
        proto.data_location = onnx.TensorProto.EXTERNAL
        for key, text in (("location", location), ("offset", str(offset)), ("length", str(size))):
            proto.external_data.add(key=key, value=text)
        return proto

    return make


def write_model(graph: Graph, path: str | os.PathLike[str], *, tables: bool = False) -> None:
    """Write a model and, beside it, ``<name>.data`` with its large constants, streamed in row ranges.

    Both files appear complete or not at all; an existing pair is replaced.

    Raises:
        LadingError: T232 when the files cannot be written, T230 as `to_model`.
    """
    target = Path(path)
    layout = layout_external(graph)
    location = target.name + ".data"
    opset = opsets_of(graph).get("", OPSET)

    def model(beside: str) -> bytes:
        return to_model(graph, constants=external_constants(layout, beside), tables=tables).SerializeToString()

    def fill(path: Path) -> None:
        with open(path, "wb") as file:
            for value, (offset, _) in layout.items():
                write_constant(file, value.tensor, offset, opset)

    whole = model(location)
    try:
        if layout:
            write_pair(target, location, fill, lambda name: whole if name == location else model(name))
        else:
            with write_whole(target) as part:
                part.write_bytes(whole)
    except OSError as error:
        raise LadingError("T232", f"cannot write: {error.strerror or error}", where=os.fspath(target)) from error


__all__ = [
    "IR_VERSION",
    "Exporter",
    "all_constants",
    "attribute_kind",
    "declared_kind",
    "export_nodes",
    "external_constants",
    "fits",
    "fitting",
    "layout_external",
    "onnx_bytes",
    "onnx_dtype",
    "outside_reads",
    "read_type",
    "stored_bytes",
    "tensor_proto",
    "to_model",
    "write_constant",
    "write_model",
    "write_type",
]
