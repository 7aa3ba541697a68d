"""A small decoder as an ONNX model that chooses the wanted rows itself: everywhere, by everything, in every way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

PLACES = ("norm", "head", "logits")
"""Before the final norm, before the logits matrix, behind it."""
KINDS = ("slice", "slice-end", "slice-dropped", "gather", "gather-scalar", "gather-flat", "gather-nd", "gather-elements",
         "matrix")  # fmt: skip
ORIGINS = ("dangling", "declared", "constant", "computed")


def decoder(folder: str | Path) -> onnx.ModelProto:
    """The checkpoint of a folder as an ONNX model from token ids to the logits of every row."""
    from frontends.checkpoint.load import load
    from tools.embed import lower

    return lower(load(folder))


def choosing(
    model: onnx.ModelProto, place: str, kind: str, origin: str, name: str = "logits_index", row: int = -1
) -> onnx.ModelProto:
    """A copy of a decoder that chooses rows.

    Args:
        model: what `decoder` makes.
        place: one of `PLACES`.
        kind: one of `KINDS`.
        origin: of the index, one of `ORIGINS`; ``computed`` is the length less one, from a Shape.
        name: of the index.
        row: the row that a constant names.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    head = next(node for node in graph.node if node.output[0] == graph.output[0].name)
    norm = next(node for node in graph.node if node.output[0] == head.input[0])
    reader = {"norm": norm, "head": head, "logits": None}[place]
    start = reader.input[0] if reader is not None else head.output[0]
    scalar = kind == "gather-scalar"
    nodes: list[onnx.NodeProto] = []
    if origin == "computed":
        nodes += [
            helper.make_node("Shape", [graph.input[0].name], ["chosen.shape"]),
            _constant("chosen.place", np.array(1 if scalar else [1], np.int64)),
            helper.make_node("Gather", ["chosen.shape", "chosen.place"], ["chosen.length"]),
            _constant("chosen.one", np.array(1, np.int64)),
            helper.make_node("Sub", ["chosen.length", "chosen.one"], [name]),
        ]
    elif origin == "constant":
        graph.initializer.append(numpy_helper.from_array(np.array(row if scalar else [row], np.int64), name))
    elif origin == "declared":
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, [] if scalar else [1]))
    nodes += _picking(kind, start if reader is not None else "every", name)
    if reader is not None:
        reader.input[0] = "chosen"
        at = next(place for place, node in enumerate(graph.node) if node is reader or node == reader)
    else:
        head.output[0] = "every"
        nodes[-1].output[0] = start
        at = len(graph.node)
    for number, node in enumerate(nodes):
        graph.node.insert(at + number, node)
    info = graph.output[0]
    axes = len(info.type.tensor_type.shape.dim)
    if kind in ("slice-dropped", "gather-scalar", "gather-flat", "gather-nd"):
        info.type.tensor_type.ClearField("shape")
    elif axes == 3:
        info.type.tensor_type.shape.dim[1].Clear()
    for item in list(graph.value_info):
        if item.name in (start, norm.output[0], "every"):
            graph.value_info.remove(item)
    return made


def _picking(kind: str, start: str, index: str) -> list[onnx.NodeProto]:
    if kind == "slice":
        return [
            _constant("chosen.end", np.array([2**31 - 1], np.int64)),
            _constant("chosen.axis", np.array([1], np.int64)),
            helper.make_node("Slice", [start, index, "chosen.end", "chosen.axis"], ["chosen"], name="choose"),
        ]
    if kind == "slice-end":
        return [
            _constant("chosen.step", np.array([1], np.int64)),
            _constant("chosen.axis", np.array([1], np.int64)),
            helper.make_node("Add", [index, "chosen.step"], ["chosen.plus"]),
            _constant("chosen.zero", np.array([0], np.int64)),
            _constant("chosen.most", np.array([2**31 - 1], np.int64)),
            helper.make_node("Equal", ["chosen.plus", "chosen.zero"], ["chosen.last"]),
            helper.make_node("Where", ["chosen.last", "chosen.most", "chosen.plus"], ["chosen.end"]),
            helper.make_node("Slice", [start, index, "chosen.end", "chosen.axis"], ["chosen"], name="choose"),
        ]
    if kind in ("gather", "gather-scalar"):
        return [helper.make_node("Gather", [start, index], ["chosen"], name="choose", axis=1)]
    if kind == "slice-dropped":
        return [
            _constant("chosen.end", np.array([2**31 - 1], np.int64)),
            _constant("chosen.axis", np.array([1], np.int64)),
            helper.make_node("Slice", [start, index, "chosen.end", "chosen.axis"], ["chosen.kept"], name="choose"),
            helper.make_node("Squeeze", ["chosen.kept", "chosen.axis"], ["chosen"]),
        ]
    if kind == "gather-elements":
        return [
            _constant("chosen.form", np.array([1, 1, 1], np.int64)),
            _constant("chosen.from", np.array([2], np.int64)),
            _constant("chosen.to", np.array([3], np.int64)),
            _constant("chosen.ones", np.array([1, 1], np.int64)),
            helper.make_node("Shape", [start], ["chosen.sizes"]),
            helper.make_node("Slice", ["chosen.sizes", "chosen.from", "chosen.to"], ["chosen.width"]),
            helper.make_node("Concat", ["chosen.ones", "chosen.width"], ["chosen.shape3"], axis=0),
            helper.make_node("Reshape", [index, "chosen.form"], ["chosen.index3"]),
            helper.make_node("Expand", ["chosen.index3", "chosen.shape3"], ["chosen.each"]),
            helper.make_node("GatherElements", [start, "chosen.each"], ["chosen"], name="choose", axis=1),
        ]
    if kind == "matrix":
        return [
            helper.make_node("Shape", [start], ["chosen.sizes"]),
            _constant("chosen.first", np.array(1, np.int64)),
            helper.make_node("Gather", ["chosen.sizes", "chosen.first"], ["chosen.count"]),
            _constant("chosen.values", np.array([0, 1], np.float32)),
            helper.make_node("OneHot", [index, "chosen.count", "chosen.values"], ["chosen.rows"]),
            helper.make_node("MatMul", ["chosen.rows", start], ["chosen"], name="choose"),
        ]
    if kind == "gather-flat":
        return [
            _constant("chosen.axes", np.array([0], np.int64)),
            helper.make_node("Squeeze", [start, "chosen.axes"], ["chosen.flat"]),
            helper.make_node("Gather", ["chosen.flat", index], ["chosen"], name="choose", axis=0),
        ]
    if kind == "gather-nd":
        return [
            _constant("chosen.zero", np.array([0], np.int64)),
            helper.make_node("Concat", ["chosen.zero", index], ["chosen.both"], axis=0),
            _constant("chosen.axes", np.array([0], np.int64)),
            helper.make_node("Unsqueeze", ["chosen.both", "chosen.axes"], ["chosen.where"]),
            helper.make_node("GatherND", [start, "chosen.where"], ["chosen"], name="choose"),
        ]
    raise ValueError(kind)


def _constant(name: str, array: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))
