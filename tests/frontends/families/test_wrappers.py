"""Models of several towers: the language model is compiled, and what is left out is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from frontends.checkpoint.config_file import resolve
from frontends.checkpoint.load import load
from ir.evaluate.evaluator import evaluate
from ir.facts.model_card import ModelCard
from tests.support.checkpoints import BASE, hot_tensors, make_checkpoint, write_weights


def test_the_language_model_of_several_towers(tmp_path: Path) -> None:
    plain = make_checkpoint(tmp_path / "plain", "llama", dtype="f32")
    folder = make_checkpoint(tmp_path / "asr", "llama", dtype="f32")
    config = json.loads((folder / "config.json").read_text())
    tensors = {f"language_model.{name}": array for name, array in hot_tensors(config, 0, "f32").items()}
    tower = {f"audio_tower.layers.{index}.fc1.weight": np.zeros((4, 4), np.float32) for index in range(3)}
    projector = {"multi_modal_projector.linear_1.weight": np.zeros((4, 4), np.float32)}
    write_weights(folder, {**tensors, **tower, **projector})
    outer = {"model_type": "glmasr", "text_config": config, "audio_config": {"hidden_size": 4}, "audio_token_id": 5}
    (folder / "config.json").write_text(json.dumps(outer))
    graph = load(folder)
    card = ModelCard.of(graph)
    (warning,) = card.warnings
    assert (warning.code, card.family, card.model_type) == ("F542", "llama", "glmasr")
    assert warning.message.startswith(
        "glmasr has several parts, and this is its language model; 4 tensors are left out"
    )
    assert "audio_tower (3), multi_modal_projector (1)" in warning.message
    ids = np.arange(3, 20)[None]
    expected = evaluate(load(plain), {"input_ids": ids})["logits"]
    np.testing.assert_array_equal(evaluate(graph, {"input_ids": ids})["logits"], expected)
    assert str(warning).startswith("warning[F542]: glmasr has several parts")


def test_keys_of_the_language_model_may_stand_at_the_top() -> None:
    raw = {
        "model_type": "qwen2_5_vl",
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "vision_config": {"depth": 32, "hidden_size": 1280},
        "image_token_id": 151655,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 2, 2]},
        "tie_word_embeddings": True,
        **BASE,
    }
    found = resolve(raw)
    assert (found.model_type, found.wrapper, found.warnings) == ("qwen2_5_vl_text", "qwen2_5_vl", ())
    assert found.rope is not None and (found.rope.kind, found.rope.theta) == ("default", 1e6)
