"""GroupQueryAttention: rotation, history, causal mask, window, cap and sink in one operator.

It counts the tokens of each sequence of a batch (`seqlens_k` is one less) and of the longest one. A prompt is as long as
the longest sequence, and shorter sequences are padded at their ends; later calls add tokens to every sequence. The
equivalent here holds for a prompt so padded, and afterwards for sequences of one length, whose history is exactly what
came before; onnxruntime also takes histories that lie in larger buffers, which no standard operator does.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from ir.base.types import I64
from ir.graph.graph import Value
from passes.contrib.attention import Heads, attend, hidden, places, repeated
from passes.contrib.building import Site, expansion
from passes.contrib.rotary import turned

RESULTS_SCORES = 3
_LEFT_OUT = {
    12: "its history is quantized",
    13: "its history is quantized",
    16: "its queries have lengths of their own",
}


@expansion("com.microsoft.GroupQueryAttention")
def grouped(site: Site) -> Sequence[Value | None]:
    """RotaryEmbedding and Attention of ONNX, the mask spelled out."""
    for index, reason in _LEFT_OUT.items():
        site.need(site.input(index) is None, reason)
    site.need(
        site.attr("k_quant_type") in (None, "NONE") and site.attr("v_quant_type") in (None, "NONE"), _LEFT_OUT[12]
    )
    site.need(not site.wants(RESULTS_SCORES), "its scores are read")
    heads = _operands(site)
    length = site.length(heads.q, 1)
    total = site.op("Add", _whole(site, site.operand(5), -1, 1), site.scalar(1))
    before = _before(site, length, total)
    steps = site.op("Add", site.op("Unsqueeze", places(site, length), site.ints(0)), before)
    heads = _turned(site, _normed(site, heads), steps)
    mask = _mask(site, heads, length, total, steps)
    cap, sink = site.attr("softcap") or 0.0, _sink(site, heads)
    if not cap and sink is None:
        return attend(site, heads, mask, site.attr("scale"))
    return _by_products(site, heads, mask, cap, sink)


def _operands(site: Site) -> Heads:
    """Queries, keys and values, which may come in one tensor, and the history."""
    q, k, v = site.operand(0), site.input(1), site.input(2)
    count, kept = site.attr("num_heads"), site.attr("kv_num_heads")
    if k is None or v is None:
        site.need(k is None and v is None, "it has keys or values alone")
        width = site.size(q, 2)
        size = width // (count + 2 * kept)
        site.need(size * (count + 2 * kept) == width, f"{width} channels are no {count} and twice {kept} heads")
        parts = site.ints(count * size, kept * size, kept * size)
        q, k, v = site.ops("Split", q, parts, outputs=3, axis=2)
    for value in (q, k, v):
        site.need(site.rank(value) == 3, "its operands are not of rank 3")
    keys, values = site.input(3), site.input(4)
    past = (keys, values) if keys is not None and values is not None else None
    return Heads(q, k, v, count, kept, past)


def _whole(site: Site, value: Value, *shape: int) -> Value:
    """Counts as int64 of a shape."""
    return site.op("Reshape", site.op("Cast", value, to=I64.onnx), site.ints(*shape))


def _before(site: Site, length: Value, total: Value) -> Value:
    """How many tokens came before, ``[batch, 1]``: none, where the longest sequence is as long as what comes now."""
    longest = _whole(site, site.operand(6), 1)
    return site.op("Where", site.op("Equal", longest, length), site.scalar(0), site.op("Sub", total, length))


def _normed(site: Site, heads: Heads) -> Heads:
    """Queries and keys with each head divided by its root mean square, where there are gains for that."""
    gains = site.input(14), site.input(15)
    if gains == (None, None):
        return heads
    made = []
    for x, gain, name, count in zip((heads.q, heads.k), gains, "qk", (heads.count, heads.kept), strict=True):
        if gain is None:
            made.append(x)
            continue
        epsilon = site.node.attrs.get(f"{name}_norm_epsilon", site.attr("qk_norm_epsilon"))
        apart = site.op("Reshape", x, site.ints(0, 0, count, -1))
        norm = site.op("RMSNormalization", apart, gain, axis=-1, epsilon=epsilon)
        made.append(site.op("Reshape", norm, site.ints(0, 0, -1)))
    return Heads(made[0], made[1], heads.v, heads.count, heads.kept, heads.past)


def _turned(site: Site, heads: Heads, steps: Value) -> Heads:
    """Queries and keys turned by the tables, at given positions or those that are counted."""
    if not site.attr("do_rotary"):
        return heads
    cos, sin, given = site.operand(7), site.operand(8), site.input(9)
    positions = steps if given is None else given
    size, width = site.size(heads.q, 2) // heads.count, 2 * site.size(cos, 1)
    made = [
        turned(
            site,
            x,
            cos,
            sin,
            positions,
            heads=count,
            width=width if width < size else 0,
            interleaved=site.attr("rotary_interleaved"),
        )
        for x, count in ((heads.q, heads.count), (heads.k, heads.kept))
    ]
    return Heads(made[0], made[1], heads.v, heads.count, heads.kept, heads.past)


def _mask(site: Site, heads: Heads, length: Value, total: Value, steps: Value) -> Value:
    """What is added to the scores, ``[batch, 1, length, keys]``: later keys, those before the window and padding go."""
    keys = length if heads.past is None else site.op("Add", length, site.length(heads.past[0], 2))
    key = places(site, keys)
    query = site.op("Unsqueeze", steps, site.ints(2))
    seen = site.op("Less", key, site.op("Unsqueeze", total, site.ints(2)))
    if site.attr("causal"):
        seen = site.op("And", seen, site.op("LessOrEqual", key, query))
    window = site.attr("local_window_size")
    if window > 0:
        seen = site.op("And", seen, site.op("Greater", key, site.op("Sub", query, site.scalar(window))))
    mask = hidden(site, site.op("Unsqueeze", seen, site.ints(1)), heads.q)
    return site.sum_of(mask, site.input(10))


def _sink(site: Site, heads: Heads) -> Value | None:
    """A score of each head that takes a part of the weight and gives nothing, ``[heads]``."""
    if site.input(11) is not None:
        return site.input(11)
    return (
        site.op("Expand", site.like(0, heads.q), site.ints(heads.count)) if site.attr("smooth_softmax") == 1 else None
    )


def _by_products(site: Site, heads: Heads, mask: Value, cap: float, sink: Value | None) -> Sequence[Value]:
    """Attention by matrix products, where scores have a cap or a sink."""
    q, k, v = (
        site.op("Transpose", site.op("Reshape", x, site.ints(0, 0, count, -1)), perm=(0, 2, 1, 3))
        for x, count in ((heads.q, heads.count), (heads.k, heads.kept), (heads.v, heads.kept))
    )
    if heads.past is not None:
        k, v = (site.op("Concat", before, now, axis=2) for before, now in zip(heads.past, (k, v), strict=True))
    times = heads.count // heads.kept
    every_k, every_v = repeated(site, k, times), repeated(site, v, times)
    scores = site.op("MatMul", q, site.op("Transpose", every_k, perm=(0, 1, 3, 2)))
    scale = site.attr("scale") or 1 / sqrt(site.size(heads.q, 2) // heads.count)
    scores = site.op("Mul", scores, site.like(scale, scores))
    if cap:
        limit = site.like(cap, scores)
        scores = site.op("Mul", site.op("Tanh", site.op("Div", scores, limit)), limit)
    scores = site.op("Add", scores, mask)
    if sink is None:
        weights = site.op("Softmax", scores, axis=-1)
    else:
        shape = site.op("Concat", site.op("Shape", scores, end=3), site.ints(1), axis=0)
        column = site.op("Expand", site.op("Reshape", sink, site.ints(1, -1, 1, 1)), shape)
        every = site.op("Softmax", site.op("Concat", scores, column, axis=-1), axis=-1)
        weights = site.op("Slice", every, site.ints(0), site.ints(-1), site.ints(-1))
    y = site.op("Transpose", site.op("MatMul", weights, every_v), perm=(0, 2, 1, 3))
    return site.op("Reshape", y, site.ints(0, 0, -1)), k, v
