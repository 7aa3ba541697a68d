"""Joining products that share their operand: same numbers, same codes, same tokens."""

from __future__ import annotations

import numpy as np
import pytest

from frontends.checkpoint.load import load
from ir.base.types import F32, TensorType
from ir.evaluate.evaluator import evaluate
from ir.facts.inputs import DynamicInputs
from ir.facts.precision import PrecisionPlan
from ir.graph.graph import Graph, Node
from ir.quant.statistics.moments import CalibrationText
from ir.quant.stored_weight import storage_of
from ir.tensor.inline import InlineTensor
from ir.text.parser import parse
from ir.text.printer import print_graph
from passes.canonicalize.join_linears import JoinLinears
from passes.framework.context import PassContext
from passes.framework.manager import PassManager
from tests.support.checkpoints import make_checkpoint

IDS = np.random.default_rng(4).integers(3, 320, 24)
BAR = 1e-3


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Biases on queries, keys and values, none on the other matrices."""
    return make_checkpoint(tmp_path_factory.mktemp("join") / "model", "qwen2", seed=3)


def graph_of(source, pipeline: str):
    """A checkpoint after some passes."""
    graph = load(source)
    PassManager(pipeline).run(graph, PassContext(TEXT))
    return graph


def logits(graph) -> np.ndarray:
    """Logits of the float graph."""
    return evaluate(graph, graph.required_fact(DynamicInputs).feeds(graph, IDS))["logits"]


@pytest.mark.mnn
def test_numbers_stay_and_products_get_fewer(source):
    plain = graph_of(source, "infer-types,discover-inputs")
    joined = graph_of(source, "infer-types,join-linears,discover-inputs")
    layers = sum(node.op == "Attention" for node in plain.nodes)
    products = [sum(node.op == "MatMul" for node in graph.nodes) for graph in (plain, joined)]
    assert products == [7 * layers + 1, 4 * layers + 1]
    assert np.abs(logits(plain) - logits(joined)).max() <= 1e-5 * np.abs(logits(plain)).max()
    assert {"model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"} <= {
        value.name for node in joined.nodes if node.op == "Split" for value in node.outputs
    }


def test_only_narrow_matrices_are_joined(source):
    widths = {node.inputs[1].shape[1] for node in graph_of(source, "infer-types").nodes if node.op == "MatMul"}
    graph = graph_of(source, f"infer-types,join-linears{{narrow={min(widths)}}}")
    names = [node.inputs[1].name for node in graph.nodes if node.op == "MatMul"]
    assert "model.layers.0.self_attn.q_proj+k_proj+v_proj.weight" in names
    assert "model.layers.0.mlp.gate_proj.weight" in names
    untouched = graph_of(source, f"infer-types,join-linears{{narrow={min(widths) - 1}}}")
    assert not any("+" in node.inputs[1].name for node in untouched.nodes if node.op == "MatMul")


def test_a_second_run_finds_nothing(source):
    graph = graph_of(source, "infer-types,join-linears")
    version = graph.version
    assert JoinLinears().run(graph, None) == {"joined": 0, "products": 0}
    assert graph.version == version


@pytest.mark.mnn
def test_a_missing_bias_counts_as_zeros(tmp_path):
    graph = graph_of(make_checkpoint(tmp_path / "model", "llama"), "infer-types")
    query = next(node for node in graph.nodes if node.op == "MatMul")
    bias = graph.add_const("odd.bias", np_tensor(np.arange(query.output.shape[-1])))
    added = graph.add("Add", [query.output, bias], outputs=["odd"], types=[query.output.type], after=query)
    for node, place in [use for use in query.output.uses if use[0] is not added]:
        graph.set_input(node, place, added.output)
    PassManager("discover-inputs").run(graph)
    wanted = logits(graph)
    PassManager("join-linears").run(graph)
    assert any("+" in name for name in graph.consts)
    assert np.abs(logits(graph) - wanted).max() <= 1e-5 * np.abs(wanted).max()


def np_tensor(array):
    """An array as a float32 tensor."""
    from ir.tensor.inline import InlineTensor

    return InlineTensor(np.asarray(array, np.float32))


TEXT = CalibrationText((IDS,), ())
PLANNED = "absorb-latent,infer-types,discover-inputs,{},insert-qdq,{}legalize-mnn,sink-layouts,fuse-mnn,cse,dce"


@pytest.mark.mnn
@pytest.mark.parametrize(
    ("storage", "early"),
    [
        ("assign-precision{bits=4}", True),
        ("assign-precision{bits=8 symmetric}", True),
        ("assign-precision{bits=3 block=32}", True),
        ("assign-precision{bits=4 scale=f16 zero=float}", True),
        ("calibrate,assign-precision{method=gptq}", False),
    ],
)
def test_rows_keep_their_codes(source, storage, early):
    """Joined before precision is assigned and behind it, and by methods that look at the inputs."""
    apart = decoded(graph_of(source, PLANNED.format(storage, "")))
    pipelines = [PLANNED.format(storage, "join-linears,")]
    if early:
        pipelines.append("infer-types,join-linears," + PLANNED.format(storage, ""))
    for pipeline in pipelines:
        together = decoded(graph_of(source, pipeline))
        for name, rows in together.items():
            assert np.array_equal(rows, np.concatenate([apart[part] for part in parts_of(name)])), name
        assert any("+" in name for name in together)


def parts_of(name: str) -> list[str]:
    """``layer.q+k.weight`` as ``layer.q.weight`` and ``layer.k.weight``."""
    module, _, words = name.removesuffix(".weight").rpartition(".")
    return [f"{module}.{word}.weight" for word in words.split("+")] if "+" in name else [name]


@pytest.mark.mnn
def test_a_rule_that_names_a_part_holds_and_parts_stored_otherwise_stay_alone(source, tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nmatch = "model.layers.0.self_attn.k_proj.weight"\nbits = 8\n')
    graph = graph_of(source, PLANNED.format(f'assign-precision{{plan="{rules}" bits=4}}', "join-linears,"))
    found = {name: storage_of(node.inputs[1], matmul=True).bits for name, node in convolutions(graph).items()}
    first = "model.layers.0.self_attn"
    assert found[f"{first}.k_proj.weight"] == 8
    assert found[f"{first}.q_proj+v_proj.weight"] == 4
    assert found["model.layers.1.self_attn.q_proj+k_proj+v_proj.weight"] == 4
    plan = graph.required_fact(PrecisionPlan)
    assert plan.storage[f"{first}.k_proj.weight"].bits == 8
    assert plan.joined[f"{first}.q_proj.weight"] == f"{first}.q_proj+v_proj.weight"
    assert not plan.check(graph)


def convolutions(graph) -> dict[str, Node]:
    """Linear layers by name of the weight."""
    return {node.inputs[1].name: node for node in graph.nodes if node.op == "mnn.Convolution"}


@pytest.mark.mnn
@pytest.mark.parametrize("kind", ["fp16", "int4"])
def test_stored_weights_survive_the_text_form(source, kind):
    bits = int(kind.removeprefix("fp").removeprefix("int"))
    storing = f"assign-precision{{bits={bits} logits-bits={bits}}},insert-qdq,join-linears"
    graph = graph_of(source, f"infer-types,discover-inputs,{storing}")
    again = parse(print_graph(graph))
    products = [node for node in graph.nodes if node.op == "MatMul"]
    for node in products:
        mine, other = (storage_of(value, matmul=True) for value in (node.inputs[1], again.value(node.inputs[1].name)))
        assert mine.storage == other.storage
        assert np.array_equal(mine.dequantized_rows(0, mine.rows), other.dequantized_rows(0, other.rows))
    assert any("+" in node.inputs[1].name for node in products)
    assert again.required_fact(PrecisionPlan).joined == graph.required_fact(PrecisionPlan).joined


def decoded(graph) -> dict[str, np.ndarray]:
    """Rows of every stored matrix as the runtime decodes them, by name of the weight."""
    found = {}
    for node in graph.nodes:
        if node.op == "mnn.Convolution":
            stored = storage_of(node.inputs[1], matmul=True)
            found[stored.name] = stored.quantized.dequantized().load()
    return found


@pytest.mark.mnn
@pytest.mark.parametrize("target", ["portable", "3.6.1"])
def test_joined_models_give_the_logits_of_torch(source, tmp_path, target):
    from tests.support.runs import compiled, each_release, logits_of, pieces, run_actions, torch_logits, torch_model

    pipeline = PLANNED.format("assign-precision{bits=32 logits-bits=32}", "join-linears{narrow=4096},")
    folder = compiled(source, tmp_path / "out", pipeline, target=target)
    wanted = torch_logits(torch_model(source), IDS)
    for param in each_release():
        version = param.values[0]
        if not param.marks and (target == "portable" or version == target):
            (result,) = run_actions(folder, version, [pieces(IDS[:9], IDS[9:10], IDS[10:])])
            assert np.abs(logits_of(result) - wanted).max() <= BAR


@pytest.mark.parametrize("type_", [None, TensorType(F32)])
def test_products_of_unknown_rank_stay(type_):
    graph = Graph("unknown")
    x = graph.add_input("x", type_)
    weights = [graph.add_const(f"w{index}", InlineTensor(np.ones((4, 2), np.float32))) for index in range(2)]
    graph.set_outputs([graph.add("MatMul", [x, weight], types=[type_]).output for weight in weights])
    assert JoinLinears().run(graph, PassContext()) == {"joined": 0, "products": 0}
    assert [node.op for node in graph.nodes] == ["MatMul", "MatMul"]
