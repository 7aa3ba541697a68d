"""The pass that gathers statistics: what it computes, what it keeps, how it goes on after it was stopped, and its
text."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from frontends.checkpoint.load import load
from frontends.text import calibration_text, documents
from frontends.text.calibration_text import load_calibration, shortfall
from frontends.text.chat_template import Chat
from ir.base.diag import LadingError
from ir.base.store import default_store, folder_store
from ir.base.types import F32, TensorType
from ir.evaluate.evaluator import Evaluator
from ir.evaluate.token_feeds import window_feeds
from ir.facts.calibration import Calibration
from ir.graph.graph import Graph
from ir.quant.statistics.moments import CalibrationText, MomentStore
from ir.tensor.elementwise import multiplied
from ir.tensor.inline import InlineTensor
from passes.calibration import bookmark as bookmarks
from passes.framework.context import PassContext
from passes.framework.load import load as load_pipeline
from passes.framework.manager import PassManager
from passes.framework.registry import default_registry
from tests.support.checkpoints import make_checkpoint
from tests.support.paths import ROOT

WINDOWS = tuple(np.random.default_rng(5).integers(0, 320, count).astype(np.int32) for count in (40, 64, 9))
TEXT = CalibrationText(WINDOWS, ())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LADING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), "qwen2", num_hidden_layers=3)


def run(graph: Graph, pipeline: str, text: CalibrationText = TEXT) -> dict[str, int]:
    report = PassManager(load_pipeline(pipeline)).run(graph, PassContext(text))
    return dict(report.passes[-1].counts)


def calibrated(folder: Path, pipeline: str, text: CalibrationText = TEXT) -> tuple[Graph, dict[str, int]]:
    graph = load(folder)
    return graph, run(graph, pipeline, text)


RAW = "infer-types,calibrate"
DISCOVERED = "infer-types,discover-inputs,calibrate"


# ---- numbers ----


@pytest.mark.mnn
@pytest.mark.parametrize("pipeline", [RAW, DISCOVERED, "infer-types,discover-inputs,calibrate{memory=1 threads=1}"])
def test_statistics_are_those_of_the_values_before_the_weights(checkpoint: Path, pipeline: str) -> None:
    graph, counts = calibrated(checkpoint, pipeline)
    fact = graph.required_fact(Calibration)
    assert fact.tokens == 113 and counts["weights"] == len(fact.keys) == 7 * 3 + 1
    readers = {n.inputs[1].name: n.inputs[0].name for n in graph.nodes if n.op == "MatMul" and n.inputs[1].is_const}
    assert set(fact.keys) == set(readers)
    names = list(dict.fromkeys(readers.values()))
    results = Evaluator(graph, names).run_many(window_feeds(graph, WINDOWS))
    store = MomentStore()
    for weight, key in fact.keys.items():
        found = store.load(key)
        x = np.concatenate([item[readers[weight]].reshape(-1, found.features) for item in results]).astype(np.float64)
        assert found.tokens == len(x) == 113
        scale = np.sqrt(np.outer((x**2).mean(0), (x**2).mean(0)))
        assert (np.abs(found.second - x.T @ x / len(x)) / scale).max() < 2e-6
        np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.low, x.min(0), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.high, x.max(0), rtol=1e-5, atol=1e-5)


@pytest.mark.mnn
def test_weights_that_read_one_value_share_statistics(checkpoint: Path) -> None:
    graph, counts = calibrated(checkpoint, DISCOVERED)
    keys = graph.required_fact(Calibration).keys
    layer = "model.layers.1."
    assert len({keys[f"{layer}self_attn.{name}_proj.weight"] for name in "qkv"}) == 1
    assert keys[f"{layer}mlp.up_proj.weight"] == keys[f"{layer}mlp.gate_proj.weight"]
    assert keys[f"{layer}mlp.up_proj.weight"] != keys[f"{layer}self_attn.q_proj.weight"]
    assert counts["computed"] == len(set(keys.values())) == 4 * 3 + 1


@pytest.mark.mnn
def test_the_logits_are_not_computed(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    constants = Evaluator._constants
    monkeypatch.setattr(
        Evaluator,
        "_constants",
        lambda self, segment, hold=True: (read.extend(v.name for v in segment.consts), constants(self, segment, hold))[
            1
        ],
    )
    calibrated(checkpoint, DISCOVERED)
    assert "model.layers.2.mlp.up_proj.weight" in read
    assert "lm_head.weight" not in read and "model.layers.2.mlp.down_proj.weight" in read


def two_readers(weight: np.ndarray) -> Graph:
    """Ids pick rows; one matrix multiplies them twice, and a graph input of the same rows once more."""
    graph = Graph()
    ids = graph.add_input("ids", TensorType(load_type("i64"), (1, "n")))
    table = graph.add_const("table", InlineTensor(np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)))
    shared = graph.add_const("w", InlineTensor(weight))
    rows = graph.add("Gather", [table, ids], types=[TensorType(F32, (1, "n", 4))])
    once = graph.add("MatMul", [rows.output, shared], types=[TensorType(F32, (1, "n", 4))])
    active = graph.add("Relu", [once.output], types=[TensorType(F32, (1, "n", 4))])
    twice = graph.add("MatMul", [active.output, shared], types=[TensorType(F32, (1, "n", 4))])
    graph.set_outputs([twice.output])
    return graph


def load_type(name: str):
    from ir.base.types import DTYPES

    return DTYPES[name]


def test_a_weight_that_is_read_twice_has_the_statistics_of_both(cache: Path) -> None:
    from ir.base.types import Dim

    graph = two_readers(np.random.default_rng(1).standard_normal((4, 4)).astype(np.float32))
    seq = graph.add_dim(Dim("n", 1, None))
    for value in [*graph.inputs, *(node.output for node in graph.nodes)]:
        shape = tuple(seq if dim == "n" else dim for dim in value.shape)
        graph.set_type(value, TensorType(value.dtype, shape))
    text = CalibrationText((np.array([1, 2, 8]), np.array([0, 3])), ())
    counts = run(graph, RAW, text)
    found = MomentStore().load(graph.required_fact(Calibration).keys["w"])
    table, weight = graph.value("table").const.load(), graph.value("w").const.load()
    rows = table[[1, 2, 8, 0, 3]]
    x = np.concatenate([rows, np.maximum(rows @ weight, 0)])
    assert counts["computed"] == 1 and found.tokens == 10
    np.testing.assert_allclose(found.second, x.T @ x / 10, rtol=1e-5)


def test_what_is_not_finite_is_an_error(checkpoint: Path, cache: Path) -> None:
    graph = load(checkpoint)
    weight = graph.value("model.layers.1.mlp.down_proj.weight")
    graph.set_const(weight, InlineTensor(np.full(weight.shape, np.nan, np.float32)))
    with pytest.raises(LadingError) as error:
        run(graph, RAW)
    assert error.value.code == "Q436" and "model.layers.2.self_attn.q_proj.weight" in str(error.value)


def test_a_run_without_text(checkpoint: Path) -> None:
    graph = load(checkpoint)
    with pytest.raises(LadingError) as error:
        PassManager(load_pipeline(RAW)).run(graph, PassContext())
    assert error.value.code == "P321"
    with pytest.raises(LadingError) as error:
        run(load(checkpoint), RAW, CalibrationText((), ()))
    assert error.value.code == "Q433"


def test_the_registry_knows_the_pass() -> None:
    info = default_registry().describe("calibrate")
    assert info.requires == ("typed",) and info.establishes == ("calibration",) and not info.lossy


# ---- what is kept ----


class Steps:
    """Counts segments that are evaluated, and may stop the run before one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[int] = []
        self.stop: int | None = None
        advance = Evaluator.advance

        def counted(evaluator: Evaluator, place: int, *given: object) -> None:
            if place == self.stop:
                raise KeyboardInterrupt
            self.done.append(place)
            advance(evaluator, place, *given)

        monkeypatch.setattr(Evaluator, "advance", counted)


