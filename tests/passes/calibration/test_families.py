"""Passes that fold into weights leave the logits of every family as they are, or refuse its form."""

from __future__ import annotations

import numpy as np
import pytest

from ir.base.diag import LadingError
from ir.evaluate.evaluator import evaluate
from passes.framework.manager import PassManager
from tests.support.decoders.families import FORMS
from tests.support.decoders.forms import VOCABULARY, decoder

IDS = np.random.default_rng(3).integers(0, VOCABULARY, (1, 20))
BAR = 2e-5
"""Largest difference over the largest logit."""

SEEN = {"phi", "cohere", "cohere2", "stablelm", "stablelm2", "gpt-neox"}
"""Families whose norms see a rotation of the features."""
FIXED = {"gemma3", "olmo2", "products of rows alone"}
"""Forms whose stream cannot be turned: norms stand behind attention, or are read by reshapes."""


@pytest.mark.parametrize("step", ["join-linears", "rotate", "rotate{residual=always}"])
@pytest.mark.parametrize("name", FORMS)
def test_logits_stay_or_the_form_is_refused(name, step):
    graph = decoder(FORMS[name], seed=1)
    PassManager("infer-types").run(graph)  # attention with sinks is defined by the type of its mask
    (want,) = evaluate(graph, {"input_ids": IDS}).values()
    manager = PassManager(f"spell-linears,{step}")
    if "residual" in step and name in SEEN | FIXED:
        with pytest.raises(LadingError) as caught:
            manager.run(graph)
        assert caught.value.code == ("Q461" if name in SEEN else "Q462")
        return
    manager.run(graph)
    (got,) = evaluate(graph, {"input_ids": IDS}).values()
    assert np.abs(got - want).max() / np.abs(want).max() < BAR
