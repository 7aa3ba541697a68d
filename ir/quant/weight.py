"""Block quantization of weights: the lazy recipe that backends evaluate row range by row range.

How it is stored is a `Storage`; what methods promise stands in `ir.quant.methods.base`, and the methods are
`ir.quant.methods.rtn` and its neighbours. Everything that others need can be imported from here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from ir.base.diag import LadingError, suggest
from ir.base.executor import SERIAL, JobExecutor, here, run_jobs, shares_files
from ir.base.store import Store, default_store, using_store
from ir.base.types import F32, TensorType, int_type
from ir.quant.cache import (
    Shape,
    find_blocks,
    loaded_moments,
    loaded_outputs,
    make_blocks,
    ranges_of,
    result_key,
    shape_of,
    write_rows,
)
from ir.quant.methods.base import (
    METHODS,
    Blocks,
    Needs,
    NotFinite,
    OutOfScale,
    QuantMethod,
    Scratch,
    dequantize,
    real_zero,
    thread_scratch,
)
from ir.quant.statistics.moments import Moments, entry_of, input_of, parts_of
from ir.quant.statistics.second_moments import factor_of
from ir.quant.storage import Storage
from ir.tensor.base import Derived, Tensor
from ir.tensor.elementwise import convert
from ir.tensor.identity import tensor_identity
from ir.tensor.one_thread import one_thread

PIECE_WEIGHTS = 1 << 19

_READING = threading.Lock()


class QuantizedWeight:
    """A float matrix ``[out, in]`` and how it is quantized; codes, scales and zeros are evaluated together, on demand.

    Attributes:
        source: the float matrix.
        storage: how it is quantized.
        moments: key of the statistics of the input features in the `MomentStore`; empty for none.
        blocks: blocks per row.
    """

    def __init__(self, source: Tensor, storage: Storage, moments: str = "") -> None:
        """Raises LadingError: Q400 a storage of floats, Q401 block, Q404 unknown method, Q405 not a float matrix, Q440 no
        statistics."""
        if not storage.is_integer:
            raise LadingError("Q400", f"bits={storage.bits}: codes have 2 to 8 bits", where=source.loc)
        if source.type.rank != 2 or not source.type.dtype.is_float:
            raise LadingError("Q405", f"only float matrices can be quantized, not {source.type}", where=source.loc)
        if storage.method not in METHODS:
            hint = suggest(storage.method, list(METHODS)) or f"known: {', '.join(sorted(METHODS))}"
            raise LadingError("Q404", f"unknown quantization method {storage.method!r}", hint=hint)
        if METHODS[storage.method].needs in ("second-moments", "both-sides") and not moments:
            message = (
                f"the method {storage.method!r} needs statistics of what flows into the weight, and there are none"
            )
            hint = "put the pass calibrate, with a calibration text, before assign-precision"
            raise LadingError("Q440", message, where=source.loc, hint=hint)
        self.source = source
        self.storage = storage
        self.moments = moments
        self.blocks = _blocks_of(source, storage)

    def __repr__(self) -> str:
        return f"<QuantizedWeight {self.source.type} {self.storage} {self.source.loc}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return shared_quantized, (self.source, self.storage, self.moments)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and input features."""
        rows, columns = self.source.shape
        return rows, columns

    @cached_property
    def codes(self) -> Tensor:
        """i{bits}[out, in]."""
        return _Codes(self, TensorType(int_type(self.storage.bits), self.shape))

    @cached_property
    def scale(self) -> Tensor:
        """f32[out, blocks], already rounded when stored as f16."""
        return _Scale(self, TensorType(F32, (self.shape[0], self.blocks)))

    @cached_property
    def zero_point(self) -> Tensor | None:
        """i{bits}[out, blocks] zero points, f32[out, blocks] real zeros, or None when symmetric."""
        if self.storage.symmetric:
            return None
        kind = int_type(self.storage.bits) if self.storage.zero == "int" else F32
        return _Zero(self, TensorType(kind, (self.shape[0], self.blocks)))

    def dequantized(self) -> Tensor:
        """f32[out, in] as runtimes compute it: ``codes * scale + zero`` in float32, with ``zero = -zero_point *
        scale``."""
        return _Dequantized(self, TensorType(F32, self.shape))

    def pieces(self, start: int, stop: int, multiple: int = 1) -> Iterator[tuple[int, int, Blocks]]:
        """Cache-sized runs of the rows `start` to `stop` as ``(first, last, blocks)``.

        The arrays lie in the thread's scratch memory: use them before asking for the next. Every run but the last has a
        multiple of `multiple` rows.

        Raises:
            LadingError: Q402 for NaN or infinity, Q403 for a scale beyond half precision, Q430 for statistics that are
                not there, Q441 when a result cannot be kept, Q442 for statistics of another matrix, and what the source
                raises.
        """
        if not 0 <= start <= stop <= self.shape[0]:
            raise IndexError(f"rows {start} to {stop} of {self.source.type}")
        step = max(1, PIECE_WEIGHTS // max(1, self.shape[1]) // multiple) * multiple
        read = self._reader()
        for first in range(start, stop, step):
            last = min(stop, first + step)
            yield first, last, read(first, last)

    def _reader(self) -> Callable[[int, int], Blocks]:
        """What gives ranges of quantized rows: the file they came from, the kept result, or the method itself."""
        stored = getattr(self.source, "stored_blocks", None)
        if stored is not None:
            return stored
        if not self.is_slow or not self.shape[0] * self.shape[1]:
            return self._quantize
        kept = self._kept
        return lambda start, stop: kept.rows(slice(start, stop))

    def keep(self, executor: Executor) -> None:
        """Quantize all rows now, on an executor, and keep the result where reading looks for it.

        Reading a weight of a slow method would do the same in the thread that reads. Nothing happens for other methods,
        and where the result is kept already. Errors are those of `pieces`.
        """
        if self.slow_parts():
            self.__dict__["_kept"] = self._whole(executor)

    def slow_parts(self) -> list[QuantizedWeight]:
        """The weights that are quantized as a whole before any row of this one can be read."""
        return [self] if self.is_slow and self.shape[0] * self.shape[1] else []

    @cached_property
    def _kept(self) -> Blocks:
        # One weight at a time, which bounds memory; who asks for one that is being made waits.
        with _READING:
            return self._whole(SERIAL)

    def _whole(self, executor: Executor) -> Blocks:
        store, (key, shape) = default_store(), self._place()
        found = find_blocks(store, key, shape)
        if found is not None:
            return found
        if not shares_files(executor):
            for _ in keep_each([self], executor):
                pass
            return self._kept

        def fill(path: Path) -> None:
            self._prepare(executor)
            for _ in run_jobs(executor, partial(_fill_rows, path, shape), self._jobs(store)):
                pass

        return make_blocks(store, key, shape, fill)

    def _prepare(self, executor: Executor) -> None:
        """Factor the statistics over all threads, which every row would wait for that one of them does it."""
        if self.moments and METHODS[self.storage.method].needs == "second-moments":
            with one_thread(), np.errstate(over="ignore", invalid="ignore"):
                factor_of(loaded_moments(input_of(self.moments)), executor)

    def _jobs(self, store: Store) -> list[_RowsJob]:
        """Jobs that quantize all rows."""
        shape = shape_of(*self.shape, self.storage)
        ranges = ranges_of(shape, len(os.sched_getaffinity(0)), METHODS[self.storage.method].together)
        return [_RowsJob(self, store, *rows) for rows in ranges]

    def _place(self) -> tuple[str, Shape]:
        """Name of the result in the store, and its sizes."""
        shape = shape_of(*self.shape, self.storage)
        version = METHODS[self.storage.method].version
        key = result_key(tensor_identity(self.source), self.storage, self.moments, version)
        return key, shape

    @property
    def is_slow(self) -> bool:
        """True when reading any row quantizes all of them first, or maps what was kept of that."""
        slow = METHODS[self.storage.method].slow
        return slow and not hasattr(self.source, "stored_blocks")

    def _statistics(self, method: QuantMethod, first: int) -> Moments | None:
        """What a method is given for rows from `first` on."""
        if method.needs == "nothing" or not self.moments:
            return None
        inputs, *outputs = parts_of(self.moments)
        moments = loaded_moments(inputs)
        if outputs and method.needs == "both-sides":
            moments = replace(moments, outputs=loaded_outputs(outputs[first // method.together]))
        if moments.features != self.shape[1]:
            message = f"statistics of {moments.features} features do not fit {self.source.type}"
            raise LadingError("Q442", message, where=self.source.loc, hint="calibrate the model that is compiled")
        return moments

    def _quantize(self, start: int, stop: int) -> Blocks:
        rows = self.source.rows(start, stop)
        if self.source.type.dtype not in METHODS[self.storage.method].accepts:
            rows = convert(rows, F32, self.source.loc)
        return self.quantize_rows(rows, range(start, stop))

    def quantize_rows(self, rows: np.ndarray, places: Sequence[int] | np.ndarray) -> Blocks:
        """Some rows ``[n, in]`` of the source, as the method accepts them or as float32, quantized by themselves.

        They come out as they do in the whole. `places` says which they are, for errors, which are those of `pieces`.
        The arrays may lie in the thread's scratch memory.
        """
        method = METHODS[self.storage.method]
        try:
            moments = self._statistics(method, int(places[0]))
            moments = moments if moments is None else moments.for_rows(places)
            return method.quantize(rows, self.storage, thread_scratch(), moments)
        except NotFinite as error:
            message = f"row {places[error.row]} has NaN or infinity"
            hint = "the checkpoint is damaged: get its files again"
            raise LadingError("Q402", message, where=self.source.loc, hint=hint) from error
        except OutOfScale as error:
            message = f"row {places[error.row]} needs a scale or zero that half precision cannot hold"
            raise LadingError("Q403", message, where=self.source.loc, hint="store scales as f32") from error

    def rows(self, start: int, stop: int) -> Blocks:
        """Codes, scale and zero of a row range in arrays of their own; errors as for `pieces`."""
        count = stop - start
        codes = np.empty((count, self.shape[1]), np.int8)
        scale = np.empty((count, self.blocks), np.float32)
        zero = None
        if not self.storage.symmetric:
            zero = np.empty(scale.shape, np.int8 if self.storage.zero == "int" else np.float32)
        for first, last, part in self.pieces(start, stop):
            codes[first - start : last - start] = part.codes
            scale[first - start : last - start] = part.scale
            if zero is not None:
                zero[first - start : last - start] = part.zero
        return Blocks(codes, scale, zero)


@dataclass(frozen=True)
class _RowsJob:
    """Quantize rows `start` to `stop`; plain data, for executors of any kind."""

    weight: QuantizedWeight
    store: Store
    start: int
    stop: int

    @property
    def reads(self) -> tuple[str, ...]:
        """The entry of the store that it looks for."""
        return tuple(map(entry_of, parts_of(self.weight.moments)))


def _fill_rows(path: Path, shape: Shape, job: _RowsJob) -> None:
    """Quantize into the file of the whole weight."""
    with using_store(job.store):
        write_rows(path, shape, job.start, job.weight._quantize(job.start, job.stop))


def _quantized_rows(job: _RowsJob) -> Blocks:
    with using_store(job.store):
        # The thread and its scratch memory go on to other jobs.
        return job.weight._quantize(job.start, job.stop).kept()


def keep_each(weights: Sequence[QuantizedWeight], executor: Executor) -> Iterator[QuantizedWeight]:
    """Quantize weights of slow methods on an executor that need not see the files of this process.

    Rows come back and are kept here; each weight is given as soon as it is there, and the next ones are worked on
    meanwhile. Errors are those of `QuantizedWeight.pieces`.
    """
    store = default_store()
    places = [weight._place() for weight in weights]
    found = [find_blocks(store, key, shape) for key, shape in places]
    missing = [weight for weight, blocks in zip(weights, found, strict=True) if blocks is None]
    results = run_jobs(executor, _quantized_rows, (job for weight in missing for job in weight._jobs(store)))
    for weight, (key, shape), blocks in zip(weights, places, found, strict=True):
        if blocks is None:

            def fill(path: Path, weight: QuantizedWeight = weight, shape: Shape = shape) -> None:
                for job in weight._jobs(store):
                    write_rows(path, shape, job.start, next(results))

            blocks = make_blocks(store, key, shape, fill)
        weight.__dict__["_kept"] = blocks
        yield weight


def _blocks_of(source: Tensor, storage: Storage) -> int:
    try:
        return storage.blocks(source.shape[1])
    except LadingError as error:
        found = error.diagnostics[0]
        raise LadingError(found.code, found.message, where=source.loc, hint=found.hint) from error


class _Part(Derived):
    """One of the tensors of a quantized weight."""

    def __init__(self, parent: QuantizedWeight, type: TensorType) -> None:
        how = parent.storage
        described = {
            "bits": how.bits,
            "block": how.block,
            "symmetric": how.symmetric,
            "zero": how.zero,
            "method": how.method,
            "scale": how.scale,
        }
        if parent.moments:
            described["moments"] = parent.moments
        super().__init__(type, parent.source, **described)
        self.quantized = parent

    def rows(self, start: int, stop: int) -> np.ndarray:
        self._bounds(start, stop)
        out = np.empty((stop - start, self.row_size), self.type.dtype.numpy)
        for first, last, part in self.quantized.pieces(start, stop):
            out[first - start : last - start] = self._pick(part)
        return out

    def _pick(self, part: Blocks) -> np.ndarray:
        raise NotImplementedError


class _Codes(_Part):
    name = "quantized_codes"

    def _pick(self, part: Blocks) -> np.ndarray:
        return part.codes.astype(self.type.dtype.numpy, copy=False)


class _Scale(_Part):
    name = "quantized_scale"

    def _pick(self, part: Blocks) -> np.ndarray:
        return part.scale


class _Zero(_Part):
    name = "quantized_zero_point"

    def _pick(self, part: Blocks) -> np.ndarray:
        assert part.zero is not None
        return part.zero.astype(self.type.dtype.numpy, copy=False)


class _Dequantized(_Part):
    name = "quantized_dequantized"

    def _pick(self, part: Blocks) -> np.ndarray:
        return dequantize(part)


_SHARED: WeakValueDictionary[tuple[str, Storage, str], QuantizedWeight] = WeakValueDictionary()


def quantized_of(tensor: Tensor) -> QuantizedWeight | None:
    """The quantized weight that a tensor is the codes, scales, zeros or real values of, or None."""
    return tensor.quantized if isinstance(tensor, _Part) else None


def keep_all(tensors: Iterable[Tensor], executor: Executor) -> None:
    """Quantize ahead, on an executor, what reading the tensors would quantize in the thread that reads.

    One weight is quantized at a time, its rows in several jobs; other machines quantize several, each a whole one.
    Errors as for `QuantizedWeight.pieces`.
    """
    weights = _slow_weights(tensors)
    if not isinstance(executor, JobExecutor):
        for weight in weights:
            weight.keep(executor)
    elif executor.shares_files:
        for _ in run_jobs(executor, _keep_whole, [_WholeJob(weight, default_store()) for weight in weights]):
            pass
    else:
        for _ in keep_each(weights, executor):
            pass


def let_go(tensors: Iterable[Tensor]) -> None:
    """Hold the kept results below some tensors no longer, whose pages count as memory once they were read; reading finds
    them again."""
    for weight in _slow_weights(tensors):
        weight.__dict__.pop("_kept", None)


@dataclass(frozen=True)
class _WholeJob:
    """Quantize all rows of a weight and keep them, over all that is `here`."""

    weight: QuantizedWeight
    store: Store

    alone = True


def _keep_whole(job: _WholeJob) -> None:
    with using_store(job.store):
        job.weight.keep(here())


def _slow_weights(tensors: Iterable[Tensor]) -> list[QuantizedWeight]:
    """The weights of slow methods below some tensors, each once."""
    done: set[int] = set()
    found: dict[int, QuantizedWeight] = {}
    pending = list(tensors)[::-1]
    while pending:
        tensor = pending.pop()
        if id(tensor) in done:
            continue
        done.add(id(tensor))
        weight = quantized_of(tensor)
        if weight is not None:
            found |= {id(part): part for part in weight.slow_parts()}
        pending += reversed(tensor.inputs)
    return list(found.values())


def shared_quantized(source: Tensor, storage: Storage, moments: str = "") -> QuantizedWeight:
    """The quantization of an equal source to the same storage with the same statistics that is alive, or a new one.

    Parts rebuilt one by one, such as those of a parsed graph, get one parent this way.
    """
    key = (source.fingerprint(), storage, moments)
    found = _SHARED.get(key)
    if found is None:
        found = _SHARED[key] = QuantizedWeight(source, storage, moments)
    return found


def rebuild_codes(source: Tensor, *, moments: str = "", **storage: Any) -> Tensor:
    """The recipe ``quantized_codes``."""
    return shared_quantized(source, Storage(**storage), moments).codes


def rebuild_scale(source: Tensor, *, moments: str = "", **storage: Any) -> Tensor:
    """The recipe ``quantized_scale``."""
    return shared_quantized(source, Storage(**storage), moments).scale


def rebuild_zero_point(source: Tensor, *, moments: str = "", **storage: Any) -> Tensor:
    """The recipe ``quantized_zero_point``; Q400 when the storage is symmetric and so has none."""
    found = shared_quantized(source, Storage(**storage), moments).zero_point
    if found is None:
        raise LadingError("Q400", "a symmetric weight has no zero point", where=source.loc)
    return found


def rebuild_dequantized(source: Tensor, *, moments: str = "", **storage: Any) -> Tensor:
    """The recipe ``quantized_dequantized``."""
    return shared_quantized(source, Storage(**storage), moments).dequantized()


__all__ = [
    "METHODS",
    "Blocks",
    "Needs",
    "NotFinite",
    "OutOfScale",
    "QuantMethod",
    "QuantizedWeight",
    "Scratch",
    "dequantize",
    "keep_all",
    "keep_each",
    "let_go",
    "quantized_of",
    "real_zero",
    "rebuild_codes",
    "rebuild_dequantized",
    "rebuild_scale",
    "rebuild_zero_point",
    "shared_quantized",
    "thread_scratch",
]
