"""Unicode normalization as a list of literal replacements, the one form that every release from 3.5.0 runs exactly.

MNN has a table normalizer too, but it maps single code points only, never composes sequences, and turns control
characters, zero-width joiners (so every emoji family) and the byte order mark into spaces. Its literal Replace works
on bytes, from left to right, once. A list of replacements therefore composes text when it goes through the canonical
compositions in the order of Unicode Standard Annex 15: by combining class of the mark, then by depth, with marks of a
lower class that did not compose moved out of the way. It reaches Hangul, whose 11,172 syllables would be too many
rules, with marker bytes that no UTF-8 text contains.

What is left out: marks outside `_LATIN_MARKS` and the Hebrew and Arabic ranges are not sorted and not moved out of
the way; four marks or more in reverse order on one letter; a precomposed Hangul syllable without trailing consonant
followed by one. The data is that of Python's unicodedata.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import cache
from typing import Literal

Form = Literal["NFC", "NFKC"]
Rule = tuple[bytes, bytes]

NFC_GAPS = "rare combining marks are not put in canonical order before letters are composed"
_CARRY, _OPEN = b"\xfe", b"\xff"
_HANGUL, _LEAD, _VOWEL, _TAIL = 0xAC00, 0x1100, 0x1161, 0x11A7
# Ranges with decompositions; the rest of Unicode up to version 16 has none.
_RANGES = ((0xA0, 0x33FF), (0xA640, 0xABFF), (0xF900, 0xFFFF), (0x10780, 0x107FF), (0x11000, 0x11FFF),
           (0x16D60, 0x16DFF), (0x1CC00, 0x1CCFF), (0x1D100, 0x1D7FF), (0x1E030, 0x1E06F), (0x1EE00, 0x1F2FF),
           (0x1FBF0, 0x1FBFF), (0x2F800, 0x2FA1F))  # fmt: skip
# Marks that compose with letters of Latin, Greek and Cyrillic, and the points and vowel signs of Hebrew and Arabic,
# which are often typed in another order than the canonical one.
_LATIN_MARKS = (*range(0x300, 0x305), *range(0x306, 0x30D), 0x30F, 0x311, 0x313, 0x314, 0x31B, *range(0x323, 0x329),
                0x32D, 0x32E, 0x330, 0x331, 0x338, 0x342, 0x345)  # fmt: skip
_MARK_GROUPS = (_LATIN_MARKS, tuple(range(0x5B0, 0x5C8)), (*range(0x64B, 0x656), 0x670))


@cache
def compose_rules(form: Form) -> tuple[Rule, ...]:
    """Replacements, to be applied in order, that bring UTF-8 text to `NFC` or `NFKC`."""
    rules = list(_single_rules(form))
    rules += 2 * _swap_rules(_MARK_GROUPS, ascending=True)
    rules += _pair_rules()
    rules += 2 * _swap_rules(_MARK_GROUPS, ascending=True)
    rules += _hangul_rules()
    return tuple(rules)


@cache
def decompose_table() -> tuple[tuple[int, bytes], ...]:
    """(code point, UTF-8 of its canonical decomposition), for the table of the accent-stripping normalizer."""
    codes = [code for low, high in (*_RANGES, (_HANGUL, 0xD7A3)) for code in range(low, high + 1)]
    pairs = ((code, unicodedata.normalize("NFD", chr(code))) for code in sorted(codes))
    return tuple((code, text.encode()) for code, text in pairs if text != chr(code))


def _single_rules(form: Form) -> Iterator[Rule]:
    """Characters that no normalized text contains: singletons, composition exclusions, compatibility forms."""
    for low, high in _RANGES:
        for code in range(low, high + 1):
            char = chr(code)
            if not unicodedata.is_normalized(form, char):
                yield char.encode(), unicodedata.normalize(form, char).encode()


def _pair_rules() -> list[Rule]:
    """Canonical composition: class by class, within a class shallow compositions first."""
    pairs = _primary_pairs()
    parts = {whole: pair for pair, whole in pairs.items()}
    depths: dict[str, int] = {}
    for whole in sorted(parts, key=lambda char: len(unicodedata.normalize("NFD", char))):
        depths[whole] = 1 + depths.get(parts[whole][0], 0)
    rows = [(unicodedata.combining(second), depths[whole], first + second, whole)
            for (first, second), whole in pairs.items()]  # fmt: skip
    rows += _late_marks(depths)
    rules: list[Rule] = []
    for group in sorted({row[0] for row in rows}):
        rules += _swap_rules(_MARK_GROUPS, ascending=False, upper=group)
        members = sorted((row for row in rows if row[0] == group), key=lambda row: row[1])
        rules += [(source.encode(), target.encode()) for _, _, source, target in members]
    return rules


def _late_marks(depths: dict[str, int]) -> list[tuple[int, int, str, str]]:
    """A composed letter and a mark of a lower class, which goes to the letter first: `ê` with a dot below."""
    rows = []
    marks = [chr(code) for code in _LATIN_MARKS]
    for whole, depth in depths.items():
        highest = max(map(unicodedata.combining, unicodedata.normalize("NFD", whole)))
        for mark in marks:
            group = unicodedata.combining(mark)
            if group < highest and not unicodedata.is_normalized("NFC", whole + mark):
                rows.append((group, depth, whole + mark, unicodedata.normalize("NFC", whole + mark)))
    return rows


def _primary_pairs() -> dict[tuple[str, str], str]:
    pairs = {}
    for low, high in _RANGES:
        for code in range(low, high + 1):
            char = chr(code)
            spelled = unicodedata.decomposition(char)
            if not spelled or spelled[0] == "<" or " " not in spelled or not unicodedata.is_normalized("NFC", char):
                continue
            first, second = (chr(int(part, 16)) for part in spelled.split())
            pairs[first, second] = char
    return pairs


def _swap_rules(groups: tuple[tuple[int, ...], ...], ascending: bool, upper: int | None = None) -> list[Rule]:
    """One pass of exchanging neighbouring marks whose combining classes stand in the wrong order.

    With `upper`, only marks of that class move, to the front of lower ones.
    """
    rules = []
    for group in groups:
        marks = [chr(code) for code in group if unicodedata.combining(chr(code))]
        for low in marks:
            for high in marks:
                if unicodedata.combining(low) >= unicodedata.combining(high):
                    continue
                if upper is None or unicodedata.combining(high) == upper:
                    right, wrong = (low + high).encode(), (high + low).encode()
                    rules.append((wrong, right) if ascending else (right, wrong))
    return rules


def _hangul_rules() -> list[Rule]:
    """Conjoining jamo to syllables.

    A leading consonant and a vowel become their syllable followed by `_OPEN`. A trailing consonant after that mark
    adds 1 to 27 to the syllable's code: to its last UTF-8 byte, whose value is a multiple of 4 above 0x80, and, with
    `_CARRY`, to the bytes before.
    """
    rules = [
        ((chr(_LEAD + lead) + chr(_VOWEL + vowel)).encode(), chr(_HANGUL + (lead * 21 + vowel) * 28).encode() + _OPEN)
        for lead in range(19)
        for vowel in range(21)
    ]
    for residue in range(0, 64, 4):
        for tail in range(1, 28):
            carry, rest = divmod(residue + tail, 64)
            source = bytes((0x80 + residue,)) + _OPEN + chr(_TAIL + tail).encode()
            rules.append((source, _CARRY * carry + bytes((0x80 + rest,))))
    rules += [(bytes((low,)) + _CARRY, bytes((low + 1,))) for low in range(0x80, 0xBF)]
    rules += [(bytes((high, 0xBF)) + _CARRY, bytes((high + 1, 0x80))) for high in range(0xEA, 0xED)]
    rules.append((_OPEN, b""))
    return rules
