"""Squared ReLUs as one operator, which a runtime can compute in one walk over its data."""

from __future__ import annotations

from dataclasses import dataclass

from ir.graph.graph import Graph, Value
from passes.framework.base import Pass, Result
from passes.framework.context import PassContext
from passes.framework.options import option
from passes.rewrite.patterns import Const, Match, Op, Var
from passes.rewrite.rules import Rewriter, RuleSet, rule

x = Var("x")


@rule(Op("Mul", Op("Relu", x), Op("Relu", x)))
def product_to_squared_relu(m: Match, rw: Rewriter) -> Value | None:
    """Relu(x) * Relu(x) is SquaredRelu(x)."""
    return rw.op("example.SquaredRelu", m.x)


@rule(Op("Pow", Op("Relu", x), Const("exponent")))
def power_to_squared_relu(m: Match, rw: Rewriter) -> Value | None:
    """Relu(x) ** 2 is SquaredRelu(x)."""
    if not rw.env.powers:
        return m.skip("powers are to be left alone")
    if m.exponent.type.size != 1 or m.exponent.const.load().item() != 2:
        return m.skip("the exponent is not 2")
    return rw.op("example.SquaredRelu", m.x)


@dataclass(frozen=True)
class FuseSquaredRelu(Pass):
    """Replace squared ReLUs, written as products or powers, by example.SquaredRelu."""

    name = "fuse-squared-relu"
    requires = ("typed",)

    powers: bool = option(True, help="also replace powers with the exponent 2")

    def run(self, graph: Graph, ctx: PassContext) -> Result:
        """See `Pass.run`."""
        counts = ctx.rewrite(graph, RuleSet(product_to_squared_relu, power_to_squared_relu), env=self)
        if counts:
            graph.opsets.setdefault("example", 1)
        return counts
