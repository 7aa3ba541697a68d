"""Check what is fed to one model before the runtime sees it. Written beside the model; needs nothing but Python 3.9.

``problems(feed)`` gives a list of (code, message), empty when the feed is right; ``require(feed)`` raises ValueError
instead. A feed maps input names to arrays (anything with ``shape`` and ``dtype``; numpy's work, values included) or to
pairs (shape, element type). ``previous`` is the number of tokens in the runtime's cache. Codes are those of the manual.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

SIGNATURE: dict[str, Any] = {"inputs": [], "dims": {}, "past": None}

NAMES = {
    "f16": "float16", "f32": "float32", "f64": "float64", "bf16": "bfloat16", "i8": "int8", "i16": "int16",
    "i32": "int32", "i64": "int64", "u8": "uint8", "bool": "bool",
}  # fmt: skip

Problem = tuple[str, str]
Bound = dict[str, tuple[int, str]]


def require(feed: Mapping[str, Any], previous: int | None = None) -> None:
    """Raise ValueError with every problem of a feed."""
    found = problems(feed, previous)
    if found:
        raise ValueError("; ".join(f"{code}: {message}" for code, message in found))


def problems(feed: Mapping[str, Any], previous: int | None = None) -> list[Problem]:
    """What is wrong with a feed."""
    found: list[Problem] = []
    bound: Bound = {}
    if previous is not None:
        if SIGNATURE["past"] is None:
            raise ValueError("this model keeps no cache")
        bound[SIGNATURE["past"]] = (previous, "in the cache")
    for item in SIGNATURE["inputs"]:
        if item["name"] in feed:
            found += _input(item, feed[item["name"]], bound)
        else:
            found.append(("C820", f"input {item['name']!r} is missing: {item['meaning']}"))
    known = [item["name"] for item in SIGNATURE["inputs"]]
    found += [("C821", f"the model has no input {name!r}") for name in feed if name not in known]
    found += _sums(bound)
    found += _ranges(bound)
    return found


def _input(item: Mapping[str, Any], value: Any, bound: Bound) -> list[Problem]:
    name = item["name"]
    try:
        shape, dtype = value if type(value) is tuple else (value.shape, value.dtype)
        shape = tuple(shape)
    except (AttributeError, TypeError, ValueError):
        return [("C831", f"input {name!r} has no shape and element type")]
    text = getattr(dtype, "__name__", None) or str(dtype).rpartition(".")[2]
    found: list[Problem] = []
    if text in (item["dtype"], NAMES.get(item["dtype"])):
        found += _values(item, value)
    else:
        found.append(("C822", f"input {name!r} has element type {text}, not {NAMES.get(item['dtype'], item['dtype'])}"))
    return _shape(name, item["shapes"], shape, bound) + found


def _shape(name: str, forms: Sequence[Sequence[Any]], shape: tuple[int, ...], bound: Bound) -> list[Problem]:
    first: list[Problem] | None = None
    for form in forms:
        if len(form) == len(shape):
            made: Bound = {}
            found = _form(name, form, shape, bound, made)
            if not found:
                bound.update(made)
                return []
            first = first or found
    if first is not None:
        return first
    return [
        ("C823", f"input {name!r} has shape {list(shape)}; it takes {' or '.join(str(list(form)) for form in forms)}")
    ]


def _form(name: str, form: Sequence[Any], shape: tuple[int, ...], bound: Bound, made: Bound) -> list[Problem]:
    found: list[Problem] = []
    for axis, (want, size) in enumerate(zip(form, shape)):  # noqa: B905
        if isinstance(want, int):
            if size != want:
                found.append(("C829", f"input {name!r} has size {size} on axis {axis}, not {want}"))
            continue
        other = bound.get(want) or made.get(want)
        if other is None:
            made[want] = (size, f"on axis {axis} of input {name!r}")
        elif other[0] != size:
            message = f"dimension {want} is {size} on axis {axis} of input {name!r}, but {other[0]} {other[1]}"
            found.append(("C826", message))
    return found


def _sums(bound: Bound) -> list[Problem]:
    sums = [(name, dim["sum_of"]) for name, dim in SIGNATURE["dims"].items() if dim["sum_of"]]
    size = -1
    while size < len(bound):
        size = len(bound)
        for name, parts in sums:
            unknown = [part for part in parts if part not in bound]
            known = sum(bound[part][0] for part in parts if part in bound)
            if name not in bound and not unknown:
                bound[name] = (known, "as a sum")
            elif name in bound and len(unknown) == 1 and bound[name][0] >= known:
                bound[unknown[0]] = (bound[name][0] - known, "as a difference")
    found: list[Problem] = []
    for name, parts in sums:
        known = sum(bound[part][0] for part in parts if part in bound)
        whole = all(part in bound for part in parts)
        if name in bound and (bound[name][0] != known if whole else bound[name][0] < known):
            found.append(("C832", f"dimension {name} is {bound[name][0]}, but {' + '.join(parts)} is {known}"))
    return found


def _ranges(bound: Bound) -> list[Problem]:
    found: list[Problem] = []
    for name, (size, place) in bound.items():
        dim = SIGNATURE["dims"][name]
        if size < dim["low"] or (dim["high"] is not None and size > dim["high"]):
            limit = "" if dim["high"] is None else dim["high"]
            found.append(("C824", f"dimension {name} is {size} {place}; allowed is {dim['low']}..{limit}"))
        elif size % dim["multiple_of"]:
            found.append(("C825", f"dimension {name} is {size} {place}, which is no multiple of {dim['multiple_of']}"))
    return found


def _values(item: Mapping[str, Any], value: Any) -> list[Problem]:
    real = "f" in item["dtype"]
    low, high = item["low"], item["high"]
    if (
        not hasattr(value, "reshape")
        or not hasattr(value, "tolist")
        or not (real or low is not None or high is not None)
    ):
        return []
    for place, number in enumerate(value.reshape(-1).tolist()):
        if real and not math.isfinite(number):
            return [("C828", f"input {item['name']!r} holds {number} at element {place}; it must be finite")]
        if not real and ((low is not None and number < low) or (high is not None and number > high)):
            return [("C827", f"input {item['name']!r} holds {number} at element {place}; allowed is {low}..{high}")]
    return []
