"""balance: what the model computes stays, what quantization loses shrinks."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest

from frontends.checkpoint.load import load
from ir.base.diag import LadingError
from ir.base.types import F32, TensorType
from ir.evaluate.evaluator import Evaluator
from ir.facts.calibration import Calibration
from ir.graph.graph import Graph
from ir.quant.statistics.moments import CalibrationText, Moments, MomentStore
from ir.tensor.inline import InlineTensor
from ir.text.printer import print_graph
from passes.calibration.balance import Balance
from passes.framework.context import PassContext
from passes.framework.manager import PassManager
from passes.framework.registry import default_registry
from tests.support.checkpoints import BASE, FAMILIES, hot_tensors, make_checkpoint, write_weights

pytestmark = pytest.mark.mnn  # what a runtime feeds, and its pipelines, come with one

IDS = np.random.default_rng(0).integers(0, BASE["vocab_size"], 160).astype(np.int32)
TEXT = CalibrationText((IDS[:96],), (IDS[96:],))
GIVEN = "infer-types,discover-inputs,calibrate"
FACTOR = 32.0
HOT = (3, 17, 40)
"""Features that are made `FACTOR` times larger before the weights that read them, which are made smaller."""


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """Statistics of this file's checkpoints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LADING_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def outliers(folder, family: str, **config):
    """A checkpoint that computes what the random one does, with a few features that stand out before each layer."""
    make_checkpoint(folder, family, **config)
    full = json.loads((folder / "config.json").read_text())
    tensors = {name: array.astype(np.float32) for name, array in hot_tensors(full).items()}
    heads, kv_heads = full["num_attention_heads"], full["num_key_value_heads"]
    for index in range(full["num_hidden_layers"]):
        base = f"model.layers.{index}"
        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            tensors[f"{base}.{norm}.weight"][list(HOT)] *= FACTOR
            for reader in readers:
                tensors[f"{base}.{reader}.weight"][:, HOT] /= FACTOR
        tensors[f"{base}.mlp.up_proj.weight"][list(HOT)] *= FACTOR
        tensors[f"{base}.mlp.down_proj.weight"][:, HOT] /= FACTOR
        for name in (f"{base}.self_attn.v_proj.weight", f"{base}.self_attn.v_proj.bias"):
            if name in tensors:
                tensors[name][HOT[0]] *= FACTOR
        shared = tensors[f"{base}.self_attn.o_proj.weight"].reshape(
            full["hidden_size"], kv_heads, heads // kv_heads, -1
        )
        shared[:, 0, :, HOT[0]] /= FACTOR
    write_weights(folder, {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()})
    return folder


def run(folder, pipeline: str, text: CalibrationText = TEXT) -> Graph:
    graph = load(folder)
    PassManager(pipeline).run(graph, PassContext(text))
    return graph


def balanced(folder, **options) -> tuple[Graph, dict]:
    graph = run(folder, GIVEN)
    return graph, dict(Balance(**options).run(graph, PassContext()))


def logits(graph: Graph) -> np.ndarray:
    return Evaluator(graph).run(graph.facts["dynamic-inputs"].feeds(graph, IDS[96:]))["logits"]


@pytest.fixture(scope="module", params=[(family, tied) for family in FAMILIES for tied in (False, True)], ids=str)
def checkpoint(request, tmp_path_factory):
    """A checkpoint with outliers of every family, tied and untied."""
    family, tied = request.param
    return outliers(tmp_path_factory.mktemp(family), family, tie_word_embeddings=tied)


def test_powers_of_two_leave_every_bit_of_the_logits(checkpoint):
    graph, counts = balanced(checkpoint, powers=True, least=0.0)
    assert counts == {"norm": 4, "gated": 2, "values": 2, "left": 0, "unknown": 0}
    assert np.array_equal(logits(graph), logits(run(checkpoint, GIVEN)))


def test_graphs_that_take_token_ids_are_balanced_too(tmp_path):
    for tied in (False, True):
        folder = outliers(tmp_path / str(tied), "qwen2", tie_word_embeddings=tied)
        plain, graph = (
            run(folder, "infer-types,calibrate" + rest) for rest in ("", ",balance{powers places=norm,logits}")
        )
        feeds = {"input_ids": IDS[None, :40].astype(np.int64)}
        assert np.array_equal(*(Evaluator(item).run(feeds)["logits"] for item in (plain, graph)))
        weights = [item.value("lm_head.weight").const.load() for item in (plain, graph)]
        assert not tied or np.array_equal(*weights)
        assert "calibration" not in graph.facts


