"""The gated delta rule in the runtime's operator, which keeps the memory of earlier calls."""

from __future__ import annotations

from backends.mnn.lower.lowering import Lowering
from backends.mnn.lower.moving import permuted
from ir.base.types import F32, TensorType
from ir.dialects.delta_rule import SIZES
from ir.graph.graph import Node


def lower_delta_rule(node: Node, low: Lowering) -> None:
    """The operator takes channels first, before the convolution, and gives its heads apart."""
    qkv, decay, beta, kernel = (low.floats(node.operand(place)) for place in range(4))
    one, seq, _ = low.dims(qkv)
    if one != 1:
        raise low.refused("the runtime keeps the memory of one sequence, and this rule has a batch")
    sizes = {name: node.attrs[name] for name in SIZES}
    heads = TensorType(F32, (one, seq, sizes["num_v_heads"], sizes["head_v_dim"]))
    mixed = low.add("LinearAttention", [permuted(low, qkv, (0, 2, 1)), decay, beta, kernel], heads, sizes)
    low.replace(node.output, low.reshape(mixed, low.dims(node.output)))


__all__ = ["lower_delta_rule"]
