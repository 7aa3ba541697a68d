"""Numbers in JSON files: Python reads integers of any length, of which neither floats nor C++ can hold the long
ones."""

from __future__ import annotations

LONGEST = 100
"""Digits of the longest integer that is read."""


def whole(text: str) -> int:
    """An integer of bearable length, for the argument ``parse_int`` of `json.loads`.

    Raises:
        ValueError: it has more than `LONGEST` digits.
    """
    if len(text) > LONGEST:
        raise ValueError(f"the number {text[:12]}... has {len(text)} digits; at most {LONGEST} are read")
    return int(text)


__all__ = ["LONGEST", "whole"]
