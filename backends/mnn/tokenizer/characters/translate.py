"""Word patterns: from the regular expressions of tokenizer.json to those that MNN's matcher runs the same way.

Hugging Face matches with Oniguruma on code points. MNN (3.5.0 to 3.6.1, transformers/llm/engine/src/tokenizer/
unicode.cpp) folds every text to one byte per code point first: ASCII stays, any other code point becomes a marker
for its general category (1 letter, 2 number, 3 space, 4 other, 5 mark, 6 punctuation, 7 symbol), by Unicode 15.0.
A small backtracking matcher runs on those bytes. It knows sets, greedy quantifiers, groups and negative lookahead;
it reads `\\p{Lu}` as any letter, `x*?` as `x*`, `x++` as `x+` and then a plus sign, `^` as itself, and never tries
a second alternative of a group once one has matched. All of that without an error.

So a pattern is parsed here, each set of characters is turned into a set of folded bytes, and the pattern is printed
again from what the matcher does run faithfully. What cannot be said that way is error B645; what can be said except
for rare characters is said, with a reason. Patterns that name non-ASCII characters (such as `[一-龥]+`) take MNN's
other way, `std::wregex` on code points, which knows no Unicode category.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from backends.mnn.tokenizer.characters.pattern import (
    ASCII,
    CATEGORIES,
    DIGITS,
    LETTERS,
    PUNCTUATION,
    SPACES,
    Branch,
    Node,
    Pattern,
    read_pattern,
)

# Marker byte -> its general categories, the one that decides when only some are in a set, and what goes wrong then.
_MARKERS: dict[int, tuple[frozenset[str], str, str]] = {
    1: (frozenset(("Lu", "Ll", "Lt", "Lm", "Lo")), "Lo", "upper and lower case of letters beyond ASCII look alike"),
    2: (frozenset(("Nd", "Nl", "No")), "Nd", "fractions, superscripts and the like count as digits"),
    3: (frozenset(("Zs",)), "Zs", ""),
    4: (frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")), "Cf", "U+0085, U+2028 and U+2029 are no whitespace"),
    5: (frozenset(("Mn", "Mc", "Me")), "Mn", "kinds of combining marks look alike"),
    6: (frozenset(("Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po")), "Po", "kinds of punctuation beyond ASCII look alike"),
    7: (frozenset(("Sm", "Sc", "Sk", "So")), "So", "kinds of symbols beyond ASCII look alike"),
}
_SYMBOLS = frozenset(b"$+<=>^`|~")
WIDE_SPACES = ((0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029), (0x202F, 0x202F),
               (0x205F, 0x205F), (0x3000, 0x3000))  # fmt: skip
CONTROLS = "the control characters U+0001 to U+0007 count as letters, digits, spaces or marks"
NEWER = "characters that came with Unicode 15.1 or later count as unassigned"
LONG_RUNS = "a stretch of more than 20,000 Chinese characters without any other may stop MNN"
LONG_S = "'ſ' (U+017F) after an apostrophe is not taken for an s"


def translate(pattern: str, without: frozenset[int] = frozenset()) -> tuple[str, list[str]]:
    """A pattern that MNN matches as Oniguruma matches `pattern`, and the reasons why rare texts may differ.

    Args:
        without: ASCII characters that no set shall hold.

    Raises:
        LadingError: B645 for a construct without an equal.
    """
    return printed(read_pattern(pattern), without)


def printed(tree: Pattern, without: frozenset[int] = frozenset()) -> tuple[str, list[str]]:
    """The same for a pattern that has been read."""
    if any(_nullable(branch) for branch in tree.branches):
        raise tree.error("a match of the empty text")
    if names_script(tree):
        raise tree.error("a script")
    if _is_wide(tree.branches):
        return wide(tree.branches, tree), [LONG_RUNS]
    printer = _Printer(tree, without)
    text = printer.alternatives([flat for branch in tree.branches for flat in _spread(branch, tree)])
    if tree.long_s:
        printer.reasons[LONG_S] = None
    return text, list(printer.reasons)


def takes_words(tree: Pattern) -> bool:
    """Whether a pattern takes a space together with the letters after it, and all letters that follow one another."""
    return not _is_wide(tree.branches) and any(_takes_words(branch) for branch in tree.branches)


def names_script(tree: Pattern) -> bool:
    """Whether a pattern speaks of a script, such as Han."""
    return any(_scripts(node) for branch in tree.branches for node in branch)


def _scripts(node: Node) -> frozenset[str]:
    """Scripts that an element names."""
    inner = frozenset(name for branch in node.branches for child in branch for name in _scripts(child))
    return inner | node.chars.scripts | node.chars.without


def _takes_words(branch: Branch) -> bool:
    """Whether a branch is an optional space (or other character) and a run of letters, and no more than a suffix."""
    if not branch or branch[0].kind != "set" or (branch[0].low, branch[0].high) != (0, 1):
        return False
    letters = branch[1:-1] if branch[-1].kind == "group" else branch[1:]
    if not letters or any(node.kind != "set" for node in letters):
        return False
    inside = [fold(node) for node in letters]
    return 32 in fold(branch[0]) and all(LETTERS | {1, 5} >= chars for chars in inside) and 1 in inside[-1]


def quote(text: str) -> str:
    """A pattern that matches `text` itself."""
    return "".join(_literal(ord(char)) if ord(char) < 128 else char for char in text)


# -- structure --------------------------------------------------------------------------------------------------------


def _nullable(branch: Iterable[Node]) -> bool:
    """Whether a branch can match without taking a character."""
    return all(
        node.kind == "not" or node.low == 0 or (node.kind == "group" and any(_nullable(b) for b in node.branches))
        for node in branch
    )


def _spread(branch: Branch, tree: Pattern) -> list[Branch]:
    """Branches with groups only at the end, where MNN's matcher, which never retries a group, does no harm.

    A group after elements of fixed length becomes one branch per alternative, in order: the same search order.
    """
    index = next((index for index, node in enumerate(branch) if node.kind == "group"), None)
    if index is None:
        return [branch]
    node, head, rest = branch[index], branch[:index], branch[index + 1 :]
    fixed = all(before.low == before.high for before in head)
    if fixed and (node.low, node.high) in ((1, 1), (0, 1)) and (rest or not head):
        options = node.branches if node.low else (*node.branches, ())
        return [flat for option in options for flat in _spread((*head, *option, *rest), tree)]
    if rest:
        raise tree.error("a group that may be retried")
    inner = tuple(flat for option in node.branches for flat in _spread(option, tree))
    return [(*head, replace(node, branches=inner))]


def _first(nodes: Branch, tree: Pattern) -> tuple[frozenset[int], bool]:
    """Folded bytes a sequence can begin with, and whether it can be empty."""
    found: frozenset[int] = frozenset()
    for node in nodes:
        if node.kind == "not":
            raise tree.error("possessive quantifier before a lookahead")
        if node.kind == "set":
            found |= fold(node)
            empty = node.low == 0
        else:
            parts = [_first(inner, tree) for inner in node.branches]
            found = found.union(*(part[0] for part in parts))
            empty = node.low == 0 or any(part[1] for part in parts)
        if not empty:
            return found, False
    return found, True


def fold(node: Node) -> frozenset[int]:
    """The folded bytes of a set."""
    return _fold(node, {})


def _fold(node: Node, reasons: dict[str, None]) -> frozenset[int]:
    """The folded bytes of a set; reasons collects what the markers cannot tell apart."""
    chars = node.chars
    if chars.categories:
        reasons[NEWER] = None
    plain = ASCII - chars.ascii if node.negated else chars.ascii
    categories = CATEGORIES - chars.categories if node.negated else chars.categories
    markers = set()
    for marker, (members, deciding, problem) in _MARKERS.items():
        common = members & categories
        if deciding in common:
            markers.add(marker)
        if common and common != members:
            reasons[problem] = None
    if {code for code in plain if 0 < code < 8} != markers:
        reasons[CONTROLS] = None
    return frozenset(code for code in plain if not 0 < code < 8) | markers


# -- printing ---------------------------------------------------------------------------------------------------------

_NAMED = (
    ("\\p{L}", LETTERS | {1}), ("\\p{N}", DIGITS | {2}), ("\\s", SPACES | {3}), ("\\p{M}", frozenset((5,))),
    ("\\p{P}", PUNCTUATION | {6}), ("\\p{S}", _SYMBOLS | {7}),
)  # fmt: skip


class _Printer:
    """Prints parsed branches for MNN's matcher and collects what its markers cannot tell apart."""

    def __init__(self, tree: Pattern, without: frozenset[int]) -> None:
        self.tree = tree
        self.without = without
        self.reasons: dict[str, None] = {}

    def alternatives(self, branches: Iterable[Branch]) -> str:
        return "|".join(map(self.branch, branches))

    def branch(self, branch: Branch) -> str:
        parts = []
        for index, node in enumerate(branch):
            if node.possessive:
                _check_possessive(node, branch[index + 1 :], self.tree)
            parts.append(self.node(node) + print_count(node))
        return "".join(parts)

    def node(self, node: Node) -> str:
        if node.kind == "set":
            return _print_set(_fold(node, self.reasons) - self.without)
        if node.kind == "not" and not all(_steady(child) for option in node.branches for child in option):
            raise self.tree.error("a group inside a lookahead")
        if node.kind == "group" and node.low > 1:
            raise self.tree.error("a repeated group")
        return ("(?!" if node.kind == "not" else "(?:") + self.alternatives(node.branches) + ")"


