"""The rungs of a ladder: how the user names them, what they are compiled with, and which of them is the one to take."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ir.base.diag import LadingError, suggest
from tools.shared.cli import megabytes, split_list

DEFAULT_RUNGS = (
    "fp32", "fp16", "int8", "int4", "default", "mixed:3.5bpw", "mixed:4bpw", "mixed:4.5bpw", "mixed:5bpw", "mixed:6bpw",
)  # fmt: skip
"""What is built when nobody says otherwise."""

FIXED = ("fp32", "fp16", "int8", "int4", "default")
"""Rungs that are named pipelines of one policy."""

MAX_RISE = 0.01
"""Share by which the perplexity of a recommended rung may rise when no limit is given."""

MAX_KL = 0.02
"""KL divergence (nats a token) that a recommended rung may have when no limit is given."""

FLOOR = 1e-7
"""KL divergences below this are rounding of the runtime and are drawn here."""

Kind = Literal["fixed", "mixed", "uniform", "pipeline"]

_LIMITS = {"bpw": "budget", "kB": "max-size", "MB": "max-size", "GB": "max-size", "x": "min-speed"}


@dataclass(frozen=True)
class Spec:
    """One rung as it is asked for.

    Attributes:
        name: what the user calls it, such as ``mixed:4.5bpw``.
        kind: ``fixed`` policies, ``mixed`` precision under a limit, ``uniform`` widths, or any other ``pipeline``.
        pipeline: text of the pipeline.
    """

    name: str
    kind: Kind
    pipeline: str

    @property
    def slug(self) -> str:
        """The name as a file name."""
        return slug(self.name)


def slug(name: str) -> str:
    """A name as a file name; long ones are cut and told apart by a digest."""
    from hashlib import sha256

    plain = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "rung"
    if plain == name.replace(":", "-") and len(plain) <= 60:
        return plain
    return f"{plain[:40]}-{sha256(name.encode()).hexdigest()[:8]}"


def parse_rungs(text: str, uniform: Iterable[int] = ()) -> list[Spec]:
    """Rungs by comma-separated names, and `uniform` widths after them; empty text for `DEFAULT_RUNGS`.

    A name is a fixed policy, ``mixed:LIMIT`` with ``+`` between several limits, ``uniform:BITS``, or any pipeline (a TOML
    file where it has several steps), with ``NAME=`` before it or not. Commas inside braces belong to a pipeline.

    Raises:
        LadingError: U933 an unknown, malformed or repeated rung; the errors of the pipeline's text.
    """
    names = split_list(text) or list(DEFAULT_RUNGS)
    names += [name for bits in uniform if (name := f"uniform:{bits}") not in names]
    specs = [parse_rung(name) for name in names]
    repeated = [spec.name for number, spec in enumerate(specs) if spec.slug in {item.slug for item in specs[:number]}]
    if repeated:
        raise LadingError("U933", f"the rung {repeated[0]!r} is named twice")
    return specs


def parse_rung(name: str) -> Spec:
    """One rung; the errors of `parse_rungs`."""
    from passes.framework.load import load
    from passes.framework.registry import default_registry

    registry = default_registry()
    if name in FIXED:
        return Spec(name, "fixed", name)
    head, colon, rest = name.partition(":")
    if colon and head == "mixed":
        limits = " ".join(_limit(name, part) for part in rest.split("+"))
        spec = Spec(name, "mixed", f"calibrated{{{limits}}}")
    elif colon and head == "uniform":
        spec = Spec(name, "uniform", uniform_pipeline(name, rest))
    else:
        label, equals, pipeline = _named(name)
        spec = Spec(label, "pipeline", pipeline)
        if not equals and "{" not in name and not name.endswith(".toml") and name not in registry.pipelines:
            known = [*FIXED, "mixed:4.5bpw", "uniform:4", *registry.pipelines]
            hint = suggest(name, known) or f"known: {', '.join(FIXED)}, mixed:4.5bpw, uniform:4, or a pipeline"
            raise LadingError("U933", f"there is no rung {name!r}", hint=hint)
    load(spec.pipeline)
    return spec


def _named(text: str) -> tuple[str, bool, str]:
    found = re.fullmatch(r"([\w.-]+)=(.+)", text, re.DOTALL)
    return (found[1], True, found[2]) if found else (text, False, text)


def _limit(name: str, text: str) -> str:
    """The options of assign-precision that keep a limit such as ``4.5bpw``, ``300MB``, ``kl=0.02`` or ``0.9x``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(bpw|kB|MB|GB|x)|kl=(\d+(?:\.\d+)?(?:e-?\d+)?)", text)
    if found is None:
        hint = (
            "write mixed:4.5bpw (bits per weight), mixed:300MB (size), mixed:kl=0.02 (divergence) or mixed:0.9x (speed), "
            "several with + between: mixed:5bpw+0.85x"
        )
        raise LadingError("U933", f"the rung {name!r} has no limit that can be read", hint=hint)
    return f"max-kl={found[3]}" if found[3] else f"{_LIMITS[found[2]]}={text}"


