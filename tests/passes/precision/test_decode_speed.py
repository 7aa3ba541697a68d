"""What plans are told of their decoding speed."""

from __future__ import annotations

import pytest

from frontends.checkpoint.load import load
from ir.facts.precision import PrecisionPlan
from passes.framework.manager import PassManager
from passes.framework.pipeline import Pipeline
from passes.inputs.discover_inputs import DiscoverInputs
from passes.precision.assign_precision import AssignPrecision
from passes.precision.decode_speed import reads_of
from passes.precision.planned_weights import weights_of
from tests.support.checkpoints import make_checkpoint

pytestmark = pytest.mark.mnn  # figures of devices come with a runtime


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """A checkpoint whose logits matrix is its embedding."""
    return make_checkpoint(tmp_path_factory.mktemp("tied"), "qwen2", tie_word_embeddings=True)


def planned(folder, **options):
    """Graph, options as they hold, plan, and what was said."""
    graph = load(folder)
    one = AssignPrecision(**options)
    report = PassManager(Pipeline((DiscoverInputs(), one))).run(graph, given=("typed",))
    from ir.target.target import default_target

    return graph, one.preferences(default_target(), one.prepare()), graph.required_fact(PrecisionPlan), report


def slower(report):
    return [item for item in report.all_diagnostics() if item.code == "Q477"]


def test_a_plan_of_three_bits_is_said_to_be_slower_than_four_of_its_size(tied):
    _, _, _, report = planned(tied, bits=3, logits_bits=4, block=64)
    (said,) = slower(report)
    assert said.severity == "warning"
    assert (
        said.message.startswith("on x86 the plan reads ") and "4 bits in every weight at about its size" in said.message
    )
    assert "min-speed=0." in said.hint and "device= names another device" in said.hint


@pytest.mark.parametrize(
    "options",
    [
        {}, {"bits": 4, "logits_bits": 4}, {"block": 0}, {"bits": 8}, {"bits": 16, "logits_bits": 16},
        {"bits": 32, "logits_bits": 32},
    ],
)  # fmt: skip
def test_plans_of_usual_speed_are_passed_over(tied, options):
    assert not slower(planned(tied, **options)[3])


def test_what_is_read_follows_device_and_release(tied):
    graph, on_x86, plan, _ = planned(tied, bits=3, block=0, logits_bits=4)
    weights = weights_of(graph)
    found = reads_of(weights, plan.storage, plan.tied, on_x86)
    layers = sum(weight.elements for weight in weights if weight.role == "layer")
    rows = sum(weight.rows for weight in weights if weight.role != "embedding")
    head = next(weight for weight in weights if weight.role == "logits")
    assert found.streamed == layers + head.elements // 2 + 16 * rows
    on_arm = reads_of(weights, plan.storage, plan.tied, planned(tied, bits=3, block=0, device="arm86")[1])
    assert on_arm == found  # releases before 3.6.0 are among those of the target
