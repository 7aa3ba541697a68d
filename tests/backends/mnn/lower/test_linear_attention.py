"""Decoders with the gated delta rule, on the releases that have an operator for it."""

from __future__ import annotations

import numpy as np
import pytest

from ir.base.diag import LadingError
from ir.evaluate.evaluator import evaluate
from ir.infer.engine import infer_types
from tests.support.decoders.families import RECURRENT
from tests.support.decoders.forms import VOCABULARY, decoder, logits_in_pieces, written
from tests.support.runs import each_release

BAR = 1e-5
IDS = np.random.default_rng(3).integers(0, VOCABULARY, 30)
PIPELINE = "infer-types,spell-linears,fp32"
OWNERS = [param for param in each_release() if param.values[0] != "3.4.0"]


@pytest.fixture(scope="module", params=RECURRENT)
def family(request, tmp_path_factory):
    """Where one decoder is written, for every release that has the operator, and its logits."""
    folder = tmp_path_factory.mktemp("family")
    graph = decoder(RECURRENT[request.param], seed=1)
    infer_types(graph)
    (logits,) = evaluate(graph, {"input_ids": IDS[None]}).values()
    written(graph, folder, PIPELINE, target=">=3.4.1")
    return folder, logits[0]


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
