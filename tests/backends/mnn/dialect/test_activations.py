"""What the runtime does to activations: the operator, the pass, and that the real runtime of every release agrees."""

from __future__ import annotations

import json

import numpy as np
import pytest

from backends.mnn.lower.simulated import simulate, simulated
from backends.mnn.read.decoded_weights import MnnModel
from backends.mnn.run.native import EXACT_CONFIG
from backends.mnn.verify.logits import ACTIVATION_BAR, LEVELS, Level, Subject, verify
from backends.mnn.write.configs import recommend
from frontends.checkpoint.load import load
from ir.evaluate.evaluator import Evaluator, evaluate
from ir.facts.inputs import DynamicInputs
from ir.quant.storage import Storage
from ir.tensor.inline import InlineTensor
from ir.text.parser import parse
from ir.text.printer import print_graph
from ir.verify.stages import verify as check
from passes.framework.context import PassContext
from passes.framework.load import load as load_pipeline
from passes.framework.manager import PassManager
from passes.framework.registry import built_in_registry
from tests.support.checkpoints import make_checkpoint
from tests.support.runs import compiled, each_release, interpreters, logits_of, pieces, run_actions
from tools.compile.job import EXAMPLE

F = np.float32


# ---- the operator ----


def operator(x, joint=None, **attrs):
    words = " ".join(f"{key} = {value}," for key, value in attrs.items()).rstrip(",")
    inputs = "%x" if joint is None else "%x, %n"
    more = "" if joint is None else "  input %n: i32[1]\n"
    shape = ", ".join(map(str, x.shape))
    text = f'lading 1\ngraph g {{\n  opset "" 24\n  input %x: f32[{shape}]\n{more}'
    return parse(text + f"  %y: f32[{shape}] = mnn.DynamicQuantizeRows({inputs}) {{{words}}}\n  output %y\n}}")


def quantized(x, joint=None, **attrs):
    graph = operator(x, joint, **attrs)
    feeds = {"x": x} if joint is None else {"x": x, "n": np.array([joint], np.int32)}
    return evaluate(graph, feeds)["y"]


def by_row(x):
    largest = np.abs(x).max(axis=1, keepdims=True)
    return np.rint(x * (F(127) / largest)) * (largest / F(127))


def alone(row):
    low, high = row.min(), row.max()
    if len(row) % 8:
        low, high = min(low, F(0)), max(high, F(0))
    span = F(high - low)
    shift = F(-low) * F(255) / span - F(128)
    codes = np.clip(row * (F(255) / span) + shift, -128, 127)
    codes = np.trunc(codes + np.where(codes < 0, F(-0.5), F(0.5)))
    return (codes - shift) * (span / F(255))


def by_block(row, block, rounded):
    parts = []
    for part in row.reshape(-1, block):
        low, span = part.min(), F(part.max() - part.min())
        place = F(-low) * F(255) / span
        place = np.trunc(place + F(0.5) * np.sign(place)) if rounded else place
        codes = np.clip(np.rint(part * (F(255) / span) + (place - F(128))), -128, 127)
        parts.append((codes + F(128)) * (span / F(255)) + low)
    return np.concatenate(parts)


def rows(count, width, seed=0):
    return (np.random.default_rng(seed).normal(0.3, 2, (count, width))).astype(F)


def test_rows_of_one_call_are_symmetric():
    x = rows(5, 24)
    np.testing.assert_allclose(quantized(x), by_row(x), rtol=1e-6)
    np.testing.assert_array_equal(quantized(x), quantized(x, joint=5))


def test_halves_go_to_even_in_one_call_and_away_from_zero_alone():
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3]], F)
    together = quantized(np.repeat(x, 2, axis=0))
    np.testing.assert_array_equal(together[0], [127, 0, 2, 2, 0, -2, -2, 3])
    ramp = np.array([[0, 255, 127.5, 128.5, 129.5, 126.5, 1.5, 253.5]], F)
    np.testing.assert_array_equal(quantized(ramp)[0], [0, 255, 127, 129, 130, 126, 1, 254])


@pytest.mark.parametrize("width", [24, 20])
def test_a_row_alone_is_asymmetric(width):
    x = np.abs(rows(1, width)) + F(1)
    np.testing.assert_allclose(quantized(x)[0], alone(x[0]), rtol=1e-5)
    # Channels that fill no whole pack are counted with the zeros behind them.
    step = (x.max() - (0 if width % 8 else x.min())) / 255
    assert np.abs(quantized(x) - x).max() <= 0.51 * step < np.abs(by_row(x) - x).max()


