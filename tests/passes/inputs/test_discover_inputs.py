"""discover-inputs: what it finds in decoders, what it records, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest

from frontends.checkpoint.load import load
from ir.base.diag import LadingError
from ir.base.types import F32, I64, Dim, TensorType
from ir.facts.inputs import DynamicInputs
from ir.graph.graph import Graph
from ir.graph.order import toposort
from ir.tensor.inline import InlineTensor
from passes.framework.manager import PassManager
from tests.support.checkpoints import make_checkpoint

pytestmark = pytest.mark.mnn  # what a runtime feeds, and its pipelines, come with one

PIPELINE = "infer-types,discover-inputs"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A checkpoint with full attention everywhere."""
    return make_checkpoint(tmp_path_factory.mktemp("plain"), "qwen2")


@pytest.fixture(scope="module")
def windowed(tmp_path_factory):
    """A checkpoint whose second layer sees eight tokens."""
    return make_checkpoint(
        tmp_path_factory.mktemp("windowed"), "qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1
    )


def discovered(folder, options: str = ""):
    graph = load(folder)
    PassManager(f"infer-types,discover-inputs{options}").run(graph)
    return graph, graph.required_fact(DynamicInputs)


def tiny_decoder(rows: int = 6, hidden: int = 4) -> Graph:
    """ids -> embedding -> norm -> logits, without positions or attention."""
    graph = Graph("tiny")
    seq = graph.add_dim(Dim("seq", 1, 16))
    ids = graph.add_input("tokens", TensorType(I64, (1, seq)))
    rng = np.random.default_rng(0)
    table = graph.add_const("embed", InlineTensor(rng.normal(size=(rows, hidden)).astype(np.float32)))
    x = graph.add("Gather", [table, ids], outputs=["x"], types=[TensorType(F32, (1, seq, hidden))]).output
    gain = graph.add_const("gain", InlineTensor(np.ones(hidden, np.float32)))
    normed = graph.add("RMSNormalization", [x, gain], {"axis": -1}, outputs=["normed"], types=[x.type]).output
    head = graph.add_const("head", InlineTensor(rng.normal(size=(hidden, rows)).astype(np.float32)))
    y = graph.add("MatMul", [normed, head], outputs=["scores"], types=[TensorType(F32, (1, seq, rows))]).output
    graph.set_outputs([y])
    return graph


def test_inputs_are_those_the_runtime_feeds_in_its_order(plain):
    graph, _ = discovered(plain)
    shapes = {value.name: (value.dtype.name, [str(dim) for dim in value.shape]) for value in graph.inputs}
    assert shapes == {
        "input_ids": ("f32", ["seq", "1", "64"]),
        "attention_mask": ("f32", []),
        "position_ids": ("i32", ["1", "seq"]),
        "logits_index": ("i32", ["1"]),
    }
    assert list(shapes) == ["input_ids", "attention_mask", "position_ids", "logits_index"]


def test_rows_are_cut_out_before_the_final_norm(plain):
    graph, fact = discovered(plain)
    node = next(node for node in graph.nodes if node.op == "Slice")
    assert node.inputs[0].name == "model.layers.1" and node.inputs[1].name == "logits_index"
    assert [user.op for user in node.output.users] == ["RMSNormalization"]
    assert [str(dim) for dim in graph.outputs[0].shape] == ["1", "rows", "320"]
    assert fact.find("output-rows").why == "whole-sequence"


def test_earliest_place_saves_the_last_feed_forward_block(plain):
    graph, _ = discovered(plain, "{place=earliest}")
    node = next(node for node in graph.nodes if node.op == "Slice")
    assert node.inputs[0].name == "model.layers.1.attn_residual"


def test_every_discovery_says_why_and_where(plain):
    _, fact = discovered(plain)
    why = {item.input: item.why for item in fact.discoveries}
    assert why == {
        "input_ids": "runtime-feeds",
        "attention_mask": "kv-cache",
        "position_ids": "shape-computed",
        "logits_index": "whole-sequence",
    }
    assert all(item.reason and item.meaning for item in fact.discoveries)
    assert fact.find("output-rows").default == -1


def test_nothing_is_left_of_what_the_runtime_computes(plain):
    graph, _ = discovered(plain)
    assert not {"Shape", "Range", "Gather"} & {node.op for node in graph.nodes}


def test_the_embedding_becomes_a_table(plain):
    graph, _ = discovered(plain)
    assert graph.tables["embedding"].name == "model.embed_tokens.weight"


