"""Fill the preallocated weight file: independent jobs, each writing to its own byte range.

A job reads a few rows of one source, quantizes or converts them and writes the result with ``pwrite``; nothing larger
than a piece is ever held. Jobs are plain data, so any `concurrent.futures.Executor` whose workers share the file system
can run them: in threads, in processes, or elsewhere. Where they do not share it, what a job would write comes back.
Other machines say what they wrote, and the file is held against it when it is read back for its digest.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

import numpy as np

from backends.mnn.write.packing import packed_bytes, quantize_pack, row_alignment
from backends.mnn.write.weight_layout import Layout, Matrix
from ir.base.diag import LadingError
from ir.base.executor import JobExecutor, here, run_jobs, shares_files
from ir.base.store import Store, default_store, using_store
from ir.base.whole_files import begin_sync
from ir.quant.stored_weight import StoredWeight
from ir.quant.weight import QuantizedWeight, keep_each, thread_scratch
from ir.tensor.base import Tensor

PIECE_ELEMENTS = 1 << 18
"""Weights per piece: small enough that a piece's scratch stays in the second-level cache."""

JOB_ELEMENTS = 1 << 21
"""Weights per job: large enough that scheduling costs nothing."""

DIGESTED = 1 << 20
"""Bytes that are read and digested at once."""

SENT = 8 << 20
"""Bytes that the system is told to write to the disk at once."""

_LATELY: deque[StoredWeight] = deque(maxlen=2)
"""Weights of the last jobs that came from another process, so that those of one weight share what is mapped of it."""


@dataclass(frozen=True)
class RowsJob:
    """Write rows `start` to `stop` of a matrix.

    Attributes:
        path: the weight file.
        weight: the matrix; block-quantized rows are written as codes and scales, float rows as they are.
        start, stop: the rows.
        offset: place of the first of them in the file.
        alpha_offset: place of their scales; 0 for float rows.
        checked: refuse numbers that are not finite.
        store: where results of slow methods are kept.
    """

    path: Path
    weight: StoredWeight
    start: int
    stop: int
    offset: int
    alpha_offset: int
    checked: bool
    store: Store

    @property
    def what(self) -> str:
        """Name for messages."""
        return self.weight.name

    @property
    def elements(self) -> int:
        """Numbers written, which weigh the job for progress."""
        return (self.stop - self.start) * self.weight.columns

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _LATELY.append(self.weight)

    def write(self, fd: Out) -> None:
        """Write to the open file; errors as for `run`."""
        with using_store(self.store):
            if self.weight.quantized is not None:
                self._write_codes(fd)
            else:
                self._write_floats(fd)

    def _write_codes(self, fd: Out) -> None:
        recipe = self.weight.quantized
        assert recipe is not None
        size = packed_bytes((self.stop - self.start) * self.weight.columns, self.weight.bits)
        # Fresh memory for every job would be taken from the system and given back each time.
        out = thread_scratch().take("packed", (size,), np.uint8)
        packed, alpha = quantize_pack(recipe, self.start, self.stop, out, half=recipe.storage.scale == "f16")
        _pwrite(fd, packed, self.offset)
        _pwrite(fd, alpha, self.alpha_offset)

    def _write_floats(self, fd: Out) -> None:
        weight, offset = self.weight, self.offset
        for low, high in _pieces(self.start, self.stop, weight.columns):
            rows = weight.floats.rows(low, high)
            if self.checked and not np.isfinite(rows).all():
                bad = low + int(np.nonzero(~np.isfinite(rows).all(axis=1))[0][0])
                raise LadingError(
                    "B621",
                    f"row {bad} holds NaN or infinity"
                    + (", or a number too large for half precision" if weight.bits == 16 else ""),
                    where=f"{weight.name} ({weight.floats.loc})",
                )
            _pwrite(fd, rows, offset)
            offset += rows.nbytes


@dataclass(frozen=True)
class SmallJob:
    """Write everything that is not a matrix: headers of matrices, biases, norm vectors and large constants.

    Attributes:
        path: the weight file.
        headers: bytes and their places.
        vectors: name, numbers and place of each vector.
    """

    path: Path
    headers: tuple[tuple[bytes, int], ...]
    vectors: tuple[tuple[str, Tensor, int], ...]

    what = "norms and biases"
    elements = 0

    def write(self, fd: Out) -> None:
        """Write to the open file; errors as for `run`."""
        for data, offset in self.headers:
            _pwrite(fd, np.frombuffer(data, np.uint8), offset)
        for name, tensor, offset in self.vectors:
            _pwrite(fd, _vector(name, tensor), offset)


