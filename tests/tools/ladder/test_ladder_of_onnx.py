"""A ladder of an ONNX file: its rungs are compiled from the file, and measured against what the file computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.checkpoints import make_checkpoint
from tests.support.paths import EXAMPLE
from tools.ladder.command import main
from tools.ladder.model import digest, float_graph
from tools.shared.formats import Formats

pytestmark = pytest.mark.mnn


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """A checkpoint as an ONNX file."""
    folder = tmp_path_factory.mktemp("ladder")
    source = make_checkpoint(folder / "source", "qwen2")
    formats = Formats()
    formats.write(formats.read(str(source)), str(folder / "model.onnx"))
    return folder / "model.onnx"


def test_rungs_of_a_file(exported, tmp_path):
    text = ["--text", str(EXAMPLE / "evaluation.txt"), "--windows", "2", "--window", "64", "--verify", "none"]
    text += ["--settings", "none"]
    words = [str(exported), "--rungs", "fp32,calibrated", "-o", str(tmp_path), *text]
    done = CliRunner().invoke(main, [*words, "--tokenizer", str(exported.parent / "source"), "--max-kl", "1e-6"])
    assert done.exit_code == 0, done.output
    data = json.loads((tmp_path / "ladder.json").read_text())
    rungs = {rung["name"]: rung for rung in data["rungs"]}
    assert rungs["fp32"]["kl"] < 1e-6 < rungs["calibrated"]["kl"] and rungs["fp32"]["top1"] == 1
    command = data["recommendation"]["command"]
    assert f"lading compile {exported} " in command and "--tokenizer" in command and "--passes fp32" in command


def test_a_file_without_a_tokenizer(exported):
    done = CliRunner().invoke(main, [str(exported), "--rungs", "fp32"])
    assert done.exit_code == 1 and "error[U923]" in done.stderr and "--tokenizer DIR" in done.stderr


def test_the_float_model_has_the_inputs_of_the_runtime_and_the_digest_is_of_the_file(exported):
    assert [value.name for value in float_graph(exported).inputs][-1] == "logits_index"
    assert digest(exported) == digest(exported) != digest(exported.parent / "source")