def test_logits_are_what_they_were_for_all_rows_and_for_the_last(plain):
    from ir.evaluate.evaluator import evaluate

    ids = np.random.default_rng(1).integers(0, 320, 11)
    before = evaluate(load(plain), {"input_ids": ids[None]})["logits"]
    graph, fact = discovered(plain)
    every = evaluate(graph, fact.feeds(graph, ids, index=0))["logits"]
    last = evaluate(graph, fact.feeds(graph, ids, index=-1))["logits"]
    np.testing.assert_allclose(every, before, atol=2e-5)
    np.testing.assert_allclose(last, before[:, -1:], atol=2e-5)


def test_windows_read_their_plane_of_the_fed_mask(windowed):
    from ir.evaluate.evaluator import evaluate

    ids = np.random.default_rng(2).integers(0, 320, 20)
    before = evaluate(load(windowed), {"input_ids": ids[None]})["logits"]
    graph, fact = discovered(windowed)
    assert fact.windows == (0, 8)
    assert [str(dim) for dim in graph.value("attention_mask").shape] == ["2", "1", "1", "seq", "kv"]
    got = evaluate(graph, fact.feeds(graph, ids, index=0))["logits"]
    np.testing.assert_allclose(got, before, atol=2e-5)


def test_older_runtimes_get_no_row_index(plain):
    graph, fact = discovered(plain, "{signature=mnn-llm-3.0}")
    assert [value.name for value in graph.inputs] == ["input_ids", "attention_mask", "position_ids"]
    assert fact.find("output-rows") is None
    assert [str(dim) for dim in graph.outputs[0].shape] == ["1", "seq", "320"]


def test_output_takes_the_name_that_the_runtime_reads():
    graph = tiny_decoder()
    PassManager(PIPELINE).run(graph)
    assert graph.outputs[0].name == "logits"


def test_fact_survives_its_data_form(windowed):
    _, fact = discovered(windowed)
    assert DynamicInputs.from_data(json.loads(json.dumps(fact.to_data()))) == fact


def test_fact_notices_a_lost_input(plain):
    graph, fact = discovered(plain)
    graph.rename(graph.value("logits_index"), "other")
    codes = [item.code for item in fact.check(graph)]
    assert codes == ["I190"]


def test_values_that_count_by_other_means_are_recognised_by_evaluation():
    graph = tiny_decoder()
    ids = graph.inputs[0]
    first = graph.first
    ones = graph.add_const("one", InlineTensor(np.array([1], np.int64)))
    shape = graph.add("Shape", [ids], {"start": 1}, types=[TensorType(I64, (1,))], before=first).output
    fill = {"value": InlineTensor(np.array([1], np.int64))}
    seq = ids.shape[1]
    counted = graph.add("ConstantOfShape", [shape], fill, types=[TensorType(I64, (seq,))], before=first).output
    axis = graph.add_const("axis", InlineTensor(np.array(0, np.int64)))
    total = graph.add("CumSum", [counted, axis], types=[TensorType(I64, (seq,))], before=first).output
    places = graph.add("Sub", [total, ones], outputs=["places"], types=[TensorType(I64, (seq,))], before=first).output
    floats = graph.add("Cast", [places], {"to": 1}, types=[TensorType(F32, (seq,))], before=first).output
    where = graph.add_const("axes", InlineTensor(np.array([0, 2], np.int64)))
    wide = graph.add("Unsqueeze", [floats, where], types=[TensorType(F32, (1, seq, 1))], before=first).output
    x = graph.value("x")
    moved = graph.add("Add", [x, wide], outputs=["moved"], types=[x.type], after=x.producer)
    graph.set_input(graph.value("normed").producer, 0, moved.output)
    toposort(graph)
    PassManager(PIPELINE).run(graph)
    found = graph.required_fact(DynamicInputs).find("positions")
    assert found is not None and "places" in found.reason
    assert "CumSum" not in {node.op for node in graph.nodes}


def error_of(graph: Graph, options: str = "") -> LadingError:
    with pytest.raises(LadingError) as caught:
        PassManager(f"infer-types,discover-inputs{options}").run(graph)
    return caught.value


def test_unknown_signature_is_refused():
    error = error_of(tiny_decoder(), "{signature=mnn-lm}")
    assert error.code == "P350" and "mnn-llm" in str(error)


def test_graph_without_token_ids_is_refused():
    graph = Graph("plain")
    x = graph.add_input("x", TensorType(F32, (1, 4)))
    graph.set_outputs([graph.add("Relu", [x], types=[x.type]).output])
    assert error_of(graph).code == "P351"


