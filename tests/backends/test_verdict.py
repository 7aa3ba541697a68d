"""The verdict of a compilation: bars, checkpoints that look untrained, and the original implementation as reference."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import frontends.checkpoint.original as original_module
from backends.bars import KL_BARS, KL_USUAL, TOP1_BARS, TOP1_USUAL, Loss, judged
from backends.contract import read
from backends.verdict import Reading, compare_reading, compared, verdict_of
from frontends.checkpoint.load import load
from frontends.checkpoint.original import Original, free_memory, memory_needed, original_logits
from frontends.configuration.class_defaults import class_defaults
from frontends.families.table import FAMILIES
from frontends.parts.norms import Norm
from ir.base.diag import Diagnostic, LadingError
from ir.evaluate.divergence import Distance
from ir.evaluate.evaluator import Evaluator
from ir.evaluate.untrained import Guesses
from tests.support.checkpoints import make_checkpoint, write_weights
from tests.support.paths import ROOT
from tools.compile.advice import command_to_try
from tools.compile.job import EXAMPLE, Request, compile_model

IDS = [list(range(3, 20)), [40, 41, 42]]


def floats(graph) -> list[np.ndarray]:
    """Logits of a graph for `IDS`."""
    feeds = [{"input_ids": np.array([ids])} for ids in IDS]
    return [next(iter(found.values()))[0] for found in Evaluator(graph).run_many(feeds)]


# ---- bars ----


def benchmark_rows():
    """KL, first choices kept and width of what `benchmarks/results` has of single widths."""
    widths = {"Lading default": 4, "Lading int4": 4, "Lading int8": 8, "Lading calibrated": 4}
    for path in sorted((ROOT / "benchmarks" / "results").glob("quality-*.json")):
        for name, row in json.loads(path.read_text())["methods"].items():
            found = name.split()
            bits = int(found[2]) if name.startswith("Lading uniform") else widths.get(name)
            if bits is not None and (bits > 3 or "gptq" in name):
                yield pytest.param(row["shipped"], bits, id=f"{path.stem} {name}")


@pytest.mark.parametrize(("row", "bits"), list(benchmark_rows()))
def test_what_widths_cost_on_trained_models_is_usual(row, bits):
    loss = Loss(row["kl"], row["top1"], bits, "the shipped settings")
    assert loss.usual and not loss.problem and judged(loss, "V701", "", trained=True) == []
    assert loss.told(trained=True).endswith(f"usual for {bits} bits")


def test_every_bar_is_looser_than_what_is_usual_and_than_that_of_more_bits():
    for bits in KL_BARS:
        assert KL_USUAL[bits] <= KL_BARS[bits] and TOP1_USUAL[bits] >= TOP1_BARS[bits]
    for table in (KL_BARS, KL_USUAL):
        assert list(table.values()) == sorted(table.values())
    for table in (TOP1_BARS, TOP1_USUAL):
        assert list(table.values()) == sorted(table.values(), reverse=True)


def test_a_model_that_lost_its_choices_is_refused_whatever_the_divergence():
    """The divergence of flat distributions is small although next to nothing is left of them."""
    found = judged(Loss(0.3, 0.165, 4, "the shipped settings"), "V701", "more bits", trained=True)
    assert [item.code for item in found] == ["V701"] and "16.5%" in found[0].message
    assert [item.severity for item in judged(Loss(0.2, 0.9, 4, ""), "V701", "", trained=True)] == ["warning"]
    assert [item.code for item in judged(Loss(0.01, 0.7, 4, ""), "V701", "", trained=True)] == ["V722"]
    assert judged(Loss(9.0, 0.0, 4, ""), "V701", "", trained=False) == []
    ids = [judged(Loss(kl, 0.3, 4, "", text=False), "V701", "", trained=True) for kl in (0.7, 0.9)]
    assert [[item.code for item in items] for items in ids] == [[], ["V701"]]
    assert [item.code for item in judged(Loss(0.1, 0.9, 4, ""), "V701", "", trained=False, bar=0.05)] == ["V701"]


# ---- untrained checkpoints ----


def test_guesses_are_known_for_what_they_are():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 50, 40)
    flat = Guesses(50)
    flat.add(rng.normal(0, 0.1, (40, 50)).astype(np.float32), None)
    assert flat.untrained and "3.91" in str(flat)
    wrong = Guesses(50)
    wrong.add(rng.normal(0, 20, (40, 50)).astype(np.float32), ids)
    assert wrong.untrained
    good = rng.normal(0, 1, (40, 50)).astype(np.float32)
    good[np.arange(39), ids[1:]] += 6
    wrong.add(good, ids)
    assert not wrong.untrained
    assert not Guesses(50).untrained


def initialised(folder: Path) -> Path:
    """A checkpoint with weights as an initializer leaves them."""
    made = make_checkpoint(folder, "qwen2")
    rng = np.random.default_rng(2)

    from tests.support.checkpoints import hot_tensors

    tensors = hot_tensors(json.loads((made / "config.json").read_text()), 0, "f32")
    flat = {
        name: (np.ones_like(array) if "norm" in name else rng.normal(0, 0.02, array.shape)).astype(np.float32)
        for name, array in tensors.items()
    }
    for path in made.glob("*.safetensors"):
        path.unlink()
    write_weights(made, flat)
    return made


@pytest.mark.parametrize("make", [initialised, lambda folder: make_checkpoint(folder, "llama")], ids=["flat", "hot"])
def test_an_untrained_checkpoint_is_named_and_not_judged_by_the_bars_of_trained_ones(make, tmp_path):
    result = compile_model(Request(str(make(tmp_path / "model")), tmp_path / "out", "int4"))
    assert "V721" in [item.code for item in result.warnings]
    assert result.verdict.outcome == "passed with warnings" and "V721" in result.verdict.text
    assert "not judged since the checkpoint looks untrained" in result.verdict.text
    assert "usual" not in result.verdict.text
    assert read(tmp_path / "out").verdict.text == result.verdict.text


# ---- the original implementation ----


def test_a_checkpoint_that_is_read_right_is_verified_against_transformers(tmp_path):
    source = make_checkpoint(tmp_path / "model", "qwen3", frobnicate=1)
    quick = compile_model(Request(str(source), tmp_path / "quick", "fp32"))
    assert "F562" in [item.code for item in quick.warnings]
    assert "not verified against the original implementation, which may read frobnicate" in quick.verdict.text
    assert quick.verdict.original == ""
    full = compile_model(Request(str(source), tmp_path / "full", "fp32", verify="full"))
    assert "F562" not in [item.code for item in full.warnings]
    assert "verified against transformers" in full.verdict.text and "frobnicate" not in full.verdict.text
    contract = read(tmp_path / "full")
    assert contract.verdict.original == full.verdict.original and contract.verdict.unread["unknown"] == ("frobnicate",)
    compared = [item for item in contract.verified if item.reference == "transformers"]
    assert len(compared) == 1 and compared[0].max_abs_error < 1e-2 and compared[0].top1 == 1.0


def test_a_checkpoint_that_is_misread_is_refused(tmp_path, monkeypatch):
    """The reader's own graph cannot show that: what is written agrees with it."""
    import frontends.checkpoint.config_file as reader

    source = make_checkpoint(tmp_path / "model", "qwen2")
    monkeypatch.setattr(reader, "class_defaults", lambda name: replace(class_defaults(name), theta=20_000.0))
    assert compile_model(Request(str(source), tmp_path / "quick", "fp32")).verdict.original == ""
    for backend in (None, "onnx"):
        with pytest.raises(LadingError, match="gives other logits than transformers") as caught:
            compile_model(Request(str(source), tmp_path / "out", "onnx-fp32" if backend else "fp32", to=backend,
                                  verify="full"))  # fmt: skip
        assert caught.value.code == "V720" and not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_small_misreadings_are_found(family, tmp_path):
    source = make_checkpoint(tmp_path / "model", family, rope_scaling={"rope_type": "linear", "factor": 2.0})
    row = replace(FAMILIES[family], norm=Norm(offset=0.01))
    wrong = load(source, families={family: row})
    found = compare_reading(source, wrong, IDS, floats(wrong))
    assert found.distance.positions == 20 and [item.code for item in found.problems] == ["V720"]


