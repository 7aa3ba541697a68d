"""The limit under which precision is assigned: bits per weight, bytes, or divergence from the float model."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from ir.base.diag import LadingError

_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"


@dataclass(frozen=True)
class Limit:
    """What a plan has to keep.

    Attributes:
        kind: ``budget`` (bits per weight), ``max-size`` (bytes) or ``max-kl`` (nats per token).
        value: the number.
        text: as it was asked for, such as ``budget=4.5bpw``.
    """

    kind: Literal["budget", "max-size", "max-kl"]
    value: float
    text: str


def limit_of(budget: str | None, max_size: str | None, max_kl: float | None) -> Limit | None:
    """The one limit that is given; None when none is.

    Raises:
        LadingError: Q450 more than one, or one that cannot be read.
    """
    given = {"budget": budget, "max-size": max_size, "max-kl": max_kl}
    named = [key for key, value in given.items() if value is not None]
    if not named:
        return None
    if len(named) > 1:
        raise LadingError("Q450", f"{' and '.join(named)} are given", hint="give one limit; the others follow from it")
    key = named[0]
    text = f"{key}={given[key]}"
    if budget is not None:
        return Limit("budget", bits_per_weight(budget), text)
    if max_size is not None:
        return Limit("max-size", size_of(max_size), text)
    if not (max_kl is not None and math.isfinite(max_kl) and max_kl > 0):
        raise LadingError("Q450", f"{text} is not a positive number of nats per token")
    return Limit("max-kl", max_kl, text)


def bits_per_weight(text: str) -> float:
    """``4.5bpw`` or ``4.5`` as a number; Q450 for anything else."""
    found = re.fullmatch(rf"{_NUMBER}\s*(bpw)?", text.strip())
    if found is None or float(found[1]) <= 0:
        raise LadingError(
            "Q450", f"budget={text!r} is not a number of bits per weight", hint="for example budget=4.5bpw"
        )
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


__all__ = ["Limit", "bits_per_weight", "limit_of", "read_size", "size_of"]
