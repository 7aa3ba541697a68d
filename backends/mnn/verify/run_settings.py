"""Try runtime settings on a finished model directory, each beside the settings that it ships, and say which cost nothing.

For every setting the same windows are read, their last tokens one at a time, so that what keys and values in few bits
do to decoding shows. Divergences are compared position by position: a setting costs nothing when its mean divergence
is not above that of the shipped settings by more than `COST` of it, two standard errors of the difference included.
Speed, load and memory are taken in `ROUNDS` rounds in turn, a fresh process each, and compared within each round. What
would be written is measured once more, with as many rounds again, so that luck alone does not choose it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from backends.mnn.run.native import run_model
from backends.mnn.target.environments import installed_version
from backends.mnn.target.run_settings import USES, Tried
from backends.mnn.verify.measure import FloatReference, Measured, Speed, measure
from backends.mnn.write.configs import config_for
from ir.base.diag import LadingError
from ir.base.scratch import scratch_folder

COST = 0.02
"""Share of the shipped settings' divergence that a setting which costs nothing may add."""
LEAST_KL = 1e-6
"""Divergences (nats a token) are compared as if they were at least this: below is rounding of the runtime."""
GAIN = 0.02
"""Share by which a speed, the load or the memory has to be better to count, and by which none may be worse."""
ROUNDS = 3
DECODED = 512
"""Tokens that are decoded one at a time for a divergence, at most."""
LOOKED_UP = 48
"""Tokens that are generated with lookahead and without."""

Way = tuple[Mapping[str, Any], str]
"""Keys of the configuration, and what they do, for people."""
Say = Callable[[str], None]
RATES = ("decode", "prefill", "load", "memory")


