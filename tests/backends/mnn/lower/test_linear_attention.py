"""Decoders with the gated delta rule, on the releases that have an operator for it."""

from __future__ import annotations

import numpy as np
import pytest

from backends.mnn.target.needs import AVOIDED, runners, warnings
from backends.mnn.target.releases import RELEASES, target
from ir.base.diag import LadingError
from ir.evaluate.evaluator import evaluate
from ir.infer.engine import infer_types
from tests.support.decoders.families import RECURRENT
from tests.support.decoders.forms import VOCABULARY, Form, decoder, logits_in_pieces, written
from tests.support.runs import each_release, pieces, run_actions

BAR = 1e-5
IDS = np.random.default_rng(3).integers(0, VOCABULARY, 30)
PIPELINE = "infer-types,spell-linears,fp32"
OWNERS = [param for param in each_release() if param.values[0] != "3.4.0"]


PROMPTS = {
    "several tokens behind a history": ([pieces(IDS[:4], IDS[4:7], IDS[7:9])], IDS[:9]),
    "as long as the one before a reset": ([pieces(IDS[:9]), pieces(IDS[9:18])], IDS[9:18]),
    "of another length than the one before a reset": ([pieces(IDS[:9]), pieces(IDS[9:16])], IDS[9:16]),
    "one token after a reset": ([pieces(IDS[:9]), pieces(IDS[29:])], IDS[29:]),
    "one token at first, then several": ([pieces(IDS[:1], IDS[1:2])], IDS[:2]),
}
"""What is fed, and what the last of it is."""


def wanted(form: Form, ids: np.ndarray) -> np.ndarray:
    graph = decoder(form, seed=1)
    infer_types(graph)
    (logits,) = evaluate(graph, {"input_ids": ids[None]}).values()
    return logits[0]


@pytest.fixture(scope="module", params=RECURRENT)
def family(request, tmp_path_factory):
    """Where one decoder is written, for every release that has the operator, and its logits."""
    folder = tmp_path_factory.mktemp("family")
    logits = wanted(RECURRENT[request.param], IDS)
    written(decoder(RECURRENT[request.param], seed=1), folder, PIPELINE, target=">=3.4.1")
    return folder, logits


@pytest.mark.parametrize("version", OWNERS)
def test_a_prompt_and_one_token_after_another(family, version):
    folder, logits = family
    got = logits_in_pieces(folder, version, [IDS[:13], *([number] for number in IDS[13:])])
    assert np.abs(got - logits).max() < BAR * np.abs(logits).max()


def test_releases_without_the_operator_are_refused_with_those_that_have_it(tmp_path):
    with pytest.raises(LadingError) as caught:
        written(decoder(RECURRENT["qwen3-next"]), tmp_path / "out")
    assert caught.value.code == "P376"
    assert "2 layers need the gated delta rule, and MNN 3.4.0 has no operator" in str(caught.value)
    assert '--target ">=3.4.1"' in str(caught.value) and not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A decoder of the rule alone, and its logits for each way of feeding it."""
    form, folder = RECURRENT["the delta rule alone"], tmp_path_factory.mktemp("alone")
    written(decoder(form, seed=1), folder, PIPELINE, target=">=3.4.1")
    return folder, {name: wanted(form, ids) for name, (_, ids) in PROMPTS.items()}


@pytest.mark.parametrize("version", OWNERS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_releases_lose_their_memory_before_the_prompts_that_their_rows_name(alone, prompt, version):
    folder, logits = alone
    result = run_actions(folder, version, PROMPTS[prompt][0])[-1]
    found = np.concatenate(result["logits"])
    off = np.abs(found - logits[prompt]).max() / np.abs(logits[prompt]).max()
    assert off > 0.1 if prompt in RELEASES[version].lost_memory else off < BAR


def test_what_releases_lose_is_told_with_what_to_do():
    graph = decoder(RECURRENT["qwen3-next"])
    found = warnings(graph, target(">=3.4.1").releases)
    assert [item.code for item in found] == ["P377"] * 3 and {item.hint for item in found} == set(AVOIDED.values())
    assert "on MNN 3.4.1 for" in found[0].message and "MNN 3.4.1, 3.5.0 for" in found[1].message
    assert warnings(decoder(Form()), target().releases) == []
    assert [release.version for release in runners(graph, target().releases)] == ["3.4.1", "3.5.0", "3.6.0", "3.6.1"]
