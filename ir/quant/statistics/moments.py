"""What flows into a weight: statistics of its input features, gathered on calibration text and kept on disk.

The statistics of a real model are gigabytes, so passes and quantizers speak of them by key and load one at a time. The
key is a digest of everything the numbers depend on, so that a stale entry is never read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from ir.base.diag import LadingError
from ir.base.store import Store, default_store
from ir.quant.statistics.rounding import BLOCKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ir.quant.statistics.sums import MomentSums

HEAD = 6
"""Single-precision numbers at the start of an entry, which hold three integers."""
START = HEAD + len(BLOCKS)
"""Where the vectors begin, behind what rounding costs by block, NaN where that is not known."""
MIRROR = 256
"""Rows and columns of the squares in which a triangle is mirrored."""


@dataclass(frozen=True)
class CalibrationText:
    """Token windows that passes measure with; a setting of `passes.framework.base.PassContext`.

    Attributes:
        calibration: int32[n] token ids of each window that statistics are gathered on.
        held_out: windows of text that no statistic has seen, for measuring divergence.
        read_as: what the text was read as, for people; such as ``120 chats``.
    """

    calibration: tuple[np.ndarray, ...]
    held_out: tuple[np.ndarray, ...]
    read_as: str = ""

    def digest(self) -> str:
        """Digest of the windows of both kinds and of their order."""
        return _digest((*self.calibration, np.array([-1], np.int32), *self.held_out))


def windows_digest(windows: Sequence[np.ndarray]) -> str:
    """Digest of token windows and of their order."""
    return _digest(windows)


def _digest(windows: Sequence[np.ndarray]) -> str:
    state = blake2b(digest_size=16)
    for window in windows:
        ids = np.ascontiguousarray(window, dtype="<i4")
        state.update(len(ids).to_bytes(8, "little"))
        state.update(ids.tobytes())
    return state.hexdigest()


@dataclass(frozen=True)
class Moments:
    """Statistics of the input features ``x`` of a weight over `tokens` positions, accumulated in double precision.

    Attributes:
        key: digest of the graph below the weight, the weights in it and the token windows.
        tokens: positions seen.
        second: float32[in, in], the mean of ``x x^T``, symmetric.
        mean: float32[in], the mean of ``x``.
        low, high: float32[in], extremes of ``x``.
        drift: float32[in, in], the mean of ``(y - x) x^T`` where ``y`` is what flows into the weight in the float model
            and ``x`` what does when weights before it are quantized; None when nothing is known of that.
        lag: float32[out, in], the mean of ``(z - W x) x^T`` where ``z`` is what the outputs should be for the model
            to go on as the float model does, and ``W`` the float weight; given instead of `drift`.
        outputs: float32[rows, rows], the second moments of the gradients with respect to the products with the rows
            that are quantized, damped; None where nothing is known of them.
    """

    key: str
    tokens: int
    second: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    drift: np.ndarray | None = None
    lag: np.ndarray | None = None
    outputs: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices."""
        return sum(part.nbytes for part in (self.second, self.drift, self.lag) if part is not None)

    def for_rows(self, places: Sequence[int] | np.ndarray) -> Moments:
        """The statistics as some rows of the weight need them."""
        if self.lag is None:
            return self
        chosen = slice(places.start, places.stop) if isinstance(places, range) and places.step == 1 else list(places)
        return replace(self, lag=self.lag[chosen])

    @property
    def features(self) -> int:
        """Input features."""
        return len(self.mean)

    @property
    def diagonal(self) -> np.ndarray:
        """float32[in], the mean of ``x`` squared."""
        return np.ascontiguousarray(np.diagonal(self.second))


