"""Check what an application is about to feed against the signature of a contract, before native code sees it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from operator import index
from reprlib import repr as short_repr
from typing import Any, NamedTuple

import numpy as np

from backends.contract.records import DTYPES, Contract, Input, Signature, ValueRange
from ir.base.diag import Diagnostic, LadingError, suggest


class _Plan(NamedTuple):
    """An input made ready for checking; `numpy` is None for bf16, which numpy itself does not have."""

    spec: Input
    name: str
    numpy: np.dtype | None
    forms: tuple[tuple[int | str, ...], ...]


_Bound = dict[str, tuple[int, str]]
"""Dimension -> size and where it was seen, such as ``on axis 0 of input 'position_ids'``."""

_NUMPY = {name: None if name == "bf16" else np.dtype(numpy) for name, numpy in DTYPES.items()}


def check_feed(
    contract: Contract,
    feed: Mapping[str, Any],
    *,
    release: str | None = None,
    previous: int | None = None,
    values: bool = True,
) -> None:
    """Refuse a feed that the model cannot take, before native code sees it.

    Args:
        contract: what `read` returned.
        feed: input name -> numpy array, or whatever has `shape` and `dtype`, or a pair (shape, dtype). Values are
            looked at in numpy arrays and scalars only.
        release: MNN release that will run; only the forms of that release are accepted then.
        previous: tokens that the cache already holds; ValueError for a model without a cache.
        values: whether to look at values too (range of integers, finiteness of floats).

    Raises:
        LadingError: with every problem found (C820 to C832).
    """
    _, problems, sound = _inspect(contract, feed, release, previous)
    if values:
        for spec in sound:
            problems += _value_problems(spec, feed[spec.name])
    if problems:
        raise LadingError.of(problems)


def bind(
    contract: Contract, feed: Mapping[str, Any], *, release: str | None = None, previous: int | None = None
) -> dict[str, int]:
    """Sizes of the named dimensions of a feed, with those that follow from sums; arguments and errors of `check_feed`.

    Values are not looked at.
    """
    bound, problems, _ = _inspect(contract, feed, release, previous)
    if problems:
        raise LadingError.of(problems)
    return {name: size for name, (size, _) in bound.items()}


def _inspect(
    contract: Contract, feed: Mapping[str, Any], release: str | None, previous: int | None
) -> tuple[_Bound, list[Diagnostic], list[Input]]:
    """Bound dimensions, problems, and the inputs whose values may be looked at."""
    signature, problems, sound = contract.signature, [], []
    bound = {} if previous is None else _history(signature, previous)
    if release is not None and release not in contract.target.releases:
        known = ", ".join(contract.target.releases)
        problems.append(Diagnostic("C830", f"the model is not promised for release {release}, only for {known}"))
        release = None
    plans = signature._plans.get(release) or _make_plans(signature, release)
    present = 0
    for plan in plans:
        if plan.name not in feed:
            problems.append(_missing(plan))
            continue
        present += 1
        shape, dtype = _describe(feed[plan.name])
        if shape is None:
            message = f"input {plan.name!r} is {short_repr(feed[plan.name])}, which has no shape and dtype"
            problems.append(Diagnostic("C831", message, hint=f"pass a numpy array of {DTYPES[plan.spec.dtype]}"))
            continue
        if _is_dtype(plan, dtype):
            sound.append(plan.spec)
        else:
            message = f"input {plan.name!r} has dtype {dtype}, not {DTYPES[plan.spec.dtype]}"
            problems.append(Diagnostic("C822", message, hint=f"convert it with astype({DTYPES[plan.spec.dtype]!r})"))
        problems += _fit(plan, shape, bound)
    if present != len(feed):
        problems += _extra(feed, plans)
    problems += _sums(signature, bound)
    problems += _ranges(signature, bound)
    return bound, problems, sound


def _history(signature: Signature, previous: int) -> _Bound:
    if signature.state is None:
        raise ValueError("this model keeps no cache, so nothing can come before a feed")
    return {signature.state.past: (previous, "in the cache")}


def _make_plans(signature: Signature, release: str | None) -> tuple[_Plan, ...]:
    plans = []
    for item in signature.inputs:
        forms = [form.shape for form in item.shapes if not (release and form.releases) or release in form.releases]
        plans.append(_Plan(item, item.name, _NUMPY[item.dtype], tuple(dict.fromkeys(forms))))
    signature._plans[release] = tuple(plans)
    return signature._plans[release]


def _describe(item: Any) -> tuple[tuple[int, ...] | None, Any]:
    """Shape and dtype of a fed item; a shape of None when it has none."""
    try:
        shape, dtype = item if type(item) is tuple else (item.shape, item.dtype)
        return tuple(map(index, shape)), dtype
    except (AttributeError, TypeError, ValueError):
        return None, None


def _is_dtype(plan: _Plan, dtype: Any) -> bool:
    """Compare with a numpy dtype, a scalar type, a name, or a dtype of another library that is named as in numpy."""
    if isinstance(dtype, np.dtype) and plan.numpy is not None:
        return dtype == plan.numpy
    text = getattr(dtype, "__name__", None) or str(dtype).rpartition(".")[2]
    return text in (plan.spec.dtype, DTYPES[plan.spec.dtype])


def _missing(plan: _Plan) -> Diagnostic:
    spec = plan.spec
    hint = f"feed {DTYPES[spec.dtype]} {_forms(plan)}"
    if spec.default is not None:
        hint += f"; {spec.default} is the default"
    return Diagnostic("C820", f"input {plan.name!r} is missing: {spec.meaning}", hint=hint)


def _shown(shape: Iterable[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _forms(plan: _Plan) -> str:
    return " or ".join(map(_shown, plan.forms))


def _extra(feed: Mapping[str, Any], plans: tuple[_Plan, ...]) -> Iterator[Diagnostic]:
    known = [plan.name for plan in plans]
    absent = [name for name in known if name not in feed]
    for name in feed:
        if name not in known:
            hint = suggest(str(name), absent) or f"the inputs are {', '.join(known)}"
            yield Diagnostic("C821", f"the model has no input {name!r}", hint=hint)


def _fit(plan: _Plan, shape: tuple[int, ...], bound: _Bound) -> list[Diagnostic]:
    """Bind the dimensions of one input; on failure the problems of the first form of its rank, and nothing bound."""
    first: list[Diagnostic] | None = None
    for form in plan.forms:
        if len(form) != len(shape):
            continue
        found: _Bound = {}
        problems = _fit_form(plan.name, form, shape, bound, found)
        if not problems:
            bound.update(found)
            return problems
        first = first or problems
    if first is not None:
        return first
    message = f"input {plan.name!r} has rank {len(shape)}, shape {_shown(shape)}; it takes {_forms(plan)}"
    return [Diagnostic("C823", message)]


def _fit_form(
    name: str, form: tuple[int | str, ...], shape: tuple[int, ...], bound: _Bound, found: _Bound
) -> list[Diagnostic]:
    problems = []
    for axis, want in enumerate(form):
        size = shape[axis]
        if isinstance(want, int):
            if size != want:
                message = f"input {name!r} has size {size} on axis {axis}, not {want}"
                problems.append(Diagnostic("C829", message, hint=f"its form is {_shown(form)}"))
            continue
        place = f"on axis {axis} of input {name!r}"
        other = bound.get(want) or found.get(want)
        if other is None:
            found[want] = (size, place)
        elif other[0] != size:
            message = f"dimension {want} is {size} {place}, but {other[0]} {other[1]}"
            problems.append(Diagnostic("C826", message, hint="both have to be the same"))
    return problems


def _sums(signature: Signature, bound: _Bound) -> list[Diagnostic]:
    """Bind the dimensions that follow from sums, then report the sums that do not come out."""
    sums = [(name, dim.sum_of) for name, dim in signature.dims.items() if dim.sum_of]
    known = -1
    while known < len(bound):
        known = len(bound)
        for name, parts in sums:
            _follow(name, parts, bound)
    problems = []
    for name, parts in sums:
        total, part = bound.get(name, (0, ""))[0], sum(bound[item][0] for item in parts if item in bound)
        complete = all(item in bound for item in parts)
        if name in bound and (total != part if complete else total < part):
            message = f"dimension {name} is {total} {bound[name][1]}, but {' + '.join(parts)} is "
            message += f"{part}" if complete else f"at least {part}"
            problems.append(Diagnostic("C832", message, hint=signature.dims[name].meaning))
    return problems


def _follow(name: str, parts: tuple[str, ...], bound: _Bound) -> None:
    unknown = [item for item in parts if item not in bound]
    known = sum(bound[item][0] for item in parts if item in bound)
    place = f"by {name} = {' + '.join(parts)}"
    if name not in bound and not unknown:
        bound[name] = (known, place)
    elif name in bound and len(unknown) == 1 and bound[name][0] >= known:
        bound[unknown[0]] = (bound[name][0] - known, place)


def _ranges(signature: Signature, bound: _Bound) -> list[Diagnostic]:
    problems = []
    for name, (size, place) in bound.items():
        dim = signature.dims[name]
        if size < dim.low or (dim.high is not None and size > dim.high):
            allowed = f"at least {dim.low}" if dim.high is None else f"{dim.low}..{dim.high}"
            problems.append(
                Diagnostic("C824", f"dimension {name} is {size} {place}; allowed is {allowed}", hint=dim.meaning)
            )
        elif size % dim.multiple_of:
            message = f"dimension {name} is {size} {place}, which is no multiple of {dim.multiple_of}"
            problems.append(Diagnostic("C825", message, hint=dim.meaning))
    return problems


def _value_problems(spec: Input, item: Any) -> list[Diagnostic]:
    real = "f" in spec.dtype
    if not isinstance(item, np.ndarray | np.generic) or item.size == 0:
        return []
    array = np.asarray(item)
    if real:
        good, code, rule = np.isfinite(array), "C828", "it must be finite"
    elif spec.values:
        good, code, rule = _in_range(array, spec.values), "C827", f"allowed is {_span(spec.values)}"
    else:
        return []
    if good.all():
        return []
    place = np.argwhere(~good)[0].tolist()
    at = f" at {place}" if place else ""
    count = int((~good).sum())
    more = f" (and {count - 1} more)" if count > 1 else ""
    return [Diagnostic(code, f"input {spec.name!r} holds {array[tuple(place)]}{at}{more}; {rule}", hint=spec.meaning)]


def _in_range(array: np.ndarray, values: ValueRange) -> np.ndarray:
    good = np.ones(array.shape, dtype=bool) if values.min is None else array >= values.min
    return good if values.max is None else good & (array <= values.max)


def _span(values: ValueRange) -> str:
    return f"{'' if values.min is None else values.min}..{'' if values.max is None else values.max}"
