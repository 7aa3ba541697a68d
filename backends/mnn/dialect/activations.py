"""What the CPU backend of MNN does to activations before a product with integer codes, as an operator.

With ``memory: low`` the rows that flow into a linear layer with integer weights are quantized to 8 bits while the model
runs (``source/backend/cpu/compute/ConvInt8TiledExecutor.cpp``; kernels in ``x86_x64/avx/GemmAVX2.cpp`` and
``GemmInt8.cpp``). The product itself is exact up to the rounding of float sums: weights are never rounded again, and
zero points of both sides are corrected for. So the quantization followed by its inverse, before a float product, is
what the runtime computes. It depends on how many rows one call has, hence on prefill or decoding:

======================= ==================== ============================== =========================================
``dynamic_option``      rows in the call     codes                          rounding
======================= ==================== ============================== =========================================
0, 1                    2 or more            symmetric in each row          halves to even
0, 1                    1                    asymmetric, zero point real    halves away from zero
2                       first 4 * (rows/4)   asymmetric in each block       halves to even
2                       the last rows mod 4  the same, zero point rounded   halves to even
======================= ==================== ============================== =========================================

The rounded zero point is taken back unrounded, which moves a whole block by up to half a step.
"""

from __future__ import annotations

from backends.mnn.dialect.operator import MnnOperator
from ir.base.types import F32, ValueType
from ir.graph.graph import Node, Value
from ir.infer.inference import Inference
from ir.infer.numeric import part_axis, tensor
from ir.infer.rule_table import TypeMismatch
from ir.ops.meaning import Body
from ir.ops.registry import AttrDef, OpDef

PACK = 8
"""Channels that the backend keeps together; a row is filled up with zeros to a multiple, and they count in a
minimum."""


def _quantize_type(run: Inference, node: Node) -> ValueType | None:
    x = tensor(node.inputs[0])
    if x is None or x.shape is None:
        return x
    if x.dtype != F32:
        raise TypeMismatch(f"activations are f32, not {x.dtype}")
    axis = part_axis(node._attrs.get("axis", 1), len(x.shape))
    width, block = x.shape[axis], node._attrs.get("block", 0)
    if axis != 1 and axis != len(x.shape) - 1:
        raise TypeMismatch(f"the channels are axis 1 or the last one, not {axis}")
    if any(size != 1 for size in x.shape[axis + 1 :]):
        raise TypeMismatch(f"what follows the channels of {x} must have extent 1")
    if block and type(width) is int and width % block:
        raise TypeMismatch(f"blocks of {block} do not divide {width} channels")
    return x


def _quantize(body: Body) -> list[Value]:
    x, joint = (*body.inputs, None)[:2]
    assert x is not None
    matrix = body.op("Flatten", x, axis=body.attr("axis"))
    rows = body.op("Gather", body.op("Shape", matrix), body.int(0))
    together = rows if joint is None else body.op("Cast", body.op("Squeeze", joint, body.ints(0)), to=7)
    blocks = body.attr("option") == 2
    found = _by_block(body, matrix, rows, together) if blocks else _by_row(body, matrix, rows, together)
    return [body.op("Reshape", found, body.op("Shape", x))]


def _below(body: Body, rows: Value, limit: Value) -> Value:
    """bool[rows, 1]: the number of a row is below a limit."""
    numbers = body.op("Range", body.int(0), rows, body.int(1))
    return body.op("Unsqueeze", body.op("Less", numbers, limit), body.ints(1))


def _number(body: Body, number: float) -> Value:
    return body.like(number, body.operand(0))


def _away(body: Body, x: Value) -> Value:
    """Round halves away from zero."""
    half = _number(body, 0.5)
    up, down = body.op("Floor", body.op("Add", x, half)), body.op("Ceil", body.op("Sub", x, half))
    return body.op("Where", body.op("Less", x, _number(body, 0)), down, up)


def _by_row(body: Body, x: Value, rows: Value, together: Value) -> Value:
    """Symmetric where two or more rows go together, else asymmetric."""
    several = body.op("Mul", together, body.op("Cast", body.op("Greater", together, body.int(1)), to=7))
    return body.op("Where", _below(body, rows, several), _symmetric(body, x), _asymmetric(body, x))


