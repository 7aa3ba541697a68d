"""Whether the data of a recorded fact is of the types that its class declares; a text or file may say anything."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, ClassVar, Literal, Union, cast, get_args, get_origin, get_type_hints

_MOST = 1 << 63
"""Integers are below this, in both directions: nothing that is counted here is more."""


def misfit(value: Any) -> str:
    """Where a dataclass, and those in it, holds something of another type than declared; empty when nowhere."""
    for name, kind in _hints(cast("Any", type(value))).items():
        found = _misfit(getattr(value, name), kind)
        if found is not None:
            return f"{name}{found}"
    return ""


@cache
def _hints(cls: Any) -> dict[str, Any]:
    """The types of the fields of a dataclass; none where they cannot be told."""
    if not is_dataclass(cls):
        return {}
    try:
        hints = get_type_hints(cls)
    except NameError:
        return {}
    names = [item.name for item in fields(cls)]
    return {name: hints[name] for name in names if get_origin(hints[name]) is not ClassVar}


def _misfit(value: Any, kind: Any) -> str | None:
    """What is wrong with a value, to be written behind the name of its field; None when it fits."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if any(_misfit(value, one) is None for one in inner) else _shown(value)
    if origin is Literal:
        return None if value in inner else _shown(value)
    if origin is tuple:
        return _misfit_of_items(value, inner)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return _misfit_of_mapping(value, *inner)
    return _misfit_of_one(value, kind)


def _misfit_of_items(value: Any, inner: tuple[Any, ...]) -> str | None:
    if not isinstance(value, tuple):
        return _shown(value)
    kinds = [inner[0]] * len(value) if len(inner) == 2 and inner[1] is Ellipsis else list(inner)
    if len(kinds) != len(value):
        return f" has {len(value)} items, not {len(kinds)}"
    found = ((place, _misfit(item, one)) for place, (item, one) in enumerate(zip(value, kinds, strict=True)))
    return next((f"[{place}]{text}" for place, text in found if text is not None), None)


def _misfit_of_mapping(value: Any, key: Any, item: Any) -> str | None:
    if not isinstance(value, Mapping):
        return _shown(value)
    for name, held in value.items():
        found = _misfit(name, key) or _misfit(held, item)
        if found is not None:
            return f"[{name!r:.60}]{found}"
    return None


def _misfit_of_one(value: Any, kind: Any) -> str | None:
    if kind in (int, float) and isinstance(value, int) and not isinstance(value, bool):
        return None if -_MOST <= value < _MOST else " is out of range"
    if kind is Any:
        return None
    if kind is int or not isinstance(kind, type):
        return _shown(value) if kind is int else None
    if not isinstance(value, kind):
        return _shown(value)
    found = misfit(value)
    return f".{found}" if found else None


def _shown(value: Any) -> str:
    return f" cannot be {value!r:.60}"


__all__ = ["misfit"]