@dataclass(frozen=True)
class MatrixJob:
    """Write a whole matrix of a slow method, which is quantized first by whoever runs this, over all that is `here`.

    Attributes:
        parts: its rows.
    """

    parts: tuple[RowsJob, ...]

    alone = True

    @property
    def path(self) -> Path:
        """The weight file."""
        return self.parts[0].path

    @property
    def what(self) -> str:
        """Name for messages."""
        return self.parts[0].what

    @property
    def elements(self) -> int:
        """Numbers written."""
        return sum(part.elements for part in self.parts)

    def write(self, fd: Out) -> None:
        """Write to the open file; errors as for `run`."""
        recipe = self.parts[0].weight.quantized
        assert recipe is not None
        with using_store(self.parts[0].store):
            recipe.keep(here())
        for part in self.parts:
            part.write(fd)


Job = RowsJob | SmallJob | MatrixJob
"""A part of the weight file, with the path of the file; plain data that pickles."""

Done = TypeVar("Done")

Part = tuple[int, bytes]
"""Bytes and their place in the file."""

Sum = tuple[int, int, int]
"""Place, length and CRC-32 of bytes of the file."""


@dataclass
class Summed:
    """A file whose writer says what it has written.

    Attributes:
        fd: descriptor of the file.
        sums: what was written.
    """

    fd: int
    sums: list[Sum] = field(default_factory=list)


Out = int | Summed | list[Part]
"""Where a job writes: a file descriptor, one that sums up, or a list that what would be written is added to."""


def run(job: Job) -> list[Sum]:
    """Write the part of a job to its file, which exists; nothing is summed up.

    Raises:
        LadingError: B620 writing failed, B621 numbers that are not finite, and what reading the source raises.
    """
    _write(job, int)
    return []


def run_elsewhere(job: Job) -> list[Sum]:
    """Write as `run` does, and say what was written, so that another machine can see whether it has come."""
    out = _write(job, Summed)
    return out.sums


Written = TypeVar("Written", int, Summed)


def _write(job: Job, out: Callable[[int], Written]) -> Written:
    try:
        fd = os.open(job.path, os.O_WRONLY)
        try:
            made = out(fd)
            job.write(made)
        finally:
            os.close(fd)
    except OSError as error:
        raise LadingError("B620", f"writing {job.what} failed: {error.strerror}", where=str(job.path)) from error
    return made


def parts_of(job: Job) -> tuple[list[Part], list[Sum]]:
    """What `run` would write, and sums of it; errors of the source alone."""
    parts: list[Part] = []
    job.write(parts)
    return parts, [(offset, len(data), crc32(data)) for offset, data in parts]


def weight_jobs(layout: Layout, path: Path) -> list[Job]:
    """The jobs that fill ``llm.mnn.weight`` at a path."""
    jobs: list[Job] = []
    matrices = list(layout.matrices.values())
    if layout.embedding is not None and not layout.embedding_shared:
        matrices.append(layout.embedding)
    store = default_store()
    for matrix in matrices:
        jobs += _matrix_jobs(matrix, path, store)
    jobs.append(_small_job(layout, matrices, path))
    return jobs


def embedding_jobs(table: StoredWeight, path: Path) -> list[Job]:
    """The jobs that fill ``embeddings_bf16.bin`` at a path: rows of bfloat16, row-major."""
    width, store = 2 * table.columns, default_store()
    return [
        RowsJob(path, table, start, stop, start * width, 0, False, store)
        for start, stop in _ranges(table.rows, table.columns, 1)
    ]


