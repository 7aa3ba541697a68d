"""Inference rules of convolutions and of pools over all places: nearly all nodes of vision models.

ONNX's own inference tells the same, but takes a message for each node, so that it is asked only where an attribute is left
out, wrong, or says that padding follows from sizes.
"""

from __future__ import annotations

from ir.base.types import TensorType, ValueType
from ir.graph.graph import Node
from ir.infer.by_onnx import infer_by_onnx
from ir.infer.inference import Inference
from ir.infer.numeric import tensor, typed
from ir.infer.rule_table import rule
from ir.infer.symbolic import Extent

Result = ValueType | None | tuple[ValueType | None, ...]


@rule("Conv")
def conv(run: Inference, node: Node) -> Result:
    x, weight = tensor(node.inputs[0]), tensor(node.inputs[1])
    if x is None or weight is None or x.shape is None or weight.shape is None or x.dtype != weight.dtype:
        return infer_by_onnx(run, node)
    places = _places(node, x, weight)
    if places is None:
        return infer_by_onnx(run, node)
    return typed(x.dtype, (x.shape[0], weight.shape[0], *places))


def _places(node: Node, x: TensorType, weight: TensorType) -> tuple[Extent | None, ...] | None:
    """Sizes behind the channels, None for those that are not numbers; None where ONNX has to be asked."""
    axes = (x.rank or 0) - 2
    kernel = (weight.shape or ())[2:]
    if axes < 1 or weight.rank != x.rank or node._attrs.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    sizes = tuple(size for size in kernel if isinstance(size, int))
    if len(sizes) < axes or node._attrs.get("kernel_shape", sizes) != sizes:
        return None
    strides = node._attrs.get("strides", (1,) * axes)
    dilations = node._attrs.get("dilations", (1,) * axes)
    pads = node._attrs.get("pads", (0,) * 2 * axes)
    if len(strides) != axes or len(dilations) != axes or len(pads) != 2 * axes or min(*strides, *dilations) < 1:
        return None
    found: list[Extent | None] = []
    for axis, size in enumerate((x.shape or ())[2:]):
        if type(size) is not int:
            found.append(None)
            continue
        room = size + pads[axis] + pads[axes + axis] - dilations[axis] * (sizes[axis] - 1) - 1
        if room < 0:
            return None
        found.append(room // strides[axis] + 1)
    return tuple(found)


@rule("GlobalAveragePool", "GlobalMaxPool")
def global_pool(run: Inference, node: Node) -> Result:
    x = tensor(node.inputs[0])
    if x is None or x.shape is None or len(x.shape) < 2:
        return infer_by_onnx(run, node)
    return typed(x.dtype, (*x.shape[:2], *(1,) * (len(x.shape) - 2)))
