"""Operators of MNN's schema, with the meaning the runtime's CPU backend gives them.

Names and parameters follow ``schema/default/*.fbs`` of MNN and shapes follow ``source/shape``. MNN has no 64-bit
integers and no booleans: comparisons give int32. The data format (``NCHW``, ``NC4HW4``) is a matter of layout and does
not change values, so the operators are defined on plain tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from ir.base.types import DTYPES, I32, TensorType, ValueType
from ir.dialects.older_opsets import plain_attention, plain_gelu_erf, plain_gelu_tanh, plain_norm
from ir.graph.graph import Node, Value
from ir.infer.inference import Inference
from ir.infer.numeric import (
    arithmetic,
    axis_of,
    broadcast,
    element_type,
    one_dtype,
    reduced_shape,
    same_as_input,
    tensor,
    words,
)
from ir.infer.rule_table import TypeMismatch
from ir.infer.shapes import concat, reshaped, slice_, squeezed_shape, typed, unsqueezed_shape
from ir.infer.symbolic import Extent
from ir.infer.values import concat_elements, same_elements
from ir.ops.meaning import Body
from ir.ops.registry import ANY, AttrDef, OpDef

PURE = frozenset({"pure", "constant_foldable"})
FORMATS = frozenset({"NCHW", "NHWC", "NC4HW4"})

# ---- shape manipulation ----


def _reshape_type(run: Inference, node: Node) -> ValueType | None:
    x = tensor(node.inputs[0])
    return None if x is None else typed(x.dtype, reshaped(run, x.shape, node._attrs["dims"]))


def _reshape(body: Body) -> list[Value]:
    return [body.op("Reshape", body.inputs[0], body.ints(*body.attr("dims")))]


def _identity(body: Body) -> list[Value]:
    return [body.op("Identity", body.inputs[0])]


def _slice_types(run: Inference, node: Node) -> tuple[ValueType | None, ...]:
    x = tensor(node.inputs[0])
    if x is None or x.shape is None:
        return (x,) * len(node.outputs)
    points = node._attrs["points"]
    if len(node.outputs) != len(points) + 1:
        raise TypeMismatch(f"{len(points)} points cut into {len(points) + 1} parts, not {len(node.outputs)}")
    axis = axis_of(node._attrs["axis"], len(x.shape))
    whole = x.shape[axis]
    if list(points) != sorted(points) or (type(whole) is int and points and points[-1] > whole):
        raise TypeMismatch(f"points {list(points)} do not cut extent {whole}")
    sizes = [stop - start for start, stop in pairwise((0, *points))]
    sizes.append(run.table.subtract(whole, points[-1] if points else 0))
    return tuple(TensorType(x.dtype, (*x.shape[:axis], size, *x.shape[axis + 1 :])) for size in sizes)


def _slice(body: Body) -> list[Value]:
    axis, points = body.attr("axis"), body.attr("points")
    edges = (0, *points, 2**31 - 1)
    return [
        body.op("Slice", body.inputs[0], body.ints(start), body.ints(stop), body.ints(axis))
        for start, stop in pairwise(edges)
    ]


def _strided_slice(body: Body) -> list[Value]:
    bounds = [None if value is None else body.op("Cast", value, to=7) for value in body.inputs[1:]]
    return [body.op("Slice", body.inputs[0], *bounds)]


def _concat(body: Body) -> list[Value]:
    return [body.op("Concat", *body.inputs, axis=body.attr("axis"))]


def _squeeze_type(run: Inference, node: Node) -> ValueType | None:
    x = tensor(node.inputs[0])
    if x is None or x.shape is None:
        return x
    axes = node._attrs["axes"]
    if not axes:
        # The runtime takes no axes to mean every axis of extent 1, which depends on run-time sizes.
        raise TypeMismatch("no axis is named")
    change = squeezed_shape if node.op == "mnn.Squeeze" else unsqueezed_shape
    return typed(x.dtype, change(x.shape, axes))


def _squeeze(body: Body) -> list[Value]:
    return [body.op(body.node.op_type, body.inputs[0], body.ints(*body.attr("axes")))]


def _gather_type(run: Inference, node: Node) -> ValueType | None:
    x, index = tensor(node.inputs[0]), tensor(node.inputs[1])
    if x is None or index is None or x.shape is None or index.shape is None:
        return None
    return TensorType(x.dtype, (*index.shape, *x.shape[1:]))


def _gather(body: Body) -> list[Value]:
    return [body.op("Gather", *body.inputs, axis=0)]


# ---- linear, norm, attention ----


def _convolution_type(run: Inference, node: Node) -> ValueType | None:
    x, weight = tensor(node.inputs[0]), tensor(node.inputs[1])
    if x is None or weight is None:
        return None
    if x.shape is None or weight.shape is None:
        return TensorType(x.dtype, (None, None, 1, 1))  # type: ignore[arg-type]
    if len(x.shape) != 4 or x.shape[2:] != (1, 1) or len(weight.shape) != 2:
        raise TypeMismatch("a 1x1 convolution takes [n, ic, 1, 1] and a weight [ic, oc]")
    if type(x.shape[1]) is int and type(weight.shape[0]) is int and x.shape[1] != weight.shape[0]:
        raise TypeMismatch(f"{x.shape[1]} input channels meet a weight for {weight.shape[0]}")
    return TensorType(one_dtype(x, weight), (x.shape[0], weight.shape[1], 1, 1))  # type: ignore[arg-type]


def _convolution(body: Body) -> list[Value]:
    x, weight, bias = (*body.inputs, None)[:3]
    result = body.op("MatMul", body.op("Flatten", x, axis=1), weight)
    if bias is not None:
        result = body.op("Add", result, bias)
    return [body.op("Unsqueeze", result, body.ints(2, 3))]


def _norm_type(run: Inference, node: Node) -> ValueType | None:
    axes = node._attrs.get("axis", (-1,))
    x = tensor(node.inputs[0])
    if x is not None and x.rank is not None:
        places = sorted(axis_of(axis, x.rank) for axis in axes)
        if places != list(range(x.rank - len(axes), x.rank)):
            raise TypeMismatch(f"axes {axes} are not the last ones of {x}")
    return x


def _norm(body: Body) -> list[Value]:
    x, gamma, beta = body.inputs
    axes, epsilon, rms = body.attr("axis"), float(body.attr("epsilon")), body.attr("rms")
    return [normalized(body, x, gamma, beta, len(axes), epsilon, rms)]


def normalized(body: Body, x: Value, gamma: Value, beta: Value, axes: int, epsilon: float, rms: bool) -> Value:
    """The last `axes` axes of `x` normalized, times gamma plus beta."""
    if rms and body.opset >= 23:
        scaled = body.op("RMSNormalization", x, gamma, axis=-axes, epsilon=epsilon)
        return body.op("Add", scaled, beta)
    if not rms and body.opset >= 17:
        return body.op("LayerNormalization", x, gamma, beta, axis=-axes, epsilon=epsilon)
    scaled = body.op("Mul", plain_norm(body, x, axes, epsilon, rms), gamma)
    return body.op("Add", scaled, beta)


def _attention_type(run: Inference, node: Node) -> ValueType | None:
    q, k, v = (tensor(value) for value in node.inputs[:3])
    if q is None:
        return None
    if q.shape is None:
        return TensorType(q.dtype, (None, None, None))  # type: ignore[arg-type]
    for operand in (q, k, v):
        if operand is not None and operand.shape is not None and len(operand.shape) != 4:
            raise TypeMismatch("q, k and v are [1, S, heads, size]")
    one, length, heads, size = q.shape
    for operand in (k, v):
        if operand is not None and operand.shape is not None:
            _check_heads(heads, size, operand.shape)
    return TensorType(q.dtype, (one, length, run.table.multiply(heads, size)))


def _check_heads(heads: Extent, size: Extent, shape: tuple) -> None:
    """TypeMismatch when keys or values do not serve the query heads."""
    if type(size) is int and type(shape[3]) is int and size != shape[3]:
        raise TypeMismatch(f"heads of size {size} meet keys or values of size {shape[3]}")
    if type(heads) is int and type(shape[2]) is int and heads % shape[2]:
        raise TypeMismatch(f"{heads} query heads cannot share {shape[2]} key and value heads evenly")


def _attention(body: Body) -> list[Value]:
    q, k, v, mask = body.inputs
    return [attended(body, q, k, v, None if body.rank(3) == 0 else mask)]


def attended(body: Body, q: Value, k: Value, v: Value, mask: Value | None) -> Value:
    """A first call, whose cache holds this call's keys and values only: ``[1, S, heads, D]`` to ``[1, S, heads*D]``."""
    q, k, v = (body.op("Transpose", value, perm=(0, 2, 1, 3)) for value in (q, k, v))
    if body.opset < 23:
        found = plain_attention(body, q, k, v, mask)
    elif mask is None:
        found = body.op("Attention", q, k, v, is_causal=1)
    else:
        found = body.op("Attention", q, k, v, mask)
    rows = body.op("Transpose", found, perm=(0, 2, 1, 3))
    return body.op("Reshape", rows, body.ints(0, 0, -1))


