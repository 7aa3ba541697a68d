"""What an MNN model directory has to say of its model, as far as the frontend or the graph itself tell it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ir.facts.model_card import ModelCard
from ir.graph.graph import Graph

ATTENTION = ("mnn.Attention", "mnn.PackedAttention")
"""Operators that keep keys and values."""


def completed(graph: Graph) -> ModelCard:
    """The card of a legal graph; sizes that its frontend could not tell are read from the graph."""
    card = ModelCard.of(graph)
    read = sizes(graph)
    if "embedding" in graph.tables:
        read["hidden_size"] = graph.tables["embedding"].shape[-1]
    last = graph.outputs[0].shape[-1]
    read["vocab_size"] = last if isinstance(last, int) else None
    return replace(card, **{key: value for key, value in read.items() if value and getattr(card, key) is None})


def sizes(graph: Graph) -> dict[str, Any]:
    """Layers, heads and their width, as the operators of attention have them; 0 where they do not say."""
    found = [node for node in graph.nodes if node.op in ATTENTION]
    heads = kv_heads = width = 0
    shapes = [value.shape for value in found[0].inputs[:2]] if found else []
    if all(shape is not None and len(shape) == 4 for shape in shapes) and shapes:
        (*_, heads, width), (*_, kv_heads, _) = shapes
    return {"layers": len(found), "heads": heads, "kv_heads": kv_heads, "head_dim": width}


__all__ = ["ATTENTION", "completed", "sizes"]