SMALL = "infer-types,discover-inputs,calibrate{memory=1}"


@pytest.mark.mnn
def test_a_second_run_evaluates_nothing(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch)
    first, counts = calibrated(checkpoint, SMALL)
    assert steps.done and counts["cached"] == 0
    steps.done.clear()
    second, again = calibrated(checkpoint, SMALL)
    assert steps.done == []
    assert again == {"weights": counts["weights"], "computed": 0, "cached": counts["computed"]}
    assert first.required_fact(Calibration) == second.required_fact(Calibration)


@pytest.mark.mnn
def test_the_memory_option_does_not_change_keys(checkpoint: Path) -> None:
    _, counts = calibrated(checkpoint, DISCOVERED)
    assert calibrated(checkpoint, SMALL)[1]["cached"] == counts["computed"]


@pytest.mark.mnn
def test_keys_follow_the_text_and_what_is_below(checkpoint: Path, tmp_path: Path) -> None:
    graph, _ = calibrated(checkpoint, DISCOVERED)
    keys = graph.required_fact(Calibration).keys
    other = calibrated(checkpoint, DISCOVERED, CalibrationText(WINDOWS[:2], ()))[0].facts[Calibration.name].keys
    assert set(keys.values()).isdisjoint(other.values())

    changed = load(checkpoint)
    weight = changed.value("model.layers.1.mlp.up_proj.weight")
    factors = InlineTensor(np.full(weight.shape[1], 1.5, np.float32))
    changed.set_const(weight, multiplied(weight.const, factors, 1))
    counts = run(changed, DISCOVERED)
    found = changed.required_fact(Calibration).keys
    same = {name for name in keys if found[name] == keys[name]}
    assert {name for name in keys if ".layers.0." in name} <= same
    assert weight.name in same and "model.layers.1.mlp.down_proj.weight" not in same
    assert not any(".layers.2." in name for name in same) and "lm_head.weight" not in same
    assert counts["computed"] == len({found[name] for name in keys if name not in same}) == 6

    held_out = CalibrationText(WINDOWS, (np.arange(40, dtype=np.int32),))
    assert calibrated(checkpoint, DISCOVERED, held_out)[1]["computed"] == 0


