"""Calibration data of models that read no tokens: complete sets of inputs, read one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

Feed = Mapping[str, "np.ndarray"]


class SampleSource(Protocol):
    """Sets of inputs in an order that stays, of which few are in memory at a time.

    Attributes:
        identity: a text that is another one when any number in them is.
    """

    identity: str

    def __len__(self) -> int:
        """How many sets there are."""

    def read(self, places: Sequence[int]) -> Iterator[Feed]:
        """The sets at rising places, arrays by name of the input, each made when it is asked for."""


@dataclass(frozen=True)
class Samples:
    """Some of the sets of inputs of a source.

    Attributes:
        source: where they are.
        places: which, rising.
    """

    source: SampleSource
    places: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[Feed]:
        return self.source.read(self.places)

    def first(self, count: int) -> Samples:
        """At most so many of them."""
        return Samples(self.source, self.places[:count])

    def digest(self) -> str:
        """Digest (hex) of the numbers and of their order."""
        state = blake2b(self.source.identity.encode(), digest_size=16)
        state.update(repr(self.places).encode())
        return state.hexdigest()


@dataclass(frozen=True)
class CalibrationSamples:
    """Inputs that passes measure with; a setting of `passes.framework.context.PassContext`.

    Attributes:
        calibration: what activation ranges are gathered on.
        held_out: what no statistic has seen, for measuring what quantization costs; may be empty.
        read_as: what was read, for people; such as ``32 samples``.
    """

    calibration: Samples
    held_out: Samples
    read_as: str = ""

    @property
    def for_measuring(self) -> Samples:
        """What errors are measured on: held-out samples where there are any."""
        return self.held_out if len(self.held_out) else self.calibration


class ArraySamples:
    """Sets of inputs that are in memory."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = list(feeds)
        state = blake2b(digest_size=16)
        for feed in self._feeds:
            for name, array in sorted(feed.items()):
                state.update(f"{name} {array.dtype} {array.shape}\0".encode())
                state.update(array.tobytes())
        self.identity = state.hexdigest()

    def __len__(self) -> int:
        return len(self._feeds)

    def read(self, places: Sequence[int]) -> Iterator[Feed]:
        """See `SampleSource.read`."""
        return (self._feeds[place] for place in places)


HELD_OUT = 5
"""One of so many samples is held out, as long as that leaves some to calibrate on."""
MOST_HELD_OUT = 16
"""Held-out samples at most."""


def split(source: SampleSource, read_as: str = "") -> CalibrationSamples:
    """Samples to calibrate on, and others, spread evenly between them, to measure with."""
    count = len(source)
    step = max(HELD_OUT, -(-count // MOST_HELD_OUT))
    held = tuple(range(step - 1, count, step))
    kept = tuple(place for place in range(count) if place not in set(held))
    return CalibrationSamples(Samples(source, kept), Samples(source, held), read_as)


__all__ = ["ArraySamples", "CalibrationSamples", "Feed", "SampleSource", "Samples", "split"]
