"""Make a graph legal for the converter of MNN's wheels: nothing is left in it that is not known to be computed right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backends.mnn.modules.build import Build
from backends.mnn.modules.held import hold_constants, shorten_bounds
from backends.mnn.modules.rewrites.all import REWRITES
from backends.mnn.modules.schema_body import schema_body, write_out
from backends.mnn.modules.table.rows import why_not
from backends.mnn.target.releases import MnnTarget, target
from ir.base.diag import Diagnostic, LadingError
from ir.graph.graph import Graph, Node, Value
from ir.infer.rule_table import TypeMismatch
from ir.ops.registry import opsets_of
from passes.canonicalize.fold import Fold
from passes.framework.base import Pass
from passes.framework.context import PassContext

OLDEST = 21
"""Version of ONNX's operators from which on the table speaks of them."""

MOST_ROUNDS = 40
"""How often what rewrites made may be rewritten in turn."""


@dataclass(frozen=True)
class LegalizeModule(Pass):
    """Say every operator in terms of those that the releases of the target compute right.

    A node that the table of what is right shows to be right stays. Another is said in terms of others by the rewrites of its
    operator, or by the function that ONNX's schema gives for it; what these make is looked at in turn. Nodes of which
    nothing remains to be tried are refused, all in one message, and so are constants that MNN cannot hold.
    """

    name = "legalize-module"
    requires = ("typed",)

    def run(self, graph: Graph, ctx: PassContext) -> Mapping[str, int]:
        """See `Pass.run`."""
        chosen = ctx.target if isinstance(ctx.target, MnnTarget) else target()
        work = _Legalization(graph, chosen.versions)
        folder = Fold()
        shorten_bounds(graph)
        for _ in range(MOST_ROUNDS):
            if not work.round():
                break
            folder.run(graph, ctx)
        refused = work.refused() or hold_constants(graph)
        if refused:
            raise LadingError.of(refused)
        return dict(work.counts)


def unsettled(graph: Graph, versions: Sequence[str]) -> list[Diagnostic]:
    """P378 for the nodes of a graph that are not known to be right on some releases."""
    return _Legalization(graph, versions).refused()


class _Legalization:
    """One run of the pass.

    Attributes:
        counts: how many nodes of each operator were said in terms of others.
    """

    def __init__(self, graph: Graph, versions: Sequence[str]) -> None:
        self.graph = graph
        self.versions = versions
        self.counts: Counter[str] = Counter()
        self._origins: dict[Node, str] = {}
        self._seen: set[Node] = set()

    def round(self) -> bool:
        """Say what is not right in terms of others, one step far; True when anything was changed.

        What follows from constants alone waits for one round: it is folded in between.
        """
        changed = False
        if self.graph.opsets.get("", 0) < OLDEST:
            return False
        for node in self._nodes():
            if not self._stands(node) or self._reason(node) is None:
                continue
            if node not in self._seen and node.inputs and all(x is None or x.const is not None for x in node.inputs):
                self._seen.add(node)
                changed = True
                continue
            origin = self._origins.get(node, node.op)
            made = _rewritten(node, self.counts)
            if made is not None:
                changed = True
                self._origins.update(dict.fromkeys(made, origin))
        return changed

    def refused(self) -> list[Diagnostic]:
        """What is wrong with the nodes that are left; those of one operator that lack the same together."""
        alike: dict[tuple[str, str, str], list[Node]] = {}
        for node in self._nodes():
            reason = self._reason(node)
            if reason is not None:
                alike.setdefault((node.op, self._origins.get(node, node.op), reason), []).append(node)
        return [self._refusal(nodes, reason) for (_, _, reason), nodes in alike.items()]

    def _nodes(self) -> list[Node]:
        return [node for one in self.graph.graphs() for node in one.nodes]

    def _stands(self, node: Node) -> bool:
        """True for a node that is still in the graph, and so are all operators whose bodies it is in."""
        found = node.graph
        while found is not None and found is not self.graph:
            found = found.owner.graph if found.owner is not None else None
        return found is self.graph

    def _reason(self, node: Node) -> str | None:
        opset = opsets_of(node.home).get("", 0)
        if opset < OLDEST:
            return f"the graph is of opset {opset} and cannot be brought to {OLDEST}"
        return why_not(node, self.versions)

    def _refusal(self, nodes: Sequence[Node], reason: str) -> Diagnostic:
        node = nodes[0]
        origin = self._origins.get(node, node.op)
        what = node.op if node.op == origin else f"{node.op}, which stands for {origin},"
        more = f", and {len(nodes) - 1} more" if nodes[1:] else ""
        where = f"{node.loc or node.name or node.outputs[0].name}{more}\n{node!r}"
        hint = "--to onnx runs it in onnxruntime" + (", or choose one release as --target" if self.versions[1:] else "")
        return Diagnostic("P378", f"{what} has no form that MNN computes right: {reason}", where, hint)


def _rewritten(node: Node, counts: Counter[str]) -> Sequence[Node] | None:
    """Replace a node by the first of its rewrites that has something to say, or by ONNX's own function; the new nodes, those
    of the bodies of control flow too. None when there is nothing."""
    op = node.op
    for rewrite in REWRITES.get(op, ()):
        made = _replaced(node, rewrite(node, b := Build(node)), b)
        if made is not None:
            counts[op] += 1
            return made
    body = schema_body(node)
    if body is None:
        return None
    b = Build(node)
    try:
        made = _replaced(node, write_out(node, b, body), b)
    except TypeMismatch:
        for inner in reversed(b.made):
            b.graph.erase(inner)
        return None
    counts[f"{op} (body)"] += 1
    return made


def _replaced(node: Node, results: Sequence[Value | None] | None, b: Build) -> list[Node] | None:
    if results is None:
        return None
    graph = node.home
    names: list[tuple[Value, str]] = []
    fresh = set(b.made)
    taken: set[Value] = set()
    for old, new in zip(node.outputs, results, strict=False):
        if new is None or not old.use_count:
            continue
        if new.producer not in fresh or new in taken:
            new = b.add("Identity", new)
        taken.add(new)
        graph.set_type(new, old.type or new.type)
        graph.replace(old, new)
        names.append((new, old.name))
    made = [each for inner in b.made for each in (inner, *(deep for sub in inner.subgraphs for deep in sub.walk()))]
    graph.erase(node)
    for value, name in names:
        graph.rename(value, name)
    return made
