"""Checkpoints by way of torch: the same numbers as by a row, no weight copied, and an error for whatever is in the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from frontends.checkpoint import via_torch
from frontends.checkpoint.load import load as by_row
from ir.base.diag import LadingError
from ir.base.types import F32
from ir.evaluate.evaluator import Evaluator
from ir.facts.model_card import ModelCard
from ir.tensor.inline import InlineTensor
from tests.support.checkpoints import make_checkpoint
from tests.support.suite.code_record import expect_code

IDS = np.array([[5, 1, 7, 3, 3, 12, 60, 2, 9]])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A Qwen2 with a tensor that no model reads."""
    folder = make_checkpoint(tmp_path_factory.mktemp("via") / "qwen2", "qwen2")
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "extra.weight": np.ones((2, 2), np.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def graph(checkpoint):
    """Its graph by way of torch."""
    return via_torch.load(checkpoint)


def test_both_ways_give_the_same_logits(graph, checkpoint, tmp_path):
    plain = tmp_path / "plain"
    shutil.copytree(checkpoint, plain)
    weights = load_file(plain / "model.safetensors")
    del weights["extra.weight"]
    save_file(weights, plain / "model.safetensors")
    row = by_row(plain)
    wanted = next(iter(Evaluator(row).run({row.inputs[0].name: IDS}).values()))
    (got,) = Evaluator(graph).run({"input_ids": IDS}).values()
    assert np.abs(got - wanted).max() < 1e-5 * max(1.0, np.abs(wanted).max())


def test_weights_are_the_tensors_of_the_checkpoint(graph, checkpoint):
    stored = load_file(checkpoint / "model.safetensors").keys() - {"extra.weight"}
    named = {value.name: value.tensor for value in graph.consts.values() if value.name in stored}
    assert named.keys() == stored
    assert all("model.safetensors" in tensor.loc for tensor in named.values())
    assert not any(node.op == "Transpose" and node.operand(0).is_const for node in graph.nodes)
    assert graph.foreign and [value.name for value in graph.inputs] == ["input_ids"]


def test_what_the_model_does_not_read_is_told(graph, checkpoint):
    card = ModelCard.of(graph)
    (warning,) = (item for item in card.warnings if item.code == "F576")
    expect_code(str(warning), "F576")
    assert "1 tensor of the checkpoint is not used" in warning.message and "extra.weight" in warning.message
    assert card.family == "qwen2" and card.parameters and card.context and card.sources


# ---- what is in the way ----


def refused(code: str, call, *args, **options) -> str:
    """The message of an error."""
    with pytest.raises(LadingError) as caught:
        call(*args, **options)
    assert caught.value.code == code
    return str(caught.value)


def test_a_family_that_transformers_does_not_know(checkpoint, tmp_path):
    folder = tmp_path / "lama"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "lama", "architectures": None}))
    assert "--via torch" in refused("F533", by_row, folder)
    assert "model type `lama`" in refused("F567", via_torch.load, folder)


def test_an_export_that_takes_too_long(checkpoint):
    assert "within 0 s" in refused("F568", via_torch.load, checkpoint, timeout_s=0)


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        ({}, "the model has a parameter model.norm.weight [4], and the checkpoint no such tensor"),
        ({"norm.weight": np.ones(5)}, "the model's parameter model.norm.weight is [4], and the tensor [5]"),
        (
            {"model.norm.weight": np.ones(4), "norm.weight": np.zeros(4)},
            "model.norm.weight and norm.weight are one parameter of the model, and two different tensors",
        ),
    ],
)
def test_a_parameter_that_the_checkpoint_does_not_have(stored, says):
    parameters = [{"name": "model.norm.weight", "names": ["model.norm.weight"], "shape": [4]}]
    tensors = {name: InlineTensor(array.astype(np.float32), F32) for name, array in stored.items()}
    assert says in refused("F569", via_torch.bind, parameters, tensors, Path("model"))


def test_names_with_and_without_what_stands_before_them_are_the_same():
    parameters = [{"name": "model.norm.weight", "names": ["model.norm.weight", "other"], "shape": [4]}]
    for key in ("model.norm.weight", "norm.weight", "language_model.model.norm.weight", "other"):
        tensors = {key: InlineTensor(np.ones(4, np.float32), F32)}
        assert via_torch.bind(parameters, tensors, Path("model")) == [("model.norm.weight", key, (4,))]


def test_packages_that_are_not_installed_are_named(monkeypatch, checkpoint):
    monkeypatch.setattr(via_torch, "find_spec", lambda name: None if name == "onnxscript" else object())
    message = refused("U997", via_torch.load, checkpoint)
    assert "--via torch needs 'onnxscript', which is not installed" in message and "lading[torch]" in message
