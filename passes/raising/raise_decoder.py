"""Bring a decoder that somebody else exported into the form that the checkpoint frontend makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ir.graph.graph import Graph
from passes.framework.base import Pass
from passes.framework.context import PassContext


@dataclass(frozen=True)
class RaiseDecoder(Pass):
    """Bring a decoder that somebody else exported into one standard form, by what its parts compute.

    The graph is cut at every product with a weight. What lies between is evaluated on random values at several lengths
    and fitted: norms, and attention with its heads, rotary embedding, scale, window and cap. Masks, positions and
    histories of keys and values, which the runtime keeps itself, go; token ids stay the one input. Names decide nothing.
    What does not fit is refused with its node and the difference. Graphs that the program built, and graphs that are no
    decoders, stay as they are.
    """

    name = "raise-decoder"
    requires = ("typed",)
    establishes = ("typed",)

    def run(self, graph: Graph, ctx: PassContext) -> Mapping[str, int]:
        """See `Pass.run`."""
        if not graph.foreign:
            return {}
        # Checkpoints need none of it.
        from passes.raising.decoder import raise_graph

        return raise_graph(graph, ctx)
