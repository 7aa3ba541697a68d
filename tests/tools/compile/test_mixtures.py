"""Mixtures of experts compiled: right on MNN, quantized and verified, and exact as ONNX models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.families.checkpoints import kept
from tests.support.families.judge import judge_mnn
from tests.support.runs import interpreters
from tools.compile.job import Request, compile_model

OUTER = [version for version in ("3.4.0", "3.6.1") if version in interpreters()]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("mixtures")


@pytest.mark.mnn
@pytest.mark.parametrize("name", ["qwen2_moe", "glm4_moe", "phimoe"])
def test_a_mixture_is_right_on_the_oldest_and_the_newest_release(checkpoints, tmp_path, name):
    found = judge_mnn(*kept(checkpoints, name), OUTER, tmp_path)
    assert found and {version: verdict.status for version, verdict in found.items()} == dict.fromkeys(OUTER, "right")


@pytest.mark.mnn
def test_quantized_experts_are_written_read_back_and_run(checkpoints, tmp_path):
    folder, _ = kept(checkpoints, "qwen3_moe")
    result = compile_model(Request(str(folder), tmp_path / "out", "default", verify="quick"))
    contract = json.loads((result.out / "contract.json").read_text())
    stored = {item["name"]: item["storage"]["bits"] for item in contract["weights"]}
    experts = {name: bits for name, bits in stored.items() if ".experts." in name}
    assert len(experts) == 18 and set(experts.values()) == {4}
    assert {bits for name, bits in stored.items() if name.endswith("mlp.gate.weight")} == {16}
    assert all(item["error"] is not None for item in contract["weights"] if ".experts." in item["name"])
    runs = [item for item in contract["verified"] if item["reference"] == "decoded weights"]
    assert runs and all(item["kl"] < 1e-8 for item in runs)


def test_an_onnx_model_of_a_mixture_gives_the_original_logits(checkpoints, tmp_path):
    import onnxruntime

    folder, golden = kept(checkpoints, "glm4_moe")
    compile_model(Request(str(folder), tmp_path / "out", "onnx-fp32", to="onnx", verify="quick"))
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    for ids, wanted in zip(golden.ids, golden.logits, strict=True):
        (found,) = session.run(None, {session.get_inputs()[0].name: ids})
        assert np.abs(found[0] - wanted).max() <= golden.bar
