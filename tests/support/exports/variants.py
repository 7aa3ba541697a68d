"""The states in which files come in that read a tensor, such as ``logits_index``: declared, dangling, frozen."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support.exports.edit import Editor


def with_rows(
    model: onnx.ModelProto, how: str, *, name: str = "logits_index", kind: type = np.int64, at: str = "hidden"
) -> onnx.ModelProto:
    """A copy whose logits are those of chosen rows, by a declared input.

    Args:
        model: an export with logits of all rows as its first output.
        how: ``slice``: the rows from the given one on; ``gather``: the given rows, i64[1] or i32[1]; ``scalar``: one
            row by an index without dimensions.
        name: of the input.
        kind: np.int64 or np.int32.
        at: ``hidden``: before the product that makes logits; ``logits``: behind everything.
    """
    edited = Editor(deepcopy(model))
    out = edited.graph.output[0].name
    if at == "hidden":
        head = next(node for node in edited.back(out) if node.op_type in ("MatMul", "Gemm"))
        head.input[0] = _choose(edited, head.input[0], how, name, kind)
    else:
        last = edited.maker(out)
        last.output[list(last.output).index(out)] = "logits of all rows"
        chosen = edited.maker(_choose(edited, "logits of all rows", how, name, kind))
        chosen.output[0] = out
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    shape = [] if how == "scalar" else [1]
    edited.graph.input.append(helper.make_tensor_value_info(name, element, shape))
    rows = edited.graph.output[0].type.tensor_type.shape.dim[1]
    rows.Clear()
    rows.dim_param = "rows"
    return edited.finish()


def _choose(edited: Editor, rows: str, how: str, name: str, kind: type) -> str:
    if how == "slice":
        end, axis = np.array([np.iinfo(kind).max], kind), np.array([1], kind)
        return edited.add("Slice", [rows, name, edited.add_constant(end), edited.add_constant(axis)])
    chosen = edited.add("Gather", [rows, name], axis=1)
    if how == "gather":
        return chosen
    return edited.add("Unsqueeze", [chosen, edited.add_constant(np.array([1]))])


def undeclared(model: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    """A copy in which these inputs are read but neither declared nor made: they dangle."""
    changed = deepcopy(model)
    kept = [item for item in changed.graph.input if item.name not in names]
    if len(kept) != len(changed.graph.input) - len(names):
        raise ValueError(f"not all of {names} are inputs")
    del changed.graph.input[:]
    changed.graph.input.extend(kept)
    return changed


def frozen(model: onnx.ModelProto, name: str, value: np.ndarray, *, renamed: str | None = None) -> onnx.ModelProto:
    """A copy in which an input is a constant, as tracing leaves it, of the same or of another name."""
    changed = renamed_value(undeclared(model, name), name, renamed or name)
    changed.graph.initializer.append(numpy_helper.from_array(np.asarray(value), renamed or name))
    return changed


def renamed_value(model: onnx.ModelProto, old: str, new: str) -> onnx.ModelProto:
    """A copy in which an input, declared or not, has another name."""
    changed = deepcopy(model)
    for node in changed.graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
    for item in changed.graph.input:
        if item.name == old:
            item.name = new
    return changed


def with_temperature(model: onnx.ModelProto, name: str = "temperature") -> onnx.ModelProto:
    """A copy whose first output is divided by a declared input f32[]."""
    edited = Editor(deepcopy(model))
    out = edited.graph.output[0].name
    last = edited.maker(out)
    last.output[list(last.output).index(out)] = "undivided"
    edited.maker(edited.add("Div", ["undivided", name])).output[0] = out
    edited.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, []))
    return edited.finish()


def dangling(model: onnx.ModelProto) -> list[str]:
    """The names that nodes of the main graph read and nobody makes or declares, sorted."""
    graph = model.graph
    made = {name for node in graph.node for name in node.output}
    made |= {item.name for item in (*graph.input, *graph.initializer)}
    return sorted({name for node in graph.node for name in node.input if name} - made)
