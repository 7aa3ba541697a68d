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
from dataclasses import dataclass, field

from ir.diag import LadingError

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
_CATEGORIES = frozenset().union(*(row[0] for row in _MARKERS.values()))
_ASCII = frozenset(range(128))
_SPACES = frozenset(b"\t\n\v\f\r ")
_LETTERS = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_DIGITS = frozenset(b"0123456789")
_PUNCTUATION = frozenset(b"!\"#%&'()*,-./:;?@[\\]_{}")
_SYMBOLS = frozenset(b"$+<=>^`|~")
_BY_CATEGORY: dict[str, frozenset[int]] = {
    "Lu": frozenset(range(65, 91)), "Ll": frozenset(range(97, 123)), "Nd": _DIGITS, "Zs": frozenset((32,)),
    "Pc": frozenset(b"_"), "Pd": frozenset(b"-"), "Ps": frozenset(b"([{"), "Pe": frozenset(b")]}"),
    "Po": _PUNCTUATION - frozenset(b"_-([{)]}"), "Sm": frozenset(b"+<=>|~"), "Sc": frozenset(b"$"),
    "Sk": frozenset(b"^`"), "Cc": frozenset((*range(32), 127)),
}  # fmt: skip
WIDE_SPACES = ((0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029), (0x202F, 0x202F),
               (0x205F, 0x205F), (0x3000, 0x3000))  # fmt: skip
CONTROLS = "the control characters U+0001 to U+0007 count as letters, digits, spaces or marks"
NEWER = "characters that came with Unicode 15.1 or later count as unassigned"
LONG_RUNS = "a stretch of more than 20,000 Chinese characters without any other may stop MNN"
LONG_S = "'ſ' (U+017F) after an apostrophe is not taken for an s"


@dataclass(frozen=True)
class Chars:
    """A set of characters: its ASCII part, general categories, and explicit ranges beyond ASCII."""

    ascii: frozenset[int]
    categories: frozenset[str] = frozenset()
    ranges: tuple[tuple[int, int], ...] = ()
    spaces: bool = False

    def union(self, other: Chars) -> Chars:
        return Chars(
            self.ascii | other.ascii,
            self.categories | other.categories,
            self.ranges + other.ranges,
            self.spaces or other.spaces,
        )


@dataclass(frozen=True)
class Node:
    """One element of a pattern: `set` with chars, `group` with alternatives, or `not` (negative lookahead)."""

    kind: str
    chars: Chars = field(default_factory=lambda: Chars(frozenset()))
    negated: bool = False
    branches: tuple[tuple[Node, ...], ...] = ()
    low: int = 1
    high: int = 1  # -1 for no limit
    possessive: bool = False


Branch = tuple[Node, ...]


def translate(pattern: str, without: frozenset[int] = frozenset()) -> tuple[str, list[str]]:
    """A pattern that MNN matches as Oniguruma matches `pattern`, and the reasons why rare texts may differ.

    Args:
        without: ASCII characters that no set shall hold.

    Raises:
        LadingError: B645 for a construct without an equal.
    """
    parser = _Parser(pattern)
    branches = parser.alternation()
    parser.finish()
    if any(_nullable(branch) for branch in branches):
        raise parser.error("the pattern matches the empty text")
    if _is_wide(branches):
        return _print_wide(branches, parser), [LONG_RUNS]
    flat = [flat for branch in branches for flat in _spread(branch, parser)]
    reasons: dict[str, None] = {}
    parser.without = without
    text = "|".join(_print_branch(branch, parser, reasons) for branch in flat)
    if parser.long_s:
        reasons[LONG_S] = None
    return text, list(reasons)


def translate_marked(pattern: str, first: str, marks: Iterable[int]) -> tuple[str, list[str]] | None:
    """As `translate`, with an alternative `first` before all others and the characters `marks` in no set but there.

    None unless the pattern takes a space together with the letters after it, and all letters that follow one another.
    """
    parser = _Parser(pattern)
    branches = parser.alternation()
    parser.finish()
    if _is_wide(branches) or not any(_takes_words(branch) for branch in branches):
        return None
    text, reasons = translate(pattern, frozenset(marks))
    return f"{first}|{text}", reasons


def _takes_words(branch: Branch) -> bool:
    """Whether a branch is an optional space (or other character) and a run of letters, and no more than a suffix."""
    if not branch or branch[0].kind != "set" or (branch[0].low, branch[0].high) != (0, 1):
        return False
    letters = branch[1:-1] if branch[-1].kind == "group" else branch[1:]
    if not letters or any(node.kind != "set" for node in letters):
        return False
    inside = [_fold(node, {}) for node in letters]
    return 32 in _fold(branch[0], {}) and all(_LETTERS | {1, 5} >= chars for chars in inside) and 1 in inside[-1]


