"""Divergence of edited graphs, measured for all of them in one pass, against evaluating each one on its own."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from frontends.checkpoint.load import load
from ir.base.diag import LadingError
from ir.base.executor import SERIAL, Spread
from ir.base.types import F32, TensorType
from ir.evaluate import replaced_weights as variants
from ir.evaluate import segments
from ir.evaluate.evaluator import Evaluator
from ir.evaluate.onnxruntime_session import Session
from ir.evaluate.replaced_weights import Divergence, divergences
from ir.evaluate.token_feeds import window_feeds
from ir.facts.model_card import ModelCard
from ir.graph.graph import Graph
from ir.quant.storage import Storage
from ir.quant.weight import QuantizedWeight
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor
from ir.tensor.rearranged import transposed
from passes.framework.context import PassContext
from passes.framework.load import load as load_pipeline
from passes.framework.manager import PassManager
from passes.precision.planned_weights import weights_of
from tests.support.checkpoints import make_checkpoint
from tests.support.paths import EXAMPLE

pytestmark = pytest.mark.mnn  # what a runtime feeds, and its pipelines, come with one


def prepared(folder: Path, pipeline: str) -> Graph:
    graph = load(folder)
    PassManager(load_pipeline(pipeline)).run(graph, PassContext())
    return graph


def quantized(graph: Graph, bits: int = 4) -> dict[str, Tensor]:
    spec = Storage(bits=bits, block=32)
    found = {}
    for weight in weights_of(graph):
        tensor = weight.value.const
        if weight.role == "embedding":
            found[weight.value.name] = QuantizedWeight(tensor, spec).dequantized()
        else:
            found[weight.value.name] = transposed(QuantizedWeight(transposed(tensor), spec).dequantized())
    return found


def windows(vocabulary: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, vocabulary, count).astype(np.int32) for count in (23, 140, 1)]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


def apart(graph: Graph, texts: list[np.ndarray], variant: Mapping[str, Tensor]) -> list[np.ndarray]:
    """Log-probabilities of the graph with the constants really replaced."""
    kept = {name: graph.value(name).const for name in variant}
    for name, tensor in variant.items():
        graph.set_const(graph.value(name), tensor)
    output = graph.outputs[0].name
    results = Evaluator(graph, [output]).run_many(window_feeds(graph, texts))
    for name, tensor in kept.items():
        graph.set_const(graph.value(name), tensor)
    return [log_softmax(item[output].reshape(-1, item[output].shape[-1])) for item in results]


def expected(floats: list[np.ndarray], others: list[np.ndarray], texts: list[np.ndarray]) -> Divergence:
    kl = np.concatenate([(np.exp(a) * (a - b)).sum(1) for a, b in zip(floats, others, strict=True)])
    same = np.concatenate([a.argmax(1) == b.argmax(1) for a, b in zip(floats, others, strict=True)])
    nll = [
        np.concatenate([-a[np.arange(len(t) - 1), t[1:]] for a, t in zip(logs, texts, strict=True)])
        for logs in (others, floats)
    ]
    error = kl.std(ddof=1) / np.sqrt(len(kl))
    return Divergence(kl.mean(), error, same.mean(), nll[0].mean(), nll[1].mean(), len(kl))


def assert_close(found: Divergence, wanted: Divergence) -> None:
    assert found.positions == wanted.positions
    assert found.top1 == wanted.top1
    for name in ("kl", "kl_error", "nll", "nll_reference"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), abs=2e-7, rel=1e-4), name


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("untied"), "llama", num_hidden_layers=3)


@pytest.mark.parametrize("pipeline", ["infer-types", "infer-types,discover-inputs"])
@pytest.mark.parametrize(("which", "limit"), [("example", 2 << 20), ("untied", 256 << 20), ("untied", 100 << 10)])
def test_each_variant_equals_its_edited_graph(untied: Path, pipeline: str, which: str, limit: int) -> None:
    graph = prepared(EXAMPLE if which == "example" else untied, pipeline)
    whole = quantized(graph)
    names = list(whole)
    texts = windows(ModelCard.of(graph).vocab_size)
    chosen = [
        {},
        {names[0]: whole[names[0]]},
        {names[4]: whole[names[4]], names[9]: whole[names[9]]},
        {names[-1]: whole[names[-1]]},
        {names[-1]: quantized(graph, 2)[names[-1]], names[4]: whole[names[4]]},
        whole,
    ]
    found = divergences(graph, texts, chosen, memory_limit=limit)
    floats = apart(graph, texts, {})
    assert (found[0].kl, found[0].top1) == (0.0, 1.0)
    assert all(item.kl > 1e-6 for item in found[1:])
    for item, variant in zip(found, chosen, strict=True):
        assert_close(item, expected(floats, apart(graph, texts, variant), texts))


def test_small_pieces_of_the_vocabulary_and_of_positions(untied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = prepared(untied, "infer-types,discover-inputs")
    whole = quantized(graph)
    texts = windows(ModelCard.of(graph).vocab_size)
    (wanted,) = divergences(graph, texts, [whole])
    monkeypatch.setattr(variants, "LEAST_PIECE", 7)
    monkeypatch.setattr(variants, "PIECE_BYTES", 1)
    monkeypatch.setattr(variants, "POSITIONS", 9)
    (found,) = divergences(graph, texts, [whole])
    assert_close(found, wanted)
    assert found.kl == pytest.approx(wanted.kl, rel=1e-6)


def test_a_table_that_is_replaced_is_what_the_runtime_feeds(untied: Path) -> None:
    graph = prepared(untied, "infer-types,discover-inputs")
    table = graph.tables["embedding"]
    texts = windows(ModelCard.of(graph).vocab_size)
    variant = {table.name: quantized(graph, 3)[table.name]}
    (found,) = divergences(graph, texts, [variant])
    raw = prepared(untied, "infer-types")
    floats = apart(raw, texts, {})
    assert_close(found, expected(floats, apart(raw, texts, variant), texts))
    assert found.kl > 1e-3


def test_a_table_in_pieces(untied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "GATHER_BYTES", 1 << 10)
    graph = prepared(untied, "infer-types")
    table = next(node.inputs[0] for node in graph.nodes if node.op == "Gather" and node.inputs[0].shape == (320, 64))
    texts = windows(320)
    variant = {table.name: QuantizedWeight(table.const, Storage(bits=3, block=32)).dequantized()}
    planned = Evaluator(graph, memory_limit=100 << 10).segments
    assert any(segment.in_pieces and segment.nodes[0].op == "Gather" for segment in planned)
    (found,) = divergences(graph, texts, [variant], memory_limit=100 << 10)
    assert_close(found, expected(apart(graph, texts, {}), apart(graph, texts, variant), texts))


def test_logits_that_are_not_a_plain_product(untied: Path) -> None:
    graph = prepared(untied, "infer-types")
    logits = graph.outputs[0]
    half = graph.add_const("half", InlineTensor(np.array(0.5, np.float32)))
    scaled = graph.add("Mul", [logits, half], types=[TensorType(F32, logits.shape)])
    graph.set_outputs([scaled.output])
    variant = quantized(graph)
    texts = windows(320)
    (found,) = divergences(graph, texts, [variant])
    assert_close(found, expected(apart(graph, texts, {}), apart(graph, texts, variant), texts))


def behind_a_transpose(folder: Path) -> tuple[Graph, str]:
    """The graph with one weight stored the other way round and turned by a node."""
    graph = prepared(folder, "infer-types")
    weight = graph.value("model.layers.1.mlp.up_proj.weight")
    node, index = weight.uses[0]
    turned = graph.add_const("turned", InlineTensor(np.ascontiguousarray(weight.const.load().T)))
    made = graph.add("Transpose", [turned], {"perm": (1, 0)}, types=[weight.type], before=node)
    graph.set_input(node, index, made.output)
    return graph, "turned"


def test_what_a_weight_is_computed_from_may_be_replaced(untied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, name = behind_a_transpose(untied)
    texts = windows(320)
    variant = {name: InlineTensor(graph.value(name).const.load() * np.float32(1.2))}
    wanted = expected(apart(graph, texts, {}), apart(graph, texts, variant), texts)
    assert wanted.kl > 1e-6
    for large in (segments.LARGE_BYTES, 1 << 10):
        monkeypatch.setattr(segments, "LARGE_BYTES", large)
        planned = Evaluator(graph, memory_limit=256 << 20).segments
        assert any(segment.weights for segment in planned) == (large == 1 << 10)
        first, second = divergences(graph, texts, [variant, {}])
        assert_close(first, wanted)
        assert second.kl == 0.0


def test_what_a_weight_in_pieces_is_computed_from_may_not(untied: Path) -> None:
    graph, name = behind_a_transpose(untied)
    variant = {name: InlineTensor(graph.value(name).const.load())}
    with pytest.raises(ValueError, match="beyond the memory limit"):
        divergences(graph, windows(320), [variant], memory_limit=20 << 10)


def test_segments_end_where_little_is_live(untied: Path) -> None:
    graph = prepared(untied, "infer-types,discover-inputs")
    planned = Evaluator(graph, memory_limit=150 << 10).segments
    assert len(planned) >= 3
    for segment in planned[:-1]:
        if not segment.in_pieces:
            assert max(value.shape[-1] for value in segment.outputs) <= 64


def test_what_does_not_differ_is_not_computed_again(untied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = prepared(untied, "infer-types,discover-inputs")
    whole = quantized(graph)
    last = [name for name in whole if ".layers.2." in name]
    runs: list[Session] = []
    run = Session.run
    monkeypatch.setattr(Session, "run", lambda self, *given: (runs.append(self), run(self, *given))[1])
    text = [np.arange(20)]
    counts = []
    for chosen in ([], [{name: whole[name]} for name in last], [{"lm_head.weight": whole["lm_head.weight"]}]):
        runs.clear()
        divergences(graph, text, chosen, memory_limit=100 << 10)
        counts.append(len(runs))
    steps = sum(not item.in_pieces for item in Evaluator(graph, memory_limit=100 << 10).segments)
    assert counts[0] >= 6
    assert counts[0] < counts[1] <= counts[0] + len(last) * (steps // 2)
    assert counts[2] == counts[0]


def test_numbers_do_not_depend_on_the_executor(
    untied: Path, processes: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "POSITIONS", 50)
    graph = prepared(untied, "infer-types,discover-inputs")
    whole = quantized(graph)
    name = "model.layers.1.mlp.up_proj.weight"
    slow = QuantizedWeight(transposed(graph.value(name).const), Storage(bits=4, block=32, method="hqq")).dequantized()
    chosen = [{name: transposed(slow)}, whole, {"lm_head.weight": whole["lm_head.weight"]}]
    found, alone = [], []
    with ThreadPoolExecutor(3) as threads:
        spread = (Spread(processes, 2), Spread(processes, 5), Spread(processes, 2, shares_files=False))
        for number, executor in enumerate((SERIAL, threads, processes, *spread)):
            monkeypatch.setenv("LADING_CACHE", str(tmp_path / str(number)))
            found.append(divergences(graph, windows(320), chosen, executor=executor))
            alone += divergences(graph, windows(320), chosen[1:2], executor=executor)
    assert all(item == found[0] for item in found)
    assert all(item == found[0][1] for item in alone)
    assert found[0][0].kl > 0
    assert not list((tmp_path / "3" / "running").iterdir())


def test_a_replacement_is_evaluated_once(untied: Path) -> None:
    graph = prepared(untied, "infer-types,discover-inputs")
    name = "model.layers.1.mlp.up_proj.weight"

    class Counted(InlineTensor):
        reads = 0

        def load(self) -> np.ndarray:
            Counted.reads += 1
            return super().load()

    tensor = Counted(graph.value(name).const.load() * 1.1)
    first, second = divergences(graph, windows(320), [{name: tensor}, {name: tensor}])
    assert first == second and first.kl > 0
    assert Counted.reads == 1


def test_a_replacement_in_another_float_type_is_converted(untied: Path) -> None:
    graph = prepared(untied, "infer-types,discover-inputs")
    name = "model.layers.0.mlp.down_proj.weight"
    half = graph.value(name).const.load().astype(np.float16)
    texts = [np.arange(30)]
    found, same = divergences(graph, texts, [{name: InlineTensor(half)}, {name: InlineTensor(half.astype(np.float32))}])
    assert found == same


def test_equal_weights_do_not_diverge(untied: Path) -> None:
    graph = prepared(untied, "infer-types,discover-inputs")
    same = {weight.value.name: InlineTensor(weight.value.const.load()) for weight in weights_of(graph)}
    (found,) = divergences(graph, [np.arange(50)], [same])
    assert abs(found.kl) < 1e-10 and found.top1 == 1.0
    assert found.nll == pytest.approx(found.nll_reference, abs=1e-6)


def test_mistakes(untied: Path) -> None:
    graph = prepared(untied, "infer-types,discover-inputs")
    text = [np.arange(8)]
    with pytest.raises(ValueError, match="not a constant"):
        divergences(graph, text, [{"nothing": InlineTensor(np.zeros((2, 2), np.float32))}])
    with pytest.raises(ValueError, match="the constant is"):
        divergences(graph, text, [{"lm_head.weight": InlineTensor(np.zeros((2, 2), np.float32))}])
    for bad in ([np.array([5, 320])], [np.array([-1])], [np.array([], np.int32)]):
        with pytest.raises(LadingError) as error:
            divergences(graph, bad, [])
        assert error.value.code == "Q438"
    floats = Graph()
    floats.add_input("x", TensorType(F32, (1, 4)))
    floats.set_outputs(floats.inputs)
    with pytest.raises(LadingError) as error:
        divergences(floats, text, [])
    assert error.value.code == "Q437"


def test_progress_is_told(untied: Path) -> None:
    graph = prepared(untied, "infer-types,discover-inputs")
    told: list[tuple[int, int]] = []
    divergences(
        graph, [np.arange(8)], [], memory_limit=100 << 10, progress=lambda done, total, what: told.append((done, total))
    )
    assert told[0][0] == 0 and told[-1][0] == told[-1][1] and len(told) > 5
    assert [done for done, _ in told] == sorted(done for done, _ in told)
