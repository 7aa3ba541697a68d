"""What a written model streams for each decoded token, by device, from the layout of its weight file."""

from __future__ import annotations

from collections.abc import Mapping

from backends.mnn.dialect.experts import MIXTURE, ROWS_OF_EXPERTS, nodes_of_experts, source_of
from backends.mnn.write.weight_layout import Layout
from ir.graph.graph import Graph, Node
from ir.target.device import Device


def streamed(graph: Graph, layout: Layout, devices: Mapping[str, Device]) -> dict[str, int]:
    """Bytes of weights that each device reads to decode one token; those of experts as often as they are chosen.

    `graph` is the one that `layout` was made of.
    """
    shares = _shares(graph)
    return {
        name: round(
            sum(
                shares.get(node, 1.0)
                * device.streamed(matrix.weight.rows, matrix.weight.columns, matrix.weight.storage)
                for node, matrix in layout.matrices.items()
            )
        )
        for name, device in devices.items()
    }


def _shares(graph: Graph) -> dict[Node, float]:
    """Share of the tokens that reach the nodes of experts, on average."""
    found: dict[Node, float] = {}
    for combine in graph.nodes:
        source = source_of(combine, ROWS_OF_EXPERTS) if combine.op == MIXTURE else None
        if source is not None:
            share = int(combine.attrs["best"]) / len(source.outputs)
            found |= dict.fromkeys(nodes_of_experts(source, combine), share)
    return found


__all__ = ["streamed"]
