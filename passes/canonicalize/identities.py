"""Operations that give back what they are given, each removed only when types or constants prove it.

Two symbolic dimensions are the same size only when they have the same name, so a reshape between shapes that merely
look alike stays.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import numpy as np

from ir.base.types import Dim, DType, TensorType, ValueType, dtype_of_onnx
from ir.graph.graph import Value
from ir.infer.inference import is_sound
from ir.ops.registry import opdef
from passes.rewrite.patterns import SCAN_LIMIT, Attr, Const, Match, Maybe, Op, Pattern, Rest, Var, is_filled
from passes.rewrite.rules import Replacement, Rewriter, Rule, RuleSet
from passes.rewrite.rules import rule as unguarded

x = Var("x")


def rule(pattern: Pattern) -> Callable[[Callable[[Match, Rewriter], Replacement]], Rule]:
    """A rule of one output that leaves nodes alone which break the declaration of their operator.

    It also leaves a node whose recorded type its replacement could not have, so that type inference can report it.
    """

    def make(function: Callable[[Match, Rewriter], Replacement]) -> Rule:
        @wraps(function)
        def guarded(m: Match, rw: Rewriter) -> Replacement:
            if not all(map(is_sound, m.nodes)):
                return m.skip("a node breaks the declaration of its operator")
            result = function(m, rw)
            if isinstance(result, Value) and not may_be_same(result.type, m.output.type):
                return m.skip("the recorded type cannot be true")
            return result

        return unguarded(pattern)(guarded)

    return make


def may_be_same(a: ValueType | None, b: ValueType | None) -> bool:
    """False when two types cannot be those of one value; a symbolic dimension may be any number."""
    if a is None or b is None or a == b:
        return True
    if not isinstance(a, TensorType) or not isinstance(b, TensorType):
        return type(a) is type(b)
    if a.dtype != b.dtype:
        return False
    if a.shape is None or b.shape is None:
        return True
    return len(a.shape) == len(b.shape) and all(
        x == y or isinstance(x, Dim) or isinstance(y, Dim) for x, y in zip(a.shape, b.shape, strict=True)
    )


def same_type(a: Value, b: Value) -> bool:
    """True when both have the same element type and, by number or name, the same dimensions."""
    return isinstance(a.type, TensorType) and a.type.shape is not None and a.type == b.type


def small_ints(value: Value | None) -> tuple[int, ...] | None:
    """Elements of a small constant integer tensor, or None."""
    if value is None or value.const is None or value.const.type.dtype.kind not in "iu":
        return None
    if value.const.nbytes > SCAN_LIMIT:
        return None
    return tuple(int(item) for item in value.const.load().reshape(-1))


def represents(wide: DType, narrow: DType) -> bool:
    """True when every value of `narrow` is a value of `wide`, so that a cast there and back loses nothing."""
    if wide == narrow:
        return True
    if narrow.kind == "b":
        return wide.kind in "iuf"
    if wide.kind == "f" and narrow.kind == "f":
        return (narrow.name, wide.name) in _WIDER_FLOATS
    if wide.kind == "f" and narrow.is_integer:
        return narrow.bits <= {"f64": 53, "f32": 24, "f16": 11, "bf16": 8}.get(wide.name, 0)
    return wide.is_integer and narrow.is_integer and wide.low <= narrow.low and narrow.high <= wide.high


_WIDER_FLOATS = {
    (narrow, wide)
    for wide, narrows in {
        "f64": ("f32", "f16", "bf16", "f8e4m3fn", "f8e5m2", "f8e4m3fnuz", "f8e5m2fnuz", "f4e2m1", "f8e8m0"),
        "f32": ("f16", "bf16", "f8e4m3fn", "f8e5m2", "f8e4m3fnuz", "f8e5m2fnuz", "f4e2m1", "f8e8m0"),
        "f16": ("f8e4m3fn", "f8e5m2", "f8e4m3fnuz", "f8e5m2fnuz", "f4e2m1"),
        "bf16": ("f8e4m3fn", "f8e5m2", "f8e4m3fnuz", "f8e5m2fnuz", "f4e2m1", "f8e8m0"),
    }.items()
    for narrow in narrows
}


@rule(Op("Identity", x))
def drop_identity(m: Match, rw: Rewriter) -> Value:
    """Identity(x) is x."""
    return m.x


@rule(Op("Dropout", x, Maybe(Var("ratio")), Maybe(Var("training"))))
def drop_dropout(m: Match, rw: Rewriter) -> Value | None:
    """Dropout outside of training is its input."""
    definition = opdef(m.root)
    old = definition is not None and "is_test" in definition.attrs
    if (old and not m.root.attrs.get("is_test")) or (m.training is not None and not is_filled(m.training, 0)):
        return m.skip("it may run in training mode")
    if len(m.root.outputs) > 1:
        return m.skip("its mask is an output")
    return m.x


@rule(Op("Cast", x, attrs={"to": Attr("to")}))
def drop_cast(m: Match, rw: Rewriter) -> Value | None:
    """Cast to the element type that the value has, whatever its shape."""
    kind = m.x.type.dtype if isinstance(m.x.type, TensorType) else None
    same = kind is not None and kind.onnx == m.to and kind == dtype_of_onnx(kind.onnx)
    return m.x if same else m.skip("the element type changes or is unknown")


@rule(Op("Cast", Op("Cast", x, name="inner")))
def drop_cast_there_and_back(m: Match, rw: Rewriter) -> Value | None:
    """Cast to a type that holds every value, and back."""
    if not same_type(m.x, m.output) or not isinstance(m.inner.type, TensorType):
        return m.skip("the types differ or are unknown")
    if not represents(m.inner.type.dtype, m.x.type.dtype):
        return m.skip(f"{m.inner.type.dtype} does not hold every {m.x.type.dtype}")
    return m.x


@rule(Op("Reshape|Flatten|Squeeze|Unsqueeze|Expand", x, Rest("others")))
def drop_reshape(m: Match, rw: Rewriter) -> Value | None:
    """A reshape to the same shape; these operators keep the order of elements, so the shape tells all."""
    return m.x if same_type(m.x, m.output) else m.skip("the shape changes or is unknown")


@rule(Op("Transpose", x, attrs={"perm": Attr("perm")}))
def drop_transpose(m: Match, rw: Rewriter) -> Value | None:
    """Transpose that keeps every axis in place."""
    rank = m.x.type.rank if isinstance(m.x.type, TensorType) else None
    if m.perm is None and rank not in (0, 1):
        return m.skip("the axes are reversed")
    if m.perm is not None and m.perm != tuple(range(len(m.perm))):
        return m.skip("axes move")
    return m.x


@rule(Op("Concat|Sum|Max|Min|Mean", x))
def drop_join_of_one(m: Match, rw: Rewriter) -> Value:
    """Joining one value is that value."""
    return m.x


@rule(Op("Slice", x, Var("starts"), Var("ends"), Maybe(Var("axes")), Maybe(Const("steps"))))
def drop_slice(m: Match, rw: Rewriter) -> Value | None:
    """A slice forward by ones that is as long as its input on every axis."""
    if m.steps is not None and not is_filled(m.steps, 1):
        return m.skip("the step is not 1")
    return m.x if same_type(m.x, m.output) else m.skip("the shape changes or is unknown")


@rule(Op("Pad", x, Const("pads"), Rest("others")))
def drop_pad(m: Match, rw: Rewriter) -> Value | None:
    """Padding by nothing."""
    return m.x if is_filled(m.pads, 0) else m.skip("the pads are not all 0")


@rule(Op("Tile", x, Const("repeats", value=1)))
def drop_tile(m: Match, rw: Rewriter) -> Value:
    """One copy."""
    return m.x


def _neutral(m: Match) -> Value | None:
    return m.x if same_type(m.x, m.output) else m.skip("the constant makes the shape larger, or types are unknown")


@rule(Op("Add", x, Const("c", value=0), any_order=True) | Op("Sub", x, Const("c", value=0)))
def drop_add_zero(m: Match, rw: Rewriter) -> Value | None:
    """x + 0 and x - 0. In floats this makes no difference but for the sign of a zero: -0.0 + 0.0 is 0.0."""
    return _neutral(m)


@rule(Op("Mul", x, Const("c", value=1), any_order=True) | Op("Div|Pow", x, Const("c", value=1)))
def drop_times_one(m: Match, rw: Rewriter) -> Value | None:
    """x * 1, x / 1 and x ** 1."""
    return _neutral(m)


@rule(Op("And", x, Const("c", value=1), any_order=True) | Op("Or|Xor", x, Const("c", value=0), any_order=True))
def drop_neutral_logic(m: Match, rw: Rewriter) -> Value | None:
    """x and true, x or false, x xor false."""
    return _neutral(m)


@rule(Op("Where", Const("condition"), Var("yes"), Var("no")))
def choose_branch(m: Match, rw: Rewriter) -> Value | None:
    """Where with a condition that is the same everywhere."""
    for value, number in ((m.yes, 1), (m.no, 0)):
        if is_filled(m.condition, number):
            return value if same_type(value, m.output) else m.skip("the chosen value is broadcast")
    return m.skip("the condition varies")


@rule(Op("Range", Rest("ends")))
def range_of_scalars(m: Match, rw: Rewriter) -> Value | None:
    """Ends that are vectors of one element are the numbers in them, which is how runtimes take them."""
    if not any(_is_one_number(end) for end in m.ends):
        return m.skip("its operands are scalars, or of unknown rank")
    none = rw.const(np.zeros(0, np.int64))
    ends = [
        rw.op("Reshape", end, none, types=[TensorType(end.dtype, ())]) if _is_one_number(end) else end for end in m.ends
    ]
    return rw.op("Range", *ends, attrs=m.root.attrs, types=[m.output.type])


def _is_one_number(value: Value | None) -> bool:
    return value is not None and isinstance(value.type, TensorType) and value.type.shape == (1,)


IDENTITIES = RuleSet(
    range_of_scalars,
    drop_identity,
    drop_dropout,
    drop_cast,
    drop_cast_there_and_back,
    drop_reshape,
    drop_transpose,
    drop_join_of_one,
    drop_slice,
    drop_pad,
    drop_tile,
    drop_add_zero,
    drop_times_one,
    drop_neutral_logic,
    choose_branch,
)