def uniform_pipeline(name: str, bits: str) -> str:
    """All layers at one width; embedding and logits at the nearest width whose rows runtimes read, so that tied ones
    are stored once.

    Raises:
        LadingError: U933 not a width from 2 to 8.
    """
    if bits not in tuple("2345678"):
        raise LadingError("U933", f"the rung {name!r} has no width from 2 to 8", hint="write uniform:3")
    return f"default{{bits={bits} logits-bits={4 if int(bits) <= 4 else 8}}}"


# ---- judging ----


@dataclass(frozen=True)
class Rule:
    """What a rung must keep to be recommended; None for no limit of that kind.

    Without any limit the default rule holds: `MAX_RISE` and `MAX_KL`.
    """

    max_size: int | None = None
    max_kl: float | None = None

    @property
    def given(self) -> bool:
        """The user set a limit."""
        return self.max_size is not None or self.max_kl is not None

    def as_dict(self) -> dict[str, Any]:
        """The limits that hold, as JSON-able data."""
        rise, kl = (None, self.max_kl) if self.given else (MAX_RISE, MAX_KL)
        return {"max_bytes": self.max_size, "max_kl": kl, "max_perplexity_rise": rise, "given": self.given}


def parse_size(text: str) -> int:
    """Bytes of a size such as ``300MB``, ``1.5 GB`` or ``2000000``.

    Raises:
        LadingError: U934 it is none.
    """
    from passes.precision.limits import read_size

    found = read_size(text, unit="B")
    if found is None:
        raise LadingError("U934", f"{text!r} is no size", hint="write 300MB, 1.5GB or a number of bytes")
    return found


