"""Small ONNX models as graphs: a plain importer for tests, which knows inline tensors only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from ir.base.types import Dim, dtype_of_onnx
from ir.graph.graph import Graph, Value
from ir.onnx.export import read_type
from ir.tensor.inline import InlineTensor


class Unsupported(Exception):
    """The model has something that this importer leaves out."""


def graph_of(model: onnx.ModelProto, *, types: bool = False, fixed: Mapping[str, np.ndarray] | None = None) -> Graph:
    """The main graph of a model.

    Args:
        model: the model.
        types: take the types of inner values and outputs over.
        fixed: inputs that become constants.
    """
    graph = Graph(model.graph.name, {item.domain.replace("ai.onnx", "", 1) if item.domain == "ai.onnx" else item.domain:
                                     item.version for item in model.opset_import})  # fmt: skip
    if model.functions:
        raise Unsupported("functions")
    _fill(graph, model.graph, {}, types, fixed or {})
    return graph


def _fill(
    graph: Graph, proto: onnx.GraphProto, outer: dict[str, Value], types: bool, fixed: Mapping[str, np.ndarray]
) -> None:
    names = dict(outer)
    if proto.sparse_initializer:
        raise Unsupported("sparse initializers")
    initialized = {item.name for item in proto.initializer}
    for item in proto.input:
        if item.name in fixed:
            names[item.name] = graph.add_const(item.name, InlineTensor(fixed[item.name]))
        elif item.name not in initialized:
            names[item.name] = graph.add_input(item.name, _type(item.type))
    for item in proto.initializer:
        names[item.name] = graph.add_const(item.name, _tensor(item))
    known = {info.name: info.type for info in (*proto.value_info, *proto.output)} if types else {}
    for item in proto.node:
        _node(graph, item, names, known, types)
    graph.set_outputs([names[item.name] for item in proto.output])


def _node(graph: Graph, proto: onnx.NodeProto, names: dict[str, Value], known: dict[str, Any], types: bool) -> None:
    op = f"{proto.domain}.{proto.op_type}" if proto.domain not in ("", "ai.onnx") else proto.op_type
    inputs = [names[name] if name else None for name in proto.input]
    attrs = {item.name: _attribute(item) for item in proto.attribute if not item.HasField("g")}
    if len({name for name in proto.output if name}) != len(proto.output):
        raise Unsupported("outputs left out")
    node = graph.add(op, inputs, attrs, outputs=list(proto.output), name=proto.name)
    for item in proto.attribute:
        if item.HasField("g"):
            sub = Graph(item.g.name, owner=node)
            _fill(sub, item.g, names, types, {})
            graph.set_attrs(node, **{item.name: sub})
    for value, name in zip(node.outputs, proto.output, strict=True):
        names[name] = value
        if name in known:
            graph.set_type(value, _type(known[name]))


def _type(proto: onnx.TypeProto) -> Any:
    counter = iter(range(100))
    return read_type(proto, {}, lambda: Dim(f"unnamed{next(counter)}"))


def _tensor(proto: onnx.TensorProto) -> InlineTensor:
    return InlineTensor(numpy_helper.to_array(proto), dtype_of_onnx(proto.data_type))


def _attribute(proto: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(proto)
    if proto.type == onnx.AttributeProto.TENSOR:
        return _tensor(value)
    if proto.type == onnx.AttributeProto.TENSORS:
        return tuple(_tensor(item) for item in value)
    if proto.type == onnx.AttributeProto.TYPE_PROTO:
        return _type(value)
    if proto.type in (onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.GRAPHS):
        raise Unsupported("sparse tensors or lists of graphs")
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.AttributeProto | float | int):
        return value
    return tuple(item.decode() if isinstance(item, bytes) else item for item in value)
