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
        read["hidden_size"] = (graph.tables["embedding"].shape or (0,))[-1]
    read["vocab_size"] = vocabulary(graph)
    return replace(card, **{key: value for key, value in read.items() if value and getattr(card, key) is None})


def vocabulary(graph: Graph) -> int:
    """Logits of each position; 0 where the graph does not say."""
    shape = graph.outputs[0].shape
    return shape[-1] if shape and isinstance(shape[-1], int) else 0


def sizes(graph: Graph) -> dict[str, Any]:
    """Layers, heads and their width, as the operators of attention have them; 0 where they do not say."""
    found = [node for node in graph.nodes if node.op in ATTENTION]
    heads: Any = 0
    kv_heads: Any = 0
    width: Any = 0
    shapes = [value.shape for value in found[0].inputs[:2] if value is not None] if found else []
    if len(shapes) == 2 and all(shape is not None and len(shape) == 4 for shape in shapes):
        (heads, width), (kv_heads, _) = (shape[2:] for shape in shapes if shape is not None)
    return {"layers": len(found), "heads": heads, "kv_heads": kv_heads, "head_dim": width}


__all__ = ["ATTENTION", "completed", "sizes", "vocabulary"]
