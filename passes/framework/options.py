"""Options of a pass: the typed fields of its dataclass, read from pipeline text or TOML and printed back.

The type of a field decides how its text is read, so ``1e-3`` is a number for a ``float`` field and a word for a
``str`` field, and no value needs a sigil. Supported: bool, int, float, str, Path, Literal of str or int, each of these
or None, and tuples of any length of these.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ir.base.diag import LadingError, suggest

WORD = re.compile(r'[^\s,{}()\[\]="#]+')
"""A value that needs no quotes."""


def option(
    default: Any = dataclasses.MISSING, *, help: str = "", low: float | None = None, high: float | None = None
) -> Any:
    """Declare a field of a pass with a help text.

    Args:
        default: value when the option is not given; leave it out to make the option obligatory.
        help: one sentence for ``--list-passes`` and the manual.
        low, high: inclusive bounds of a number, or of each number of a tuple.
    """
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high})


@dataclass(frozen=True, slots=True)
class Raw:
    """An option's value as written: a word, a quoted string, a list, or (text None) a bare flag.

    `span` is the (start, end) offset in the pipeline text.
    """

    text: str | tuple[Raw, ...] | None
    quoted: bool = False
    span: tuple[int, int] = (0, 0)


class BadValue(Exception):
    """A value that does not fit its option; becomes a `LadingError` where the text is known."""

    def __init__(self, message: str, raw: Raw, hint: str = "") -> None:
        super().__init__(message)
        self.raw = raw
        self.hint = hint


@dataclass(frozen=True, slots=True)
class OptionSpec:
    """One option of a pass.

    Attributes:
        name: field name, with underscores.
        kind: ``bool``, ``int``, ``float``, ``str``, ``path`` or ``choice``.
        many: True for a tuple of these.
        optional: True when ``none`` is allowed.
        choices: legal values of a ``choice``.
        default: `dataclasses.MISSING` when the option is obligatory.
        help: one sentence.
        low, high: inclusive bounds of a number.
    """

    name: str
    kind: str
    many: bool
    optional: bool
    choices: tuple[str | int, ...]
    default: Any
    help: str
    low: float | None
    high: float | None

    @property
    def key(self) -> str:
        """The name as printed, with dashes."""
        return self.name.replace("_", "-")

    @property
    def required(self) -> bool:
        """True when the option has no default."""
        return self.default is dataclasses.MISSING

    @property
    def type_text(self) -> str:
        """The type for people, such as ``4 | 8`` or ``list of str``."""
        one = " | ".join(str(item) for item in self.choices) if self.choices else self.kind
        whole = f"list of {one}" if self.many else one
        return f"{whole} | none" if self.optional else whole

    def read(self, raw: Raw) -> Any:
        """The field's value for a value as written; raises `BadValue`."""
        if self.optional and raw.text == "none" and not raw.quoted:
            return None
        if not self.many:
            if isinstance(raw.text, tuple):
                raise BadValue(f"{self.key} takes one value, not a list", raw)
            return self._read_one(raw)
        if raw.text is None:
            raise BadValue(f"{self.key} needs a value: {self.type_text}", raw)
        items = raw.text if isinstance(raw.text, tuple) else (raw,)
        return tuple(self._read_one(item) for item in items)

    def _read_one(self, raw: Raw) -> Any:
        if isinstance(raw.text, tuple):
            raise BadValue(f"{self.key} does not take lists in lists", raw)
        if self.kind == "bool":
            return self._read_bool(raw)
        if raw.text is None:
            raise BadValue(f"{self.key} needs a value: {self.type_text}", raw)
        if self.kind == "str":
            return raw.text
        if self.kind == "path":
            return Path(raw.text)
        if self.kind == "choice":
            return self._read_choice(raw)
        return self._read_number(raw, raw.text)

    def _read_bool(self, raw: Raw) -> bool:
        if raw.text is None or (raw.text == "true" and not raw.quoted):
            return True
        if raw.text == "false" and not raw.quoted:
            return False
        raise BadValue(f"{self.key} is true or false, not {raw.text!r}", raw)

    def _read_choice(self, raw: Raw) -> str | int:
        for item in self.choices:
            if str(item) == raw.text and not (raw.quoted and isinstance(item, int)):
                return item
        known = [str(item) for item in self.choices]
        near = "without quotes" if raw.text in known else suggest(str(raw.text), known)
        hint = near or f"legal values: {', '.join(known)}"
        raise BadValue(f"{raw.text!r} is not a value of {self.key}", raw, hint)

    def _read_number(self, raw: Raw, text: str) -> int | float:
        try:
            if raw.quoted:
                raise ValueError
            value = int(text) if self.kind == "int" else float(text)
            if math.isnan(value):
                raise ValueError
        except ValueError:
            word = "an integer" if self.kind == "int" else "a number"
            raise BadValue(f"{self.key} is {word}, not {raw.text!r}", raw) from None
        problem = self._out_of_range(value)
        if problem:
            raise BadValue(problem, raw)
        return value

    def _out_of_range(self, value: int | float) -> str:
        if math.isnan(value):
            return f"{self.key} must be a number, not {value}"
        if self.low is not None and value < self.low:
            return f"{self.key} must be at least {self.low}, not {value}"
        if self.high is not None and value > self.high:
            return f"{self.key} must be at most {self.high}, not {value}"
        return ""

    def problem(self, value: Any) -> str:
        """What is wrong with a value given from Python, or an empty string."""
        if self.optional and value is None:
            return ""
        if self.many and not isinstance(value, tuple):
            return f"{self.name} must be a tuple, not {type(value).__name__}"
        for item in value if self.many else (value,):
            if self.kind == "choice":
                if not any(item == known and type(item) is type(known) for known in self.choices):
                    return f"{self.name} must be one of {list(self.choices)}, not {item!r}"
                continue
            wanted = _PYTHON[self.kind]
            if not isinstance(item, wanted) or (isinstance(item, bool) and self.kind != "bool"):
                return f"{self.name} must be {self.kind}, not {item!r}"
            if self.kind in ("int", "float") and self._out_of_range(item):
                return self._out_of_range(item)
        return ""

    def write(self, value: Any) -> str:
        """``key=value`` for a value; a true flag is its bare key."""
        if self.kind == "bool" and not self.many and value is True:
            return self.key
        if value is None:
            return f"{self.key}=none"
        if self.many:
            return f"{self.key}=[{','.join(self._write_one(item) for item in value)}]"
        return f"{self.key}={self._write_one(value)}"

    def _write_one(self, value: Any) -> str:
        if self.kind == "bool":
            return "true" if value else "false"
        if self.kind == "float":
            return repr(float(value))
        text = str(value)
        is_text = isinstance(value, str | Path)
        if is_text and (not WORD.fullmatch(text) or text == "none"):
            return json.dumps(text, ensure_ascii=False)
        return text


