"""Specs: how a row of a family says where in a configuration a value stands.

A spec is one of

* a number, a flag or None, which is the value itself;
* a text, the name of a key (``rope.`` before it: of a key of the rope record);
* a tuple of specs, of which the first counts that the file or the configuration class gives a value; None at the end
  means that there may be no value;
* a `Product` of values raised to powers, a `Quotient` of whole numbers, a `When`, whether a key is `Given` or `Equals`
  something, or a `Constant` text.

A part is a frozen dataclass. Its fields that hold specs are made by `size`, `number`, `flag` and `word`, which say what a
value must be; `settle` gives the same part with values in the place of the specs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import MappingProxyType
from typing import Any, TypeVar

from frontends.configuration.keys import Keys
from ir.base.diag import LadingError

Spec = Any
"""See the head of this file."""

Setting = Any
"""A field that holds a spec in a row, and the value after `settle`."""

MOST = 1 << 27
"""Largest believable size that nothing narrower is known of."""


@dataclass(frozen=True)
class Product:
    """A product of numbers of the configuration raised to powers, such as ``(("hidden_size", 0.5),)``."""

    factors: tuple[tuple[Spec, float], ...]


@dataclass(frozen=True)
class Quotient:
    """A whole number divided by another one, rounded down."""

    top: Spec
    bottom: Spec


@dataclass(frozen=True)
class When:
    """One spec or another by a flag."""

    flag: Spec
    yes: Spec
    no: Spec


@dataclass(frozen=True)
class Given:
    """True when a key has a value other than null."""

    key: str


@dataclass(frozen=True)
class Equals:
    """True when a key has a value."""

    key: str
    value: Any


@dataclass(frozen=True)
class Constant:
    """A text that is the value itself, and not the name of a key."""

    value: str


@dataclass(frozen=True)
class Renamed:
    """A text, with another one in its place where a configuration class means another."""

    spec: Spec
    names: Mapping[str, str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", MappingProxyType(dict(self.names)))


@dataclass(frozen=True)
class Kind:
    """What a value must be: in words, as a test, and whether null will do."""

    wanted: str
    accepts: Callable[[Any], bool]
    optional: bool = False


def _whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _real(value: Any, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def size(spec: Spec, *, most: int = MOST, least: int = 1, optional: bool = False) -> Any:
    """A field for a whole number from `least` to `most`."""
    kind = Kind(f"an integer from {least} to {most}", lambda value: _whole(value, least, most), optional)
    return field(default=spec, metadata={"kind": kind})


def number(spec: Spec, low: float = 1e-9, high: float = 1e9, *, optional: bool = False) -> Any:
    """A field for a number between two bounds, both allowed."""
    kind = Kind(f"a number from {low:g} to {high:g}", lambda value: _real(value, low, high), optional)
    return field(default=spec, metadata={"kind": kind})


def flag(spec: Spec) -> Any:
    """A field for true or false."""
    return field(default=spec, metadata={"kind": FLAG})


def word(spec: Spec, wanted: str) -> Any:
    """A field for a text."""
    return field(default=spec, metadata={"kind": Kind(wanted, lambda value: isinstance(value, str))})


def numbers(spec: Spec, wanted: str, *, optional: bool = False) -> Any:
    """A field for a list of whole numbers, which may be empty."""
    kind = Kind(
        wanted, lambda value: isinstance(value, (list, tuple)) and all(_whole(x, 0, MOST) for x in value), optional
    )
    return field(default=spec, metadata={"kind": kind})


FLAG = Kind("true or false", lambda value: isinstance(value, bool))
_FACTOR = Kind("a number from 1e-09 to 1e+09", lambda value: _real(value, 1e-9, 1e9))
_PART = Kind(f"an integer from 1 to {MOST}", lambda value: _whole(value, 1, MOST))

Part = TypeVar("Part")


def settle(part: Part, keys: Keys, skip: tuple[str, ...] = ()) -> Part:
    """A part with the values of a configuration in the place of its specs.

    Args:
        part: a frozen dataclass; those in its fields are settled too.
        keys: the configuration.
        skip: fields that are left as they are.

    Raises:
        LadingError: F531 for a value that will not do.
    """
    changes: dict[str, Any] = {}
    for item in fields(part):  # type: ignore[arg-type]
        if item.name in skip:
            continue
        kind, value = item.metadata.get("kind"), getattr(part, item.name)
        if kind is not None:
            changes[item.name] = read(value, kind, keys)
        elif is_dataclass(value):
            changes[item.name] = settle(value, keys)
    return replace(part, **changes) if changes else part  # type: ignore[type-var]


def read(spec: Spec, kind: Kind, keys: Keys) -> Any:
    """The value of a spec; LadingError F531 when it is not of the kind that is wanted."""
    value, key = _find(spec, keys)
    if isinstance(value, float) and value.is_integer() and kind.accepts(int(value)) and not kind.accepts(value):
        # A product of whole numbers; a number with a point in the file is none.
        value = value if key else int(value)
    if kind.accepts(value) or (value is None and kind.optional and _may_be_absent(spec)):
        return value
    if key:
        raise keys.bad(key, kind.wanted)
    raise LadingError("F531", f"{_title(spec)} is {value!r}; it must be {kind.wanted}", keys.path)


def _may_be_absent(spec: Spec) -> bool:
    """True for None, and for alternatives that end in it."""
    if isinstance(spec, When):
        return _may_be_absent(spec.yes) or _may_be_absent(spec.no)
    return spec is None or (isinstance(spec, tuple) and spec[-1] is None)


def named_keys(part: Any) -> set[str]:
    """The keys that the specs of a part name, those of parts in its fields and of both branches of choices included."""
    found: set[str] = set()
    for item in fields(part):
        value = getattr(part, item.name)
        if "kind" in item.metadata:
            found |= _named(value)
        for inner in value.values() if isinstance(value, Mapping) else (value,):
            if is_dataclass(inner):
                found |= named_keys(inner)
    return found


def _named(spec: Spec) -> set[str]:
    if isinstance(spec, str):
        return {spec}
    if isinstance(spec, tuple):
        return set().union(*map(_named, spec))
    if isinstance(spec, (Given, Equals)):
        return {spec.key}
    if isinstance(spec, Product):
        return set().union(*(_named(base) for base, _ in spec.factors))
    if isinstance(spec, Renamed):
        return _named(spec.spec)
    if isinstance(spec, Quotient):
        return _named(spec.top) | _named(spec.bottom)
    if isinstance(spec, When):
        return _named(spec.flag) | _named(spec.yes) | _named(spec.no)
    return set()


def _find(spec: Spec, keys: Keys) -> tuple[Any, str]:
    """The value of a spec, and the key to blame for it."""
    if isinstance(spec, str):
        return keys.get(spec), spec
    if isinstance(spec, tuple):
        named = [inner for inner in spec if isinstance(inner, str)]
        value, key = None, ""
        for inner in spec:
            value, key = _find(inner, keys)
            if value is not None:
                break
        blamed = next((name for name in named if name in keys.raw), named[0] if named else "")
        return value, key if value is not None else blamed
    if isinstance(spec, Given):
        return keys.get(spec.key) is not None, spec.key
    if isinstance(spec, Equals):
        return keys.get(spec.key) == spec.value, spec.key
    if isinstance(spec, Constant):
        return spec.value, ""
    if isinstance(spec, Renamed):
        value, key = _find(spec.spec, keys)
        return spec.names.get(value, value) if isinstance(value, str) else value, key
    if isinstance(spec, Product):
        return math.prod(read(base, _FACTOR, keys) ** power for base, power in spec.factors), ""
    if isinstance(spec, Quotient):
        top, bottom = read(spec.top, _PART, keys), read(spec.bottom, _PART, keys)
        if top < bottom:
            message = f"{_title(spec.top)} {top} is smaller than {_title(spec.bottom)} {bottom}"
            raise LadingError("F536", message, keys.at(_title(spec.top)))
        return top // bottom, ""
    if isinstance(spec, When):
        return _find(spec.yes if read(spec.flag, FLAG, keys) else spec.no, keys)
    return spec, ""


def _title(spec: Spec) -> str:
    if isinstance(spec, Quotient):
        return f"{_title(spec.top)} / {_title(spec.bottom)}"
    if isinstance(spec, tuple):
        return _title(spec[-1])
    return str(spec)


__all__ = [
    "FLAG",
    "Constant",
    "Equals",
    "Given",
    "Kind",
    "Product",
    "Quotient",
    "Renamed",
    "Setting",
    "Spec",
    "When",
    "flag",
    "named_keys",
    "number",
    "numbers",
    "read",
    "settle",
    "size",
    "word",
]
