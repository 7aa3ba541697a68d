"""What the settings of transformers become on each release."""

from __future__ import annotations

from typing import Any

import pytest

from backends.mnn.sampling.translate import NEVER, STEPS, Sampler, lost_on, translate
from backends.mnn.target.releases import PROFILES, RELEASES
from frontends.checkpoint.generation import SETTINGS

OLD = [release for release in RELEASES.values() if not release.token_bias]
NEW = [release for release in RELEASES.values() if release.token_bias]
ROWS = 2048


def both(given: dict[str, Any], **ends: str) -> tuple[Sampler, Sampler]:
    """The sampler of 3.4 and that of later releases."""
    texts = {int(key[1:]): text for key, text in ends.items()}
    return translate(given, OLD, ROWS, texts), translate(given, NEW, ROWS, texts)


def same(given: dict[str, Any]) -> dict[str, Any]:
    """The keys that both get."""
    old, new = both(given)
    assert old == new and not old.lost
    return dict(old.config)


def lost(sampler: Sampler) -> dict[str, Any]:
    return {item.setting: item.value for item in sampler.lost}


def drawn(*steps: str, **keys: Any) -> dict[str, Any]:
    """A sampler that draws: the mass of top-p is always written, both spellings of every key."""
    names = {"top_k": "topK", "top_p": "topP", "repetition_penalty": "penalty"}
    keys = {"top_p": 1.0, "temperature": 1.0, **keys}
    spelled = {**keys, **{names[key]: value for key, value in keys.items() if key in names}}
    return {"sampler_type": "mixed", "mixed_samplers": [*steps, "temperature"], **spelled}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"sampler_type": "greedy"}),
        ({"do_sample": False, "temperature": 0.7}, {"sampler_type": "greedy"}),
        ({"do_sample": True}, drawn("topK", top_k=50)),
        ({"do_sample": True, "top_k": 0}, drawn()),
        ({"do_sample": True, "top_k": ROWS}, drawn()),
        ({"do_sample": True, "top_k": 10**30}, drawn()),
        ({"do_sample": True, "top_k": ROWS - 1}, drawn("topK", top_k=ROWS - 1)),
        ({"do_sample": True, "top_k": 1}, {"sampler_type": "greedy"}),
        ({"do_sample": True, "top_p": 0}, {"sampler_type": "greedy"}),
        ({"do_sample": True, "top_p": 1e-50}, {"sampler_type": "greedy"}),
        ({"do_sample": True, "min_p": 1}, {"sampler_type": "greedy"}),
        ({"do_sample": True, "min_p": 0}, drawn("topK", top_k=50)),
        ({"do_sample": True, "temperature": 0}, {"sampler_type": "greedy"}),
        ({"do_sample": True, "temperature": 1e-300}, {"sampler_type": "greedy"}),
        ({"do_sample": True, "temperature": 1}, drawn("topK", top_k=50)),
        (
            {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05},
            drawn("penalty", "topK", "topP", temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.05),
        ),
        (
            {"repetition_penalty": 1.2},
            {
                "sampler_type": "mixed", "mixed_samplers": ["penalty", "greedy"], "penalty": 1.2,
                "repetition_penalty": 1.2,
            },
        ),
        ({"max_new_tokens": 64, "max_length": 32}, {"sampler_type": "greedy", "max_new_tokens": 64}),
        ({"max_length": 4096}, {"sampler_type": "greedy", "max_new_tokens": 4096}),
        ({"max_length": 10**18}, {"sampler_type": "greedy", "max_new_tokens": 2**31 - 1}),
    ],
)  # fmt: skip
def test_what_every_release_has(given, wanted):
    found = same(given)
    assert found == wanted
    # 3.4 takes a number of another kind for none at all.
    for key, value in found.items():
        assert isinstance(value, float) or key not in ("temperature", "topP", "top_p", "penalty", "repetition_penalty")


