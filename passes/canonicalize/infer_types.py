"""Types of all values, as far as operators and constants determine them."""

from __future__ import annotations

from dataclasses import dataclass

from ir.base.diag import Diagnostic, LadingError
from ir.graph.graph import Graph
from ir.infer.engine import infer_types
from passes.framework.base import Pass, Result
from passes.framework.context import PassContext


@dataclass(frozen=True)
class InferTypes(Pass):
    """Infer element type and shape of every value, with named symbolic dimensions.

    Recorded types are refined where more is known. A recorded type that cannot be true, or a node whose inputs do not
    fit its operator, is an error; types that an ONNX file records are hints, and give way with a warning.
    """

    name = "infer-types"
    establishes = ("typed",)

    def run(self, graph: Graph, ctx: PassContext) -> Result:
        """See `Pass.run`."""
        ctx.diagnostics += typed(graph)
        return None


def typed(graph: Graph) -> list[Diagnostic]:
    """Infer the types of all values; returns the warnings.

    Raises:
        LadingError: a recorded type cannot be true, or a node's inputs do not fit its operator.
    """
    problems = infer_types(graph)
    errors = [item for item in problems if item.severity == "error"]
    if errors:
        raise LadingError.of(errors)
    return problems