def front(rungs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the measured rungs that no other one beats in both size and divergence, smallest first."""
    found: list[str] = []
    best = math.inf
    for rung in sorted(measured(rungs), key=lambda item: (item["bytes"], item["kl"])):
        if rung["kl"] < best:
            found.append(rung["name"])
            best = rung["kl"]
    return found


def measured(rungs: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rungs that were built and measured."""
    return [rung for rung in rungs if rung["status"] == "ok"]


def recommend(rungs: Sequence[Mapping[str, Any]], rule: Rule) -> dict[str, Any]:
    """Which rung to take, and why in two sentences.

    With a limit on divergence it is the smallest rung that keeps all limits, with one on size alone the rung of least
    divergence. Without limits it is the smallest one that keeps the default rule, else the knee of the curve.

    Returns:
        ``rung`` (name or None), ``basis`` (``limits``, ``default-rule``, ``knee`` or ``none``) and ``why``.
    """
    ready = measured(rungs)
    if not ready:
        return {"rung": None, "basis": "none", "why": "No rung could be built and measured, so none is recommended."}
    fitting = [rung for rung in ready if keeps(rung, rule)]
    if fitting:
        least = "kl" if rule.given and rule.max_kl is None else "bytes"
        other = "bytes" if least == "kl" else "kl"
        best = min(fitting, key=lambda rung: (rung[least], rung[other]))
        return {
            "rung": best["name"],
            "basis": "limits" if rule.given else "default-rule",
            "why": _why(best, ready, rule),
        }
    if rule.given:
        return {"rung": None, "basis": "none", "why": _why_none(ready, rule)}
    best = knee(ready)
    return {"rung": best["name"], "basis": "knee", "why": _why_knee(best, ready)}


def keeps(rung: Mapping[str, Any], rule: Rule) -> bool:
    """True when a measured rung keeps the limits."""
    if not rule.given:
        return rung["kl"] <= MAX_KL and rung["perplexity_rise"] <= MAX_RISE
    small = rule.max_size is None or rung["bytes"] <= rule.max_size
    return small and (rule.max_kl is None or rung["kl"] <= rule.max_kl)


def knee(ready: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The rung of the front that is nearest to small and good at once: size and logarithm of divergence scaled to
    0..1."""
    names = front(ready)
    edge = [rung for rung in ready if rung["name"] in names]
    sizes = _scaled([float(rung["bytes"]) for rung in edge])
    losses = _scaled([math.log10(max(rung["kl"], FLOOR)) for rung in edge])
    return min(zip(edge, sizes, losses, strict=True), key=lambda item: (item[1] + item[2], item[1]))[0]


def _scaled(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]


def _why(best: Mapping[str, Any], ready: Sequence[Mapping[str, Any]], rule: Rule) -> str:
    if not rule.given:
        what = f"the smallest rung whose perplexity rises by at most {100 * MAX_RISE:g} % and whose KL is at most {MAX_KL:g}"
    elif rule.max_kl is None:
        what = f"the rung of least KL within {megabytes(rule.max_size or 0)}"
    else:
        within = "" if rule.max_size is None else f" within {megabytes(rule.max_size)}"
        what = f"the smallest rung{within} whose KL is at most {rule.max_kl:g}"
    first = f"{best['name']} is {what}: {_figures(best)}."
    if rule.given and rule.max_kl is None:
        others = [rung for rung in ready if rung["kl"] < best["kl"]]
        nearest = min(others, key=lambda rung: rung["bytes"], default=None)
        return f"{first} {_larger(nearest, best)}"
    edge = front(ready)
    below = [rung for rung in ready if rung["bytes"] < best["bytes"]]
    smaller = max(below, key=lambda rung: (rung["name"] in edge, rung["bytes"]), default=None)
    return f"{first} {_smaller(smaller, best)}"


def _larger(rung: Mapping[str, Any] | None, best: Mapping[str, Any]) -> str:
    if rung is None:
        return "No other rung is nearer to the float model."
    more = megabytes(rung["bytes"] - best["bytes"])
    return f"The next nearer to the float model, {rung['name']}, takes {more} more for KL {divergence(rung['kl'])}."


def _smaller(rung: Mapping[str, Any] | None, best: Mapping[str, Any]) -> str:
    if rung is None:
        return "It is the smallest rung of all."
    saved = megabytes(best["bytes"] - rung["bytes"])
    rise = f"perplexity {change(rung['perplexity_rise'])}"
    return f"The next smaller one, {rung['name']}, saves {saved} but has KL {divergence(rung['kl'])} and {rise}."


def _why_none(ready: Sequence[Mapping[str, Any]], rule: Rule) -> str:
    if rule.max_kl is None:
        nearest = min(ready, key=lambda rung: rung["bytes"])
        what = f"No rung fits into {megabytes(rule.max_size or 0)}."
    else:
        small = [rung for rung in ready if rule.max_size is None or rung["bytes"] <= rule.max_size]
        nearest = min(small or ready, key=lambda rung: rung["kl"])
        within = "" if rule.max_size is None else f" fits into {megabytes(rule.max_size)} and"
        what = f"No rung{within} has a KL of at most {rule.max_kl:g}."
    return f"{what} The nearest is {nearest['name']}: {_figures(nearest)}."


def _why_knee(best: Mapping[str, Any], ready: Sequence[Mapping[str, Any]]) -> str:
    first = f"No rung keeps perplexity within {100 * MAX_RISE:g} % and KL within {MAX_KL:g}, so {best['name']} is taken"
    return f"{first}, the knee of the curve: {_figures(best)}. More size gains little beyond it, less size costs much."


def _figures(rung: Mapping[str, Any]) -> str:
    return f"{megabytes(rung['bytes'])}, KL {divergence(rung['kl'])}, perplexity {change(rung['perplexity_rise'])}"


def change(share: float) -> str:
    """A relative change for people, such as ``+0.42 %``."""
    percent = 100 * share
    if abs(percent) < 0.005:
        return "0.00 %"
    return f"{percent:+.2f} %" if abs(percent) < 10 else f"{percent:+,.0f} %"


def divergence(kl: float) -> str:
    """A KL divergence for people: two significant digits, rounding of the runtime as an upper bound."""
    if kl < FLOOR:
        return "<1e-7"
    return f"{kl:.1f}" if kl >= 9.95 else f"{kl:#.2g}".replace("e-0", "e-")


def small(number: float) -> str:
    """An error for people: one significant digit."""
    return f"{number:.1g}".replace("e-0", "e-")
