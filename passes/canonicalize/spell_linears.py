"""One spelling for linear layers: a product with a matrix ``[in, out]``, and a sum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ir.base.types import TensorType
from ir.graph.graph import Graph, Value
from ir.tensor.rearranged import transposed
from passes.canonicalize.identities import rule
from passes.framework.base import Pass, Result
from passes.framework.context import PassContext
from passes.rewrite.patterns import Attr, Match, Maybe, Op, Var
from passes.rewrite.rules import Rewriter, RuleSet

a, b, c = Var("a"), Var("b"), Var("c")


@dataclass(frozen=True)
class SpellLinears(Pass):
    """Write ``Gemm`` as a product and a sum, its matrix transposed where it must be.

    Precision is assigned to the matrices of products, and runtimes look for those. No matrix is read: a transposed one
    is a recipe over the stored one. A factor of the product becomes an operator of its own.
    """

    name = "spell-linears"

    def run(self, graph: Graph, ctx: PassContext) -> Result:
        """See `Pass.run`."""
        return ctx.rewrite(graph, SPELL_LINEARS, env=self)


@rule(
    Op(
        "Gemm",
        a,
        b,
        Maybe(c),
        attrs={name: Attr(name) for name in ("alpha", "beta", "transA", "transB")},
    )
)
def product_and_sum(m: Match, rw: Rewriter) -> Value | None:
    """``alpha * a @ b + beta * c``."""
    if not isinstance(m.a.type, TensorType) or not m.a.dtype.is_float:
        return m.skip("products of integers stay as they are")
    left = rw.op("Transpose", m.a, attrs={"perm": (1, 0)}) if m.transA else m.a
    plain = m.alpha == 1 and not m.has("c")
    product = rw.op("MatMul", left, _upright(m, rw), types=[m.output.type] if plain else None)
    product = _times(rw, product, m.alpha)
    if not m.has("c"):
        return product
    return rw.op("Add", product, _times(rw, m.c, m.beta), types=[m.output.type])


def _upright(m: Match, rw: Rewriter) -> Value:
    """The matrix as ``[in, out]``."""
    if not m.transB:
        return m.b
    if m.b.const is not None:
        return rw.const(transposed(m.b.tensor), name=m.b.name)
    return rw.op("Transpose", m.b, attrs={"perm": (1, 0)})


def _times(rw: Rewriter, value: Value, factor: float) -> Value:
    if factor == 1:
        return value
    if value.const is not None:
        return rw.const((value.tensor.load() * factor).astype(value.dtype.numpy), name=value.name)
    return rw.op("Mul", value, rw.const(np.array(factor, value.dtype.numpy)))


SPELL_LINEARS = RuleSet(product_and_sum)
