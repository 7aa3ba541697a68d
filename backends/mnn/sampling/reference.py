"""Which tokens transformers may choose, worked out from its definitions and from nothing of MNN.

The processors of transformers in its order: biases, repetition penalty, forbidden tokens, then, where tokens are drawn,
temperature, top-k, top-p, min-p and typical. Scores of a step are float64 and minus infinity for tokens that are out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from frontends.checkpoint.generation import effective

ROUNDING = 1e-4
"""How far sums of probabilities may be off."""


def scores(given: Mapping[str, Any], logits: np.ndarray, history: Sequence[int], ends: Collection[int]) -> np.ndarray:
    """Scores float64 [vocabulary] that the token is drawn or chosen by.

    Args:
        given: settings as in ``generation_config.json``.
        logits: float [vocabulary].
        history: ids of the prompt and of what was generated.
        ends: ids that end generation.
    """
    settings = effective(given)
    found = _biased(settings, logits.astype(np.float64), history, ends)
    if not settings["do_sample"]:
        return found
    if settings["temperature"] == 0:
        return _kept(found, found >= found.max())
    found = found / settings["temperature"]
    if 0 < settings["top_k"] < len(found):
        found = _kept(found, found >= np.partition(found, -settings["top_k"])[-settings["top_k"]])
    if settings["top_p"] < 1:
        found = _top_p(found, settings["top_p"])
    if settings["min_p"]:
        odds = probabilities(found)
        found = _kept(found, odds >= settings["min_p"] * odds.max())
    if settings["typical_p"] < 1:
        found = _typical(found, settings["typical_p"])
    return found


def out_of_reach(
    given: Mapping[str, Any],
    logits: np.ndarray,
    history: Sequence[int],
    ends: Collection[int],
    token: int,
    slack: float,
) -> bool:
    """Whether a token cannot have been chosen, whatever was rounded.

    `slack` is how far logits may be off: a token whose logit is so near to that of a possible one is possible too. Sums of
    probabilities may be off by `ROUNDING`.
    """
    wider = {key: min(1.0, given[key] + ROUNDING) for key in ("top_p", "typical_p") if key in given}
    found = scores({**given, **wider}, logits, history, ends)
    possible = np.isfinite(found) if effective(given)["do_sample"] else found >= found.max()
    if possible[token]:
        return False
    biased = _biased(effective(given), logits.astype(np.float64), history, ends)
    nearest = np.abs(biased[possible] - biased[token]).min() if np.isfinite(biased[token]) else np.inf
    return bool(nearest > slack)


def probabilities(found: np.ndarray) -> np.ndarray:
    """Probabilities float64 of scores; 0 for those that are out."""
    weights = np.exp(found - found.max())
    return weights / weights.sum()


def _kept(found: np.ndarray, keep: np.ndarray) -> np.ndarray:
    return np.where(keep, found, -np.inf)


def _biased(
    settings: Mapping[str, Any], found: np.ndarray, history: Sequence[int], ends: Collection[int]
) -> np.ndarray:
    """What holds whether tokens are drawn or not."""
    for ids, bias in settings["sequence_bias"] or []:
        if list(history[len(history) - len(ids) + 1 :]) == list(ids[:-1]) and ids[-1] < len(found):
            found[ids[-1]] += bias
    seen = np.array(sorted({token for token in history if token < len(found)}), np.int64)
    penalty = settings["repetition_penalty"]
    found[seen] = np.where(found[seen] < 0, found[seen] * penalty, found[seen] / penalty)
    for ids in settings["bad_words_ids"] or []:
        ends_generation = len(ids) == 1 and ids[0] in ends
        begun = list(history[len(history) - len(ids) + 1 :]) == list(ids[:-1])
        if begun and not ends_generation and ids[-1] < len(found):
            found[ids[-1]] = -np.inf
    found[[token for token in settings["suppress_tokens"] or [] if token < len(found)]] = -np.inf
    return found


def _top_p(found: np.ndarray, mass: float) -> np.ndarray:
    """Keep the fewest tokens whose probabilities reach a mass, at least one."""
    order = np.argsort(-found, kind="stable")
    before = np.cumsum(probabilities(found)[order]) - probabilities(found)[order]
    keep = np.zeros(len(found), bool)
    keep[order[(before < mass) | (np.arange(len(order)) == 0)]] = True
    return _kept(found, keep)


def _typical(found: np.ndarray, mass: float) -> np.ndarray:
    """Keep the tokens whose information is nearest to the entropy until their probabilities reach a mass."""
    odds = probabilities(found)
    with np.errstate(divide="ignore", invalid="ignore"):
        information = -np.log(odds)
        entropy = np.nansum(odds * np.where(odds > 0, information, 0))
    order = np.argsort(np.abs(information - entropy), kind="stable")
    last = min(int((np.cumsum(odds[order]) < mass).sum()), len(order) - 1)
    keep = np.zeros(len(found), bool)
    keep[order[: last + 1]] = True
    return _kept(found, keep & np.isfinite(found))


__all__ = ["out_of_reach", "probabilities", "scores"]
