"""What exporters write, spelled as the passes ``sink-layouts`` and ``fuse-mnn`` know it.

Sums and products between layers come as ``[seq, channels, 1, 1]`` and are known as ``[1, seq, channels]``. Tables of
angles have two halves of the same numbers, and a head is turned as ``x * cos + half(x) * sin``, where ``half`` swaps
the halves and negates one; it is known by halves. Every product and every sum stays the same, so does each bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ir.base.types import TensorType
from ir.graph.graph import Graph, Value
from passes.rewrite.driver import rewrite
from passes.rewrite.patterns import Attr, Const, Match, Op, Var
from passes.rewrite.rules import Rewriter, RuleSet, rule

_ELEMENTWISE = ("mnn.Unary", "mnn.Cast")

cos, sin, x = map(Var, ("cos", "sin", "x"))


def spell_channels(graph: Graph) -> int:
    """Rewrite functions of single elements of ``[seq, channels, 1, 1]``; returns how many."""
    return rewrite(graph, RuleSet(binary_of_channels, unary_of_channels)).hits


def spell_rotations(graph: Graph) -> int:
    """Rewrite rotary embedding in a lifted graph; returns how many places were changed."""
    changed = rewrite(graph, RuleSet(turn_by_halves)).hits
    for node in graph.nodes:
        if node.op == "mnn.Slice" and _is_half(node.inputs[0], node.attrs) and node.outputs[1].use_count:
            graph.replace(node.outputs[1], node.outputs[0])
            changed += 1
    return changed


def _is_half(table: Value | None, attrs: Mapping[str, Any]) -> bool:
    """True for a cut of ``[1, seq, 1, size]`` into two halves that hold the same numbers."""
    if table is None or table.shape is None or len(table.shape) != 4 or table.shape[2] != 1 or attrs["axis"] != 3:
        return False
    size = table.shape[3]
    return type(size) is int and size % 2 == 0 and tuple(attrs["points"]) == (size // 2,) and halves_agree(table)


def halves_agree(table: Value) -> bool:
    """True when a value is known to repeat along its last axis: behind a concatenation of one value with itself there
    is nothing but operators on single elements, reshapes and choices that leave the last axis alone."""
    value = table
    while (node := value.producer) is not None:
        source = node.input(0)
        if node.op == "mnn.Concat":
            if value.rank is not None and node.attrs.get("axis") == value.rank - 1:
                return len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
            return all(item is not None and halves_agree(item) for item in node.inputs)
        if source is None or source.shape is None:
            return False
        chooses = node.op == "mnn.GatherV2" and len(node.inputs) == 2 and len(source.shape) > 1
        if node.op not in _ELEMENTWISE and not chooses and node.op != "mnn.Reshape":
            return False
        if source.shape[-1:] != table.dims[-1:]:
            return False
        value = source
    return False


def _channels(value: Value) -> bool:
    shape = value.shape
    return shape is not None and len(shape) == 4 and shape[2:] == (1, 1) and type(shape[1]) is int


def _by_rows(m: Match, rw: Rewriter, op: str, *inputs: Value) -> Value:
    """An operator on single elements, between reshapes to ``[1, seq, channels]`` and back."""
    seq, channels = inputs[0].dims[:2]
    wide = TensorType(inputs[0].dtype, (1, seq, channels))
    flat = [
        rw.op("mnn.Reshape", value, attrs={"dims": (1, -1, channels), "dim_type": "NCHW"}, types=[wide])
        for value in inputs
    ]
    found = rw.op(op, *flat, attrs={"kind": m.kind}, types=[wide])
    attrs = {"dims": (-1, channels, 1, 1), "dim_type": "NCHW"}
    return rw.op("mnn.Reshape", found, attrs=attrs, types=[m.output.type])


@rule(Op("mnn.Binary", x, Var("y"), attrs={"kind": Attr("kind")}))
def binary_of_channels(m: Match, rw: Rewriter) -> Value | None:
    """Sum or product of two tensors of one shape."""
    if not _channels(m.x) or m.x.type != m.y.type or m.x.type != m.output.type:
        return m.skip("not two tensors [seq, channels, 1, 1] of one type")
    return _by_rows(m, rw, "mnn.Binary", m.x, m.y)


@rule(Op("mnn.Unary", x, attrs={"kind": Attr("kind")}))
def unary_of_channels(m: Match, rw: Rewriter) -> Value | None:
    """A function of each element."""
    if not _channels(m.x) or m.x.type != m.output.type:
        return m.skip("not a tensor [seq, channels, 1, 1]")
    return _by_rows(m, rw, "mnn.Unary", m.x)


def _product(left: Var | Op, right: Var) -> Op:
    return Op("mnn.Binary", left, right, any_order=True, attrs={"kind": "MUL"})


def _cut(name: str) -> Op:
    parts = (Const(f"{name}_{part}") for part in ("begin", "end", "axis", "step"))
    return Op("mnn.StridedSlice", x, *parts)


@rule(
    Op(
        "mnn.Binary",
        _product(x, cos),
        _product(
            Op(
                "mnn.Concat",
                Op("mnn.Unary", _cut("high"), attrs={"kind": "NEG"}),
                _cut("low"),
                attrs={"axis": Attr("axis")},
            ),
            sin,
        ),
        any_order=True,
        attrs={"kind": "ADD"},
    )
)
def turn_by_halves(m: Match, rw: Rewriter) -> Value | None:
    """``x * cos + concat(-high(x), low(x)) * sin``."""
    shape, table = m.x.shape, m.cos.shape
    if shape is None or len(shape) != 4 or type(shape[3]) is not int or shape[3] % 2 or m.axis != 3:
        return m.skip("not heads [1, seq, heads, size]")
    if table != (shape[0], shape[1], 1, shape[3]) or m.sin.shape != table:
        return m.skip("not angles of [1, seq, 1, size]")
    half = shape[3] // 2
    bounds = [[int(getattr(m, f"{name}_{part}").const.load().item()) for part in ("begin", "end", "axis", "step")]
              for name in ("high", "low")]  # fmt: skip
    if (
        bounds[0][0] != half
        or bounds[0][1] < shape[3]
        or bounds[1][:2] != [0, half]
        or any(b[2:] != [3, 1] for b in bounds)
    ):
        return m.skip("not the two halves")
    if not (halves_agree(m.cos) and halves_agree(m.sin)):
        return m.skip("the angles of the halves may differ")

    def binary(kind: str, left: Value, right: Value) -> Value:
        return rw.op("mnn.Binary", left, right, attrs={"kind": kind})

    cut = {"axis": 3, "points": (half,)}
    (low, high), (c, _), (s, _) = (rw.op("mnn.Slice", value, attrs=cut, outputs=2) for value in (m.x, m.cos, m.sin))
    first = binary("SUB", binary("MUL", low, c), binary("MUL", high, s))
    second = binary("ADD", binary("MUL", high, c), binary("MUL", low, s))
    return rw.op("mnn.Concat", first, second, attrs={"axis": 3})
