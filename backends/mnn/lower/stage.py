"""What a graph may hold that MNN is to run: the operators of its dialect, and weights under dequantization or Cast."""

from __future__ import annotations

from ir.base.diag import Diagnostic
from ir.graph.graph import Graph
from ir.verify.stages import Allow, Forbid, Stage, on_constants, stage_rules

STAGE = Stage(
    ("typed", "signature", "mnn"),
    (
        Allow("mnn.*"),
        Allow("lading.AffineDequantize"),
        Allow("DequantizeLinear", on_constants),
        Allow("Cast", on_constants),
        Forbid("*", code="I132", hint="legalize-mnn turns the graph into the operators of MNN"),
    ),
)
"""The stage ``mnn``."""


def problems(graph: Graph) -> list[Diagnostic]:
    """Operators that the writer of MNN files has no form for: the invariant ``mnn``."""
    return stage_rules(graph, "mnn")
