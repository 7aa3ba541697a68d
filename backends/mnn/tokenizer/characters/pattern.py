"""Word patterns as trees: a reader of the Oniguruma syntax that tokenizer.json uses.

Only constructs with a clear meaning are read; anything else (lookbehind, lazy quantifiers, POSIX classes, flags other
than `i`) is error B645, so that no pattern is misunderstood. `$`, `(?=x)` and `\\b` behind a word are read as what they are
in terms of negative lookahead: nothing but a line break follows, not `(?!x)`, and no character of a word follows.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field, replace

from ir.base.diag import LadingError

ASCII = frozenset(range(128))
SPACES = frozenset(b"\t\n\v\f\r ")
LETTERS = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
DIGITS = frozenset(b"0123456789")
PUNCTUATION = frozenset(b"!\"#%&'()*,-./:;?@[\\]_{}")
CATEGORIES = frozenset(
    "Cc Cf Cn Co Cs Ll Lm Lo Lt Lu Mc Me Mn Nd Nl No Pc Pd Pe Pf Pi Po Ps Sc Sk Sm So Zl Zp Zs".split()
)
SCRIPTS = ("Han",)
_BY_CATEGORY: dict[str, frozenset[int]] = {
    "Lu": frozenset(range(65, 91)), "Ll": frozenset(range(97, 123)), "Nd": DIGITS, "Zs": frozenset((32,)),
    "Pc": frozenset(b"_"), "Pd": frozenset(b"-"), "Ps": frozenset(b"([{"), "Pe": frozenset(b")]}"),
    "Po": PUNCTUATION - frozenset(b"_-([{)]}"), "Sm": frozenset(b"+<=>|~"), "Sc": frozenset(b"$"),
    "Sk": frozenset(b"^`"), "Cc": frozenset((*range(32), 127)),
}  # fmt: skip


@dataclass(frozen=True)
class Chars:
    """A set of characters: its ASCII part, general categories, and explicit ranges beyond ASCII.

    `scripts` are in it too, and `without` are scripts that are taken out of it.
    """

    ascii: frozenset[int]
    categories: frozenset[str] = frozenset()
    ranges: tuple[tuple[int, int], ...] = ()
    spaces: bool = False
    scripts: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()

    def union(self, other: Chars) -> Chars:
        return Chars(
            self.ascii | other.ascii,
            self.categories | other.categories,
            self.ranges + other.ranges,
            self.spaces or other.spaces,
            self.scripts | other.scripts,
            self.without | other.without,
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


@dataclass(frozen=True)
class Pattern:
    """A whole pattern: its alternatives, and whether an `s` was read in a case-insensitive group."""

    source: str
    branches: tuple[Branch, ...]
    long_s: bool

    def error(self, problem: str) -> LadingError:
        return LadingError("B645", f"{problem} in the word pattern", where=self.source)


MOST_GROUPS = 50
"""Groups within groups that are followed; word patterns of tokenizers have two or three."""


def read_pattern(source: str) -> Pattern:
    """Parse a pattern.

    Raises:
        LadingError: B645 for a construct that is not known here.
    """
    reader = _Reader(source)
    branches = reader.alternation()
    if reader.at < len(source):
        raise reader.error("unbalanced parenthesis")
    return Pattern(source, branches, reader.long_s)


class _Reader:
    """Recursive descent over an Oniguruma pattern; every construct not listed here is B645."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0
        self.fold = False
        self.long_s = False
        self.depth = 0
        self.before: list[list[Node]] = []

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

    def alternation(self) -> tuple[Branch, ...]:
        branches = [self.branch()]
        while self.peek() == "|":
            self.take()
            branches.append(self.branch())
        return tuple(branches)

    def branch(self) -> Branch:
        nodes: list[Node] = []
        self.before.append(nodes)
        while self.peek() not in ("", "|", ")"):
            node = self.atom()
            nodes.append(self.quantified(node))
        self.before.pop()
        return tuple(nodes)

    def edge(self) -> Node:
        """The end of a word, where what stands before is of a word in any case: no character of a word follows."""
        self.take(2)
        for node in (node for nodes in reversed(self.before) for node in reversed(nodes)):
            if not _in_words(node):
                break
            if node.low:
                return _never(Node("set", _CLASSES["w"]))
        raise self.error("\\b behind what may be no word")

    def atom(self) -> Node:
        char = self.peek()
        if char == "(":
            return self.group()
        if char == "[":
            return self.bracket()
        if char == "$":
            self.take()
            return _never(Node("set", Chars(frozenset((10,))), negated=True))
        if self.peek(2) == "\\b":
            return self.edge()
        if char == "^":
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
        if not self.fold or code not in LETTERS:
            return Chars(frozenset((code,)))
        self.long_s = self.long_s or chr(code) in "sS"
        return Chars(frozenset((code, code ^ 32)))

    def group(self) -> Node:
        self.take()
        self.depth += 1
        if self.depth > MOST_GROUPS:
            raise self.error(f"groups are nested more than {MOST_GROUPS} deep")
        outer, kind = self.fold, "group"
        if self.peek() == "?":
            self.take()
            if self.peek() in ("!", "="):
                kind = "not" if self.take() == "!" else "ahead"
            else:
                self.flags()
        branches = self.alternation()
        if self.peek() != ")":
            raise self.error("unbalanced parenthesis")
        self.take()
        self.fold = outer
        self.depth -= 1
        return Node(kind, branches=branches) if kind != "ahead" else _never(Node("not", branches=branches))

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
            if self.peek(2) == "&&" and not first and not negated:
                chars = replace(chars, without=self.excluded())
                break
            chars = chars.union(self.member(first))
            first = False
        self.take()
        return Node("set", chars, negated)

    def excluded(self) -> frozenset[str]:
        """The part of `[...&&[^\\p{Han}]]` after the first set: scripts that are taken out."""
        self.take(2)
        inner = self.bracket() if self.peek() == "[" else None
        if inner is None or not inner.negated or inner.chars != Chars(frozenset(), scripts=inner.chars.scripts):
            raise self.error("intersected set")
        if self.peek() != "]":
            raise self.error("intersected set")
        return inner.chars.scripts

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
            ascii_part |= {code ^ 32 for code in ascii_part & LETTERS}
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
        if name in SCRIPTS and self.peek() == "{":
            self.at = end + 1
            return Chars(frozenset(), scripts=frozenset((name,)))
        members = frozenset(cat for cat in CATEGORIES if cat == name or (len(name) == 1 and cat[0] == name))
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
        if not re.fullmatch("[0-9A-Fa-f]{1,8}", digits):
            raise self.error("malformed character code")
        code = int(digits, 16)
        if code > sys.maxunicode or 0xD800 <= code < 0xE000:
            raise self.error(f"code {digits}, which no character has")
        return code


