"""Whether a runtime gave what a model means: shapes, element types, and numbers up to the rounding of single precision."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

RELATIVE, ABSOLUTE = 1e-3, 1e-4
"""How far an element may be off: a share of itself, and a share of the largest element where that is below 1."""
LEAST = 1e-7
"""How far any element may be off."""
HALF = 8.0
"""Factor of both where the original computes in half precision."""
NOISE = 16.0
"""Times that an element may be off by what the original itself changes by when its inputs change in their last bit."""

Kind = Literal["type", "shape", "not a number", "value"]


@dataclass(frozen=True)
class Misfit:
    """How an output is not what it should be.

    Attributes:
        kind: what is wrong with it.
        text: the same with numbers, to follow the name of the output.
        gap: how far it is off where it is off most; infinite for what cannot be measured.
    """

    kind: Kind
    text: str
    gap: float = float("inf")


@dataclass
class Gap:
    """How far outputs are off a reference.

    Attributes:
        largest: difference of an element.
        off, size: sums of squares of the difference and of the reference, by output.
    """

    largest: float = 0.0
    off: dict[int, float] = field(default_factory=dict)
    size: dict[int, float] = field(default_factory=dict)

    def add(self, place: int, wanted: np.ndarray, got: np.ndarray) -> None:
        """Count one more output, which has the shape that it should have."""
        difference, sound = _difference(wanted, got)
        self.largest = max(self.largest, float(difference.max(initial=0.0)))
        self.off[place] = self.off.get(place, 0.0) + float(np.square(difference).sum())
        self.size[place] = self.size.get(place, 0.0) + float(np.square(wanted[sound].astype(np.float64)).sum())

    @property
    def relative(self) -> float:
        """Root mean square of the difference relative to that of the output, of the worst output."""
        pairs = [(self.off[place], self.size[place]) for place in self.off]
        return max(((off / size) ** 0.5 if size else float(off > 0)) for off, size in pairs) if pairs else 0.0


def _difference(wanted: np.ndarray, got: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Absolute differences, 0 where the reference is no finite number, and where it is one."""
    a, b = wanted.astype(np.float64), got.astype(np.float64)
    sound = np.isfinite(a)
    with np.errstate(invalid="ignore"):
        return np.where(sound, np.where(np.isfinite(b), np.abs(a - b), np.inf), 0.0), sound


def misfit(
    wanted: np.ndarray,
    got: np.ndarray,
    *,
    by: str = "the original",
    half: bool = False,
    noise: np.ndarray | None = None,
) -> Misfit | None:
    """How an output is not what it should be; None when it is. What is no number in the reference may be anything.

    Args:
        wanted: what the reference gives, of whatever element type.
        got: what the runtime gives; integers and booleans are held as integers, floats as floats.
        by: what gave `wanted`, for people.
        half: the reference was computed in half precision.
        noise: how far each element of the reference moves by itself.
    """
    whole = _is_whole(wanted.dtype)
    if _is_whole(got.dtype) != whole:
        return Misfit("type", f"holds {got.dtype} where {by} gives {wanted.dtype}")
    if wanted.shape != got.shape:
        return Misfit("shape", f"has the shape {list(got.shape)} where {by} gives {list(wanted.shape)}")
    if not wanted.size:
        return None
    difference, sound = _difference(wanted, got)
    with np.errstate(invalid="ignore"):
        infinite = np.isinf(wanted.astype(np.float64)) & (wanted.astype(np.float64) != got.astype(np.float64))
    strange = sound & ~np.isfinite(got.astype(np.float64))
    if strange.any():
        place = _place(strange)
        return Misfit("not a number", f"is {got[place]} at {_index(place)} where {by} gives {_number(wanted[place])}")
    if whole:
        allowed = np.zeros(wanted.shape)
    else:
        size = np.abs(np.where(sound, wanted.astype(np.float64), 0.0))
        factor = HALF if half else 1.0
        absolute = max(ABSOLUTE * min(1.0, float(size.max(initial=0.0))), LEAST)
        allowed = factor * (absolute + RELATIVE * size)
    if noise is not None:
        allowed = allowed + NOISE * noise
    beyond = (difference > allowed) | infinite
    if not beyond.any():
        return None
    over = np.where(infinite, np.inf, difference - allowed)
    place = _place(over == over.max())
    text = f"is {_number(got[place])} at {_index(place)} where {by} gives {_number(wanted[place])}"
    if (count := int(np.count_nonzero(beyond))) > 1:
        text += f", and differs in {count:,} of {beyond.size:,} numbers"
    return Misfit("value", text, float(difference.max()))


def _is_whole(dtype: np.dtype) -> bool:
    """True for integers, those of a few bits too, and truth values."""
    return dtype.kind in "iub" or dtype.name.startswith(("int", "uint"))


def _place(mask: np.ndarray) -> tuple[int, ...]:
    return tuple(int(index) for index in np.argwhere(mask)[0])


def _index(place: tuple[int, ...]) -> str:
    return str(list(place))


def _number(number: np.generic) -> str:
    return str(int(number)) if _is_whole(number.dtype) else f"{float(number):.6g}"


__all__ = ["Gap", "Kind", "Misfit", "misfit"]
