"""Every release draws the tokens that transformers draws, with the settings as written, and ends where it should."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.mnn.run.native import run_model
from backends.mnn.target.releases import RELEASES
from backends.mnn.write.configs import config_for
from tests.support.runs import compiled, each_release, interpreters
from tests.support.settings.generation import edited, processed, surprise

EXACT = {"memory": "normal", "precision": "high", "thread_num": 1}
PROMPTS = ([5, 6, 7, 8], [100, 201, 35, 66, 300], [1500, 12, 77])
TOKENS = 170
FAR = 5.0
"""Standard deviations: once in two million runs by chance."""

SETTINGS: dict[str, dict[str, Any]] = {
    "nothing but do_sample": {"do_sample": True},
    "everything at once": {
        "do_sample": True, "temperature": 1.3, "top_k": 30, "top_p": 0.93, "repetition_penalty": 1.15,
        "suppress_tokens": [201, 223], "bad_words_ids": [[16]], "sequence_bias": [[[9], 2.5]],
    },
    "no top-k, a little typical": {"do_sample": True, "top_k": 0, "typical_p": 0.7},
    "the most likely token, penalized": {"repetition_penalty": 1.3, "temperature": 0.2},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    @cache
    def make(name: str) -> Path:
        base = tmp_path_factory.mktemp("sampling")
        return compiled(edited(base / "model", generation_config=SETTINGS[name]), base / "out", "int8")

    return make


def sample(folder: Path, version: str, tokens: int = TOKENS) -> list[tuple[list[int], int, np.ndarray]]:
    """History, drawn token and logits of every step on a release, with the sampler of the folder."""
    actions = [{"do": "sample", "prompt": prompt, "tokens": tokens} for prompt in PROMPTS]
    config = config_for(folder, version)
    run = run_model(config, actions, overrides=EXACT, interpreter=interpreters()[version], timeout_s=300)
    found = []
    for prompt, result in zip(PROMPTS, run.require(str(config)).results, strict=True):
        assert len(result["ids"]) == tokens
        for place, (token, logits) in enumerate(zip(result["ids"], result["logits"], strict=True)):
            found.append(([*prompt, *result["ids"][:place]], token, logits[-1]))
    return found


def held(given: dict[str, Any], version: str) -> dict[str, Any]:
    """The settings without those that are named as lost on a release; see `test_translate`."""
    lost = () if RELEASES[version].token_bias else ("typical_p", "suppress_tokens", "bad_words_ids", "sequence_bias")
    return {key: value for key, value in given.items() if key not in lost}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("version", each_release())
def test_tokens_are_those_of_transformers(folder_of, name, version):
    given = held(SETTINGS[name], version)
    steps = sample(folder_of(name), version)
    scores = [processed(given, logits, history) for history, _, logits in steps]
    tokens = [token for _, token, _ in steps]
    if not given.get("do_sample"):
        assert [int(row.argmax()) for row in scores] == tokens
        return
    outside = [token for row, token in zip(scores, tokens, strict=True) if not np.isfinite(row[token])]
    # A token on the very edge of top-p may fall on either side by rounding.
    assert len(outside) <= 1
    inside = [(row, token) for row, token in zip(scores, tokens, strict=True) if np.isfinite(row[token])]
    assert abs(surprise(*zip(*inside, strict=True))) < FAR


def test_the_runtimes_own_defaults_would_be_seen(folder_of, tmp_path):
    version = next(reversed(interpreters()))
    folder = tmp_path / "own"
    shutil.copytree(folder_of("nothing but do_sample"), folder)
    config = config_for(folder, version)
    kept = {key: value for key, value in json.loads(config.read_text()).items() if key.lower()[:3] != "top"}
    config.write_text(json.dumps({**kept, "mixed_samplers": ["topK", "topP", "temperature"]}))
    steps = sample(folder, version, 4 * TOKENS)
    scores = [processed({"do_sample": True}, logits, history) for history, _, logits in steps]
    # About 10 standard deviations are expected.
    assert abs(surprise(scores, [token for _, token, _ in steps])) > FAR - 1


# ---- the end ----


@pytest.fixture(scope="module")
def ending(tmp_path_factory):
    """Two folders of one model: nothing ends the first; ids from three files end the second."""
    base = tmp_path_factory.mktemp("ending")
    first = compiled(edited(base / "model"), base / "out", "int8")
    version = next(iter(interpreters()))
    action = {"do": "greedy", "prompt": PROMPTS[0], "tokens": 40}
    run = run_model(config_for(first, version), [action], interpreter=interpreters()[version])
    ids = run.require().results[0]["ids"]
    places = [ids.index(token) for token in dict.fromkeys(ids)][1:4]
    generation, config, named = (ids[place] for place in places)
    vocab = json.loads((base / "model" / "tokenizer.json").read_text())["model"]["vocab"]
    text = next(text for text, token in vocab.items() if token == named)
    files = {
        "generation_config": {"eos_token_id": [generation, generation]},
        "config": {"eos_token_id": config},
        "tokenizer_config": {"eos_token": {"content": text}},
    }
    return first, compiled(edited(base / "ends", **files), base / "ended", "int8"), ids, places


@pytest.mark.parametrize("version", each_release())
def test_generation_ends_at_every_id_of_every_file(ending, version):
    endless, folder, ids, places = ending
    actions = [{"do": "generate", "prompt": [*PROMPTS[0], *ids[:place]], "tokens": 8} for place in places]
    stops = {"do": "stops", "ids": [*(ids[place] for place in places), ids[0]]}
    python = interpreters()[version]
    *ended, tried = run_model(config_for(folder, version), [*actions, stops], interpreter=python).require().results
    assert [result["ids"] for result in ended] == [[ids[place]] for place in places]
    assert tried["stops"] == [True, True, True, False]
    *going, untried = run_model(config_for(endless, version), [*actions, stops], interpreter=python).require().results
    assert [len(result["ids"]) for result in going] == [8, 8, 8]
    assert untried["stops"] == [False] * 4
