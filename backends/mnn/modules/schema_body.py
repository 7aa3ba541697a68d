"""The function bodies that ONNX's own schemas give for some operators, as nodes of a graph.

Source: the functions of ``onnx.defs`` (ONNX, docs/Operators.md, "Function" under an operator's name); those that depend on
attributes and element types are made for the node at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.mnn.modules.build import Build
from ir.base.types import TensorType
from ir.graph.graph import OPSET, Graph, Node, Value
from ir.infer.engine import infer_node
from ir.onnx.export import Exporter
from ir.onnx.values import attribute_value, write_type
from ir.ops.registry import opsets_of, root_of, schema_of
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor

if TYPE_CHECKING:
    import onnx


def schema_body(node: Node) -> onnx.FunctionProto | None:
    """The body that ONNX gives for a node at the opset of its graph; None where it gives none."""
    import onnx

    opset = opsets_of(node.home).get(node.domain, OPSET)
    schema = schema_of(node.domain, node.op_type, opset)
    if schema is None:
        return None
    if schema.has_function:
        versions = [version for version in schema.function_opset_versions if version <= opset]
        if not versions:
            return None
        text = schema.get_function_with_opset_version(max(versions))
        return onnx.FunctionProto.FromString(text) if isinstance(text, bytes) else text
    if not schema.has_context_dependent_function:
        return None
    versions = [version for version in schema.context_dependent_function_opset_versions if version <= opset]
    types = [_type_proto(value, opsets_of(node.home).get("", OPSET)) for value in node.inputs]
    if not versions or any(found is None for found in types):
        return None
    text = schema.get_context_dependent_function_with_opset_version(
        max(versions), _node_proto(node).SerializeToString(), [found.SerializeToString() for found in types if found]
    )
    found = onnx.FunctionProto.FromString(text)
    return found if found.node else None


def write_out(node: Node, b: Build, body: onnx.FunctionProto) -> Sequence[Value | None]:
    """The nodes of a body in front of the node that it stands for; what stands for each of its outputs."""
    known: dict[str, Value | None] = {"": None}
    known.update(zip(body.input, [*node.inputs, *([None] * (len(body.input) - len(node.inputs)))], strict=False))
    attrs = {item.name: item for item in body.attribute_proto}
    for proto in body.node:
        _copy(proto, b.graph, known, node, attrs, b.made)
    return [known[name] for name in body.output[: len(node.outputs)]]


def _copy(
    proto: onnx.NodeProto,
    graph: Graph,
    known: dict[str, Value | None],
    call: Node,
    defaults: Mapping[str, onnx.AttributeProto],
    made: list[Node] | None,
) -> None:
    """One node of a body; nodes of inner graphs stand at their end (`made` is None)."""
    import onnx

    inner = [item for item in proto.attribute if item.type == onnx.AttributeProto.GRAPH]
    attrs: dict[str, Any] = {}
    for item in proto.attribute:
        if item.type != onnx.AttributeProto.GRAPH:
            value = _attribute(item, call, defaults)
            if value is not None:
                attrs[item.name] = value
    if proto.op_type == "Constant" and len(attrs) == 1:
        known[proto.output[0]] = graph.add_const(
            f"{call.outputs[0].name}.{proto.output[0]}", _constant(attrs), call.loc
        )
        return
    node = graph.add(
        f"{proto.domain}.{proto.op_type}" if proto.domain not in ("", "ai.onnx") else proto.op_type,
        [known[name] for name in proto.input],
        attrs,
        outputs=[f"{call.outputs[0].name}.{name or proto.op_type.lower()}" for name in proto.output],
        before=call if made is not None else None,
        loc=call.loc,
    )
    known.update(zip(proto.output, node.outputs, strict=True))
    for item in inner:
        graph.set_attrs(node, **{item.name: _inner(item.g, node, known, call, defaults)})
    if made is not None:
        made.append(node)
    for value, found in zip(node.outputs, infer_node(node), strict=False):
        graph.set_type(value, found)


def _constant(attrs: Mapping[str, Any]) -> Tensor:
    """The tensor that a Constant holds, whichever of its attributes says it."""
    name, value = next(iter(attrs.items()))
    if isinstance(value, Tensor):
        return value
    return InlineTensor(np.array(value, np.float32 if name.startswith("value_float") else np.int64))


def _inner(
    proto: onnx.GraphProto,
    owner: Node,
    known: Mapping[str, Value | None],
    call: Node,
    defaults: Mapping[str, onnx.AttributeProto],
) -> Graph:
    twin = Graph(proto.name, owner=owner)
    seen = dict(known)
    for item in proto.input:
        seen[item.name] = twin.add_input(twin.fresh_name(f"{call.outputs[0].name}.{item.name}"), None)
    for node in proto.node:
        _copy(node, twin, seen, call, defaults, None)
    twin.set_outputs([value for item in proto.output if (value := seen[item.name]) is not None])
    return twin


def _attribute(item: onnx.AttributeProto, call: Node, defaults: Mapping[str, onnx.AttributeProto]) -> Any:
    """The value of an attribute; one that refers to the call's is the call's, its default, or None."""
    if item.ref_attr_name:
        found = call.attrs.get(item.ref_attr_name)
        if found is not None:
            return found
        given = defaults.get(item.ref_attr_name) or _default(call, item.ref_attr_name)
        if given is None:
            return None
        item = given
    return attribute_value(item)


def _default(call: Node, name: str) -> onnx.AttributeProto | None:
    """The default value that the schema of an operator has for an attribute."""
    schema = schema_of(call.domain, call.op_type, opsets_of(call.home).get(call.domain, OPSET))
    found = schema.attributes[name].default_value if name in schema.attributes else None
    return found if found is not None and found.name else None


def _type_proto(value: Value | None, opset: int) -> onnx.TypeProto | None:
    """The type of an operand as ONNX writes it, an empty one for an operand that is left out; None where it is not known."""
    import onnx

    found = onnx.TypeProto()
    if value is None:
        return found
    if not isinstance(value.type, TensorType):
        return None
    write_type(found, value.type, opset)
    return found


def _node_proto(node: Node) -> onnx.NodeProto:
    import onnx

    proto = onnx.NodeProto()
    Exporter(root_of(node.home), None, False, {}).node(proto, node)
    return proto


__all__ = ["schema_body", "write_out"]
