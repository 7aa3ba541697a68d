"""Turn a decoder into the operators that every MNN release with a language-model runtime computes alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from backends.mnn.lower import experts, functions, layers, moving, reduce
from backends.mnn.lower.lowering import Lowering
from backends.mnn.lower.mixing import attention, delta
from backends.mnn.target.needs import require
from backends.mnn.target.releases import MnnTarget
from backends.mnn.write.weight_layout import unheld
from ir.base.diag import LadingError
from ir.base.types import F32
from ir.facts.inputs import DynamicInputs
from ir.facts.model_card import ModelCard
from ir.graph.graph import Graph, Node, Value
from ir.quant.stored_weight import DEQUANTIZE, is_weight, storage_of
from ir.tensor.base import Tensor
from ir.tensor.bf16_parts import bf16_parts
from ir.tensor.elementwise import cast
from ir.tensor.inline import InlineTensor
from ir.tensor.rearranged import transposed
from passes.framework.base import Pass
from passes.framework.context import PassContext

LOWER: dict[str, Callable[[Node, Lowering], None]] = {
    "MatMul": layers.lower_matmul,
    "RMSNormalization": layers.lower_norm,
    "LayerNormalization": layers.lower_norm,
    "RotaryEmbedding": layers.lower_rotary,
    "lading.Combine": experts.lower_combine,
    "lading.Dispatch": experts.lower_dispatch,
    "Attention": attention.lower_attention,
    "lading.GatedDeltaRule": delta.lower_delta_rule,
    "lading.SinkAttention": attention.lower_sink_attention,
    "Cast": functions.lower_cast,
    "Mean": functions.lower_mean,
    "Not": functions.lower_not,
    "Pow": functions.lower_power,
    "Where": functions.lower_where,
    "Concat": moving.lower_concat,
    "Expand": moving.lower_expand,
    "Gather": moving.lower_gather,
    "GatherElements": moving.lower_gather_elements,
    "Slice": moving.lower_slice,
    "Split": moving.lower_split,
    "Tile": moving.lower_tile,
    "TopK": moving.lower_topk,
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
        if isinstance(ctx.target, MnnTarget):
            require(graph, ctx.target.releases)
        attention.settle_scales(graph)
        moving.settle_shapes(graph)
        _widen_constants(graph)
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


def _widen_constants(graph: Graph) -> None:
    """Give readers of constants in half precision, and of dequantized ones, that are no linear layers the numbers in single
    precision: MNN keeps no others outside of its layers."""
    for node in graph.nodes:
        source = node.input(0)
        if source is None or source.const is None or node.op not in ("Cast", *DEQUANTIZE):
            continue
        stored = is_weight(node.output)
        readers = [
            (user, place)
            for user, place in node.output.uses
            if not (stored and place == 1 and user.op in ("MatMul", "mnn.Convolution"))
        ]
        wide = _in_single(node.output, source) if readers else None
        if wide is not None:
            const = graph.add_const(graph.fresh_name(f"{node.output.name}.wide"), wide, loc=node.loc)
            for user, place in readers:
                graph.set_input(user, place, const)


def _in_single(value: Value, source: Value) -> Tensor | None:
    """The numbers of a value that is decoded from constants; None for other casts, for large ones that are no matrix, and
    for matrices that the weight file has no form for."""
    if source.producer is None and value.producer is not None and value.producer.op == "Cast":
        return cast(source.tensor, F32) if value.dtype == F32 and source.dtype.is_float else None
    for matmul in (False, True):
        stored = storage_of(value, matmul=matmul)
        if stored is not None and stored.quantized is not None:
            rows = stored.quantized.dequantized()
            return transposed(rows) if matmul else rows
    if value.producer is None or value.rank == 2:
        return None
    from ir.evaluate.evaluator import evaluate_constants

    array = evaluate_constants([value.producer]).get(value.name)
    return None if array is None else InlineTensor(array.astype(np.float32))


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
