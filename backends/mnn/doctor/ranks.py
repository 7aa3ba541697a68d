"""Numbers of axes that a release does not feed or take: positions used as they come, and expert numbers of MoE."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from backends.mnn.doctor.findings import Finding
from backends.mnn.doctor.graph import lacking, place_of, reshape_dims
from backends.mnn.read.model_folder import Subject
from backends.mnn.read.net_file import numbers
from backends.mnn.target.releases import Release

_KEEPERS = frozenset("Cast UnaryOp Softmax TopKV2 ReLU ReLU6 Sigmoid TanH ConvertTensor Convolution".split())
"""Operators whose result has as many axes as their first operand."""

_COUNTING = frozenset(
    "Unsqueeze ExpandDims Squeeze GatherV2 Gather Permute Transpose StridedSlice Slice Concat Pack MatMul BatchMatMul "
    "Shape Reduction".split()
)
"""Operators that give something else for an operand with another number of axes."""

_DEEPEST = 32
"""Operators that are looked through at most."""


def rank_findings(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    """What follows from numbers of axes; nothing is said where they cannot be told."""
    yield from _positions(subject, releases)
    yield from _experts(subject, releases)


def _positions(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    values = {**subject.config.values, **subject.llm_config.values}
    if "position_ids" not in subject.read_inputs or values.get("is_mrope") or values.get("attention_mask") == "glm":
        return
    rank = len(numbers(subject.inputs["position_ids"].get("dims")))
    readers = list(_counting_readers(subject, subject.names.index("position_ids")))
    if rank not in (1, 2) or not readers:
        return
    # An axis too many is a crash, and so is one that comes and goes; one too few is what an operator makes of it.
    crash = lacking(
        releases, lambda release: release.position_ranks == (rank,) or (rank == 2 and release.position_ranks == (1,))
    )
    unsure = lacking(releases, lambda release: rank == 1 or release.position_ranks != (1,))
    for versions, happens in ((crash, "a crash"), (unsure, "perhaps wrong logits")):
        if versions:
            ranks = sorted(
                {rank for release in releases if release.version in versions for rank in release.position_ranks}
            )
            yield Finding(
                "B736",
                f"{readers[0].get('type')} reads position_ids as it is fed, declared with {rank} axes, and fed with "
                f"{' or '.join(map(str, ranks))}: {happens}",
                versions,
                "reshape position_ids to the shape wanted before anything reads it",
                place_of(readers),
                "error" if versions is crash else "warning",
                True,
            )


def _counting_readers(subject: Subject, index: int) -> Iterator[dict[str, Any]]:
    """Operators that read a tensor, or its elements in the same arrangement, and depend on its number of axes."""
    waiting, seen = [index], set()
    while waiting:
        index = waiting.pop()
        seen.add(index)
        for op in subject.net["oplists"]:
            if index not in numbers(op.get("inputIndexes")):
                continue
            if op.get("type") in _COUNTING:
                yield op
            elif op.get("type") in ("Cast", "UnaryOp"):
                waiting += [place for place in numbers(op.get("outputIndexes")) if place not in seen]


def _experts(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    having = [release for release in releases if "MoE" not in release.missing_ops]
    flat = [
        op
        for op in subject.ops
        if op.get("type") == "MoE" and 2 in [_rank(subject, index) for index in numbers(op.get("inputIndexes"))[1:3]]
    ]
    if old := lacking(having, lambda release: release.flat_experts) if flat else ():
        yield Finding(
            "B737",
            "MoE gets weights or numbers of experts as [tokens, experts], without a leading axis of 1: a crash",
            old,
            "give them as [1, tokens, experts], or use 3.4.1 and later",
            place_of(flat),
        )


def _rank(subject: Subject, index: int, depth: int = _DEEPEST) -> int | None:
    """Number of axes of a tensor of the main graph, or None when it cannot be told."""
    op = subject.producers.get(index)
    if op is None or depth == 0:
        return None
    kind, main = op.get("type"), op.get("main", {})
    if kind == "Reshape":
        return len(reshape_dims(subject, op)) or None
    if kind == "Const":
        return len(numbers(main.get("dims")))
    operands = [_rank(subject, place, depth - 1) for place in numbers(op.get("inputIndexes"))[:2]]
    if not operands or operands[0] is None:
        return None
    if kind in _KEEPERS:
        return operands[0]
    if kind == "BinaryOp":
        known = [rank for rank in operands if rank is not None]
        return max(known) if len(known) == len(operands) else None
    if kind in ("Unsqueeze", "Squeeze"):
        places = len(numbers(main.get("squeezeDims")))
        return operands[0] + (places if kind == "Unsqueeze" else -places) if places else None
    return None
