"""Models that people ask for by name: small checkpoints of the same shape, stored as the published ones are."""

from __future__ import annotations

from pathlib import Path

import pytest

from frontends.checkpoint.config_file import resolve
from frontends.checkpoint.load import load
from ir.base.diag import LadingError
from ir.facts.model_card import ModelCard
from tests.support.families.judge import judge_graph
from tests.support.systems import CONFIGS, SMALL, full_config, full_tensors, make_small, write_headers

TOWERS = {
    "autoglm-phone-9b": "visual",
    "glm-4.6v-fp8": "visual",
    "hunyuan-ocr": "vit",
    "glm-asr-nano-2512": "audio_tower",
}
"""What is left out of models of several towers."""

GIGABYTES = {
    "qwen2.5-7b-instruct": 15.2,
    "autoglm-phone-9b": 18.8,
    "kimi-k2-thinking": 594.0,
    "glm-4.6v-fp8": 108.2,
    "hunyuan-ocr": 1.08,
    "glm-asr-nano-2512": 3.2,
}
"""Sizes of the published language models, in 10^9 bytes."""


def test_every_configuration_has_a_small_checkpoint() -> None:
    assert {path.stem for path in CONFIGS.glob("*.json")} == set(SMALL) == set(GIGABYTES)


@pytest.mark.parametrize("name", SMALL)
def test_small_checkpoints_compute_what_the_original_computes(tmp_path: Path, name: str) -> None:
    golden = make_small(tmp_path / "model", name)
    assert 5 < golden.largest < 100
    verdict = judge_graph(tmp_path / "model", golden)
    assert verdict.status == "right", verdict
    if name in TOWERS:
        warnings = [str(item) for item in ModelCard.of(load(tmp_path / "model")).warnings if item.code == "F542"]
        assert len(warnings) == 1 and TOWERS[name] in warnings[0]


@pytest.mark.parametrize("name", SMALL)
def test_full_configurations_are_read(name: str) -> None:
    raw = full_config(name)
    quantization = raw.pop("quantization_config", None)
    config = resolve(raw)
    total = sum(_bytes(dtype, shape) for _, dtype, shape in full_tensors(full_config(name)))
    assert total / 1e9 == pytest.approx(GIGABYTES[name], rel=0.01)
    assert (quantization is not None) == (name in ("kimi-k2-thinking", "glm-4.6v-fp8"))
    assert len(config.layers) == raw.get("text_config", raw)["num_hidden_layers"]


def _bytes(dtype: str, shape: tuple[int, ...]) -> int:
    size = {"BF16": 2, "I32": 4, "I64": 8, "F8_E4M3": 1}[dtype]
    for extent in shape:
        size *= extent
    return size


def test_headers_of_a_full_checkpoint_are_enough_for_its_graph(tmp_path: Path) -> None:
    write_headers(tmp_path, "hunyuan-ocr", shards=2)
    graph = load(tmp_path)
    assert graph.consts["model.layers.23.mlp.down_proj.weight"].type.shape == (3584, 1024)
    taken = sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir())
    assert taken < 1 << 20


def test_a_model_whose_code_is_not_public_is_refused_by_name() -> None:
    """As Spark-Formalizer-X1-7B is."""
    with pytest.raises(LadingError, match="model family 'spark' is not supported") as caught:
        resolve({"model_type": "spark", "architectures": ["SparkModel"], "torch_dtype": "float32"})
    assert caught.value.code == "F533" and "--via torch" in str(caught.value)