_CONTROL_ESCAPES = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11}
_WORD_CATEGORIES = frozenset(("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "Pc"))
_CLASSES = {
    "s": Chars(SPACES, frozenset(("Zs", "Zl", "Zp")), spaces=True),
    "d": Chars(DIGITS, frozenset(("Nd",))),
    "w": Chars(LETTERS | DIGITS | frozenset(b"_"), _WORD_CATEGORIES),
}


def _never(node: Node) -> Node:
    """What matches where something does not follow."""
    return Node("not", branches=node.branches if node.kind == "group" else ((node,),))


def _in_words(node: Node) -> bool:
    """Whether an element takes characters of words alone."""
    if node.kind == "group":
        return all(_in_words(child) for branch in node.branches for child in branch)
    word = _CLASSES["w"]
    plain = node.chars.ascii <= word.ascii and node.chars.categories <= word.categories
    return node.kind == "set" and plain and not (node.negated or node.chars.ranges or node.chars.scripts)


def _only(chars: Chars) -> int | None:
    """The character of a set of one, else None."""
    if chars.scripts:
        return None
    if len(chars.ascii) == 1 and not chars.categories and not chars.ranges:
        return next(iter(chars.ascii))
    if not chars.ascii and not chars.categories and len(chars.ranges) == 1 and chars.ranges[0][0] == chars.ranges[0][1]:
        return chars.ranges[0][0]
    return None


def _complement(chars: Chars, parser: _Reader) -> Chars:
    if chars.ranges or chars.scripts or chars.without:
        raise parser.error("complement of listed characters inside a set")
    return Chars(ASCII - chars.ascii, CATEGORIES - chars.categories)
