"""Bring a legal graph to the forms that every release of a target has, and refuse what one of them cannot run."""

from __future__ import annotations

from functools import partial

from backends.mnn.dialect.operator import MnnOperator
from backends.mnn.dialect.table import FORM_OF, WRITTEN
from backends.mnn.target.releases import MnnTarget, Release
from backends.mnn.write.weight_layout import Layout, Matrix
from ir.base.diag import LadingError
from ir.graph.graph import Graph, Node
from ir.quant.stored_weight import StoredWeight


def fit(graph: Graph, target: MnnTarget) -> int:
    """Rewrite operators that a release of the target lacks; the number of operators rewritten.

    Raises:
        LadingError: B696 a fused form that a release of the target lacks.
    """
    _check_forms(graph, target)
    found = [(node, row) for node in graph.nodes if (row := WRITTEN.get(node.op)) is not None]
    older = [(node, row, row.older) for node, row in found if row.older is not None]
    lacked = [(node, replace) for node, row, replace in older if target.lacking(partial(_reads, row, node))]
    for node, replace in lacked:
        replace(graph, node)
    return len(lacked)


def _reads(row: MnnOperator, node: Node, release: Release) -> bool:
    return row.reads is None or row.reads(release, node.attrs)


def _check_forms(graph: Graph, target: MnnTarget) -> None:
    first = {FORM_OF[node.op]: node for node in reversed(graph.nodes) if node.op in FORM_OF}
    for form, node in first.items():
        if old := target.lacking(partial(_reads, WRITTEN[node.op], node)):
            raise LadingError(
                "B696",
                f"the fused form {form} is not known to MNN {', '.join(old)}",
                where=f"{node.loc or node.name}\n{node!r}",
                hint="leave forms of fuse-mnn to the target, or name a target of 3.6.1 and later",
            )


def tie_form(matrix: Matrix) -> str:
    """Which spelling of ``tie_embeddings`` a matrix needs, as named in the profiles."""
    weight = matrix.weight
    if not weight.storage.is_integer:
        return "half"
    if weight.block == weight.columns:
        return "row"
    return "scales" if weight.storage.symmetric else "pairs"


def check_storage(layout: Layout, target: MnnTarget) -> None:
    """Raise what a release of the target would read wrong.

    Raises:
        LadingError: B603 half-float scales, B697 integer codes of a width or in blocks that a release computes wrong,
            B702 embedding rows in the weight file in a form that a release misreads.
    """
    forms: dict[tuple[int, int, int, bool], StoredWeight] = {}
    for matrix in layout.matrices.values():
        _check_scales(matrix, target)
        weight = matrix.weight
        if weight.storage.is_integer:
            forms.setdefault((weight.bits, weight.block, weight.columns, weight.storage.symmetric), weight)
    for weight in forms.values():
        _check_codes(weight, target)
    if layout.embedding is not None:
        _check_rows(layout.embedding, target)


def _check_scales(matrix: Matrix, target: MnnTarget) -> None:
    storage = matrix.weight.storage
    if not storage.is_integer or storage.scale != "f16":
        return
    if old := target.lacking(lambda release: release.f16_scales):
        raise LadingError(
            "B603",
            f"half-float scales are read as garbage by MNN {', '.join(old)}",
            where=matrix.weight.name,
            hint="use scale=f32, or a target of 3.6.0 and later",
        )


def _check_codes(weight: StoredWeight, target: MnnTarget) -> None:
    found = {release.version: release.fault(weight.columns, weight.storage) for release in target.releases}
    faults = {version: fault for version, fault in found.items() if fault is not None}
    if not faults:
        return
    what, hint = next(iter(faults.values()))
    old = [version for version, fault in faults.items() if fault == (what, hint)]
    message = f"stored so, a linear layer is computed wrong by MNN {', '.join(old)}: {what}"
    raise LadingError("B697", message, where=weight.name, hint=hint)


def _check_rows(matrix: Matrix, target: MnnTarget) -> None:
    form, bits = tie_form(matrix), matrix.weight.bits
    if old := target.lacking(lambda release: form in release.tie_embeddings and bits in release.row_widths):
        raise LadingError(
            "B702",
            f"MNN {', '.join(old)} cannot read embedding rows stored so ({form}, {bits} bits)",
            where=matrix.weight.name,
            hint="store the embedding in a file of its own: embedding-bits=32",
        )
    odd = bits == 4 and matrix.weight.rows % 2 == 1
    if odd and (old := target.lacking(lambda release: release.odd_tied_int4)):
        raise LadingError(
            "B702",
            f"MNN {', '.join(old)} misreads 4-bit embedding rows of an odd vocabulary ({matrix.weight.rows})",
            where=matrix.weight.name,
            hint="use logits-bits=8, or embedding-bits=32",
        )