def test_any_factors_leave_the_logits_up_to_rounding(checkpoint):
    graph, counts = balanced(checkpoint, least=0.0)
    expected = logits(run(checkpoint, GIVEN))
    assert counts["left"] == 0
    assert np.abs(expected).max() > 15
    assert 0 < np.abs(logits(graph) - expected).max() < 2e-4


def test_logits_matrix_is_balanced_only_when_it_is_not_the_embedding(checkpoint):
    tied = json.loads((checkpoint / "config.json").read_text())["tie_word_embeddings"]
    graph, counts = balanced(checkpoint, places=("logits",), least=0.0)
    assert counts["logits"] + counts["left"] == (0 if tied else 1)
    head = graph.value("lm_head.weight").const.load()
    table = graph.tables["embedding"].const.load()
    assert np.array_equal(head, table.T) == tied


def quantized_error(graph: Graph, reference: np.ndarray, bits: int) -> float:
    """Root mean square of what storing all layers in `bits` changes in the logits."""
    PassManager(f"assign-precision{{bits={bits} logits-bits=32}},insert-qdq").run(graph)
    return float(np.sqrt(np.square(logits(graph) - reference).mean()))


def test_outliers_that_scaling_can_undo_are_undone(tmp_path):
    folder = outliers(tmp_path, "qwen2")
    reference = logits(run(folder, GIVEN))
    plain = quantized_error(run(folder, GIVEN), reference, 4)
    graph, _ = balanced(folder)
    ordinary = quantized_error(run(make_checkpoint(tmp_path / "plain", "qwen2"), GIVEN), reference, 4)
    found = quantized_error(graph, reference, 4)
    assert found < 0.75 * plain
    assert found < 1.1 * ordinary


def test_the_balanced_model_is_the_same_each_time(tmp_path):
    folder = outliers(tmp_path, "qwen3")
    assert print_graph(balanced(folder)[0]) == print_graph(balanced(folder)[0])


def test_statistics_of_changed_inputs_are_dropped(tmp_path):
    folder = outliers(tmp_path, "llama")
    graph, _ = balanced(folder)
    assert "calibration" not in graph.facts
    with pytest.raises(LadingError) as error:
        PassManager(f"{GIVEN},balance,balance").run(load(folder), PassContext(TEXT))
    assert error.value.code == "P320"


def test_second_round_finds_little_more(tmp_path):
    folder = outliers(tmp_path, "llama")
    graph = run(folder, f"{GIVEN},balance{{powers}},calibrate")
    counts = Balance(powers=True).run(graph, PassContext())
    assert counts["left"] >= 6


def test_what_gains_too_little_stays(tmp_path):
    graph, counts = balanced(outliers(tmp_path, "llama"), least=0.99)
    assert counts["left"] == 8 and sum(counts.values()) == 8
    assert "calibration" in graph.facts


def test_layers_without_statistics_are_counted(tmp_path):
    graph = run(make_checkpoint(tmp_path, "llama"), GIVEN)
    fact = graph.facts["calibration"]
    keys = {name: key for name, key in fact.keys.items() if "q_proj" not in name}
    graph.set_fact("calibration", type(fact)(fact.digest, fact.tokens, keys))
    assert Balance(places=("norm",)).run(graph, PassContext())["unknown"] == 2


@pytest.mark.parametrize("method", ["gptq", "best"])
def test_methods_that_cannot_be_searched_with_are_refused_before_any_work(tmp_path, method):
    graph = load(make_checkpoint(tmp_path, "llama"))
    version = graph.version
    with pytest.raises(LadingError) as error:
        PassManager(f"{GIVEN},balance{{method={method}}}").run(graph, PassContext(TEXT))
    assert error.value.code == "Q460" and graph.version == version


