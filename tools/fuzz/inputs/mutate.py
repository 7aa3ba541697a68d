"""Damage to bytes, JSON and text, as disks, networks, editors and people do it, and as somebody hostile would."""

from __future__ import annotations

import copy
import json
import random
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

BIG = (127, 255, 65536, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**31), -(2**63))
"""Numbers at which sizes and offsets overflow."""

WORST_DEPTH = 100_000

# ---- bytes ----


def damage_bytes(rng: random.Random, data: bytes, actions: int = 3) -> bytes:
    """Bytes with some of them flipped, replaced, lost, repeated, moved, or made a huge number."""
    found = bytearray(data)
    for _ in range(rng.choice([1, 1, actions])):
        rng.choice(_BYTE_ACTIONS)(rng, found)
    return bytes(found)


def _span(rng: random.Random, data: bytearray, most: int = 64) -> slice:
    # Headers are where the structure is, so half of the damage goes to the first bytes.
    size = min(len(data), rng.choice([len(data), 256]))
    start = rng.randrange(size + 1)
    return slice(start, min(len(data), start + rng.randint(1, most)))


def _flip(rng: random.Random, data: bytearray) -> None:
    if data:
        place = _span(rng, data).start % len(data)
        data[place] ^= 1 << rng.randrange(8)


def _overwrite(rng: random.Random, data: bytearray) -> None:
    span = _span(rng, data, 8)
    data[span] = rng.choice([rng.randbytes(span.stop - span.start), b"\xff" * 8, b"\0" * 8])[: span.stop - span.start]


def _number(rng: random.Random, data: bytearray) -> None:
    start = _span(rng, data).start & ~3
    code = rng.choice(["<i", "<q"])
    bits = struct.calcsize(code) * 8
    value = rng.choice(BIG) % (1 << bits)
    data[start : start + bits // 8] = value.to_bytes(bits // 8, "little")


def _lose(rng: random.Random, data: bytearray) -> None:
    del data[_span(rng, data)]


def _repeat(rng: random.Random, data: bytearray) -> None:
    span = _span(rng, data)
    data[span.start : span.start] = data[span]


def _insert(rng: random.Random, data: bytearray) -> None:
    start = _span(rng, data).start
    data[start:start] = rng.randbytes(rng.randint(1, 16))


def _move(rng: random.Random, data: bytearray) -> None:
    span = _span(rng, data)
    part = data[span]
    del data[span]
    start = _span(rng, data).start
    data[start:start] = part


def _cut(rng: random.Random, data: bytearray) -> None:
    del data[_span(rng, data).start :]


_BYTE_ACTIONS: tuple[Callable[[random.Random, bytearray], None], ...] = (
    _flip, _flip, _overwrite, _number, _number, _lose, _repeat, _insert, _move, _cut,
)  # fmt: skip

# ---- JSON ----

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), *BIG, 10**400, "", "x", "0",
    "\ud800", "\x00", "a" * 3000, "../x", "/dev/zero", "漢字", [], [[]], [None], {}, {"x": 1}, [1, "x"],
)  # fmt: skip


def _value(rng: random.Random) -> Any:
    # A copy, for later damage may change it.
    return copy.deepcopy(rng.choice(_VALUES))


def damage_json(rng: random.Random, data: Any, actions: int = 3) -> Any:
    """A copy of JSON data with values of wrong types and sizes, and keys lost, renamed or in the wrong place."""
    root = [copy.deepcopy(data)]
    for _ in range(rng.choice([1, 1, actions])):
        places = list(_places(root))
        holder, key = rng.choice(places[:1] + rng.choices(places, k=3))
        rng.choice(_JSON_ACTIONS)(rng, holder, key, places)
    return root[0]


def json_bytes(rng: random.Random, data: Any) -> bytes:
    """JSON data as a file, now and then one that no writer of JSON would write."""
    text = json.dumps(data, indent=rng.choice([None, 2]), ensure_ascii=rng.random() < 0.5)
    raw = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.9:
        return raw
    deep = b"[" * WORST_DEPTH
    return rng.choice(
        [damage_bytes(rng, raw), b"\xef\xbb\xbf" + raw, raw + b"\n{}", deep, raw.replace(b":", b":" + deep, 1)]
    )


def _places(holder: Any) -> list[tuple[Any, Any]]:
    """Holder and key of every value, the outermost first."""
    keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
    found = []
    for key in list(keys)[:200]:
        found.append((holder, key))
        found.extend(_places(holder[key]))
    return found