def _symmetric(body: Body, x: Value) -> Value:
    largest = body.reduce("ReduceMax", body.op("Abs", x), (1,))
    empty = body.op("Less", largest, _number(body, 1e-7))
    steps, one = _number(body, 127), _number(body, 1)
    forward = body.op("Where", empty, one, body.op("Div", steps, largest))
    back = body.op("Where", empty, one, body.op("Div", largest, steps))
    return body.op("Mul", body.op("Round", body.op("Mul", x, forward)), back)


def _asymmetric(body: Body, x: Value) -> Value:
    low, high = body.reduce("ReduceMin", x, (1,)), body.reduce("ReduceMax", x, (1,))
    width = body.op("Gather", body.op("Shape", x), body.int(1))
    ragged = body.op("Greater", body.op("Mod", width, body.int(PACK)), body.int(0))
    zero = _number(body, 0)
    low = body.op("Where", ragged, body.op("Min", low, zero), low)
    high = body.op("Where", ragged, body.op("Max", high, zero), high)
    span = body.op("Sub", high, low)
    flat = body.op("LessOrEqual", span, _number(body, 1e-7))
    steps, one = _number(body, 255), _number(body, 1)
    forward = body.op("Where", flat, one, body.op("Div", steps, span))
    back = body.op("Where", flat, one, body.op("Div", span, steps))
    shift = body.op("Sub", body.op("Div", body.op("Mul", body.op("Neg", low), steps), span), _number(body, 128))
    shift = body.op("Where", flat, body.op("Neg", high), shift)
    codes = body.op("Add", body.op("Mul", x, forward), shift)
    codes = _away(body, body.op("Clip", codes, _number(body, -128), _number(body, 127)))
    return body.op("Mul", body.op("Sub", codes, shift), back)


def _by_block(body: Body, x: Value, rows: Value, together: Value) -> Value:
    """Asymmetric in each block; the zero point is rounded in rows that are left over from groups of four."""
    block = body.attr("block")
    cut = body.op("Reshape", x, body.ints(0, -1, block)) if block else body.op("Unsqueeze", x, body.ints(1))
    low, high = body.reduce("ReduceMin", cut, (2,)), body.reduce("ReduceMax", cut, (2,))
    span = body.op("Sub", high, low)
    whole = body.op("Mul", body.op("Div", together, body.int(4)), body.int(4))
    grouped = body.op("Unsqueeze", _below(body, rows, whole), body.ints(2))
    least = body.op("Where", grouped, _number(body, 1e-6), _number(body, 1e-7))
    flat = body.op("Less", span, least)
    steps, zero, offset = _number(body, 255), _number(body, 0), _number(body, 128)
    forward = body.op("Where", flat, zero, body.op("Div", steps, span))
    back = body.op("Where", flat, zero, body.op("Div", span, steps))
    place = body.op("Div", body.op("Mul", body.op("Neg", low), steps), span)
    shift = body.op("Sub", body.op("Where", grouped, place, _away(body, place)), offset)
    shift = body.op("Where", flat, zero, shift)
    codes = body.op("Round", body.op("Add", body.op("Mul", cut, forward), shift))
    codes = body.op("Clip", codes, _number(body, -128), _number(body, 127))
    base = body.op("Where", flat, high, low)
    values = body.op("Add", body.op("Mul", body.op("Add", codes, offset), back), base)
    return body.op("Reshape", values, body.op("Shape", x))


ROWS = (
    MnnOperator(
        definition=OpDef(
            "mnn.DynamicQuantizeRows",
            inputs=("x", "joint"),
            min_inputs=1,
            max_inputs=2,
            attrs={
                "axis": AttrDef("axis", "int", 1),
                "option": AttrDef("option", "int", 0),
                "block": AttrDef("block", "int", 0),
            },
            infer=_quantize_type,
            define=_quantize,
            role="storage",
            doc="Rounds rows of activations to the 8-bit codes of the runtime's ``dynamic_option`` and back. Rows are "
            "what comes before the channels, the channels are `axis`, what follows has extent 1. The first `joint[0]` "
            "rows are read in one call (all of them when it is left out), every other row in a call of its own. "
            "`block`: channels that share a scale of the weight, for option 2; 0 for all.",
        ),
    ),
)
"""Rows for `backends.mnn.dialect.table`."""
