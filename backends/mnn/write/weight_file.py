"""Fill the preallocated weight file: independent jobs, each writing to its own byte range.

A job reads a few rows of one source, quantizes or converts them and writes the result with ``pwrite``; nothing larger
than a piece is ever held. Any `concurrent.futures.Executor` whose workers share the file system can run the jobs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backends.mnn.write.packing import quantize_pack, row_alignment
from backends.mnn.write.weight_layout import Layout, Matrix
from ir.base.diag import LadingError
from ir.quant.stored_weight import StoredWeight

PIECE_ELEMENTS = 1 << 18
"""Weights per piece: small enough that a piece's scratch stays in the second-level cache."""

JOB_ELEMENTS = 1 << 21
"""Weights per job: large enough that scheduling costs nothing."""


@dataclass(frozen=True)
class Job:
    """Write rows ``start..stop`` of one matrix, or everything small, to a file; `elements` weighs it for progress."""

    what: str
    elements: int
    run: Callable[[int], None]


def weight_jobs(layout: Layout) -> list[Job]:
    """The jobs that fill ``llm.mnn.weight``."""
    jobs: list[Job] = []
    matrices = list(layout.matrices.values())
    if layout.embedding is not None and not layout.embedding_shared:
        matrices.append(layout.embedding)
    for matrix in matrices:
        jobs += _matrix_jobs(matrix)
    jobs.append(Job("norms and biases", 0, lambda fd: _write_small(fd, layout, matrices)))
    return jobs


def embedding_jobs(table: StoredWeight) -> list[Job]:
    """The jobs that fill ``embeddings_bf16.bin``: rows of bfloat16, row-major."""
    width = 2 * table.columns

    def write(fd: int, start: int, stop: int) -> None:
        for lo, hi in _pieces(start, stop, table.columns):
            _pwrite(fd, table.source.rows(lo, hi), lo * width)  # type: ignore[union-attr]

    return [
        Job(table.name, (stop - start) * table.columns, lambda fd, start=start, stop=stop: write(fd, start, stop))
        for start, stop in _ranges(table.rows, table.columns, 1)
    ]


def fill(
    path: Path, nbytes: int, jobs: Sequence[Job], executor: Executor, progress: Callable[[int], None] | None = None
) -> None:
    """Create a file of a known size and run the jobs that fill it.

    Raises:
        LadingError: B620 no room or no permission, or whatever a job found wrong with its source (first one wins).
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    except OSError as error:
        raise LadingError("B620", f"cannot create {path.name}: {error.strerror}", where=str(path)) from error
    try:
        _reserve(fd, nbytes, path)

        def run(job: Job) -> None:
            try:
                job.run(fd)
            except OSError as error:
                raise LadingError("B620", f"writing {job.what} failed: {error.strerror}", where=str(path)) from error
            if progress is not None:
                progress(job.elements)

        futures = [executor.submit(run, job) for job in sorted(jobs, key=lambda job: -job.elements)]
        done, waiting = wait(futures, return_when=FIRST_EXCEPTION)
        for future in waiting:
            future.cancel()
        wait(waiting)
        for future in done:
            future.result()
    finally:
        os.close(fd)


def _reserve(fd: int, nbytes: int, path: Path) -> None:
    """Claim the room now, so that a full disk is met before the work and not after it."""
    if not nbytes:
        return
    try:
        os.posix_fallocate(fd, 0, nbytes)
    except OSError as error:
        raise LadingError(
            "B620",
            f"no room for {nbytes:,} bytes: {error.strerror}",
            where=str(path),
            hint="free some space or choose another output with -o",
        ) from error


def _matrix_jobs(matrix: Matrix) -> list[Job]:
    weight = matrix.weight
    align = row_alignment(weight.bits, weight.columns)
    write = _write_float if weight.quantized is None else _write_codes
    return [
        Job(
            weight.name,
            (stop - start) * weight.columns,
            lambda fd, start=start, stop=stop: write(fd, matrix, start, stop),
        )
        for start, stop in _ranges(weight.rows, weight.columns, align)
    ]


def _ranges(rows: int, columns: int, align: int) -> Iterator[tuple[int, int]]:
    step = max(align, JOB_ELEMENTS // max(columns, 1) // align * align)
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def _pieces(start: int, stop: int, columns: int) -> Iterator[tuple[int, int]]:
    step = max(1, PIECE_ELEMENTS // max(columns, 1))
    for low in range(start, stop, step):
        yield low, min(stop, low + step)


def _write_codes(fd: int, matrix: Matrix, start: int, stop: int) -> None:
    weight = matrix.weight
    recipe = weight.quantized
    assert recipe is not None
    packed, alpha = quantize_pack(recipe, start, stop, half=recipe.storage.scale == "f16")
    _pwrite(fd, packed, matrix.code_offset + start * weight.columns * recipe.storage.bits // 8)
    _pwrite(fd, alpha, matrix.alpha_offset + start * (matrix.alpha_bytes // weight.rows))


def _write_float(fd: int, matrix: Matrix, start: int, stop: int) -> None:
    weight = matrix.weight
    width = weight.columns * weight.bits // 8
    for low, high in _pieces(start, stop, weight.columns):
        rows = weight.source.rows(low, high)  # type: ignore[union-attr]
        if not np.isfinite(rows).all():
            bad = low + int(np.nonzero(~np.isfinite(rows).all(axis=1))[0][0])
            raise LadingError(
                "B621",
                f"row {bad} holds NaN or infinity"
                + (", or a number too large for half precision" if weight.bits == 16 else ""),
                where=f"{weight.name} ({weight.source.loc})",  # type: ignore[union-attr]
            )
        _pwrite(fd, rows, matrix.code_offset + low * width)


def _write_small(fd: int, layout: Layout, matrices: Sequence[Matrix]) -> None:
    """Headers, biases and norm vectors: everything that is not a matrix."""
    for matrix in matrices:
        if matrix.header_bytes:
            _pwrite(fd, _header(matrix), matrix.offset)
        if matrix.bias is not None:
            _pwrite(fd, _vector(matrix.bias), matrix.bias_offset)
    for vector in layout.vectors.values():
        _pwrite(fd, np.concatenate([_vector(value) for value in vector.values]), vector.offset)


def _header(matrix: Matrix) -> np.ndarray:
    """Dimension count, dimensions and code table, as the runtime's loader reads them."""
    dims = np.array([matrix.weight.rows, matrix.weight.columns], "<u4" if matrix.wide_header else "<u2")
    codes = 1 << matrix.weight.bits
    table = np.arange(-codes // 2, codes // 2, dtype=np.int8).view(np.uint8)
    # A table of 256 codes has a length that does not fit its byte and is written as 0.
    return np.concatenate([np.array([2], np.uint8), dims.view(np.uint8), np.array([codes % 256], np.uint8), table])


def _vector(value) -> np.ndarray:
    array = value.const.load().astype(np.float32).reshape(-1)
    if not np.isfinite(array).all():
        raise LadingError("B621", "the vector holds NaN or infinity", where=f"{value.name} ({value.const.loc})")
    return array


def _pwrite(fd: int, array: np.ndarray, offset: int) -> None:
    view = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    while view.nbytes:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
