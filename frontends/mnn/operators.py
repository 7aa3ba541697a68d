"""How each operator of an MNN graph is read: one function per operator, those of later releases taken apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from frontends.mnn.shapes import Ints
from frontends.mnn.weights import add_weight, listed
from ir.base.types import F32, I32, Dim, TensorType
from ir.graph.graph import Value

if TYPE_CHECKING:
    from frontends.mnn.lift import Lift

_DTYPES = {"DT_FLOAT": F32, "DT_INT32": I32}

Operands = Sequence[Value | Ints]
Result = Value | Ints | tuple[Value, ...]


def _const(lift: Lift, main: Mapping[str, Any], operands: Operands) -> Result:
    tensor = lift.weights.blob(lift.op)
    if tensor.type.dtype == I32 and tensor.type.rank in (0, 1) and tensor.nbytes <= 256:
        array = tensor.load()
        return Ints(tuple(array.reshape(-1).tolist()), array.ndim == 0)
    return lift.graph.add_const(lift.graph.fresh_name(str(lift.op.get("name"))), tensor)


def _same(lift: Lift, main: Mapping[str, Any], operands: Operands) -> Result:
    return operands[0]


def _shape(lift: Lift, main: Mapping[str, Any], operands: Operands) -> Result:
    return Ints(tuple(lift.value(operands[0]).shape))


def _rank(lift: Lift, main: Mapping[str, Any], operands: Operands) -> Result:
    return Ints((len(lift.value(operands[0]).shape),), True)


def _reshape(lift: Lift, main: Mapping[str, Any], operands: Operands) -> Result:
    sizes = operands[1].items if len(operands) > 1 and isinstance(operands[1], Ints) else listed(main.get("dims"))
    return lift.reshape(lift.value(operands[0]), sizes)


def _convolution(lift: Lift, main: Mapping[str, Any], operands: Operands) -> Result:
    common = main.get("common", {})
    odd = {key: common.get(key, 1) for key in ("kernelX", "kernelY", "strideX", "strideY", "group")}
    if any(size != 1 for size in odd.values()) or common.get("relu") or common.get("relu6"):
        raise lift.error("F644", "convolutions other than 1x1 without activation are not read")
    name = str(lift.op.get("name"))
    weight, bias = lift.weights.matrix(lift.op)
    x = lift.value(operands[0])
    flat = lift.reshape(x, (x.shape[0], common["inputCount"], 1, 1))
    packed = lift.add("ConvertTensor", [flat], flat.type, source="NCHW", dest="NC4HW4")
    wide = TensorType(F32, (flat.shape[0], common["outputCount"], 1, 1))
    inputs = [packed, add_weight(lift.graph, name, weight), lift.graph.add_const(f"{name}.bias", bias)]
    product = lift.add("Convolution", inputs, wide)
    return lift.add("ConvertTensor", [product], wide, source="NC4HW4", dest="NCHW")


def _layer_norm(lift: Lift, main: Mapping[str, Any], operands: Operands) -> Result:
    values = [lift.value(item) for item in operands]
    if len(values) == 2:
        total = lift.add("Binary", values, values[0].type, kind="ADD")
        return total, _channel_norm(lift, main, total)
    return _channel_norm(lift, main, values[0])


def _channel_norm(lift: Lift, main: Mapping[str, Any], x: Value) -> Value:
    """A norm of the last axis, or of the channels of ``[rows, channels, 1, 1]``."""
    if len(listed(main.get("axis"))) != 1 or main.get("group", 1) != 1:
        raise lift.error("F644", "norms of more than one axis, or in groups, are not read")
    if len(x.shape) == 4 and x.shape[2:] == (1, 1):
        flat = lift.reshape(x, (1, x.shape[0], x.shape[1]))
        return lift.reshape(lift.norm(flat, main, lift.op), x.shape)
    return lift.norm(x, main, lift.op)


def _binary(lift: Lift, main: Mapping[str, Any], operands: Operands) -> Result:
    left, right = (lift.value(item) for item in operands)
    if main.get("activationType"):
        raise lift.error("F644", "element-wise operators with an activation are not read")
    kind = main.get("opType", "ADD")
    if kind == "MUL_SILU":
        gate = lift.add("Unary", [right], right.type, kind="SILU")
        return lift.add("Binary", [left, gate], left.type, kind="MUL")
    if type(kind) is int:
        raise lift.error("F644", f"the function {kind} of BinaryOp is not known")
    return lift.add("Binary", [left, right], kind=kind)


def _unary(lift: Lift, main: Mapping[str, Any], operands: Operands) -> Result:
    x, kind = lift.value(operands[0]), main.get("opType", "ABS")
    if type(kind) is int:
        raise lift.error("F644", f"the function {kind} of UnaryOp is not known")
    return lift.add("Unary", [x], x.type, kind=kind)


def _relu(lift: Lift, main: Mapping[str, Any], operands: Operands) -> Result:
    if main.get("slope"):
        raise lift.error("F644", f"a ReLU of slope {main['slope']} is not read")
    x = lift.value(operands[0])
    return lift.add("Binary", [x, lift.const(np.zeros((), np.float32), "zero")], x.type, kind="MAXIMUM")


def _softmax(lift: Lift, main: Mapping[str, Any], operands: Operands) -> Result:
    """Exponentials over their sum, taken apart; the largest element is taken off first, as the runtime does."""
    x = lift.value(operands[0])
    axis = main.get("axis", 1) % len(x.shape)

    def reduced(value: Value, kind: str) -> Value:
        return lift.add("Reduction", [value], kind=kind, axes=(axis,), keep_dims=1)

    shifted = lift.add("Binary", [x, reduced(x, "MAXIMUM")], x.type, kind="SUB")
    powers = lift.add("Unary", [shifted], x.type, kind="EXP")
    return lift.add("Binary", [powers, reduced(powers, "SUM")], x.type, kind="REALDIV")


def _reduction(lift: Lift, main: Mapping[str, Any], operands: Operands) -> Result:
    known = operands[1].known if len(operands) > 1 and isinstance(operands[1], Ints) else None
    axes = known if known is not None else tuple(listed(main.get("dim")))
    if main.get("coeff") or not axes or (len(operands) > 1 and known is None):
        raise lift.error("F644", "reductions of all axes, of axes that the run decides or times a factor are not read")
    kind = main.get("operation", "SUM")
    return lift.add(
        "Reduction", [lift.value(operands[0])], kind=kind, axes=axes, keep_dims=int(bool(main.get("keepDims")))
    )


def _cast(lift: Lift, main: Mapping[str, Any], operands: Operands) -> Result:
    x, to = lift.value(operands[0]), _DTYPES.get(main.get("dstT", "DT_FLOAT"))
    if to is None:
        raise lift.error("F644", f"a cast to {main.get('dstT')} is not read")
    return x if x.dtype == to else lift.add("Cast", [x], TensorType(to, x.shape), to=to.onnx)


def _slice(lift: Lift, main: Mapping[str, Any], operands: Operands) -> Result:
    x, axis = lift.value(operands[0]), main.get("axis", 0)
    return lift.slice(x, axis, listed(main.get("slicePoints")))


def _strided_slice(lift: Lift, main: Mapping[str, Any], operands: Operands) -> Result:
    x = lift.value(operands[0])
    if main.get("fromType") != 1 or any(
        main.get(key) for key in ("beginMask", "endMask", "shrinkAxisMask", "newAxisMask")
    ):
        raise lift.error("F644", "slices with TensorFlow's masks are not read")
    if lift.index is not None and operands[1] is lift.index:
        axes = operands[3].known if len(operands) > 3 and isinstance(operands[3], Ints) else (0,)
        if lift.convention.fed("output-rows") is None:
            return x
        axis = axes[0] % len(x.shape)  # type: ignore[index]
        if len(x.shape) == 4:  # rows of packed channels: cut where rows lie one below the other
            flat = lift.reshape(x, (1, x.shape[0], x.shape[1]))
            return lift.reshape(lift.slice_rows(flat, 1), (lift.rows, x.shape[1], 1, 1))
        return lift.slice_rows(x, axis)
    return lift.add("StridedSlice", [x, *(lift.value(item) for item in operands[1:])])


def _concat(lift: Lift, main: Mapping[str, Any], operands: Operands) -> Result:
    values = [lift.value(item) for item in operands]
    return lift.add("Concat", values, axis=main.get("axis", 0) % len(values[0].shape))


def _gather(lift: Lift, main: Mapping[str, Any], operands: Operands) -> Result:
    if len(operands) > 2 and getattr(operands[2], "known", None) != (0,):
        raise lift.error("F644", "gathers along another axis than the first are not read")
    return lift.add("GatherV2", [lift.value(operands[0]), lift.value(operands[1])])


def _axes(main: Mapping[str, Any], operands: Operands) -> tuple[int, ...]:
    known = operands[1].known if len(operands) > 1 and isinstance(operands[1], Ints) else None
    return known if known is not None else tuple(listed(main.get("squeezeDims")))


def _unsqueeze(lift: Lift, main: Mapping[str, Any], operands: Operands) -> Result:
    x, axes = lift.value(operands[0]), _axes(main, operands)
    rank = len(x.shape) + len(axes)
    places, sizes = {axis % rank for axis in axes}, iter(x.shape)
    return lift.reshape(x, [1 if place in places else next(sizes) for place in range(rank)])


def _squeeze(lift: Lift, main: Mapping[str, Any], operands: Operands) -> Result:
    x, axes = lift.value(operands[0]), _axes(main, operands)
    places = {axis % len(x.shape) for axis in axes} or {place for place, size in enumerate(x.shape) if size == 1}
    kept = [size for place, size in enumerate(x.shape) if place not in places]
    if sum(isinstance(size, Dim) for size in kept) > 1:
        return lift.add("Squeeze", [x], axes=tuple(sorted(places)))
    return lift.reshape(x, kept)


def _rope(lift: Lift, main: Mapping[str, Any], operands: Operands) -> Result:
    """Rotary embedding of queries and keys by halves, after an optional norm of each head."""
    size = main.get("head_dim", 0)
    cut = main.get("rope_cut_head_dim", 0)
    turned = (cut if 0 < cut <= size else size) // 2 * 2
    query, key, cos, sin = (lift.value(item) for item in operands)
    angles = []
    for table in (cos, sin):
        wide = lift.reshape(table, (1, -1, 1, turned))
        angles.append(lift.slice(wide, 3, [turned // 2]))
    results = []
    for x, heads, norm in ((query, "num_head", "q_norm"), (key, "kv_num_head", "k_norm")):
        x4 = lift.reshape(x, (1, x.shape[0], main.get(heads, 0), size))
        # Without a gain the runtime does no norm at all (``makeRopeNormResource``).
        if listed((main.get(norm) or {}).get("gamma")):
            inner = {"main": main[norm], "name": f"{lift.op.get('name')}.{norm}"}
            x4 = lift.norm(x4, main[norm], inner, gain_alone=True)
        results.append(_turn(lift, x4, angles, turned))
    return tuple(results)


def _turn(lift: Lift, x: Value, angles: Sequence[tuple[Value, ...]], turned: int) -> Value:
    (cos_a, cos_b), (sin_a, sin_b) = angles
    points = [turned // 2] if turned == x.shape[-1] else [turned // 2, turned]
    left, right, *rest = lift.slice(x, 3, points)

    def multiply(a: Value, b: Value) -> Value:
        return lift.add("Binary", [a, b], a.type, kind="MUL")

    first = lift.add("Binary", [multiply(left, cos_a), multiply(right, sin_a)], left.type, kind="SUB")
    second = lift.add("Binary", [multiply(right, cos_b), multiply(left, sin_b)], left.type, kind="ADD")
    return lift.add("Concat", [first, second, *rest], x.type, axis=3)


def _attention(lift: Lift, main: Mapping[str, Any], operands: Operands) -> Result:
    if main.get("kv_shared_layer_index", -1) >= 0 or not main.get("kv_cache", True) or len(operands) > 4:
        raise lift.error("F644", "attention that shares keys, keeps no cache or has sinks is not read")
    query, key, values = (lift.value(item) for item in operands[:3])
    size = int(query.shape[-1])
    key, values = (
        x if x.shape[2:] != (1, 1) else lift.reshape(x, (1, x.shape[0], int(x.shape[1]) // size, size))
        for x in (key, values)
    )
    if lift.attention_scale and not math.isclose(lift.attention_scale, size**-0.5, rel_tol=1e-6):
        factor = lift.const(np.array([lift.attention_scale * math.sqrt(size)], np.float32), "attention.scale")
        query = lift.add("Binary", [query, factor], query.type, kind="MUL")
    mask = lift.value(operands[3]) if len(operands) > 3 else lift.graph.value("attention_mask")
    one, seq, heads, _ = query.shape
    result = lift.add("Attention", [query, key, values, mask], TensorType(F32, (one, seq, heads * size)))
    return lift.reshape(result, (seq, heads * size, 1, 1)) if main.get("output_c4") else result


RULES: dict[str, Callable[[Lift, Mapping[str, Any], Operands], Result]] = {
    "Attention": _attention,
    "BinaryOp": _binary,
    "Cast": _cast,
    "Concat": _concat,
    "Const": _const,
    "ConvertTensor": _same,
    "Convolution": _convolution,
    "GatherV2": _gather,
    "Identity": _same,
    "LayerNorm": _layer_norm,
    "Rank": _rank,
    "ReLU": _relu,
    "Reduction": _reduction,
    "Reshape": _reshape,
    "RoPE": _rope,
    "Shape": _shape,
    "Slice": _slice,
    "Softmax": _softmax,
    "Squeeze": _squeeze,
    "StridedSlice": _strided_slice,
    "UnaryOp": _unary,
    "Unsqueeze": _unsqueeze,
}
"""How each operator is read."""

REFUSED = {
    "LinearAttention": "linear attention, whose state later releases keep otherwise than earlier ones",
    "MoE": "a mixture of experts, whose experts are graphs of their own that are not written again",
}
"""Operators that are known and cannot be read, and what they are: they are named before anything else that is not
read."""
