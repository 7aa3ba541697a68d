"""Compare a written model directory with what should have been written, weight by weight."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backends.mnn.read.decoded_weights import MnnModel
from backends.mnn.write.weight_layout import Layout, Matrix
from ir.base.diag import LadingError
from ir.facts.inputs import table_rows
from ir.graph.graph import Graph
from ir.quant.stored_weight import StoredWeight
from ir.tensor.base import Tensor

PIECE = 1 << 18

WORST_SAMPLE = 1 << 20
"""Elements of a matrix that its error is taken from when the worst weights are looked for."""


@dataclass(frozen=True)
class WeightError:
    """Distance of a stored weight from its source: root mean square relative to the source's, and largest absolute."""

    rms_relative: float
    max_abs: float


def read_back(
    graph: Graph, layout: Layout, folder: Path, executor: Executor, *, sample: int | None = None
) -> dict[str, WeightError]:
    """Decode the directory with the independent reader and require exactly the numbers that were meant.

    Args:
        graph: the emitted graph.
        layout: its layout.
        folder: the model directory.
        executor: runs matrices in parallel.
        sample: elements per matrix to look at, spread over its rows; None looks at all.

    Returns:
        The error of each weight that was looked at whole, by name.

    Raises:
        LadingError: B683 a weight, bias or embedding row that decodes to other numbers.
    """
    model = MnnModel(folder)
    jobs = [(node.output.name, matrix) for node, matrix in layout.matrices.items()]
    found = executor.map(lambda job: _check_matrix(model, job[0], job[1], sample), jobs)
    errors = {matrix.weight.name: error for (_, matrix), error in zip(jobs, found, strict=True) if error is not None}
    if "embedding" in graph.tables:
        _check_embedding(model, graph)
    return errors


def worst_weights(layout: Layout, executor: Executor, *, most: int = 6) -> list[tuple[str, str, float]]:
    """Name, storage and relative error of the quantized weights that are farthest from their source, worst first.

    The error is the root mean square of the difference relative to that of the source, over `WORST_SAMPLE` elements.
    """
    weights = {matrix.weight.name: matrix.weight for matrix in layout.matrices.values()}
    chosen = [weight for weight in weights.values() if weight.quantized is not None]
    found = executor.map(lambda weight: (weight.name, _stored_as(weight), _sampled_error(weight)), chosen)
    return sorted(found, key=lambda item: -item[2])[:most]


def _stored_as(weight: StoredWeight) -> str:
    return f"{weight.bits} bits, blocks of {weight.block}"


def _sampled_error(weight: StoredWeight) -> float:
    squares = base = 0.0
    whole = weight.rows * weight.columns <= WORST_SAMPLE
    for start, stop in _spans(weight, None if whole else WORST_SAMPLE):
        original = _original(weight).rows(start, stop).astype(np.float32)
        squares += float(np.square(weight.dequantized_rows(start, stop) - original, dtype=np.float64).sum())
        base += float(np.square(original, dtype=np.float64).sum())
    return float(np.sqrt(squares / base)) if base else 0.0


def _check_matrix(model: MnnModel, op: str, matrix: Matrix, sample: int | None) -> WeightError | None:
    weight = matrix.weight
    whole = sample is None or weight.rows * weight.columns <= sample
    squares = base = worst = 0.0
    for start, stop in _spans(weight, None if whole else sample):
        wanted = weight.dequantized_rows(start, stop)
        got = model.decode(op, start, stop)
        if not np.array_equal(wanted, got):
            raise _mismatch(weight.name, op, start, wanted, got)
        if whole:
            original = _original(weight).rows(start, stop).astype(np.float32)
            gap = got - original
            squares += float(np.square(gap, dtype=np.float64).sum())
            base += float(np.square(original, dtype=np.float64).sum())
            worst = max(worst, float(np.abs(gap).max(initial=0.0)))
    bias = matrix.bias.tensor.load().astype(np.float32) if matrix.bias is not None else None
    if bias is not None and not np.array_equal(bias, model.bias(op)):
        raise LadingError("B683", "the bias decodes to other numbers than were written", where=op)
    return WeightError(float(np.sqrt(squares / base)) if base else 0.0, worst) if whole else None


def _original(weight: StoredWeight) -> Tensor:
    """The float numbers before any storage decision."""
    if weight.quantized is not None:
        return weight.quantized.source
    name, args, _ = weight.floats.recipe()
    return args[0] if name == "cast" else weight.floats


def _spans(weight: StoredWeight, sample: int | None) -> Iterator[tuple[int, int]]:
    step = max(1, PIECE // weight.columns)
    if sample is None:
        for start in range(0, weight.rows, step):
            yield start, min(weight.rows, start + step)
        return
    rows = max(1, sample // weight.columns // 4)
    for place in np.linspace(0, max(0, weight.rows - rows), 4).astype(int):
        yield int(place), min(weight.rows, int(place) + rows)


def _check_embedding(model: MnnModel, graph: Graph) -> None:
    table = graph.tables["embedding"]
    rows = table.sizes[0]
    for row in sorted({0, 1, rows // 2, rows - 1}):
        wanted = table_rows(graph, "embedding", np.array([row]))
        got = model.embedding_rows(np.array([row]))
        if not np.array_equal(wanted, got):
            raise _mismatch(table.name, "embedding", row, wanted, got)


def _mismatch(name: str, op: str, start: int, wanted: np.ndarray, got: np.ndarray) -> LadingError:
    row, column = (int(place[0]) for place in np.nonzero(wanted != got))
    return LadingError(
        "B683",
        f"row {start + row}, column {column} decodes to {got[row, column]!r} where {wanted[row, column]!r} was meant",
        where=f"{name}, operator {op}",
        hint="this is a fault of the compiler; please report it with the checkpoint's configuration",
    )
