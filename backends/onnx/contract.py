"""The contract of a compiled ONNX model."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

import backends.contract as c
from backends import described
from backends.backend import Made
from backends.onnx.target import OnnxTarget
from backends.onnx.verify import Measurement
from ir.facts.model_card import ModelCard
from ir.facts.precision import PrecisionPlan
from ir.graph.graph import Graph, Node, Value

SPARE = 1 << 10
"""Bytes that may lie between the parts of one weight: names and types of initializers, or padding."""

DEQUANTIZE = ("DequantizeLinear", "lading.AffineDequantize")


def make_contract(
    graph: Graph,
    folder: Path,
    roles: Mapping[str, str],
    target: OnnxTarget,
    made: Made,
    measurements: Sequence[Measurement],
) -> c.Contract:
    """The contract of what was just written.

    Args:
        graph: the graph that was written.
        folder: where.
        roles: role of each file by name.
        target: the release promised.
        made: how the graph came to be.
        measurements: real runs.
    """
    card = ModelCard.of(graph)
    return c.Contract(
        compiler=described.compiler(),
        target=c.Target(profile=target.name, releases=(target.release,)),
        model=described.model(card),
        sources=described.sources(card.sources),
        config_digest=card.config_digest,
        signature=described.signature(graph),
        files=tuple(c.FileEntry.of(folder, name, role) for name, role in sorted(roles.items())),
        weights=tuple(_weights(graph, folder, sorted(roles))),
        pipeline=described.pipeline(made),
        calibration=described.calibration(graph),
        runtime=c.Runtime(requires=c.Requirements(min_release=target.release)),
        verified=tuple(_verification(item) for item in measurements),
        warnings=described.notices(made),
        verdict=described.verdict(made),
    )


def _verification(item: Measurement) -> c.Verification:
    return c.Verification(
        release=item.release,
        platform=item.platform,
        settings=None,
        reference=item.reference,
        prompt_tokens=item.tokens,
        max_abs_error=item.max_abs,
        kl=item.kl,
        top1=item.top1,
    )


# ---- weights ----


def _weights(graph: Graph, folder: Path, names: Sequence[str]) -> Iterator[c.WeightEntry]:
    """Every matrix and what it is made of, with its place in the files."""
    place = dict(_places(folder, names[0]))
    parts: set[Value] = set()
    for node in graph.nodes:
        if node.op in DEQUANTIZE and node.inputs[0] is not None and node.inputs[0].const is not None:
            parts |= {value for value in node.inputs if value is not None}
            yield from _entry(node.output.name, _quantized(graph, node), [v for v in node.inputs if v], place)
    for value in graph.consts.values():
        if value not in parts and value.use_count and value.dtype.is_float and (value.rank or 0) >= 2:
            bits = value.dtype.bits
            storage = c.Storage(bits=bits, method="cast", layout=f"onnx-{value.dtype.name}")
            yield from _entry(value.name, storage, [value], place)


def _quantized(graph: Graph, node: Node) -> c.Storage:
    codes, scale = node.operand(0), node.operand(1)
    zero = node.input(2)
    plan = graph.fact(PrecisionPlan)
    chosen = plan.storage.get(node.output.name) if plan is not None else None
    # 3 bits, for which ONNX has no type, are kept in wider numbers.
    bits = chosen.bits if chosen is not None and chosen.bits <= 8 else codes.dtype.bits
    return c.Storage(
        bits=bits,
        block=node.attrs.get("block_size", 0),
        symmetric=zero is None,
        zero="none" if zero is None else "float" if zero.dtype.is_float else "int",
        scale_dtype=scale.dtype.name,
        method=chosen.method if chosen is not None else "stored",
        layout=f"onnx-{codes.dtype.name}",
    )


def _entry(
    name: str, storage: c.Storage, parts: Sequence[Value], place: Mapping[str, tuple[str, int, int]]
) -> Iterator[c.WeightEntry]:
    """The entry of a weight whose parts lie one behind the other; of one whose parts do not, that of the first."""
    spans = [place[value.name] for value in parts if value.name in place]
    if len(spans) < len(parts) or not spans:
        return
    file, start, _ = spans[0]
    end = max(offset + size for _, offset, size in spans)
    together = all(item[0] == file and item[1] >= start for item in spans)
    if not together or end - start > sum(size for *_, size in spans) + SPARE * len(spans):
        end = start + spans[0][2]
    yield c.WeightEntry(name=name, file=file, offset=start, bytes=end - start, shape=parts[0].sizes, storage=storage)


def _places(folder: Path, model: str) -> Iterator[tuple[str, tuple[str, int, int]]]:
    """File, offset and size of each initializer, as the written file has them."""
    proto = onnx.load(str(folder / model), load_external_data=False)
    with open(folder / model, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        behind = 0
        for tensor in proto.graph.initializer:
            if tensor.external_data:
                said = {item.key: item.value for item in tensor.external_data}
                yield tensor.name, (said["location"], int(said["offset"]), int(said["length"]))
                continue
            raw = tensor.raw_data or np.array(tensor.float_data, "<f4").tobytes()
            at = data.find(raw, behind) if raw else -1
            if at >= 0:
                behind = at + len(raw)
                yield tensor.name, (model, at, len(raw))


__all__ = ["make_contract"]
