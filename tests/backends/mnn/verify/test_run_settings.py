"""Trials of runtime settings are judged by differences within windows and rounds, not by chance."""

from __future__ import annotations

import numpy as np
import pytest

from backends.mnn.verify.run_settings import RATES, Trial, judged
from backends.mnn.verify.run_settings import _combined as combined

RNG = np.random.default_rng(0)
USUAL = (RNG.random(400) * 2e-3, RNG.random(100) * 3e-3)
NOISE = RNG.normal(0, 1e-3, 400)
NOISE -= NOISE.mean()
EVEN = [dict.fromkeys(RATES, 1.0)] * 3


def rates(*decode, **others):
    return [{**dict.fromkeys(RATES, 1.0), "decode": one, **others} for one in decode]


def verdict(found, measured, settings=None):
    return judged("x", settings or {"attention_mode": 0}, "", USUAL, found, EVEN, measured).verdict


@pytest.mark.parametrize(
    ("read", "decoded", "measured", "wanted"),
    [
        (USUAL[0], USUAL[1], EVEN, "equal"),
        (USUAL[0], USUAL[1], rates(1.04, 1.01, 1.03), "better"),
        # Slower in one round is luck, a hundredth is too little, and one gain does not pay for a loss.
        (USUAL[0], USUAL[1], rates(1.04, 0.99, 1.03), "equal"),
        (USUAL[0], USUAL[1], rates(1.01, 1.01, 1.01), "equal"),
        (USUAL[0], USUAL[1], rates(1.04, 1.05, 1.04, memory=0.9), "slower"),
        # What decoding alone shows counts, and a difference that is not known to be small does too.
        (USUAL[0], USUAL[1] * 1.2, rates(1.2, 1.2, 1.2), "costs"),
        (USUAL[0] + NOISE, USUAL[1], rates(1.2, 1.2, 1.2), "unsure"),
        (USUAL[0] * 1.005, USUAL[1] * 1.005, rates(1.2, 1.2, 1.2), "better"),
        (USUAL[0] * 0.9, USUAL[1] * 0.9, EVEN, "better"),
        (USUAL[0] * 0.9, USUAL[1] * 0.9, rates(0.85, 0.85, 0.85), "slower"),
    ],
)
def test_a_setting_is_better_when_it_gains_and_costs_nothing(read, decoded, measured, wanted):
    assert verdict((read, decoded), measured) == wanted


def test_what_is_shipped_is_the_measure():
    found = judged("as shipped", {}, "", USUAL, USUAL, EVEN, EVEN)
    assert found.verdict == "usual" and found.more == found.more_decode == 0 and set(found.decode) == {1.0}
    assert found.kl == pytest.approx(USUAL[0].mean()) and found.kl_decode == pytest.approx(USUAL[1].mean())


def test_of_each_key_the_value_that_gains_most_is_combined():
    def better(settings, gain):
        ones = {rate: (1.0, 1.0) for rate in RATES} | {"decode": (gain, gain)}
        return Trial("x", settings, "", **ones, verdict="better")

    slow = Trial("x", {"dynamic_option": 2}, "", verdict="slower")
    trials = [better({"attention_mode": 0}, 1.03), better({"attention_mode": 9}, 1.05), slow]
    assert combined([*trials, better({"kvcache_mmap": True}, 1.02)]) == {"attention_mode": 9, "kvcache_mmap": True}
    assert combined([slow]) == {}