def test_rows_behind_the_first_call_are_alone():
    x = rows(6, 16)
    found = quantized(x, joint=4)
    np.testing.assert_allclose(found[:4], by_row(x[:4]), rtol=1e-6)
    np.testing.assert_allclose(found[4:], [alone(row) for row in x[4:]], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(quantized(x, joint=1), [alone(row) for row in x], rtol=1e-5, atol=1e-6)


def test_blocks_round_their_zero_point_in_rows_left_over_from_four():
    x = rows(6, 32)
    found = quantized(x, option=2, block=8)
    wanted = [by_block(row, 8, number >= 4) for number, row in enumerate(x)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    wanted = [by_block(row, 8, True) for row in x]
    np.testing.assert_allclose(quantized(x, joint=0, option=2, block=8), wanted, rtol=1e-5, atol=1e-6)
    whole = quantized(x, option=2)
    np.testing.assert_allclose(whole, quantized(x, option=2, block=32), rtol=0)


@pytest.mark.parametrize("option", [0, 1, 2])
@pytest.mark.parametrize("joint", [0, 5])
@pytest.mark.parametrize("value", [0.0, 1.5, -2.0])
def test_constant_rows_stay_as_they_are(option, joint, value):
    x = np.full((5, 16), value, F)
    np.testing.assert_allclose(quantized(x, joint=joint, option=option, block=8 if option == 2 else 0), x, rtol=1e-6)


def test_channels_may_come_before_axes_of_extent_one_or_last():
    x = rows(6, 16)
    np.testing.assert_array_equal(quantized(x.reshape(6, 16, 1, 1)).reshape(6, 16), quantized(x))
    np.testing.assert_array_equal(quantized(x.reshape(2, 3, 16), axis=-1).reshape(6, 16), quantized(x))


@pytest.mark.parametrize(
    ("shape", "attrs"), [((4, 16, 3, 1), {}), ((2, 3, 16, 1, 1), {"axis": 2}), ((4, 16), {"option": 2, "block": 12})]
)
def test_what_has_no_meaning_is_a_type_error(shape, attrs):
    assert {item.code for item in check(operator(np.zeros(shape, F), **attrs))} == {"T212"}


# ---- the pass ----


def lowered(source, pipeline):
    graph = load(source)
    PassManager(load_pipeline(pipeline), ()).run(graph, PassContext())
    return graph


@pytest.fixture(scope="module")
def shallow(tmp_path_factory):
    """One layer: most positions meet no activation that lies on the border between two codes."""
    return make_checkpoint(tmp_path_factory.mktemp("shallow") / "source", "llama", num_hidden_layers=1, seed=5)


def inserted(graph):
    return [node for node in graph.nodes if node.op == "mnn.DynamicQuantizeRows"]


def test_the_pass_stands_before_integer_weights_only(shallow):
    graph = lowered(shallow, "default{bits=4 logits-bits=16},simulate-activations")
    found = inserted(graph)
    # q, k and v share one value, so do gate and up; output and down read their own; the logits are floats.
    assert [len(node.output.users) for node in found] == [3, 1, 2, 1]
    assert {node.attrs["option"] for node in found} == {0}
    assert PassManager(load_pipeline("simulate-activations"), ()).run(graph, PassContext()).passes[0].counts == {
        "inserted": 0
    }


def test_the_pass_works_before_legalization_too(shallow):
    early = "infer-types,discover-inputs,assign-precision{bits=8 logits-bits=8},insert-qdq,simulate-activations"
    late = lowered(shallow, "int8,simulate-activations")
    ids = np.arange(3, 14)
    results = []
    for graph in (lowered(shallow, early), late):
        fact = graph.required_fact(DynamicInputs)
        (logits,) = evaluate(graph, fact.feeds(graph, ids, index=0)).values()
        results.append(logits.reshape(len(ids), -1))
    gaps = np.abs(results[0] - results[1]).max(axis=1)
    assert np.median(gaps) < 1e-4


def test_float_models_have_nothing_to_quantize(shallow):
    graph = lowered(shallow, "fp16,simulate-activations{decode}")
    assert inserted(graph) == [] and not graph.has("joint_rows")


def test_options_reach_the_operator(shallow):
    graph = lowered(shallow, "default{bits=8 block=32 logits-bits=4},simulate-activations{dynamic-option=2 decode}")
    assert {(node.attrs["option"], node.attrs["block"]) for node in inserted(graph)} == {(2, 32)}
    assert {node.inputs[1].const.load().tolist()[0] for node in inserted(graph)} == {0}


def test_the_pass_is_lossy_and_leaves_no_model_to_write():
    cls = built_in_registry().pass_class("simulate-activations")
    assert cls.lossy and "mnn" in cls.breaks


def test_a_simulation_ends_without_a_trace(shallow):
    graph = lowered(shallow, "int8")
    before = print_graph(graph)
    with simulated(graph) as count:
        assert inserted(graph) and count in graph.inputs
    assert print_graph(graph) == before
    with pytest.raises(ZeroDivisionError), simulated(graph):
        raise ZeroDivisionError
    assert print_graph(graph) == before
    assert simulate(lowered(shallow, "fp32")) == []


# ---- the real runtime ----

LENGTH = 11
LOW = {"memory": "low", "precision": "low"}
STORAGES = {
    "int8": "default{bits=8 logits-bits=8 block=32}",
    "int4": "default{bits=4 logits-bits=4 block=32}",
    "int2": "default{bits=2 logits-bits=2 block=16}",
    "rows": "default{bits=8 logits-bits=8 block=0}",
}


@pytest.fixture(scope="module")
def stored(shallow, tmp_path_factory):
    """Folder, token windows, logits of the decoded weights and predictions by option and decoded tokens, by storage."""
    folder = tmp_path_factory.mktemp("stored")
    rng = np.random.default_rng(0)
    windows = [rng.integers(3, 300, LENGTH).tolist() for _ in range(6)]
    found = {}
    for name, pipeline in STORAGES.items():
        graph = lowered(shallow, pipeline)
        feeds = _feeds(graph, windows)
        decoded = _joined(Evaluator(graph).run_many(feeds))
        predicted = {}
        for option in (0, 2):
            with simulated(graph, option) as count:
                evaluator = Evaluator(graph)
                for decode in (0, LENGTH - 1):
                    fed = [{**given, count.name: np.array([LENGTH - decode], np.int32)} for given in feeds]
                    predicted[option, decode] = _joined(evaluator.run_many(fed))
        found[name] = compiled(shallow, folder / name, pipeline), windows, decoded, predicted
    return found


def _feeds(graph, windows):
    fact = graph.required_fact(DynamicInputs)
    return [fact.feeds(graph, np.array(window), index=0) for window in windows]


def _joined(results):
    return np.concatenate([array.reshape(-1, array.shape[-1]) for result in results for array in result.values()])


@pytest.mark.parametrize("version", each_release())
@pytest.mark.parametrize("storage", STORAGES)
def test_every_release_quantizes_activations_as_predicted(stored, storage, version):
    folder, windows, decoded, predicted = stored[storage]
    for option in (0, 2):
        whole = [pieces(window) for window in windows]
        single = [pieces(*([token] for token in window)) for window in windows]
        results = [
            logits_of(item) for item in run_actions(folder, version, whole + single, **LOW, dynamic_option=option)
        ]
        for decode, parts in ((0, results[: len(windows)]), (LENGTH - 1, results[len(windows) :])):
            measured = np.concatenate(parts)
            scale = np.abs(measured).max()
            gaps = np.abs(predicted[option, decode] - measured).max(axis=1) / scale
            # Without a rounding flip the two differ by float rounding alone; a flip moves a whole code.
            assert np.quantile(gaps, 0.6) < 2e-5, (option, decode)
            assert np.median(np.abs(decoded - measured).max(axis=1)) / scale > 5e-3


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The example with 8-bit weights, set to quantize activations by row: graphs, folder and texts."""
    from tokenizers import Tokenizer

    folder = compiled(EXAMPLE, tmp_path_factory.mktemp("example") / "int8", "int8")
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("dynamic_option") == 2
    (folder / "config.json").write_text(json.dumps(config))
    original, final = load(EXAMPLE), lowered(EXAMPLE, "int8")
    tokenizer = Tokenizer.from_file(str(EXAMPLE / "tokenizer.json"))
    text = tokenizer.encode((EXAMPLE / "evaluation.txt").read_text()[:6000]).ids
    settings = {"memory": "low", "precision": "low", "thread_num": 2}
    return Subject(folder, original, final, [text[:12]], text, settings)


@pytest.fixture(scope="module")
def verified(example):
    return verify(example, Level(1, 16, 2, choices=True), version=_here())


def _here():
    from backends.mnn.target.environments import installed_version

    return installed_version()


def _find(verification, reference, **settings):
    (found,) = (
        item
        for item in verification.measurements
        if item.reference == reference and all(item.settings.get(key, 0) == value for key, value in settings.items())
    )
    return found


def test_predicted_and_measured_loss_agree(verified):
    assert verified.problems == []
    loss = verified.activations
    assert loss.positions > 500 and loss.measured > 3e-4
    assert loss.measured == pytest.approx(loss.predicted, rel=ACTIVATION_BAR)
    shipped = _find(verified, "float", memory="low", dynamic_option=0)
    assert shipped.distance.kl == pytest.approx(shipped.kl_predicted, rel=0.1)
    assert shipped.perplexity == pytest.approx(shipped.perplexity_predicted, rel=5e-3)
    model = _find(verified, "runtime model")
    assert model.distance.kl < shipped.distance.kl / 2


def test_exact_arithmetic_is_predicted_by_the_decoded_weights(verified):
    exact = _find(verified, "float", memory="normal")
    assert exact.distance.kl == pytest.approx(exact.kl_predicted, rel=1e-3)
    assert exact.perplexity == pytest.approx(exact.perplexity_predicted, rel=1e-5)


def test_another_choice_of_settings_is_measured(verified):
    by_block, by_row = (_find(verified, "float", memory="low", dynamic_option=option) for option in (2, 0))
    assert by_block.distance.kl < by_row.distance.kl / 2


def test_weights_read_back_from_disk_give_the_runtimes_numbers(example, verified):
    """The graph with every number taken from the files by the independent reader, against the runtime's own logits."""
    model = MnnModel(example.folder)
    graph = lowered(EXAMPLE, "int8")
    window = list(example.text[:256])
    for node in list(graph.nodes):
        if node.op == "mnn.Convolution":
            array = np.ascontiguousarray(model.decode(node.output.name).T)
            graph.set_input(node, 1, graph.add_const(f"{node.output.name}.read", InlineTensor(array)))
    fact = graph.required_fact(DynamicInputs)
    feeds = fact.feeds(graph, np.array(window), index=0)
    rows = model.embedding_rows(np.array(window))
    feeds[fact.find("embedding-rows").input] = rows.reshape(len(window), 1, -1)
    reread = _joined([evaluate(graph, feeds)])
    (result,) = run_actions(example.folder, _here(), [pieces(window)], **EXACT_CONFIG)
    measured = logits_of(result)
    assert np.abs(reread - measured).max() < 1e-3
    log_p = measured - np.log(np.exp(measured.astype(np.float64)).sum(axis=1, keepdims=True))
    log_q = reread - np.log(np.exp(reread.astype(np.float64)).sum(axis=1, keepdims=True))
    places = np.arange(len(window) - 1), np.array(window[1:])
    assert log_q[places].mean() == pytest.approx(log_p[places].mean(), abs=1e-6)


def test_a_long_text_is_read_in_groups_of_windows(example, verified, monkeypatch):
    monkeypatch.setattr("backends.mnn.verify.logits.LOGITS_LIMIT", 1)
    found = verify(example, Level(1, 16, 2, choices=True), version=_here())
    assert len(found.measurements) == len(verified.measurements) == 5
    for one, other in zip(found.measurements, verified.measurements, strict=True):
        assert (one.reference, one.settings) == (other.reference, other.settings)
        assert one.distance.positions == other.distance.positions
        assert one.distance.kl == pytest.approx(other.distance.kl, rel=1e-2, abs=1e-9)
        wanted = other.perplexity
        assert one.perplexity == (None if wanted is None else pytest.approx(wanted, rel=1e-3))


def test_a_runtime_that_does_something_else_is_found(example):
    """The settings say that activations are quantized by block; the directory does so by row."""
    wrong = Subject(
        example.folder, example.original, example.final, example.prompts, example.text,
        {**example.settings, "dynamic_option": 2},
    )  # fmt: skip
    found = verify(wrong, Level(1, 2, 1), version=_here())
    assert [item.code for item in found.problems] == ["Q471"]


def test_no_prediction_where_nothing_is_quantized(shallow, tmp_path):
    settings = {"memory": "low", "precision": "low", "thread_num": 1}
    subject = Subject(
        compiled(shallow, tmp_path / "out", "fp16"), load(shallow), lowered(shallow, "fp16"), [[5, 6, 7]], [], settings
    )
    found = verify(subject, LEVELS["quick"], version=_here(), interpreter=interpreters()[_here()])
    assert found.activations is None and found.problems == []
    assert {item.reference for item in found.measurements} == {"float", "decoded weights"}


# ---- recommended settings ----


@pytest.mark.parametrize(
    ("storage", "wanted"),
    [
        ([Storage(bits=32)], ("normal", "high", 0)),
        ([Storage(bits=16), Storage(bits=32)], ("normal", "low", 0)),
        ([Storage(bits=8), Storage(bits=16)], ("low", "low", 2)),
        ([Storage(bits=8, block=64), Storage(bits=6, block=32)], ("low", "low", 2)),
        ([Storage(bits=8, block=64), Storage(bits=4, block=32)], ("low", "low", 0)),
        ([Storage(bits=8, block=12)], ("low", "low", 0)),
    ],
)
def test_settings_follow_what_is_stored(storage, wanted):
    found = recommend(storage)
    assert (found.memory, found.precision, found.dynamic_option) == wanted
    assert found.reason
