"""graph-surgeon graphs to `ir.Graph`, without copying their constants.

graph-surgeon keeps less than ONNX: documentation, metadata and overloads of nodes are lost before a graph gets here.
Names identify its tensors, as they do when graph-surgeon exports a graph.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from frontends.onnx.lift import Free
from frontends.onnx.load import lift_message
from frontends.onnx.tensors import Place, dense, tensor_of
from ir.base.diag import LadingError
from ir.base.types import dtype_of_onnx
from ir.graph.graph import Graph
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

FORMAT_ASSUMED = 10
"""Version of the ONNX format of a graph that does not name one."""
_KINDS = ("tensor_type", "sequence_type")
"""Kinds of values that graph-surgeon represents."""


def from_graphsurgeon(graph: gs.Graph, *, free: Free = "input", base: str | os.PathLike[str] | None = None) -> Graph:
    """The IR of a graph-surgeon graph, which is not changed.

    Constants are shared with the graph and must not be written to while the result is used.

    Args:
        graph: the graph.
        free: see `frontends.onnx.load.load`.
        base: folder of external data that graph-surgeon has not loaded.

    Raises:
        LadingError: F620 a value or attribute that graph-surgeon cannot represent, so that something is missing;
            others as `frontends.onnx.load.load`.
    """
    place = Place(Path(base) if base is not None else None)
    writer = _Protos(place)
    model = onnx.ModelProto(ir_version=graph.ir_version or FORMAT_ASSUMED)
    model.graph.CopyFrom(writer.graph(graph, root=True))
    model.opset_import.extend(graph.import_domains or [onnx.helper.make_opsetid("", graph.opset)])
    model.producer_name, model.producer_version = graph.producer_name, graph.producer_version
    model.functions.extend(writer.function(item) for item in graph.functions)
    return lift_message(model, place, free, writer.constants)


class _Protos:
    """Writes the nodes of graph-surgeon graphs as messages, their constants apart."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.constants: dict[str, Tensor] = {}

    def graph(self, graph: gs.Graph, root: bool = False, outer: frozenset[str] = frozenset()) -> onnx.GraphProto:
        """The message of a graph; constants of the outermost one go to `constants`."""
        import onnx_graphsurgeon as gs

        proto = onnx.GraphProto(name=graph.name, doc_string=graph.doc_string or "")
        tensors: dict[str, Any] = {}
        made = {tensor.name for node in graph.nodes for tensor in node.outputs}
        for tensor in (*graph.inputs, *graph.outputs, *_tensors(graph.nodes)):
            if tensor.name and (tensor.name in made or tensor.name not in outer):
                tensors.setdefault(tensor.name, tensor)
        known = outer | frozenset(tensors)
        for tensor in graph.inputs:
            self.info(proto.input.add(), tensor)
        for tensor in graph.outputs:
            self.info(proto.output.add(), tensor)
        declared = {tensor.name for tensor in (*graph.inputs, *graph.outputs)}
        for name, tensor in tensors.items():
            if isinstance(tensor, gs.Constant):
                self.constant(proto, tensor, root)
            elif name not in declared and tensor.dtype is not None:
                self.info(proto.value_info.add(), tensor)
        for node in graph.nodes:
            self.node(proto.node.add(), node, known)
        return proto

    def constant(self, proto: onnx.GraphProto, tensor: gs.Constant, root: bool) -> None:
        """Keep a constant of the outermost graph, or write it into a subgraph."""
        if root:
            self.constants[tensor.name] = self.tensor(tensor)
        else:
            self.write_tensor(proto.initializer.add(), tensor)

    def tensor(self, tensor: gs.Constant) -> Tensor:
        """A constant as a tensor of the IR."""
        import onnx_graphsurgeon.ir.tensor as held

        values = tensor._values
        if isinstance(values, held.SparseValues):
            return dense(values.tensor, self.place, tensor.name)
        source = getattr(values, "source", None)
        if isinstance(source, Tensor):
            return source
        if isinstance(values, held.LazyValues):
            return tensor_of(values.tensor, self.place, tensor.name)
        array = np.asarray(values)
        wanted = _element_type(tensor.export_dtype if tensor.export_dtype is not None else array.dtype)
        return InlineTensor(array, dtype_of_onnx(wanted)) if array.dtype.kind not in "OUS" else InlineTensor(array)

    def write_tensor(self, proto: onnx.TensorProto, tensor: gs.Constant) -> None:
        """Write a constant with its data."""
        from ir.onnx.export import tensor_proto

        proto.CopyFrom(tensor_proto(self.tensor(tensor), tensor.name, onnx.defs.onnx_opset_version()))

    def info(self, proto: onnx.ValueInfoProto, tensor: gs.Tensor) -> None:
        """Write name and type of a tensor."""
        proto.name = tensor.name
        kind = getattr(tensor, "type", "tensor_type") or "tensor_type"
        if tensor.dtype is None:
            return
        if kind not in _KINDS:
            message = f"{tensor.name!r} is of kind {kind.removesuffix('_type')}, whose type graph-surgeon does not keep"
            raise LadingError("F620", message, "the graph-surgeon graph", "lift the ONNX model itself")
        held = proto.type.tensor_type if kind == "tensor_type" else proto.type.sequence_type.elem_type.tensor_type
        held.elem_type = _element_type(tensor.dtype)
        if tensor.shape is not None:
            held.shape.SetInParent()
            for size in tensor.shape:
                dim = held.shape.dim.add()
                if isinstance(size, str):
                    dim.dim_param = size
                elif size is not None and int(size) != tensor.DYNAMIC:
                    dim.dim_value = int(size)

    def node(self, proto: onnx.NodeProto, node: gs.Node, known: frozenset[str]) -> None:
        """Write a node."""
        proto.op_type, proto.name, proto.domain = node.op, node.name or "", node.domain or ""
        proto.input.extend(tensor.name for tensor in node.inputs)
        proto.output.extend(tensor.name for tensor in node.outputs)
        for name, value in node.attrs.items():
            self.attribute(proto.attribute.add(), node, name, value, known)

    def attribute(
        self, proto: onnx.AttributeProto, node: gs.Node, name: str, value: Any, known: frozenset[str]
    ) -> None:
        """Write an attribute of any kind that graph-surgeon has."""
        import onnx_graphsurgeon as gs

        proto.name = name
        if isinstance(value, gs.Node.AttributeRef):
            proto.type, proto.ref_attr_name = _reference_type(value.type), value.name
        elif isinstance(value, gs.Graph):
            proto.type = onnx.AttributeProto.GRAPH
            proto.g.CopyFrom(self.graph(value, outer=known))
        elif isinstance(value, gs.Constant):
            proto.type = onnx.AttributeProto.TENSOR
            self.write_tensor(proto.t, value)
        elif isinstance(value, list | tuple) and not len(value):
            proto.type = _declared(node, name)
        else:
            value = _element_type(value) if isinstance(value, type | np.dtype) else value
            try:
                proto.CopyFrom(onnx.helper.make_attribute(name, value))
            except (TypeError, ValueError) as error:
                message = f"attribute {name!r} of {node.op} {node.name!r} cannot be written: {error}"
                raise LadingError("F620", message, "the graph-surgeon graph") from error

    def function(self, function: gs.Function) -> onnx.FunctionProto:
        """Write a function."""
        proto = onnx.FunctionProto(name=function.name, domain=function.domain or "", doc_string=function.doc_string)
        proto.opset_import.extend(function.import_domains or [onnx.helper.make_opsetid("", function.opset)])
        body = self.graph(function)
        for constant in body.initializer:
            made = proto.node.add(op_type="Constant", output=[constant.name])
            made.attribute.add(name="value", type=onnx.AttributeProto.TENSOR, t=constant)
        proto.node.extend(body.node)
        proto.input.extend(tensor.name for tensor in function.inputs)
        proto.output.extend(tensor.name for tensor in function.outputs)
        for name, default in function.attrs.items():
            if default is None:
                proto.attribute.append(name)
            else:
                self.attribute(proto.attribute_proto.add(), function, name, default, frozenset())
        return proto


def _tensors(nodes: Iterable[gs.Node]) -> Iterable[gs.Tensor]:
    for node in nodes:
        yield from node.inputs
        yield from node.outputs


def _element_type(dtype: Any) -> int:
    """ONNX number of a numpy type, or the number itself; LadingError F620 when there is none."""
    if isinstance(dtype, int):
        return dtype
    from ir.base.types import dtype_of_numpy

    try:
        return dtype_of_numpy(dtype).onnx
    except (KeyError, TypeError) as error:
        raise LadingError("F620", f"ONNX has no element type for {dtype!r}", "the graph-surgeon graph") from error


def _reference_type(kind: Any) -> Any:
    from onnx_graphsurgeon.util import misc

    return misc.convert_to_onnx_attr_type(kind)


def _declared(node: Any, name: str) -> Any:
    """Attribute type of an empty list, as the operator declares it; integers when it does not."""
    from ir.ops.registry import schema_of

    schema = schema_of(node.domain or "", getattr(node, "op", ""), onnx.defs.onnx_opset_version())
    if schema is not None and name in schema.attributes:
        return int(schema.attributes[name].type.value)
    return onnx.AttributeProto.INTS


__all__ = ["from_graphsurgeon"]
