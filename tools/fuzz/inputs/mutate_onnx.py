"""Damage to ONNX models, field by field, whatever fields the format has."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from tools.fuzz.inputs.mutate import BIG, damage_bytes

_TEXTS = ("", "x", ".", "a.b", "../x", "é", "\x00", "graph", "Add", "If", "ai.onnx", "location")


def damage_model(rng: random.Random, model: Any, actions: int = 3) -> Any:
    """A copy of an ONNX message with damaged fields: sizes, types, names (which makes cycles), parts lost or twice."""
    found = type(model)()
    found.CopyFrom(model)
    for _ in range(rng.choice([1, 1, actions])):
        places = list(_places(found))
        message, field = rng.choice(places)
        (_damage_many if field.is_repeated else _damage_one)(rng, message, field, places)
    return found


def _places(message: Any) -> Iterator[tuple[Any, Any]]:
    """Every message with every field that it has set, and one that it has not."""
    for field, value in message.ListFields():
        yield message, field
        if field.type == field.TYPE_MESSAGE:
            for part in value if field.is_repeated else (value,):
                yield from _places(part)
    absent = [
        field for field in message.DESCRIPTOR.fields if not field.is_repeated and field.type != field.TYPE_MESSAGE
    ]
    yield from ((message, field) for field in absent[:3])


def _damage_one(rng: random.Random, message: Any, field: Any, places: list) -> None:
    if field.type == field.TYPE_MESSAGE or rng.random() < 0.1:
        message.ClearField(field.name)
        return
    _set(rng, field, places, lambda value: setattr(message, field.name, value), getattr(message, field.name))


def _damage_many(rng: random.Random, message: Any, field: Any, places: list) -> None:
    values = getattr(message, field.name)
    if not len(values):
        return
    one, two = rng.randrange(len(values)), rng.randrange(len(values))
    action = rng.randrange(5)
    if action == 0:
        del values[one]
    elif action == 1:
        _append(values, values[one])
    elif action == 2:
        parts = [_copied(value) for value in values]
        parts[one], parts[two] = parts[two], parts[one]
        message.ClearField(field.name)
        for part in parts:
            _append(getattr(message, field.name), part)
    elif field.type != field.TYPE_MESSAGE:
        _set(rng, field, places, lambda value: values.__setitem__(one, value), values[one])
    else:
        message.ClearField(field.name)


def _copied(value: Any) -> Any:
    if not hasattr(value, "CopyFrom"):
        return value
    made = type(value)()
    made.CopyFrom(value)
    return made


def _append(values: Any, value: Any) -> None:
    if hasattr(value, "CopyFrom"):
        values.add().CopyFrom(value)
    else:
        values.append(value)


def _set(rng: random.Random, field: Any, places: list, put: Any, old: Any) -> None:
    value: Any
    if field.type == field.TYPE_STRING:
        value = rng.choice([*_TEXTS, *_names(places, rng)])
    elif field.type == field.TYPE_BYTES:
        value = damage_bytes(rng, old or b"x")
    elif field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        value = rng.choice([0.0, -1.0, float("nan"), float("inf"), 1e30])
    else:
        value = rng.choice([*range(-3, 30), 999, *BIG])
    try:
        put(value)
    except (ValueError, TypeError):
        put(type(old)(1))


def _names(places: list, rng: random.Random) -> list[str]:
    """Some names that the model uses."""
    found = []
    for message, field in rng.choices(places, k=12):
        if field.type == field.TYPE_STRING:
            value = getattr(message, field.name)
            found += list(value)[:3] if field.is_repeated else [value]
    return found


__all__ = ["damage_model"]