# ---- elementwise ----


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
    return [UNARY[body.attr("kind")](body, body.inputs[0])]


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


def _binary_type(run: Inference, node: Node) -> ValueType | None:
    found = arithmetic(run, node)
    kind = node._attrs["kind"]
    if type(found) is TensorType and (kind in COMPARE or kind == "NOTEQUAL"):
        return TensorType(I32, found.shape)
    return found


def _binary(body: Body) -> list[Value]:
    kind, (x, y) = body.attr("kind"), body.inputs
    if kind in BINARY:
        return [BINARY[kind](body, x, y)]
    found = body.op("Not", body.op("Equal", x, y)) if kind == "NOTEQUAL" else body.op(COMPARE[kind], x, y)
    return [body.op("Cast", found, to=I32.onnx)]


def _cast_type(run: Inference, node: Node) -> ValueType | None:
    x = tensor(node.inputs[0])
    return None if x is None else TensorType(element_type(node._attrs["to"]), x.shape)


def _cast(body: Body) -> list[Value]:
    return [body.op("Cast", body.inputs[0], to=body.attr("to"))]


def _select_type(run: Inference, node: Node) -> ValueType | None:
    types = [tensor(value) for value in node.inputs]
    if any(type_ is None for type_ in types):
        return None
    shape = broadcast(run, [type_.shape for type_ in types])  # type: ignore[union-attr]
    return typed(one_dtype(*types[1:]), shape)


