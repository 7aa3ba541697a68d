"""How each attention of a graph is masked: causal of its own accord, or by a window that it reads."""

from __future__ import annotations

from ir.base.diag import LadingError
from ir.dialects import sinks
from ir.graph.graph import Graph, Node
from passes.inputs.finding import Masked

MASKS = {"Attention": 3, "lading.SinkAttention": sinks.MASK}
"""Operators that mix positions under a mask, and which input that is. Others that mix them look at the past alone."""


def find(graph: Graph) -> list[Masked]:
    """Every attention of the graph, in its order.

    Raises:
        LadingError: P357 when an attention is not causal in a way the runtime can do.
    """
    return [_masked(node) for node in graph.nodes if node.op in MASKS]


def _masked(node: Node) -> Masked:
    place, where = MASKS[node.op], node.loc or node.name
    mask = node.input(place)
    if mask is None and node.attrs.get("is_causal", 0) and node.input(place + 1) is None:
        return Masked(node.outputs[0], "kv-cache", "it is causal of its own accord", where, node, 0)
    if mask is not None and mask.producer is not None and mask.producer.op == "lading.SlidingWindowMask":
        window = int(mask.producer.attrs["window"])
        return Masked(node.outputs[0], "kv-cache", f"it reads a window of {window} tokens", where, node, window)
    raise LadingError(
        "P357",
        "this attention is neither plainly causal nor windowed, and the runtime has no other kind",
        where=f"{where}\n{node!r}",
    )
