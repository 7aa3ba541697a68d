"""Tokens and single literals of the text form, and errors that point at them."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from ir.base.diag import LadingError
from ir.base.json_numbers import LONGEST

_STRING = r'"[^"\\\n]*(?:\\[^\n][^"\\\n]*)*"'
_TOKEN = re.compile(
    rf"""[ \t\r\n]*(?://[^\n]*[ \t\r\n]*)*(?:
     (?P<value>[%@](?:[A-Za-z0-9_.]+|{_STRING}))
    |(?P<type>[a-z][a-z0-9]*\[[^\]"\n]*\])
    |(?P<number>nan:[0-9a-f]+|-(?:inf|Infinity)\b|-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![A-Za-z_]))
    |(?P<string>b?{_STRING})
    |(?P<word>[A-Za-z_][A-Za-z0-9_.\-]*)
    |(?P<mark>\.\.|[{{}}()\[\],:=;<>*])
    |(?P<end>\Z)
    )""",
    re.VERBOSE,
).match
_BLANK = re.compile(r"[ \t\r\n]*(?://[^\n]*[ \t\r\n]*)*").match
_ESCAPE = re.compile(r"\\(?:u\{([0-9a-f]{1,6})\}|(.))")
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}
_DECODER = json.JSONDecoder()
_SHOWN = 120
"""Columns of a faulty line that an error shows."""


class Tokens:
    """The current token of a text and what is wrong with it.

    Attributes:
        input, source: the text and what to call it.
        kind: ``value``, ``type``, ``number``, ``string``, ``word``, ``mark`` or ``end``.
        text: the token as written.
        start, end: where it begins and ends in the text.
    """

    def __init__(self, text: str, source: str) -> None:
        self.input = text
        self.source = source
        self.kind = ""
        self.text = ""
        self.start = 0
        self.end = 0
        self.next()

    def next(self) -> None:
        """Go on to the next token."""
        found = _TOKEN(self.input, self.end)
        if found is None:
            self._unreadable()
        self.kind = kind = found.lastgroup or ""
        self.text = found.group(kind)
        self.start, self.end = found.span(kind)

    def _unreadable(self) -> NoReturn:
        blank = _BLANK(self.input, self.end)
        at = blank.end() if blank is not None else self.end
        if self.input[at] == '"' or self.input.startswith('b"', at):
            end = self.input.find("\n", at)
            self.fail("I100", "this string does not end on its line", at, end if end > 0 else len(self.input))
        self.fail("I100", f"{self.input[at]!r} has no meaning here", at, at + 1)

    def fail(
        self, code: str, message: str, start: int | None = None, end: int | None = None, hint: str = ""
    ) -> NoReturn:
        """Raise the error, pointing at the current token or at a range of the text."""
        at = self.start if start is None else start
        stop = (self.end if start is None else at + 1) if end is None else end
        raise LadingError(code, message, where=self.place(at, stop), hint=hint)

    def place(self, at: int, stop: int) -> str:
        """``source:line:column``, the line, and carets under a range."""
        first = self.input.rfind("\n", 0, at) + 1
        last = self.input.find("\n", at)
        line = self.input[first : last if last >= 0 else len(self.input)].rstrip("\r")
        column = at - first
        shift = max(0, column - _SHOWN // 2) if len(line) > _SHOWN else 0
        shown = line[shift : shift + _SHOWN]
        pad = "".join("\t" if c == "\t" else " " for c in shown[: column - shift])
        carets = "^" * max(1, min(stop - at, len(shown) - len(pad)))
        number = self.input.count("\n", 0, first) + 1
        return f"{self.source}:{number}:{column + 1}\n{shown}\n{pad}{carets}"

    # ---- single tokens ----

    def accept(self, text: str) -> bool:
        """Take a mark or word if it comes next."""
        if self.text == text and self.kind in ("mark", "word"):
            self.next()
            return True
        return False

    def expect(self, text: str) -> None:
        """Take a mark or word or fail."""
        if not self.accept(text):
            self.fail("I100", f"{text!r} expected, not {self.shown()}")

    def shown(self) -> str:
        """The current token for messages."""
        return repr(self.text) if self.text else "the end of the text"

    def integer(self) -> int:
        """Take an integer."""
        if not self.is_integer():
            self.fail("I100", f"an integer expected, not {self.shown()}")
        value = int(self.text)
        self.next()
        return value

    def is_integer(self) -> bool:
        """True when an integer comes next; one of absurd length is refused."""
        if self.kind != "number" or not self.text.lstrip("-").isdigit():
            return False
        if len(self.text) > LONGEST:
            self.fail("I104", "this number has too many digits")
        return True

    def string(self) -> str:
        """Take a quoted string."""
        if self.kind != "string" or self.text[0] == "b":
            self.fail("I100", f'a quoted "string" expected, not {self.shown()}')
        value = self.unquote(self.text)
        self.next()
        return value

    def name(self) -> str:
        """Take a bare or quoted name."""
        if self.kind == "string":
            return self.string()
        if self.kind == "type" or self.kind != "word":
            self.fail("I100", f"a name expected, not {self.shown()}")
        value = self.text
        self.next()
        return value

    def json(self) -> Any:
        """Take a JSON value, which starts at the current token."""
        try:
            value, self.end = _DECODER.raw_decode(self.input, self.start)
        except json.JSONDecodeError as error:
            self.fail("I100", f"not JSON: {error.msg}", error.pos)
        except ValueError as error:
            self.fail("I100", f"not JSON: {error}")
        self.next()
        return value

    def unquote(self, text: str) -> str:
        """What a quoted string stands for."""
        if "\\" not in text:
            return text[1:-1]

        def plain(found: re.Match[str]) -> str:
            code, single = found.groups()
            if code is None and single not in _ESCAPED:
                self.fail("I100", f"unknown escape {found.group()!r}", hint=r"known: \n \t \r \" \\ \u{hex}")
            if code is not None and int(code, 16) > 0x10FFFF:
                self.fail("I100", f"there is no character {found.group()}")
            return chr(int(code, 16)) if code is not None else _ESCAPED[single]

        return _ESCAPE.sub(plain, text[1:-1])

    # ---- literals ----

    def list(self, item: Callable[[], Any]) -> tuple[Any, ...]:
        """Take items in brackets, with commas between them."""
        self.expect("[")
        found: list[Any] = []
        if self.accept("]"):
            return ()
        while True:
            found.append(item())
            if not self.accept(","):
                self.expect("]")
                return tuple(found)

    def scalar(self) -> Any:
        """Take a number, string or bytes."""
        text, kind = self.text, self.kind
        value: Any
        if self.is_integer():
            value = int(text)
        elif text.startswith("nan:"):
            value = struct.unpack("<d", struct.pack("<Q", self.nan_bits(8)))[0]
        elif kind == "number" or (kind == "word" and text in ("inf", "nan")):
            value = float(text)
        elif kind == "string":
            value = self.bytes() if text[0] == "b" else self.unquote(text)
        else:
            self.fail("I100", f"an attribute value expected, not {self.shown()}")
        self.next()
        return value

    def nan_bits(self, size: int) -> int:
        """The bits of the NaN of `size` bytes in the current token."""
        code = self.text[4:]
        if len(code) != 2 * size:
            self.fail("I104", f"the bits of this NaN are {2 * size} hexadecimal digits")
        return int(code, 16)

    def bytes(self) -> bytes:
        """The bytes in the current token."""
        text = self.unquote(self.text[1:])
        if any(ord(c) > 255 for c in text):
            self.fail("I104", "a character of bytes is at most \\u{ff}")
        return text.encode("latin-1")

    def is_before(self, mark: str) -> bool:
        """True when the token after the current one is a certain mark."""
        found = _TOKEN(self.input, self.end)
        return found is not None and found.group(found.lastgroup or 0) == mark

    @contextmanager
    def located(self, start: int, end: int) -> Iterator[None]:
        """Add the place in the text to errors that do not know it."""
        try:
            yield
        except LadingError as error:
            if error.diagnostics[0].where:
                raise
            first = error.diagnostics[0]
            raise LadingError(first.code, first.message, self.place(start, end), first.hint) from error


__all__ = ["Tokens"]