def _select(body: Body) -> list[Value]:
    choose = body.op("Cast", body.inputs[0], to=DTYPES["bool"].onnx)
    return [body.op("Where", choose, body.inputs[1], body.inputs[2])]


# ---- reductions ----

REDUCTIONS = {
    "SUM": "ReduceSum", "ASUM": "ReduceL1", "SUMSQ": "ReduceSumSquare", "MEAN": "ReduceMean", "MAXIMUM": "ReduceMax",
    "MINIMUM": "ReduceMin", "PROD": "ReduceProd",
}  # fmt: skip
"""``ReductionType`` -> ONNX operator."""


def _reduction_type(run: Inference, node: Node) -> ValueType | None:
    x = tensor(node.inputs[0])
    if x is None or x.shape is None:
        return x
    return typed(x.dtype, reduced_shape(x.shape, node._attrs.get("axes", ()), node._attrs.get("keep_dims", 0)))


def _reduction(body: Body) -> list[Value]:
    return [body.reduce(REDUCTIONS[body.attr("kind")], body.inputs[0], body.attr("axes"), body.attr("keep_dims"))]


def _last_axis(node: Node, index: int) -> bool:
    """Row-wise when the operator works along the last axis alone."""
    x = tensor(node.inputs[index])
    axis = node._attrs.get("axis", -1)
    axes = axis if isinstance(axis, tuple) else (axis,)
    return x is not None and x.rank is not None and all(place in (-1, x.rank - 1) for place in axes)


def attrs_of(*rows: AttrDef) -> dict[str, AttrDef]:
    return {row.name: row for row in rows}


_KINDS = frozenset((*BINARY, *COMPARE, "NOTEQUAL"))

