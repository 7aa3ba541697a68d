"""The graph of a whole model directory, ready to be written again: what its graph file leaves out comes from beside it.

Embedding rows become a table of the graph, the configuration's window and scale of attention are noted, and the graph
is put into the form that a target's releases run.
"""

from __future__ import annotations

from dataclasses import replace

from backends.mnn.card import last_size
from backends.mnn.dialect.linear import add_weight
from backends.mnn.dialect.table import fused_forms
from backends.mnn.doctor.tied import half_scales, tie_forms, tie_numbers, vocabulary
from backends.mnn.lift.embedding import embedding_matrix
from backends.mnn.lift.lift import lift
from backends.mnn.lift.lost_rows import with_rows
from backends.mnn.lower.exporter_spellings import spell_channels, spell_rotations
from backends.mnn.lower.lowering import Lowering
from backends.mnn.read.model_folder import Subject
from backends.mnn.read.stored_tensors import WeightFile
from backends.mnn.target.releases import MnnTarget
from ir.base.types import BF16, F32, TensorType
from ir.facts.inputs import DynamicInputs
from ir.graph.graph import Graph
from ir.quant.weight import QuantizedWeight
from ir.tensor.base import Tensor
from ir.tensor.elementwise import cast
from passes.framework.context import PassContext
from passes.framework.load import load
from passes.framework.manager import PassManager
from passes.framework.manager import Report as PassReport


def lifted(subject: Subject, target: MnnTarget) -> tuple[Graph, PassReport]:
    """The model as a legal graph in the target's convention, its embedding rows as a table, and what the passes did."""
    llm = subject.llm_config.values
    scale, window = llm.get("attn_scale", 0.0), llm.get("sliding_window")
    graph = lift(
        with_rows(subject),
        subject.weight_path,
        convention=target.signature,
        attention_scale=float(scale) if isinstance(scale, (int, float)) else 0.0,
        scale="" if target.f16_scales else "f32",
    )
    _set_masks(graph, window if llm.get("attention_type") == "mix" and type(window) is int else 0)
    spell_channels(graph)
    if "rope" in fused_forms(target.releases):
        spell_rotations(graph)
    _set_embedding(graph, subject, target)
    return graph, PassManager(load(clean_up(target))).run(graph, PassContext())


def clean_up(target: MnnTarget) -> str:
    """What is run on a lifted graph: it finds packed layouts again, which reading forgets, and fuses where the target
    can."""
    forms = fused_forms(target.releases)
    if not forms:
        return "sink-layouts,cse,dce"
    # Queries and keys must be seen to be turned by the same angles.
    return f"cse,sink-layouts,fuse-mnn{{fuse=[{','.join(forms)}]}},cse,dce"


def _set_masks(graph: Graph, window: int) -> None:
    """Note the window of attention, and which forms of the mask the graph takes."""
    fact = graph.required_fact(DynamicInputs)
    planes = len(graph.value("attention_mask").dims) == 5
    found = tuple(
        replace(item, shapes=tuple(shape for shape in item.shapes if (len(shape) == 5) is planes))
        if item.kind == "attention-mask"
        else item
        for item in fact.discoveries
    )
    windows = (0, window) if window else fact.windows
    graph.set_fact(DynamicInputs.name, replace(fact, discoveries=found, windows=windows))


def _set_embedding(graph: Graph, subject: Subject, target: MnnTarget) -> None:
    """Make embedding rows a table of the graph, but for quantized ones in a file of their own."""
    tie = subject.llm_config.values.get("tie_embeddings")
    found = tie_numbers(tie)
    if found is None:
        _set_rows(graph, subject)
        return
    if found[0] == 0:
        return
    columns = _row_length(graph)
    weights = WeightFile(subject.weight_path, "" if target.f16_scales else "f32")
    matrix = embedding_matrix(
        weights, found, vocabulary(subject), columns, half_scales(tie), subject.logits_layer or {}
    )
    forms = (tie_forms(subject, tie) or set()) - {"object", "six"}
    readable = all(forms <= set(release.tie_embeddings) for release in target.releases)
    if readable:
        graph.set_table("embedding", add_weight(graph, "embedding", matrix, rows_first=True))
        return
    _split_embedding(graph, matrix)


def _set_rows(graph: Graph, subject: Subject) -> None:
    """The bfloat16 rows of the embedding file, where there is one."""
    columns, path = _row_length(graph), subject.embedding_path
    rows = path.stat().st_size // (2 * columns) if subject.has(path) else 0
    if rows:
        tensor = WeightFile(path).tensor(0, TensorType(BF16, (rows, columns)), "embedding")
        graph.set_table("embedding", graph.add_const(graph.fresh_name("embedding"), tensor))


def _row_length(graph: Graph) -> int:
    """Elements of an embedding row, which `lift` has found declared."""
    found = last_size(graph.value("input_ids"))
    assert found is not None
    return found


def _split_embedding(graph: Graph, matrix: Tensor | QuantizedWeight) -> None:
    """Rows that a release cannot decode come exactly from a file of their own, as a sum of bfloat16 parts."""
    table = cast(matrix, F32) if isinstance(matrix, Tensor) else matrix.source
    graph.set_table("embedding", graph.add_const("embedding", table))
    Lowering(graph).embedding_parts()
