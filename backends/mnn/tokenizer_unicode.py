"""Unicode normalization as a list of literal replacements, the one form that every release from 3.5.0 runs exactly.

MNN has a table normalizer too, but it maps single code points only, never composes sequences, and turns control
characters, zero-width joiners (so every emoji family) and the byte order mark into spaces. Its literal Replace works
on bytes, from left to right, once. A list of replacements therefore composes text when it goes through the canonical
compositions by depth, and reaches Hangul, whose 11,172 syllables would be too many rules, with marker bytes that no
UTF-8 text contains.

What is left out: text in which a mark stands between a letter and a mark that composes with it, and marks of
scripts other than Arabic and Hebrew in non-canonical order where they compose with nothing. Reference: Unicode
Standard Annex 15, sections on composition and Hangul; the data is that of Python's unicodedata.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import cache

Rule = tuple[bytes, bytes]

NFC_GAPS = "combining marks in an order that is not canonical are not sorted, except common ones"
_CARRY, _OPEN = b"\xfe", b"\xff"
_HANGUL, _LEAD, _VOWEL, _TAIL = 0xAC00, 0x1100, 0x1161, 0x11A7
# Ranges with decompositions; the rest of Unicode up to version 16 has none.
_RANGES = ((0xA0, 0x33FF), (0xA640, 0xABFF), (0xF900, 0xFFFF), (0x10780, 0x107FF), (0x11000, 0x11FFF),
           (0x16D60, 0x16DFF), (0x1CC00, 0x1CCFF), (0x1D100, 0x1D7FF), (0x1E030, 0x1E06F), (0x1EE00, 0x1F2FF),
           (0x1FBF0, 0x1FBFF), (0x2F800, 0x2FA1F))  # fmt: skip
# Marks that are often typed in another order than the canonical one: Hebrew points, Arabic vowel signs.
_SORTED_MARKS = ((0x05B0, 0x05C7), (0x064B, 0x0655), (0x0670, 0x0670))


@cache
def compose_rules(form: str) -> tuple[Rule, ...]:
    """Replacements, to be applied in order, that bring UTF-8 text to `NFC` or `NFKC`."""
    rules = list(_single_rules(form))
    rules += _swap_rules() * 2
    rules += _pair_rules()
    rules += _hangul_rules()
    return tuple(rules)


@cache
def decompose_table() -> tuple[tuple[int, bytes], ...]:
    """(code point, UTF-8 of its canonical decomposition), for the table of the accent-stripping normalizer."""
    codes = [code for low, high in (*_RANGES, (_HANGUL, 0xD7A3)) for code in range(low, high + 1)]
    pairs = ((code, unicodedata.normalize("NFD", chr(code))) for code in sorted(codes))
    return tuple((code, text.encode()) for code, text in pairs if text != chr(code))


def _single_rules(form: str) -> Iterator[Rule]:
    """Characters that no normalized text contains: singletons, composition exclusions, compatibility forms."""
    for low, high in _RANGES:
        for code in range(low, high + 1):
            char = chr(code)
            if not unicodedata.is_normalized(form, char):
                yield char.encode(), unicodedata.normalize(form, char).encode()


def _pair_rules() -> list[Rule]:
    """Canonical composition of pairs, shallow ones first, and of triples whose marks come in the other order."""
    pairs = _primary_pairs()
    depth: dict[str, int] = {}

    def depth_of(char: str) -> int:
        if char not in parts:
            return 0
        if char not in depth:
            depth[char] = 1 + depth_of(parts[char][0])
        return depth[char]

    parts = {whole: pair for pair, whole in pairs.items()}
    rules = [(depth_of(whole), first + second, whole) for (first, second), whole in pairs.items()]
    for whole, (first, second) in parts.items():
        if first not in parts:
            continue
        base, inner = parts[first]
        if unicodedata.combining(inner) == unicodedata.combining(second) or not unicodedata.combining(inner):
            continue
        other = pairs.get((base, second))
        rules.append((depth_of(whole), (other or base + second) + inner, whole))
    rules.sort(key=lambda rule: rule[0])
    return [(source.encode(), target.encode()) for _, source, target in rules]


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


def _swap_rules() -> list[Rule]:
    """One pass of sorting neighbouring marks by combining class, within the scripts where typists mix them."""
    rules = []
    for low, high in (_SORTED_MARKS[0], (_SORTED_MARKS[1][0], _SORTED_MARKS[2][1])):
        marks = [chr(code) for code in range(low, high + 1) if unicodedata.combining(chr(code))]
        marks.sort(key=unicodedata.combining)
        for index, late in enumerate(marks):
            for early in marks[:index]:
                if unicodedata.combining(early) < unicodedata.combining(late):
                    rules.append(((late + early).encode(), (early + late).encode()))
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
