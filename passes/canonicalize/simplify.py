"""Neighbouring operations that are one operation, and one spelling for expressions that have several."""

from __future__ import annotations

from dataclasses import dataclass

from ir.base.types import TensorType
from ir.graph.graph import Graph, Value
from ir.infer.inference import is_sound
from ir.ops.registry import COMMUTATIVE
from passes.canonicalize.identities import represents, rule, same_type, small_ints
from passes.canonicalize.rules.reshapes import MOVES, RESHAPES
from passes.canonicalize.rules.slices import SLICES
from passes.framework.base import Pass, Result
from passes.framework.context import PassContext
from passes.rewrite.patterns import Attr, Const, Match, Op, Rest, Var
from passes.rewrite.rules import Rewriter, RuleSet

x, y = Var("x"), Var("y")


@dataclass(frozen=True)
class Simplify(Pass):
    """Join neighbouring reshapes, slices, transposes, casts and concatenations, and write commutative operators one way.

    Computed shapes that types tell become constants.

    Nothing is computed in another order, so results stay bit for bit.
    """

    name = "simplify"

    def run(self, graph: Graph, ctx: PassContext) -> Result:
        """See `Pass.run`."""
        return ctx.rewrite(graph, SIMPLIFY, env=self)


@rule(Op("Transpose", Op("Transpose", x, attrs={"perm": Attr("first")}), attrs={"perm": Attr("second")}))
def join_transposes(m: Match, rw: Rewriter) -> Value | None:
    """Two transposes are one, or none."""
    if m.first is None or m.second is None:
        return x_reversed_twice(m)
    if sorted(m.first) != sorted(m.second) or sorted(m.first) != list(range(len(m.first))):
        return m.skip("they are not permutations of the same axes")
    perm = tuple(m.first[axis] for axis in m.second)
    if perm == tuple(range(len(perm))):
        return m.x
    return rw.op("Transpose", m.x, attrs={"perm": perm}, types=[m.output.type])


def x_reversed_twice(m: Match) -> Value | None:
    """The input when both transposes reverse all axes."""
    return m.x if m.first is None and m.second is None else m.skip("the rank is not known from both permutations")


@rule(Op("Reshape", Op(MOVES, x, Rest("others")), Const("shape"), attrs={"allowzero": Attr("allowzero")}))
def join_reshapes(m: Match, rw: Rewriter) -> Value | None:
    """A reshape of a reshape forgets the first, unless it copies a dimension of it."""
    shape = small_ints(m.shape)
    if shape is None or (0 in shape and not m.allowzero):
        return m.skip("the second shape copies a dimension of the first")
    attrs = {"allowzero": 1} if m.allowzero else None
    return rw.op("Reshape", m.x, m.shape, attrs=attrs, types=[m.output.type])


@rule(Op(MOVES, Op(MOVES, x, Rest("inner")), Rest("outer")))
def undo_reshape(m: Match, rw: Rewriter) -> Value | None:
    """A reshape and the way back."""
    return m.x if same_type(m.x, m.output) else m.skip("the shape is another one, or unknown")


@rule(Op("Cast", Op("Cast", x, name="inner")))
def join_casts(m: Match, rw: Rewriter) -> Value | None:
    """A cast by way of a type that holds every value is direct."""
    types = (m.x.type, m.inner.type, m.output.type)
    if not all(isinstance(one, TensorType) and one.dtype.kind != "s" for one in types):
        return m.skip("a type is unknown, or numbers become text")
    if not represents(m.inner.type.dtype, m.x.type.dtype):
        return m.skip(f"{m.inner.type.dtype} does not hold every {m.x.type.dtype}")
    return rw.op("Cast", m.x, attrs=m.root.attrs, types=[m.output.type])


@rule(Op("Concat", Rest("parts"), attrs={"axis": Attr("axis")}))
def join_concats(m: Match, rw: Rewriter) -> Value | None:
    """A concatenation of concatenations along the same axis is one."""
    flat: list[Value | None] = []
    for part in m.parts:
        inner = part.producer if part is not None else None
        joins = inner is not None and inner.op == "Concat" and inner.attrs.get("axis") == m.axis
        if inner is not None and joins and part.use_count == 1 and is_sound(inner):
            flat.extend(inner.inputs)
        else:
            flat.append(part)
    if len(flat) == len(m.parts):
        return m.skip("no part is a concatenation of its own along this axis")
    return rw.op("Concat", *flat, attrs={"axis": m.axis}, types=[m.output.type])


@rule(Op("Neg|Not", Op("Neg|Not", x, name="inner")))
def undo_negation(m: Match, rw: Rewriter) -> Value | None:
    """Twice negated is not negated."""
    return m.x if m.root.op == m.node("inner").op else m.skip("the two operators differ")


@rule(Op("Relu|Abs|Ceil|Floor|Round|Sign", x))
def drop_repeated(m: Match, rw: Rewriter) -> Value | None:
    """Operators that do nothing the second time."""
    inner = m.x.producer
    return m.x if inner is not None and inner.op == m.root.op else m.skip("its input is made by another operator")


@rule(Op("|".join(sorted(COMMUTATIVE - {"Max", "Min", "Mean", "Sum"})), Const("c"), y))
def constant_to_the_right(m: Match, rw: Rewriter) -> Value | None:
    """The constant of a commutative operator is its second operand."""
    if m.y.const is not None:
        return m.skip("both operands are constants")
    return rw.op(m.root.op, m.y, m.c, attrs=m.root.attrs, types=[m.output.type])


@rule(Op("Add|Mul", Op("Add|Mul", x, Const("a"), name="inner"), Const("b")))
def join_integer_constants(m: Match, rw: Rewriter) -> Value | None:
    """(x + a) + b is x + (a + b) for integers; floats would round differently."""
    kind = m.x.type.dtype if isinstance(m.x.type, TensorType) else None
    if kind is None or not kind.is_integer or m.root.op != m.node("inner").op:
        return m.skip("not the same operator on integers")
    both = rw.op(m.root.op, m.a, m.b)
    return rw.op(m.root.op, m.x, both, types=[m.output.type])


SIMPLIFY = RuleSet(
    join_transposes,
    undo_reshape,
    join_reshapes,
    join_casts,
    join_concats,
    undo_negation,
    drop_repeated,
    constant_to_the_right,
    join_integer_constants,
    RESHAPES,
    SLICES,
)
