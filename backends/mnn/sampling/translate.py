"""The settings of a checkpoint for generation as MNN's sampler takes them, and what MNN has no equal of.

A sampler of MNN is the list ``mixed_samplers``, worked through in its order; ``penalty`` always comes first. Written in
the order of transformers (penalty, top-k, top-p, typical, then a draw at the temperature), it leaves the same tokens with
the same probabilities, because every step of MNN that asks for probabilities takes them at the temperature. Settings
that are absent are transformers' defaults, so MNN's own (top-k 40, top-p 0.9) never count.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from backends.mnn.target.releases import Release
from frontends.checkpoint.generation import effective, unused

COLD = 1e-4
"""A temperature below this means the most likely token; 0 makes MNN divide by zero."""

LITTLE = 1e-6
"""A top-p below this keeps the most likely token alone; MNN may read it as 0, at which 3.4 crashes."""

MOST_PENALTY = 10.0
"""MNN takes a larger repetition penalty for this one."""

MOST_TOKENS = (1 << 31) - 1


@dataclass(frozen=True)
class Step:
    """One step of ``mixed_samplers`` and the setting that it follows, with the names MNN has for that.

    3.4 reads the first name only, later releases the last one before it.
    """

    name: str
    setting: str
    keys: tuple[str, ...]


STEPS = (
    Step("penalty", "repetition_penalty", ("penalty", "repetition_penalty")),
    Step("topK", "top_k", ("topK", "top_k")),
    Step("topP", "top_p", ("topP", "top_p")),
    Step("typical", "typical_p", ("typical",)),
    Step("temperature", "temperature", ("temperature",)),
)
"""The steps in the order of transformers."""


@dataclass(frozen=True)
class Absent:
    """Why no release has an equal of a setting, and the values that change nothing beside null, false and empty."""

    reason: str
    neutral: tuple[float, ...] = ()


NEVER: Mapping[str, Absent] = {
    # With 1 only the most likely token is left, which MNN can take.
    "min_p": Absent("MNN compares probabilities with min_p itself, not with min_p of the largest one", (0, 1)),
    "top_h": Absent("MNN has no such filter"),
    "epsilon_cutoff": Absent("MNN has no such filter", (0,)),
    "eta_cutoff": Absent("MNN has no such filter", (0,)),
    "encoder_repetition_penalty": Absent("MNN has one penalty for prompt and answer together", (1,)),
    "no_repeat_ngram_size": Absent("MNN can make repeated n-grams less likely, not forbid them", (0,)),
    "encoder_no_repeat_ngram_size": Absent("MNN can make repeated n-grams less likely, not forbid them", (0,)),
    "begin_suppress_tokens": Absent("MNN forbids tokens throughout or not at all"),
    "forced_bos_token_id": Absent("MNN forces no token"),
    "forced_eos_token_id": Absent("MNN forces no token"),
    "exponential_decay_length_penalty": Absent("MNN's end tokens do not become likelier with the length"),
    "guidance_scale": Absent("MNN runs the model once for a token", (1,)),
    "watermarking_config": Absent("MNN has no watermarks"),
    "num_beams": Absent("MNN has no beam search", (1,)),
    "num_return_sequences": Absent("MNN gives one answer", (1,)),
    "penalty_alpha": Absent("MNN has no contrastive search", (0,)),
    "dola_layers": Absent("MNN reads the last layer only"),
    "constraints": Absent("MNN has no constrained search"),
    "force_words_ids": Absent("MNN has no constrained search"),
    "token_healing": Absent("MNN takes the prompt as it is"),
    "min_new_tokens": Absent("MNN lets generation end at any token", (0,)),
    "min_length": Absent("MNN lets generation end at any token", (0,)),
}
"""Settings that no release has an equal of."""


@dataclass(frozen=True)
class Lost:
    """A setting that releases have no equal of.

    Attributes:
        setting: its name in transformers.
        value: as given.
        reason: why, as a sentence without its period.
        instead: the value that counts; None for transformers' default.
    """

    setting: str
    value: Any
    reason: str
    instead: Any = None


@dataclass(frozen=True)
class Sampler:
    """A sampler in MNN's terms.

    Attributes:
        mode: whether tokens are drawn or the most likely one is taken.
        config: keys of ``config.json``.
        kept: the settings, as in transformers, that it follows.
        lost: what it leaves out.
        unused: given settings without effect, because ``do_sample`` is not true.
    """

    mode: Literal["greedy", "sample"]
    config: Mapping[str, Any]
    kept: Mapping[str, Any]
    lost: tuple[Lost, ...] = ()
    unused: tuple[str, ...] = ()


def translate(
    given: Mapping[str, Any], releases: Sequence[Release], rows: int, ends: Mapping[int, str | None]
) -> Sampler:
    """The sampler for releases that read one configuration file.

    Args:
        given: settings as in ``generation_config.json``, see `frontends.checkpoint.generation`.
        releases: all of them must have what is written.
        rows: tokens that the logits tell apart.
        ends: ids that end generation, with their texts; transformers does not count them among bad words.
    """
    settings = effective(given)
    names = _steps(settings, rows)
    lost = [*_never(settings), *_penalty_beyond(settings)]
    if not all(release.sampler_steps for release in releases):
        names = ["greedy"]
        lost += _fixed(settings)
    for step in STEPS:
        if step.name in names and not all(step.name in release.sampler_steps for release in releases):
            names.remove(step.name)
            lost.append(Lost(step.setting, settings[step.setting], PARTLY[step.name]))
    biases, unbiased = _biases(settings, all(release.token_bias for release in releases), rows, ends)
    limits, unlimited = _limits(settings, all(release.time_limit for release in releases))
    config = _written(names, settings, biases)
    mode: Literal["greedy", "sample"] = "greedy" if "greedy" in names else "sample"
    lost += [*unbiased, *unlimited, *_strings(settings, ends)]
    return Sampler(mode, config | limits, _kept(given, lost), tuple(lost), tuple(unused(given)))


def _kept(given: Mapping[str, Any], lost: Sequence[Lost]) -> dict[str, Any]:
    kept = {**given, **{item.setting: item.instead for item in lost}}
    if 0 < effective(given).get("temperature", 1) < COLD:
        kept["temperature"] = 0
    return {key: value for key, value in kept.items() if value is not None}


PARTLY = {"typical": "MNN before 3.5 leaves out the token that completes the mass"}
"""Why releases lack a step that others have."""


def _fixed(settings: Mapping[str, Any]) -> Iterator[Lost]:
    """What is lost where nothing can be set."""
    yield Lost("repetition_penalty", settings["repetition_penalty"], "MNN 3.0 has a fixed one of 1.1", 1.1)
    if settings["do_sample"]:
        yield Lost("do_sample", True, "MNN 3.0 takes the most likely token", False)


def _written(names: Sequence[str], settings: Mapping[str, Any], biases: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a sampler with these steps."""
    if names == ["greedy"] and not biases:
        return {"sampler_type": "greedy"}
    config: dict[str, Any] = {"sampler_type": "mixed", "mixed_samplers": list(names), **biases}
    for step in STEPS:
        # The mass that top-p keeps is written even where it is all of it, since MNN's own is 0.9.
        if step.name in names or (step.name == "topP" and "temperature" in names):
            value = settings[step.setting]
            config |= dict.fromkeys(step.keys, value if step.setting == "top_k" else float(value))
    return config