DEFINITIONS = (
    OpDef(
        "mnn.Reshape",
        inputs=("x",),
        attrs=attrs_of(AttrDef("dims", "ints", required=True), AttrDef("dim_type", "str", "NCHW", choices=FORMATS)),
        traits=PURE | {"positional"},
        infer=_reshape_type,
        follow=same_elements,
        define=_reshape,
        doc="The same elements under another shape; 0 copies the axis of the operand, one -1 takes what is left.",
    ),
    OpDef(
        "mnn.ConvertTensor",
        inputs=("x",),
        attrs=attrs_of(
            AttrDef("source", "str", required=True, choices=FORMATS),
            AttrDef("dest", "str", required=True, choices=FORMATS),
        ),
        traits=PURE | {"positional", "elementwise"},
        infer=same_as_input,
        define=_identity,
        doc="Another memory layout of the same values.",
    ),
    OpDef(
        "mnn.Convolution",
        inputs=("x", "weight", "bias"),
        min_inputs=2,
        max_inputs=3,
        infer=_convolution_type,
        define=_convolution,
        weight_input=1,
        channel_axis=1,
        doc="A 1x1 convolution: [n, ic, 1, 1] by a weight [ic, oc] and a bias [oc] to [n, oc, 1, 1].",
    ),
    OpDef(
        "mnn.LayerNorm",
        inputs=("x", "gamma", "beta"),
        min_inputs=3,
        max_inputs=3,
        attrs=attrs_of(AttrDef("axis", "ints", (-1,)), AttrDef("epsilon", "float", 1e-5), AttrDef("rms", "int", 0)),
        infer=_norm_type,
        define=_norm,
        rowwise=lambda node, index: index == 0 and _last_axis(node, 0),
        doc="Normalizes the last axes, by their root mean square when `rms`; then times gamma plus beta. The runtime "
        "drops a gamma that comes without a beta.",
    ),
    OpDef(
        "mnn.Attention",
        inputs=("q", "k", "v", "mask"),
        min_inputs=4,
        max_inputs=4,
        traits=frozenset({"stateful", "mixing"}),
        infer=_attention_type,
        define=_attention,
        doc="q [1, S, Hq, D], k and v [1, S, Hkv, D] to [1, S, Hq*D], scores times 1/sqrt(D), heads grouped by integer "
        "division. A mask of rank 0 means causal, one of [1, 1, S, S] is added to the scores. Keeps keys and values of "
        "earlier calls; the definition is that of a first call.",
    ),
    OpDef(
        "mnn.Unary",
        inputs=("x",),
        attrs=attrs_of(AttrDef("kind", "str", required=True, choices=frozenset(UNARY))),
        traits=PURE | {"elementwise"},
        infer=same_as_input,
        define=_unary,
        doc="An elementwise function named as in ``UnaryOpOperation``.",
    ),
    OpDef(
        "mnn.Binary",
        inputs=("x", "y"),
        min_inputs=2,
        max_inputs=2,
        attrs=attrs_of(AttrDef("kind", "str", required=True, choices=_KINDS)),
        traits=PURE | {"elementwise"},
        infer=_binary_type,
        define=_binary,
        doc="A broadcasting function named as in ``BinaryOpOperation``; comparisons give int32.",
    ),
    OpDef(
        "mnn.Cast",
        inputs=("x",),
        attrs=attrs_of(AttrDef("to", "int", required=True)),
        traits=PURE | {"elementwise", "conversion"},
        infer=_cast_type,
        follow=same_elements,
        define=_cast,
        doc="Another element type, given as in ONNX Cast; floats are cut towards zero.",
    ),
    OpDef(
        "mnn.Slice",
        inputs=("x",),
        max_outputs=ANY,
        attrs=attrs_of(AttrDef("axis", "int", required=True), AttrDef("points", "ints", required=True)),
        infer=_slice_types,
        define=_slice,
        rowwise=_last_axis,
        doc="Cuts an axis at the points: n points make n + 1 parts.",
    ),
    OpDef(
        "mnn.StridedSlice",
        inputs=("x", "begin", "end", "axes", "steps"),
        min_inputs=3,
        max_inputs=5,
        infer=slice_,
        define=_strided_slice,
        doc="ONNX Slice with 32-bit bounds, for bounds that do not lie before the start of an axis and positive steps.",
    ),
    OpDef(
        "mnn.Concat",
        inputs=("xs",),
        max_inputs=ANY,
        attrs=attrs_of(AttrDef("axis", "int", required=True)),
        infer=concat,
        follow=concat_elements,
        define=_concat,
        rowwise=_last_axis,
        doc="Joins tensors along an axis.",
    ),
    OpDef(
        "mnn.GatherV2",
        inputs=("x", "index"),
        min_inputs=2,
        max_inputs=2,
        traits=PURE,
        infer=_gather_type,
        define=_gather,
        doc="Rows of x by their numbers: x [n, ...] and index [...] to [*index, ...].",
    ),
    OpDef(
        "mnn.Squeeze",
        inputs=("x",),
        attrs=attrs_of(AttrDef("axes", "ints", required=True)),
        traits=PURE | {"positional"},
        infer=_squeeze_type,
        define=_squeeze,
        doc="Drops axes of extent 1.",
    ),
    OpDef(
        "mnn.Unsqueeze",
        inputs=("x",),
        attrs=attrs_of(AttrDef("axes", "ints", required=True)),
        traits=PURE | {"positional"},
        infer=_squeeze_type,
        define=_squeeze,
        doc="Puts axes of extent 1 in.",
    ),
    OpDef(
        "mnn.Select",
        inputs=("condition", "x", "y"),
        min_inputs=3,
        max_inputs=3,
        traits=PURE | {"elementwise"},
        infer=_select_type,
        define=_select,
        doc="x where the int32 condition is not 0, else y.",
    ),
    OpDef(
        "mnn.Reduction",
        inputs=("x",),
        attrs=attrs_of(
            AttrDef("kind", "str", required=True, choices=frozenset(REDUCTIONS)),
            AttrDef("axes", "ints", ()),
            AttrDef("keep_dims", "int", 0),
        ),
        infer=_reduction_type,
        define=_reduction,
        doc="Reduces the axes, all of them when none is named; kinds as in ``ReductionType``.",
    ),
)
"""Rows for `ir.ops.registry.OPERATORS`."""