@pytest.mark.mnn
def test_a_checkpoint_written_again_in_its_place_is_another_one(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "llama")
    _, counts = calibrated(folder, DISCOVERED)
    make_checkpoint(folder, "llama", seed=1)
    for path in folder.glob("*.safetensors"):
        os.utime(path, ns=(1, 1))
    assert calibrated(folder, DISCOVERED)[1] == counts


@pytest.mark.mnn
def test_names_do_not_matter(checkpoint: Path) -> None:
    calibrated(checkpoint, DISCOVERED)
    graph = load(checkpoint)
    PassManager(load_pipeline("infer-types,discover-inputs")).run(graph, PassContext())
    graph.rename(graph.value("model.layers.0.self_attn.attention"), "attended")
    graph.rename(graph.value("lm_head.weight"), "head")
    assert run(graph, "calibrate")["computed"] == 0
    assert "head" in graph.required_fact(Calibration).keys


@pytest.mark.mnn
@pytest.mark.parametrize("pipeline", [SMALL, "infer-types,calibrate{memory=1}"])
def test_a_stopped_run_goes_on_where_it_was(
    checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, pipeline: str
) -> None:
    monkeypatch.setattr("ir.quant.statistics.sums.MomentSums.nbytes", staticmethod(lambda features: 600 << 10))
    steps = Steps(monkeypatch)
    steps.stop = 4
    with pytest.raises(KeyboardInterrupt):
        calibrated(checkpoint, pipeline)
    assert steps.done == [0, 1, 2, 3]
    assert len(list((cache / "running").iterdir())) == 1
    steps.stop = None
    steps.done.clear()
    graph, counts = calibrated(checkpoint, pipeline)
    assert steps.done[0] == 4 and steps.done == list(range(4, len(steps.done) + 4))
    assert counts["cached"] >= 4 and counts["computed"] >= 4
    assert list((cache / "running").iterdir()) == []
    stopped = {name: MomentStore().load(key) for name, key in graph.required_fact(Calibration).keys.items()}
    monkeypatch.setenv("LADING_CACHE", str(cache / "other"))
    graph, _ = calibrated(checkpoint, pipeline)
    for name, key in graph.required_fact(Calibration).keys.items():
        np.testing.assert_array_equal(MomentStore().load(key).second, stopped[name].second)