def test_a_method_with_statistics_is_given_those_of_the_scaled_features(tmp_path):
    folder = outliers(tmp_path, "llama")
    reference = logits(run(folder, GIVEN))
    graph, counts = balanced(folder, method="clip")
    assert counts["left"] < 4
    assert np.abs(logits(graph) - reference).max() < 2e-4


# --- places by shape --------------------------------------------------------------------------------------------------


def site(change: str = "") -> Graph:
    """A norm and an attention-free gated product of 64 features, with one thing changed."""
    rng = np.random.default_rng(1)

    def const(name: str, *shape: int):
        return graph.add_const(name, InlineTensor(rng.standard_normal(shape).astype(np.float32)))

    def op(kind, *inputs, **attrs):
        kind_of = TensorType(F32, (4, inputs[1].shape[-1] if kind == "MatMul" else inputs[0].shape[-1]))
        return graph.add(kind, inputs, attrs, types=[kind_of]).output

    graph = Graph("site")
    x = graph.add_input("x", TensorType(F32, (4, 64)))
    gain, weights = const("gain", 64), [const(name, 64, 64) for name in ("gate", "up", "down")]
    normed = op("RMSNormalization", x, gain, axis=-1)
    gate, up = op("MatMul", normed, weights[0]), op("MatMul", normed, weights[1])
    up = op("Add", up, const("up.bias", 64))
    product = op("Mul", op("Sigmoid", gate), up)
    outputs = [op("MatMul", product, weights[2])]
    if change == "norm read elsewhere":
        outputs.append(op("Relu", normed))
    if change == "gain shared":
        outputs.append(op("Mul", x, gain))
    if change == "weight shared":
        outputs.append(op("MatMul", x, weights[0]))
    if change == "product read elsewhere":
        outputs.append(op("Relu", product))
    if change == "up read elsewhere":
        outputs.append(op("Relu", up))
    if change == "bias shared":
        outputs.append(op("Add", x, graph.value("up.bias")))
    graph.set_outputs(outputs)
    return graph


def with_statistics(graph: Graph) -> Graph:
    """Statistics with a few large features for every weight."""
    diagonal = np.ones(64, np.float32)
    diagonal[list(HOT)] = 1e4
    zeros = np.zeros(64, np.float32)
    MomentStore().save(Moments("site", 100, np.diag(diagonal), zeros, zeros, zeros))
    graph.set_fact("calibration", Calibration("", 100, dict.fromkeys(("gate", "up", "down"), "site")))
    return graph


@pytest.mark.parametrize(
    ("change", "norm", "gated"),
    [
        ("", 1, 1),
        ("gain shared", 1, 1),
        ("bias shared", 1, 1),
        ("norm read elsewhere", 0, 1),
        ("weight shared", 0, 1),
        ("product read elsewhere", 1, 0),
        ("up read elsewhere", 1, 0),
    ],
)
def test_only_what_layers_alone_read_is_scaled(change, norm, gated):
    graph = with_statistics(site(change))
    feeds = {"x": np.random.default_rng(2).standard_normal((4, 64)).astype(np.float32)}
    expected = Evaluator(site(change)).run(feeds)
    counts = Balance(powers=True, least=0.0).run(graph, PassContext())
    assert (counts["norm"], counts["gated"]) == (norm, gated)
    changed = {name for name in ("gate", "up", "down") if graph.value(name).const.recipe()[0] == "transposed"}
    assert changed == ({"gate", "up"} if norm else set()) | ({"up", "down"} if gated else set())
    found = Evaluator(graph).run(feeds)
    assert all(np.array_equal(a, b) for a, b in zip(found.values(), expected.values(), strict=True))


def test_features_that_never_vary_are_left_finite():
    graph = site()
    zeros = np.zeros(64, np.float32)
    MomentStore().save(Moments("silent", 100, np.zeros((64, 64), np.float32), zeros, zeros, zeros))
    graph.set_fact("calibration", Calibration("", 100, dict.fromkeys(("gate", "up", "down"), "silent")))
    assert Balance().run(graph, PassContext())["left"] == 2


def test_the_pass_describes_itself():
    info = default_registry().describe("balance")
    assert info.requires == ("typed", "calibration") and info.breaks == ("calibration",) and not info.lossy
    assert str(Balance(powers=True, places=("norm",))) == "balance{places=[norm] powers}"
