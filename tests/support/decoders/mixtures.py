"""A language model of one mixture of experts, built by hand: token ids to logits."""

from __future__ import annotations

import numpy as np

from ir.base.types import I64, Dim, TensorType
from ir.graph.graph import Graph, Value
from ir.infer.engine import infer_types
from ir.tensor.inline import InlineTensor

VOCAB, WIDTH, INNER = 96, 32, 64
OFF = -1e4
"""Added to the scores of experts that no token is to reach."""


def mixture_model(experts: int = 4, best: int = 2, dead: int = 0, layers: int = 1, seed: int = 0) -> Graph:
    """Embedding, layers of experts with a residual each, and logits; the last `dead` experts are never chosen."""
    rng = np.random.default_rng(seed)
    graph = Graph("mixture")
    ids = graph.add_input("input_ids", TensorType(I64, (1, graph.add_dim(Dim("seq", 1, None)))))

    def const(name: str, *shape: int) -> Value:
        array = (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
        return graph.add_const(name, InlineTensor(array))

    def op(op: str, *inputs: Value | None, **attrs) -> Value:
        return graph.add(op, inputs, attrs).output

    table = graph.add_const("embed.weight", InlineTensor(rng.standard_normal((VOCAB, WIDTH)).astype(np.float32)))
    hidden = op("Gather", table, ids)
    count = graph.add_const("best", InlineTensor(np.array([best], np.int64)))
    bias = np.array([0.0] * (experts - dead) + [OFF] * dead, np.float32)
    for layer in range(layers):
        at = f"model.layers.{layer}.mlp"
        scores = op("MatMul", hidden, const(f"{at}.gate.weight", WIDTH, experts))
        scores = op("Softmax", op("Add", scores, graph.add_const(f"{at}.gate.bias", InlineTensor(bias))), axis=-1)
        weights, choices = graph.add("TopK", [scores, count], outputs=("", "")).outputs
        given = graph.add("lading.Dispatch", [hidden, choices], {"experts": experts}, outputs=("",) * experts).outputs
        made = []
        for number, rows in enumerate(given):
            name = f"{at}.experts.{number}"
            gate = op("Swish", op("MatMul", rows, const(f"{name}.gate_proj.weight", WIDTH, INNER)))
            up = op("MatMul", rows, const(f"{name}.up_proj.weight", WIDTH, INNER))
            made.append(op("MatMul", op("Mul", gate, up), const(f"{name}.down_proj.weight", INNER, WIDTH)))
        hidden = op("Add", hidden, op("lading.Combine", choices, weights, *made))
    graph.set_outputs([op("MatMul", hidden, const("head.weight", WIDTH, VOCAB))])
    assert infer_types(graph) == []
    return graph
