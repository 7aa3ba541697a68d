"""Rotation with tables as inputs."""

from __future__ import annotations

from ir.base.types import I64
from ir.graph.graph import Value
from passes.contrib.building import Site, expansion

ROTARY_SINCE = 23


@expansion("com.microsoft.RotaryEmbedding")
def rotary(site: Site) -> Value:
    """RotaryEmbedding of ONNX, which takes positions for every token."""
    site.need_opset(ROTARY_SINCE)
    x, cos, sin = site.operand(0), site.operand(2), site.operand(3)
    site.need(site.attr("scale") == 1, "it has a scale")
    site.need(not site.attr("is_packed_batching"), "its batch is packed")
    return turned(
        site,
        x,
        cos,
        sin,
        positions_of(site, site.operand(1), x),
        heads=site.attr("num_heads") or 0,
        width=site.attr("rotary_embedding_dim") or 0,
        interleaved=site.attr("interleaved"),
    )


def positions_of(site: Site, given: Value, x: Value) -> Value:
    """``[batch, length]`` positions from those, or from the position of the first token ``[1]``."""
    if site.rank(given) == 2:
        return given
    axis = 1 if site.rank(x) == 3 else 2
    length = site.op("Squeeze", site.length(x, axis), site.ints(0))
    steps = site.op("Range", site.scalar(0), length, site.scalar(1))
    first = given if site.type_of(given).dtype == I64 else site.op("Cast", given, to=I64.onnx)
    row = site.op("Unsqueeze", site.op("Add", steps, first), site.ints(0))
    return site.op("Expand", row, site.op("Concat", site.length(x, 0), site.ints(1), axis=0))


def turned(
    site: Site, x: Value, cos: Value, sin: Value, positions: Value, *, heads: int, width: int, interleaved: int
) -> Value:
    """RotaryEmbedding of tables ``[positions, width / 2]``; rank 3 needs the number of heads."""
    if site.rank(x) == 3 and not heads:
        size = 2 * site.size(cos, 1)
        site.need(site.size(x, 2) % size == 0, f"its tables are not of heads in {site.size(x, 2)} channels")
        heads = site.size(x, 2) // size
    if positions.type is not None and site.type_of(positions).dtype != I64:
        positions = site.op("Cast", positions, to=I64.onnx)
    return site.op(
        "RotaryEmbedding",
        x,
        cos,
        sin,
        positions,
        interleaved=interleaved or None,
        num_heads=heads if site.rank(x) == 3 else None,
        rotary_embedding_dim=width or None,
    )
