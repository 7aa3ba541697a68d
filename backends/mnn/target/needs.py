"""Parts of models that some releases cannot run, told before any work is done for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from backends.mnn.target.releases import RELEASES, Release
from ir.base.diag import Diagnostic, LadingError
from ir.graph.graph import Graph, Node

ELSEWHERE = "compile with --to onnx: onnxruntime computes it"
"""What to do about a graph that no release computes."""


@dataclass(frozen=True)
class Need:
    """One part of models.

    Attributes:
        code: that of the error.
        part: what it is called.
        has: whether a node is such a part.
        runs: whether a release computes it.
        lack: what releases lack for a node that do not.
    """

    code: str
    part: str
    has: Callable[[Node], bool]
    runs: Callable[[Release], bool]
    lack: Callable[[Node], str]


LINEAR = Need(
    "P376",
    "the gated delta rule",
    lambda node: node.op in ("lading.GatedDeltaRule", "mnn.LinearAttention"),
    lambda release: "LinearAttention" not in release.missing_ops,
    lambda node: "no operator for linear attention",
)

AVOIDED = {
    "several tokens behind a history": "there, feed a whole chat at once: leave reuse_kv and chunk out",
    "as long as the one before a reset": "there, load the model anew instead of resetting it",
    "one token after a reset": "let prompts have two tokens or more, as those of a chat template have",
}
"""What to do about each kind of prompt in `Release.lost_memory`."""

NEEDS = (
    LINEAR,
    Need(
        "P375",
        "a mixture of experts",
        lambda node: node.op in ("lading.Dispatch", "mnn.MoE"),
        lambda release: "MoE" not in release.missing_ops,
        lambda node: "no operator for mixtures of experts",
    ),
    Need(
        "P373",
        "attention under a soft cap",
        lambda node: node.op == "Attention" and bool(node.attrs.get("softcap", 0.0)),
        lambda release: False,
        lambda node: f"no cap of attention scores (softcap {node.attrs['softcap']:g})",
    ),
)
"""What releases may lack."""


def needs(graph: Graph) -> list[tuple[Need, list[Node]]]:
    """The parts of a graph that some releases cannot run, with the nodes that are such."""
    found = [(need, [node for node in graph.nodes if need.has(node)]) for need in NEEDS]
    return [(need, nodes) for need, nodes in found if nodes]


def runners(graph: Graph, releases: Sequence[Release]) -> tuple[Release, ...]:
    """Those of some releases that have every part of a graph."""
    found = [need for need, _ in needs(graph)]
    return tuple(release for release in releases if all(need.runs(release) for need in found))


def require(graph: Graph, releases: Sequence[Release]) -> None:
    """Refuse a graph for releases that lack a part of it.

    Raises:
        LadingError: P375 a mixture of experts, P376 linear attention, P373 attention under a soft cap.
    """
    for need, nodes in needs(graph):
        lacking = [release.version for release in releases if not need.runs(release)]
        if lacking:
            have = "has" if len(lacking) == 1 else "have"
            layers = f"{len(nodes)} layers need" if len(nodes) > 1 else "a layer needs"
            raise LadingError(
                need.code,
                f"{layers} {need.part}, and MNN {', '.join(lacking)} {have} {need.lack(nodes[0])}",
                where=f"{nodes[0].loc or nodes[0].name}\n{nodes[0]!r}",
                hint=_hint(need),
            )


def warnings(graph: Graph, releases: Sequence[Release]) -> list[Diagnostic]:
    """What releases compute wrong of a graph in some ways of use, by code P377."""
    if not any(LINEAR.has(node) for node in graph.nodes):
        return []
    found: dict[str, list[str]] = {}
    for release in releases:
        for prompt in release.lost_memory:
            found.setdefault(prompt, []).append(release.version)
    return [
        Diagnostic(
            "P377",
            f"linear attention gives other logits on MNN {', '.join(versions)} for a prompt of this kind: {prompt}",
            hint=AVOIDED[prompt],
            severity="warning",
        )
        for prompt, versions in found.items()
    ]


def _hint(need: Need) -> str:
    newer = [release.version for release in RELEASES.values() if need.runs(release)]
    return f'name releases that have it, --target ">={newer[0]}", or {ELSEWHERE}' if newer else ELSEWHERE


__all__ = ["ELSEWHERE", "NEEDS", "Need", "needs", "require", "runners", "warnings"]
