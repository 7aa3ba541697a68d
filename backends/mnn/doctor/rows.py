"""Which rows become logits: where a graph chooses them, and whether the choice is the runtime's or a fixed one.

The runtime feeds the choice as ``logits_index``: -1 for the last row, 0 for all. Looked for is the choice in front of
the product that makes the logits: behind it everything is computed row by row, and before it come only the norm and the
sums of the layers' results, so a slice or look-up there takes rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from backends.mnn.doctor.findings import Finding, versions_of
from backends.mnn.read.model_folder import Subject
from backends.mnn.read.net_file import numbers
from backends.mnn.target.releases import Release

_PRODUCTS = ("Convolution", "MatMul", "BatchMatMul", "Attention", "LinearAttention", "MoE")
_CHOICES = ("StridedSlice", "SliceTf", "GatherV2")
_FARTHEST = 4096
"""Operators that are looked through at most."""


@dataclass(frozen=True)
class RowChoice:
    """The operator that chooses the rows of the logits.

    Attributes:
        op: the operator.
        index: the tensor by which it chooses; negative where none is there.
        fixed: the row that it begins with, where that is a constant.
    """

    op: dict[str, Any]
    index: int
    fixed: int | None


def row_choice(subject: Subject) -> RowChoice | None:
    """The choice of rows in front of the logits; None where there is none, or no logits."""
    if "logits" not in subject.names:
        return None
    seen: set[int] = set()
    waiting, heads = [(subject.names.index("logits"), False)], 0
    while waiting and len(seen) < _FARTHEST:
        index, behind = waiting.pop()
        op = subject.producers.get(index)
        if op is None or index in seen:
            continue
        seen.add(index)
        kind, operands = op.get("type"), numbers(op.get("inputIndexes"))
        if kind in _PRODUCTS:
            if behind or heads:
                continue
            heads += 1
            behind = True
        elif behind and kind in _CHOICES and len(operands) > 1 and _takes_rows(subject, op):
            return RowChoice(op, operands[1], _constant(subject, operands[1]))
        # What follows an operand computes from sizes only.
        followed = operands if kind in ("BinaryOp", "Eltwise", "Concat") else operands[:1]
        waiting += [(place, behind) for place in followed]
    return None


def row_findings(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    """A choice of rows that was frozen while the model was traced."""
    chosen = row_choice(subject) if subject.is_language_model else None
    if chosen is None or chosen.fixed is None:
        return
    where = str(chosen.op.get("name") or chosen.op.get("type"))
    if chosen.fixed == -1:
        yield Finding(
            "B689",
            "the logits are those of the last position whatever 'logits_index' asks for: generation is right, and "
            "all_logits, chunk_limits and speculative decoding are not",
            versions_of(releases),
            "export with logits_index as an input, or compile the original",
            where,
            "warning",
            subject.is_folder,
        )
    elif chosen.fixed != 0:
        yield Finding(
            "B689",
            f"the logits are those from row {chosen.fixed} on whatever is asked for: the choice of rows was frozen when "
            "the model was traced, so prompts of any other length get wrong tokens",
            versions_of(releases),
            "export with logits_index as an input, or compile the original",
            where,
        )


def _takes_rows(subject: Subject, op: dict[str, Any]) -> bool:
    """What is taken are rows of something computed: no slice along the last axis, no look-up in a table."""
    operands = numbers(op.get("inputIndexes"))
    if subject.producers.get(operands[0], {}).get("type") == "Const":
        return False
    if op.get("type") == "StridedSlice" and len(operands) > 3:
        return _constant(subject, operands[3]) not in (2, -1)
    if op.get("type") == "SliceTf":
        return len(_values(subject, operands[1]) or [0]) < 3 or (_values(subject, operands[1]) or [0])[-1] == 0
    return True


def _values(subject: Subject, index: int) -> list[int] | None:
    op = subject.producers.get(index, {})
    return numbers(op.get("main", {}).get("int32s")) if op.get("type") == "Const" else None


def _constant(subject: Subject, index: int) -> int | None:
    """The number that a tensor of one element holds; None where it is not one constant."""
    values = _values(subject, index)
    return int(values[0]) if values is not None and len(values) == 1 else None


__all__ = ["RowChoice", "row_choice", "row_findings"]
