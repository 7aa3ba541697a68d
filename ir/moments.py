"""What flows into a weight: statistics of its input features, gathered on calibration text and kept on disk.

The statistics of a real model are gigabytes, so passes and quantizers speak of them by key and load one at a time. The
key is a digest of everything the numbers depend on, so that a stale entry is never read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ir.diag import Diagnostic, LadingError
from ir.facts import Fact, register

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ir.graph import Graph

CACHE_VARIABLE = "LADING_CACHE"
"""Environment variable that names the folder of cached work."""


def cache_folder() -> Path:
    """Where calibration statistics and quantized weights are kept between runs."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given) if given else Path.home() / ".cache" / "lading"


@dataclass(frozen=True)
class CalibrationText:
    """Token windows that passes measure with; a setting of `passes.base.PassContext`.

    Attributes:
        calibration: int32[n] token ids of each window that statistics are gathered on.
        held_out: windows of text that no statistic has seen, for measuring divergence.
    """

    calibration: tuple[np.ndarray, ...]
    held_out: tuple[np.ndarray, ...]

    def digest(self) -> str:
        """Digest of the windows of both kinds and of their order."""
        return _digest(self.calibration + (np.array([-1], np.int32),) + self.held_out)


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
    """

    key: str
    tokens: int
    second: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def features(self) -> int:
        """Input features."""
        return len(self.mean)

    @property
    def diagonal(self) -> np.ndarray:
        """float32[in], the mean of ``x`` squared."""
        return np.ascontiguousarray(np.diagonal(self.second))


class MomentStore:
    """Statistics on disk, one file a key: vectors and the lower triangle of the second moments.

    A file appears complete or not at all, so that a killed run leaves what it finished.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder if folder is not None else cache_folder() / "moments"

    def path(self, key: str) -> Path:
        """The file of a key, which need not exist."""
        return self.folder / f"{key}.npy"

    def has(self, key: str) -> bool:
        """True when the statistics of a key are there."""
        return self.path(key).is_file()

    def save(self, moments: Moments) -> None:
        """Write statistics.

        Raises:
            LadingError: Q431 no room or no permission.
        """
        size = moments.features
        flat = np.empty(4 + 3 * size + size * (size + 1) // 2, np.float32)
        flat[:2].view(np.int64)[0] = moments.tokens
        flat[2:4].view(np.int64)[0] = size
        flat[4 : 4 + 3 * size] = np.concatenate([moments.mean, moments.low, moments.high])
        place = 4 + 3 * size
        for row in range(size):
            flat[place : place + row + 1] = moments.second[row, : row + 1]
            place += row + 1
        path = self.path(moments.key)
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with scratch.open("wb") as file:
                np.save(file, flat)
            os.replace(scratch, path)
        except OSError as error:
            scratch.unlink(missing_ok=True)
            message = f"cannot keep calibration statistics: {error.strerror}"
            hint = f"free some space, or set {CACHE_VARIABLE} to another folder"
            raise LadingError("Q431", message, where=str(path), hint=hint) from error

    def load(self, key: str) -> Moments:
        """Read statistics.

        Raises:
            LadingError: Q430 they are not there or damaged.
        """
        path = self.path(key)
        hint = "run the pipeline with the pass calibrate before it, on the same model and text"
        try:
            flat = np.load(path, mmap_mode="r", allow_pickle=False)
            tokens, size = (int(number) for number in flat[:4].view(np.int64))
            if flat.dtype != np.float32 or flat.shape != (4 + 3 * size + size * (size + 1) // 2,):
                raise ValueError("its size does not fit")
        except (OSError, ValueError) as error:
            raise LadingError("Q430", f"no calibration statistics: {error}", where=str(path), hint=hint) from error
        mean, low, high = np.array(flat[4 : 4 + 3 * size]).reshape(3, size)
        second = np.empty((size, size), np.float32)
        place = 4 + 3 * size
        for row in range(size):
            second[row, : row + 1] = flat[place : place + row + 1]
            second[: row + 1, row] = second[row, : row + 1]
            place += row + 1
        return Moments(key, tokens, second, mean, low, high)


@register
@dataclass(frozen=True)
class Calibration(Fact):
    """Which statistics belong to which weight; the numbers themselves are in the `MomentStore`.

    Attributes:
        digest: digest of the calibration windows.
        tokens: positions seen.
        keys: key of the statistics by name of the weight; weights that read the same value share one.
    """

    name: ClassVar[str] = "calibration"

    digest: str
    tokens: int
    keys: Mapping[str, str] = field(default_factory=dict)

    def to_data(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"digest": self.digest, "tokens": self.tokens, "keys": dict(self.keys)}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Calibration:
        """Inverse of `to_data`."""
        return cls(data["digest"], data["tokens"], dict(data["keys"]))

    def check(self, graph: Graph) -> list[Diagnostic]:
        """Every weight with statistics is still there."""
        return [
            Diagnostic("I192", f"statistics speak of {name!r}, which the graph does not hold", graph.name)
            for name in self.keys
            if not graph.has(name)
        ]

    def renamed(self, old: str, new: str) -> Calibration:
        """The fact with a weight called otherwise."""
        if old not in self.keys:
            return self
        return Calibration(
            self.digest, self.tokens, {new if key == old else key: item for key, item in self.keys.items()}
        )


__all__ = ["CACHE_VARIABLE", "Calibration", "CalibrationText", "MomentStore", "Moments", "cache_folder", "windows_digest"]
