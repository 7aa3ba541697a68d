"""rotate: turning features inside the weights changes no result beyond rounding."""

from __future__ import annotations

import json

import numpy as np
import pytest

from frontends.checkpoint.load import load
from ir.base.diag import LadingError
from ir.base.types import F32, I64, TensorType
from ir.evaluate.evaluator import Evaluator
from ir.graph.compare import equal
from ir.graph.graph import Graph
from ir.tensor.inline import InlineTensor
from ir.tensor.rotated import rotation_matrix
from ir.text.parser import parse
from ir.text.printer import print_graph
from passes.calibration.rotate import Rotate
from passes.framework.context import PassContext
from passes.framework.manager import PassManager
from tests.support.checkpoints import BASE, FAMILIES, make_checkpoint

pytestmark = pytest.mark.mnn  # what a runtime feeds, and its pipelines, come with one

IDS = np.random.default_rng(0).integers(0, BASE["vocab_size"], 48).astype(np.int64)
STAGES = ("infer-types", "infer-types,discover-inputs", "infer-types,discover-inputs{place=earliest}")
WIDTHS = {"hidden_size": 96, "head_dim": 24}
"""Sizes that are no powers of two: 96 = 3 * 32, 24 = 3 * 8."""


def graph_of(folder, stage: str = STAGES[1]) -> Graph:
    graph = load(folder)
    PassManager(stage).run(graph)
    return graph


def logits(graph: Graph) -> np.ndarray:
    fact = graph.facts.get("dynamic-inputs")
    feeds = {"input_ids": IDS[None]} if fact is None else fact.feeds(graph, IDS)
    return next(iter(Evaluator(graph).run(feeds).values()))


@pytest.fixture(scope="module", params=[(family, tied) for family in FAMILIES for tied in (False, True)], ids=str)
def checkpoint(request, tmp_path_factory):
    """A random checkpoint of every family, tied and untied."""
    family, tied = request.param
    return make_checkpoint(tmp_path_factory.mktemp(family), family, tie_word_embeddings=tied, **WIDTHS)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "options", [{}, {"residual": "always"}, {"residual": "always", "values": False, "seed": 9}], ids=str
)
def test_logits_stay_up_to_rounding(checkpoint, stage, options):
    expected = logits(graph_of(checkpoint, stage))
    graph = graph_of(checkpoint, stage)
    counts = Rotate(**options).run(graph, PassContext())
    assert counts == {"values": 2 * options.get("values", True), "left": 0, "residual": len(options) > 0}
    assert np.abs(expected).max() > 20
    assert 0 < np.abs(logits(graph) - expected).max() < 2e-4


def test_tied_checkpoints_keep_their_stream_and_say_so(checkpoint):
    tied = json.loads((checkpoint / "config.json").read_text())["tie_word_embeddings"]
    graph, ctx = graph_of(checkpoint), PassContext()
    counts = Rotate(residual="untied").run(graph, ctx)
    assert counts["residual"] == (not tied)
    assert [item.code for item in ctx.diagnostics] == ["Q463"] * tied
    head, table = graph.value("lm_head.weight").const, graph.tables["embedding"].const
    assert np.array_equal(head.load(), table.load().T) == tied


def test_turned_weights_survive_the_text_form(tmp_path):
    graph = graph_of(make_checkpoint(tmp_path, "qwen2", **WIDTHS))
    Rotate(residual="always").run(graph, PassContext())
    text = print_graph(graph)
    again = parse(text)
    assert equal(again, graph) and print_graph(again) == text
    assert "rotated(" in text and len(text) < 200_000
    assert np.array_equal(logits(again), logits(graph))


def test_every_value_head_is_turned_and_turned_back(tmp_path):
    folder = make_checkpoint(tmp_path, "qwen2", **WIDTHS)
    before, after = graph_of(folder), graph_of(folder)
    Rotate(seed=4).run(after, PassContext())
    name, turn = "model.layers.1.self_attn", rotation_matrix(24, 6)
    for module, blocks in (("v_proj.weight", 2), ("v_proj.bias", 2)):
        old, new = (graph.value(f"{name}.{module}").const.load() for graph in (before, after))
        np.testing.assert_allclose(new, old @ np.kron(np.eye(blocks), turn), rtol=0, atol=1e-6)
    old, new = (graph.value(f"{name}.o_proj.weight").const.load() for graph in (before, after))
    np.testing.assert_allclose(new, np.kron(np.eye(4), turn).T @ old, rtol=0, atol=1e-6)
    untouched = after.value(f"{name}.q_proj.weight").const
    assert np.array_equal(untouched.load(), before.value(f"{name}.q_proj.weight").const.load())


