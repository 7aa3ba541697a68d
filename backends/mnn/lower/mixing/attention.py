"""Attention with a softmax in the runtime's operator, which keeps keys and values of earlier calls."""

from __future__ import annotations

import math

import numpy as np

from backends.mnn.lower.lowering import Lowering
from backends.mnn.lower.moving import permuted
from ir.base.types import F32, TensorType
from ir.dialects import sinks
from ir.facts.inputs import DynamicInputs
from ir.graph.graph import Graph, Node, Value
from ir.tensor.inline import InlineTensor


def settle_scales(graph: Graph) -> int:
    """Turn queries after the factor that the runtime does not know, so that rotation and attention stand side by side; a
    norm of the heads takes the factor into its gains. The number of attentions changed."""
    found = 0
    for node in graph.nodes:
        if node.op not in ("Attention", "lading.SinkAttention") or node.operand(0).rank != 3:
            continue
        sizes = [_width(node.operand(place), node.attrs.get(name, 0)) for place, name in enumerate(_COUNTS)]
        turn = node.operand(0).producer
        if None in sizes or turn is None or turn.op != "RotaryEmbedding" or node.operand(0).use_count > 1:
            continue
        own = 1 / math.sqrt(max(size for size in sizes if size is not None))
        factor = float(node.attrs.get("scale", 1 / math.sqrt(sizes[0] or 1))) / own
        if math.isclose(factor, 1, rel_tol=1e-7):
            continue
        if not _into_gains(graph, turn.operand(0), factor):
            number = graph.add_const("attention.scale", InlineTensor(np.array([factor], np.float32)))
            type_ = turn.operand(0).type
            scaled = graph.add("Mul", [turn.operand(0), number], types=[type_], before=turn, loc=turn.loc).output
            graph.set_input(turn, 0, scaled)
        graph.set_attrs(node, scale=own)
        found += 1
    return found


_COUNTS = ("q_num_heads", "kv_num_heads", "kv_num_heads")
"""Attributes that count the heads of the first three operands."""


def _width(value: Value, heads: int) -> int | None:
    last = value.dims[-1] if value.shape else None
    return last // heads if isinstance(last, int) and heads else None


def _into_gains(graph: Graph, value: Value, factor: float) -> bool:
    """Multiply the gains of a norm that alone makes a value, under another shape or not."""
    node = value.producer
    while node is not None and node.op == "Reshape" and value.use_count == 1:
        value = node.operand(0)
        node = value.producer
    if node is None or node.op not in ("RMSNormalization", "LayerNormalization") or value.use_count > 1:
        return False
    gains = node.operand(1)
    if node.input(2) is not None or gains.const is None or gains.dtype != F32 or gains.rank != 1:
        return False
    scaled = InlineTensor((gains.tensor.load() * np.float32(factor)).astype(np.float32))
    graph.set_input(node, 1, graph.add_const(f"{gains.name}.scaled", scaled, loc=gains.loc))
    return True


def lower_attention(node: Node, low: Lowering) -> None:
    """Another scale than the runtime's own is a factor of the queries."""
    _require_plain_attention(node, low)
    _attend(node, low, node.input(3), ())


def lower_sink_attention(node: Node, low: Lowering) -> None:
    """Sinks are an operand of the same operator, which then takes a mask that says everything."""
    mask = node.input(sinks.MASK)
    if mask is None or node.attrs.get("is_causal", 0):
        raise low.refused("attention with sinks needs the mask that the runtime feeds; discover-inputs declares it")
    if low.dims(node.operand(0))[0] != 1:
        raise low.refused("the runtime attends within one sequence, and this attention has a batch")
    _attend(node, low, mask, (low.floats(node.operand(sinks.SINKS)),))


def _attend(node: Node, low: Lowering, mask: Value | None, more: tuple[Value, ...]) -> None:
    """The runtime's operator over heads of one width, with further operands behind the mask."""
    q, k, v = (low.floats(node.operand(place)) for place in range(3))
    size, value_size = _head_size(low, q, "q_num_heads"), _head_size(low, v, "kv_num_heads")
    widest = max(size, value_size)
    scale = float(node.attrs.get("scale", 1 / math.sqrt(size)))
    if not math.isclose(scale, 1 / math.sqrt(widest), rel_tol=1e-7):
        factor = np.array([scale * math.sqrt(widest)], np.float32)
        q = low.binary("MUL", q, low.const(factor, "attention.scale"))
    sizes = ((q, size), (k, size), (v, value_size))
    operands = [_filled(low, _split_heads(low, value, of), widest) for value, of in sizes]
    one, seq, many, _ = low.dims(operands[0])
    if mask is None:
        fact = low.graph.fact(DynamicInputs)
        fed = fact.find("attention-mask") if fact is not None else None
        if fed is None:
            raise low.refused("MNN's attention needs a mask that the runtime feeds; discover-inputs declares it")
        mask = low.graph.value(fed.input)
    heads = low.size(many)
    mixed = low.add("Attention", [*operands, mask, *more], TensorType(F32, (one, seq, heads * widest)))
    if widest != value_size or node.operand(0).rank == 4:
        mixed = low.reshape(mixed, (one, seq, heads, widest))
    if widest != value_size:
        mixed = low.slice(mixed, 3, (value_size,))[0]
    if node.operand(0).rank == 4:
        mixed = permuted(low, mixed, (0, 2, 1, 3))
    low.replace(node.output, low.reshape(mixed, low.dims(node.output)))


def _head_size(low: Lowering, value: Value, heads: str) -> int:
    """Elements of a head of ``[1, seq, heads * size]``, whose heads an attribute counts, or ``[1, heads, seq, size]``."""
    width = low.size(low.dims(value)[-1])
    return width if value.rank == 4 else width // low.node.attrs[heads]


def _split_heads(low: Lowering, value: Value, size: int) -> Value:
    """Queries, keys or values as ``[1, seq, heads, size]``."""
    shape = low.dims(value)
    if len(shape) == 4:
        return permuted(low, value, (0, 2, 1, 3))
    return low.reshape(value, (*shape[:2], low.size(shape[2]) // size, size))


def _filled(low: Lowering, value: Value, size: int) -> Value:
    """Heads ``[1, seq, heads, n]`` with zeros behind their elements, as wide as `size`."""
    *outer, width = low.dims(value)
    found, lack = [value], size - low.size(width)
    while lack > 0:
        part = value if lack >= low.size(width) else low.slice(value, 3, (lack,))[0]
        found.append(low.binary("MUL", part, low.scalar(0)))
        lack -= low.size(low.dims(part)[-1])
    if len(found) == 1:
        return value
    return low.add("Concat", found, TensorType(F32, (*outer, size)), {"axis": 3})


def _require_plain_attention(node: Node, low: Lowering) -> None:
    """Raise P373 for attention that the runtime's operator would compute otherwise, but for what releases lack."""
    if any(low.dims(node.operand(place))[0] != 1 for place in range(3)):
        raise low.refused("the runtime attends within one sequence, and this attention has a batch")
    if any(value is not None for value in node.inputs[4:]) or any(value.use_count for value in node.outputs[1:]):
        raise low.refused("the runtime keeps keys and values itself, and gives the mixed values alone")
    if (node.input(3) is None) != bool(node.attrs.get("is_causal", 0)):
        raise low.refused("the runtime's attention is causal, or takes a mask that says everything")


__all__ = ["lower_attention", "lower_sink_attention", "settle_scales"]