def _steady(node: Node) -> bool:
    """Whether a repeated element matches in one way only, so that it need not be tried again."""
    if node.kind != "group":
        return True
    sets = all(child.kind == "set" and child.low == child.high for branch in node.branches for child in branch)
    return sets and len(node.branches) == 1


def _check_possessive(node: Node, rest: Branch, tree: Pattern) -> None:
    """Whether giving back what a possessive element took could never help, so that greedy does the same."""
    if node.kind != "set":
        raise tree.error("possessive group")
    first, empty = _first(rest, tree)
    if not empty and first & fold(node):
        raise tree.error("possessive quantifier that keeps what the rest needs")


def print_count(node: Node) -> str:
    """How often an element is taken, behind it."""
    known = {(1, 1): "", (0, 1): "?", (0, -1): "*", (1, -1): "+"}
    if (node.low, node.high) in known:
        return known[node.low, node.high]
    if node.low == node.high:
        return f"{{{node.low}}}"
    return f"{{{node.low},{node.high if node.high >= 0 else ''}}}"


def _print_set(folded: frozenset[int]) -> str:
    for name, members in _NAMED:
        if folded == members:
            return name
    if folded == ASCII - SPACES - {3}:
        return "\\S"
    if len(folded) == 1:
        return _literal(next(iter(folded)))
    negated = 4 in folded
    left = ASCII - folded if negated else folded
    parts = []
    for name, members in _NAMED:
        if members <= left:
            parts.append(name)
            left -= members
    return f"[{'^' if negated else ''}{print_codes(left)}{''.join(parts)}]"


