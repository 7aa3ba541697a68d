"""Rotary embedding of queries and keys as one operator, which MNN has since 3.6.1.

Sources at that tag: ``source/backend/cpu/CPURoPE.cpp`` and ``source/shape/ShapeRoPE.cpp``. Earlier releases compute it
with slices and products, as reading takes it apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from backends.mnn.dialect.builder import Builder
from backends.mnn.dialect.norm import NORM_ATTRS, inline_norm, normalized, read_norm
from backends.mnn.dialect.operator import PURE, Decoded, Main, MnnOperator, Operands, attrs_of, is_packed
from backends.mnn.read.net_file import numbers
from backends.mnn.target.releases import Release
from backends.mnn.write.weight_layout import Layout
from ir.base.types import TensorType, ValueType
from ir.graph.graph import Node, Value
from ir.infer.inference import Inference
from ir.infer.numeric import tensor
from ir.infer.rule_table import TypeMismatch
from ir.ops.meaning import Body
from ir.ops.registry import AttrDef, OpDef


def _rope_types(run: Inference, node: Node) -> tuple[ValueType | None, ...]:
    found: list[ValueType | None] = []
    size = node._attrs["size"]
    for value, heads in zip(node.inputs, (node._attrs["heads"], node._attrs["kv_heads"]), strict=False):
        x = tensor(value)
        if x is not None and x.shape is not None:
            if not is_packed(x) or (type(x.shape[1]) is int and x.shape[1] != heads * size):
                raise TypeMismatch(f"{x} is not [rows, {heads} * {size}, 1, 1]")
            x = TensorType(x.dtype, (1, x.shape[0], heads, size))
        found.append(x)
    return tuple(found)


def _rope(body: Body) -> list[Value]:
    q, k, cos, sin = (body.operand(place) for place in range(4))
    epsilon, rms = float(body.attr("epsilon")), bool(body.attr("rms"))
    results = []
    for index, (x, heads) in enumerate(((q, body.attr("heads")), (k, body.attr("kv_heads")))):
        wide = body.op("Reshape", x, body.ints(1, -1, heads, body.attr("size")))
        place = 4 + 2 * index
        if body.node.input(place) is not None:
            wide = normalized(body, wide, body.operand(place), body.operand(place + 1), 1, epsilon, rms)
        results.append(_turned(body, wide, cos, sin))
    return results


def _turned(body: Body, x: Value, cos: Value | None, sin: Value | None) -> Value:
    """`x` with its first `turned` features rotated, the first half of the tables for the left half, the second for the
    right."""
    width, turned = body.attr("size"), body.attr("turned")
    half = turned // 2

    def part(value: Value | None, start: int, stop: int) -> Value:
        return body.op("Slice", value, body.ints(start), body.ints(stop), body.ints(3))

    left, right = part(x, 0, half), part(x, half, turned)
    first = body.op(
        "Sub", body.op("Mul", left, part(cos, 0, half)), body.op("Mul", right, part(sin, 0, half))
    )  # fmt: skip
    second = body.op(
        "Add", body.op("Mul", right, part(cos, half, turned)), body.op("Mul", left, part(sin, half, turned))
    )  # fmt: skip
    rest = [part(x, turned, width)] if turned < width else []
    return body.op("Concat", first, second, *rest, axis=3)


def _write_rope(node: Node, layout: Layout) -> dict[str, Any]:
    main = {
        "rope_cut_head_dim": node.attrs["turned"],
        "num_head": node.attrs["heads"],
        "kv_num_head": node.attrs["kv_heads"],
        "head_dim": node.attrs["size"],
    }
    for name, place in (("q_norm", 4), ("k_norm", 6)):
        if node.input(place) is not None:
            main[name] = inline_norm(node, node.operand(place), node.operand(place + 1))
    return main


def _read_rope(builder: Builder, main: Main, operands: Operands) -> Decoded:
    """Rotary embedding of queries and keys by halves, after an optional norm of each head."""
    size = main.get("head_dim", 0)
    cut = main.get("rope_cut_head_dim", 0)
    turned = (cut if 0 < cut <= size else size) // 2 * 2
    query, key, cos, sin = (builder.value(item) for item in operands)
    angles = []
    for table in (cos, sin):
        wide = builder.reshape(table, (1, -1, 1, turned))
        angles.append(builder.slice(wide, 3, [turned // 2]))
    results = []
    for x, heads, norm in ((query, "num_head", "q_norm"), (key, "kv_num_head", "k_norm")):
        x4 = builder.reshape(x, (1, builder.dims(x)[0], main.get(heads, 0), size))
        # Without a gain the runtime does no norm at all (``makeRopeNormResource``).
        if numbers((main.get(norm) or {}).get("gamma")):
            inner = {"main": main[norm], "name": f"{builder.op.get('name')}.{norm}"}
            x4 = read_norm(builder, x4, main[norm], inner, gain_alone=True)
        results.append(_read_turned(builder, x4, angles, turned))
    return tuple(results)


def _read_turned(builder: Builder, x: Value, angles: Sequence[tuple[Value, ...]], turned: int) -> Value:
    (cos_a, cos_b), (sin_a, sin_b) = angles
    points = [turned // 2] if turned == builder.dims(x)[-1] else [turned // 2, turned]
    left, right, *rest = builder.slice(x, 3, points)

    def multiply(a: Value, b: Value) -> Value:
        return builder.add("Binary", [a, b], a.type, kind="MUL")

    first = builder.add("Binary", [multiply(left, cos_a), multiply(right, sin_a)], left.type, kind="SUB")
    second = builder.add("Binary", [multiply(right, cos_b), multiply(left, sin_b)], left.type, kind="ADD")
    return builder.add("Concat", [first, second, *rest], x.type, axis=3)


def _reads_rope(release: Release, attrs: Mapping[str, Any]) -> bool:
    return "RoPE" not in release.missing_ops


ROWS = (
    MnnOperator(
        type="RoPE",
        parameter="RoPEParam",
        definition=OpDef(
            "mnn.RoPE",
            inputs=("q", "k", "cos", "sin", "q_gamma", "q_beta", "k_gamma", "k_beta"),
            min_inputs=4,
            max_inputs=8,
            min_outputs=2,
            max_outputs=2,
            attrs=attrs_of(
                AttrDef("heads", "int", required=True),
                AttrDef("kv_heads", "int", required=True),
                AttrDef("size", "int", required=True),
                AttrDef("turned", "int", required=True),
                *NORM_ATTRS,
            ),
            traits=PURE,
            infer=_rope_types,
            define=_rope,
            role="attention",
            doc="Packed queries [S, heads*size, 1, 1] and keys to [1, S, heads, size], each head normalized when "
            "gains and shifts are given, and its first `turned` features rotated by halves. The tables are [1, S, 1, "
            "turned].",
        ),
        encode=_write_rope,
        tensors=4,
        decode=_read_rope,
        form="rope",
        reads=_reads_rope,
    ),
)
"""Rows for `backends.mnn.dialect.table`."""
