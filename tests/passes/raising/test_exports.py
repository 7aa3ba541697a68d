"""Live exports are brought into the standard form and keep their numbers; changed ones give another finding, the numbers
of the changed model, or a refusal."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import pytest

from frontends.onnx.load import load
from ir.base.diag import LadingError
from ir.evaluate.evaluator import evaluate
from ir.facts.raised import Raised
from ir.graph.graph import Graph
from passes.framework.context import PassContext
from passes.framework.load import load as pipeline
from passes.framework.manager import PassManager
from tests.support.exports import Export, export, run
from tests.support.exports.mutations import MUTATIONS, one_weight, window

FULL = {"mask": True, "positions": True, "history": True}
EXACT = 1e-5
LENGTHS = (3, 41)

RAISED = {
    ("qwen2", "script"): FULL,
    ("qwen2-tied", "script"): {**FULL, "opset": 14, "rows": "gather"},
    ("llama", "script"): {"opset": 15, "positions": True, "rows": "slice"},
    ("llama3", "script"): {},
    ("mistral", "script"): {**FULL, "opset": 18, "attention": "sdpa"},
    ("gemma", "script"): {"mask": True, "positions": True, "rows": "last"},
    ("gemma2", "script"): FULL,
    ("gemma3", "script"): {"mask": True, "present": True},
    ("phi", "script"): {**FULL, "batch": False},
    ("phi3", "script"): {"mask": True},
    ("stablelm", "script"): {**FULL, "opset": 17},
    ("glm", "dynamo"): {"opset": 20, "mask": True, "history": True},
    ("qwen3", "dynamo"): {"opset": 24, "attention": "sdpa", **FULL},
    ("cohere", "dynamo"): {"opset": 19, "positions": True},
    ("mistral", "dynamo"): {"opset": 18, "batch": False},
}
FINDINGS = {
    "qwen2": {"4 heads of 16 on 2, scale 0.25, half rope of 16"},
    "llama3": {"4 heads of 16 on 2, scale 0.25, half rope of 16"},
    "mistral": {"4 heads of 16 on 2, scale 0.25, window 8, half rope of 16"},
    "gemma2": {
        "4 heads of 16 on 2, scale 0.204124, window 8, cap 50, half rope of 16",
        "4 heads of 16 on 2, scale 0.204124, cap 50, half rope of 16",
    },
    "phi": {"4 heads of 16 on 2, scale 0.25, half rope of 8"},
    "glm": {"4 heads of 16 on 2, scale 0.25, interleaved rope of 8"},
    "cohere": {"4 heads of 16 on 2, scale 0.25, interleaved rope of 16"},
    "qwen3": {"4 heads of 16 on 2, queries and keys normalized before the rotation, scale 0.25, half rope of 16"},
}


def lifted(model: onnx.ModelProto | str) -> Graph:
    """The graph of a model in the standard form."""
    graph = load(model)
    PassManager(pipeline("lift-decoder")).run(graph, PassContext())
    return graph


def attention(graph: Graph) -> list[str]:
    """What each attention was found to be."""
    return [region.finding for region in graph.required_fact(Raised).regions if region.kind == "attention"]


def difference(graph: Graph, model: onnx.ModelProto | str, made: Export) -> float:
    """The largest difference between the graph's logits and those of a model in onnxruntime, relative to the largest."""
    worst = 0.0
    for tokens in LENGTHS:
        feeds = made.feeds(seq=tokens)
        wanted = run(model, feeds)["logits"]
        (ids,) = (feeds[name] for name, role in made.roles.items() if role == "ids")
        held = {value.name: feeds.get(value.name, ids) for value in graph.inputs}
        found = evaluate(graph, held)[graph.outputs[0].name]
        assert found.shape == wanted.shape
        worst = max(worst, float(np.abs(found - wanted).max() / np.abs(wanted).max()))
    return worst


@pytest.mark.parametrize(("family", "exporter"), RAISED, ids="-".join)
def test_an_export_keeps_its_numbers(family, exporter):
    made = export(family, exporter, **RAISED[family, exporter])
    graph = lifted(str(made.path))
    kept = {"token-ids"} | ({"row-choice"} if "rows" in made.roles.values() else set())
    assert {
        port.kind for port in graph.required_fact(Raised).inputs if port.name in {v.name for v in graph.inputs}
    } == kept
    assert graph.inputs[0].shape[0] == 1
    if family in FINDINGS:
        assert set(attention(graph)) == FINDINGS[family]
    assert difference(graph, made.path, made) < EXACT


def test_what_an_input_holds_is_told_without_its_name():
    made = export("qwen2", "script", **FULL)
    model = made.model()
    other = {item.name: f"in.{place}" for place, item in enumerate(model.graph.input)}
    for item in model.graph.input:
        item.name = other[item.name]
    for node in model.graph.node:
        node.input[:] = [other.get(name, name) for name in node.input]
    ports = {port.name: port.kind for port in lifted(model).required_fact(Raised).inputs}
    words = {
        "ids": "token-ids",
        "mask": "attention-mask",
        "positions": "positions",
        "key": "history",
        "value": "history",
    }
    assert ports == {other[name]: words[role] for name, role in made.roles.items()}


CHANGED = [
    *(("qwen2", "script", name) for name in MUTATIONS),
    *(("qwen3", "dynamo", name) for name in ("rope style", "scale", "look ahead", "swapped groups", "shifted keys")),
    # Positions that were taken for a mask would mark sequences of one token each, whose attention is anything.
    *(("cohere", "dynamo", name) for name in ("scale", "look ahead", "swapped groups")),
]
SAME_ATTENTION = ("epsilon", "activation")


@cache
def _before(family: str, exporter: str) -> list[str]:
    return attention(lifted(str(export(family, exporter, **RAISED[family, exporter]).path)))


@pytest.mark.parametrize(("family", "exporter", "name"), CHANGED, ids=lambda item: item.replace(" ", "-"))
def test_a_changed_export_is_found_to_be_another_or_refused(family, exporter, name):
    made = export(family, exporter, **RAISED[family, exporter])
    changed = MUTATIONS[name](made.model())
    try:
        graph = lifted(changed)
    except LadingError as error:
        assert error.code.startswith("P38"), error
        return
    assert (attention(graph) != _before(family, exporter)) == (name not in SAME_ATTENTION)
    assert difference(graph, changed, made) < EXACT


@pytest.mark.parametrize("exporter", ["script", "dynamo"])
def test_another_window_is_found(exporter):
    made = export("mistral", exporter, **RAISED["mistral", exporter])
    changed = window(made.model(), 8, 5)
    graph = lifted(changed)
    assert {finding.split(", ")[2] for finding in attention(graph)} == {"window 5"}
    assert difference(graph, changed, made) < EXACT


def test_a_moved_weight_moves_the_logits():
    made = export("llama3", "script", **RAISED["llama3", "script"])
    changed = one_weight(made.model())
    graph = lifted(changed)
    assert attention(graph) == _before("llama3", "script")
    assert difference(graph, changed, made) < EXACT
    assert difference(graph, made.path, made) > 1e-3
