"""Rows of families, each against the reference implementation, and what their fields do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frontends.checkpoint.config_file import resolve
from frontends.checkpoint.load import load
from frontends.configuration.specs import Product
from frontends.families.rows.llama import ALL_WINDOW
from frontends.families.scheme import Family, Kind
from frontends.families.table import FAMILIES, ROWS
from frontends.parts.norms import Norm
from frontends.parts.softmax import Softmax
from ir.base.diag import LadingError
from ir.evaluate.evaluator import evaluate
from tests.support.checkpoints import BASE, hot_tensor, hot_tensors, make_checkpoint, write_weights
from tests.support.settings.class_defaults import FILE, text

LLAMA = FAMILIES["llama"]

HALF = 6
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": np.linspace(1.0, 1.3, HALF).tolist(),
    "long_factor": np.linspace(1.0, 3.0, HALF).tolist(),
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "norm offset, embedding scale": ("gemma", {"head_dim": 24, "tie_word_embeddings": True}),
    "pairs, partial rotary, sandwich norms, fused gate and up": ("glm4", {"head_dim": 24, "pad_token_id": 0}),
    "pairs of the whole head": (
        "glm4",
        {"head_dim": 16, "partial_rotary_factor": 1.0, "attention_bias": False, "pad_token_id": 0},
    ),
    "norms of the branches, full q/k norm": ("olmo2", {}),
    "multipliers": (
        "granite",
        {
            "attention_multiplier": 0.4,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.22,
            "logits_scaling": 0.6,
        },
    ),
    "fused qkv, longrope on part of the head, window": (
        "phi3",
        {
            "partial_rotary_factor": 0.75,
            "rope_scaling": LONGROPE,
            "original_max_position_embeddings": 16,
            "max_position_embeddings": 64,
            "sliding_window": 12,
            "pad_token_id": 0,
        },
    ),
    "layers without rope": ("smollm3", {"num_hidden_layers": 4, "pad_token_id": 0}),
    "listed layers without rope": ("smollm3", {"num_hidden_layers": 3, "no_rope_layers": [0, 1, 0], "pad_token_id": 0}),
    "no rope at all": ("smollm3", {"no_rope_layers": [0, 0], "pad_token_id": 0}),
    "head q/k norm after the rope": ("hunyuan_v1_dense", {"head_dim": 24}),
}


def save_random_model(folder: Path, model_type: str, config: dict[str, Any]) -> Any:
    """Make a hot model of the reference implementation, save it as a checkpoint and return it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    raw = json.loads(json.dumps({**BASE, **config}))
    settings = AutoConfig.for_model(model_type, **raw)
    model = AutoModelForCausalLM.from_config(settings, attn_implementation="eager").eval()
    tensors = {}
    for name, parameter in model.named_parameters():
        array = hot_tensor(name, tuple(parameter.shape))
        if model_type == "gemma" and name.endswith("norm.weight"):
            array -= 1.0
        parameter.data = torch.from_numpy(array)
        tensors[name] = array
    model.tie_weights()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**raw, "model_type": model_type}))
    write_weights(folder, tensors)
    return model


def logits_of(folder: Path, families: dict[str, Family], ids: np.ndarray) -> np.ndarray:
    return evaluate(load(folder, families=families), {"input_ids": ids})["logits"]


@pytest.mark.parametrize("title", CASES)
def test_fields_agree_with_the_reference(tmp_path: Path, title: str) -> None:
    import torch

    model_type, config = CASES[title]
    for length in (5, 40):
        # A new model each time: the reference keeps state between calls for some ropes.
        model = save_random_model(tmp_path, model_type, config)
        ids = np.random.default_rng(length).integers(0, BASE["vocab_size"], (1, length))
        with torch.no_grad():
            expected = model(torch.from_numpy(ids)).logits.numpy()
        assert 8 < np.abs(expected).max() < 80
        np.testing.assert_allclose(logits_of(tmp_path, dict(FAMILIES), ids), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"norm": Norm(offset=1.0)},
        {"embed_scale": Product((("hidden_size", 0.5),))},
        {"residual": 0.5},
        {"logits": 2.0},
        {"logit_cap": 3.0},
        {"mixers": {"main": Softmax(scale=0.5)}},
        {"mixers": {"main": Softmax(pairs=True)}},
        {"mixers": {"main": Softmax(cap=2.0)}},
        {"of_kind": {"full_attention": Kind(rope=None)}},
        {"of_kind": ALL_WINDOW, "defaults": {"sliding_window": 5}},
        {"parallel": True},
    ],
    ids=str,
)
def test_fields_change_the_result(tmp_path: Path, change: dict[str, Any]) -> None:
    """A field that did nothing would make the comparisons above empty."""
    folder = make_checkpoint(tmp_path, "llama", dtype="f32")
    ids = np.arange(20)[None]
    a = logits_of(folder, {"llama": LLAMA}, ids)
    b = logits_of(folder, {"llama": replace(LLAMA, **change)}, ids)
    assert np.abs(a - b).max() > 1e-2


