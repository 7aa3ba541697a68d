"""Live exports are brought into the standard form and keep their numbers; changed ones give another finding, the numbers
of the changed model, or a refusal."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import numpy as np
import onnx
import pytest

from frontends.onnx.load import load
from ir.base.diag import LadingError
from ir.evaluate.evaluator import evaluate
from ir.facts.raised import Raised
from ir.graph.graph import Graph
from ir.tensor.inline import InlineTensor
from passes.framework.context import PassContext
from passes.framework.load import load as pipeline
from passes.framework.manager import PassManager
from passes.inputs.language_model import look_up_rows, rows_input
from tests.support.exports import Export, export, run
from tests.support.exports.families import torch_model
from tests.support.exports.mutations import MUTATIONS, one_weight, window
from tests.support.exports.variants import undeclared

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
    ("one-layer", "script"): {"mask": True, "history": True, "batch": False},
    ("yarn", "script"): {**FULL, "opset": 16},
    ("wide-window", "script"): {**FULL, "opset": 18, "attention": "sdpa"},
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
    "one-layer": {"6 heads of 24 on 1, scale 0.204124, half rope of 24"},
    "yarn": {"4 heads of 32, scale 0.176777, half rope of 32"},
    "wide-window": {"8 heads of 8 on 2, scale 0.353553, window 20, half rope of 8"},
    "glm": {"4 heads of 16 on 2, scale 0.25, interleaved rope of 8"},
    "cohere": {"4 heads of 16 on 2, scale 0.25, interleaved rope of 16"},
    "qwen3": {"4 heads of 16 on 2, queries and keys normalized before the rotation, scale 0.25, half rope of 16"},
}


def lifted(model: onnx.ModelProto | str, rows: np.ndarray | None = None) -> Graph:
    """The graph of a model in the standard form; one that takes rows of its embedding gets the embedding."""
    graph = load(model)
    if rows is not None:
        look_up_rows(graph, rows_input(graph), InlineTensor(rows))
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


@pytest.mark.parametrize(("family", "exporter"), RAISED, ids=["-".join(key) for key in RAISED])
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


@pytest.mark.parametrize("tokens", [5, 20, 100])
@pytest.mark.parametrize("exporter", ["script", "dynamo"])
def test_another_window_is_found(exporter, tokens):
    made = export("mistral", exporter, **RAISED["mistral", exporter])
    changed = window(made.model(), 8, tokens)
    graph = lifted(changed)
    assert {finding.split(", ")[2] for finding in attention(graph)} == {f"window {tokens}"}
    assert difference(graph, changed, made) < EXACT


def test_a_moved_weight_moves_the_logits():
    made = export("llama3", "script", **RAISED["llama3", "script"])
    changed = one_weight(made.model())
    graph = lifted(changed)
    assert attention(graph) == _before("llama3", "script")
    assert difference(graph, changed, made) < EXACT
    assert difference(graph, made.path, made) > 1e-3


# ---- operators of onnxruntime ----

CONTRIB = {
    "builder": ("qwen2", "genai", {}),
    "builder, windows and caps": ("gemma2", "genai", {"windowed_kv_cache": "false"}),
    "builder, last row": ("llama", "genai", {"prune_lm_head": "true"}),
    "builder, 4 bits": ("qwen2-tied", "genai", {"precision": "int4", "accuracy_level": "0"}),
    "builder, 8 bits": ("llama3", "genai", {"precision": "int8", "accuracy_level": "0"}),
    "builder, 4 bits as DequantizeLinear": ("phi3", "genai", {"precision": "int4", "use_qdq": "true"}),
    "one operand": ("mistral", "contrib", {"style": "packed"}),
    "three operands": ("llama3", "contrib", {"style": "separate"}),
    "rotation of its own": ("qwen2", "contrib", {"style": "rotary"}),
    "repeated heads": ("llama", "contrib", {"style": "multi-head"}),
}


@pytest.mark.parametrize("name", CONTRIB)
def test_operators_of_onnxruntime_keep_their_numbers(name):
    family, exporter, options = CONTRIB[name]
    made = export(family, exporter, **options)
    graph = lifted(str(made.path))
    heads = "4 heads of 16" if name == "repeated heads" else "4 heads of 16 on 2"
    wanted = {f"{heads}, scale 0.25, {'window 8, ' * (family == 'mistral')}half rope of 16"}
    assert set(attention(graph)) == FINDINGS["gemma2"] if family == "gemma2" else wanted
    assert difference(graph, made.path, made) < EXACT


@pytest.mark.parametrize("name", ["rope style", "scale"])
def test_changed_operators_of_onnxruntime_are_found_to_be_others(name):
    made = export("mistral", "contrib", style="packed")
    changed = MUTATIONS[name](made.model())
    graph = lifted(changed)
    wanted = {"rope style": "scale 0.25, window 8, interleaved", "scale": "scale 0.375, window 8, half"}[name]
    assert set(attention(graph)) == {f"4 heads of 16 on 2, {wanted} rope of 16"}
    assert difference(graph, changed, made) < EXACT
    narrower = window(made.model(), 8, 3)
    assert difference(lifted(narrower), narrower, made) < EXACT


def test_halves_become_floats_that_are_computed_exactly():
    made = export("stablelm", "script", **FULL, half=True)
    graph = lifted(str(made.path))
    ids = made.feeds(seq=21)["input_ids"]
    found = evaluate(graph, {graph.inputs[0].name: ids})[graph.outputs[0].name]
    wanted = of_torch("stablelm", ids, half=True)
    assert np.abs(found - wanted).max() < EXACT * np.abs(wanted).max()


# ---- rows of the embedding as the input ----


def of_torch(family: str, ids: np.ndarray, half: bool = False) -> np.ndarray:
    """Logits of a checkpoint, whose weights are rounded to halves first if asked, in single precision."""
    import torch

    model = deepcopy(torch_model(family, half=half)).float()
    with torch.no_grad():
        return model(torch.from_numpy(ids), use_cache=False).logits.numpy()


def embedding(family: str) -> np.ndarray:
    """The rows of a checkpoint's embedding."""
    return torch_model(family).get_input_embeddings().weight.detach().numpy()


def test_rows_of_an_embedding_are_looked_up():
    made = export("qwen3", "script", **FULL, embeddings=True)
    graph = lifted(str(made.path), embedding("qwen3"))
    ids = np.random.default_rng(0).integers(0, 320, (1, 21))
    found = evaluate(graph, {graph.inputs[0].name: ids})[graph.outputs[0].name]
    wanted = of_torch("qwen3", ids)
    assert np.abs(found - wanted).max() < EXACT * np.abs(wanted).max()


@pytest.mark.parametrize(("family", "fused"), [("qwen2", True), ("qwen3", True), ("llama3", False)])
@pytest.mark.parametrize("dangling", [False, True], ids=["declared", "dangling"])
def test_the_form_of_the_exporter_of_mnn_keeps_its_numbers(family, fused, dangling):
    model = export(family, "llm-exporter", fused=fused).model()
    graph = lifted(undeclared(model, "logits_index") if dangling else model, embedding(family))
    assert graph.inputs[0].name == "logits_index" or graph.inputs[1].name == "logits_index"
    ids = np.random.default_rng(0).integers(0, 320, (1, 21))
    for first in (0, -1):
        index = np.array([first], np.int32)
        held = {value.name: ids if value.rank == 2 else index for value in graph.inputs}
        found = evaluate(graph, held)[graph.outputs[0].name]
        wanted = of_torch(family, ids)[:, first:]
        assert np.abs(found - wanted).max() < EXACT * np.abs(wanted).max()
