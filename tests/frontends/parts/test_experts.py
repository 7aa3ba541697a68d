"""Mixtures of experts as parts of families: routers against the reference, ways to store experts, numbers that do not
fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from frontends.checkpoint.load import load
from ir.base.diag import LadingError
from ir.evaluate.evaluator import evaluate
from ir.infer.engine import infer_types
from ir.verify.stages import verify
from tests.support.families.checkpoints import Golden, kept
from tests.support.families.judge import judge_graph


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Callable[[str], tuple[Path, Golden]]:
    """A case's checkpoint and goldens, made when first asked for."""
    folder = tmp_path_factory.mktemp("mixtures")
    return lambda name: kept(folder, name, tokenizer=False)


ROUTERS = {
    "qwen2_moe": "softmax, shared expert with a gate, layers without experts",
    "glm4_moe": "sigmoid, correction, groups by their two best, renormalised and scaled, shared experts",
    "ernie4_5_moe": "correction of a softmax, least sum, experts in some layers",
    "gpt_oss_hub": "softmax of the chosen, biases, bounded operands, stacked tensors with mixed rows",
    "granitemoe": "softmax of the chosen, stacked tensors",
    "phimoe": "one choice after the other",
    "hunyuan_v1_moe_hub": "a number of choices for each layer",
}


@pytest.mark.parametrize("name", ROUTERS)
def test_routers_agree_with_the_reference(checkpoint, name):
    verdict = judge_graph(*checkpoint(name))
    assert verdict.status == "right", verdict
    graph = load(checkpoint(name)[0])
    assert infer_types(graph) == [] and verify(graph) == []


def changed(source: Path, folder: Path, edit: Callable[[dict, dict], None]) -> Path:
    """A copy of a checkpoint with another configuration and other tensors."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    edit(config, tensors)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / "model.safetensors")
    return folder


def test_experts_that_are_stored_together_are_the_same(checkpoint, tmp_path):
    source, golden = checkpoint("qwen3_moe")

    def stack(config: dict, tensors: dict) -> None:
        at, each = "model.layers.0.mlp.experts", "model.layers.0.mlp.experts.{}.{}_proj.weight"
        parts = {word: [tensors.pop(each.format(e, word)) for e in range(6)] for word in ("gate", "up", "down")}
        pairs = zip(parts["gate"], parts["up"], strict=True)
        tensors[f"{at}.gate_up_proj"] = np.stack([np.concatenate(pair) for pair in pairs])
        tensors[f"{at}.down_proj"] = np.stack(parts["down"])

    folder = changed(source, tmp_path / "stacked", stack)
    feeds = {"input_ids": golden.ids[1]}
    np.testing.assert_array_equal(*(evaluate(load(item), feeds)["logits"] for item in (source, folder)))
    names = [set(load(item).consts) for item in (source, folder)]
    assert names[0] == names[1], "a matrix is called the same however it is stored"


def test_no_shared_experts_where_the_file_says_none(checkpoint, tmp_path):
    def drop(config: dict, tensors: dict) -> None:
        config["n_shared_experts"] = 0
        for name in [name for name in tensors if "shared" in name]:
            del tensors[name]

    graph = load(changed(checkpoint("glm4_moe")[0], tmp_path / "none", drop))
    assert not any("shared" in name for name in graph.consts)


@pytest.mark.parametrize(
    ("name", "settings", "text"),
    [
        ("qwen3_moe", {"num_experts_per_tok": 7}, "7 experts cannot be chosen from 6"),
        ("glm4_moe", {"num_experts_per_tok": 5}, "5 experts cannot be chosen from 4"),
        ("glm4_moe", {"n_group": 3}, "8 experts are not 3 equal groups"),
        ("glm4_moe", {"topk_group": 5}, "of which 5 are kept"),
        ("hunyuan_v1_moe_hub", {"moe_topk": [1]}, "a list of 1 numbers says nothing of layer 1"),
    ],
)
def test_numbers_that_do_not_fit(checkpoint, tmp_path, name, settings, text):
    folder = changed(checkpoint(name)[0], tmp_path / "bad", lambda config, tensors: config.update(settings))
    with pytest.raises(LadingError) as caught:
        load(folder)
    assert caught.value.code == "F536" and text in str(caught.value)


@pytest.mark.parametrize("value", [0, "two", [2, 0], [], 1.5])
def test_counts_are_whole_numbers_or_lists_of_them(checkpoint, tmp_path, value):
    folder = changed(checkpoint("qwen3_moe")[0], tmp_path / "bad", lambda c, t: c.update(num_experts_per_tok=value))
    with pytest.raises(LadingError) as caught:
        load(folder)
    assert caught.value.code == "F531" and "num_experts_per_tok" in str(caught.value)
