"""`ir.Graph` to ONNX models and files.

A graph that came from an ONNX model gives that model again: format version, producer, documentation, metadata, order of
the initializers, unused constants, default values of inputs, functions and left-out outputs included. What differs is
how the same is spelt: tensors that the compiler made are written as raw bytes, sparse initializers as dense ones.

Operators of the compiler's own domains become model-local functions, as `ir.onnx.export` describes.
"""

from __future__ import annotations

import os
from base64 import b64decode
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import EncodeError

from ir.base.diag import LadingError
from ir.base.paused_gc import paused_collection
from ir.base.types import TensorType
from ir.base.whole_files import write_pair, write_whole
from ir.graph.graph import OPSET, Graph, Node, Value
from ir.onnx.export import (
    IR_VERSION,
    SMALL_BYTES,
    Exporter,
    all_constants,
    attribute_kind,
    declared_kind,
    external_constants,
    fits,
    fitting,
    layout_external,
    onnx_dtype,
    stored_bytes,
    tensor_proto,
    write_constant,
)
from ir.onnx.keys import DEFAULT, DOC, LOCATION, MODEL, RESERVED, absent_outputs, references
from ir.onnx.proto_tensor import ProtoTensor
from ir.ops.registry import opdef, opsets_of
from ir.tensor.base import Tensor
from ir.tensor.files import FileTensor, find_source
from ir.tensor.inline import InlineTensor

LARGEST = 2**31 - 1
"""Bytes that a protobuf message can have."""
ROOM = 64 << 20
"""Bytes kept for everything that is not a constant when the constants of a model come close to `LARGEST`."""
FIRST_WITH_DEFAULTS = 4
"""Format version from which initializers need not be inputs as well."""
FIRST_WITH_FUNCTIONS, FIRST_WITH_OVERLOADS = 8, 10
_TEXTS = ("producer_name", "producer_version", "domain", "doc_string", "model_version")

Layout = Mapping[Value, tuple[int, int]]


def to_model(graph: Graph, *, data: bool = True) -> onnx.ModelProto:
    """The graph as a model, with its constants inside.

    Args:
        graph: a root graph.
        data: False leaves out the bytes of the root graph's constants, for callers that put their own there; names,
            element types and shapes are written.

    Raises:
        LadingError: T230 an operator of another domain whose definition needs an input type that is unknown.
    """
    return _model(graph, {}, "", data)


def write(graph: Graph, path: str | os.PathLike[str], *, external: bool | int | None = None) -> None:
    """Write a model file and, if need be, ``<name>.data`` beside it with the large constants, streamed in pieces.

    The files appear complete or not at all, and replace those of the same names. A graph that reads constants from a
    file that is replaced reads them from the new files afterwards.

    Args:
        graph: a root graph.
        path: the model file.
        external: size in bytes above which constants go to the second file; True for `SMALL_BYTES`, False for none,
            None for none as long as the model fits into one file (2 GB).

    Raises:
        LadingError: B690 the files cannot be written, B692 the model does not fit into one file; others as `to_model`.
    """
    target = Path(path)
    layout = _layout(graph, external, target)
    location = target.name + ".data"
    try:
        data = _model(graph, layout, location).SerializeToString()
    except (EncodeError, ValueError) as error:
        raise LadingError("B692", f"the model cannot be one file: {error}", str(target), _USE_EXTERNAL) from error
    moved: dict[Value, Tensor] = {}
    try:
        if layout:

            def head(name: str) -> bytes:
                return data if name == location else _model(graph, layout, name).SerializeToString()

            def fill(part: Path) -> None:
                _write_data(graph, layout, part)
                moved.update(_move_constants(graph, layout, [target, target.with_name(location)]))

            write_pair(target, location, fill, head)
        else:
            with write_whole(target) as part:
                part.write_bytes(data)
                moved.update(_move_constants(graph, layout, [target]))
    except OSError as error:
        raise LadingError("B690", f"cannot write: {error.strerror or error}", str(target)) from error
    for value, tensor in moved.items():
        value.graph.set_const(value, tensor)


_USE_EXTERNAL = "let the large constants go to a second file: external=True"


def _layout(graph: Graph, external: bool | int | None, target: Path) -> dict[Value, tuple[int, int]]:
    if external is True:
        return layout_external(graph, SMALL_BYTES)
    if external is not None and external is not False:
        return layout_external(graph, external)
    opset = opsets_of(graph).get("", OPSET)
    total = sum(stored_bytes(v.tensor, opset) for v in all_constants(graph) if v.tensor.type.dtype.kind != "s")
    if total + ROOM <= LARGEST:
        return {}
    if external is False:
        message = f"{total / 1e9:.1f} GB of constants do not fit into one file, whose limit is 2 GB"
        raise LadingError("B692", message, str(target), _USE_EXTERNAL)
    return layout_external(graph, SMALL_BYTES)