def print_codes(codes: Iterable[int]) -> str:
    """Listed characters of a set; ranges only of three or more digits or letters."""
    parts: list[str] = []
    run: list[int] = []
    for code in [*sorted(codes), -1]:
        if run and (code != run[-1] + 1 or not chr(run[-1]).isalnum() or not chr(code).isalnum()):
            both = len(run) > 2
            parts.append(f"{chr(run[0])}-{chr(run[-1])}" if both else "".join(map(_literal, run)))
            run = []
        run.append(code)
    return "".join(parts)


def _literal(code: int) -> str:
    char = chr(code)
    named = {10: "\\n", 13: "\\r", 9: "\\t", 12: "\\f", 11: "\\v"}
    if code in named:
        return named[code]
    if code < 32 or code == 127:
        return f"\\x{code:02X}"
    return "\\" + char if char in "\\.^$|?*+()[]{}-" else char


# -- patterns that name characters beyond ASCII -----------------------------------------------------------------------


def _is_wide(branches: Iterable[Branch]) -> bool:
    return any(
        node.chars.ranges if node.kind == "set" else _is_wide(node.branches) for branch in branches for node in branch
    )


def wide(branches: Iterable[Branch], tree: Pattern) -> str:
    """The pattern in ECMAScript form for std::wregex; only listed characters and whitespace have an equal there."""
    return "|".join("".join(_print_wide_node(node, tree) for node in branch) for branch in branches)


def _print_wide_node(node: Node, tree: Pattern) -> str:
    if node.possessive:
        raise tree.error("possessive quantifier beside a character beyond ASCII")
    if node.kind != "set":
        opening = "(?!" if node.kind == "not" else "(?:"
        return opening + wide(node.branches, tree) + ")" + print_count(node)
    chars = node.chars
    extra = frozenset(("Zs", "Zl", "Zp")) if chars.spaces else frozenset()
    if chars.categories - extra:
        raise tree.error("character property beside a character beyond ASCII")
    ranges = chars.ranges + (WIDE_SPACES if chars.spaces else ())
    beyond = "".join(listed(*pair) for pair in ranges)
    return f"[{'^' if node.negated else ''}{print_codes(chars.ascii)}{beyond}]{print_count(node)}"


def listed(start: int, end: int) -> str:
    """A range of characters beyond ASCII inside a set."""
    return chr(start) if start == end else f"{chr(start)}-{chr(end)}"
