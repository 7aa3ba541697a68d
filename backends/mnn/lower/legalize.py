"""Turn a decoder into the operators that every MNN release with a language-model runtime computes alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from backends.mnn.lower import functions, layers, moving, reduce
from backends.mnn.lower.lowering import Lowering
from backends.mnn.write.weight_layout import unheld
from ir.base.diag import LadingError
from ir.facts.inputs import DynamicInputs
from ir.facts.model_card import ModelCard
from ir.graph.graph import Graph, Node
from ir.quant.stored_weight import is_weight
from ir.tensor.bf16_parts import bf16_parts
from ir.tensor.inline import InlineTensor
from passes.framework.base import Pass
from passes.framework.context import PassContext

LOWER: dict[str, Callable[[Node, Lowering], None]] = {
    "MatMul": layers.lower_matmul,
    "RMSNormalization": layers.lower_norm,
    "LayerNormalization": layers.lower_norm,
    "RotaryEmbedding": layers.lower_rotary,
    "Attention": layers.lower_attention,
    "Cast": functions.lower_cast,
    "Mean": functions.lower_mean,
    "Not": functions.lower_not,
    "Pow": functions.lower_power,
    "Where": functions.lower_where,
    "Concat": moving.lower_concat,
    "Expand": moving.lower_expand,
    "Gather": moving.lower_gather,
    "Slice": moving.lower_slice,
    "Split": moving.lower_split,
    "Tile": moving.lower_tile,
    "Transpose": moving.lower_transpose,
    "LogSoftmax": reduce.lower_softmax,
    "Softmax": reduce.lower_softmax,
    **dict.fromkeys(functions.UNARY, functions.lower_unary),
    **dict.fromkeys(functions.ACTIVATIONS, functions.lower_activation),
    **dict.fromkeys((*functions.BINARY, *functions.LOGICAL), functions.lower_binary),
    **dict.fromkeys(functions.COMPARED, functions.lower_comparison),
    **dict.fromkeys(moving.SAME_NUMBERS, moving.lower_same_numbers),
    **dict.fromkeys(reduce.REDUCTIONS, reduce.lower_reduction),
    **dict.fromkeys(reduce.SUMS, reduce.lower_sum),
}
"""How each ONNX operator is lowered."""


@dataclass(frozen=True)
class LegalizeMnn(Pass):
    """Lower every ONNX operator to MNN's own.

    Linear layers become 1x1 convolutions over ``[rows, channels, 1, 1]``, rotary embedding becomes slices and products,
    attention the runtime's operator with its own key/value cache, and an embedding that must stay exact is read as a
    sum of bfloat16 parts.
    """

    name = "legalize-mnn"
    requires = ("quantized",)
    establishes = ("mnn",)

    def run(self, graph: Graph, ctx: PassContext) -> Mapping[str, int]:
        fact = graph.fact(DynamicInputs)
        if fact is not None:
            fact.require(graph)
        moving.settle_shapes(graph)
        lowering = Lowering(graph)
        lowering.embedding_parts()
        counts: dict[str, int] = {}
        for node in graph.nodes:
            if node.domain == "mnn" or _is_stored_weight(node) or not any(value.use_count for value in node.outputs):
                continue
            lower = LOWER.get(node.op)
            if layers.decodes_constants(node):
                raise unheld(node.output, matmul=any(user.op == "MatMul" for user in node.output.users))
            if lower is None:
                raise LadingError(
                    "P370",
                    f"no MNN form of operator {node.op} is known",
                    where=f"{node.loc or node.name}\n{node!r}",
                    hint=layers.ELSEWHERE,
                )
            lowering.node = node
            lower(node, lowering)
            counts[node.op] = counts.get(node.op, 0) + 1
        lowering.sweep()
        if lowering.positions is not None:
            _limit_context(graph, lowering.positions)
        return {"lowered": sum(counts.values())}

    def adapter(self, graph: Graph) -> RowParts | None:
        """Embedding rows that come in exact parts are fed as such."""
        table = graph.tables.get("embedding")
        if table is None or table.const is None or table.const.recipe()[0] != "bf16_parts":
            return None
        rows = graph.required_fact(DynamicInputs).find("embedding-rows")
        return RowParts(rows.input) if rows is not None else None


def _limit_context(graph: Graph, rows: int) -> None:
    """Record that sequences are no longer than a table of angles: the runtime reads beyond its end without a word."""
    card = ModelCard.of(graph)
    if card.context is None or card.context > rows:
        graph.set_fact(ModelCard.name, replace(card, context=rows))


@dataclass(frozen=True)
class RowParts:
    """Feeds of a graph that sums its embedding rows from bfloat16 parts."""

    input: str

    def adapt_feeds(self, feeds: Mapping[str, np.ndarray], graph: Graph) -> dict[str, np.ndarray]:
        """The same feeds with the rows cut into as many parts as the graph reads."""
        rows = feeds[self.input]
        seq, one, width = rows.shape
        parts = graph.value(self.input).dims[-1] // width
        split = bf16_parts(InlineTensor(rows.reshape(seq, width)), parts).load().astype(np.float32)
        return {**feeds, self.input: split.reshape(seq, one, parts * width)}

    def adapt_outputs(self, outputs: Mapping[str, np.ndarray], graph: Graph) -> dict[str, np.ndarray]:
        """Outputs do not change."""
        return dict(outputs)


def _is_stored_weight(node: Node) -> bool:
    return bool(node.outputs) and is_weight(node.output)
