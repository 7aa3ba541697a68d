"""What an MNN model directory has to say of its model, as far as the frontend or the graph itself tell it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ir.facts.model_card import ModelCard
from ir.graph.graph import Graph, Value

ATTENTION = ("mnn.Attention", "mnn.PackedAttention")
"""Operators that keep keys and values."""


def completed(graph: Graph) -> ModelCard:
    """The card of a legal graph; sizes that its frontend could not tell are read from the graph."""
    card = ModelCard.of(graph)
    read = sizes(graph)
    if "embedding" in graph.tables:
        read["hidden_size"] = last_size(graph.tables["embedding"])
    read["vocab_size"] = last_size(graph.outputs[0])
    return replace(card, **{key: value for key, value in read.items() if value and getattr(card, key) is None})


def last_size(value: Value) -> int | None:
    """The length of the last axis of a value; None when it is not known in numbers."""
    last = value.shape[-1] if value.shape else None
    return last if isinstance(last, int) else None


def sizes(graph: Graph) -> dict[str, Any]:
    """Layers, heads and their width, as the operators of attention have them; 0 where they do not say."""
    found = [node for node in graph.nodes if node.op in ATTENTION]
    shapes = [found[0].operand(place).shape for place in range(2)] if found else []
    known = [shape for shape in shapes if shape is not None and len(shape) == 4]
    (*_, heads, size), (*_, kv_heads, _) = known if len(known) == 2 else [(0, 0, 0, 0)] * 2
    return {"layers": len(found), "heads": heads, "kv_heads": kv_heads, "head_dim": size}


__all__ = ["ATTENTION", "completed", "last_size", "sizes"]
