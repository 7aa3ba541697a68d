"""Rotary position embeddings: reading a configuration's rope record and computing the tables it stands for.

A position p turns the pair i of a head by the angle ``p * inv_freq[i]`` (Su et al. 2021, arXiv:2104.09864). The kinds
differ in how the base frequencies ``theta ** (-2 i / n)`` are changed to reach longer contexts. The arithmetic follows
the reference implementation step by step in float32, only that powers are rounded once (evaluated in float64), so
that the values are the same or one or two units in the last place away.

Two kinds depend on the length s of the sequence at run time, s being the largest position of the call plus one:

* ``dynamic`` keeps the trained frequencies up to the trained length and stretches the base beyond it (`Stretch`);
* ``longrope`` changes from one table to another beyond the original length (`Switch`).

Both are evaluated for each call. Keys that a runtime has cached keep the rotation of the call that made them, which
is what the reference implementation does with a key/value cache as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from frontends.configuration.keys import shown
from ir.base.diag import LadingError, suggest

MAX_LENGTH = 1 << 31
"""Upper bound of a sequence length: positions are 32-bit integers in every runtime."""


@dataclass(frozen=True)
class Rope:
    """A checked rope record.

    Attributes:
        kind: key of `KINDS`.
        theta: base of the frequencies.
        width: number of rotated elements of a head (n), even.
        max_position: ``max_position_embeddings`` of the model.
        factor: scaling factor; None only where the kind may go without.
        original: length of the pre-training context.
        attention_factor: multiplier of cos and sin when the file states it.
        low_freq_factor, high_freq_factor: bounds of the llama3 blend.
        beta_fast, beta_slow, mscale, mscale_all_dim, truncate: parameters of yarn.
        short_factor, long_factor: divisors of each frequency (longrope), n/2 numbers.
        alpha: stretch of the base (alpha).
    """

    kind: str
    theta: float
    width: int
    max_position: int
    factor: float | None = None
    original: int = 0
    attention_factor: float | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    alpha: float = 1.0

    @property
    def context(self) -> int:
        """Longest sequence that the record is meant for.

        ``linear`` and ``dynamic`` extend the trained length by their factor and ``yarn`` its original length, whether
        or not the file's ``max_position_embeddings`` was raised as well; other kinds state the extended length there.
        """
        factor = max(self.factor or 1.0, 1.0)
        trained = {"linear": self.max_position, "dynamic": self.max_position, "yarn": self.original}.get(self.kind, 0)
        return int(min(max(self.max_position, trained * factor), MAX_LENGTH))


@dataclass(frozen=True, eq=False)
class Stretch:
    """Frequencies of a length s beyond `limit`: ``inv_freq * exp(-exponents * ln(1 + slope * (s - limit)))``.

    This is ``1 / (theta * r ** (n / (n - 2))) ** (2 i / n)`` with r = 1 + slope * (s - limit), written so that float32
    loses nothing: the logarithm is small, and zero at the limit, where the factor is exactly one.
    """

    limit: int
    slope: float
    exponents: np.ndarray


@dataclass(frozen=True, eq=False)
class Switch:
    """Frequencies of lengths above `limit`."""

    limit: int
    inv_freq: np.ndarray


@dataclass(frozen=True, eq=False)
class RopeTable:
    """Frequencies of a rope.

    Attributes:
        inv_freq: float32[n/2], radians per position.
        attention_factor: multiplier of cos and sin.
        variant: how the frequencies change with the length of the sequence; None when they do not.
    """

    inv_freq: np.ndarray
    attention_factor: float = 1.0
    variant: Stretch | Switch | None = None

    def at_length(self, length: int) -> np.ndarray:
        """The float32[n/2] frequencies that apply to a sequence of `length` positions."""
        variant = self.variant
        if variant is None or length <= variant.limit:
            return self.inv_freq
        if isinstance(variant, Switch):
            return variant.inv_freq
        ratio = 1.0 + variant.slope * (length - variant.limit)
        return (self.inv_freq * np.exp(-variant.exponents * math.log(ratio))).astype(np.float32)


def table(rope: Rope) -> RopeTable:
    """The frequencies and the cos/sin multiplier of a rope record."""
    return KINDS[rope.kind].table(rope)


# ---- the kinds ----


def _powers(rope: Rope) -> np.ndarray:
    """``theta ** (2 i / n)`` for i < n/2: float32 steps, each power rounded once."""
    exponents = np.arange(0, rope.width, 2, dtype=np.float32) / np.float32(rope.width)
    return np.power(np.float64(np.float32(rope.theta)), exponents.astype(np.float64)).astype(np.float32)


def _default(rope: Rope) -> RopeTable:
    return RopeTable(np.float32(1.0) / _powers(rope))


def _linear(rope: Rope) -> RopeTable:
    """Position interpolation (Chen et al. 2023, arXiv:2306.15595)."""
    return RopeTable(np.float32(1.0) / _powers(rope) / np.float32(rope.factor))


def _dynamic(rope: Rope) -> RopeTable:
    """NTK-aware scaling whose base grows with the length (reviewed in section 3 of arXiv:2309.00071)."""
    exponents = (np.arange(0, rope.width, 2) / (rope.width - 2)).astype(np.float32)
    slope = float(rope.factor or 1.0) / rope.max_position
    return RopeTable(np.float32(1.0) / _powers(rope), variant=Stretch(rope.max_position, slope, exponents))


def _alpha(rope: Rope) -> RopeTable:
    """NTK-aware scaling by a fixed number: the base times ``alpha ** (n / (n - 2))``, whatever the length."""
    stretched = rope.theta * rope.alpha ** (rope.width / (rope.width - 2))
    return RopeTable(np.float32(1.0) / _powers(replace(rope, theta=stretched)))


def _yarn_gain(factor: float, mscale: float = 1.0) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def _yarn(rope: Rope) -> RopeTable:
    """YaRN (Peng et al. 2023, arXiv:2309.00071): interpolated slow, untouched fast frequencies, a ramp between."""
    factor = rope.factor if rope.factor is not None else rope.max_position / rope.original
    gain = rope.attention_factor
    if gain is None and rope.mscale and rope.mscale_all_dim:
        gain = _yarn_gain(factor, rope.mscale) / _yarn_gain(factor, rope.mscale_all_dim)
    if gain is None:
        gain = _yarn_gain(factor)

    def dimension(turns: float) -> float:
        # The dimension whose pair turns that often within the original context.
        return rope.width * math.log(rope.original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.width - 1)
    if low == high:
        high += 0.001
    steps = (np.arange(rope.width // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    keep = np.float32(1.0) - np.clip(steps, 0.0, 1.0)
    powers = _powers(rope)
    slow, fast = np.float32(1.0) / (np.float32(factor) * powers), np.float32(1.0) / powers
    return RopeTable(slow * (np.float32(1.0) - keep) + fast * keep, float(gain))


def _longrope(rope: Rope) -> RopeTable:
    """LongRoPE (Ding et al. 2024, arXiv:2402.13753): a divisor for each frequency, other ones beyond `original`."""
    factor = rope.factor if rope.factor is not None else rope.max_position / rope.original
    gain = rope.attention_factor
    if gain is None:
        gain = math.sqrt(1 + math.log(factor) / math.log(rope.original)) if factor > 1.0 else 1.0
    powers = _powers(rope)
    short = np.float32(1.0) / (np.array(rope.short_factor, np.float32) * powers)
    long = np.float32(1.0) / (np.array(rope.long_factor, np.float32) * powers)
    variant = None if np.array_equal(short, long) else Switch(rope.original, long)
    return RopeTable(short, float(gain), variant)


def _llama3(rope: Rope) -> RopeTable:
    """Llama 3.1 (Dubey et al. 2024, arXiv:2407.21783): slow frequencies divided by the factor, a blend in between."""
    factor, low, high = np.float32(rope.factor), rope.low_freq_factor, rope.high_freq_factor
    inv_freq = np.float32(1.0) / _powers(rope)
    wavelength = np.float32(2 * math.pi) * (np.float32(1.0) / inv_freq)
    slow, fast = wavelength > rope.original / low, wavelength < rope.original / high
    blend = (np.float32(rope.original) * (np.float32(1.0) / wavelength) - np.float32(low)) / np.float32(high - low)
    mixed = (np.float32(1.0) - blend) * inv_freq / factor + blend * inv_freq
    return RopeTable(np.where(slow, inv_freq / factor, np.where(fast, inv_freq, mixed)))


# ---- reading ----


@dataclass(frozen=True)
class RopeKind:
    """A kind of rope: its function, the keys it needs, the further keys it reads, and those that stand beside them."""

    table: Callable[[Rope], RopeTable]
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()


_ORIGINAL = "original_max_position_embeddings"

KINDS: dict[str, RopeKind] = {
    "default": RopeKind(_default),
    "linear": RopeKind(_linear, ("factor",)),
    "dynamic": RopeKind(_dynamic, ("factor",)),
    "alpha": RopeKind(_alpha, ("alpha",), ignores=("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")),
    "llama3": RopeKind(_llama3, ("factor", "low_freq_factor", "high_freq_factor"), (_ORIGINAL,)),
    "yarn": RopeKind(
        _yarn,
        ("factor",),
        (_ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
    "longrope": RopeKind(_longrope, ("short_factor", "long_factor"), (_ORIGINAL, "attention_factor", "factor")),
}

COMMON_KEYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor")

_UNSET: dict[str, tuple[object, ...]] = {
    "attention_factor": (None,),
    "beta_fast": (None, 0),
    "beta_slow": (None, 0),
    "mscale": (None, 0),
    "mscale_all_dim": (None, 0),
}
"""Values that count as absent."""


def read_rope(record: Mapping[str, object], width: int, max_position: int, where: str) -> Rope:
    """Check a rope record and return it typed.

    Args:
        record: the JSON object, with ``rope_theta`` (and an original length that stood elsewhere) filled in.
        width: number of rotated elements of a head.
        max_position: ``max_position_embeddings``, the default of the original length.
        where: file and key, for messages.

    Raises:
        LadingError: F540 for an unknown kind, F541 for missing or impossible parameters.
    """
    kind = record.get("rope_type", record.get("type", "default"))
    if not isinstance(kind, str) or kind not in KINDS:
        hint = f"known kinds: {', '.join(KINDS)}"
        near = suggest(kind[:60], list(KINDS)) if isinstance(kind, str) else ""
        raise LadingError("F540", f"unknown rope kind {shown(kind)}", where, f"{near} {hint}".strip())
    if width <= 0 or width % 2:
        raise LadingError("F541", f"the rotated width of a head is {width}; it must be even and positive", where)
    missing = [key for key in KINDS[kind].needs if key not in record]
    if missing:
        raise LadingError("F541", f"a rope of kind {kind!r} needs {', '.join(missing)}", where)
    fields: dict[str, Any] = {"theta": _number(record, "rope_theta", where), "original": max_position}
    unset = {**_UNSET, "factor": (None,)} if kind in ("yarn", "longrope") else _UNSET
    for key in KINDS[kind].needs + KINDS[kind].reads:
        if key in record and record[key] not in unset.get(key, ()):
            fields["original" if key == _ORIGINAL else key] = _READERS.get(key, _number)(record, key, where)
    rope = Rope(kind=kind, width=width, max_position=max_position, **fields)
    _check(rope, where)
    return rope


def unread_keys(record: Mapping[str, object]) -> list[str]:
    """Keys of a rope record that its (known) kind does not read; the reference implementation ignores them too."""
    kind = KINDS[str(record.get("rope_type", record.get("type", "default")))]
    known = (*COMMON_KEYS, *kind.needs, *kind.reads, *kind.ignores)
    return [key for key in record if key not in known]


def _number(record: Mapping[str, object], key: str, where: str) -> float:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise LadingError("F541", f"{key} is {shown(value)}; it must be a number", where)
    if value != 0 and not 1e-18 <= value <= 1e18:
        raise LadingError("F541", f"{key} is {shown(value)}; it must be 0 or lie between 1e-18 and 1e18", where)
    return float(value)


def _length(record: Mapping[str, object], key: str, where: str) -> int:
    value = record[key]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_LENGTH:
        raise LadingError("F541", f"{key} is {shown(value)}; it must be a positive number of positions", where)
    return value


def _flag(record: Mapping[str, object], key: str, where: str) -> bool:
    value = record[key]
    if not isinstance(value, bool):
        raise LadingError("F541", f"{key} is {shown(value)}; it must be true or false", where)
    return value


def _numbers(record: Mapping[str, object], key: str, where: str) -> tuple[float, ...]:
    value = record[key]
    if not isinstance(value, list):
        raise LadingError("F541", f"{key} is {shown(value)}; it must be a list of numbers", where)
    return tuple(_number({key: item}, key, where) for item in value)


_READERS: dict[str, Callable[[Mapping[str, object], str, str], object]] = {
    _ORIGINAL: _length,
    "truncate": _flag,
    "short_factor": _numbers,
    "long_factor": _numbers,
}


def _check(rope: Rope, where: str) -> None:
    """Refuse parameters that leave a frequency undefined."""
    problems = [
        (rope.theta <= 1.0, f"rope_theta is {rope.theta:g}; it must be greater than 1"),
        (rope.factor is not None and rope.factor <= 0.0, f"factor is {rope.factor}; it must be positive"),
        (
            rope.kind in ("dynamic", "alpha") and rope.width == 2,
            f"a rope of kind {rope.kind!r} is not defined for a rotated width of 2",
        ),
        (
            rope.kind == "llama3" and not 0.0 < rope.low_freq_factor < rope.high_freq_factor,
            f"low_freq_factor is {rope.low_freq_factor:g} and high_freq_factor {rope.high_freq_factor:g}; "
            "both must be positive and the first the smaller one",
        ),
        (rope.alpha <= 0.0, f"alpha is {rope.alpha:g}; it must be positive"),
        (rope.kind == "longrope" and rope.original < 2, "the original length must be greater than 1"),
    ]
    half = rope.width // 2
    if rope.kind == "longrope":
        for key, values in (("short_factor", rope.short_factor), ("long_factor", rope.long_factor)):
            wanted = f"{key} has {len(values)} numbers; a rotated width of {rope.width} needs {half}"
            problems += [(len(values) != half, wanted), (0.0 in values, f"{key} has a zero")]
    for failed, message in problems:
        if failed:
            raise LadingError("F541", message, where)
