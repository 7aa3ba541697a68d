"""Inference by ONNX itself, for operators without a rule of our own: one node at a time, or a function call."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import Dim, TensorType, ValueType
from ir.graph.graph import Node, Value
from ir.infer.inference import Inference
from ir.infer.rule_table import ANY_OPERATOR, TypeMismatch, rule
from ir.ops.registry import schema_of

_WRONG_IN_ONNX = frozenset({"STFT"})
"""Operators for which ONNX (seen in 1.23) infers shapes that they do not produce."""
_TERM = r"[A-Za-z]*(?:\.\.\.)?[A-Za-z]*"
_EQUATION = re.compile(rf"{_TERM}(?:,{_TERM})*(?:->{_TERM})?").fullmatch
"""The equations of Einsum; ONNX (seen in 1.23) never ends inferring the shape for others, such as ``ii.``."""
_DATA_LIMIT = 1024
"""Constants of at most this many elements are shown to ONNX's inference, which reads shapes and axes from them."""


@rule(ANY_OPERATOR)
def infer_by_onnx(run: Inference, node: Node) -> tuple[ValueType | None, ...]:
    """Types of the outputs as ONNX's inference tells them; None where it cannot. Bodies are inferred as they are
    declared.

    Raises:
        TypeMismatch: ONNX finds that the inputs do not fit.
    """
    for body in node.subgraphs:
        run.graph(body)
    unknown = (None,) * len(node.outputs)
    schema = schema_of(node.domain, node.op_type, run.root.opsets.get(node.domain, run.opset))
    if schema is None:
        key = f"{node.op}:{node.overload}" if node.overload else node.op
        return _by_function(run, node) if key in run.root.functions else unknown
    if node.op == "Einsum" and not _EQUATION(str(node._attrs.get("equation", "")).replace(" ", "")):
        raise TypeMismatch(f"{node._attrs.get('equation')!r} is no equation of letters, '...', ',' and '->'")
    if not schema.has_type_and_shape_inference_function or node.op in _WRONG_IN_ONNX:
        return unknown
    return _by_schema(run, node, schema)


def _by_schema(run: Inference, node: Node, schema: Any) -> tuple[ValueType | None, ...]:
    import onnx
    from onnx.shape_inference import InferenceError, infer_node_outputs

    from ir.onnx.export import IR_VERSION, read_type

    inputs = [value for value in node.inputs if value is not None]
    types = {value.name: value.type for value in inputs if value.type is not None}
    if any(value.name not in types for value in inputs):
        return (None,) * len(node.outputs)
    found: dict[str, onnx.TypeProto] = {}
    try:
        found = infer_node_outputs(
            schema,
            _node_proto(run, node),
            {name: _type_proto(type_) for name, type_ in types.items()},
            {value.name: data for value in inputs if (data := _data(run, value)) is not None},
            opset_imports=[onnx.helper.make_opsetid(name, number) for name, number in _opsets(run).items()],
            ir_version=IR_VERSION,
        )
    except LadingError as error:
        raise TypeMismatch(error.diagnostics[0].message) from error
    except (InferenceError, onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        if isinstance(error, InferenceError):
            raise TypeMismatch(str(error).strip().splitlines()[0]) from error
    dims = _dims(inputs)
    return tuple(read_type(found[value.name], dims) if value.name in found else None for value in node.outputs)


def _by_function(run: Inference, node: Node) -> tuple[ValueType | None, ...]:
    """Types of a call of a model-local function, inferred through its body."""
    from onnx.shape_inference import infer_shapes

    from ir.onnx.export import export_nodes, read_type

    inputs = list(dict.fromkeys(value for value in node.inputs if value is not None))
    fed = [value for value in inputs if value.const is None]
    try:
        model = export_nodes(run.root, [node], fed, [], constants=lambda value: None)
    except LadingError as error:
        raise TypeMismatch(error.diagnostics[0].message) from error
    # The recorded types of the results are not evidence.
    del model.graph.value_info[:]
    model = infer_shapes(model)
    found = {info.name: info.type for info in model.graph.value_info}
    dims = _dims(inputs)
    return tuple(read_type(found[value.name], dims) if value.name in found else None for value in node.outputs)


def _opsets(run: Inference) -> dict[str, int]:
    return {"": run.opset, **run.root.opsets}


def _node_proto(run: Inference, node: Node) -> Any:
    import onnx

    from ir.onnx.export import Exporter

    proto = onnx.NodeProto()
    Exporter(run.root, None, False, {}).node(proto, node)
    return proto


def _type_proto(type_: ValueType) -> Any:
    import onnx

    from ir.onnx.export import write_type

    proto = onnx.TypeProto()
    write_type(proto, type_)
    return proto


def _data(run: Inference, value: Value) -> Any:
    from onnx import numpy_helper

    if value.const is not None:
        type_ = value.const.type
        if type_.dtype.kind not in "fiub" or (type_.size or 0) > _DATA_LIMIT or type_.dtype.bits < 8:
            return None
        from ir.onnx.export import tensor_proto

        return tensor_proto(value.const, value.name)
    found = run.known_of(value)
    if found is None or found.ints is None:
        return None
    array = np.array(found.ints, value.dtype.numpy)
    return numpy_helper.from_array(array.reshape(()) if found.rank == 0 else array, value.name)


def _dims(values: list[Value]) -> dict[str, Dim]:
    found: dict[str, Dim] = {}
    for value in values:
        if type(value.type) is TensorType:
            found.update({dim.name: dim for dim in value.type.shape or () if type(dim) is Dim})
    return found


__all__ = ["infer_by_onnx"]