def quote(text: str) -> str:
    """A pattern that matches `text` itself."""
    return "".join(_literal(ord(char)) if ord(char) < 128 else char for char in text)


# -- reading ----------------------------------------------------------------------------------------------------------


class _Parser:
    """Recursive descent over an Oniguruma pattern; every construct not listed here is B645."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0
        self.fold = False
        self.long_s = False
        self.without: frozenset[int] = frozenset()

    def error(self, problem: str) -> LadingError:
        return LadingError("B645", f"{problem}, at character {self.at} of the word pattern", where=self.pattern)

    def peek(self, count: int = 1) -> str:
        return self.pattern[self.at : self.at + count]

    def take(self, count: int = 1) -> str:
        piece = self.peek(count)
        if len(piece) < count:
            raise self.error("the pattern ends too early")
        self.at += count
        return piece

    def finish(self) -> None:
        if self.at < len(self.pattern):
            raise self.error("unbalanced parenthesis")

    def alternation(self) -> tuple[Branch, ...]:
        branches = [self.branch()]
        while self.peek() == "|":
            self.take()
            branches.append(self.branch())
        return tuple(branches)

    def branch(self) -> Branch:
        nodes: list[Node] = []
        while self.peek() not in ("", "|", ")"):
            node = self.atom()
            nodes.append(self.quantified(node))
        return tuple(nodes)

    def atom(self) -> Node:
        char = self.peek()
        if char == "(":
            return self.group()
        if char == "[":
            return self.bracket()
        if char in "^$":
            raise self.error(f"anchor {char!r}")
        if char in "*+?{":
            raise self.error("quantifier without an element")
        if char == "\\":
            chars, negated = self.escape()
            return Node("set", chars, negated)
        self.take()
        if char == ".":
            return Node("set", Chars(frozenset((10,))), negated=True)
        return Node("set", self.single(ord(char)))

    def single(self, code: int) -> Chars:
        """One literal character, in both cases where a case-insensitive group holds it."""
        if code > 127:
            if self.fold and chr(code).lower() != chr(code).upper():
                raise self.error("case-insensitive match of a letter beyond ASCII")
            return Chars(frozenset(), ranges=((code, code),))
        if not self.fold or code not in _LETTERS:
            return Chars(frozenset((code,)))
        self.long_s = self.long_s or chr(code) in "sS"
        return Chars(frozenset((code, code ^ 32)))

    def group(self) -> Node:
        self.take()
        outer, kind = self.fold, "group"
        if self.peek() == "?":
            self.take()
            if self.peek() == "!":
                self.take()
                kind = "not"
            else:
                self.flags()
        branches = self.alternation()
        if self.peek() != ")":
            raise self.error("unbalanced parenthesis")
        self.take()
        self.fold = outer
        return Node(kind, branches=branches)

    def flags(self) -> None:
        """The part of `(?i:` or `(?:` after the question mark."""
        if self.peek() == "i":
            self.take()
            self.fold = True
        if self.peek() != ":":
            raise self.error(f"group of the kind (?{self.peek()}")
        self.take()

    def quantified(self, node: Node) -> Node:
        char = self.peek()
        if char not in ("?", "*", "+", "{"):
            return node
        if node.kind == "not":
            raise self.error("quantified lookahead")
        self.take()
        low, high = {"?": (0, 1), "*": (0, -1), "+": (1, -1)}.get(char) or self.bounds()
        possessive = self.peek() == "+"
        if self.peek() == "?" or (possessive and char == "{"):
            raise self.error("lazy or stacked quantifier")
        if possessive:
            self.take()
        return Node(node.kind, node.chars, node.negated, node.branches, low, high, possessive)

    def bounds(self) -> tuple[int, int]:
        """The part of `{2}`, `{2,}` or `{2,3}` after the brace."""
        end = self.pattern.find("}", self.at)
        low, comma, high = self.pattern[self.at : end].partition(",")
        if end < 0 or not low.isdigit() or (high and not high.isdigit()):
            raise self.error("malformed repeat count")
        self.at = end + 1
        top = int(high) if high else (-1 if comma else int(low))
        if 0 <= top < int(low):
            raise self.error("malformed repeat count")
        return int(low), top

    def bracket(self) -> Node:
        self.take()
        negated = self.peek() == "^"
        if negated:
            self.take()
        chars = Chars(frozenset())
        first = True
        while first or self.peek() != "]":
            chars = chars.union(self.member(first))
            first = False
        self.take()
        return Node("set", chars, negated)

    def member(self, first: bool) -> Chars:
        """One character, range or escape inside brackets."""
        char = self.peek()
        if self.peek(2) in ("[:", "&&") or (first and char == "]"):
            raise self.error("named or intersected set")
        if char == "[":
            inner = self.bracket()
            return _complement(inner.chars, self) if inner.negated else inner.chars
        if char == "\\":
            chars, negated = self.escape()
            one = _only(chars) if not negated else None
            if one is None:
                return _complement(chars, self) if negated else chars
        else:
            one = ord(self.take())
        if self.peek() != "-" or self.peek(2)[1:] in ("]", ""):
            return self.single(one)
        self.take()
        return self.span(one)

    def span(self, start: int) -> Chars:
        if self.peek() == "\\":
            chars, negated = self.escape()
            end = None if negated else _only(chars)
        else:
            end = ord(self.take())
        if end is None or end < start:
            raise self.error("malformed range")
        ascii_part = frozenset(range(start, min(end, 127) + 1))
        if self.fold:
            ascii_part |= {code ^ 32 for code in ascii_part & _LETTERS}
        ranges = ((max(start, 128), end),) if end > 127 else ()
        return Chars(ascii_part, ranges=ranges)

    def escape(self) -> tuple[Chars, bool]:
        """The characters of a backslash escape, and whether it means all others instead."""
        self.take()
        char = self.take()
        if char in "pP":
            return self.category(), char == "P"
        if char in "sSdDwW":
            return _CLASSES[char.lower()], char.isupper()
        if char in "xu":
            return self.single(self.code(char)), False
        if char in _CONTROL_ESCAPES:
            return Chars(frozenset((_CONTROL_ESCAPES[char],))), False
        if char.isalnum():
            raise self.error(f"escape \\{char}")
        return self.single(ord(char)), False

    def category(self) -> Chars:
        end = self.pattern.find("}", self.at)
        name = self.pattern[self.at + 1 : end]
        members = frozenset(cat for cat in _CATEGORIES if cat == name or (len(name) == 1 and cat[0] == name))
        if self.peek() != "{" or end < 0 or not members:
            raise self.error(f"character property {name!r}")
        self.at = end + 1
        return Chars(frozenset().union(*(_BY_CATEGORY.get(cat, frozenset()) for cat in members)), members)

    def code(self, kind: str) -> int:
        digits = self.take(2 if kind == "x" else 4) if self.peek() != "{" else ""
        if not digits:
            end = self.pattern.find("}", self.at)
            digits = self.pattern[self.at + 1 : end]
            self.at = end + 1
        try:
            return int(digits, 16)
        except ValueError:
            raise self.error("malformed character code") from None


_CONTROL_ESCAPES = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11}
_WORD_CATEGORIES = frozenset(("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "Pc"))
_CLASSES = {
    "s": Chars(_SPACES, frozenset(("Zs", "Zl", "Zp")), spaces=True),
    "d": Chars(_DIGITS, frozenset(("Nd",))),
    "w": Chars(_LETTERS | _DIGITS | frozenset(b"_"), _WORD_CATEGORIES),
}


def _only(chars: Chars) -> int | None:
    """The character of a set of one, else None."""
    if len(chars.ascii) == 1 and not chars.categories and not chars.ranges:
        return next(iter(chars.ascii))
    if not chars.ascii and not chars.categories and len(chars.ranges) == 1 and chars.ranges[0][0] == chars.ranges[0][1]:
        return chars.ranges[0][0]
    return None


def _complement(chars: Chars, parser: _Parser) -> Chars:
    if chars.ranges:
        raise parser.error("complement of listed characters inside a set")
    return Chars(_ASCII - chars.ascii, _CATEGORIES - chars.categories)


# -- structure --------------------------------------------------------------------------------------------------------


def _nullable(branch: Iterable[Node]) -> bool:
    """Whether a branch can match without taking a character."""
    return all(
        node.kind == "not" or node.low == 0 or (node.kind == "group" and any(_nullable(b) for b in node.branches))
        for node in branch
    )


def _spread(branch: Branch, parser: _Parser) -> list[Branch]:
    """Branches with groups only at the end, where MNN's matcher, which never retries a group, does no harm.

    A group after elements of fixed length becomes one branch per alternative, in order: the same search order.
    """
    for index, node in enumerate(branch):
        if node.kind != "group" or (index == len(branch) - 1 and index > 0):
            continue
        if (node.low, node.high) not in ((1, 1), (0, 1)) or any(n.low != n.high for n in branch[:index]):
            if index == len(branch) - 1:
                continue
            raise parser.error("a group that may be retried")
        inner = node.branches if node.low else (*node.branches, ())
        rest = branch[index + 1 :]
        return [flat for option in inner for flat in _spread((*branch[:index], *option, *rest), parser)]
    return [branch]


def _first(nodes: Branch, parser: _Parser) -> tuple[frozenset[int], bool]:
    """Folded bytes a sequence can begin with, and whether it can be empty."""
    found: frozenset[int] = frozenset()
    for node in nodes:
        if node.kind == "not":
            raise parser.error("possessive quantifier before a lookahead")
        if node.kind == "set":
            found |= _fold(node, {})
            empty = node.low == 0
        else:
            parts = [_first(inner, parser) for inner in node.branches]
            found = found.union(*(part[0] for part in parts))
            empty = node.low == 0 or any(part[1] for part in parts)
        if not empty:
            return found, False
    return found, True


def _fold(node: Node, reasons: dict[str, None]) -> frozenset[int]:
    """The folded bytes of a set; reasons collects what the markers cannot tell apart."""
    chars = node.chars
    if chars.categories:
        reasons[NEWER] = None
    plain = _ASCII - chars.ascii if node.negated else chars.ascii
    categories = _CATEGORIES - chars.categories if node.negated else chars.categories
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
    ("\\p{L}", _LETTERS | {1}), ("\\p{N}", _DIGITS | {2}), ("\\s", _SPACES | {3}), ("\\p{M}", frozenset((5,))),
    ("\\p{P}", _PUNCTUATION | {6}), ("\\p{S}", _SYMBOLS | {7}),
)  # fmt: skip


def _print_branch(branch: Branch, parser: _Parser, reasons: dict[str, None]) -> str:
    parts = []
    for index, node in enumerate(branch):
        if node.possessive:
            _check_possessive(node, branch[index + 1 :], parser)
        if node.kind == "set":
            parts.append(_print_set(_fold(node, reasons) - parser.without) + _print_count(node))
            continue
        inner = "|".join(_print_branch(option, parser, reasons) for option in node.branches)
        if node.kind == "not" and any(child.kind == "group" for option in node.branches for child in option):
            raise parser.error("group inside a lookahead")
        if node.kind == "group" and node.low > 1:
            raise parser.error("repeated group")
        parts.append(("(?!" if node.kind == "not" else "(?:") + inner + ")" + _print_count(node))
    return "".join(parts)


def _check_possessive(node: Node, rest: Branch, parser: _Parser) -> None:
    """Whether giving back what a possessive element took could never help, so that greedy does the same."""
    if node.kind != "set":
        raise parser.error("possessive group")
    first, empty = _first(rest, parser)
    if not empty and first & _fold(node, {}):
        raise parser.error("possessive quantifier that keeps what the rest needs")


def _print_count(node: Node) -> str:
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
    if folded == _ASCII - _SPACES - {3}:
        return "\\S"
    if len(folded) == 1:
        return _literal(next(iter(folded)))
    negated = 4 in folded
    left = _ASCII - folded if negated else folded
    parts = []
    for name, members in _NAMED:
        if members <= left:
            parts.append(name)
            left -= members
    return f"[{'^' if negated else ''}{_print_codes(left)}{''.join(parts)}]"


def _print_codes(codes: Iterable[int]) -> str:
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


def _print_wide(branches: Iterable[Branch], parser: _Parser) -> str:
    """The pattern in ECMAScript form for std::wregex; only listed characters and whitespace have an equal there."""
    return "|".join("".join(_print_wide_node(node, parser) for node in branch) for branch in branches)


def _print_wide_node(node: Node, parser: _Parser) -> str:
    if node.possessive:
        raise parser.error("possessive quantifier beside a character beyond ASCII")
    if node.kind != "set":
        opening = "(?!" if node.kind == "not" else "(?:"
        return opening + _print_wide(node.branches, parser) + ")" + _print_count(node)
    chars = node.chars
    extra = frozenset(("Zs", "Zl", "Zp")) if chars.spaces else frozenset()
    if chars.categories - extra:
        raise parser.error("character property beside a character beyond ASCII")
    ranges = chars.ranges + (WIDE_SPACES if chars.spaces else ())
    listed = "".join(chr(a) if a == b else f"{chr(a)}-{chr(b)}" for a, b in ranges)
    return f"[{'^' if node.negated else ''}{_print_codes(chars.ascii)}{listed}]{_print_count(node)}"