def fill(
    path: Path, nbytes: int, jobs: Sequence[Job], executor: Executor, progress: Callable[[int], None] | None = None
) -> str:
    """Create a file of a known size and run the jobs that fill it; returns the SHA-256 (hex) of its content.

    Weights of slow methods are quantized by jobs of their own, one weight after the other, before their rows are
    written. The file is digested from its beginning as far as it is finished while the rest is written.

    Raises:
        LadingError: B620 no room or no permission, or whatever a job found wrong with its source (first one wins).
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    except OSError as error:
        raise LadingError("B620", f"cannot create {path.name}: {error.strerror}", where=str(path)) from error
    try:
        _reserve(fd, nbytes, path)
    finally:
        os.close(fd)
    if not shares_files(executor):
        done = _joined(path, jobs, executor)
    elif isinstance(executor, JobExecutor):
        done = _in_order(run_elsewhere if executor.elsewhere else run, _by_matrix(jobs), executor)
    else:
        done = _in_turn(jobs, executor)
    content = _Content(path, nbytes, jobs)
    for job, sums in done:
        if progress is not None:
            progress(job.elements)
        content.finished(job, sums)
    return content.digest()


class _Content:
    """The digest of a file that jobs fill, taken from its beginning as far as no job is left to write.

    So far the system is told to write it to the disk, too, which the end of a compilation would wait for.
    Where machines say what they wrote, what is read is compared with it.
    """

    def __init__(self, path: Path, nbytes: int, jobs: Sequence[Job]) -> None:
        self._path, self._size = path, nbytes
        self._done = self._sent = 0
        self._state = hashlib.sha256()
        self._buffer = memoryview(bytearray(min(nbytes, DIGESTED)))
        # Whatever begins first and is not finished ends what can be digested.
        self._order = sorted(jobs, key=_first_byte)
        self._finished: set[int] = set()
        self._next = 0
        # Place, CRC-32 of what was read of it so far, length, CRC-32 of what was written.
        self._sums: list[tuple[int, int, int, int]] = []

    def finished(self, job: Job, sums: Sequence[Sum] = ()) -> None:
        """A job has written all of its part, and knows these sums of it."""
        for place, length, written in sums:
            heappush(self._sums, (place, 0, length, written))
        self._finished.update(map(id, job.parts if isinstance(job, MatrixJob) else [job]))
        while self._next < len(self._order) and id(self._order[self._next]) in self._finished:
            self._next += 1
        if self._next < len(self._order):
            self._advance(_first_byte(self._order[self._next]))

    def digest(self) -> str:
        """The digest of the whole, hex; all jobs are finished."""
        self._advance(self._size)
        return self._state.hexdigest()

    def _advance(self, stop: int) -> None:
        """Digest what lies before `stop`. The file is opened anew: only then are writes of other machines sure to be seen.

        Raises:
            LadingError: B620 it cannot be read, or does not hold what was written.
        """
        try:
            with self._path.open("rb", buffering=0) as file:
                file.seek(self._done)
                while self._done < stop:
                    count = file.readinto(self._buffer[: stop - self._done])
                    if not count:
                        raise OSError(errno.EIO, "it is shorter than what was written")
                    self._state.update(self._buffer[:count])
                    self._compare(self._done, self._buffer[:count])
                    self._done += count
                if stop - self._sent >= SENT:
                    begin_sync(file.fileno(), self._sent, stop)
                    self._sent = stop
        except OSError as error:
            message = f"{self._path.name} cannot be read again: {error.strerror}"
            raise LadingError("B620", message, where=str(self._path)) from error

    def _compare(self, start: int, data: memoryview) -> None:
        """Compare what was read, from a place on, with what was written there."""
        while self._sums and self._sums[0][0] < start + len(data):
            place, found, length, written = heappop(self._sums)
            end = place + length
            found = crc32(data[max(place - start, 0) : end - start], found)
            if end > start + len(data):
                heappush(self._sums, (place, found, length, written))
                return
            if found != written:
                message = (
                    f"{length:,} bytes from {place:,} of {self._path.name} are not what a worker has written there"
                )
                hint = (
                    "the file system or the network has lost or changed them: look at its mount options, then try again"
                )
                raise LadingError("B620", message, where=str(self._path), hint=hint)


def _first_byte(job: Job) -> int:
    """Where the part of a job begins; 0 for the small parts of all weights."""
    return job.offset if isinstance(job, RowsJob) else 0


def _by_speed(jobs: Sequence[Job]) -> tuple[list[Job], list[tuple[QuantizedWeight, list[RowsJob]]]]:
    """Jobs that need nothing, and those of each weight that has to be quantized first, by their places in the file."""
    slow: dict[int, tuple[QuantizedWeight, list[RowsJob]]] = {}
    ready: list[Job] = []
    for job in sorted(jobs, key=_first_byte):
        recipe = job.weight.quantized if isinstance(job, RowsJob) else None
        if isinstance(job, RowsJob) and recipe is not None and recipe.is_slow:
            slow.setdefault(id(recipe), (recipe, []))[1].append(job)
        else:
            ready.append(job)
    return ready, list(slow.values())


def _in_order(work: Callable[[Job], Done], jobs: Sequence[Job], executor: Executor) -> Iterator[tuple[Job, Done]]:
    """Jobs with what they gave, each when it is done."""
    yield from zip(jobs, run_jobs(executor, work, jobs), strict=True)


def _in_turn(jobs: Sequence[Job], executor: Executor) -> Iterator[tuple[Job, list[Sum]]]:
    """Jobs that are done: those that need nothing, then of one slow weight after the other, its rows in several jobs."""
    ready, slow = _by_speed(jobs)
    yield from _in_order(run, ready, executor)
    for shared, waiting in slow:
        shared.keep(executor)
        yield from _in_order(run, waiting, executor)


def _by_matrix(jobs: Sequence[Job]) -> list[Job]:
    """Jobs for other machines: slow weights as a whole, the largest first, since they take longest."""
    ready, slow = _by_speed(jobs)
    return [*sorted((MatrixJob(tuple(waiting)) for _, waiting in slow), key=lambda job: -job.elements), *ready]


def _joined(path: Path, jobs: Sequence[Job], executor: Executor) -> Iterator[tuple[Job, list[Sum]]]:
    """Jobs that are done, with sums of what comes back of other machines, none of which sees the file.

    Slow weights come back as codes, which are kept like those that are quantized here.
    """
    ready, slow = _by_speed(jobs)
    with path.open("r+b", buffering=0) as file:
        for job, (parts, sums) in _in_order(parts_of, ready, executor):
            try:
                for offset, data in parts:
                    _pwrite(file.fileno(), np.frombuffer(data, np.uint8), offset)
            except OSError as error:
                raise LadingError("B620", f"writing failed: {error.strerror}", where=str(path)) from error
            yield job, sums
    weights = [shared.slow_parts() for shared, _ in slow]
    kept = keep_each([weight for found in weights for weight in found], executor)
    for found, (_, waiting) in zip(weights, slow, strict=True):
        for _ in found:
            next(kept)
        yield from ((job, run(job)) for job in waiting)


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


def _matrix_jobs(matrix: Matrix, path: Path, store: Store) -> list[Job]:
    weight = matrix.weight
    align = row_alignment(weight.bits, weight.columns)
    scales = matrix.alpha_bytes // max(1, weight.rows)
    return [
        RowsJob(
            path,
            weight,
            start,
            stop,
            matrix.code_offset + start * weight.columns * weight.bits // 8,
            matrix.alpha_offset + start * scales,
            True,
            store,
        )
        for start, stop in _ranges(weight.rows, weight.columns, align)
    ]


def _small_job(layout: Layout, matrices: Sequence[Matrix], path: Path) -> SmallJob:
    vectors = [(matrix.bias, matrix.bias_offset) for matrix in matrices if matrix.bias is not None]
    for vector in (*layout.vectors.values(), *layout.constants.values()):
        offset = vector.offset
        for value in vector.values:
            vectors.append((value, offset))
            offset += 4 * math.prod(value.sizes)
    return SmallJob(
        path,
        tuple((_header(matrix).tobytes(), matrix.offset) for matrix in matrices if matrix.header_bytes),
        tuple((value.name, value.tensor, offset) for value, offset in vectors),
    )


def _ranges(rows: int, columns: int, align: int) -> Iterator[tuple[int, int]]:
    step = max(align, JOB_ELEMENTS // max(columns, 1) // align * align)
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def _pieces(start: int, stop: int, columns: int) -> Iterator[tuple[int, int]]:
    step = max(1, PIECE_ELEMENTS // max(columns, 1))
    for low in range(start, stop, step):
        yield low, min(stop, low + step)


def _header(matrix: Matrix) -> np.ndarray:
    """Dimension count, dimensions and code table, as the runtime's loader reads them."""
    dims = np.array([matrix.weight.rows, matrix.weight.columns], "<u4" if matrix.wide_header else "<u2")
    codes = 1 << matrix.weight.bits
    table = np.arange(-codes // 2, codes // 2, dtype=np.int8).view(np.uint8)
    # A table of 256 codes has a length that does not fit its byte and is written as 0.
    return np.concatenate([np.array([2], np.uint8), dims.view(np.uint8), np.array([codes % 256], np.uint8), table])


def _vector(name: str, tensor: Tensor) -> np.ndarray:
    array = tensor.load().astype(np.float32).reshape(-1)
    if not np.isfinite(array).all():
        raise LadingError("B621", "the vector holds NaN or infinity", where=f"{name} ({tensor.loc})")
    return array


def _pwrite(fd: Out, array: np.ndarray, offset: int) -> None:
    view = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    if isinstance(fd, list):
        fd.append((offset, view.tobytes()))
        return
    if isinstance(fd, Summed):
        fd.sums.append((offset, view.nbytes, crc32(view)))
        fd = fd.fd
    while view.nbytes:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
