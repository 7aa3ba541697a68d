"""Elementwise operators: functions of one and of two tensors, casts and choices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from backends.mnn.dialect.builder import Builder
from backends.mnn.dialect.operator import (
    DATA_TYPES,
    PURE,
    Decoded,
    Main,
    MnnOperator,
    Operands,
    attrs_of,
    data_type,
    no_parameters,
    same_sizes,
)
from backends.mnn.read import net_file
from backends.mnn.read.sizes import Ints
from backends.mnn.target.releases import Release
from backends.mnn.write.weight_layout import Layout
from ir.base.types import DTYPES, I32, TensorType, ValueType
from ir.dialects.older_opsets import plain_gelu_erf, plain_gelu_tanh
from ir.graph.graph import Graph, Node, Value
from ir.infer.inference import Inference
from ir.infer.numeric import arithmetic, broadcast, element_type, one_dtype, same_as_input, tensor, words
from ir.infer.shapes import typed
from ir.infer.values import same_elements
from ir.ops.meaning import Body
from ir.ops.registry import AttrDef, OpDef

NUMBER_OF_UNARY = {name: number for number, name in net_file.UNARY.items()}
NUMBER_OF_BINARY = {name: number for number, name in net_file.BINARY.items()}


def _kind(node: Node) -> str:
    return f"{node.op} {node.attrs.get('kind', '?')}"


# ---- UnaryOp ----


def _gelu_tanh(body: Body, x: Value) -> Value:
    return body.op("Gelu", x, approximate="tanh") if body.opset >= 20 else plain_gelu_tanh(body, x)


def _gelu_erf(body: Body, x: Value) -> Value:
    return body.op("Gelu", x) if body.opset >= 20 else plain_gelu_erf(body, x)


def _hard_swish(body: Body, x: Value) -> Value:
    # x * min(max(x + 3, 0), 6) / 6
    high = body.op("Add", x, body.like(3, x))
    clipped = body.op("Min", body.op("Max", high, body.like(0, x)), body.like(6, x))
    return body.op("Div", body.op("Mul", x, clipped), body.like(6, x))


def _round(body: Body, x: Value) -> Value:
    # C's roundf: halves away from zero, where ONNX Round goes to even.
    return body.op("Mul", body.op("Sign", x), body.op("Floor", body.op("Add", body.op("Abs", x), body.like(0.5, x))))


def _one(op: str) -> Callable[[Body, Value], Value]:
    return lambda body, x: body.op(op, x)


UNARY: dict[str, Callable[[Body, Value], Value]] = {
    **{
        name.upper(): _one(name)
        for name in words(
            "Abs Neg Floor Ceil Sqrt Exp Log Sin Cos Tan Asin Acos Atan Reciprocal Acosh Sinh Asinh Atanh Sign Cosh "
            "Erf Sigmoid Tanh"
        )
    },
    "SQUARE": lambda body, x: body.op("Mul", x, x),
    "RSQRT": lambda body, x: body.op("Reciprocal", body.op("Sqrt", x)),
    "LOG1P": lambda body, x: body.op("Log", body.op("Add", x, body.like(1, x))),
    "EXPM1": lambda body, x: body.op("Sub", body.op("Exp", x), body.like(1, x)),
    "ERFC": lambda body, x: body.op("Sub", body.like(1, x), body.op("Erf", x)),
    "BNLL": _one("Softplus"),
    "ROUND": _round,
    "HARDSWISH": _hard_swish,
    "GELU": _gelu_tanh,
    "GELU_STANDARD": _gelu_erf,
    "SILU": lambda body, x: body.op("Mul", x, body.op("Sigmoid", x)),
}
"""``UnaryOpOperation`` -> meaning. The runtime's GELU follows the tanh formula to 2e-4 only."""


def _unary(body: Body) -> list[Value]:
    return [UNARY[body.attr("kind")](body, body.operand(0))]


def _write_unary(node: Node, layout: Layout) -> dict[str, Any]:
    return {"opType": node.attrs["kind"], "T": "DT_FLOAT"}


def _read_unary(builder: Builder, main: Main, operands: Operands) -> Decoded:
    x, kind = builder.value(operands[0]), main.get("opType", "ABS")
    if type(kind) is int:
        raise builder.error("F644", f"the function {kind} of UnaryOp is not known")
    return builder.add("Unary", [x], x.type, kind=kind)


def _reads_unary(release: Release, attrs: Mapping[str, Any]) -> bool:
    return NUMBER_OF_UNARY[attrs["kind"]] <= release.last_unary


def _older_unary(graph: Graph, node: Node) -> None:
    """SiLU as the operand times its sigmoid; all other functions are in every release."""
    x, result = node.inputs[0], node.output
    gate = graph.add(
        "mnn.Unary", [x], {"kind": "SIGMOID"}, outputs=[f"{result.name}.gate"], types=[result.type], before=node,
        loc=node.loc,
    )  # fmt: skip
    product = graph.add(
        "mnn.Binary", [x, gate.output], {"kind": "MUL"}, outputs=[f"{result.name}.product"], types=[result.type],
        before=node, loc=node.loc,
    )  # fmt: skip
    graph.replace(result, product.output)
    graph.erase(node)