def _write_data(graph: Graph, layout: Layout, path: Path) -> None:
    opset = opsets_of(graph).get("", OPSET)
    with open(path, "wb") as file:
        for value, (offset, _) in layout.items():
            write_constant(file, value.tensor, offset, opset)


def _move_constants(graph: Graph, layout: Layout, replaced: Sequence[Path]) -> dict[Value, Tensor]:
    """New tensors for the constants that are read from files about to be replaced."""
    paths = {str(path.resolve()) for path in replaced}
    opset = opsets_of(graph).get("", OPSET)
    found: dict[Value, Tensor] = {}
    for value in all_constants(graph):
        tensor = value.tensor
        if isinstance(tensor, InlineTensor):
            continue
        if not any(os.path.realpath(source.path) in paths for source in find_source(tensor)):
            continue
        if value in layout and onnx_dtype(tensor.type.dtype, opset) == tensor.type.dtype.onnx:
            found[value] = FileTensor(replaced[-1], layout[value][0], tensor.type, value.name)
        else:
            found[value] = InlineTensor(tensor.load(), tensor.type.dtype)
    return found


# ---- the model ----


def _model(graph: Graph, layout: Layout, location: str, data: bool = True) -> onnx.ModelProto:
    about = graph.metadata.get(MODEL, {}).get("model", {})
    version = _format_version(graph, about.get("ir_version", IR_VERSION))
    model = onnx.ModelProto(ir_version=version)
    writer = _Writer(graph, None, True, {}, layout=layout, location=location, version=version, data=data)
    with paused_collection():
        writer.level(model.graph, graph)
        for name, body in graph.functions.items():
            op, _, overload = name.partition(":")
            writer.given_function(op, overload, body)
    place = {name: index for index, name in enumerate(graph.functions)}
    model.functions.extend(sorted(writer.functions.values(), key=lambda proto: place.get(_key(proto), len(place))))
    with fits(graph):
        if about.get("opset_import", True) or writer.opsets != {"": 1}:
            _write_opsets(model, graph, writer.opsets)
        _write_about(model, graph, about)
    return model


def _key(proto: onnx.FunctionProto) -> str:
    """The name of a function in `Graph.functions`."""
    name = f"{proto.domain}.{proto.name}" if proto.domain else proto.name
    return f"{name}:{proto.overload}" if proto.overload else name


def _format_version(graph: Graph, version: int) -> int:
    """The version of the format that the graph came in, or the first that can hold it."""
    own = {node.op: node for node in graph.walk() if node.domain}
    if graph.functions or any((definition := opdef(n)) is not None and definition.define for n in own.values()):
        version = max(version, FIRST_WITH_FUNCTIONS)
    if own and any(node.overload for node in graph.walk()):
        version = max(version, FIRST_WITH_OVERLOADS)
    return version


def _write_opsets(model: onnx.ModelProto, graph: Graph, opsets: Mapping[str, int]) -> None:
    # Readers are known that take the version of whichever domain comes first for that of ONNX's.
    plain = "" in graph.opsets or any(not node.domain for node in graph.walk())
    for domain in sorted(opsets, key=lambda name: name != ""):
        if domain or plain:
            model.opset_import.add(domain=domain, version=opsets[domain])


def _write_about(model: onnx.ModelProto, graph: Graph, about: Mapping[str, Any]) -> None:
    if not about:
        model.producer_name = "lading"
    for name in _TEXTS:
        if name in about:
            setattr(model, name, about[name])
    for text in about.get("configuration", ()):
        model.configuration.add().ParseFromString(b64decode(text))
    _write_pairs(model.metadata_props, {key: text for key, text in graph.metadata.items() if isinstance(text, str)})


def _write_pairs(field: Any, pairs: Mapping[str, str]) -> None:
    for key, value in pairs.items():
        field.add(key=key, value=value)


# ---- levels ----


_TEXT = onnx.AttributeProto.STRING
_DIRECT = {int: (onnx.AttributeProto.INT, "i"), float: (onnx.AttributeProto.FLOAT, "f"), str: (_TEXT, "s")}
"""Attribute type and field of values that need no looking into."""


