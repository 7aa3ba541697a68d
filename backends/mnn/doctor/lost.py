"""Tensors that operators of an ``.mnn`` file read and nothing makes, as MNN's converter writes them.

The converter takes a tensor that it does not find for one that was left out: it prints "has empty input, the index is
1", reports success, and writes number -1 in its place, or leaves it away where no operand follows. Its name is lost.
What comes of it was tried on 3.4.0, 3.5.0, 3.6.0 and 3.6.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from backends.mnn.doctor.findings import Finding, versions_of
from backends.mnn.doctor.graph import place_of
from backends.mnn.lift.lost_rows import lost_rows
from backends.mnn.read.model_folder import Subject
from backends.mnn.read.net_file import numbers
from backends.mnn.target.releases import Release

BACK_TO_ONNX = "lading doctor FILE.onnx names the tensor, and lading compile FILE.onnx -o OUT declares or solves it"
"""What is advised where the file that was converted is at fault."""

_WORDS = {
    "StridedSlice": ("data", "begin", "end", "axes", "steps"),
    "SliceTf": ("data", "begin", "size"),
    "GatherV2": ("data", "indices", "axis"),
    "GatherND": ("data", "indices"),
    "GatherElements": ("data", "indices"),
    "Reshape": ("data", "shape"),
    "BroadcastTo": ("data", "shape"),
    "MatMul": ("left operand", "right operand"),
    "BatchMatMul": ("left operand", "right operand"),
    "Select": ("condition", "left operand", "right operand"),
    "Attention": ("queries", "keys", "values", "mask"),
    "BinaryOp": ("left operand", "right operand"),
    "Range": ("start", "limit", "step"),
    "LayerNorm": ("data", "gain", "shift"),
}
"""What operands are called."""

_LEAST = {
    **dict.fromkeys(("BinaryOp", "BatchMatMul", "GatherV2", "GatherND", "GatherElements", "Tile", "BroadcastTo"), 2),
    **dict.fromkeys(("StridedSlice", "SliceTf", "Select", "Range", "ScatterNd"), 3),
}
"""Operands without which an operator cannot be computed."""


def lost_findings(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    """Everything that the converter lost."""
    if subject.net_problem is not None or not subject.ops:
        return
    yield from _empty(subject, releases)
    yield from _absent(subject, releases)
    yield from _short(subject, releases)


def _scopes(subject: Subject) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Operators and number of tensors of the main graph and of each subgraph."""
    yield subject.net["oplists"], len(subject.names)
    for graph in subject.net.get("subgraphs", ()):
        yield graph.get("nodes", []), len(graph.get("tensors", ()))


def _empty(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    outputs = [name for name in subject.net.get("outputName", ()) if name not in subject.made]
    if not outputs or any(op.get("type") not in ("Input", "Const") for op in subject.net["oplists"]):
        return
    few = ", ".join(map(repr, outputs[:3])) + (f" and {len(outputs) - 3} more" if len(outputs) > 3 else "")
    yield Finding(
        "B688",
        f"the graph is empty: nothing makes {few}. The converter reports success for some graphs, such as a product whose "
        "result is quantized, and writes none of their operators",
        versions_of(releases),
        "lading compile FILE.onnx -o OUT reads the original",
        str(subject.model_path),
    )


def _absent(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    rows = lost_rows(subject)
    for ops, count in _scopes(subject):
        for op in ops:
            for place, index in enumerate(numbers(op.get("inputIndexes"))):
                if 0 <= index < count:
                    continue
                message = (
                    f"{_named(op)} reads tensor number {index} as its {_word(op, place)}, which does not exist: the process "
                    "dies while it loads the file (double free, or an access out of bounds). "
                )
                if op is rows:
                    message += "It chooses the rows that become logits: the runtime feeds this choice as 'logits_index'"
                else:
                    message += "Whatever was converted reads a tensor that nothing makes; its name is lost"
                mended = op is rows and subject.is_folder
                yield Finding("B685", message, versions_of(releases), BACK_TO_ONNX, _place(op), mended=mended)


def _short(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for op in subject.ops:
        wanted, there = _wanted(op), len(numbers(op.get("inputIndexes")))
        if there < wanted:
            found.setdefault((str(op.get("type")), there), []).append(op)
    for (_, there), ops in found.items():
        yield Finding(
            "B686",
            f"{_named(ops[0])} has no {_word(ops[0], there)}: it crashes, or gives an empty result, at the first call. "
            "Whatever was converted reads a tensor that nothing makes; its name is lost",
            versions_of(releases),
            BACK_TO_ONNX,
            place_of(ops),
        )


def _wanted(op: dict[str, Any]) -> int:
    """Number of operands without which an operator cannot be computed."""
    kind, main = str(op.get("type")), op.get("main", {})
    if kind == "MatMul":
        return 1 if len(numbers(main.get("weight"))) else 2
    if kind == "Reshape":
        return 1 if "dims" in main else 2
    return _LEAST.get(kind, 0)


def _named(op: dict[str, Any]) -> str:
    return f"{op.get('type')} {op.get('name')!r}" if op.get("name") else str(op.get("type"))


def _place(op: dict[str, Any]) -> str:
    return str(op.get("name") or op.get("type"))


def _word(op: dict[str, Any], place: int) -> str:
    words = _WORDS.get(str(op.get("type")), ())
    return words[place] if place < len(words) else f"operand {place}"


__all__ = ["BACK_TO_ONNX", "lost_findings"]
