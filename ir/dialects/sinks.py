"""Attention with a learned logit for each head beside the scores, which takes weight and gives nothing."""

from __future__ import annotations

from ir.base.types import BOOL, TensorType, ValueType
from ir.graph.graph import Node, Value
from ir.infer.inference import Inference
from ir.infer.numeric import one_dtype, positive, tensor, typed
from ir.infer.rule_table import TypeMismatch
from ir.ops.meaning import Body
from ir.ops.registry import AttrDef, OpDef

ATTENTION_SINCE = 23
"""First opset with an Attention whose mask is added to scores of as many keys as there are."""

SINKS, MASK = 3, 4
"""Inputs of the operator here: the logits of the heads and the mask."""


def _type(run: Inference, node: Node) -> ValueType | None:
    positive(node, "q_num_heads", "kv_num_heads")
    heads, kept = node._attrs["q_num_heads"], node._attrs["kv_num_heads"]
    if heads % kept:
        raise TypeMismatch(f"{heads} query heads cannot share {kept} key and value heads evenly")
    q, k, v, sinks = (tensor(value) for value in node.inputs[:4])
    for value in (q, k, v):
        if value is not None and value.shape is not None and len(value.shape) != 3:
            raise TypeMismatch("q, k and v are [1, S, heads * size]")
    if sinks is not None and sinks.shape is not None and sinks.shape != (heads,):
        raise TypeMismatch(f"sinks {sinks} are not one for each of {heads} heads")
    dtype = one_dtype(q, k, v, sinks)
    width = v.shape[2] if v is not None and v.shape is not None else None
    if type(width) is int and width % kept:
        raise TypeMismatch(f"values of {width} elements do not fill {kept} heads")
    outer = q.shape[:2] if q is not None and q.shape is not None else (None, None)
    return None if dtype is None else typed(dtype, (*outer, width // kept * heads if type(width) is int else None))


def _define(body: Body) -> list[Value]:
    counts = (body.attr("q_num_heads"), body.attr("kv_num_heads"), body.attr("kv_num_heads"))
    q, k, v = (
        body.op("Transpose", body.op("Reshape", body.operand(place), body.ints(0, 0, heads, -1)), perm=(0, 2, 1, 3))
        for place, heads in enumerate(counts)
    )
    mask = body.inputs[MASK] if len(body.inputs) > MASK else None
    mixed = sink_attention(
        body, q, k, v, body.operand(SINKS), mask, bool(body.attr("is_causal")), body.node._attrs.get("scale")
    )
    return [body.op("Reshape", body.op("Transpose", mixed, perm=(0, 2, 1, 3)), body.ints(0, 0, -1))]


def sink_attention(
    body: Body, q: Value, k: Value, v: Value, sinks: Value, mask: Value | None, causal: bool, scale: float | None
) -> Value:
    """Attention over ``[1, heads, S, size]`` with one more key and value of zeros, whose score is the sink.

    A mask is boolean or is added to the scores, which causality may bound as well; no scale means the usual one.
    """
    if body.opset < ATTENTION_SINCE:
        raise ValueError(f"attention with sinks needs opset {ATTENTION_SINCE}, the graph has {body.opset}")
    lengths = [body.op("Gather", body.op("Shape", value), body.ints(2), axis=0) for value in (q, k)]
    added = _scores(body, mask, causal, lengths, sinks)
    heads = body.op("Gather", body.op("Shape", q), body.ints(1), axis=0)
    one = body.ints(1)
    spread = body.op("Expand", added, body.op("Concat", one, heads, *lengths, axis=0))
    column = body.op("Expand", body.op("Reshape", sinks, body.ints(1, -1, 1, 1)),
                     body.op("Concat", one, heads, lengths[0], one, axis=0))  # fmt: skip
    whole = body.op("Concat", spread, column, axis=3)
    behind = body.ints(0, 0, 0, 0, 0, 0, 1, 0)
    attrs = {} if scale is None else {"scale": float(scale)}
    return body.op("Attention", q, body.op("Pad", k, behind), body.op("Pad", v, behind), whole, **attrs)


def _scores(body: Body, mask: Value | None, causal: bool, lengths: list[Value], like: Value) -> Value:
    """What is added to the scores, stretching to ``[1, heads, S, keys]``, of the element type of `like`."""
    if mask is not None and not isinstance(mask.type, TensorType):
        raise ValueError("attention with sinks needs the element type of its mask")
    zero, nothing = body.like(0, like), body.like(float("-inf"), like)
    found = zero
    if mask is not None:
        found = body.op("Where", mask, zero, nothing) if mask.dtype == BOOL else mask
    if not causal:
        return found
    square = body.op("Expand", body.int(1), body.op("Concat", *lengths, axis=0))
    past = body.op("Cast", body.op("Trilu", square, upper=0), to=BOOL.onnx)
    return body.op("Where", past, found, nothing)


DEFINITION = OpDef(
    "lading.SinkAttention",
    inputs=("q", "k", "v", "sinks", "mask"),
    min_inputs=4,
    max_inputs=5,
    attrs={
        **{name: AttrDef(name, "int", required=True) for name in ("q_num_heads", "kv_num_heads")},
        "is_causal": AttrDef("is_causal", "int", 0),
        "scale": AttrDef("scale", "float"),
    },
    infer=_type,
    define=_define,
    traits=frozenset({"pure", "constant_foldable", "mixing"}),
    role="attention",
    doc="ONNX's Attention of [1, S, heads * size] operands, whose softmax has one more term for each head, "
    "exp(sinks[head]), in the denominator alone.",
)
"""Row for `ir.ops.registry.OPERATORS`."""