class MomentStore:
    """Statistics in a store, one entry a key: what rounding costs, vectors and the lower triangle of the second moments.

    Attributes:
        store: where they are kept; a killed run leaves there what it finished.
    """

    def __init__(self, store: Store | None = None) -> None:
        self.store = store if store is not None else default_store()

    def has(self, key: str) -> bool:
        """True when the statistics of a key are there and sound."""
        return self.store.find(entry_of(key)) is not None

    def save(self, moments: Moments) -> None:
        """Write statistics.

        Raises:
            LadingError: Q431 no room or no permission.
        """
        rows = (moments.second[row, : row + 1] for row in range(moments.features))
        more = moments.drift if moments.drift is not None else moments.lag
        vectors = (moments.mean, moments.low, moments.high)
        self.write(moments.key, moments.tokens, vectors, rows, more, lags=moments.lag is not None)

    def save_sums(self, key: str, sums: MomentSums, more: np.ndarray | None = None, *, lags: bool = False) -> None:
        """Write what was summed up, without making the square matrix; `more` as for `write`, errors as for `save`."""
        self.write(key, sums.tokens, sums.vectors(), sums.second(), more, lags=lags, rounding=sums.rounding())

    def write(
        self,
        key: str,
        tokens: int,
        vectors: Sequence[np.ndarray],
        rows: Iterable[np.ndarray],
        more: np.ndarray | None = None,
        *,
        lags: bool = False,
        rounding: Mapping[int, float] | None = None,
    ) -> None:
        """Write statistics; errors as for `save`.

        Args:
            key: their name.
            tokens: positions seen.
            vectors: mean, low and high.
            rows: of the lower triangle of the second moments.
            more: the drift, or, when `lags`, the lag, which has as many columns.
            rounding: mean square error of a feature when positions are rounded to 8 bits, for those of
                `ir.quant.statistics.rounding.BLOCKS` that are known.
        """
        size = len(vectors[0])
        extra = 0 if more is None else len(more)
        # The sign says which of the two matrices it is: both may have as many rows as columns.
        kind = -extra if lags else extra
        count = START + 3 * size + size * (size + 1) // 2 + extra * size
        header = {"descr": "<f4", "fortran_order": False, "shape": (count,)}
        with self.store.put(entry_of(key), "Q431", "calibration statistics") as scratch, scratch.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.write(np.array([tokens, size, kind], "<i8").tobytes())
            file.write(np.array([(rounding or {}).get(block, np.nan) for block in BLOCKS], "<f4").tobytes())
            for part in (*vectors, *rows, *(() if more is None else more)):
                file.write(np.ascontiguousarray(part, "<f4").tobytes())

    def save_even(self, key: str, features: int, level: float) -> None:
        """Write statistics of no position: features of one mean square that have nothing to do with each other; errors as
        for `save`."""
        ends = np.full(features, np.sqrt(level), np.float32)
        rows = (np.eye(1, row + 1, row, np.float32)[0] * np.float32(level) for row in range(features))
        self.write(key, 0, (np.zeros(features, np.float32), -ends, ends), rows)

    def summary(self, key: str) -> tuple[int, float]:
        """Positions seen, and the mean square of a feature on average; errors as for `load`."""
        flat, tokens, size, _ = self._open(key)
        places = np.arange(1, size + 1)
        return tokens, float(flat[START + 3 * size - 1 + places * (places + 1) // 2].mean(dtype=np.float64))

    def rounding(self, key: str) -> dict[int, float]:
        """What `write` was given of rounding; empty for statistics of no position; errors as for `load`."""
        costs = self._open(key)[0][HEAD:START]
        return {block: float(cost) for block, cost in zip(BLOCKS, costs, strict=True) if not np.isnan(cost)}

    def load(self, key: str) -> Moments:
        """Read statistics.

        Raises:
            LadingError: Q430 they are not there or damaged.
        """
        flat, tokens, size, kind = self._open(key)
        mean, low, high = np.array(flat[START : START + 3 * size]).reshape(3, size)
        start = START + 3 * size
        end = start + size * (size + 1) // 2
        found = Moments(key, tokens, _square(flat[start:end], size), mean, low, high)
        if not kind:
            return found
        more = np.array(flat[end:]).reshape(-1, size)
        return replace(found, drift=more) if kind > 0 else replace(found, lag=more)

    def _open(self, key: str) -> tuple[np.ndarray, int, int, int]:
        """The numbers of a key, mapped, positions seen, features, and rows of the matrix behind the second moments,
        negative for a lag; errors as for `load`."""
        hint = "run the pipeline with the pass calibrate before it, on the same model and text"
        kept = self.store.find(entry_of(key))
        if kept is None:
            raise LadingError("Q430", "no sound calibration statistics are kept", where=entry_of(key), hint=hint)
        try:
            flat = np.load(kept.path, mmap_mode="r", allow_pickle=False)
            tokens, size, kind = (int(number) for number in flat[:HEAD].view(np.int64))
            if flat.dtype != np.float32 or flat.shape != (
                START + 3 * size + size * (size + 1) // 2 + abs(kind) * size,
            ):
                raise ValueError("its size does not fit")
        except (OSError, ValueError, EOFError) as error:
            raise LadingError("Q430", f"no calibration statistics: {error}", where=str(kept.path), hint=hint) from error
        return flat, tokens, size, kind


def joined(inputs: str, outputs: Sequence[str]) -> str:
    """One key for the statistics of a weight's input and those of the gradients behind its rows, run by run."""
    return "+".join((inputs, *outputs))


def parts_of(key: str) -> list[str]:
    """The keys that `joined` made one of: that of the input, then those of the gradients; nothing for no key."""
    return key.split("+") if key else []


def input_of(key: str) -> str:
    """The first of `parts_of`: the key of the statistics of the input; "" for no key."""
    return key.partition("+")[0]


def entry_of(key: str) -> str:
    """Name of the statistics of a key in the store."""
    return f"moments/{key}"


def _square(packed: np.ndarray, size: int) -> np.ndarray:
    """The symmetric matrix whose lower triangle stands in a vector, row by row."""
    whole = np.empty((size, size), np.float32)
    place = 0
    for row in range(size):
        whole[row, : row + 1] = packed[place : place + row + 1]
        place += row + 1
    for start in range(0, size, MIRROR):
        stop = min(start + MIRROR, size)
        whole[start:stop, stop:] = whole[stop:, start:stop].T
        corner = np.tril(whole[start:stop, start:stop])
        whole[start:stop, start:stop] = corner + np.tril(corner, -1).T
    return whole


__all__ = [
    "CalibrationText",
    "MomentStore",
    "Moments",
    "entry_of",
    "input_of",
    "joined",
    "parts_of",
    "windows_digest",
]