def _replace(rng: random.Random, holder: Any, key: Any, places: list) -> None:
    holder[key] = _value(rng)


def _shift(rng: random.Random, holder: Any, key: Any, places: list) -> None:
    value = holder[key]
    if isinstance(value, bool):
        holder[key] = not value
    elif isinstance(value, int | float):
        half = value + 0.5 if abs(value) < 1e300 else value
        holder[key] = rng.choice([value + 1, value - 1, -value, value * 2, half, [value], {"x": value}])
    elif isinstance(value, str):
        holder[key] = rng.choice([value + "x", value[1:], value.upper(), value + "\ud800", [value], {value: value}])
    else:
        _replace(rng, holder, key, places)


def _drop(rng: random.Random, holder: Any, key: Any, places: list) -> None:
    if holder is not places[0][0]:
        del holder[key]


def _rename(rng: random.Random, holder: Any, key: Any, places: list) -> None:
    if isinstance(holder, dict):
        holder[rng.choice([key + "x", "", "\ud800", key.upper()])] = holder.pop(key)


def _swap(rng: random.Random, holder: Any, key: Any, places: list) -> None:
    # A copy, or a value could come to hold itself.
    other, place = rng.choice(places)
    try:
        holder[key] = copy.deepcopy(other[place])
    except (KeyError, IndexError):
        holder[key] = None


def _nest(rng: random.Random, holder: Any, key: Any, places: list) -> None:
    value = holder[key]
    for _ in range(rng.choice([1, 3, 200])):
        value = rng.choice([[value], {"x": value}])
    holder[key] = value


def _grow(rng: random.Random, holder: Any, key: Any, places: list) -> None:
    value = holder[key]
    if isinstance(value, list):
        value.append(copy.deepcopy(rng.choice([*value, *_VALUES])))
    elif isinstance(value, dict):
        value[rng.choice(["x", "", "\ud800"])] = _value(rng)
    else:
        _replace(rng, holder, key, places)


def _guarded(
    action: Callable[[random.Random, Any, Any, list], None],
) -> Callable[[random.Random, Any, Any, list], None]:
    def run(rng: random.Random, holder: Any, key: Any, places: list) -> None:
        # An earlier action may have taken the place away.
        if key in holder if isinstance(holder, dict) else key < len(holder):
            action(rng, holder, key, places)

    return run


_JSON_ACTIONS = tuple(map(_guarded, (_replace, _replace, _shift, _shift, _drop, _rename, _swap, _nest, _grow)))

# ---- text ----

_TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*"|[\w.]+|\s+|.', re.DOTALL)


def damage_text(rng: random.Random, text: str, words: Sequence[str] = (), actions: int = 3) -> str:
    """Text with tokens or lines lost, repeated, swapped, or replaced by others, by `words` or by huge numbers."""
    for _ in range(rng.choice([1, 1, actions])):
        kind = rng.random()
        if kind < 0.7:
            text = "".join(_damage_list(rng, _TOKEN.findall(text), words))
        elif kind < 0.85:
            text = "\n".join(_damage_list(rng, text.split("\n"), words))
        else:
            place = rng.randrange(len(text) + 1)
            strange = rng.choice(
                ["\x00", "\ud800", "\u2028", '"', "\\", "(" * 2000, "[" * WORST_DEPTH, "{", "\r", "-", "é"]
            )
            text = text[:place] + strange + text[place + rng.randint(0, 2) :]
    return text


def _damage_list(rng: random.Random, items: list[str], words: Sequence[str]) -> list[str]:
    places = [place for place, item in enumerate(items) if not item.isspace()]
    if not places:
        return items
    one, two = rng.choice(places), rng.choice(places)
    action = rng.randrange(8)
    if action == 0:
        del items[one]
    elif action == 1:
        items.insert(one, items[two])
    elif action == 2:
        items[one], items[two] = items[two], items[one]
    elif action == 3:
        items[one] = items[two]
    elif action == 4:
        numbers = [*map(str, BIG), "-1", "0", "9" * 5000, "1e999", "nan", "0.5"]
        items[one] = rng.choice([*words, *numbers] if words else numbers)
    else:
        # One of the same sort, so that what follows the first reading is reached as well.
        sort = _sort(items[one])
        items[one] = rng.choice([*(items[place] for place in places if _sort(items[place]) == sort), items[one]])
    return items


def _sort(item: str) -> str:
    return "word" if item[:1].isalpha() else "number" if item[:1].isdigit() else item[:1]


__all__ = ["BIG", "damage_bytes", "damage_json", "damage_text", "json_bytes"]