@pytest.mark.parametrize("qk_norm", ["head", "full"])
def test_pairs_with_query_norms(tmp_path: Path, qk_norm: str) -> None:
    """Rows stored for neighbours give the logits of the same rows stored for halves, norms included."""
    width, pairs = 16, np.arange(16).reshape(2, 8).T.reshape(-1)
    config = {"num_hidden_layers": 1, "head_dim": width}
    half_folder = make_checkpoint(tmp_path / "half", "qwen3", dtype="f32", **config)
    pair_folder = make_checkpoint(tmp_path / "pair", "qwen3", dtype="f32", **config)
    half = hot_tensors(json.loads((half_folder / "config.json").read_text()), 0, "f32")
    heads = {"q": 4, "k": 2}
    if qk_norm == "full":
        for role, count in heads.items():
            name = f"model.layers.0.self_attn.{role}_norm.weight"
            half[name] = hot_tensor(name, (count * width,))
    pair = dict(half)
    for role, count in heads.items():
        order = (np.arange(count)[:, None] * width + pairs).reshape(-1)
        weight, norm = (f"model.layers.0.self_attn.{role}_{part}.weight" for part in ("proj", "norm"))
        pair[weight] = half[weight][order]
        pair[norm] = half[norm][order if qk_norm == "full" else pairs]
    write_weights(half_folder, half)
    write_weights(pair_folder, pair)
    row = FAMILIES["qwen3"]

    def of(turned: bool) -> Family:
        return replace(row, mixers={"main": Softmax(qk_norm=qk_norm, pairs=turned)})

    ids = np.arange(30)[None]
    expected = logits_of(half_folder, {"qwen3": of(False)}, ids)
    found = logits_of(pair_folder, {"qwen3": of(True)}, ids)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_layers_beyond_the_count(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama", num_hidden_layers=3)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "num_hidden_layers": 2}))
    with pytest.raises(LadingError) as caught:
        load(folder)
    assert caught.value.code == "F551"
    short = make_checkpoint(tmp_path / "short", "llama", num_hidden_layers=2)
    ids = np.arange(9)[None]
    found = logits_of(folder, {"llama": replace(LLAMA, extra_layers=True)}, ids)
    np.testing.assert_array_equal(found, logits_of(short, dict(FAMILIES), ids))


def test_constants_of_fused_tensors_are_slices(tmp_path: Path) -> None:
    save_random_model(tmp_path, *CASES["fused qkv, longrope on part of the head, window"])
    graph = load(tmp_path, families=FAMILIES)
    key = graph.consts["model.layers.0.self_attn.k_proj.weight"]
    assert str(key.type) == "f32[64, 32]"
    assert key.loc == "model.safetensors:model.layers.0.self_attn.qkv_proj.weight"


def test_scale_equal_to_the_usual_one_is_left_out(tmp_path: Path) -> None:
    row = replace(LLAMA, mixers={"main": Softmax(scale=Product((("head_dim", -0.5),)))})
    folder = make_checkpoint(tmp_path, "llama", head_dim=16)
    attention = [node for node in load(folder, families={"llama": row}).nodes if node.op == "Attention"]
    assert all("scale" not in node.attrs for node in attention)


@pytest.mark.parametrize(
    "keys",
    [
        {"no_rope_layers": [1]},
        {"no_rope_layers": "all"},
        {"no_rope_layer_interval": 0},
        {"no_rope_layer_interval": True},
    ],
)
def test_lists_of_layers_without_rope_that_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(LadingError) as caught:
        resolve({**BASE, "model_type": "smollm3", **keys}, families=FAMILIES)
    assert caught.value.code == "F531"


def test_kind_of_a_layer_that_is_unknown() -> None:
    with pytest.raises(LadingError, match="layer type 2 is not supported") as caught:
        resolve({**BASE, "model_type": "smollm3", "no_rope_layers": [1, 2]})
    assert caught.value.code == "F538"


def test_multiplier_must_be_a_number() -> None:
    with pytest.raises(LadingError) as caught:
        resolve({**BASE, "model_type": "granite", "attention_multiplier": None}, families=FAMILIES)
    assert caught.value.code == "F531"


def test_rows_are_consistent() -> None:
    assert sorted(FAMILIES) == sorted(name for row in ROWS for name in row.types)
    with pytest.raises(ValueError, match="no such mixers"):
        Family(("x",), of_kind={"full_attention": Kind(mixer="other")})
    with pytest.raises(ValueError, match="or ropes"):
        Family(("x",), of_kind={"full_attention": Kind(rope="other")})
    with pytest.raises(ValueError, match="no types"):
        Family(())


def test_class_defaults_are_those_of_the_installed_classes() -> None:
    """``python -m tests.support.settings.class_defaults`` writes the file anew."""
    assert FILE.read_text() == text()