def _steps(settings: Mapping[str, Any], rows: int) -> list[str]:
    """Names of the steps that do something, and how the token is chosen at the end."""
    names = ["penalty"] if settings["repetition_penalty"] > 1 else []
    if not settings["do_sample"] or _single(settings):
        return [*names, "greedy"]
    if 0 < settings["top_k"] < rows:
        names.append("topK")
    if settings["top_p"] < 1:
        names.append("topP")
    if settings["typical_p"] < 1:
        names.append("typical")
    return [*names, "temperature"]


def _single(settings: Mapping[str, Any]) -> bool:
    """Whether only the most likely token can be drawn."""
    cold = settings["temperature"] < COLD
    return cold or settings["top_k"] == 1 or settings["top_p"] < LITTLE or settings["min_p"] == 1


def _never(settings: Mapping[str, Any]) -> Iterator[Lost]:
    for name, absent in NEVER.items():
        value = settings.get(name)
        if value is None or value is False or value in ([], {}) or value in absent.neutral:
            continue
        # Contrastive search is a way to take the most likely token; where tokens are drawn it does not count.
        if name != "penalty_alpha" or not settings["do_sample"]:
            yield Lost(name, value, absent.reason)


def _penalty_beyond(settings: Mapping[str, Any]) -> Iterator[Lost]:
    value = settings["repetition_penalty"]
    if value < 1:
        yield Lost("repetition_penalty", value, "MNN makes repetition less likely, never more")
    if value > MOST_PENALTY:
        yield Lost("repetition_penalty", value, f"MNN takes it for {MOST_PENALTY:g}", MOST_PENALTY)


