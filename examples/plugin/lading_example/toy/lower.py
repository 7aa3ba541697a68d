"""The pass that turns products and activations into layers, and the fact in which it records how many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ir.base.diag import Diagnostic
from ir.graph.graph import Fact, Graph, Node, Value
from passes.framework.base import Pass, Result
from passes.framework.context import PassContext
from passes.rewrite.patterns import Match, Op, Var
from passes.rewrite.rules import Rewriter, RuleSet, rule

x, weight = Var("x"), Var("weight")


def _is_bare(node: Node) -> bool:
    return node.attrs.get("activation", "none") == "none"


BARE = Op("toy.Dense", x, weight, when=_is_bare)


@rule(Op("MatMul", x, weight))
def product(m: Match, rw: Rewriter) -> Value | None:
    """x @ weight is a layer without an activation."""
    return rw.op("toy.Dense", m.x, m.weight)


@rule(Op("Relu", BARE))
def rectified(m: Match, rw: Rewriter) -> Value | None:
    """Relu of a layer belongs to it."""
    return rw.op("toy.Dense", m.x, m.weight, attrs={"activation": "relu"})


@rule(Op("example.SquaredRelu", BARE))
def squared(m: Match, rw: Rewriter) -> Value | None:
    """SquaredRelu of a layer belongs to it."""
    return rw.op("toy.Dense", m.x, m.weight, attrs={"activation": "squared-relu"})


@dataclass(frozen=True)
class ToyLayers(Fact):
    """How many layers the toy runtime will run."""

    name: ClassVar[str] = "toy-layers"

    count: int

    def to_data(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"count": self.count}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> ToyLayers:
        """Inverse of `to_data`."""
        return cls(int(data["count"]))

    def check(self, graph: Graph) -> list[Diagnostic]:
        """The layers are still there."""
        found = sum(node.op == "toy.Dense" for node in graph.nodes)
        if found == self.count:
            return []
        return [Diagnostic("I130", f"{found} layers where {self.count} were recorded", graph.name)]


@dataclass(frozen=True)
class LowerToToy(Pass):
    """Make layers of the toy runtime of matrix products and the activations behind them."""

    name = "lower-to-toy"
    requires = ("typed",)
    establishes = ("toy",)

    def run(self, graph: Graph, ctx: PassContext) -> Result:
        """See `Pass.run`."""
        counts = ctx.rewrite(graph, RuleSet(product, rectified, squared), env=self)
        graph.opsets.setdefault("toy", 1)
        graph.set_fact(ToyLayers.name, ToyLayers(sum(node.op == "toy.Dense" for node in graph.nodes)))
        return counts
