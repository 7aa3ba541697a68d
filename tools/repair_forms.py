"""Rotary embedding as exporters write it, spelled as the pass ``fuse-mnn`` knows it.

Exporters keep tables of angles whose two halves are the same numbers, and turn a head as ``x * cos + half(x) * sin``, where
``half`` swaps the halves and negates one. Spelled by halves every product and every sum is the same, so is each bit.
"""

from __future__ import annotations

from ir.graph import Graph, Value
from passes.patterns import Attr, Const, Match, Op, Var
from passes.rewrite import Rewriter, RuleSet, rewrite, rule

_ELEMENTWISE = ("mnn.Unary", "mnn.Cast")

cos, sin, x = map(Var, ("cos", "sin", "x"))


def spell_rotations(graph: Graph) -> int:
    """Rewrite rotary embedding in a lifted graph; returns how many places were changed."""
    changed = sum(rewrite(graph, RuleSet(turn_by_halves)).counts.values())
    for node in graph.nodes:
        if node.op == "mnn.Slice" and _is_half(node.inputs[0], node.attrs) and node.outputs[1].use_count:
            graph.replace(node.outputs[1], node.outputs[0])
            changed += 1
    return changed


def _is_half(table: Value | None, attrs) -> bool:
    """True for a cut of ``[1, seq, 1, size]`` into two halves that hold the same numbers."""
    if table is None or table.shape is None or len(table.shape) != 4 or tuple(attrs.get("points", ())) == ():
        return False
    size = table.shape[3]
    middle = attrs.get("axis") == 3 and type(size) is int and tuple(attrs["points"]) == (size // 2,) and size % 2 == 0
    return middle and table.shape[2] == 1 and halves_agree(table)


def halves_agree(table: Value) -> bool:
    """True when a value is known to repeat along its last axis: behind a concatenation of one value with itself there is
    nothing but operators on single elements, reshapes and choices that leave the last axis alone."""
    value = table
    while (node := value.producer) is not None:
        source = node.inputs[0]
        if node.op == "mnn.Concat":
            last = node.attrs.get("axis") == len(value.shape) - 1  # type: ignore[arg-type]
            if last:
                return len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
            return all(item is not None and halves_agree(item) for item in node.inputs)
        chooses = node.op == "mnn.GatherV2" and len(node.inputs) == 2 and len(source.shape) > 1
        if node.op not in _ELEMENTWISE and not chooses and node.op != "mnn.Reshape":
            return False
        if source is None or source.shape is None or source.shape[-1:] != table.shape[-1:]:  # type: ignore[index]
            return False
        value = source
    return False


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
            Op("mnn.Concat", Op("mnn.Unary", _cut("high"), attrs={"kind": "NEG"}), _cut("low"), attrs={"axis": Attr("axis")}),
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
    bounds = [[int(m[f"{name}_{part}"].const.load().item()) for part in ("begin", "end", "axis", "step")]
              for name in ("high", "low")]  # fmt: skip
    if bounds[0][0] != half or bounds[0][1] < shape[3] or bounds[1][:2] != [0, half] or any(b[2:] != [3, 1] for b in bounds):
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