def _biases(
    settings: Mapping[str, Any], known: bool, rows: int, ends: Mapping[int, str | None]
) -> tuple[dict[str, Any], list[Lost]]:
    """Tokens that are forbidden or made likelier, and what of that gets lost."""
    words = [word for word in settings["bad_words_ids"] or [] if not (len(word) == 1 and word[0] in ends)]
    biases = settings["sequence_bias"] or []
    banned = {*(settings["suppress_tokens"] or []), *(word[0] for word in words if len(word) == 1)}
    added = {ids[0]: number for ids, number in biases if len(ids) == 1}
    lost: list[Lost] = []
    if known:
        lost += _several("bad_words_ids", words, [word for word in words if len(word) == 1])
        lost += _several("sequence_bias", biases, [pair for pair in biases if len(pair[0]) == 1])
    if not known:
        reason = "MNN before 3.5 has no such setting"
        names = ("suppress_tokens", "bad_words_ids", "sequence_bias")
        return {}, lost + [Lost(name, settings[name], reason) for name in names if settings[name]]
    config: dict[str, Any] = {}
    if banned := {token for token in banned if token < rows}:
        config["banned_tokens"] = sorted(banned)
    if added := {token: number for token, number in added.items() if token < rows}:
        config["logit_bias"] = {str(token): float(number) for token, number in sorted(added.items())}
    return config, lost


def _several(name: str, rows: Sequence[Any], single: Sequence[Any]) -> Iterator[Lost]:
    """Rows of more than one token."""
    if len(single) < len(rows):
        yield Lost(name, [row for row in rows if row not in single], "MNN knows single tokens only", list(single))


def _limits(settings: Mapping[str, Any], timed: bool) -> tuple[dict[str, Any], list[Lost]]:
    """When generation ends at the latest."""
    config: dict[str, Any] = {}
    lost = []
    tokens = settings["max_new_tokens"] or settings["max_length"]
    if tokens is not None:
        config["max_new_tokens"] = min(tokens, MOST_TOKENS)
    seconds = settings["max_time"]
    if seconds is not None and timed:
        config["timeout_ms"] = min(max(1, round(seconds * 1000)), MOST_TOKENS)
    elif seconds is not None:
        lost.append(Lost("max_time", seconds, "MNN before 3.5 has no time limit"))
    return config, lost


def _strings(settings: Mapping[str, Any], ends: Mapping[int, str | None]) -> Iterator[Lost]:
    """Stop strings that are not the text of an end token."""
    given = settings["stop_strings"] or []
    texts = [text for text in ([given] if isinstance(given, str) else given) if text not in ends.values()]
    if texts:
        yield Lost("stop_strings", texts, "MNN ends at tokens, not at texts")


@dataclass(frozen=True)
class LostOn:
    """A setting that some releases of a target have no equal of."""

    lost: Lost
    releases: tuple[str, ...]


def lost_on(samplers: Sequence[tuple[Sequence[Release], Sampler]]) -> list[LostOn]:
    """What is lost on which releases, told once for all releases that lose it for one reason."""
    found: dict[str, tuple[Lost, list[Release]]] = {}
    for releases, sampler in samplers:
        for item in sampler.lost:
            found.setdefault(repr(item), (item, []))[1].extend(releases)

    return [
        LostOn(item, tuple(release.version for release in sorted(releases, key=lambda release: release.key)))
        for item, releases in found.values()
    ]


def spelled(value: Any) -> str:
    """A value as in JSON, cut where it is long."""
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


__all__ = [
    "COLD",
    "NEVER",
    "PARTLY",
    "STEPS",
    "Absent",
    "Lost",
    "LostOn",
    "Sampler",
    "Step",
    "lost_on",
    "spelled",
    "translate",
]
