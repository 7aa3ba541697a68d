"""Operators that ONNX lacks and decoders need before a target is chosen: windows and real-valued zero points here, others
in files of their own."""

from __future__ import annotations

from ir.base.types import BOOL, TensorType, ValueType
from ir.dialects import delta_rule, experts, sinks
from ir.graph.graph import Node, Value
from ir.infer.inference import Inference
from ir.infer.numeric import check_blocks, part_axis, tensor, typed
from ir.infer.rule_table import TypeMismatch
from ir.ops.meaning import Body
from ir.ops.registry import AttrDef, OpDef


def _window_type(run: Inference, node: Node) -> ValueType | None:
    positions = tensor(node.inputs[0])
    if positions is None or positions.shape is None:
        return typed(BOOL, (1, 1, None, None))
    length = run.table.product(positions.shape)
    return TensorType(BOOL, (1, 1, length, length))


def _window(body: Body) -> list[Value]:
    positions = body.op("Cast", body.inputs[0], to=7)
    queries = body.op("Reshape", positions, body.ints(-1, 1))
    keys = body.op("Reshape", positions, body.ints(1, -1))
    past = body.op("LessOrEqual", keys, queries)
    near = body.op("Greater", keys, body.op("Sub", queries, body.int(body.attr("window"))))
    return [body.op("Unsqueeze", body.op("And", past, near), body.ints(0, 1))]


def _affine_type(run: Inference, node: Node) -> ValueType | None:
    codes, scale, zero = (tensor(value) for value in node.inputs)
    if codes is None or scale is None:
        return None
    if zero is not None and (zero.dtype != scale.dtype or zero.shape != scale.shape):
        raise TypeMismatch(f"scale {scale} and zero {zero} differ")
    axis = node._attrs.get("axis", 1)
    check_blocks(node, codes, scale, axis)
    if not node._attrs.get("block_size", 0) and scale.shape and len(scale.shape) == 1 and codes.shape is not None:
        size, scales = codes.shape[part_axis(axis, len(codes.shape))], scale.shape[0]
        if type(size) is int and type(scales) is int and scales not in (1, size):
            raise TypeMismatch(f"{scales} scales for {size} codes along axis {axis}")
    return TensorType(scale.dtype, codes.shape)


def _affine(body: Body) -> list[Value]:
    codes, scale, zero = (body.operand(index) for index in range(3))
    axis, block = body.attr("axis"), body.attr("block_size")
    if block and body.opset >= 21:
        scaled = body.op("DequantizeLinear", codes, scale, axis=axis, block_size=block)
        zero = _spread(body, zero, scaled, axis, block)
    elif block:
        numbers = body.op("Cast", codes, to=scale.dtype.onnx)
        scaled = body.op("Mul", numbers, _spread(body, scale, numbers, axis, block))
        zero = _spread(body, zero, numbers, axis, block)
    else:
        scaled = body.op("DequantizeLinear", codes, scale, axis=axis)
    if not block and body.rank(1) == 1 and body.rank(0) > 1:
        rank = body.rank(0)
        zero = body.op("Unsqueeze", zero, body.ints(*(place for place in range(rank) if place != axis % rank)))
    return [body.op("Add", scaled, zero)]


def _spread(body: Body, values: Value, like: Value, axis: int, block: int) -> Value:
    """One value for each element of `like` along an axis, from one for each block."""
    size = body.op("Gather", body.op("Shape", like), body.int(axis))
    places = body.op("Range", body.int(0), size, body.int(1))
    return body.op("Gather", values, body.op("Div", places, body.int(block)), axis=axis)


DEFINITIONS = (
    *experts.DEFINITIONS,
    OpDef(
        "lading.SlidingWindowMask",
        inputs=("position_ids",),
        attrs={"window": AttrDef("window", "int", required=True)},
        infer=_window_type,
        define=_window,
        doc="bool[1, 1, S, S] from positions [1, S]: i sees j when pos[i] - window < pos[j] <= pos[i].",
    ),
    OpDef(
        "lading.AffineDequantize",
        inputs=("codes", "scale", "zero"),
        min_inputs=3,
        max_inputs=3,
        attrs={"axis": AttrDef("axis", "int", 1), "block_size": AttrDef("block_size", "int", 0)},
        infer=_affine_type,
        define=_affine,
        role="storage",
        doc="codes * scale + zero, blocked as ONNX DequantizeLinear is, with a real-valued zero of the scale's shape.",
    ),
    delta_rule.DEFINITION,
    sinks.DEFINITION,
)
"""Rows for `ir.ops.registry.OPERATORS`."""
