"""Make the precision plan real: weights become stored integers under standard blocked DequantizeLinear nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ir.base.diag import LadingError
from ir.base.types import F16, F32, TensorType
from ir.facts.calibration import Calibration
from ir.facts.precision import PrecisionPlan
from ir.graph.graph import Graph, Node, Value
from ir.ops.opset import upgrade
from ir.quant.statistics.moments import parts_of
from ir.quant.storage import Storage
from ir.quant.weight import METHODS, shared_quantized
from ir.tensor.base import Tensor
from ir.tensor.elementwise import cast
from ir.tensor.rearranged import transposed
from passes.framework.base import Pass
from passes.framework.context import PassContext
from passes.precision.planned_weights import as_stored, moments_for, same_matrix, weights_of

BLOCKED_OPSET = 21
"""Version of ONNX's operators from which DequantizeLinear knows blocks."""


@dataclass(frozen=True)
class InsertQdq(Pass):
    """Replace every planned weight by what the plan stores.

    Up to 8 bits: integer codes under ``DequantizeLinear`` (ONNX opset 21 and later, blocked along the input features),
    or under ``lading.AffineDequantize`` when the zero is real-valued. 16 bits: half floats under ``Cast``. 32 bits:
    unchanged. The quantization itself is a recipe evaluated in row ranges while the backend writes; matrices with the
    same source and storage share one. Methods that look at the inputs of a weight are given the statistics that the
    pass calibrate gathered; embedding rows read from the logits matrix are quantized with its statistics.
    """

    name = "insert-qdq"
    requires = ("precision-plan",)
    establishes = ("quantized",)
    lossy = True

    def run(self, graph: Graph, ctx: PassContext) -> Mapping[str, int]:
        plan = graph.required_fact(PrecisionPlan)
        tables = set(graph.tables.values())
        moments = _moments(graph, plan)
        _bring_to_blocks(graph, plan)
        counts = {"dequantize": 0, "cast": 0}
        for name, storage in plan.storage.items():
            value = graph.value(name)
            if value.const is None:
                raise LadingError("Q420", f"%{name} is planned but not a constant", where=name)
            by_rows = value in tables
            if storage.bits == 16:
                _store_half(graph, value, by_rows)
                counts["cast"] += 1
            elif storage.bits <= 8:
                _store_blocks(graph, value, storage, moments[name], by_rows)
                counts["dequantize"] += 1
        return counts


def _bring_to_blocks(graph: Graph, plan: PrecisionPlan) -> None:
    """Bring a graph to the version of ONNX's operators that knows blocks, where the plan stores any.

    Raises:
        LadingError: P324 an operator has no form in that version.
    """
    if all(storage.bits > 8 for storage in plan.storage.values()):
        return
    blockers = upgrade(graph, BLOCKED_OPSET)
    if blockers:
        raise LadingError(
            "P324",
            f"weights stored as integers take opset {BLOCKED_OPSET}, and {', '.join(blockers[:4])} cannot be brought to it",
            graph.name,
            "store floats: --passes onnx-fp32",
        )


def _moments(graph: Graph, plan: PrecisionPlan) -> dict[str, str]:
    """Key of the statistics for each planned weight; empty where the method uses none or does without.

    Raises:
        LadingError: Q456 there are none for a weight whose method needs them, Q490 they are not of the quantized model.
    """
    fact = graph.fact(Calibration)
    keys = dict(fact.keys) if fact is not None else {}
    pair = same_matrix([weight for weight in weights_of(graph) if weight.name in plan.storage])
    if plan.tied and pair is not None and pair[1].name in keys:
        keys[pair[0].name] = keys[pair[1].name]
    found: dict[str, str] = {}
    for name, storage in plan.storage.items():
        needs = METHODS[storage.method].needs if storage.bits <= 8 else "nothing"
        if needs == "both-sides" and len(parts_of(keys.get(name, ""))) < 2:
            raise LadingError(
                "Q456",
                f"the method {storage.method} needs statistics of both sides of %{name}, and there are none",
                where=name,
                hint="do not choose the method by name: the pass calibrate-outputs gives it to weights stored by gptq",
            )
        if needs == "second-moments" and name not in keys:
            raise LadingError(
                "Q456",
                f"the method {storage.method} needs statistics of the inputs of %{name}, and there are none",
                where=name,
                hint="run the pass calibrate before assign-precision; embedding rows stored on their own have no inputs, "
                "so give them another method with embedding-method or a rule",
            )
        if needs == "second-moments" and METHODS[storage.method].follows and (fact is None or name not in fact.behind):
            raise LadingError(
                "Q490",
                f"the method {storage.method} makes up for errors of the weights before %{name}, and nothing has measured "
                "them",
                where=name,
                hint="run the pass recalibrate after assign-precision, or use the method gptq",
            )
        found[name] = moments_for(storage, keys.get(name, ""))
    return found


def _store_half(graph: Graph, value: Value, by_rows: bool) -> None:
    # Cast as the checkpoint orients it, so that a tied table and logits matrix are one tensor.
    source = cast(value.tensor, F16) if by_rows else transposed(cast(transposed(value.tensor), F16))
    half = graph.add_const(f"{value.name}.f16", source, loc=value.loc)
    node = graph.add("Cast", [half], {"to": value.dtype.onnx}, types=[value.type], before=graph.first, loc=value.loc)
    _take_over(graph, value, node)


def _store_blocks(graph: Graph, value: Value, storage: Storage, moments: str, by_rows: bool) -> None:
    """Store codes; `moments` is the key of the statistics, empty for none."""
    source = value.tensor if by_rows else transposed(value.tensor)
    recipe = shared_quantized(as_stored(source), storage, moments)
    # MatMul orientation [in, out] runs along axis 0; rows of a table [rows, in] along axis 1.
    parts = [recipe.codes, recipe.scale, recipe.zero_point]
    oriented: list[Tensor | None] = [part if by_rows or part is None else transposed(part) for part in parts]
    names = (f"{value.name}.codes", f"{value.name}.scale", f"{value.name}.zero")
    inputs = [
        graph.add_const(name, part, loc=value.loc)
        for name, part in zip(names, oriented, strict=True)
        if part is not None
    ]
    block = storage.block or source.shape[1]
    op = "lading.AffineDequantize" if storage.zero == "float" and not storage.symmetric else "DequantizeLinear"
    attrs = {"axis": 1 if by_rows else 0, "block_size": block}
    type_ = TensorType(F32, value.shape)
    node = graph.add(op, inputs, attrs, types=[type_], before=graph.first, loc=value.loc)
    if value.dtype != F32:
        narrow = {"to": value.dtype.onnx}
        node = graph.add("Cast", [node.output], narrow, types=[value.type], after=node, loc=value.loc)
    _take_over(graph, value, node)


def _take_over(graph: Graph, value: Value, node: Node) -> None:
    """The node's output takes the place and the name of the constant, which goes away."""
    name = value.name
    graph.replace(value, node.output)
    graph.erase_const(value)
    graph.rename(node.output, name)
