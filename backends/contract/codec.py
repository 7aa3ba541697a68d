"""Strict reading of JSON into dataclasses, and their JSON Schema, both derived from the annotations of the fields."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, fields
from functools import cache
from reprlib import repr as short_repr
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Self,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from ir.base.diag import Diagnostic, LadingError, suggest

CONTRACT_FILE = "contract.json"
"""Name of the contract in the folder of a model."""


@dataclass(frozen=True)
class Limits:
    """What an annotation says beyond its type.

    `low`, `high`, `pattern` and `words` bound a scalar; `length` is the least number of characters or items, `unique`
    says that no item comes twice, and `sort` is the key of a list whose order has no meaning. `types` are the JSON
    types of a value that is kept as it is.
    """

    low: float | None = None
    high: float | None = None
    pattern: str | None = None
    words: tuple[str, ...] = ()
    length: int = 0
    unique: bool = False
    types: tuple[str, ...] = ()
    sort: Callable[[Any], Any] | None = None

    def schema(self) -> dict[str, Any]:
        """The limits of a scalar in the words of JSON Schema."""
        rows = {"minimum": self.low, "maximum": self.high, "pattern": self.pattern, "minLength": self.length or None}
        return {key: value for key, value in rows.items() if value is not None}

    def broken(self, value: Any) -> bool:
        """True when a scalar of the right type lies outside the limits."""
        if self.words:
            return value not in self.words
        if self.pattern is not None:
            return re.search(self.pattern, value) is None
        if self.length:
            return len(value) < self.length
        return (self.low is not None and value < self.low) or (self.high is not None and value > self.high)

    def __str__(self) -> str:
        if self.words:
            return "one of " + ", ".join(self.words)
        if self.pattern is not None:
            return f"of the form {self.pattern}"
        if self.length:
            return f"at least {self.length} long"
        low = "" if self.low is None else f"at least {self.low}"
        return " and ".join(part for part in (low, "" if self.high is None else f"at most {self.high}") if part)


_FREE = Limits()


def whole(pattern: str) -> str:
    """A pattern that has to cover a whole text; the tail is for engines whose ``$`` allows a final line break."""
    return f"^{pattern}$(?!\\n)"


def version_key(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split("."))


SCALARS = ("string", "number", "boolean", "null")
_Reader = Callable[[Any, str, list[Diagnostic]], Any]


class Codec(NamedTuple):
    """How one annotation is read from parsed JSON: type test, reader of a value at a pointer, and JSON Schema."""

    takes: Callable[[Any], bool]
    read: _Reader
    schema: dict[str, Any]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


_TAKES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: type(value) is int or (isinstance(value, float) and value.is_integer()),
    "number": _is_number,
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
_CASTS: dict[str, Callable[[Any], Any]] = {"integer": int, "number": float}
_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}


def _wrong_type(value: Any, at: str, expected: str) -> Diagnostic:
    return Diagnostic("C804", f"{short_repr(value)} is not of type {expected}", at)


def _scalar(kind: str, limits: Limits) -> Codec:
    takes, cast = _TAKES[kind], _CASTS.get(kind, lambda value: value)

    def read(value: Any, at: str, problems: list[Diagnostic]) -> Any:
        if not takes(value):
            problems.append(_wrong_type(value, at, kind))
        elif kind == "number" and not _is_finite(value):
            problems.append(Diagnostic("C805", f"{short_repr(value)} is not a finite number", at))
        elif limits.broken(value):
            hint = suggest(value, limits.words) if limits.words else ""
            problems.append(Diagnostic("C805", f"{short_repr(value)} is not {limits}", at, hint))
        else:
            return cast(value)
        return None

    return Codec(takes, read, {"enum": list(limits.words)} if limits.words else {"type": kind, **limits.schema()})


def _raw(types: tuple[str, ...]) -> Codec:
    """JSON kept as it is: a scalar, or a list of scalars where `types` allows arrays."""

    def takes(value: Any) -> bool:
        return any(_TAKES[kind](value) for kind in types)

    def read(value: Any, at: str, problems: list[Diagnostic]) -> Any:
        inner = value if isinstance(value, list) and takes(value) else [value]
        allowed = SCALARS if inner is value else types
        for item in inner:
            if not any(_TAKES[kind](item) for kind in allowed):
                problems.append(_wrong_type(item, at, " or ".join(allowed)))
            elif isinstance(item, float) and not math.isfinite(item):
                problems.append(Diagnostic("C805", f"{item} is not a finite number", at))
        return tuple(value) if inner is value else value

    items = {"items": {"type": list(SCALARS)}} if "array" in types else {}
    return Codec(takes, read, {"type": list(types), **items})


def _array(item: Codec, limits: Limits) -> Codec:
    def read(value: Any, at: str, problems: list[Diagnostic]) -> Any:
        if not isinstance(value, list):
            problems.append(_wrong_type(value, at, "array"))
            return None
        before = len(problems)
        result = tuple(item.read(part, f"{at}/{index}", problems) for index, part in enumerate(value))
        if len(value) < limits.length:
            problems.append(Diagnostic("C805", f"needs at least {limits.length} item", at))
        if limits.unique and len(problems) == before and len(set(result)) < len(result):
            problems.append(Diagnostic("C805", "lists an item twice", at))
        return result

    extra = ({"minItems": limits.length} if limits.length else {}) | ({"uniqueItems": True} if limits.unique else {})
    return Codec(_TAKES["array"], read, {"type": "array", "items": item.schema, **extra})


def _table(item: Codec) -> Codec:
    def read(value: Any, at: str, problems: list[Diagnostic]) -> Any:
        if not isinstance(value, dict):
            problems.append(_wrong_type(value, at, "object"))
            return None
        return {key: item.read(part, f"{at}/{escape(key)}", problems) for key, part in value.items()}

    return Codec(_TAKES["object"], read, {"type": "object", "additionalProperties": item.schema})


def _either(parts: list[Codec]) -> Codec:
    def read(value: Any, at: str, problems: list[Diagnostic]) -> Any:
        for part in parts:
            if part.takes(value):
                return part.read(value, at, problems)
        return parts[0].read(value, at, problems)

    def takes(value: Any) -> bool:
        return any(part.takes(value) for part in parts)

    return Codec(takes, read, {"anyOf": [part.schema for part in parts]})


def limits_of(hint: Any) -> Limits:
    return next((item for item in getattr(hint, "__metadata__", ()) if isinstance(item, Limits)), _FREE)


def codec_of(hint: Any, limits: Limits = _FREE) -> Codec:
    """The codec of an annotation: a scalar, Literal, Annotated, union, tuple[X, ...], dict[str, X] or a record."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        limits = limits_of(hint)
        return _raw(limits.types) if limits.types else codec_of(parts[0], limits)
    if origin is Literal:
        return _scalar("string", Limits(words=parts))
    if origin is tuple:
        return _array(codec_of(parts[0]), limits)
    if origin is dict:
        return _table(codec_of(parts[1]))
    if origin in (Union, UnionType):
        return _either([codec_of(part) for part in parts])
    return _scalar(_NAMES[hint], limits) if hint in _NAMES else record_codec(hint)


