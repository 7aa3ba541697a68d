"""Declares in a model that somebody holds the tensors that it reads and never makes; nothing else of it is touched."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import onnx

from backends.onnx.write import to_model
from ir.facts.free_tensors import FreeTensor
from ir.graph.graph import Graph

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

FIRST_WITH_DEFAULTS = 4
"""Format version from which an initializer need not be an input as well."""


def in_message(
    given: onnx.ModelProto | bytes | bytearray | memoryview, graph: Graph, tensors: Iterable[FreeTensor]
) -> onnx.ModelProto | bytes:
    """A copy of a model, as a message or as bytes like the one that is given.

    Args:
        given: the model.
        graph: the graph that was read from it.
        tensors: what nothing in it makes.
    """
    model = onnx.ModelProto()
    if isinstance(given, onnx.ModelProto):
        model.CopyFrom(given)
    else:
        model.ParseFromString(bytes(given))
    written = to_model(graph, data=False).graph
    inputs = {item.name: item for item in written.input}
    for tensor in tensors:
        if tensor.kind == "input":
            model.graph.input.append(inputs[tensor.name])
            continue
        made = onnx.numpy_helper.from_array(tensor.array, tensor.name)
        made.doc_string = tensor.reason
        model.graph.initializer.append(made)
        if model.ir_version < FIRST_WITH_DEFAULTS:
            info = onnx.helper.make_tensor_value_info(tensor.name, made.data_type, tensor.array.shape)
            model.graph.input.append(info)
    declared = {tensor.name for tensor in tensors}
    # Where a type was recorded of the tensor, that was a hint.
    kept = [item for item in model.graph.value_info if item.name not in declared]
    if len(kept) < len(model.graph.value_info):
        del model.graph.value_info[:]
        model.graph.value_info.extend(kept)
    return model if isinstance(given, onnx.ModelProto) else model.SerializeToString()


def in_graphsurgeon(given: gs.Graph, graph: Graph, tensors: Iterable[FreeTensor]) -> gs.Graph:
    """A copy of a graph-surgeon graph; arguments as for `in_message`."""
    made = given.copy()
    held = made.tensors()
    for tensor in tensors:
        if tensor.kind == "constant":
            held[tensor.name].to_constant(tensor.array)
            continue
        value = graph.value(tensor.name)
        held[tensor.name].dtype = value.dtype.numpy
        held[tensor.name].shape = [dim if isinstance(dim, int) else dim.name for dim in value.dims]
        made.inputs.append(held[tensor.name])
    return made


__all__ = ["in_graphsurgeon", "in_message"]
