"""Quoted output of commands, compared with what they print: times may differ, and measured numbers a little."""

from __future__ import annotations

import re

NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?")

TIMES = re.compile(r"[\d.]+ s\b|[\d.]+ M weights/s")
"""What another machine, or the same one under load, does faster or slower."""


def differences(shown: str, printed: str) -> list[str]:
    """Where two outputs differ in words, or in numbers by more than other processors make of the same model.

    Blanks and line breaks do not count: a number of another length moves them. Whole numbers and sizes must be equal;
    distances (written with an exponent) may differ by a factor of two, other measured numbers by one in a hundred. A
    last line `...` stands for whatever follows.
    """
    left, right = (TIMES.sub("TIME", text).split() for text in (shown, printed))
    if left[-1:] == ["..."]:
        left = left[:-1]
        right = right[: len(left)]
    found = [f"{a!r} is shown, {b!r} is printed" for a, b in zip(left, right, strict=False) if not _alike(a, b)]
    if len(left) != len(right):
        found.append(f"{len(left)} words are shown, {len(right)} are printed")
    return found


def _alike(shown: str, printed: str) -> bool:
    if NUMBER.sub("#", shown) != NUMBER.sub("#", printed):
        return False
    return all(_close(a, b) for a, b in zip(NUMBER.findall(shown), NUMBER.findall(printed), strict=True))


def _close(shown: str, printed: str) -> bool:
    a, b = (float(text.replace(",", "")) for text in (shown, printed))
    if "e" in shown:
        return a / 2 <= b <= a * 2
    return abs(a - b) <= 0.01 * abs(a) if "." in shown else a == b