_PYTHON: dict[str, Any] = {"bool": bool, "int": int, "float": (float, int), "str": str, "path": Path}
_KINDS = {bool: "bool", int: "int", float: "float", str: "str", Path: "path"}


@cache
def options_of(cls: type) -> dict[str, OptionSpec]:
    """The options of a pass class by field name, in order of declaration.

    Raises TypeError for a field whose type pipelines cannot write.
    """
    hints = get_type_hints(cls)
    return {item.name: _spec(cls, item, hints[item.name]) for item in dataclasses.fields(cls) if item.init}


def _spec(cls: type, item: dataclasses.Field, hint: Any) -> OptionSpec:
    optional, many = False, False
    if get_origin(hint) in (Union, types.UnionType):
        rest = [arg for arg in get_args(hint) if arg is not type(None)]
        if len(rest) != 1:
            raise TypeError(f"{cls.__name__}.{item.name}: a union is only supported with None")
        optional, hint = True, rest[0]
    if get_origin(hint) is tuple:
        args = get_args(hint)
        if len(args) != 2 or args[1] is not Ellipsis:
            raise TypeError(f"{cls.__name__}.{item.name}: write tuple[T, ...]")
        many, hint = True, args[0]
    choices: tuple[str | int, ...] = ()
    if get_origin(hint) is Literal:
        choices, kind = get_args(hint), "choice"
    elif hint in _KINDS:
        kind = _KINDS[hint]
    else:
        raise TypeError(f"{cls.__name__}.{item.name}: pipelines cannot write values of type {hint}")
    meta = item.metadata
    return OptionSpec(
        item.name, kind, many, optional, choices, item.default, meta.get("help", ""), meta.get("low"), meta.get("high")
    )


def check_fields(instance: Any) -> None:
    """Raise ValueError when a field of a pass built from Python does not fit its option."""
    for spec in options_of(type(instance)).values():  # type: ignore[arg-type]
        problem = spec.problem(getattr(instance, spec.name))
        if problem:
            raise ValueError(problem)


def read_text(path: Path, what: str) -> str:
    """The text of a file that a pass is given as an option, for `Pass.prepare`.

    Args:
        path: the file.
        what: what the file is, for messages.

    Raises:
        LadingError: P313 when it is missing, not readable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise LadingError("P313", f"the {what} is not UTF-8 text", str(path)) from None
    except OSError as error:
        near = _nearest_file(path)
        raise LadingError("P313", f"cannot read the {what}: {error.strerror}", str(path), near) from None


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    return suggest(path.name, sorted(item.name for item in path.parent.iterdir()))


def show_options(specs: Sequence[OptionSpec]) -> str:
    """``bits, block, keep`` for messages; ``none`` when the pass has no options."""
    return ", ".join(spec.key for spec in specs) or "none"