def test_what_3_5_has_and_3_4_has_not():
    given = {
        "do_sample": True, "typical_p": 0.9, "suppress_tokens": [4, 3, 9999], "bad_words_ids": [[5], [6, 7]],
        "sequence_bias": [[[9], -2], [[3, 4], 5]], "max_time": 2.5,
    }  # fmt: skip
    old, new = both(given)
    assert old.config == drawn("topK", top_k=50)
    assert lost(old) == {key: value for key, value in given.items() if key != "do_sample"}
    added = {"banned_tokens": [3, 4, 5], "logit_bias": {"9": -2.0}, "timeout_ms": 2500}
    assert new.config == drawn("topK", "typical", top_k=50, typical=0.9) | added
    assert lost(new) == {"bad_words_ids": [[6, 7]], "sequence_bias": [[[3, 4], 5]]}
    assert new.kept["bad_words_ids"] == [[5]] and "suppress_tokens" not in old.kept


def test_an_end_token_among_bad_words_is_none():
    assert both({"bad_words_ids": [[2], [5]]}, _2="<end>")[1].config["banned_tokens"] == [5]
    assert both({"suppress_tokens": [2]}, _2="<end>")[1].config["banned_tokens"] == [2]


@pytest.mark.parametrize("setting", [*NEVER, "stop_strings"])
def test_what_no_release_has_is_named(setting):
    values = {
        "min_p": 0.1, "top_h": 0.5, "epsilon_cutoff": 1e-3, "eta_cutoff": 1e-3, "num_beams": 4, "guidance_scale": 1.5,
        "encoder_repetition_penalty": 1.1, "no_repeat_ngram_size": 3, "encoder_no_repeat_ngram_size": 3,
        "num_return_sequences": 2, "begin_suppress_tokens": [3], "forced_bos_token_id": 0, "forced_eos_token_id": 2,
        "exponential_decay_length_penalty": [5, 1.1], "watermarking_config": {"bias": 2}, "penalty_alpha": 0.6,
        "dola_layers": "high", "constraints": [1], "force_words_ids": [[3]], "token_healing": True,
        "min_new_tokens": 5, "min_length": 5, "stop_strings": ["\n\n"],
    }  # fmt: skip
    given = {setting: values[setting], "do_sample": setting != "penalty_alpha"}
    for sampler in both(given):
        assert lost(sampler) == {setting: values[setting]}
        plain = {"do_sample": given["do_sample"]}
        assert sampler.config == translate(plain, NEW, ROWS, {}).config and setting not in sampler.kept


def test_every_setting_is_translated_or_named():
    written = {"do_sample", "max_new_tokens", "max_length", "max_time", "stop_strings"}
    written |= {"suppress_tokens", "bad_words_ids", "sequence_bias"} | {step.setting for step in STEPS}
    assert written | set(NEVER) == set(SETTINGS) and not written & set(NEVER)


def test_penalties_that_mnn_takes_for_others():
    old, new = both({"repetition_penalty": 0.8})
    assert old == new and old.config == {"sampler_type": "greedy"} and lost(old) == {"repetition_penalty": 0.8}
    assert "repetition_penalty" not in old.kept
    old, new = both({"repetition_penalty": 20})
    assert old == new and lost(old) == {"repetition_penalty": 20} and old.kept == {"repetition_penalty": 10}


def test_a_stop_string_that_is_an_end_token_is_kept():
    given = {"stop_strings": ["<|end|>", "\n"]}
    assert lost(both(given, _7="<|end|>")[0]) == {"stop_strings": ["\n"]}
    assert not both({"stop_strings": "<|end|>"}, _7="<|end|>")[0].lost


def test_3_0_draws_nothing():
    sampler = translate({"do_sample": True, "top_p": 0.5}, [PROFILES["3.0.0"]], ROWS, {})
    assert sampler.config == {"sampler_type": "greedy"} and set(lost(sampler)) == {"do_sample", "repetition_penalty"}


def test_what_is_lost_for_one_reason_is_told_once():
    old, new = both({"do_sample": True, "min_p": 0.1, "typical_p": 0.5})
    found = {item.lost.setting: item.releases for item in lost_on([(NEW, new), (OLD, old)])}
    assert found == {"min_p": tuple(RELEASES), "typical_p": ("3.4.0", "3.4.1")}
