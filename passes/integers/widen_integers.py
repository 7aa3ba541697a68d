"""Graphs of narrow and unsigned integers as graphs of 32-bit integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ir.base.diag import LadingError
from ir.base.types import BOOL, DTYPES, F32, I32, I64, DType, TensorType, ValueType
from ir.graph.describe import describe
from ir.graph.graph import Graph, Node, Value
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor
from passes.canonicalize.widen_floats import InWideTypes, wider, wider_attributes
from passes.framework.base import Adapter, Pass, Result
from passes.framework.context import PassContext
from passes.integers.quantized import (
    conv_integer,
    dequantize_linear,
    dynamic_quantize_linear,
    mat_mul_integer,
    q_linear_conv,
    q_linear_mat_mul,
    quantize_linear,
)
from passes.integers.steps import Steps
from passes.integers.wrapping import BEHIND, FEW_BITS, REPLACED, holds, within

WIDE: Mapping[DType, DType] = {
    **{DTYPES[name]: I32 for name in ("u2", "i2", "u4", "i4", "u8", "i8", "u16", "i16")},
    **{DTYPES[name]: I64 for name in ("u32", "u64")},
}
"""What each element type is held as."""

CODED = frozenset({"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"})
"""Operators whose constants are read as they are."""


@dataclass(frozen=True)
class WidenIntegers(Pass):
    """Compute in 32-bit integers what a graph computes in integers of 16 bits and fewer.

    Results that may leave the range of the original type are brought back into it, so that numbers are the same. Operators
    on codes of quantized tensors become the arithmetic that they stand for; codes of constant weights stay. 32- and 64-bit
    integers without a sign become 64-bit ones with a sign, and are the same where they have fewer than 32 bits.
    """

    name = "widen-integers"
    requires = ("typed",)

    def run(self, graph: Graph, ctx: PassContext) -> Result:
        """See `Pass.run`."""
        counts: Counter[str] = Counter()
        graphs = list(graph.graphs())
        was = {value: value.dtype for one in graphs for value in one._names.values() if _narrow(value.type)}
        nested = any(wider(value.type, WIDE) is not value.type for one in graphs for value in one._names.values())
        if not was and not nested and not any(_attributes(node) for one in graphs for node in one.nodes):
            return None
        for node in [node for one in graphs for node in one.nodes]:
            _require_meaning(node, was)
        for one in graphs:
            _retype(one, was, counts)
        for node in [node for one in graphs for node in one.nodes]:
            _rework(node, was, counts)
        return dict(counts)

    def adapter(self, graph: Graph) -> Adapter:
        """See `Pass.adapter`."""
        return InWideTypes(WIDE)


# ---- types ----


def _narrow(type_: ValueType | None) -> bool:
    return isinstance(type_, TensorType) and type_.dtype in WIDE


def _retype(graph: Graph, was: dict[Value, DType], counts: Counter[str]) -> None:
    for value in graph.inputs:
        if wider(value.type, WIDE) is not value.type:
            graph.set_type(value, wider(value.type, WIDE))
            counts["inputs"] += 1
    for value in [value for value in graph.consts.values() if value in was]:
        uses = [(node, index) for node, index in value.uses if not _keeps(node)]
        read = value in graph.outputs or value in graph.tables.values()
        if not uses and (value.uses or not read):
            continue
        counts["constants"] += 1
        held = widened(value.tensor)
        if len(uses) == len(value.uses):
            graph.set_const(value, held)
            continue
        twin = graph.add_const(graph.fresh_name(f"{value.name}.wide"), held, value.loc)
        was[twin] = was[value]
        for node, index in uses:
            node.home.set_input(node, index, twin)
    for node in graph.nodes:
        changed = _attributes(node)
        if changed:
            graph.set_attrs(node, **changed)
        for value in node.outputs:
            if wider(value.type, WIDE) is not value.type:
                graph.set_type(value, wider(value.type, WIDE))
                counts["values"] += 1


def widened(tensor: Tensor) -> Tensor:
    """A constant in the type that its own is held as."""
    return InlineTensor(tensor.load().astype(WIDE[tensor.type.dtype].numpy))


def _keeps(node: Node) -> bool:
    """True where a node reads the codes of a constant, which stay as they are."""
    first = node.input(0)
    return node.op in CODED or (node.op == "DequantizeLinear" and first is not None and first.const is not None)


def _attributes(node: Node) -> dict[str, Any]:
    """The attributes that speak of narrow integers, made to speak of wide ones; codes are of the type that they have."""
    found = wider_attributes(node, WIDE, widened)
    if node.op == "QuantizeLinear":
        found.pop("output_dtype", None)
    return found


# ---- meaning ----

Handler = Callable[[Node, Steps, DType], "Sequence[Value | None] | None"]


def _require_meaning(node: Node, was: Mapping[Value, DType]) -> None:
    """Raises LadingError P389 for a node that reads the bits of an element type that is widened."""
    if node.op != "BitCast":
        return
    given, made = node.operand(0), node.output
    kinds = [value.dtype for value in (given, made) if value in was or value.dtype == BOOL]
    few = all(kind.bits <= FEW_BITS for kind in kinds)
    if (
        given.dtype != made.dtype
        and (given in was or made in was)
        and (len(kinds) < 2 or not few or made.dtype == BOOL)
    ):
        message = f"BitCast reads the bits of {node.operand(0).type} as {node.output.type}, and neither is kept"
        raise LadingError("P389", message, describe(node), "use Cast where the numbers are meant")


def _rework(node: Node, was: Mapping[Value, DType], counts: Counter[str]) -> None:
    """Put what computes the same with wide integers in the place of a node, or behind it."""
    kind = was.get(node.output)
    steps = Steps(node)
    results = _replacement(node, steps, kind, was)
    if results is not None:
        steps.put(results)
    elif kind is not None and node.op in BEHIND:
        found = BEHIND[node.op](node, steps.after(), kind)
        if found is not None:
            steps.put_behind(0, found)
    elif kind is not None and node.op in ("Cast", "CastLike"):
        source = was.get(node.operand(0)) or node.operand(0).dtype
        if kind.bits <= FEW_BITS and not holds(kind, source):
            steps.put_behind(0, within(steps.after(), node.output, kind))
    if steps.made:
        counts["operators"] += 1


def _replacement(node: Node, b: Steps, kind: DType | None, was: Mapping[Value, DType]) -> Sequence[Value | None] | None:
    if kind is not None and node.op in REPLACED:
        found = REPLACED[node.op](node, b, kind)
        return [found] if found is not None else None
    if kind is not None and node.op in QUANTIZED:
        return QUANTIZED[node.op](node, b, kind)
    if node.op in FROM_CODES and any(value in was for value in node.inputs if value is not None):
        if node.op == "DequantizeLinear" and _keeps(node):
            return None
        return FROM_CODES[node.op](node, b)
    if node.op == "BitCast" and kind is not None:
        number = b.add("Cast", node.operand(0), to=WIDE[kind].onnx)
        return [number if node.operand(0).dtype == BOOL else within(b, number, kind)]
    if node.op == "MaxPool" and kind is not None:
        return _max_pool(node, b)
    return None


def _max_pool(node: Node, b: Steps) -> Sequence[Value | None] | None:
    """In floats, which ONNX has this operator for."""
    if len(node.outputs) > 1 and node.outputs[1].use_count:
        return None
    pooled = b.add("MaxPool", b.add("Cast", node.operand(0), to=F32.onnx), **node.attrs)
    return [b.add("Cast", pooled, to=I32.onnx)]


QUANTIZED: Mapping[str, Handler] = {
    "DynamicQuantizeLinear": dynamic_quantize_linear,
    "QLinearConv": q_linear_conv,
    "QLinearMatMul": q_linear_mat_mul,
    "QuantizeLinear": quantize_linear,
}
"""Operators that give codes."""

FROM_CODES: Mapping[str, Callable[[Node, Steps], Sequence[Value | None] | None]] = {
    "ConvInteger": conv_integer,
    "DequantizeLinear": dequantize_linear,
    "MatMulInteger": mat_mul_integer,
}
"""Operators that read codes and give numbers."""

__all__ = ["CODED", "WIDE", "WidenIntegers", "widened"]
