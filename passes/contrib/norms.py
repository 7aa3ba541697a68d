"""Norms with a sum in front of them, and statistics behind."""

from __future__ import annotations

from collections.abc import Sequence

from ir.base.types import F32
from ir.graph.graph import Value
from passes.contrib.building import Site, expansion

RMS_SINCE, LAYER_SINCE = 23, 17


def _rms(site: Site, x: Value, gain: Value, axis: int) -> Value:
    site.need_opset(RMS_SINCE)
    return site.op("RMSNormalization", x, gain, axis=axis, epsilon=site.attr("epsilon"), stash_type=1)


def _reciprocal(site: Site, x: Value, axis: int) -> Value:
    """One over the root mean square of the axes from `axis` on, as float32."""
    rank = site.rank(x)
    if site.type_of(x).dtype != F32:
        x = site.op("Cast", x, to=F32.onnx)
    square = site.op("ReduceMean", site.op("Mul", x, x), site.ints(*range(axis % rank, rank)), keepdims=1)
    root = site.op("Sqrt", site.op("Add", square, site.like(site.attr("epsilon"), square)))
    return site.op("Reciprocal", root)


@expansion("SimplifiedLayerNormalization")
def simplified_norm(site: Site) -> Sequence[Value | None]:
    """SimplifiedLayerNormalization is RMSNormalization."""
    x, axis = site.operand(0), site.attr("axis")
    y = _rms(site, x, site.operand(1), axis)
    return (y, _reciprocal(site, x, axis) if site.wants(1) else None)


@expansion("com.microsoft.SkipSimplifiedLayerNormalization")
def skip_simplified_norm(site: Site) -> Sequence[Value | None]:
    """A sum, and its RMSNormalization."""
    total = site.sum_of(site.operand(0), site.operand(1), site.input(3))
    y = _rms(site, total, site.operand(2), -1)
    return (y, None, _reciprocal(site, total, -1) if site.wants(2) else None, total)


@expansion("com.microsoft.SkipLayerNormalization")
def skip_norm(site: Site) -> Sequence[Value | None]:
    """A sum, and its LayerNormalization."""
    site.need_opset(LAYER_SINCE)
    total = site.sum_of(site.operand(0), site.operand(1), site.input(4))
    count = 3 if site.wants(1) or site.wants(2) else 1
    found = site.ops(
        "LayerNormalization",
        total,
        site.operand(2),
        site.input(3),
        outputs=count,
        axis=-1,
        epsilon=site.attr("epsilon"),
    )
    return (*found, *(None,) * (3 - count), total)


@expansion("com.microsoft.EmbedLayerNormalization")
def embed_norm(site: Site) -> Sequence[Value | None]:
    """The sum of looked-up rows, and its LayerNormalization."""
    site.need_opset(LAYER_SINCE)
    site.need(not site.wants(1), "its mask index is read")
    ids, positions = site.operand(0), site.input(8)
    if positions is None:
        length = site.op("Squeeze", site.length(ids, 1), site.ints(0))
        positions = site.op("Unsqueeze", site.op("Range", site.scalar(0), length, site.scalar(1)), site.ints(0))
    words = site.op("Gather", site.operand(2), ids, axis=0)
    places = site.op("Gather", site.operand(3), positions, axis=0)
    kinds = None
    if site.input(1) is not None and site.input(4) is not None:
        kinds = site.op("Gather", site.operand(4), site.operand(1), axis=0)
    total = site.sum_of(words, places, kinds)
    epsilon = site.attr("epsilon")
    y = site.op("LayerNormalization", total, site.operand(5), site.operand(6), axis=-1, epsilon=epsilon)
    return (y, None, total)
