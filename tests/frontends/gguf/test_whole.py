"""GGUF files from the command to the runtime: the same model, whatever the file stores it in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from frontends.checkpoint.hub import resolve
from frontends.checkpoint.load import load
from frontends.checkpoint.original import original_logits
from frontends.containers.gguf import open_gguf
from frontends.gguf.unfold import unfolded
from ir.base.diag import LadingError
from ir.evaluate.evaluator import evaluate
from ir.facts.model_card import ModelCard
from tests.support.checkpoints import make_checkpoint
from tests.support.gguf_files import MODELS, gguf_of, tokenizer_metadata, write_gguf
from tests.support.paths import ROOT
from tools.compile.job import Request, compile_model

EXAMPLE = ROOT / "examples" / "tiny-qwen2.5"


def example_gguf(path: Path, kind: str = "Q8_0") -> dict[str, np.ndarray]:
    """The example checkpoint as one file, with its tokenizer and template."""
    data = json.loads((EXAMPLE / "tokenizer.json").read_text(encoding="utf-8"))
    extra = tokenizer_metadata(data, "gpt-2", eos_token_id=2, bos_token_id=0, padding_token_id=0)
    extra["tokenizer.chat_template"] = (EXAMPLE / "chat_template.jinja").read_text(encoding="utf-8")
    folder = path.with_suffix(".float")
    folder.mkdir()
    tensors = {name: tensor.float() for name, tensor in load_file(EXAMPLE / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_bytes((EXAMPLE / "config.json").read_bytes())
    return gguf_of(folder, path, kind, extra)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_logits_are_those_of_torch(tmp_path: Path, family: str) -> None:
    folder = make_checkpoint(tmp_path / "model", family)
    gguf_of(folder, tmp_path / "model.gguf")
    graph = load(tmp_path / "model.gguf")
    ids = np.random.default_rng(0).integers(0, ModelCard.of(graph).vocab_size or 1, (1, 33))
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = reference(torch.from_numpy(ids)).logits.numpy()
    assert np.abs(evaluate(graph, {"input_ids": ids})["logits"] - wanted).max() < 1e-4


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_weights_are_what_the_package_reads(tmp_path: Path, family: str, kind: str) -> None:
    """Beside a file of the same numbers as float32; in one of the two families rows are put in order after that."""
    folder = make_checkpoint(tmp_path / "model", family)
    numbers = gguf_of(folder, tmp_path / "stored.gguf", kind)
    found = open_gguf(tmp_path / "stored.gguf")
    own = {key: value for key, value in found.metadata.items() if not key.startswith("general.")}
    own = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in own.items()}
    write_gguf(tmp_path / "plain.gguf", family, own, numbers)
    stored, plain = load(tmp_path / "stored.gguf"), load(tmp_path / "plain.gguf")
    weights = [value.name for value in plain.consts.values() if value.name.endswith(("weight", "bias"))]
    assert weights and kind.lower() in found.kinds.values()
    for name in weights:
        assert np.array_equal(stored.value(name).tensor.load(), plain.value(name).tensor.load()), name


@pytest.mark.mnn
def test_a_file_is_compiled_like_a_checkpoint(tmp_path: Path) -> None:
    example_gguf(tmp_path / "tiny.gguf")
    result = compile_model(Request(str(tmp_path / "tiny.gguf"), tmp_path / "out", verify="quick"))
    assert result.verdict is not None and result.verdict.outcome == "passed"
    assert [source.file for source in result.contract.sources] == ["tiny.gguf"]
    assert result.contract.model.name == "tiny"


def test_what_the_folder_of_a_file_holds(tmp_path: Path) -> None:
    example_gguf(tmp_path / "tiny.gguf")
    folder = resolve(tmp_path / "tiny.gguf")
    assert folder.name == "tiny" and folder == unfolded(tmp_path / "tiny.gguf")
    config = json.loads((folder / "config.json").read_text())
    original = json.loads((EXAMPLE / "config.json").read_text())
    assert {key: original[key] for key in config if key in original} == {
        key: value for key, value in config.items() if key in original
    }
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2]
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer["chat_template"] == (EXAMPLE / "chat_template.jinja").read_text()


def test_a_folder_with_one_file_stands_for_it(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "qwen2")
    (tmp_path / "alone").mkdir()
    gguf_of(folder, tmp_path / "alone" / "a.gguf")
    assert ModelCard.of(load(tmp_path / "alone")).family == "qwen2"
    gguf_of(folder, tmp_path / "alone" / "b.gguf")
    with pytest.raises(LadingError) as caught:
        load(tmp_path / "alone")
    assert caught.value.code == "F502" and "give one of them" in caught.value.diagnostics[0].hint


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "qwen2")
    gguf_of(folder, tmp_path / "a.gguf")
    first = resolve(tmp_path / "a.gguf")
    gguf_of(folder, tmp_path / "a.gguf", extra={f"{MODELS['qwen2'].name}.rope.freq_base": 5e5})
    second = resolve(tmp_path / "a.gguf")
    theta = [json.loads((place / "config.json").read_text())["rope_theta"] for place in (first, second)]
    assert theta[0] != theta[1] == 5e5


def test_transformers_is_asked_on_the_decoded_weights(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "llama")
    gguf_of(folder, tmp_path / "a.gguf", "Q8_0")
    graph = load(tmp_path / "a.gguf")
    ids = np.arange(3, 20)
    found = original_logits(resolve(tmp_path / "a.gguf"), [ids.tolist()], parameters=1 << 20, vocabulary=1 << 10)
    assert found.name.endswith("on the decoded weights")
    assert np.abs(found.logits[0] - evaluate(graph, {"input_ids": ids[None]})["logits"][0]).max() < 1e-4