@dataclass(frozen=True)
class Trial:
    """What settings do beside those that are shipped.

    Attributes:
        name: what was tried, such as ``attention_mode=0``.
        settings: keys of the configuration.
        meaning: for people.
        kl, kl_decode: mean divergence from the float model where windows are read, and where tokens are decoded.
        top1: share of all positions at which both put the same token first.
        more, more_decode: difference to the shipped settings, and `error`, `error_decode` their standard errors.
        decode, prefill, load, memory: how many times as good as the shipped settings, each round by itself.
        verdict: ``usual`` (the shipped ones), ``better``, ``costs`` (divergence), ``unsure`` (whether it does),
            ``slower`` (in a speed, the load or the memory), ``equal`` or ``failed``.
        note: why it failed.
    """

    name: str
    settings: Mapping[str, Any]
    meaning: str
    kl: float | None = None
    kl_decode: float | None = None
    top1: float | None = None
    more: float = 0.0
    error: float = 0.0
    more_decode: float = 0.0
    error_decode: float = 0.0
    decode: tuple[float, ...] = ()
    prefill: tuple[float, ...] = ()
    load: tuple[float, ...] = ()
    memory: tuple[float, ...] = ()
    verdict: str = "usual"
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data; `name` says the settings."""
        found = asdict(self)
        del found["settings"]
        return {**found, **{name: list(found[name]) for name in RATES}}


@dataclass(frozen=True)
class UseTrial:
    """What a way of use saves: times as fast in its best case; None where it was not measured, and then why."""

    name: str
    meaning: str
    times: float | None
    note: str

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """All that was tried, and the settings that are better in something and worse in nothing; empty for none."""

    trials: tuple[Trial, ...]
    uses: tuple[UseTrial, ...]
    chosen: Mapping[str, Any]


def try_settings(
    folder: Path,
    reference: FloatReference,
    rows: Sequence[Tried],
    *,
    shipped: Mapping[str, Any],
    say: Say = lambda what: None,
    timeout_s: float = 1800,
) -> Outcome:
    """Measure every row on a model directory with the installed release, and choose.

    Args:
        rows: what to try; a value that the model ships already is left out.
        shipped: the settings of its configuration.

    Raises:
        LadingError: B667 to B669 the runtime fails with the settings that are shipped.
    """
    rig = _Rig(folder, reference, timeout_s)
    rows = [row for row in rows if shipped.get(row.key, row.usual) != row.value]
    say(f"trying {len(rows)} runtime settings")
    with scratch_folder() as place:
        ways: dict[str, Way] = {"as shipped": ({}, "")} | {
            row.name: (_complete(row, place), row.meaning) for row in rows
        }
        trials = rig.compare(ways, say)
        chosen = _combined(trials)
        if chosen:
            say("measuring what was chosen once more")
            name = ", ".join(row.name for row in rows if chosen.get(row.key) == row.value)
            _, once_more = rig.compare({"as shipped": ({}, ""), name: (chosen, "what was chosen, once more")}, say)
            trials = (*trials, once_more)
            chosen = chosen if once_more.verdict == "better" else {}
    say("trying ways of use")
    return Outcome(trials, rig.uses(), _written(chosen))


def _complete(row: Tried, place: Path) -> dict[str, Any]:
    """The keys of a setting: mapped weights need a folder that outlives a process."""
    return {row.key: row.value} | ({"tmp_path": str(place)} if row.key == "use_mmap" else {})


def _written(chosen: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in chosen.items() if key != "tmp_path"}


class _Rig:
    """One directory on the installed release."""

    def __init__(self, folder: Path, reference: FloatReference, timeout_s: float) -> None:
        self.folder, self.reference, self.timeout_s = folder, reference, timeout_s
        self.config = config_for(folder, installed_version() or "")
        shortest, longest = min(map(len, reference.windows)), max(map(len, reference.windows))
        self.tail = max(1, min(shortest // 4, DECODED // len(reference.windows)))
        self.speed = Speed(prompt=longest, decode=min(32, max(1, longest // 2)), repeat=3)
        stream = np.concatenate(reference.windows)
        self.prompt = [int(token) for token in np.resize(stream, longest)]

    def compare(self, ways: Mapping[str, Way], say: Say) -> tuple[Trial, ...]:
        """Trials of several settings, the first of which are those that the others are compared with."""
        kept: dict[str, Measured] = {}
        failed: dict[str, str] = {}
        for number, (name, (settings, _)) in enumerate(ways.items()):
            say(f"divergence with {name}")
            try:
                if "use_mmap" in settings:
                    self._once(settings)  # a first load leaves what later ones map
                kept[name] = measure(self.folder, self.reference, settings, tail=self.tail, timeout_s=self.timeout_s)
            except LadingError as error:
                if not number:
                    raise
                failed[name] = error.diagnostics[0].message
        times: dict[str, list[dict[str, float]]] = {name: [] for name in kept}
        for turn in range(ROUNDS):
            say(f"speed, round {turn + 1} of {ROUNDS}")
            names = list(kept) if turn % 2 == 0 else list(reversed(kept))
            for name in names:
                times[name].append(self._once(ways[name][0]))
        usual = next(iter(ways))
        return tuple(
            Trial(name, settings, meaning, verdict="failed", note=failed[name])
            if name in failed
            else replace(
                judged(
                    name,
                    settings,
                    meaning,
                    self._split(kept[usual]),
                    self._split(kept[name]),
                    times[usual],
                    times[name],
                ),
                top1=kept[name].top1,
            )
            for name, (settings, meaning) in ways.items()
        )

    def _split(self, found: Measured) -> tuple[np.ndarray, np.ndarray]:
        """Divergences of the positions that were read in one call, and of those that were decoded."""
        kl, read, decoded, at = found.rows["kl"], [], [], 0
        for window in self.reference.windows:
            split = at + len(window) - self.tail
            read.append(kl[at:split])
            decoded.append(kl[split : at + len(window)])
            at += len(window)
        return np.concatenate(read), np.concatenate(decoded)

    def _once(self, settings: Mapping[str, Any]) -> dict[str, float]:
        """Rates of one fresh process, all better when larger."""
        action = {"do": "bench", "prompt": self.prompt, "tokens": self.speed.decode, "repeat": self.speed.repeat}
        overrides = {"sampler_type": "greedy", **settings}
        run = run_model(self.config, [action], overrides=overrides, timeout_s=self.timeout_s).require(str(self.config))
        bench = run.results[0]
        assert bench is not None
        return {
            "decode": bench["decode_tokens_per_s"],
            "prefill": bench["prefill_tokens_per_s"],
            "load": 1 / run.load["load_s"],
            "memory": 1 / max(bench["peak_rss"], 1),
        }

    def uses(self) -> tuple[UseTrial, ...]:
        """What ways of use save in their best case."""
        found = {"kept history": self._kept_history, "lookahead": self._lookahead}
        trials = []
        for use in USES:
            if use.unmeasured:
                trials.append(UseTrial(use.name, use.meaning, None, f"not measured: {use.unmeasured}"))
                continue
            try:
                times, note = found[use.name]()
                trials.append(UseTrial(use.name, use.meaning, times, note))
            except LadingError as error:
                trials.append(UseTrial(use.name, use.meaning, None, f"failed: {error.diagnostics[0].message}"))
        return tuple(trials)

    def _kept_history(self) -> tuple[float, str]:
        """Reading the second half of a prompt behind the first, beside reading all of it."""
        half = len(self.prompt) // 2
        whole = {"do": "forward", "pieces": [self.prompt], "keep": "none"}
        parts = {"do": "forward", "pieces": [self.prompt[:half], self.prompt[half:]], "keep": "none"}
        run = self._run([whole, parts] * (ROUNDS + 1), {})
        all_of_it = [run[number]["piece_s"][0] for number in range(2, len(run), 2)]
        rest = [run[number]["piece_s"][1] for number in range(3, len(run), 2)]
        times = statistics.median(all_of_it) / statistics.median(rest)
        return times, f"the last {len(self.prompt) - half} of {len(self.prompt)} tokens read behind the others"

    def _lookahead(self) -> tuple[float, str]:
        """Greedy continuation of a text that repeats, with lookahead and without, by the runtime's own loop."""
        piece = self.prompt[: min(24, len(self.prompt))]
        prompt = [*piece] * max(2, len(self.prompt) // len(piece))
        action = {"do": "generate", "prompt": prompt, "tokens": LOOKED_UP}
        plain, ahead = (
            self._run([action] * ROUNDS, {"speculative_type": kind} if kind else {}) for kind in ("", "lookahead")
        )
        rates = [
            statistics.median(len(item["ids"]) / max(item["decode_s"], 1e-9) for item in run) for run in (plain, ahead)
        ]
        equal = sum(a == b for a, b in zip(plain[0]["ids"], ahead[0]["ids"], strict=False))
        same = (
            "the same tokens"
            if plain[0]["ids"] == ahead[0]["ids"]
            else f"the first {equal} of {LOOKED_UP} tokens equal"
        )
        return rates[1] / rates[0], f"generating behind {len(prompt)} tokens that repeat every {len(piece)}, {same}"

    def _run(self, actions: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        overrides = {"sampler_type": "greedy", **settings}
        run = run_model(self.config, actions, overrides=overrides, timeout_s=self.timeout_s).require(str(self.config))
        return [item for item in run.results if item is not None]


def judged(
    name: str,
    settings: Mapping[str, Any],
    meaning: str,
    usual: tuple[np.ndarray, np.ndarray],
    found: tuple[np.ndarray, np.ndarray],
    usual_rates: Sequence[Mapping[str, float]],
    rates: Sequence[Mapping[str, float]],
) -> Trial:
    """The trial of settings from divergences by position (read, decoded) and rates by round, and the usual ones'."""
    gaps = [after - before for before, after in zip(usual, found, strict=True)]
    more = [float(gap.mean()) for gap in gaps]
    errors = [float(gap.std() / np.sqrt(len(gap))) for gap in gaps]
    room = [COST * max(float(before.mean()), LEAST_KL) for before in usual]
    shares = {
        rate: tuple(one[rate] / other[rate] for one, other in zip(rates, usual_rates, strict=True)) for rate in RATES
    }
    costs = any(m > r for m, r in zip(more, room, strict=True))
    unsure = any(m + 2 * e > r for m, e, r in zip(more, errors, room, strict=True))
    nearer = any(m + 2 * e < -r for m, e, r in zip(more, errors, room, strict=True))
    slower = any(statistics.median(values) < 1 - GAIN for values in shares.values())
    faster = any(min(values) > 1 and statistics.median(values) >= 1 + GAIN for values in shares.values())
    order = {"usual": not settings, "costs": costs, "unsure": unsure, "slower": slower, "better": faster or nearer}
    verdict = next((name for name, holds in order.items() if holds), "equal")
    return Trial(
        name,
        settings,
        meaning,
        kl=float(found[0].mean()),
        kl_decode=float(found[1].mean()),
        more=more[0],
        error=errors[0],
        more_decode=more[1],
        error_decode=errors[1],
        decode=shares["decode"],
        prefill=shares["prefill"],
        load=shares["load"],
        memory=shares["memory"],
        verdict=verdict,
    )


def _combined(trials: Sequence[Trial]) -> dict[str, Any]:
    """For each key the value that gains most, of those that are better."""
    best: dict[str, tuple[float, Mapping[str, Any]]] = {}
    for trial in trials:
        if trial.verdict != "better":
            continue
        key = next(iter(trial.settings))
        gain = sum(float(np.log(statistics.median(getattr(trial, rate)))) for rate in RATES)
        if key not in best or gain > best[key][0]:
            best[key] = (gain, trial.settings)
    return {key: value for _, settings in best.values() for key, value in settings.items()}


__all__ = ["Outcome", "Trial", "UseTrial", "judged", "try_settings"]
