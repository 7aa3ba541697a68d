"""Language models that were exported for another runtime: they look ids up, take masks, keep their own history."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from backends.mnn.doctor.findings import Finding, versions_of
from backends.mnn.read.model_folder import Subject
from backends.mnn.read.net_file import numbers
from backends.mnn.target.releases import Release

_HISTORY_OPS = ("Attention", "LinearAttention", "FmhaV2", "Fmhca")
_READ_OUTPUTS = frozenset(("logits", "hidden_states", "talker_embeds", "presents"))
"""Outputs that a release reads, if told to."""

COMPILE = "lading compile takes the ONNX file or checkpoint that it was converted from"
"""What is advised where the graph is of another convention."""


def convention_findings(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    """What a graph for another runtime computes itself or takes in another form; nothing of graphs without logits."""
    if subject.net_problem is not None or not subject.is_language_model or "logits" not in subject.names:
        return
    yield from _types(subject, releases)
    yield from _no_cache(subject, releases)
    yield from _outputs(subject, releases)


def _types(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    every, where = versions_of(releases), str(subject.model_path)
    ids = subject.inputs.get("input_ids", {})
    if "input_ids" in subject.read_inputs and "INT" in str(ids.get("dtype", "DT_FLOAT")):
        yield Finding(
            "B691",
            f"the model looks rows up for integer input_ids {_shape(ids)}, and the runtime feeds the rows themselves, as "
            "floats of [tokens, 1, width]: a crash at the first call",
            every,
            COMPILE,
            where,
        )
    mask = subject.inputs.get("attention_mask", {})
    if (
        "attention_mask" in subject.read_inputs
        and "INT" in str(mask.get("dtype"))
        and len(numbers(mask.get("dims"))) == 2
    ):
        yield Finding(
            "B691",
            f"the model expands an integer attention_mask {_shape(mask)} itself, and the runtime feeds a float without axes "
            "or of [1, 1, tokens, tokens]: a crash at the first call",
            every,
            COMPILE,
            where,
        )


def _shape(main: dict) -> str:
    dims = ["?" if size < 0 else str(size) for size in numbers(main.get("dims"))]
    return f"[{', '.join(dims)}]"


def _no_cache(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    kinds = {op.get("type") for op in subject.ops}
    if "Softmax" not in kinds or kinds & set(_HISTORY_OPS):
        return
    yield Finding(
        "B695",
        "there is no Attention operator, in which the runtime keeps the history: a later call does not see the tokens of "
        "earlier ones",
        versions_of(releases),
        COMPILE,
        str(subject.model_path),
    )


def _outputs(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    unread = [name for name in subject.net.get("outputName", ()) if name not in _READ_OUTPUTS]
    if unread and "logits" in subject.net.get("outputName", ()):
        more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
        yield Finding(
            "B693", f"the model also returns {unread[0]!r}{more}, which no release reads", versions_of(releases), "",
            str(subject.model_path), "warning",
        )  # fmt: skip


__all__ = ["COMPILE", "convention_findings"]