@dataclass
class _Writer(Exporter):
    """An exporter that restores what the frontend kept.

    Attributes:
        layout, location: constants that go to another file, and its name.
        version: version of the format.
        data: write the bytes of the outermost graph's constants.
        kinds: attribute types as operators declare them.
        written: messages of types, to be copied.
    """

    layout: Layout = field(default_factory=dict)
    location: str = ""
    version: int = IR_VERSION
    data: bool = True
    kinds: dict[tuple[str, str], int] = field(default_factory=dict)
    written: dict[Hashable, onnx.TypeProto] = field(default_factory=dict)

    def fill(
        self,
        proto: onnx.GraphProto,
        name: str,
        nodes: Sequence[Node],
        inputs: Sequence[Value],
        outputs: Sequence[Value],
        level: Graph | None = None,
    ) -> None:
        """Write a body held by a node."""
        self.level(proto, level if level is not None else self.graph)

    @fitting
    def level(self, proto: onnx.GraphProto, graph: Graph) -> None:
        """Write a whole graph, its unread constants included."""
        about = graph.metadata.get(MODEL, {})
        proto.name = graph.name or "main"
        defaults = self.defaults(graph)
        for value in graph.consts.values():
            name = defaults.get(value)
            if name is not None:
                self.constant(proto.initializer.add(), value, name)
            if name is None or value.use_count > 1:
                self.constant(proto.initializer.add(), value, value.name)
        self.inputs(proto, graph, about)
        for node in graph.nodes:
            self.node(proto.node.add(), node)
        returned = set()
        for value in graph.outputs:
            returned.add(value)
            self.declare(proto.output.add(), value)
        for node in graph.nodes:
            for value in node.outputs:
                if value.type is not None and value not in returned:
                    self.declare(proto.value_info.add(), value)
        if about:
            self.restore(proto, graph, about)

    @staticmethod
    def defaults(graph: Graph) -> dict[Value, str]:
        """Constants that are defaults of inputs: the name of the input."""
        names = {value.name for value in graph.inputs}
        tables = (
            (table.removeprefix(DEFAULT), value) for table, value in graph.tables.items() if table.startswith(DEFAULT)
        )
        return {value: name for name, value in tables if name in names and value.const is not None}

    def inputs(self, proto: onnx.GraphProto, graph: Graph, about: Mapping[str, Any]) -> None:
        """Write the inputs; in old versions of the format the constants are among them."""
        if self.version >= FIRST_WITH_DEFAULTS:
            for value in graph.inputs:
                self.declare(proto.input.add(), value)
            return
        place = {name: index for index, name in enumerate(about.get("inputs", ()))}
        among = [value for value in graph.consts.values() if graph.owner is None or value.name in place]
        values = [*graph.inputs, *among]
        for value in sorted(values, key=lambda value: place.get(value.name, len(place))):
            self.declare(proto.input.add(), value)

    def constant(self, proto: onnx.TensorProto, value: Value, name: str) -> None:
        """Write an initializer: a reference to another file, the message it came as, or its bytes."""
        tensor = value.tensor
        if not self.data and value.graph is self.graph:
            proto.data_type = onnx_dtype(tensor.type.dtype, self.opsets.get("", OPSET))
            proto.dims.extend(tensor.shape)
        elif value in self.layout:
            proto.CopyFrom(external_constants(self.layout, self.location)(value))
        elif isinstance(tensor, ProtoTensor):
            proto.CopyFrom(tensor.proto)
        else:
            proto.CopyFrom(tensor_proto(tensor, name, self.opsets.get("", OPSET)))
        proto.name = name

    def declare(self, proto: onnx.ValueInfoProto, value: Value) -> None:
        """Write name and type of a value; a type that many values share is spelt out once."""
        proto.name = value.name
        type_ = value.type
        if not isinstance(type_, TensorType):
            super().declare(proto, value)
            return
        key = (type_.dtype.onnx, type_.shape)
        written = self.written.get(key)
        if written is None:
            super().declare(proto, value)
            # A copy, because denotations are added to what is written.
            self.written[key] = onnx.TypeProto.FromString(proto.type.SerializeToString())
        else:
            proto.type.CopyFrom(written)

    # ---- nodes ----

    @fitting
    def node(self, proto: onnx.NodeProto, node: Node) -> None:
        """Write a node."""
        domain, _, proto.op_type = node.op.rpartition(".")
        names = [value.name for value in node.outputs]
        if node.metadata:
            self.node_extras(proto, node, names)
        proto.input.extend(["" if value is None else value.name for value in node.inputs])
        proto.output.extend(names)
        if node.name:
            proto.name = node.name
        if node.overload:
            proto.overload = node.overload
        if node._attrs:
            self.attributes(proto, node)
        if node.loc and node.loc != node.name and (node.name or node.loc not in names[:1]):
            proto.metadata_props.add(key=LOCATION, value=node.loc)
        if domain:
            proto.domain = domain
            self.opsets.setdefault(domain, 1)
        if domain or self.given:
            self._function(proto, node)

    def node_extras(self, proto: onnx.NodeProto, node: Node, names: list[str]) -> None:
        """Write documentation and metadata, and leave out the outputs that were left out, unless they are read now."""
        for key, text in node.metadata.items():
            if key == DOC:
                proto.doc_string = text
            elif key not in RESERVED:
                proto.metadata_props.add(key=key, value=text)
        for index in absent_outputs(node):
            if index < len(names) and not node.outputs[index].use_count:
                names[index] = ""

    def attributes(self, proto: onnx.NodeProto, node: Node) -> None:
        """Write the attributes, looking up the declared type of each once for all nodes."""
        refs = references(node) if node.metadata else {}
        for name, value in node._attrs.items():
            if name in refs:
                kind = attribute_kind(node, name, value)
                proto.attribute.add(name=name, type=kind, ref_attr_name=refs[name])
            elif not self.plain_attribute(proto, node, name, value):
                self.attribute(proto.attribute.add(), node, name, value)

    def plain_attribute(self, proto: onnx.NodeProto, node: Node, name: str, value: Any) -> bool:
        """Write an attribute of the usual sorts; False for one that needs a closer look."""
        sort = type(value)
        if sort is ProtoTensor:
            made = proto.attribute.add(name=name, type=onnx.AttributeProto.TENSOR)
            made.t.CopyFrom(value.proto)
            return True
        kind, field_name = _DIRECT.get(sort, (onnx.AttributeProto.INTS, ""))
        if sort is not tuple and not field_name:
            return False
        declared = self.kinds.get((node.op, name))
        if declared is None:
            declared = self.kinds[node.op, name] = declared_kind(node, name)
        if declared not in (kind, 0):
            return False
        if sort is tuple:
            if not value or not all(type(item) is int for item in value):
                return False
            proto.attribute.add(name=name, type=kind).ints.extend(value)
            return True
        made = proto.attribute.add(name=name, type=kind)
        setattr(made, field_name, value.encode() if sort is str else value)
        return True

    # ---- what is kept beside the graph ----

    def given_function(self, op: str, overload: str, body: Graph) -> None:
        """Write a function of the graph, with its documentation and types."""
        if (op, overload) in self.functions:
            return
        super().given_function(op, overload, body)
        proto = self.functions[op, overload]
        about = body.metadata.get(MODEL, {})
        function = about.get("function", {})
        if "doc" in function:
            proto.doc_string = function["doc"]
        _write_pairs(proto.metadata_props, function.get("metadata", {}))
        for value in (*body.inputs, *(value for node in body.nodes for value in node.outputs)):
            if value.type is not None:
                self.declare(proto.value_info.add(), value)
        if about.get("values"):
            self.restore_values(list(proto.value_info), proto.value_info, body, about["values"])

    def restore(self, proto: onnx.GraphProto, graph: Graph, about: Mapping[str, Any]) -> None:
        """Write documentation, metadata and annotations of a level."""
        if "doc" in about:
            proto.doc_string = about["doc"]
        _write_pairs(proto.metadata_props, about.get("metadata", {}))
        if about.get("values"):
            infos = [*proto.input, *proto.output, *proto.value_info]
            self.restore_values(infos, proto.value_info, graph, about["values"])
        held = {item.name: item for item in proto.initializer} if "tensors" in about else {}
        for name, found in about.get("tensors", {}).items():
            if name in held and not isinstance(graph.value(name).const if graph.has(name) else None, ProtoTensor):
                held[name].doc_string = found.get("doc", "")
                _write_pairs(held[name].metadata_props, found.get("metadata", {}))
        for tensor, parameters in about.get("annotations", ()):
            if graph.has(tensor):
                made = proto.quantization_annotation.add(tensor_name=tensor)
                _write_pairs(made.quant_parameter_tensor_names, parameters)

    @staticmethod
    def restore_values(
        infos: Iterable[onnx.ValueInfoProto], more: Any, graph: Graph, values: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Write what is known of values besides their types."""
        written: dict[str, list[onnx.ValueInfoProto]] = {}
        for info in infos:
            written.setdefault(info.name, []).append(info)
        for name, found in values.items():
            if name not in written and name in graph._names:
                written[name] = [more.add(name=name)]
            for info in written.get(name, ()):
                _write_value(info, found)


def _write_value(info: onnx.ValueInfoProto, about: Mapping[str, Any]) -> None:
    if "doc" in about:
        info.doc_string = about["doc"]
    _write_pairs(info.metadata_props, about.get("metadata", {}))
    if "denotation" in about:
        info.type.denotation = about["denotation"]
    dims = about.get("dims", ())
    if len(dims) == len(info.type.tensor_type.shape.dim):
        for dim, text in zip(info.type.tensor_type.shape.dim, dims, strict=True):
            if text:
                dim.denotation = text


__all__ = ["to_model", "write"]
