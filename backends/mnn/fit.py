"""Bring a legal graph to the forms that every release of a target has, and refuse what one of them cannot run."""

from __future__ import annotations

from backends.mnn.layout import Layout, Matrix
from backends.mnn.profiles import Target
from ir.diag import LadingError
from ir.graph import Graph

SILU = 34
"""Number of SILU in ``UnaryOpOperation``."""


def fit(graph: Graph, target: Target) -> int:
    """Rewrite operators that a release of the target lacks; the number of operators rewritten."""
    if target.least("last_unary") >= SILU:
        return 0
    found = [node for node in graph.nodes if node.op == "mnn.Unary" and node.attrs["kind"] == "SILU"]
    for node in found:
        x, result = node.inputs[0], node.output
        gate = graph.add(
            "mnn.Unary", [x], {"kind": "SIGMOID"}, outputs=[f"{result.name}.gate"], types=[result.type], before=node,
            loc=node.loc,
        )  # fmt: skip
        product = graph.add(
            "mnn.Binary", [x, gate.output], {"kind": "MUL"}, outputs=[f"{result.name}.product"], types=[result.type],
            before=node, loc=node.loc,
        )  # fmt: skip
        graph.replace(result, product.output)
        graph.erase(node)
    return len(found)


def tie_form(matrix: Matrix) -> str:
    """Which spelling of ``tie_embeddings`` a matrix needs, as named in the profiles."""
    weight = matrix.weight
    if weight.quantized is None:
        return "half"
    if weight.block == weight.columns:
        return "row"
    return "scales" if weight.quantized.spec.symmetric else "pairs"


def check_storage(layout: Layout, target: Target) -> None:
    """Raise what a release of the target would read wrong.

    Raises:
        LadingError: B603 half-float scales, B702 embedding rows in the weight file in a form that a release misreads.
    """
    for matrix in layout.matrices.values():
        _check_scales(matrix, target)
    if layout.embedding is not None:
        _check_rows(layout.embedding, target)


def _check_scales(matrix: Matrix, target: Target) -> None:
    quantized = matrix.weight.quantized
    if quantized is None or quantized.spec.scale != "f16":
        return
    if old := target.lacking(lambda release: release.f16_scales):
        raise LadingError(
            "B603",
            f"half-float scales are read as garbage by MNN {', '.join(old)}",
            where=matrix.weight.name,
            hint="use scale=f32, or a target of 3.6.0 and later",
        )


def _check_rows(matrix: Matrix, target: Target) -> None:
    form = tie_form(matrix)
    if old := target.lacking(lambda release: form in release.tie_embeddings):
        raise LadingError(
            "B702",
            f"MNN {', '.join(old)} cannot read embedding rows stored so ({form}, {matrix.weight.bits} bits)",
            where=matrix.weight.name,
            hint="store the embedding in a file of its own: embedding-bits=32",
        )
    odd = matrix.weight.bits == 4 and matrix.weight.rows % 2 == 1
    if odd and (old := target.lacking(lambda release: release.odd_tied_int4)):
        raise LadingError(
            "B702",
            f"MNN {', '.join(old)} misreads 4-bit embedding rows of an odd vocabulary ({matrix.weight.rows})",
            where=matrix.weight.name,
            hint="use logits-bits=8, or embedding-bits=32",
        )
