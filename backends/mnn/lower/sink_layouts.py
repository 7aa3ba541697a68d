"""Keep values in MNN's packed layout between convolutions instead of unpacking and packing them again."""

from __future__ import annotations

from dataclasses import dataclass

from ir.base.types import ValueType
from ir.graph.graph import Graph, Value
from passes.framework.base import Pass, Result
from passes.framework.context import PassContext
from passes.rewrite.patterns import Attr, Match, Op, Var
from passes.rewrite.rules import Rewriter, RuleSet, rule

x, a, b = Var("x"), Var("a"), Var("b")
PACK = {"source": "NCHW", "dest": "NC4HW4"}
UNPACK = {"source": "NC4HW4", "dest": "NCHW"}


@dataclass(frozen=True)
class SinkLayouts(Pass):
    """Move conversions out of the packed layout behind element-wise operators and drop those that cancel.

    Between two convolutions, such as the gate and down projections of a feed-forward block, nothing is converted then.
    Element-wise operators on packed values are right on every MNN release with a language-model runtime.
    """

    name = "sink-layouts"
    requires = ("mnn",)
    establishes = ("mnn",)

    def run(self, graph: Graph, ctx: PassContext) -> Result:
        """See `Pass.run`."""
        return ctx.rewrite(graph, SINK, env=self)


@rule(Op("mnn.Reshape", Op("mnn.Reshape", x), attrs={"dims": Attr("dims")}))
def join_reshapes(m: Match, rw: Rewriter) -> Value | None:
    """A reshape of a reshape forgets the first, unless it copies a dimension of it."""
    if 0 in m.dims:
        return m.skip("a size is copied from the first")
    return rw.op("mnn.Reshape", m.x, attrs={"dims": m.dims, "dim_type": "NCHW"}, types=[m.output.type])


@rule(Op("mnn.Reshape", x))
def drop_reshape(m: Match, rw: Rewriter) -> Value | None:
    """A reshape to the same shape does nothing."""
    same = m.x.type == m.output.type and m.x.type is not None
    return m.x if same else m.skip("the shape changes")


@rule(Op("mnn.ConvertTensor", Op("mnn.ConvertTensor", x, attrs=UNPACK), attrs=PACK))
def drop_conversions(m: Match, rw: Rewriter) -> Value | None:
    """Unpacking and packing again does nothing."""
    return m.x


@rule(
    Op(
        "mnn.Unary",
        Op("mnn.Reshape", Op("mnn.ConvertTensor", x, attrs=UNPACK, users=1), attrs={"dims": Attr("dims")}, users=1),
        attrs={"kind": Attr("kind")},
    )
)
def sink_below_unary(m: Match, rw: Rewriter) -> Value | None:
    """Compute on the packed value and unpack the result."""
    packed = rw.op("mnn.Unary", m.x, attrs={"kind": m.kind}, types=[m.x.type])
    return _unpacked(rw, packed, m.dims, m.output.type)


def _from_packed(value: Var) -> Op:
    return Op(
        "mnn.Reshape", Op("mnn.ConvertTensor", value, attrs=UNPACK, users=1), attrs={"dims": Attr("dims")}, users=1
    )


@rule(Op("mnn.Binary", _from_packed(a), _from_packed(b), attrs={"kind": Attr("kind")}))
def sink_below_binary(m: Match, rw: Rewriter) -> Value | None:
    """Compute on two packed values of one shape and unpack the result."""
    if m.a.type != m.b.type:
        return m.skip("the packed shapes differ")
    packed = rw.op("mnn.Binary", m.a, m.b, attrs={"kind": m.kind}, types=[m.a.type])
    return _unpacked(rw, packed, m.dims, m.output.type)


def _unpacked(rw: Rewriter, packed: Value, dims: tuple[int, ...], type_: ValueType | None) -> Value:
    plain = rw.op("mnn.ConvertTensor", packed, attrs=UNPACK, types=[packed.type])
    return rw.op("mnn.Reshape", plain, attrs={"dims": dims, "dim_type": "NCHW"}, types=[type_])


SINK = RuleSet(drop_reshape, join_reshapes, drop_conversions, sink_below_unary, sink_below_binary)
