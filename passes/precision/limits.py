"""The limits under which precision is assigned: bits per weight, bytes, speed, divergence from the float model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ir.base.diag import LadingError

_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"

AUTO = "auto"
Kind = Literal["budget", "max-size", "max-kl", "min-speed"]


@dataclass(frozen=True)
class Limit:
    """What a plan has to keep.

    Attributes:
        kind: ``budget`` (bits per weight), ``max-size`` (bytes), ``max-kl`` (nats per token) or ``min-speed`` (share of
            the speed of the fastest uniform width).
        value: the number; of ``min-speed=auto`` 0, which stands for the speed of 4 bits in every weight at the size of a
            limit, as far as a plan of that size can have it.
        text: as it was asked for, such as ``budget=4.5bpw``.
    """

    kind: Kind
    value: float
    text: str


@dataclass(frozen=True)
class Limits:
    """The limits that a plan has to keep together, at least one of them and each kind once."""

    each: tuple[Limit, ...]

    @property
    def text(self) -> str:
        """As they were asked for."""
        return " ".join(limit.text for limit in self.each)

    @property
    def max_kl(self) -> Limit | None:
        """The limit on the divergence: with one the smallest plan is looked for, else that of least divergence."""
        return next((limit for limit in self.each if limit.kind == "max-kl"), None)

    @property
    def on_plans(self) -> tuple[Limit, ...]:
        """The limits that a plan is known to keep before anything is measured."""
        return tuple(limit for limit in self.each if limit.kind != "max-kl")

    def of(self, kinds: Iterable[Kind]) -> tuple[Limit, ...]:
        """Those of some kinds."""
        wanted = set(kinds)
        return tuple(limit for limit in self.each if limit.kind in wanted)


def limits_of(budget: str | None, max_size: str | None, max_kl: float | None, min_speed: str | None) -> Limits | None:
    """The limits that are given; None when none is.

    Raises:
        LadingError: Q450 one cannot be read.
    """
    found: list[Limit] = []
    if budget is not None:
        found.append(Limit("budget", bits_per_weight(budget), f"budget={budget}"))
    if max_size is not None:
        found.append(Limit("max-size", size_of(max_size), f"max-size={max_size}"))
    if max_kl is not None:
        text = f"max-kl={max_kl}"
        if not (math.isfinite(max_kl) and max_kl > 0):
            raise LadingError("Q450", f"{text} is not a positive number of nats per token")
        found.append(Limit("max-kl", max_kl, text))
    if min_speed is not None:
        if min_speed.strip() == AUTO and budget is None and max_size is None:
            message = "min-speed=auto is the speed of 4 bits in every weight at some size, and no size is given"
            raise LadingError(
                "Q450", message, hint="give budget or max-size too, or a number, for example min-speed=0.95x"
            )
        found.append(Limit("min-speed", share_of(min_speed), f"min-speed={min_speed}"))
    return Limits(tuple(found)) if found else None


def bits_per_weight(text: str) -> float:
    """``4.5bpw`` or ``4.5`` as a number; Q450 for anything else."""
    found = re.fullmatch(rf"{_NUMBER}\s*(bpw)?", text.strip())
    if found is None or float(found[1]) <= 0:
        raise LadingError(
            "Q450", f"budget={text!r} is not a number of bits per weight", hint="for example budget=4.5bpw"
        )
    return float(found[1])


def share_of(text: str) -> float:
    """``0.95x`` or ``0.95`` as a number above 0 and up to 1, 0 for ``auto``; Q450 for anything else."""
    if text.strip() == AUTO:
        return 0.0
    found = re.fullmatch(rf"{_NUMBER}\s*x?", text.strip())
    if found is None or not 0 < float(found[1]) <= 1:
        message = f"min-speed={text!r} is not a share of the speed of the fastest uniform width"
        raise LadingError("Q450", message, hint="auto, or a number above 0 and up to 1, for example min-speed=0.95x")
    return float(found[1])


def size_of(text: str) -> int:
    """``300MB``, ``2.13MB``, ``1.2GiB`` in bytes, rounded down; Q450 for anything else."""
    found = read_size(text)
    if found is None:
        hint = f"a number and a unit: {', '.join(_UNITS)}"
        raise LadingError("Q450", f"max-size={text!r} is not a size", hint=hint)
    return found


def read_size(text: str, unit: str = "") -> int | None:
    """Bytes of a size, rounded down; `unit` is that of a bare number. None for what is no size above zero."""
    found = re.fullmatch(rf"{_NUMBER}\s*([A-Za-z]*)", text.strip())
    written = (found[2] or unit).lower() if found else ""
    scale = next((scale for name, scale in _UNITS.items() if name.lower() == written), None)
    if found is None or scale is None or float(found[1]) <= 0:
        return None
    whole, _, fraction = found[1].partition(".")
    # Exact, since a binary float would make 2.13MB one byte less.
    return int((whole or "0") + fraction) * scale // 10 ** len(fraction)


__all__ = ["Limit", "Limits", "bits_per_weight", "limits_of", "read_size", "share_of", "size_of"]
