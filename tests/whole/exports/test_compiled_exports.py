"""Live exports go the whole way: what is compiled from a file gives the logits of the file, and of its checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from backends.contract import read
from backends.mnn.run.native import EXACT_CONFIG, run_model
from tests.support.exports import checkpoint, export
from tools.compile.command import main
from tools.compile.job import Request, Result, compile_model

pytestmark = pytest.mark.mnn

IDS = [5, 17, 3, 99, 200, 31, 8, 11, 240, 2, 6]


def compiled(model: Path, out: Path, **options) -> Result:
    """In single precision, without a tokenizer unless one is named."""
    return compile_model(Request(str(model), out, "fp32", **{"tokenizer": "none", **options}))


def logits(folder: Path) -> np.ndarray:
    """What MNN computes for `IDS`, float32[tokens, vocabulary]."""
    action = {"do": "forward", "pieces": [IDS]}
    run = run_model(folder / "config.json", [action], overrides=EXACT_CONFIG).require(str(folder))
    return np.asarray(run.results[0]["logits"][0])


def largest(found: np.ndarray, right: np.ndarray) -> float:
    """The largest difference, as a part of the largest value."""
    assert found.shape == right.shape
    return float(np.abs(found - right).max() / np.abs(right).max())


# ---- files ----


def test_an_export_gives_the_logits_of_its_checkpoint(tmp_path):
    made = export("qwen2", "script", mask=True, positions=True, history=True)
    result = compiled(made.path, tmp_path / "file")
    compiled(checkpoint("qwen2"), tmp_path / "checkpoint", verify="none")
    assert largest(logits(tmp_path / "file"), logits(tmp_path / "checkpoint")) < 1e-5
    contract = read(tmp_path / "file")
    assert contract.verdict.original == "onnxruntime 1.32.0 on model.onnx" and result.warnings == []
    kinds = [port.kind for port in contract.raised.inputs]
    assert kinds == ["token-ids", "attention-mask", "positions", *["history"] * 4]
    attention = [region for region in contract.raised.regions if region.kind == "attention"]
    assert len(attention) == 2 and all(region.difference < 1e-5 and region.probes for region in attention)


def test_an_export_of_the_last_row_is_compared_on_several_beginnings(tmp_path):
    made = export("gemma", "script", mask=True, positions=True, rows="last")
    compiled(made.path, tmp_path / "out")
    run = next(item for item in read(tmp_path / "out").verified if item.reference == "onnxruntime")
    assert run.max_abs_error < 1e-3 and 0 < run.decode_tokens < 20 and run.decode_equal_tokens == run.decode_tokens


def test_an_export_in_half_precision_has_a_wider_bar_and_single_precision_inside(tmp_path):
    made = export("stablelm", "script", mask=True, positions=True, history=True, opset=17, half=True)
    contract = (compiled(made.path, tmp_path / "out"), read(tmp_path / "out"))[1]
    errors = {item.reference: item.max_abs_error for item in contract.verified}
    assert contract.verdict.original and errors["float"] < 1e-3 < errors["onnxruntime"] < 0.2


def test_rows_of_the_embedding_and_operators_that_onnxruntime_does_not_know(tmp_path):
    made = export("qwen2", "llm-exporter")
    result = compiled(made.path, tmp_path / "file", embedding=checkpoint("qwen2"))
    assert result.verdict.text.endswith("on model.onnx, LlmExporter operators by their definitions")
    compiled(checkpoint("qwen2"), tmp_path / "checkpoint", verify="none")
    assert largest(logits(tmp_path / "file"), logits(tmp_path / "checkpoint")) < 1e-5


def test_a_full_verification_runs_every_release(tmp_path):
    made = export("phi3", "script", mask=True)
    done = CliRunner().invoke(
        main, [str(made.path), "-o", str(tmp_path), "--force", "--tokenizer", "none", "--passes", "fp32", "--verify", "full"]
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "off from onnxruntime by" in done.stdout
    runs = [item.release for item in read(tmp_path).verified if item.reference == "onnxruntime"]
    assert runs == ["3.4.0", "3.4.1", "3.5.0", "3.6.0", "3.6.1"]


@pytest.mark.parametrize(("family", "options"), [("qwen2", {}), ("stablelm", {"opset": 17, "half": True})])
def test_an_export_goes_to_onnx_too_fed_by_what_its_inputs_hold(family, options, tmp_path):
    made = export(family, "script", mask=True, positions=True, history=True, **options)
    result = compile_model(Request(str(made.path), tmp_path / "out", "onnx", to="onnx"))
    contract = read(tmp_path / "out")
    assert result.verdict.outcome == "passed" and [item.name for item in contract.signature.inputs] == list(made.roles)
    assert min(weight.storage.bits for weight in contract.weights) == 8
    errors = {item.reference: item.max_abs_error for item in contract.verified}
    assert errors["decoded weights"] < 1e-3 < errors["float"]


# ---- by way of torch ----


def test_a_family_without_a_row_is_sent_this_way_and_compiles(tmp_path):
    arguments = [str(checkpoint("jais2")), "-o", str(tmp_path / "out"), "--passes", "fp32", "--tokenizer", "none"]
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 1 and "error[F533]" in refused.stderr and "--via torch" in refused.stderr
    done = CliRunner().invoke(main, [*arguments, "--via", "torch"])
    assert done.exit_code == 0, done.output
    assert "verified against transformers" in " ".join(done.stdout.split())
    contract = read(tmp_path / "out")
    assert contract.raised is not None and [item.file for item in contract.sources] == ["model.safetensors"]
    assert "model.layers.0.self_attn.q_proj.weight" in {weight.name for weight in contract.weights}