def test_the_stream_has_no_gains_left(tmp_path):
    graph = graph_of(make_checkpoint(tmp_path, "qwen3", **WIDTHS))
    Rotate(residual="always").run(graph, PassContext())
    gains = {node.inputs[1].name: node.inputs[1].const.load() for node in graph.nodes if node.op == "RMSNormalization"}
    ones = {name for name, gain in gains.items() if (gain == 1).all()}
    assert {name for name in gains if "q_norm" not in name and "k_norm" not in name} == ones
    assert len(ones) == 5 and len(gains) == 9


def test_outliers_of_the_stream_are_spread(tmp_path):
    graph = graph_of(make_checkpoint(tmp_path, "llama", **WIDTHS))
    table = graph.tables["embedding"]
    rows = table.const.load().copy()
    rows[:, 5] *= 50
    graph.set_const(table, InlineTensor(rows))
    Rotate(residual="always").run(graph, PassContext())
    turned = graph.tables["embedding"].const.load()
    assert np.abs(turned).max() < np.abs(rows).max() / 4
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(rows, axis=1), rtol=1e-5)


def test_only_the_rows_of_the_table_may_be_fed(tmp_path):
    graph = graph_of(make_checkpoint(tmp_path, "llama", **WIDTHS))
    graph.set_fact("dynamic-inputs", None)
    version = graph.version
    with pytest.raises(LadingError) as error:
        Rotate(residual="always").run(graph, PassContext())
    assert error.value.code == "Q462" and graph.version == version


def test_statistics_are_dropped(tmp_path):
    graph = graph_of(make_checkpoint(tmp_path, "llama"))
    graph.set_fact("calibration", {"digest": "", "tokens": 0, "keys": {}})
    Rotate(values=False).run(graph, PassContext())
    assert "calibration" in graph.facts
    Rotate().run(graph, PassContext())
    assert "calibration" not in graph.facts


# --- streams by shape -------------------------------------------------------------------------------------------------


def stream(change: str = "") -> Graph:
    """Rows of a table, one layer beside them and one behind the last norm, with one thing changed."""
    rng = np.random.default_rng(1)

    def const(name: str, *shape: int):
        return graph.add_const(name, InlineTensor(rng.standard_normal(shape).astype(np.float32)))

    def op(kind, *inputs, width=24, **attrs):
        return graph.add(kind, inputs, attrs, types=[TensorType(F32, (4, width))]).output

    def norm(value, name):
        if change == "mean norm":
            return op("LayerNormalization", value, const(name, 24), axis=-1)
        return op("RMSNormalization", value, const(name, 24), axis=-1)

    graph = Graph("stream")
    ids = graph.add_input("ids", TensorType(I64, (4,)))
    table = const("table", 10, 24)
    hidden = op("Gather", table, ids, axis=0)
    if change == "scaled":
        hidden = op("Mul", hidden, graph.add_const("eight", InlineTensor(np.float32(8))))
    if change == "scaled by feature":
        hidden = op("Mul", hidden, const("features", 24))
    if change == "added input":
        hidden = op("Add", hidden, graph.add_input("picture", TensorType(F32, (4, 24))))
    if change == "squared":
        hidden = op("Mul", hidden, hidden)
    branch = op("MatMul", norm(hidden, "first"), const("layer", 24, 24))
    if change == "bias":
        branch = op("Add", branch, const("bias", 24))
    if change == "branch norm":
        branch = norm(branch, "after")
    if change == "halved branch":
        branch = op("Div", branch, graph.add_const("two", InlineTensor(np.full(1, 2, np.float32))))
    if change == "reciprocal":
        branch = op("Div", graph.add_const("two", InlineTensor(np.full(1, 2, np.float32))), branch)
    hidden = op("Add", hidden, branch)
    last = norm(hidden, "last")
    outputs = [op("MatMul", last, const("head", 24, 10), width=10)]
    if change == "returned":
        outputs.append(hidden)
    if change == "norm returned":
        outputs.append(last)
    if change == "table read again":
        outputs.append(op("Gather", table, ids, axis=0))
    graph.set_outputs(outputs)
    return graph