def _read_relu(builder: Builder, main: Main, operands: Operands) -> Decoded:
    if main.get("slope"):
        raise builder.error("F644", f"a ReLU of slope {main['slope']} is not read")
    x = builder.value(operands[0])
    return builder.add("Binary", [x, builder.const(np.zeros((), np.float32), "zero")], x.type, kind="MAXIMUM")


# ---- BinaryOp ----


def _two(op: str) -> Callable[[Body, Value, Value], Value]:
    return lambda body, x, y: body.op(op, x, y)


def _floor_div(body: Body, x: Value, y: Value) -> Value:
    if x.dtype.is_float:
        return body.op("Floor", body.op("Div", x, y))
    # Integer Div of ONNX goes to zero: take the floored remainder off first.
    return body.op("Div", body.op("Sub", x, body.op("Mod", x, y)), y)


def _floor_mod(body: Body, x: Value, y: Value) -> Value:
    if not x.dtype.is_float:
        return body.op("Mod", x, y)
    return body.op("Sub", x, body.op("Mul", body.op("Floor", body.op("Div", x, y)), y))


def _mod(body: Body, x: Value, y: Value) -> Value:
    return body.op("Mod", x, y, fmod=int(x.dtype.is_float))


def _squared_difference(body: Body, x: Value, y: Value) -> Value:
    difference = body.op("Sub", x, y)
    return body.op("Mul", difference, difference)


BINARY: dict[str, Callable[[Body, Value, Value], Value]] = {
    "ADD": _two("Add"),
    "SUB": _two("Sub"),
    "MUL": _two("Mul"),
    "REALDIV": _two("Div"),
    "POW": _two("Pow"),
    "MINIMUM": _two("Min"),
    "MAXIMUM": _two("Max"),
    "FLOORDIV": _floor_div,
    "FLOORMOD": _floor_mod,
    "MOD": _mod,
    "SquaredDifference": _squared_difference,
}
"""``BinaryOpOperation`` -> meaning."""

COMPARE: dict[str, str] = {
    "GREATER": "Greater", "GREATER_EQUAL": "GreaterOrEqual", "LESS": "Less", "LESS_EQUAL": "LessOrEqual",
    "EQUAL": "Equal",
}  # fmt: skip
"""``BinaryOpOperation`` -> ONNX operator; the result is int32 0 or 1. NOTEQUAL is the negation of EQUAL."""

_KINDS = frozenset((*BINARY, *COMPARE, "NOTEQUAL"))


def _binary_type(run: Inference, node: Node) -> ValueType | None:
    found = arithmetic(run, node)
    kind = node._attrs["kind"]
    if type(found) is TensorType and (kind in COMPARE or kind == "NOTEQUAL"):
        return TensorType(I32, found.shape)
    return found


def _binary(body: Body) -> list[Value]:
    kind, x, y = body.attr("kind"), body.operand(0), body.operand(1)
    if kind in BINARY:
        return [BINARY[kind](body, x, y)]
    found = body.op("Not", body.op("Equal", x, y)) if kind == "NOTEQUAL" else body.op(COMPARE[kind], x, y)
    return [body.op("Cast", found, to=I32.onnx)]


def _write_binary(node: Node, layout: Layout) -> dict[str, Any]:
    dtype = data_type(node.operand(0).dtype, node.output.name)
    return {"opType": node.attrs["kind"], "T": dtype, "activationType": 0}


def _read_binary(builder: Builder, main: Main, operands: Operands) -> Decoded:
    left, right = (builder.value(item) for item in operands)
    if main.get("activationType"):
        raise builder.error("F644", "element-wise operators with an activation are not read")
    kind = main.get("opType", "ADD")
    if kind == "MUL_SILU":
        gate = builder.add("Unary", [right], right.type, kind="SILU")
        return builder.add("Binary", [left, gate], left.type, kind="MUL")
    if type(kind) is int:
        raise builder.error("F644", f"the function {kind} of BinaryOp is not known")
    return builder.add("Binary", [left, right], kind=kind)


