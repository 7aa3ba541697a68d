"""What an MNN model directory takes, from a legal graph whose numbers nobody reads; see `backends.plan`."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from backends.mnn.card import ATTENTION
from backends.mnn.lower.fit import check_storage, fit
from backends.mnn.target.releases import MnnTarget
from backends.mnn.write import configs
from backends.mnn.write.packing import quantize_pack
from backends.mnn.write.weight_layout import Layout, Matrix, plan_layout
from backends.plan import Planned, PlannedCache, PlannedFile, PlannedMemory, PlannedWeights, Repeats, without_numbers
from ir.analysis.liveness import last_reads, size_of
from ir.base.types import BF16, F16, F32, TensorType
from ir.graph.graph import Graph, Value
from ir.quant.methods.base import METHODS
from ir.quant.storage import Storage
from ir.quant.stored_codes import NAME as STORED
from ir.quant.stored_weight import is_weight
from ir.quant.weight import QuantizedWeight
from ir.tensor.base import Tensor
from ir.tensor.elementwise import cast
from ir.tensor.files import FileTensor

PACKED_BITS = (4,)
"""Widths whose codes stay packed in memory on x86-64; others are widened to 8 bits when a model is loaded."""

TRIED_ROWS, TRIED_COLUMNS = 256, 4096
"""Shape of the matrix that coding is timed with."""


def plan(
    graph: Graph,
    target: MnnTarget,
    settings: Mapping[str, Any],
    *,
    repeats: Repeats,
    shares: Mapping[str, float],
    contexts: Sequence[int],
) -> Planned:
    """See `backends.backend.Backend.plan`; `settings` are the runtime settings that would be written.

    Raises:
        LadingError: B600 to B604, B696, B697 and B702, as for writing.
    """
    fit(graph, target)
    layout = plan_layout(graph)
    check_storage(layout, target)
    if not contexts:
        return Planned({}, ())
    weights = _weights(layout, str(settings["memory"]), repeats, shares)
    caches = _caches(graph, repeats)
    loaded = sum(item.loaded for item in weights) + _vector_bytes(layout, repeats)
    memory = [
        PlannedMemory(
            tokens,
            loaded,
            sum(item.fixed + tokens * item.per_token for item in caches),
            _activations(graph, tokens, shares),
        )
        for tokens in contexts
    ]
    return Planned(
        _files(graph, layout, weights, repeats),
        weights,
        tuple(caches),
        tuple(memory),
        dict(settings),
        _rates(layout),
    )


# ---- files ----


def _files(graph: Graph, layout: Layout, weights: Sequence[PlannedWeights], repeats: Repeats) -> dict[str, PlannedFile]:
    found = {configs.WEIGHTS: PlannedFile(_weight_file(layout, repeats), True)}
    table = layout.embedding_file
    if table is not None:
        found[configs.EMBEDDING] = PlannedFile(2 * table.rows * table.columns, True)
    model, exact = _model_bytes(graph, layout, repeats)
    found[configs.MODEL] = PlannedFile(model, exact)
    return found


def _weight_file(layout: Layout, repeats: Repeats) -> int:
    """Bytes of the weight file."""
    total = sum((matrix.end - matrix.offset) * repeats.of(matrix.weight.name) for matrix in layout.matrices.values())
    if layout.embedding is not None and not layout.embedding_shared:
        total += layout.embedding.end - layout.embedding.offset
    return total + _vector_bytes(layout, repeats)


def _vector_bytes(layout: Layout, repeats: Repeats) -> int:
    """Bytes of gains, shifts and constants."""
    total = sum(vector.nbytes * repeats.of(vector.values[0].name) for vector in layout.vectors.values())
    return total + sum(vector.nbytes * repeats.of(value.name) for value, vector in layout.constants.items())


def _model_bytes(graph: Graph, layout: Layout, repeats: Repeats) -> tuple[int, bool]:
    """Bytes of the file of operators: as it would be converted, those of repeated layers as many times over."""
    from backends.mnn.write.net_json import build_net

    net = build_net(graph, layout)
    numbers = [repeats.of_node(node) for node in graph.nodes]
    share = sum(numbers) / max(1, len(numbers))
    converted = _converted(net)
    if converted is None:
        # A converted file takes about a quarter of its JSON.
        return round(len(json.dumps(net)) * 0.25 * share), False
    return round(converted * share), share == 1


def _converted(net: Any) -> int | None:
    """Bytes of a net in MNN's binary form; None where no converter is installed."""
    from backends.mnn.run.native import json_to_mnn
    from backends.mnn.target.environments import installed_version

    if installed_version() is None:
        return None
    with TemporaryDirectory(prefix="lading-") as name:
        json_to_mnn(net, Path(name) / configs.MODEL)
        return (Path(name) / configs.MODEL).stat().st_size


# ---- weights ----


