"""Word patterns for which MNN's matcher alone is too coarse.

That matcher knows one letter beyond ASCII, so that capitals and small letters, and the scripts of letters, look alike to
it. `std::wregex`, MNN's other way, knows every character by itself, but no categories, and takes longer. So it is given
sets in which the characters of categories and scripts are listed:

* A pattern with two alternatives like those of o200k, capitals and then small letters, or capitals alone, is cut with in
  two steps. MNN's matcher takes letters of all kinds together; then words are cut at their capitals, where what holds no
  letter is taken whole first.
* A pattern that names a script is listed as a whole.

Characters beyond U+FFFF are not listed, as `wchar_t` has 16 bits on some systems.
"""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from functools import cache

from backends.mnn.tokenizer.characters.pattern import ASCII, LETTERS, Branch, Node, Pattern, read_pattern
from backends.mnn.tokenizer.characters.translate import (
    LONG_RUNS,
    WIDE_SPACES,
    fold,
    listed,
    names_script,
    print_codes,
    print_count,
    printed,
    takes_words,
    wide,
)

SCRIPTS = {
    "Han": (
        (0x2E80, 0x2E99), (0x2E9B, 0x2EF3), (0x2F00, 0x2FD5), (0x3005, 0x3005), (0x3007, 0x3007), (0x3021, 0x3029),
        (0x3038, 0x303B), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFA6D), (0xFA70, 0xFAD9),
    ),
}  # fmt: skip
"""Scripts up to U+FFFF (Scripts.txt of Unicode 15.1)."""
BEYOND = "letters beyond U+FFFF count as capitals"
FAR = "letters, digits and Han characters beyond U+FFFF count as signs"
STRETCHES = "a stretch of more than 20,000 characters of one kind may stop MNN"
_MARKS = frozenset(("Mn", "Mc", "Me"))
_CASELESS = _MARKS | {"Lm", "Lo"}
_UPPER, _LOWER = _CASELESS | {"Lu", "Lt"}, _CASELESS | {"Ll"}
_CAPITALS, _SMALL = frozenset(range(65, 91)), frozenset(range(97, 123))


def steps(pattern: str, keep: str = "", without: frozenset[int] = frozenset()) -> tuple[list[str], list[str]] | None:
    """Patterns to cut with one after the other, and why rare texts may differ; None where MNN's matcher is enough.

    Args:
        keep: an alternative that goes before all others; what it takes is never cut again.
        without: ASCII characters that no other set shall hold.

    Raises:
        LadingError: B645 for a construct without an equal.
    """
    tree = read_pattern(pattern)
    if names_script(tree):
        return [_explicit(tree.branches, tree)], [FAR, STRETCHES]
    at = _cased(tree)
    if at is None:
        return None
    lead, upper, lower, *rest = tree.branches[at]
    letters = Node("set", upper.chars.union(lower.chars), low=1, high=-1)
    branches = (*tree.branches[:at], (lead, letters, *rest), *tree.branches[at + 2 :])
    text, reasons = printed(replace(tree, branches=branches), without)
    lead_in = f"{keep}|" if keep else ""
    last = _case_step(tree.branches[at], tree)
    return [lead_in + text, lead_in + last], [*reasons, LONG_RUNS, BEYOND]


def marked_steps(pattern: str, first: str, marks: frozenset[int]) -> tuple[list[str], list[str], bool] | None:
    """Patterns with an alternative `first` before all others and the characters `marks` in no set but there.

    None unless the pattern takes a space together with the letters after it, and all letters that follow one another.
    The truth value tells that words are cut at capitals.

    Raises:
        LadingError: B645 for a construct without an equal.
    """
    tree = read_pattern(pattern)
    if names_script(tree) or not takes_words(tree):
        return None
    found = steps(pattern, first, marks)
    if found is not None:
        return *found, True
    text, reasons = printed(tree, marks)
    return [f"{first}|{text}"], reasons, False


# ---- everything listed ----


def _explicit(branches: tuple[Branch, ...], tree: Pattern) -> str:
    """A pattern in ECMAScript form whose sets list their characters."""
    return "|".join("".join(_explicit_node(node, tree) for node in branch) for branch in branches)


def _explicit_node(node: Node, tree: Pattern) -> str:
    if node.possessive:
        raise tree.error("possessive quantifier beside a script")
    if node.kind != "set":
        opening = "(?!" if node.kind == "not" else "(?:"
        return opening + _explicit(node.branches, tree) + ")" + print_count(node)
    chars = node.chars
    out = frozenset(code for name in chars.without for low, high in SCRIPTS[name] for code in range(low, high + 1))
    known = _members(chars.categories) if chars.categories else frozenset()
    given = (*chars.ranges, *(pair for name in chars.scripts for pair in SCRIPTS[name]))
    codes = known.union(*(range(low, min(high, 0xFFFF) + 1) for low, high in given)) - out
    codes = (
        (codes | frozenset(code for low, high in WIDE_SPACES for code in range(low, high + 1)))
        if chars.spaces
        else codes
    )
    return f"[{'^' if node.negated else ''}{print_codes(chars.ascii)}{_as_ranges(codes)}]{print_count(node)}"


