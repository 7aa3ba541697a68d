"""Decoders in plain operators are brought into the standard form by what they compute, or refused by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from frontends.onnx.load import load
from ir.base.diag import LadingError
from ir.evaluate.evaluator import evaluate
from ir.facts.raised import Raised
from ir.graph.graph import Graph
from passes.framework.context import PassContext
from passes.framework.load import load as pipeline
from passes.framework.manager import PassManager
from tests.support.exports.decoders import Written, decoder

CANONICAL = "repeat{max=8}(infer-types,fold,simplify,cse,dce),toposort"
RAISE = f"upgrade-opset,{CANONICAL},raise-decoder,{CANONICAL}"


def raised(form: Written) -> Graph:
    graph = load(decoder(form))
    PassManager(pipeline(RAISE)).run(graph, PassContext())
    return graph


def logits(form: Written, graph: Graph, tokens: int = 37) -> tuple[np.ndarray, np.ndarray]:
    """What onnxruntime makes of the model as it is written, and what the raised graph gives."""
    ids = np.random.default_rng(3).integers(0, form.vocab, (1, tokens))
    session = onnxruntime.InferenceSession(decoder(form).SerializeToString())
    (wanted,) = session.run(None, {"tokens": ids})
    return wanted, evaluate(graph, {"tokens": ids})[graph.outputs[0].name]


def attention(graph: Graph) -> list:
    return [region for region in graph.required_fact(Raised).regions if region.kind == "attention"]


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (Written(), "4 heads of 8 on 2, scale 0.353553, half rope of 8"),
        (Written(style="interleaved"), "4 heads of 8 on 2, scale 0.353553, interleaved rope of 8"),
        (Written(style="none", groups=4), "4 heads of 8, scale 0.353553"),
        (Written(window=5), "4 heads of 8 on 2, scale 0.353553, window 5, half rope of 8"),
        (Written(window=100), "4 heads of 8 on 2, scale 0.353553, window 100, half rope of 8"),
        (
            Written(row_norm=True),
            "4 heads of 8 on 2, queries and keys normalized before the rotation, scale 0.353553, half rope of 8",
        ),
        (Written(scale=0.7, groups=1), "4 heads of 8 on 1, scale 0.7, half rope of 8"),
    ],
)
def test_attention_is_recognised_by_what_it_computes(form, words):
    graph = raised(form)
    assert {region.finding for region in attention(graph)} == {words}
    assert [value.name for value in graph.inputs] == ["tokens"] and graph.inputs[0].shape[0] == 1
    ops = [node.op for node in graph.nodes]
    assert (
        ops.count("Attention") == form.layers
        and ops.count("RMSNormalization") == (4 if form.row_norm else 2) * form.layers + 1
    )
    wanted, found = logits(form, graph, 130)
    assert np.abs(wanted - found).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("activation", "op", "attrs"),
    [("silu", "Swish", {}), ("gelu", "Gelu", {}), ("tanh gelu", "Gelu", {"approximate": "tanh"}), ("tanh", "Tanh", {})],
)
def test_activations_are_told_by_their_values(activation, op, attrs):
    form = Written(activation=activation)
    graph = raised(form)
    found = [node for node in graph.nodes if node.op == op]
    assert len(found) == form.layers and all(dict(node.attrs) == attrs for node in found)
    assert (len([node for node in graph.nodes if node.op == "Mul"]) > 1) == (activation == "tanh")
    wanted, got = logits(form, graph)
    assert np.abs(wanted - got).max() <= 1e-5 * np.abs(wanted).max()


def test_angles_that_change_with_the_position_are_computed_as_the_graph_does():
    form = Written(stretch=2000, layers=1)
    graph = raised(form)
    assert [region.parameters["table"] for region in attention(graph)] == ["computed"]
    wanted, found = logits(form, graph, 2300)
    assert np.abs(wanted - found).max() <= 2e-5 * np.abs(wanted).max()


def test_an_input_is_a_mask_when_attention_fits_with_it_as_one():
    fact = raised(Written(padding="mask")).required_fact(Raised)
    assert [(port.name, port.kind) for port in fact.inputs] == [("tokens", "token-ids"), ("pad", "attention-mask")]


def test_sizes_are_left_to_reshapes():
    form = Written(flat=True)
    graph = raised(form)
    assert [node.name for node in graph.nodes if node.op == "Shape"] == ["input_shape"]
    wanted, found = logits(form, graph)
    assert np.abs(wanted - found).max() <= 1e-5 * np.abs(wanted).max()


def test_learned_positions_are_counted_by_the_runtime():
    form = Written(learned=True, style="none")
    graph = raised(form)
    assert [value.name for value in graph.inputs] == ["tokens"]
    assert [(port.name, port.kind) for port in graph.required_fact(Raised).inputs] == [
        ("tokens", "token-ids"), ("places", "positions"),
    ]  # fmt: skip
    ids = np.random.default_rng(3).integers(0, form.vocab, (1, 19))
    session = onnxruntime.InferenceSession(decoder(form).SerializeToString())
    (wanted,) = session.run(None, {"tokens": ids, "places": np.arange(19)[None]})
    found = evaluate(graph, {"tokens": ids})[graph.outputs[0].name]
    assert np.abs(wanted - found).max() <= 1e-5 * np.abs(wanted).max()


def test_a_mask_that_nothing_declares_is_one_all_the_same():
    form = Written(padding="mask")
    model = decoder(form)
    del model.graph.input[1]
    graph = load(model)
    PassManager(pipeline(RAISE)).run(graph, PassContext())
    assert [value.name for value in graph.inputs] == ["tokens"]
    assert [(port.name, port.role) for port in graph.required_fact(Raised).inputs] == [("tokens", ""), ("pad", "ones")]
    session = onnxruntime.InferenceSession(decoder(form).SerializeToString())
    ids = np.random.default_rng(3).integers(0, form.vocab, (1, 19))
    (wanted,) = session.run(None, {"tokens": ids, "pad": np.ones_like(ids)})
    found = evaluate(graph, {"tokens": ids})[graph.outputs[0].name]
    assert np.abs(wanted - found).max() <= 1e-5 * np.abs(wanted).max()


def test_a_mask_as_a_matrix_is_taken_to_be_causal_with_a_warning():
    graph = load(decoder(Written(padding="matrix")))
    report = PassManager(pipeline(RAISE)).run(graph, PassContext())
    assert [item.code for item in report.all_diagnostics()] == ["P388"]
    assert [port.role for port in graph.required_fact(Raised).inputs] == ["", "allowed"]


def test_the_evidence_is_recorded():
    graph = raised(Written(window=100))
    fact = graph.required_fact(Raised)
    assert [(port.name, port.kind) for port in fact.inputs] == [("tokens", "token-ids")]
    assert [port.kind for port in fact.outputs] == ["logits"]
    assert all(region.difference < 1e-5 and region.nodes > 1 for region in fact.regions)
    found = attention(graph)[0]
    assert found.parameters["window"] == 100 and "masks of 103 tokens" in found.probes and "13 tokens" in found.probes


@pytest.mark.parametrize(
    ("form", "code", "words"),
    [
        (Written(bound=8.0), "P382", "on 13 tokens with large values"),
        (Written(bound=300.0), "P382", "on 13 tokens with large values"),
        (Written(rows=True), "P380", "takes the rows of its embedding as 'inputs_embeds'"),
        (Written(tokens=13), "P381", "exactly 13 tokens"),
        (Written(mask="strided"), "P383", "neither causal nor a window"),
        (Written(stretch=2000, padding="mask"), "P384", "do not follow from positions alone"),
        (Written(logits=False), "P385", "no output of this decoder"),
        (Written(padding="content"), "P386", "'pad' is read outside attention"),
        (Written(padding="ids"), "P386", "depends on the numbers of the token ids 'tokens'"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(form, code, words):
    with pytest.raises(LadingError, match=words) as error:
        raised(form)
    assert error.value.code == code and error.value.diagnostics[0].where


def test_another_computation_between_the_products_is_no_attention():
    """Keys that are squared are no keys of any attention that is known."""
    model = decoder(Written())
    transposed = next(
        node
        for node in model.graph.node
        if node.op_type == "Transpose" and list(node.attribute[0].ints) == [0, 1, 3, 2]
    )
    place = list(model.graph.node).index(transposed)
    model.graph.node.insert(place, helper.make_node("Mul", [transposed.input[0]] * 2, ["squared"]))
    transposed.input[0] = "squared"
    graph = load(model)
    with pytest.raises(LadingError, match="none that is known: the nearest") as error:
        PassManager(pipeline(RAISE)).run(graph, PassContext())
    assert error.value.code == "P382"


def test_graphs_that_are_no_decoders_stay():
    form = replace(Written(), layers=0)
    graph = load(decoder(form))
    PassManager(pipeline(RAISE)).run(graph, PassContext())
    assert graph.fact(Raised) is None