def test_token_ids_of_unknown_rank_are_refused():
    graph = tiny_decoder()
    graph.set_type(graph.value("tokens"), TensorType(I64))
    for node in graph.nodes:
        graph.set_type(node.output, TensorType(F32))
    error = error_of(graph)
    assert error.code == "P351" and "i64[*]" in str(error)


def test_ids_that_index_two_tables_are_refused():
    graph = tiny_decoder()
    ids = graph.inputs[0]
    table = graph.add_const("types", InlineTensor(np.ones((6, 4), np.float32)))
    x = graph.value("x")
    other = graph.add("Gather", [table, ids], types=[x.type], before=graph.first).output
    both = graph.add("Add", [x, other], types=[x.type], after=x.producer)
    graph.set_input(graph.value("normed").producer, 0, both.output)
    assert error_of(graph).code == "P352"


def test_taken_output_name_is_refused():
    graph = tiny_decoder()
    graph.rename(graph.value("normed"), "logits")
    assert error_of(graph).code == "P353"


def test_two_window_widths_are_refused(tmp_path):
    folder = make_checkpoint(
        tmp_path, "qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=0, num_hidden_layers=2
    )
    graph = load(folder)
    nodes = [node for node in graph.nodes if node.op == "Attention"]
    mask = nodes[1].inputs[3].producer
    other = graph.add(
        "lading.SlidingWindowMask", list(mask.inputs), {"window": 5}, types=[mask.output.type], before=mask
    )
    graph.set_input(nodes[1], 3, other.output)
    assert error_of(graph).code == "P354"


def test_other_free_inputs_are_refused():
    graph = tiny_decoder()
    extra = graph.add_input("temperature", TensorType(F32, (1,)))
    scaled = graph.add("Mul", [graph.value("scores"), extra], types=[graph.value("scores").type])
    graph.set_outputs([scaled.output])
    error = error_of(graph)
    assert error.code == "P355" and "temperature" in str(error)


def test_ids_used_for_something_else_are_refused():
    graph = tiny_decoder()
    ids = graph.inputs[0]
    floats = graph.add("Cast", [ids], {"to": 1}, types=[TensorType(F32, ids.shape)], before=graph.first).output
    axes = graph.add_const("axes", InlineTensor(np.array([2], np.int64)))
    wide = graph.add(
        "Unsqueeze", [floats, axes], types=[TensorType(F32, (*ids.shape, 1))], after=floats.producer
    ).output
    x = graph.value("x")
    total = graph.add("Add", [x, wide], types=[x.type], after=x.producer)
    graph.set_input(graph.value("normed").producer, 0, total.output)
    toposort(graph)
    assert error_of(graph).code == "P356"


def test_attention_with_an_unknown_mask_is_refused(plain):
    graph = load(plain)
    node = next(node for node in graph.nodes if node.op == "Attention")
    graph.set_attrs(node, is_causal=0)
    assert error_of(graph).code == "P357"


def test_positions_computed_twice_are_refused(plain):
    graph = load(plain)
    node = graph.value("range").producer
    again = graph.add("Range", list(node.inputs), types=[node.output.type], after=node)
    unsqueeze = graph.value("positions").producer
    other = graph.add("Unsqueeze", [again.output, unsqueeze.inputs[1]], types=[unsqueeze.output.type], after=again)
    cast = graph.value("rope.positions").producer
    floats = graph.add("Cast", [other.output], dict(cast.attrs), types=[cast.output.type], after=other)
    total = graph.add("Add", [floats.output, cast.output], types=[cast.output.type], after=cast)
    for reader, index in [use for use in cast.output.uses if use[0] is not total]:
        graph.set_input(reader, index, total.output)
    toposort(graph)
    assert error_of(graph).code == "P358"


def test_logits_that_mix_positions_are_refused():
    graph = tiny_decoder()
    scores = graph.value("scores")
    mixed = graph.add("Softmax", [scores], {"axis": 1}, types=[scores.type])
    graph.set_outputs([mixed.output])
    assert error_of(graph).code == "P359"


def test_logits_in_one_vector_are_refused():
    graph = tiny_decoder()
    flat = graph.add_const("flat", InlineTensor(np.array([-1], np.int64)))
    vector = graph.add("Reshape", [graph.value("scores"), flat], outputs=["vector"])
    graph.set_outputs([graph.add("Tanh", [vector.output]).output])
    error = error_of(graph)
    assert error.code == "P359" and "%vector: f32[" in str(error)