def test_files_that_round_activations_are_judged_by_what_that_may_cost():
    file = Original(name="onnxruntime 1.32.0 on model.onnx", file="model.onnx", rounds=True)
    near, far = (Reading(file, Distance(40, gap, 16.0, kl, 0.9)) for gap, kl in ((0.7, 0.01), (15.0, 2.5)))
    assert near.verified and not near.problems and not far.verified
    assert not replace(near, original=replace(file, rounds=False)).verified
    (problem,) = far.problems
    assert problem.code == "V720" and "rounding of activations" in problem.message


def run(folder: Path, **limits) -> Original:
    """The original's logits for `IDS`."""
    return original_logits(folder, IDS, **{"parameters": 100_000, "vocabulary": 320, **limits})


def test_reasons_why_there_is_no_original(tmp_path, monkeypatch):
    source = make_checkpoint(tmp_path / "model", "qwen2")
    assert "GB of memory" in run(source, parameters=10**15).reason
    assert "stopped after" in run(source, timeout_s=0.05).reason
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "model_type": "nobody-knows-it"}))
    assert run(source).reason.startswith("transformers: ") and "nobody-knows-it" in run(source).reason
    assert compare_reading(None, load(EXAMPLE), IDS, []).original.reason == "the model is no checkpoint"
    monkeypatch.setattr(original_module, "NEEDED", ("torch", "no_such_package", "nor_this_one"))
    assert run(source).reason == "no_such_package and nor_this_one are not installed"


