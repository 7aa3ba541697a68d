"""Weights that came quantized are fixed for the choice of precision: counted by limits, and no matter of rules."""

from __future__ import annotations

import pytest

from frontends.checkpoint.load import load
from ir.base.diag import LadingError
from ir.facts.precision import PrecisionPlan
from ir.graph.graph import Graph
from ir.target.target import default_target
from passes.framework.manager import PassManager
from passes.precision.planned_weights import kept_weights, weights_of
from tests.support.checkpoints import make_checkpoint

pytestmark = pytest.mark.mnn  # what a runtime feeds, and its sizes, come with one


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("kept"), "qwen2", tie_word_embeddings=True)


def quantized(checkpoint, options: str) -> Graph:
    """A decoder whose weights are dequantized constants, as those of a file made by others."""
    graph = load(checkpoint)
    PassManager(f"infer-types,discover-inputs,assign-precision{options},insert-qdq").run(graph)
    return graph


def refused(graph: Graph, options: str) -> LadingError:
    with pytest.raises(LadingError) as caught:
        PassManager(f"assign-precision{options}").run(graph, given=("typed",))
    return caught.value


def test_a_graph_whose_every_weight_is_kept_leaves_nothing_to_choose(checkpoint):
    graph = quantized(checkpoint, "{bits=4 logits-bits=4 block=32}")
    # Table and logits matrix are one.
    assert not weights_of(graph) and len(kept_weights(graph)) == 15
    total = default_target().fixed_bytes(graph)
    for limit in ("{budget=6bpw}", f"{{max-size={total}B}}", "{max-kl=0.1}", ""):
        PassManager(f"assign-precision{limit}").run(graph, given=("typed",))
        assert graph.required_fact(PrecisionPlan) == PrecisionPlan()


def test_a_limit_that_kept_weights_break_says_how_to_have_them_stored_anew(checkpoint):
    graph = quantized(checkpoint, "{bits=4 logits-bits=4 block=32}")
    for limit in ("{budget=4.5bpw}", f"{{max-size={default_target().fixed_bytes(graph) - 1}B}}"):
        found = refused(graph, limit).diagnostics[0]
        assert found.code == "Q451" and "requantize" in found.hint
    assert "budget=6.000bpw" in refused(graph, "{budget=4.5bpw}").diagnostics[0].message


def test_rules_for_kept_weights_are_errors_that_say_so(checkpoint):
    graph = quantized(checkpoint, "{keep=[re:o_proj]}")
    names = {weight.name for weight in weights_of(graph)}
    assert names == {f"model.layers.{layer}.self_attn.o_proj.weight" for layer in range(2)}
    found = refused(graph, "{keep=[*q_proj*]}").diagnostics[0]
    assert found.code == "Q412" and "came quantized" in found.message and "requantize" in found.hint
    PassManager("assign-precision{keep=[*o_proj*]}").run(graph, given=("typed",))
    assert set(graph.required_fact(PrecisionPlan).storage) == names


def test_only_floats_asked_for_make_a_plan_exact(checkpoint):
    for options, exact in (
        ("{bits=32 logits-bits=32}", True),
        ("{bits=32}", False),
        ("", False),
        ("{budget=8bpw}", False),
    ):
        graph = quantized(checkpoint, "{bits=4 logits-bits=4}")
        PassManager(f"assign-precision{options}").run(graph, given=("typed",))
        assert graph.required_fact(PrecisionPlan).exact == exact
        data = graph.required_fact(PrecisionPlan).to_data()
        assert PrecisionPlan.from_data(data) == graph.required_fact(PrecisionPlan)
