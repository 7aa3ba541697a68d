"""Samplers of existing configurations that crash a release, and the nearest that do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backends.mnn.target.releases import Release

USUAL_STEPS = ("topK", "tfs", "typical", "topP", "min_p", "temperature")
"""``mixed_samplers`` where it is absent."""

SMALLEST = 1e-45
"""Numbers below this are 0 to MNN, which reads them as 32-bit floats."""

_DRAWING = ("topK", "topP", "minP", "min_p", "tfs", "typical", "temperature")


@dataclass(frozen=True)
class Read:
    """What a release reads of a configuration: the kind of sampler, its steps, top-k, top-p and temperature."""

    kind: str
    steps: tuple[str, ...]
    top_k: float
    top_p: float
    temperature: float


def read_sampler(config: Mapping[str, Any], release: Release) -> Read:
    """The sampler that a release makes of ``config.json``; values of a wrong kind count as absent."""
    kind = config.get("sampler_type", release.usual_sampler)
    steps = config.get("mixed_samplers", USUAL_STEPS)
    named = tuple(map(str, steps)) if isinstance(steps, (list, tuple)) else USUAL_STEPS
    return Read(
        str(kind),
        named if kind == "mixed" else (str(kind),),
        _number(config, release, "top_k", "topK", 40),
        _number(config, release, "top_p", "topP", 0.9),
        _number(config, release, "", "temperature", 1.0),
    )


def _number(config: Mapping[str, Any], release: Release, snake: str, camel: str, default: float) -> float:
    """A setting, with the name of later releases first where the release reads it and it is not negative."""
    later = _as_number(config.get(snake))
    if release.snake_sampler and later is not None and later >= 0:
        return later
    value = _as_number(config.get(camel))
    return default if value is None else value


def _as_number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def hazard(config: Mapping[str, Any], release: Release) -> str:
    """What a sampler does to a release, as a sentence; empty where it does no harm."""
    found = read_sampler(config, release)
    if not found.steps:
        return "mixed_samplers is empty: crash when loading"
    if "topK" in found.steps and found.top_k < 1 and release.no_top_k == "crash":
        return f"topK is {found.top_k:g}: crash at the first token"
    if "topP" in found.steps and found.top_p < SMALLEST and release.no_top_p == "crash":
        return f"topP is {found.top_p:g}: crash at the first token"
    if found.temperature == 0 and set(found.steps) & {"temperature", "topP", "typical", "tfs", "minP"}:
        return "temperature is 0, by which MNN divides: the last token that is left is taken, however unlikely"
    return ""


def harmless(config: Mapping[str, Any], releases: Sequence[Release]) -> dict[str, Any]:
    """The keys to change so that no release comes to harm: steps without effect go, impossible draws become the most
    likely token. Empty where nothing is wrong."""
    if not any(hazard(config, release) for release in releases):
        return {}
    read = [read_sampler(config, release) for release in releases]
    steps = [step for step in read[-1].steps if step != "topK" or all(item.top_k >= 1 for item in read)]
    cold = any(item.temperature == 0 or (item.top_p < SMALLEST and "topP" in item.steps) for item in read)
    if cold or not read[-1].steps:
        steps = [*(step for step in steps if step not in _DRAWING and step != "greedy"), "greedy"]
    elif not set(steps) & {"temperature", "greedy"}:
        steps.append("temperature")
    return {"sampler_type": "mixed", "mixed_samplers": steps}


__all__ = ["USUAL_STEPS", "Read", "harmless", "hazard", "read_sampler"]