def test_code_of_the_checkpoint_is_not_run(tmp_path):
    source = make_checkpoint(tmp_path / "model", "qwen2", auto_map={"AutoModelForCausalLM": "own.Own"})
    (source / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Own: pass\n")
    found = compare_reading(source, load(source), IDS, floats(load(source)))
    assert not (tmp_path / "ran").exists()
    assert found.doubts == ["auto_map"]


def test_limits_of_memory_grow_with_the_model():
    assert memory_needed(10**9, 150_000, 100) > 4 * 10**9
    free = free_memory()
    assert free is None or free > 0


# ---- the line ----


def test_the_line_says_what_stands_against_the_result():
    warning = Diagnostic("F560", "left out", severity="warning")
    plain = verdict_of("on MNN 3.6.1: KL 0", Reading(), [], {})
    assert (plain.outcome, plain.text) == ("passed", "passed on MNN 3.6.1: KL 0")
    two = verdict_of("on MNN 3.6.1: KL 0", Reading(), [warning, warning], {})
    assert (two.outcome, two.text) == ("passed with warnings", "passed with 2 warnings (F560) on MNN 3.6.1: KL 0")
    none = verdict_of(None, Reading(unread=["x"]), [], {"unknown": ("x",)})
    assert none.outcome == "not verified" and none.text.endswith("which may read x")
    for file, what in (("m.onnx", "m.onnx on onnxruntime"), ("", "transformers")):
        alone = verdict_of(
            "on MNN 3.6.1: KL 0", Reading(Original(reason="no memory", file=file), expected=True), [], {}
        )
        assert alone.text.endswith(f"; not compared with {what}: no memory") and alone.original == ""


def test_half_precision_has_a_bar_of_its_own():
    rows = np.full((2, 4), 10.0, np.float32)
    for half, off, verified in ((False, 0.01, False), (True, 0.01, True), (True, 1.0, False)):
        found = Original("onnxruntime 1 on m.onnx", logits=(rows,), file="m.onnx", half=half)
        reading = compared(found, [rows + off])
        assert reading.verified is verified and bool(reading.problems) is not verified
        assert all("the model as read here" in item.message for item in reading.problems)


def test_rows_that_the_original_does_not_give_are_left_out():
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    found = Original("onnxruntime 1 on m.onnx", logits=(rows[[0, 2]],), rows=(np.array([0, 2]),), file="m.onnx")
    wrong = rows.copy()
    wrong[1] += 5
    assert compared(found, [wrong]).verified
    wrong[2] += 5
    assert not compared(found, [wrong]).verified
    other = compared(found, [rows[:, :3]])
    assert other.distance is None and "another shape" in other.original.reason and other.original.file == "m.onnx"


@pytest.mark.parametrize(
    ("request_", "pipeline"),
    [
        (Request("m", Path("out")), "calibrated"),
        (Request("m", Path("out"), "int4"), "default"),
        (Request("m", Path("out"), "default{bits=3}"), "int8"),
        (Request("m", Path("out"), max_size="1MB"), "int8"),
        (Request("m", Path("out"), to="onnx"), "onnx-fp16"),
        (Request("m", Path("out"), "onnx-fp16", to="onnx"), "onnx-fp32"),
        (Request("m", Path("out"), "fp16"), ""),
    ],
)
def test_the_command_to_try_loses_less(request_, pipeline):
    found = command_to_try(request_, [Diagnostic("V701", "bad")])
    assert (f" --passes {pipeline}" in found) if pipeline else found == ""
    assert command_to_try(request_, [Diagnostic("V700", "bad")]) == ""