def _divide(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


_ON_INTEGERS: dict[str, Callable[[int, int], int]] = {
    "ADD": lambda a, b: a + b,
    "SUB": lambda a, b: a - b,
    "MUL": lambda a, b: a * b,
    "REALDIV": _divide,
    "FLOORDIV": lambda a, b: a // b,
    "MOD": lambda a, b: a % b,
    "FLOORMOD": lambda a, b: a % b,
    "MAXIMUM": max,
    "MINIMUM": min,
}


def _binary_sizes(main: Main, operands: Sequence[Ints]) -> Ints | None:
    operation, (left, right) = _ON_INTEGERS.get(main.get("opType", "ADD")), operands
    if operation is None:
        return None
    count = max(len(left.items), len(right.items))
    pairs = zip(left.items * (count // len(left.items)), right.items * (count // len(right.items)), strict=True)
    items = tuple(operation(a, b) if type(a) is int and type(b) is int else None for a, b in pairs)
    return Ints(items, left.scalar and right.scalar)


def _mul_silu(body: Body) -> list[Value]:
    x, gate = body.inputs
    return [body.op("Mul", x, body.op("Mul", gate, body.op("Sigmoid", gate)))]


def _write_mul_silu(node: Node, layout: Layout) -> dict[str, Any]:
    return {"opType": "MUL_SILU", "T": "DT_FLOAT", "activationType": 0}


def _reads_mul_silu(release: Release, attrs: Mapping[str, Any]) -> bool:
    return NUMBER_OF_BINARY["MUL_SILU"] <= release.last_binary


# ---- Cast and Select ----


def _cast_type(run: Inference, node: Node) -> ValueType | None:
    x = tensor(node.inputs[0])
    return None if x is None else TensorType(element_type(node._attrs["to"]), x.shape)


def _cast(body: Body) -> list[Value]:
    return [body.op("Cast", body.inputs[0], to=body.attr("to"))]


def _write_cast(node: Node, layout: Layout) -> dict[str, Any]:
    source, target = node.operand(0).type, node.output.type
    assert isinstance(source, TensorType)
    assert isinstance(target, TensorType)
    return {"srcT": data_type(source.dtype, node.name), "dstT": data_type(target.dtype, node.name)}


def _read_cast(builder: Builder, main: Main, operands: Operands) -> Decoded:
    x, to = builder.value(operands[0]), DATA_TYPES.get(main.get("dstT", "DT_FLOAT"))
    if to is None:
        raise builder.error("F644", f"a cast to {main.get('dstT')} is not read")
    return x if x.dtype == to else builder.add("Cast", [x], TensorType(to, x.shape), to=to.onnx)


def _select_type(run: Inference, node: Node) -> ValueType | None:
    types = [tensor(value) for value in node.inputs]
    known = [type_ for type_ in types if type_ is not None]
    if len(known) < len(types):
        return None
    shape = broadcast(run, [type_.shape for type_ in known])
    return typed(one_dtype(*types[1:]), shape)


def _select(body: Body) -> list[Value]:
    choose = body.op("Cast", body.inputs[0], to=DTYPES["bool"].onnx)
    return [body.op("Where", choose, body.inputs[1], body.inputs[2])]


def _read_select(builder: Builder, main: Main, operands: Operands) -> Decoded:
    return builder.add("Select", [builder.value(item) for item in operands])


ROWS = (
    MnnOperator(
        type="UnaryOp",
        parameter="UnaryOp",
        definition=OpDef(
            "mnn.Unary",
            inputs=("x",),
            attrs=attrs_of(AttrDef("kind", "str", required=True, choices=frozenset(UNARY))),
            traits=PURE | {"elementwise"},
            infer=same_as_input,
            define=_unary,
            label=_kind,
            doc="An elementwise function named as in ``UnaryOpOperation``.",
        ),
        encode=_write_unary,
        decode=_read_unary,
        reads=_reads_unary,
        older=_older_unary,
    ),
    MnnOperator(type="ReLU", decode=_read_relu),
    MnnOperator(
        type="BinaryOp",
        parameter="BinaryOp",
        definition=OpDef(
            "mnn.Binary",
            inputs=("x", "y"),
            min_inputs=2,
            max_inputs=2,
            attrs=attrs_of(AttrDef("kind", "str", required=True, choices=_KINDS)),
            traits=PURE | {"elementwise"},
            infer=_binary_type,
            define=_binary,
            label=_kind,
            doc="A broadcasting function named as in ``BinaryOpOperation``; comparisons give int32.",
        ),
        encode=_write_binary,
        decode=_read_binary,
        on_sizes=_binary_sizes,
    ),
    MnnOperator(
        type="BinaryOp",
        parameter="BinaryOp",
        definition=OpDef(
            "mnn.MulSilu",
            inputs=("x", "gate"),
            min_inputs=2,
            max_inputs=2,
            traits=PURE | {"elementwise"},
            infer=arithmetic,
            define=_mul_silu,
            doc="x times SiLU of the gate; both have one shape.",
        ),
        encode=_write_mul_silu,
        form="mul-silu",
        reads=_reads_mul_silu,
    ),
    MnnOperator(
        type="Cast",
        parameter="CastParam",
        definition=OpDef(
            "mnn.Cast",
            inputs=("x",),
            attrs=attrs_of(AttrDef("to", "int", required=True)),
            traits=PURE | {"elementwise", "conversion"},
            infer=_cast_type,
            follow=same_elements,
            define=_cast,
            role="storage",
            doc="Another element type, given as in ONNX Cast; floats are cut towards zero.",
        ),
        encode=_write_cast,
        decode=_read_cast,
        on_sizes=same_sizes,
    ),
    MnnOperator(
        type="Select",
        definition=OpDef(
            "mnn.Select",
            inputs=("condition", "x", "y"),
            min_inputs=3,
            max_inputs=3,
            traits=PURE | {"elementwise"},
            infer=_select_type,
            define=_select,
            doc="x where the int32 condition is not 0, else y.",
        ),
        encode=no_parameters,
        decode=_read_select,
    ),
)
"""Rows for `backends.mnn.dialect.table`."""