@cache
def record_codec(cls: type[Record]) -> Codec:
    """The codec of a dataclass: an object with exactly its fields."""
    hints = get_type_hints(cls, include_extras=True)
    codecs = {item.name: codec_of(hints[item.name]) for item in fields(cls)}

    def read(value: Any, at: str, problems: list[Diagnostic]) -> Any:
        if not isinstance(value, dict):
            problems.append(_wrong_type(value, at, "object"))
            return None
        before = len(problems)
        if value.keys() != codecs.keys():
            problems += _field_problems(value, codecs, at)
        found = {
            name: codec.read(value[name], f"{at}/{name}", problems) for name, codec in codecs.items() if name in value
        }
        return cls(**found) if len(problems) == before else None

    return Codec(_TAKES["object"], read, {"$ref": f"#/$defs/{cls.__name__}"})


def _field_problems(value: Mapping[str, Any], known: Mapping[str, Any], at: str) -> Iterator[Diagnostic]:
    for name in known:
        if name not in value:
            yield Diagnostic("C801", f"field {name!r} is missing", f"{at}/{name}")
    for name in value:
        if name not in known:
            near = suggest(name, list(known))
            yield Diagnostic("C802", f"field {name!r} is not known", f"{at}/{escape(name)}", near)


def escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _plain(value: Any) -> Any:
    """A field value as JSON data."""
    if isinstance(value, Record):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(value[key]) for key in sorted(value)}
    return value


class Record:
    """Base of the records: strict reading, plain writing, and a fixed order of what has none."""

    if TYPE_CHECKING:
        # Every record is a dataclass.
        __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __post_init__(self) -> None:
        for name, key in _orders(type(self)):  # type: ignore[arg-type]
            object.__setattr__(self, name, tuple(sorted(getattr(self, name), key=key)))

    def to_json(self) -> dict[str, Any]:
        """The record as JSON data: every field in order of declaration, tables sorted by key."""
        return _plain(self)

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """The record of parsed JSON.

        Raises:
            LadingError: with every problem found; `where` of each is ``#`` and the JSON pointer of the place.
        """
        problems: list[Diagnostic] = []
        result = record_codec(cls).read(data, "#", problems)  # type: ignore[arg-type]
        if problems:
            raise LadingError.of(problems)
        return result


@cache
def _orders(cls: type[Record]) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    rows = ((name, limits_of(hint).sort) for name, hint in get_type_hints(cls, include_extras=True).items())
    return tuple((name, key) for name, key in rows if key is not None)
