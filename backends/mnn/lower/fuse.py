"""Use operators of MNN's newest releases that do in one step, on packed tensors, what earlier releases do in
several."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from backends.mnn.dialect.table import fused_forms
from backends.mnn.lower.sink_layouts import PACK, SINK, UNPACK
from backends.mnn.target.releases import MnnTarget
from ir.base.types import TensorType
from ir.graph.graph import Graph, GraphError, Value
from ir.target.target import Target
from passes.framework.base import Pass, Result
from passes.framework.context import PassContext
from passes.framework.options import option
from passes.rewrite.patterns import Attr, Const, Match, Maybe, Op, Rest, Var
from passes.rewrite.rules import Rewriter, RuleSet, rule

Form = Literal["auto", "mul-silu", "packed-attention", "packed-norm", "rope"]

LANES = 16
"""Most channels that MNN packs together on any processor. The fused operators leave the places behind the last channel
as they find them, so a width must fill whole packs to be read by a convolution."""

a, b, gamma, beta, mask, sinks, x = map(Var, ("a", "b", "gamma", "beta", "mask", "sinks", "x"))


@dataclass(frozen=True)
class FuseMnn(Pass):
    """Fuse operators into forms that only newer MNN releases have.

    Norms work on packed tensors and take the sum before them along, so that nothing is converted between two
    convolutions; rotary embedding of queries and keys is one operator, with the norms of the heads; attention reads and
    writes packed tensors; the product with SiLU is one operator. Each form fires only where it gives the same numbers.
    By default the forms are used that all releases of the target have.
    """

    name = "fuse-mnn"
    requires = ("mnn",)
    establishes = ("mnn",)

    fuse: tuple[Form, ...] = option(("auto",), help="forms to use; auto: those that every release of the target has")

    def run(self, graph: Graph, ctx: PassContext) -> Result:
        """See `Pass.run`."""
        forms = self.forms(ctx.target)
        wanted = [rules for form, rules in RULES.items() if form in forms]
        if not wanted:
            return None
        counts = ctx.rewrite(graph, RuleSet(SINK, *wanted), env=forms)
        if "packed-norm" in forms:
            counts |= ctx.rewrite(graph, SUMS, env=forms)
        return counts

    def forms(self, target: Target) -> tuple[str, ...]:
        """The forms to use: those named, and with ``auto`` those that every release of the target has."""
        named = tuple(form for form in self.fuse if form != "auto")
        automatic = fused_forms(target.releases) if "auto" in self.fuse and isinstance(target, MnnTarget) else ()
        return tuple(dict.fromkeys((*named, *automatic)))


# ---- packed values ----


def _unpacked_from(value: Value) -> Value | None:
    """The packed ``[rows, channels, 1, 1]`` of which a value ``[1, rows, ...]`` is the plain form, or None."""
    reshape = value.producer
    convert = reshape.operand(0).producer if reshape is not None and reshape.op == "mnn.Reshape" else None
    if convert is None or convert.op != "mnn.ConvertTensor" or dict(convert.attrs) != UNPACK:
        return None
    packed = convert.operand(0)
    return packed if packed.shape == _packed_shape(value) else None


def _packed_shape(value: Value) -> tuple[Any, ...] | None:
    shape = value.shape
    if shape is None or len(shape) < 3 or shape[0] != 1 or not all(type(size) is int for size in shape[2:]):
        return None
    return (shape[1], math.prod(shape[2:]), 1, 1)


def _packed(rw: Rewriter, value: Value) -> Value:
    """`value` ``[1, rows, ...]`` as ``[rows, channels, 1, 1]`` in the packed layout."""
    found = _unpacked_from(value)
    if found is not None:
        return found
    shape = _packed_shape(value)
    if shape is None:
        raise GraphError(f"%{value.name} is {value.type}, which has no packed form")
    type_ = TensorType(value.dtype, shape)
    flat = rw.op("mnn.Reshape", value, attrs={"dims": (-1, shape[1], 1, 1), "dim_type": "NCHW"}, types=[type_])
    return rw.op("mnn.ConvertTensor", flat, attrs=PACK, types=[type_])


def _plain(rw: Rewriter, packed: Value, old: Value) -> Value:
    """A packed value as ``[1, rows, ...]`` of the type of the value whose place it takes."""
    plain = rw.op("mnn.ConvertTensor", packed, attrs=UNPACK, types=[packed.type])
    dims = (1, -1, *old.dims[2:])
    return rw.op("mnn.Reshape", plain, attrs={"dims": dims, "dim_type": "NCHW"}, types=[old.type])


def _fills_packs(value: Value) -> bool:
    """True for ``[1, rows, channels]`` whose channels fill whole packs."""
    shape = _packed_shape(value)
    return shape is not None and value.rank == 3 and shape[1] % LANES == 0


# ---- norms ----


@rule(Op("mnn.LayerNorm", x, gamma, beta, attrs={"epsilon": Attr("epsilon"), "rms": Attr("rms"), "axis": Attr("axis")}))
def pack_norm(m: Match, rw: Rewriter) -> Value | None:
    """Normalize the channels of a packed tensor."""
    if not _fills_packs(m.x) or m.axis not in ((-1,), (2,)):
        return m.skip("not [1, rows, channels] with channels in whole packs")
    norm = rw.op("mnn.PackedNorm", _packed(rw, m.x), m.gamma, m.beta, attrs={"epsilon": m.epsilon, "rms": m.rms})
    return _plain(rw, norm, m.output)


@rule(Op("mnn.Binary", a, b, attrs={"kind": "ADD"}))
def pack_sum(m: Match, rw: Rewriter) -> Value | None:
    """Add where a term is packed already, as the sums between blocks are."""
    if m.a.type != m.b.type or not _fills_packs(m.a):
        return m.skip("the terms are not two [1, rows, channels] of one shape with channels in whole packs")
    if _unpacked_from(m.a) is None and _unpacked_from(m.b) is None:
        return m.skip("neither term is packed")
    total = rw.op("mnn.Binary", _packed(rw, m.a), _packed(rw, m.b), attrs={"kind": "ADD"})
    return _plain(rw, total, m.output)


@rule(Op("mnn.StridedSlice", x, Var("begin"), Var("end"), Const("axes", value=1), Maybe(Var("steps"))))
def pack_row_choice(m: Match, rw: Rewriter) -> Value | None:
    """Choose rows of a packed tensor, where they lie along the first axis."""
    packed = _unpacked_from(m.x) if _fills_packs(m.x) else None
    if packed is None or m.axes.type.size != 1:
        return m.skip("the operand is not packed")
    axes = rw.const(m.axes.const.load() * 0, name="axis")
    type_ = TensorType(m.x.dtype, _packed_shape(m.output))
    inputs = [packed, m.begin, m.end, axes, *((m.steps,) if m.has("steps") else ())]
    return _plain(rw, rw.op("mnn.StridedSlice", *inputs, types=[type_]), m.output)


@rule(Op("mnn.Binary", a, b, attrs={"kind": "ADD"}))
def add_and_norm(m: Match, rw: Rewriter) -> Value | None:
    """Let a packed norm take the sum before it along."""
    norm = next((node for node in m.output.users if node.op == "mnn.PackedNorm"), None)
    if norm is None or m.a.type != m.b.type:
        return m.skip("no packed norm reads the sum of two tensors of one shape")
    attrs = {name: norm.attrs[name] for name in ("epsilon", "rms")}
    return rw.op("mnn.AddNorm", m.a, m.b, *norm.inputs[1:], attrs=attrs, outputs=2)[0]


@rule(
    Op(
        "mnn.PackedNorm",
        Op(
            "mnn.AddNorm", Var(), Var(), gamma, beta, attrs={"epsilon": Attr("epsilon"), "rms": Attr("rms")}, name="sum"
        ),
        gamma,
        beta,
        attrs={"epsilon": Attr("epsilon"), "rms": Attr("rms")},
    )
)
def normed_already(m: Match, rw: Rewriter) -> Value | None:
    """The norm of a sum that comes with it."""
    return m.node("sum").outputs[1]


# ---- product with SiLU ----


@rule(Op("mnn.Binary", Op("mnn.Unary", x, attrs={"kind": "SILU"}), a, any_order=True, attrs={"kind": "MUL"}))
def mul_silu(m: Match, rw: Rewriter) -> Value | None:
    """One operator for a factor times SiLU of another."""
    return rw.op("mnn.MulSilu", m.a, m.x) if m.a.type == m.x.type else m.skip("the shapes differ")


# ---- rotary embedding ----


def _product(left: Any, right: Any) -> Op:
    return Op("mnn.Binary", left, right, attrs={"kind": "MUL"})


def _turned(name: str) -> Op:
    """Rotation of ``[1, S, heads, size]`` by halves; binds `name` and, behind it, ``_points``, ``_cos`` and
    ``_sin``."""
    cut = {"axis": 3, "points": Attr(f"{name}_points")}
    left, right = (Op("mnn.Slice", Var(name), attrs=cut, out=place) for place in (0, 1))
    cos, sin = Var(f"{name}_cos"), Var(f"{name}_sin")
    first = Op("mnn.Binary", _product(left, cos), _product(right, sin), attrs={"kind": "SUB"})
    second = Op("mnn.Binary", _product(right, cos), _product(left, sin), attrs={"kind": "ADD"})
    return Op("mnn.Concat", first, second, Rest(f"{name}_rest"), attrs={"axis": 3})


@rule(Op("mnn.Attention", _turned("q"), _turned("k"), x, mask, Maybe(sinks)))
def turn_queries_and_keys(m: Match, rw: Rewriter) -> Value | None:
    """One operator for the rotary embedding of queries and keys, and for the norms of their heads."""
    if "packed-attention" not in rw.env or not _fills_packs(m.output):
        return m.skip("attention stays plain, and would give its result in the other format of the rotated queries")
    cos, sin = m.q_cos, m.q_sin
    half = cos.shape[-1]
    one, seq, heads, size = m.q.shape
    if not (_alike(cos, m.k_cos) and _alike(sin, m.k_sin)) or m.k.shape[3] != size:
        return m.skip("queries and keys are turned by different angles")
    if (
        one != 1
        or cos.shape != (one, seq, 1, half)
        or sin.shape != cos.shape
        or not m.q_points[0] == m.k_points[0] == half
    ):
        return m.skip("the angles are not [1, S, 1, half]")
    tables = [_doubled(rw, table, half) for table in (cos, sin)]
    sources, norms, attrs = _head_norms(m.q, m.k)
    operands = [_packed(rw, source) for source in sources]
    attrs |= {"heads": heads, "kv_heads": m.k.shape[2], "size": size, "turned": 2 * half}
    query, key = rw.op("mnn.RoPE", *operands, *tables, *norms, attrs=attrs, outputs=2)
    return rw.op("mnn.Attention", query, key, m.x, m.mask, *_sinks(m), types=[m.output.type])


def _sinks(m: Match) -> tuple[Value, ...]:
    return (m.sinks,) if m.has("sinks") else ()


def _alike(left: Value, right: Value) -> bool:
    """True for one value, or two reshapes of one value to one shape."""
    if left is right:
        return True
    one, two = left.producer, right.producer
    if one is None or two is None or not one.op == two.op == "mnn.Reshape" or left.type != right.type:
        return False
    return one.inputs[0] is two.inputs[0]


def _doubled(rw: Rewriter, table: Value, half: int) -> Value:
    """Angles for both halves."""
    type_ = TensorType(table.dtype, (*table.dims[:3], 2 * half))
    return rw.op("mnn.Concat", table, table, attrs={"axis": 3}, types=[type_], name=f"{table.name}.both")


def _head_norms(query: Value, key: Value) -> tuple[list[Value], list[Value], dict[str, Any]]:
    """What the norms before the rotation read, their gains and shifts, and their settings; no norms unless both
    match."""
    made = [value.producer for value in (query, key)]
    nodes = [node for node in made if node is not None and node.op == "mnn.LayerNorm"]
    if len(nodes) < len(made):
        return [query, key], [], {}
    settings = [(node.attrs.get("axis"), node.attrs["epsilon"], node.attrs["rms"]) for node in nodes]
    if settings[0] != settings[1] or settings[0][0] not in ((-1,), (3,)):
        return [query, key], [], {}
    norms = [node.operand(place) for node in nodes for place in range(1, len(node.inputs))]
    return [node.operand(0) for node in nodes], norms, {"epsilon": settings[0][1], "rms": settings[0][2]}


# ---- attention ----


@rule(Op("mnn.Attention", a, b, x, mask, Maybe(sinks)))
def pack_attention(m: Match, rw: Rewriter) -> Value | None:
    """Attention of packed values with a packed result."""
    if not _fills_packs(m.output):
        return m.skip("the result does not fill whole packs")
    packed = rw.op("mnn.PackedAttention", m.a, m.b, _packed(rw, m.x), m.mask, *_sinks(m))
    return _plain(rw, packed, m.output)


@rule(Op("mnn.Slice", x, attrs={"axis": Attr("axis"), "points": Attr("points")}))
def pack_cut(m: Match, rw: Rewriter) -> tuple[Value, ...] | Value | None:
    """Cut the channels of a packed tensor, as of queries, keys and values that were computed together."""
    packed = _unpacked_from(m.x) if _fills_packs(m.x) else None
    if packed is None or m.axis not in (-1, 2) or any(point % LANES for point in m.points):
        return m.skip("not whole packs of a packed tensor")
    types = [TensorType(value.dtype, _packed_shape(value)) for value in m.root.outputs]
    parts = rw.op("mnn.Slice", packed, attrs={"axis": 1, "points": m.points}, types=types, outputs=len(types))
    return tuple(_plain(rw, part, old) for part, old in zip(parts, m.root.outputs, strict=True))


RULES: dict[str, RuleSet] = {
    "rope": RuleSet(turn_queries_and_keys),
    "packed-attention": RuleSet(pack_attention, pack_cut),
    "packed-norm": RuleSet(pack_norm, pack_sum, pack_row_choice),
    "mul-silu": RuleSet(mul_silu),
}
"""The rules of each form, in the order in which they are tried."""

SUMS = RuleSet(add_and_norm, normed_already)
"""Rules that look at what reads a sum, for when all norms are where they stay."""
