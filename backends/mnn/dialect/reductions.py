"""Reductions, and what is made of them."""

from __future__ import annotations

from typing import Any

from backends.mnn.dialect.builder import Builder
from backends.mnn.dialect.operator import Decoded, Main, MnnOperator, Operands, attrs_of, data_type
from backends.mnn.read.net_file import numbers
from backends.mnn.read.sizes import Ints
from backends.mnn.write.weight_layout import Layout
from ir.base.types import ValueType
from ir.graph.graph import Node, Value
from ir.infer.inference import Inference
from ir.infer.numeric import reduced_shape, tensor
from ir.infer.shapes import typed
from ir.ops.meaning import Body
from ir.ops.registry import AttrDef, OpDef

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
    x = body.operand(0)
    return [body.reduce(REDUCTIONS[body.attr("kind")], x, body.attr("axes"), body.attr("keep_dims"))]


def _write_reduction(node: Node, layout: Layout) -> dict[str, Any]:
    return {
        "operation": node.attrs["kind"],
        "dim": list(node.attrs["axes"]),
        "coeff": 0.0,
        "keepDims": bool(node.attrs["keep_dims"]),
        "dType": data_type(node.output.dtype, node.output.name),
    }


def _read_reduction(builder: Builder, main: Main, operands: Operands) -> Decoded:
    known = operands[1].known if len(operands) > 1 and isinstance(operands[1], Ints) else None
    axes = known if known is not None else tuple(numbers(main.get("dim")))
    if main.get("coeff") or not axes or (len(operands) > 1 and known is None):
        raise builder.error(
            "F644", "reductions of all axes, of axes that the run decides or times a factor are not read"
        )
    kind = main.get("operation", "SUM")
    return builder.add(
        "Reduction", [builder.value(operands[0])], kind=kind, axes=axes, keep_dims=int(bool(main.get("keepDims")))
    )


def _read_softmax(builder: Builder, main: Main, operands: Operands) -> Decoded:
    """Exponentials over their sum, taken apart; the largest element is taken off first, as the runtime does."""
    x = builder.value(operands[0])
    axis = main.get("axis", 1) % len(builder.dims(x))

    def reduced(value: Value, kind: str) -> Value:
        return builder.add("Reduction", [value], kind=kind, axes=(axis,), keep_dims=1)

    shifted = builder.add("Binary", [x, reduced(x, "MAXIMUM")], x.type, kind="SUB")
    powers = builder.add("Unary", [shifted], x.type, kind="EXP")
    return builder.add("Binary", [powers, reduced(powers, "SUM")], x.type, kind="REALDIV")


ROWS = (
    MnnOperator(
        type="Reduction",
        parameter="ReductionParam",
        definition=OpDef(
            "mnn.Reduction",
            inputs=("x",),
            attrs=attrs_of(
                AttrDef("kind", "str", required=True, choices=frozenset(REDUCTIONS)),
                AttrDef("axes", "ints", ()),
                AttrDef("keep_dims", "int", 0),
            ),
            infer=_reduction_type,
            define=_reduction,
            label=lambda node: f"{node.op} {node.attrs.get('kind', '?')}",
            doc="Reduces the axes, all of them when none is named; kinds as in ``ReductionType``.",
        ),
        encode=_write_reduction,
        decode=_read_reduction,
    ),
    MnnOperator(type="Softmax", decode=_read_softmax),
)
"""Rows for `backends.mnn.dialect.table`."""