# ---- capitals ----


def _cased(tree: Pattern) -> int | None:
    """Place of two alternatives that cut words at capitals, in a pattern that leaves nothing over."""
    for at, (one, two) in enumerate(zip(tree.branches, tree.branches[1:], strict=False)):
        if _is_cased(one, (0, -1), (1, -1)) and _is_cased(two, (1, -1), (0, -1)) and one[3:] == two[3:]:
            rest = (*tree.branches[:at], *tree.branches[at + 2 :])
            letters = Node("set", one[1].chars.union(one[2].chars), low=1, high=-1)
            return at if one[0] == two[0] and _total([*rest, (letters,)], tree) else None
    return None


def _is_cased(branch: Branch, upper: tuple[int, int], lower: tuple[int, int]) -> bool:
    if len(branch) not in (3, 4) or any(node.possessive for node in branch):
        return False
    lead, first, second, *end = branch
    sets = [node.kind for node in (lead, first, second)] == ["set"] * 3
    return (
        sets
        and (lead.low, lead.high) == (0, 1)
        and _takes(first, _UPPER, _CAPITALS, upper)
        and _takes(second, _LOWER, _SMALL, lower)
        and not fold(lead) & (LETTERS | {1})
        and all(node.kind == "group" and (node.low, node.high) == (0, 1) for node in end)
    )


def _takes(node: Node, categories: frozenset[str], plain: frozenset[int], counts: tuple[int, int]) -> bool:
    same = node.chars.categories == categories and node.chars.ascii == plain and not node.chars.ranges
    return same and not node.negated and (node.low, node.high) == counts


def _case_step(branch: Branch, tree: Pattern) -> str:
    """The two alternatives on a word: what is no small letter, then letters that are no capitals; or what is none alone."""
    end = wide((branch[3:],), tree) if len(branch) == 4 else ""
    letters = "A-Za-z" + _ranges(frozenset(("Lu", "Ll", "Lt", "Lm", "Lo")))
    small, lower = "a-z" + _ranges(frozenset(("Ll",))), "a-z" + _ranges(_LOWER)
    whole = f"[^{letters}]+(?![\\s\\S])"
    return f"{whole}|'?[^'{small}]*[{lower}]+{end}|'?[^'{small}]+[{lower}]*{end}"


def is_one_word(text: str) -> bool:
    """Whether letters are not cut at capitals: as many as there are capitals come first."""
    kinds = [unicodedata.category(char) for char in text]
    at = next((at for at, kind in enumerate(kinds) if kind not in _UPPER), len(kinds))
    if at < len(kinds):
        return all(kind in _LOWER for kind in kinds[at:])
    # Without small letters the first alternative takes what is before the last letter that has no case.
    return not any(kind in _CASELESS for kind in kinds) or kinds[-1] in _CASELESS


# ---- characters ----


def _ranges(categories: frozenset[str]) -> str:
    """The characters from U+0080 to U+FFFF that are of some categories, as ranges."""
    return _as_ranges(_members(categories))


@cache
def _members(categories: frozenset[str]) -> frozenset[int]:
    return frozenset(code for code in range(0x80, 0x10000) if unicodedata.category(chr(code)) in categories)


def _as_ranges(codes: frozenset[int]) -> str:
    """Characters of a set, neighbours together; halves of pairs are left out, as no text has them."""
    found: list[str] = []
    run: list[int] = []
    for code in [*sorted(code for code in codes if not 0xD800 <= code < 0xE000), -1]:
        if run and code != run[-1] + 1:
            found.append(listed(run[0], run[-1]))
            run = []
        run.append(code)
    return "".join(found)


def _total(branches: list[Branch] | tuple[Branch, ...], tree: Pattern) -> bool:
    """Whether every character alone is a match of some alternative, so that nothing lies between matches."""
    taken: set[int] = set()
    for branch in branches:
        needed = [node for node in branch if node.kind != "not" and node.low]
        if len(needed) > 1 or any(node.kind == "not" for node in branch):
            continue
        for node in needed or branch:
            if node.kind == "set" and node.low < 2:
                taken |= fold(node)
    return taken >= ASCII


__all__ = ["BEYOND", "FAR", "is_one_word", "marked_steps", "steps"]