@pytest.mark.parametrize("change", ["", "scaled", "bias", "halved branch"])
def test_streams_of_sums_and_scales_are_turned(change):
    feeds = {"ids": np.array([3, 0, 9, 4])}
    graph = stream(change)
    assert Rotate(residual="always").run(graph, PassContext())["residual"] == 1
    found, expected = (Evaluator(item).run(feeds) for item in (graph, stream(change)))
    for a, b in zip(found.values(), expected.values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)
    assert not np.array_equal(graph.value("table").const.load(), stream(change).value("table").const.load())


def test_a_table_that_something_else_reads_stays_for_it():
    feeds = {"ids": np.array([3, 0, 9, 4])}
    graph = stream("table read again")
    Rotate(residual="always").run(graph, PassContext())
    found, expected = (list(Evaluator(item).run(feeds).values()) for item in (graph, stream("table read again")))
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=2e-5)
    assert np.array_equal(found[1], expected[1])


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("mean norm", "Q461"),
        ("scaled by feature", "Q462"),
        ("squared", "Q462"),
        ("added input", "Q462"),
        ("branch norm", "Q462"),
        ("reciprocal", "Q462"),
        ("returned", "Q462"),
        ("norm returned", "Q462"),
    ],
)
def test_streams_that_cannot_be_turned_are_refused_unchanged(change, code):
    graph = stream(change)
    version = graph.version
    with pytest.raises(LadingError) as error:
        Rotate(residual="always").run(graph, PassContext())
    assert error.value.code == code and graph.version == version


def test_a_graph_without_norms_is_refused():
    graph = Graph("bare")
    x = graph.add_input("x", TensorType(F32, (4, 8)))
    graph.set_outputs([graph.add("Relu", [x], types=[x.type]).output])
    with pytest.raises(LadingError) as error:
        Rotate(residual="always").run(graph, PassContext())
    assert error.value.code == "Q462"
    assert Rotate().run(graph, PassContext()) == {"values": 0, "left": 0, "residual": 0}


def attention(change: str = "") -> Graph:
    """Values through an attention and an output layer, with one thing changed."""
    rng = np.random.default_rng(1)

    def const(name: str, *shape: int):
        return graph.add_const(name, InlineTensor(rng.standard_normal(shape).astype(np.float32)))

    def op(kind, *inputs, width, **attrs):
        return graph.add(kind, inputs, attrs, types=[TensorType(F32, (1, 5, width))]).output

    graph = Graph("attention")
    x = graph.add_input("x", TensorType(F32, (1, 5, 24)))
    query, key = (op("MatMul", x, const(name, 24, width), width=width) for name, width in (("q", 48), ("k", 24)))
    value = op("MatMul", x, const("v", 24, 24), width=24)
    if change == "activated":
        value = op("Tanh", value, width=24)
    mixed = op("Attention", query, key, value, width=48, q_num_heads=4, kv_num_heads=2, is_causal=1)
    outputs = [op("MatMul", mixed, const("o", 48, 24), width=24)]
    if change == "mixed read elsewhere":
        outputs.append(op("Relu", mixed, width=48))
    if change == "values read elsewhere":
        outputs.append(op("Relu", value, width=24))
    graph.set_outputs(outputs)
    return graph


@pytest.mark.parametrize("change", ["", "activated", "mixed read elsewhere", "values read elsewhere"])
def test_only_values_that_one_attention_reads_are_turned(change):
    graph = attention(change)
    counts = Rotate().run(graph, PassContext())
    assert (counts["values"], counts["left"]) == ((0, 1) if change else (1, 0))
    feeds = {"x": np.random.default_rng(2).standard_normal((1, 5, 24)).astype(np.float32)}
    found, expected = (Evaluator(item).run(feeds) for item in (graph, attention(change)))
    for a, b in zip(found.values(), expected.values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)
