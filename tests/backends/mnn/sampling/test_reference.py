"""The own reading of transformers' processors, against those processors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from backends.mnn.sampling.reference import out_of_reach, scores
from tests.support.settings.generation import processed

WORDS = 200
ENDS = (2,)


def drawn_settings(rng: np.random.Generator, last: int) -> dict[str, Any]:
    options = {
        "do_sample": [True, True, False],
        "temperature": [0.3, 1.0, 2.2],
        "top_k": [0, 1, 5, 150, 1000],
        "top_p": [0.0, 0.3, 0.9, 1.0],
        "min_p": [0.0, 0.1, 1.0],
        "typical_p": [0.2, 0.9, 1.0],
        "repetition_penalty": [0.8, 1.4, 3.0],
        "suppress_tokens": [[3, 4, 5]],
        "bad_words_ids": [[[7], [2], [last, 9]]],
        "sequence_bias": [[[[11], 2.5], [[last, 12], -3.0]]],
    }
    return {key: rows[rng.integers(len(rows))] for key, rows in options.items() if rng.random() < 0.5}


def test_scores_are_those_of_transformers():
    rng = np.random.default_rng(11)
    for _ in range(150):
        logits = rng.normal(0, 3, WORDS).astype(np.float32)
        history = [int(number) for number in rng.integers(0, WORDS, 12)]
        given = drawn_settings(rng, history[-1])
        got, wanted = scores(given, logits, history, ENDS), processed(given, logits, history, ENDS)
        assert np.array_equal(np.isfinite(got), np.isfinite(wanted)), given
        kept = np.isfinite(got)
        assert np.abs(got[kept] - wanted[kept]).max() < 1e-3, given


@pytest.mark.parametrize(
    ("given", "token", "out"),
    [
        ({}, 1, False), ({}, 2, True), ({}, 3, False),
        ({"do_sample": True, "top_k": 2}, 3, False), ({"do_sample": True, "top_k": 2}, 2, True),
        ({"do_sample": True, "top_k": 0, "suppress_tokens": [3]}, 3, True),
        ({"do_sample": True, "temperature": 0}, 2, True),
        ({"repetition_penalty": 4.0}, 0, False),
    ],
)  # fmt: skip
def test_a_token_is_out_of_reach_unless_rounding_could_bring_it_in(given, token, out):
    logits = np.array([1.0, 3.0, 0.0, 2.999], np.float32)
    assert out_of_reach(given, logits, [1, 3], ENDS, token, 1e-2) is out