@pytest.mark.mnn
def test_a_bookmark_that_does_not_fit_is_not_used(
    checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ir.quant.statistics.sums.MomentSums.nbytes", staticmethod(lambda features: 600 << 10))
    steps = Steps(monkeypatch)
    steps.stop = 4
    with pytest.raises(KeyboardInterrupt):
        calibrated(checkpoint, SMALL)
    (bookmark,) = (cache / "running").iterdir()
    whole = bookmark.read_bytes()
    steps.stop = 1
    for damaged in (b"", whole[: len(whole) // 2], whole.replace(b"names", b"gnome")):
        bookmark.write_bytes(damaged)
        steps.done.clear()
        with pytest.raises(KeyboardInterrupt):
            calibrated(checkpoint, SMALL)
        assert steps.done == [0]
    # Statistics that went missing lie before the bookmark, so the run begins at the beginning, and computes only them.
    bookmark.write_bytes(whole)
    steps.stop = None
    graph, _ = calibrated(checkpoint, SMALL)
    key = graph.required_fact(Calibration).keys["model.layers.0.self_attn.q_proj.weight"]
    default_store().remove(f"moments/{key}")
    steps.done.clear()
    assert calibrated(checkpoint, SMALL)[1]["computed"] == 1
    assert steps.done == [0]


def test_damaged_statistics_are_computed_again_and_that_is_told(checkpoint: Path, cache: Path) -> None:
    calibrated(checkpoint, SMALL)
    first, *others = sorted((cache / "moments").iterdir())
    data = bytearray(first.read_bytes())
    data[300] ^= 1
    first.write_bytes(data)
    graph = load(checkpoint)
    store = folder_store(cache)
    report = PassManager(load_pipeline(SMALL)).run(graph, PassContext(TEXT, store=store))
    assert report.passes[-1].counts == {"weights": 22, "computed": 1, "cached": len(others)}
    assert [(item.code, item.where) for item in report.all_diagnostics()] == [("Q444", str(first))]
    assert first.read_bytes() != bytes(data) and store.find(f"moments/{first.stem}") is not None


CHILD = """
import os, signal, sys
import numpy as np
from pathlib import Path
from ir.evaluate.evaluator import Evaluator
from tests.passes.calibration.test_calibrate import SMALL, calibrated
import ir.quant.statistics.sums

ir.quant.statistics.sums.MomentSums.nbytes = staticmethod(lambda features: 600 << 10)
advance = Evaluator.advance

def counted(self, place, *given):
    print(place, flush=True)
    advance(self, place, *given)
    if place == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

Evaluator.advance = counted
print(sorted(calibrated(Path(sys.argv[1]), SMALL)[1].items()))
"""


@pytest.mark.mnn
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_process_loses_one_segment_at_most(checkpoint: Path, cache: Path) -> None:
    def child(last: int) -> tuple[int, list[str]]:
        command = [sys.executable, "-c", CHILD, str(checkpoint), str(last)]
        environment = {**os.environ, "LADING_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)
        return done.returncode, done.stdout.split("\n")

    code, lines = child(3)
    assert code == -signal.SIGKILL and lines[:4] == ["0", "1", "2", "3"]
    code, lines = child(99)
    assert code == 0 and lines[0] == "3" and "0" not in lines
    assert child(99)[1][0].startswith("[('cached', 13)")


def test_large_values_are_remembered_now_and_then(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = [100.0]
    monkeypatch.setattr(bookmarks.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(bookmarks, "SMALL", 100)
    mark = bookmarks.Bookmark(folder_store(tmp_path), "run")
    small, large = {"x": np.arange(5.0)}, {"x": np.arange(60.0), "y": np.ones(3, np.float32)}
    mark.save(1, [small])
    assert mark.is_due
    mark.save(2, [large, small | {"y": np.ones(0, np.float32)}])
    assert not mark.is_due
    place, (first, second) = mark.load()
    assert place == mark.place() == 2 and list(first) == list(second) == ["x", "y"]
    np.testing.assert_array_equal(first["x"], large["x"])
    np.testing.assert_array_equal(second["x"], small["x"])
    clock[0] += bookmarks.SECONDS
    assert mark.is_due


# ---- text ----


def lines(path: Path, *items: object) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


def test_plain_text_becomes_windows(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {number} of the text\n" for number in range(400)), encoding="utf-8")
    text = load_calibration(path, checkpoint, tokens=256, held_out=128, window=64)
    assert [len(item) for item in text.calibration] == [64] * 4
    assert [len(item) for item in text.held_out] == [64] * 2
    assert all(item.dtype == np.int32 for item in text.calibration + text.held_out)
    assert shortfall(text, tokens=256, held_out=128) is None
    again = load_calibration(path, checkpoint, tokens=256, held_out=128, window=64)
    assert again.digest() == text.digest()


def test_windows_are_disjoint_and_spread(checkpoint: Path) -> None:
    stream = np.arange(10_000, dtype=np.int32)
    for tokens, held_out, window in ((640, 128, 64), (8192, 2048, 512), (9000, 990, 37), (64, 64, 64)):
        text = calibration_text._cut(stream, [7], tokens, held_out, window, "")
        windows = sorted((*text.calibration, *text.held_out), key=lambda item: item[1])
        assert all(item[0] == 7 and len(item) <= window for item in windows)
        assert all(a[-1] < b[1] for a, b in pairwise(windows))
        assert windows[0][1] <= 5000 <= windows[-1][-1]
        places = [index for index, item in enumerate(windows) if any(item is held for held in text.held_out)]
        gaps = np.diff([-1, *places, len(windows)])
        assert gaps.max() <= 2 * max(len(windows) // len(places), 1) + 1


def test_less_text_than_asked_for_is_used_whole_and_told(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("word " * 500, encoding="utf-8")
    text = load_calibration(path, checkpoint, tokens=8192, held_out=2048, window=64)
    total = sum(map(len, text.calibration + text.held_out))
    warning = shortfall(text)
    assert warning is not None and warning.severity == "warning" and str(len(text.held_out) * 64) in warning.message
    assert text.held_out and len(text.calibration) > 2 * len(text.held_out)
    path.write_text("word " * 40, encoding="utf-8")
    short = load_calibration(path, checkpoint, tokens=8192, held_out=2048, window=512)
    assert len(short.calibration) == len(short.held_out) == 1 and total > 64
    assert 32 <= len(short.calibration[0]) < 512


def test_too_little_text(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    for content, code in (("", "Q481"), ("word " * 3, "Q433")):
        path.write_text(content)
        with pytest.raises(LadingError) as error:
            load_calibration(path, checkpoint)
        assert error.value.code == code


def test_chats_go_through_the_template(checkpoint: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    chat = {"messages": [{"role": "user", "content": "Hello there " * 40}, {"role": "assistant", "content": "Hi."}]}
    path = lines(tmp_path / "chats.jsonl", chat, {"text": "Some plain words. " * 20})
    text = load_calibration(path, checkpoint, tokens=4096, held_out=0, window=32)
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    decoded = tokenizer.decode(np.concatenate(text.calibration).tolist(), skip_special_tokens=False)
    assert decoded.startswith("<|im_start|>user\nHello there Hello")
    assert "<|im_start|>assistant\nHi.<|im_end|>" in decoded and "Some plain words." in decoded
    assert text.held_out == ()


def test_templates_of_the_tokenizer_configuration(checkpoint: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "llama")
    (folder / "chat_template.jinja").unlink()
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'x' %}{% continue %}{% endif %}"
        "{{ m.content | trim }}|{{ strftime_now('%Y') }}|{{ m | tojson }}{% endfor %}"
    )
    settings = {"bos_token": {"content": "<|endoftext|>"}, "chat_template": [{"name": "default", "template": template}]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    found = calibration_text.chat_template(folder)
    chat = [{"role": "x", "content": "no"}, {"role": "user", "content": " <é> "}]
    assert found.render([(Chat(chat), "")]) == ['<|endoftext|><é>|2024|{"role": "user", "content": " <é> "}']


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no system role') }}",
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ 1 / 0 }}",
        "{% for %}",
    ],
)
def test_templates_that_fail_or_reach_too_far(tmp_path: Path, checkpoint: Path, template: str) -> None:
    folder = make_checkpoint(tmp_path / "model", "llama")
    (folder / "chat_template.jinja").write_text(template)
    path = lines(tmp_path / "c.jsonl", {"messages": [{"role": "user", "content": "Hello " * 100}]})
    with pytest.raises(LadingError) as error:
        load_calibration(path, folder)
    assert error.value.code == "Q434"


def test_a_checkpoint_without_template(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "llama")
    (folder / "chat_template.jinja").unlink()
    path = lines(tmp_path / "c.jsonl", {"messages": [{"role": "user", "content": "Hello " * 100}]})
    with pytest.raises(LadingError) as error:
        load_calibration(path, folder)
    assert error.value.code == "Q434" and "line 1" in str(error.value)
    assert load_calibration(None, folder).calibration


@pytest.mark.parametrize(
    "line", ["no json", "[]", "{}", '{"messages": []}', '{"messages": [{"role": "user"}]}', '{"text": 3}', "[" * 9999]
)
def test_bad_lines(tmp_path: Path, checkpoint: Path, line: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    with pytest.raises(LadingError) as error:
        load_calibration(path, checkpoint)
    assert error.value.code == "Q432" and "line 3" in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("Größe ".encode("latin-1") * 300)
    (tmp_path / "long.txt").write_bytes("Größe ".encode("latin-1") * 300_000)
    for path in (tmp_path / "latin.txt", tmp_path / "long.txt", tmp_path / "nothing.txt", tmp_path):
        with pytest.raises(LadingError) as error:
            load_calibration(path, checkpoint)
        assert error.value.code == "Q432"


def test_a_missing_or_broken_tokenizer(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "llama")
    (folder / "tokenizer.json").write_text("{}")
    for _ in range(2):
        with pytest.raises(LadingError) as error:
            load_calibration(None, folder)
        assert error.value.code == "Q435"
        (folder / "tokenizer.json").unlink(missing_ok=True)


def test_windows_begin_with_what_the_tokenizer_puts_in_front(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    folder = make_checkpoint(tmp_path / "model", "llama")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A <|im_end|>", special_tokens=[("<|endoftext|>", 0), ("<|im_end|>", 2)]
    )
    tokenizer.enable_truncation(5)
    tokenizer.save(str(folder / "tokenizer.json"))
    path = lines(tmp_path / "c.jsonl", {"text": "<|endoftext|>" + "some words " * 200})
    text = load_calibration(path, folder, tokens=256, held_out=64, window=64)
    for window in text.calibration + text.held_out:
        assert window[0] == 0 and not np.isin(window[1:], [0, 2]).any() and len(window) == 64


def test_windows_are_no_longer_than_the_model_allows(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "llama", max_position_embeddings=96)
    text = load_calibration(None, folder)
    assert {len(item) for item in text.calibration + text.held_out} == {96}


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_of_a_huge_file_excerpts_from_everywhere_are_read(tmp_path: Path, checkpoint: Path, suffix: str) -> None:
    path = tmp_path / f"huge{suffix}"
    with path.open("w", encoding="utf-8") as file:
        for number in range(60_000):
            line = f"Zeile {number:05d} mit größeren Wörtern"
            file.write((json.dumps({"text": line}) if suffix == ".jsonl" else line) + "\n")
    size = path.stat().st_size
    found = list(documents.read_documents(path, 200_000))
    read = "\n".join(item.text for item in found)
    assert size > 2_000_000 and len(read.encode()) < 300_000
    numbers = [int(line.split()[1]) for line in read.split("\n") if line]
    assert numbers == sorted(set(numbers))
    assert numbers[0] == 0 and numbers[-1] == 59_999 and np.diff(numbers).max() < 2000


def test_a_huge_file_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "line.txt"
    path.write_text("größer " * 200_000, encoding="utf-8")
    read = "".join(item.text for item in documents.read_documents(path, 100_000))
    assert 50_000 < len(read.encode()) < 300_000 and set(read) == set("größer ")


def test_the_sample_is_large_and_diverse_enough() -> None:
    text = load_calibration(None, ROOT / "examples" / "tiny-qwen2.5")
    assert shortfall(text) is None
    assert sum(map(len, text.calibration)) == 8192 and sum(map(len, text.held_out)) == 2048
    raw = (ROOT / "frontends" / "text" / calibration_text.SAMPLE).read_text(encoding="utf-8")
    items = [json.loads(line) for line in raw.splitlines()]
    assert 60_000 <= len(raw.encode()) <= 130_000
    assert sum("messages" in item for item in items) >= 10 and sum("text" in item for item in items) >= 30
    assert len({json.dumps(item) for item in items}) == len(items)
    chinese = sum("\u4e00" <= letter <= "\u9fff" for letter in raw)
    assert chinese > 3500
