"""Latent attention whose history holds latent vectors gives the same logits, and other attention stays as it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ir.evaluate.evaluator import evaluate
from ir.graph.graph import Graph
from ir.infer.engine import infer_types
from ir.quant.coded import decoded
from ir.target.target import default_target
from ir.tensor.inline import InlineTensor
from ir.tensor.rearranged import transposed
from ir.verify.structure import structure
from passes.canonicalize.absorb_latent import AbsorbLatent
from passes.framework.context import PassContext
from passes.framework.load import load
from passes.framework.manager import PassManager
from passes.precision.planned_weights import weights_of
from passes.precision.raise_weights import RaiseWeights
from tests.support.decoders.families import FORMS
from tests.support.decoders.forms import VOCABULARY, Form, decoder

IDS = np.random.default_rng(3).integers(0, VOCABULARY, (1, 19))
LATENT = FORMS["latent attention"]


def graph_of(form: Form) -> Graph:
    graph = decoder(form, seed=1)
    infer_types(graph)
    return graph


def kept(graph: Graph) -> list[int]:
    """Numbers that each attention keeps of a token."""
    nodes = [node for node in graph.nodes if node.op == "Attention"]
    return [node.operand(1).dims[2] + node.operand(2).dims[2] for node in nodes]


@pytest.mark.parametrize("name", ["latent attention", "latent attention with wide values"])
def test_logits_stay_and_the_history_shrinks(name):
    form = FORMS[name]
    graph = graph_of(form)
    (before,) = evaluate(graph, {"input_ids": IDS}).values()
    sizes = kept(graph)
    layers = sum(form.mixers[index % len(form.mixers)] == "latent" for index in range(form.layers))
    assert AbsorbLatent().run(graph, PassContext()) == {"absorbed": layers}
    assert list(structure(graph)) == []
    (after,) = evaluate(graph, {"input_ids": IDS}).values()
    assert np.abs(after - before).max() < 1e-5 * np.abs(before).max()
    # Latent and turned part as keys, latent as values; the runtime makes both as wide.
    latent = 24 + 8 + 24
    assert latent < sizes[0] and kept(graph) == [latent, latent if layers > 1 else sizes[1]]
    assert AbsorbLatent().run(graph, PassContext()) is None


def test_as_many_weights_are_read_in_matrices_of_each_head():
    graph = graph_of(LATENT)
    before = {weight.name: weight.elements for weight in weights_of(graph)}
    AbsorbLatent().run(graph, PassContext())
    after = {weight.name: weight.elements for weight in weights_of(graph)}
    gone, new = (set(one) - set(other) for one, other in ((before, after), (after, before)))
    assert len(gone) == 2 * LATENT.layers and len(new) == 2 * LATENT.layers * LATENT.heads
    assert sum(before[name] for name in gone) == sum(after[name] for name in new)
    assert {name.removesuffix(".weight").rpartition(".")[2] for name in new} == set("0123")


def test_it_is_left_out_on_request():
    graph = graph_of(LATENT)
    sizes = kept(graph)
    assert AbsorbLatent(latent="expanded").run(graph, PassContext()) is None and kept(graph) == sizes


@pytest.mark.parametrize(
    "form", [Form(), Form(kv_heads=4), Form(split=True, value_size=8), replace(LATENT, mixers=("softmax",))]
)
def test_other_attention_stays(form):
    graph = graph_of(form)
    count = len(graph.nodes)
    assert AbsorbLatent().run(graph, PassContext()) is None and len(graph.nodes) == count


def test_keys_that_others_read_are_kept():
    graph = graph_of(LATENT)
    node = next(node for node in graph.nodes if node.op == "Attention")
    graph.set_outputs([*graph.outputs, node.operand(2)])
    assert AbsorbLatent().run(graph, PassContext()) == {"absorbed": LATENT.layers - 1}


def with_codes(graph: Graph) -> None:
    """Give the matrices of keys and values codes of 4 bits with a scale for 8 weights of a row."""
    rng = np.random.default_rng(0)
    for node in [node for node in graph.nodes if node.op == "Attention"]:
        latent = node.operand(2).producer.operand(0)
        for made in [user for user in latent.users if user.op == "MatMul"]:
            columns, rows = made.operand(1).sizes
            codes = InlineTensor(rng.integers(-7, 8, (rows, columns)).astype(np.int8))
            scale = InlineTensor(rng.uniform(0.02, 0.1, (rows, columns // 8)).astype(np.float32))
            graph.set_const(made.operand(1), transposed(decoded(codes, scale, tile=(1, 8))))


def test_values_keep_their_codes_and_keys_are_stored_anew():
    graph = graph_of(LATENT)
    with_codes(graph)
    (before,) = evaluate(graph, {"input_ids": IDS}).values()
    AbsorbLatent().run(graph, PassContext())
    counts = RaiseWeights().run(graph, PassContext())
    each = LATENT.layers * LATENT.heads
    assert counts is not None and {counts["kept"], counts["requantized"]} == {each}
    mixes = [node for node in graph.nodes if node.op == "Attention"]
    for node in mixes:
        parts = node.output.users[0].outputs
        assert all(part.users[0].operand(1).producer.op == "DequantizeLinear" for part in parts)
    (after,) = evaluate(graph, {"input_ids": IDS}).values()
    assert np.abs(after - before).max() < 1e-5 * np.abs(before).max()


@pytest.mark.mnn
def test_weights_that_came_in_codes_are_absorbed_in_a_compilation_too():
    graph = graph_of(LATENT)
    with_codes(graph)
    PassManager(load("default")).run(graph, PassContext(default_target()))
    assert key_widths(graph) == [24 + LATENT.rotary] * LATENT.layers


def key_widths(graph: Graph) -> list[int]:
    """Width of what each attention keeps as keys of all heads."""
    found = [node for node in graph.nodes if node.op == "mnn.Attention"]
    return [node.operand(1).dims[2] * node.operand(1).dims[3] for node in found]