def _weights(layout: Layout, memory: str, repeats: Repeats, shares: Mapping[str, float]) -> tuple[PlannedWeights, ...]:
    groups: dict[tuple[str, str], list[float]] = {}

    def count(name: str, matrix: Matrix, number: int, share: float, loaded: int) -> None:
        key = (without_numbers(name), matrix.weight.storage.words)
        size = matrix.end - matrix.offset
        row = (1, matrix.weight.rows * matrix.weight.columns, size, loaded, loaded * share)
        total = groups.setdefault(key, [0.0] * len(row))
        for place, item in enumerate(row):
            total[place] += item * number

    for matrix in layout.matrices.values():
        name = matrix.weight.name
        count(name, matrix, repeats.of(name), shares.get(name, 1.0), _loaded(matrix, memory))
    if layout.embedding is not None and not layout.embedding_shared:
        # Rows are read from the file, one for each token.
        count(layout.embedding.weight.name, layout.embedding, 1, 0.0, 0)
    found = []
    for (name, how), row in groups.items():
        number, elements, size, loaded, streamed = map(round, row)
        found.append(PlannedWeights(name, number, elements, how, size, loaded, streamed))
    table = layout.embedding_file
    if table is not None:
        size = 2 * table.rows * table.columns
        found.append(PlannedWeights(table.name, 1, table.rows * table.columns, "bf16 rows", size, 0, 0))
    return tuple(found)


def _loaded(matrix: Matrix, memory: str) -> int:
    """Bytes of a matrix in the memory of an x86-64 machine: codes with low memory, else single floats."""
    count = matrix.weight.rows * matrix.weight.columns
    if not matrix.weight.storage.is_integer or memory != "low":
        return 4 * count + matrix.bias_bytes
    codes = matrix.code_bytes if matrix.weight.bits in PACKED_BITS else count
    return codes + matrix.alpha_bytes + matrix.bias_bytes


# ---- memory ----


def _caches(graph: Graph, repeats: Repeats) -> list[PlannedCache]:
    """Keys and values in single precision, as the runtime keeps them on x86-64, windows included in full."""
    found: dict[tuple[int, int, int], int] = {}
    for node in graph.nodes:
        if node.op in ATTENTION:
            keys, values = (_numbers(node.operand(place)) for place in (1, 2))
            heads = node.operand(1).dims[-2]
            assert isinstance(heads, int), node
            key = (heads, keys // heads, values // heads)
            found[key] = found.get(key, 0) + repeats.of_node(node)
    return [
        PlannedCache(_heads(heads, width, depth), layers, 4 * heads * (width + depth) * layers)
        for (heads, width, depth), layers in found.items()
    ]


def _numbers(value: Value) -> int:
    """Numbers of a value for each token."""
    return math.prod(size for size in value.dims if isinstance(size, int))


def _heads(heads: int, width: int, depth: int) -> str:
    wide = str(width) if width == depth else f"{width} and {depth}"
    return f"keys and values, {heads} {'head' if heads == 1 else 'heads'} of {wide}"


def _activations(graph: Graph, tokens: int, shares: Mapping[str, float]) -> int:
    """Bytes of what is alive at the worst moment of a prompt of so many tokens, the caller's inputs included.

    What stands for a weight is none of it.
    """
    fixed = {"rows": 1, "past": 0}
    sizes = {name: fixed.get(name, math.ceil(tokens * shares.get(name, 1.0))) for name in graph.dims}
    last = last_reads(graph)
    held = {value: size_of(value.type, sizes) or 0 for value in graph.inputs}
    now = worst = sum(held.values())
    for position, node in enumerate(graph.nodes):
        if is_weight(node.output):
            continue
        for value in node.outputs:
            held[value] = size_of(value.type, sizes) or 0
            now += held[value]
        worst = max(worst, now)
        done = [
            value for value in held if value in (*node.inputs, *node.outputs) and last.get(value, position) == position
        ]
        now -= sum(held.pop(value) for value in done)
    return worst


# ---- time ----


def _rates(layout: Layout) -> dict[str, float]:
    """Weights a second that one thread reads, codes and writes, by storage, measured on random numbers in a file."""
    storages = {matrix.weight.storage.words: matrix.weight.storage for matrix in layout.matrices.values()}
    numbers = np.random.default_rng(0).standard_normal((TRIED_ROWS, TRIED_COLUMNS), np.float32)
    with TemporaryDirectory(prefix="lading-") as name:
        path = Path(name) / "weights"
        path.write_bytes(numbers.astype(BF16.numpy).tobytes())
        source = FileTensor(path, 0, TensorType(BF16, numbers.shape))
        found = {words: _rate(source, storage, Path(name) / "out") for words, storage in storages.items()}
        source.release()
    return found


def _rate(source: Tensor, storage: Storage, out: Path) -> float:
    if not storage.is_integer:
        dtype = F16 if storage.bits == 16 else F32
        return _timed(lambda: out.write_bytes(cast(cast(source, F32), dtype).load().data))
    # Codes that came are copied, which takes no longer than making some by rounding.
    simple = METHODS[storage.method].needs == "nothing" and storage.method != STORED
    usable = storage if simple else replace(storage, method="rtn")
    weight = QuantizedWeight(source, usable.fit(TRIED_COLUMNS))
    return _timed(lambda: [out.write_bytes(part.data) for part in quantize_pack(weight, 0, TRIED_ROWS)])


def _timed(work: Callable[[], object]) -> float:
    best = math.inf
    for _ in range(3):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return TRIED_ROWS * TRIED_COLUMNS / best


__all__ = ["plan"]
