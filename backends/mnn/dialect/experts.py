"""The mixture of experts, whose operator in MNN runs a graph of its own for each expert.

In the IR the experts stay where they are, between `mnn.ExpertRows` and `mnn.MoE`; the writer takes them out into
subgraphs (`backends.mnn.write.net_json`). ``express/module/MoEModule.cpp``.
"""

from __future__ import annotations

from typing import Any

from backends.mnn.dialect.builder import Builder
from backends.mnn.dialect.operator import Decoded, Main, MnnOperator, Operands, attrs_of
from backends.mnn.write.weight_layout import Layout
from ir.base.types import Dim, ValueType
from ir.dialects.experts import combined, combined_type, dispatched, dispatched_types
from ir.graph.graph import Node, Value
from ir.infer.inference import Inference
from ir.ops.meaning import Body
from ir.ops.registry import ANY, AttrDef, OpDef
from ir.quant.stored_weight import is_weight

ROWS_OF_EXPERTS, MIXTURE = "mnn.ExpertRows", "mnn.MoE"


def subgraph_name(layer: int, expert: int) -> str:
    """The name under which the runtime looks for the graph of an expert."""
    return f"/expert/{layer}_{expert}"


def source_of(combine: Node, op: str) -> Node | None:
    """The node of an operator that hands the rows to the experts whose results are added up; None when there is none."""
    waiting: list[Value | None] = [combine.operand(2)]
    seen: set[Node] = set()
    while waiting:
        value = waiting.pop()
        node = value.producer if value is not None else None
        if node is None or node in seen:
            continue
        if node.op == op:
            return node
        seen.add(node)
        waiting += node.inputs
    return None


def nodes_of_experts(source: Node, combine: Node) -> dict[Node, int]:
    """The nodes that compute with the rows of an expert, and the number of that expert.

    Raises:
        ValueError: something leads out of an expert, or into it, which the graph of an expert cannot hold; the message
            says what.
    """
    found: dict[Node, int] = {}
    for expert, rows in enumerate(source.outputs):
        inside, waiting = {rows}, [rows]
        while waiting:
            value = waiting.pop()
            for user, index in value.uses:
                if user is combine and index == expert + 2:
                    continue
                if user is combine or user.home is not combine.home or found.get(user, expert) != expert:
                    raise ValueError(f"%{value.name} of expert {expert} is read outside of it")
                if user not in found:
                    found[user] = expert
                    inside.update(user.outputs)
                    waiting.extend(user.outputs)
            if value.is_output:
                raise ValueError(f"%{value.name} of expert {expert} is an output of the graph")
        if combine.operand(expert + 2) not in inside:
            raise ValueError(f"%{combine.operand(expert + 2).name} does not come from expert {expert}")
    for node, expert in found.items():
        for operand in node.inputs:
            made = operand.producer if operand is not None else None
            if operand is None or operand is source.outputs[expert] or is_weight(operand):
                continue
            if operand.is_input or (made is not None and found.get(made) != expert):
                raise ValueError(f"expert {expert} reads %{operand.name}, which is not computed from its rows")
    return found


def _rows_type(run: Inference, node: Node) -> tuple[ValueType | None, ...]:
    return dispatched_types(run, node, 0)


def _mixture_type(run: Inference, node: Node) -> ValueType | None:
    return combined_type(run, node, 0, None)


def _mixture(body: Body) -> list[Value]:
    return [body.op("Squeeze", combined(body, 0), body.ints(0))]


def _write_mixture(node: Node, layout: Layout) -> dict[str, Any]:
    numbers = {"layer_id": node.attrs["layer"], "num_experts": len(node.inputs) - 2, "top_k": node.attrs["best"]}
    attrs = [{"key": key, "i": number, "b": False, "f": 0.0, "type": "DT_INT32"} for key, number in numbers.items()]
    return {"type": "MoE", "engine": "MNN", "attr": attrs}


def _read_mixture(builder: Builder, main: Main, operands: Operands) -> Decoded:
    """The experts, whose graphs come to stand between the two operators of the IR."""
    attrs = {str(item.get("key")): int(item.get("i", 0)) for item in main.get("attr", ())}
    layer, count, best = (attrs[key] for key in ("layer_id", "num_experts", "top_k"))
    hidden, weights, choices = (builder.value(item) for item in operands)
    width = builder.size(hidden, -1 if hidden.rank != 4 else 1)
    rows = next((size for size in builder.dims(hidden) if isinstance(size, Dim)), builder.dims(hidden)[0])
    flat = builder.reshape(hidden, (rows, width))
    weights, choices = (builder.reshape(value, (1, rows, best)) for value in (weights, choices))
    given = builder.several("ExpertRows", [flat, choices], count, "rows", experts=count)
    parts = [builder.inner(subgraph_name(layer, place), value) for place, value in enumerate(given)]
    parts = [builder.reshape(part, (value.dims[0], width)) for part, value in zip(parts, given, strict=True)]
    total = builder.add("MoE", [choices, weights, *parts], layer=layer, best=best)
    return builder.reshape(total, builder.dims(hidden))


ROWS = (
    MnnOperator(
        definition=OpDef(
            ROWS_OF_EXPERTS,
            inputs=("hidden", "choices"),
            min_inputs=2,
            max_inputs=2,
            max_outputs=ANY,
            attrs=attrs_of(AttrDef("experts", "int", required=True)),
            infer=_rows_type,
            define=lambda body: dispatched(body, 0),
            role="layout",
            doc="For each expert the rows of hidden [S, H] whose tokens chose it by choices [1, S, K]: [n_e, H].",
        ),
    ),
    MnnOperator(
        type="MoE",
        parameter="Extra",
        definition=OpDef(
            MIXTURE,
            inputs=("choices", "weights", "rows"),
            min_inputs=3,
            max_inputs=ANY,
            attrs=attrs_of(AttrDef("layer", "int", required=True), AttrDef("best", "int", required=True)),
            infer=_mixture_type,
            define=_mixture,
            role="layout",
            label=lambda node: f"{node.op} of {len(node.inputs) - 2}",
            doc="The rows [n_e, H] that the experts made, each times its weight [1, S, K], added up: [S, H].",
        ),
        encode=_write_mixture,
        decode=_read_mixture,
    ),
)
"""Rows for `backends.mnn.dialect.table`."""
