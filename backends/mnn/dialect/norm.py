"""Norms of the last axes, and since 3.6.1 of the channels of packed tensors, with or without a sum before them.

Source at that tag: ``source/backend/cpu/CPULayerNorm.cpp`` and ``source/geometry/GeometryLayernorm.cpp``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from backends.mnn.dialect.builder import Builder
from backends.mnn.dialect.operator import (
    PURE,
    Decoded,
    Main,
    MnnOperator,
    Operands,
    along_last_axis,
    attrs_of,
    is_packed,
)
from backends.mnn.read.net_file import numbers
from backends.mnn.read.stored_tensors import WeightFile
from backends.mnn.target.releases import Release
from backends.mnn.write.weight_layout import Layout
from ir.base.diag import LadingError
from ir.base.types import F32, TensorType, ValueType
from ir.dialects.older_opsets import plain_norm
from ir.graph.graph import Node, Value
from ir.infer.inference import Inference
from ir.infer.numeric import axis_of, tensor
from ir.infer.rule_table import TypeMismatch
from ir.ops.meaning import Body
from ir.ops.registry import AttrDef, OpDef
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor

NORM_ATTRS = (AttrDef("epsilon", "float", 1e-5), AttrDef("rms", "int", 0))

# ---- types and meaning ----


def _norm_type(run: Inference, node: Node) -> ValueType | None:
    axes = node._attrs.get("axis", (-1,))
    x = tensor(node.inputs[0])
    if x is not None and x.rank is not None:
        places = sorted(axis_of(axis, x.rank) for axis in axes)
        if places != list(range(x.rank - len(axes), x.rank)):
            raise TypeMismatch(f"axes {axes} are not the last ones of {x}")
    return x


def _norm(body: Body) -> list[Value]:
    x, gamma, beta = (body.operand(place) for place in range(3))
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


def _packed_like_first(run: Inference, node: Node) -> tuple[ValueType | None, ...]:
    x = tensor(node.inputs[0])
    if x is not None and not is_packed(x):
        raise TypeMismatch(f"{x} is not [rows, channels, 1, 1]")
    return (x,) * len(node.outputs)


def _packed_normalized(body: Body, x: Value, gamma: Value, beta: Value) -> Value:
    """A norm over the channels of ``[rows, channels, 1, 1]``."""
    flat = body.op("Flatten", x, axis=1)
    result = normalized(body, flat, gamma, beta, 1, float(body.attr("epsilon")), bool(body.attr("rms")))
    return body.op("Unsqueeze", result, body.ints(2, 3))


def _packed_norm(body: Body) -> list[Value]:
    return [_packed_normalized(body, *(body.operand(place) for place in range(3)))]


def _add_norm(body: Body) -> list[Value]:
    x, y, gamma, beta = (body.operand(place) for place in range(4))
    total = body.op("Add", x, y)
    return [total, _packed_normalized(body, total, gamma, beta)]


# ---- writing ----


def _write_norm(node: Node, layout: Layout) -> dict[str, Any]:
    vector = layout.vectors[node]
    sizes = [4 * math.prod(value.sizes) for value in vector.values]
    return {
        # On packed tensors, of which the format of the operator tells it, the runtime normalizes the channels, whatever
        # axis is named.
        "axis": list(node.attrs.get("axis", (-1,))),
        "epsilon": node.attrs["epsilon"],
        "group": 1,
        "external": [vector.offset, *sizes],
        "useRMSNorm": bool(node.attrs["rms"]),
    }


def inline_norm(node: Node, gamma: Value, beta: Value) -> dict[str, Any]:
    """A norm inside another operator, whose gain and shift the runtime looks for in the graph alone."""
    return {
        "axis": [-1],
        "epsilon": node.attrs["epsilon"],
        "group": 1,
        "gamma": _floats(gamma),
        "beta": _floats(beta),
        "useRMSNorm": bool(node.attrs["rms"]),
    }


def _floats(value: Value) -> list[float]:
    return value.tensor.load().astype("float32").reshape(-1).tolist()


def _reads_packed_norm(release: Release, attrs: Mapping[str, Any]) -> bool:
    return release.packed_norm


# ---- reading ----


def _read_norms(builder: Builder, main: Main, operands: Operands) -> Decoded:
    values = [builder.value(item) for item in operands]
    if len(values) == 2:
        total = builder.add("Binary", values, values[0].type, kind="ADD")
        return total, _read_channel_norm(builder, main, total)
    return _read_channel_norm(builder, main, values[0])


def _read_channel_norm(builder: Builder, main: Main, x: Value) -> Value:
    """A norm of the last axis, or of the channels of ``[rows, channels, 1, 1]``."""
    if len(numbers(main.get("axis"))) != 1 or main.get("group", 1) != 1:
        raise builder.error("F644", "norms of more than one axis, or in groups, are not read")
    shape = builder.dims(x)
    if len(shape) == 4 and shape[2:] == (1, 1):
        flat = builder.reshape(x, (1, shape[0], shape[1]))
        return builder.reshape(read_norm(builder, flat, main, builder.op), shape)
    return read_norm(builder, x, main, builder.op)


def read_norm(builder: Builder, x: Value, main: Main, op: Main, *, gain_alone: bool = False) -> Value:
    """A norm of the last axis of `x`; `gain_alone` as in `gain_and_shift`."""
    gamma, beta = gain_and_shift(builder.weights, op, builder.size(x, -1), gain_alone)
    parts = [
        builder.graph.add_const(builder.graph.fresh_name(f"{op.get('name')}.{word}"), part)
        for word, part in (("gamma", gamma), ("beta", beta))
    ]
    epsilon = float(main.get("epsilon", 0.0))
    return builder.add(
        "LayerNorm", [x, *parts], x.type, axis=(-1,), epsilon=epsilon, rms=int(main.get("useRMSNorm", False))
    )


def gain_and_shift(weights: WeightFile, op: Main, size: int, gain_alone: bool = False) -> tuple[Tensor, Tensor]:
    """Gain and shift ``f32[size]`` of a norm, a missing shift as zeros.

    Args:
        weights: the weight file.
        op: the operator, or one made up around the norm inside another.
        size: elements of the axis.
        gain_alone: a gain inside the model file counts without a shift too: so it does in a rotation's norms
            (``CPURoPE.cpp``), and not in an operator that is a norm (``CPULayerNorm.cpp``).

    Raises:
        LadingError: F642 beyond the file, F643 a gain or shift of another size.
    """
    main, name = op["main"], str(op.get("name"))
    external = numbers(main.get("external"))
    type_ = TensorType(F32, (size,))
    if len(external) > 1:
        gamma = weights.tensor(external[0], type_, f"{name}.gamma")
        has_beta = len(external) > 2 and external[2]
        beta = weights.tensor(external[0] + external[1], type_, f"{name}.beta") if has_beta else None
        return gamma, beta or InlineTensor(np.zeros(size, np.float32))
    gamma_list, beta_list = numbers(main.get("gamma")), numbers(main.get("beta"))
    if not gamma_list or not (beta_list or gain_alone):
        gamma_list, beta_list = [1.0] * size, []
    found = [np.array(part, np.float32) for part in (gamma_list, beta_list or [0.0] * size)]
    if any(part.shape != (size,) for part in found):
        sizes = " and ".join(str(part.size) for part in found)
        raise LadingError("F643", f"a norm of {size} elements has {sizes} of gain and shift", where=name)
    return InlineTensor(found[0]), InlineTensor(found[1])


ROWS = (
    MnnOperator(
        type="LayerNorm",
        parameter="LayerNorm",
        definition=OpDef(
            "mnn.LayerNorm",
            inputs=("x", "gamma", "beta"),
            min_inputs=3,
            max_inputs=3,
            attrs=attrs_of(AttrDef("axis", "ints", (-1,)), *NORM_ATTRS),
            infer=_norm_type,
            define=_norm,
            rowwise=lambda node, index: index == 0 and along_last_axis(node, 0),
            role="norm",
            doc="Normalizes the last axes, by their root mean square when `rms`; then times gamma plus beta. The "
            "runtime drops a gamma that comes without a beta.",
        ),
        encode=_write_norm,
        tensors=1,
        decode=_read_norms,
    ),
    MnnOperator(
        type="LayerNorm",
        parameter="LayerNorm",
        definition=OpDef(
            "mnn.PackedNorm",
            inputs=("x", "gamma", "beta"),
            min_inputs=3,
            max_inputs=3,
            attrs=attrs_of(*NORM_ATTRS),
            traits=PURE,
            infer=_packed_like_first,
            define=_packed_norm,
            role="norm",
            doc="Normalizes the channels of a packed tensor, by their root mean square when `rms`; then times gamma "
            "plus beta.",
        ),
        encode=_write_norm,
        tensors=1,
        format="NC4HW4",
        form="packed-norm",
        reads=_reads_packed_norm,
    ),
    MnnOperator(
        type="LayerNorm",
        parameter="LayerNorm",
        definition=OpDef(
            "mnn.AddNorm",
            inputs=("x", "y", "gamma", "beta"),
            min_inputs=4,
            max_inputs=4,
            min_outputs=2,
            max_outputs=2,
            attrs=attrs_of(*NORM_ATTRS),
            traits=PURE,
            infer=_packed_like_first,
            define=_add_norm,
            role="norm",
            doc="The sum of two packed tensors, and that sum normalized as by mnn.PackedNorm.",
        ),
        encode=_write_norm,
        tensors=2,
        format="NC4HW4",
        form="packed-norm",
        reads=_reads_packed_norm,
    ),
)
"""Rows for `backends.mnn.dialect.table`."""
