"""Operators of other domains that have a definition in standard terms, which is put in their place."""

from __future__ import annotations

from collections.abc import Sequence

from ir.graph.graph import Value
from ir.ops.meaning import define
from passes.contrib.building import Site, expansion


@expansion("LlmExporter.FusedRoPE", "LlmExporter.FusedAttention")
def by_definition(site: Site) -> Sequence[Value]:
    """The operator's definition."""
    try:
        body = define(site.node)
    except ValueError as error:
        site.stay(str(error))
    known: dict[Value, Value | None] = dict(zip(body.inputs, filter(None, site.node.inputs), strict=True))
    known.update((value, site.const(value.tensor, value.name)) for value in body.consts.values())
    for node in body.nodes:
        operands = [known[value] if value is not None else None for value in node.inputs]
        made = site.ops(node.op, *operands, outputs=len(node.outputs), **node.attrs)
        known.update(zip(node.outputs, made, strict=True))
    return [value for result in body.outputs if (value := known[result]) is not None]


@expansion("LlmExporter.FakeLinear", "LlmExporter.MoE", "LlmExporter.FusedLinearAttention")
def weights_elsewhere(site: Site) -> Sequence[Value]:
    """These have no equivalent, which is told."""
    if site.node.op_type == "FusedLinearAttention":
        site.stay("its states are kept by the runtime")
    site.stay(f"the weights of {site.attr('name') or 'the layer'} are in another file")
