"""Checkpoints that are no language models are told so by what they are, and never compiled as one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frontends.checkpoint import via_torch
from frontends.checkpoint.load import load
from frontends.checkpoint.tasks import refuse_other_tasks
from ir.base.diag import LadingError
from tests.support.checkpoints import make_checkpoint, write_safetensors


def changed(folder: Path, **keys: Any) -> Path:
    """Set keys of a configuration; `...` takes one out."""
    record = json.loads((folder / "config.json").read_text()) | keys
    (folder / "config.json").write_text(json.dumps({key: value for key, value in record.items() if value is not ...}))
    return folder


def refused(folder: Path, text: str) -> None:
    for read in (load, via_torch.load):
        with pytest.raises(LadingError) as caught:
            read(folder)
        assert caught.value.code == "F594", caught.value
        assert re.search(text, str(caught.value)), caught.value


def pooled(folder: Path, *kinds: str, **keys: Any) -> None:
    modules = [{"idx": at, "path": f"{at}_{kind}", "type": f"st.models.{kind}"} for at, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    for at, kind in enumerate(kinds):
        (folder / f"{at}_{kind}").mkdir()
        (folder / f"{at}_{kind}" / "config.json").write_text(json.dumps(keys if kind == "Pooling" else {}))


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    """A checkpoint that lacks nothing of a language model: its output matrix is the embedding."""
    return make_checkpoint(tmp_path / "model", "qwen3", tie_word_embeddings=True)


def test_a_model_without_output_matrix(tied: Path) -> None:
    load(tied)
    refused(changed(tied, architectures=["Qwen3Model"]), r"without output matrix \(Qwen3Model\), as for embeddings")
    load(changed(tied, architectures=...))


def test_an_output_matrix_that_is_stored_counts_more_than_a_name(tmp_path: Path) -> None:
    load(changed(make_checkpoint(tmp_path / "model", "qwen3"), architectures=["Qwen3Model"]))


def test_an_embedding_model_is_told_with_its_pooling(tied: Path) -> None:
    keys = {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}
    pooled(changed(tied, architectures=["Qwen3Model"]), "Transformer", "Pooling", "Normalize", **keys)
    refused(tied, r"an embedding model \(Qwen3Model\).*its vector is the last token's, of length 1; no next token")


def test_an_embedding_model_that_calls_itself_a_language_model(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "qwen2")
    pooled(folder, "Transformer", "Pooling", pooling_mode_mean_tokens=True)
    refused(folder, "embedding model.*the mean over the tokens")


def test_other_modules_of_the_same_library_are_no_embedding(tied: Path) -> None:
    pooled(tied, "Transformer", "LogitScore")
    load(tied)
    (tied / "modules.json").write_text("{")
    load(tied)


@pytest.mark.parametrize(
    ("architecture", "text"),
    [
        ("Qwen3ForSequenceClassification", "a classifier of texts"),
        ("LlamaForTokenClassification", "a classifier of tokens"),
        ("Qwen2ForProcessRewardModel", "a reward model"),
        ("InternLM2ForRewardModel", "a reward model"),
        ("LlamaForQuestionAnswering", "marks answers"),
    ],
)
def test_models_that_give_scores(tied: Path, architecture: str, text: str) -> None:
    refused(changed(tied, architectures=[architecture]), text)


def test_a_score_that_only_the_tensors_show(tied: Path) -> None:
    changed(tied, architectures=...)
    write_safetensors(tied / "extra.safetensors", {"score.weight": np.ones((2, 64), np.float32)})
    (tied / "model.safetensors").rename(tied / "first.safetensors")
    refused(tied, "gives scores, not a language model: in place of an output matrix it has score.weight")


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"model_type": "bert", "architectures": ["BertModel"]}, "an encoder .BertModel. of the type 'bert'"),
        ({"model_type": "xlm-roberta", "architectures": ["XLMRobertaForMaskedLM"]}, "an encoder"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "an encoder-decoder model"),
        ({"is_encoder_decoder": True}, "an encoder-decoder model"),
    ],
)
def test_encoders(tied: Path, keys: dict[str, Any], text: str) -> None:
    refused(changed(tied, **keys), text)


@pytest.mark.parametrize(
    "architecture",
    """
    Qwen3ForCausalLM GPT2LMHeadModel QWenLMHeadModel Glm4vMoeForConditionalGeneration Gemma3ForConditionalGeneration
    DeepseekV3ForCausalLM KimiK25ForConditionalGeneration GPT2DoubleHeadsModel
    """.split(),
)
def test_language_models_pass(architecture: str, tied: Path) -> None:
    refuse_other_tasks(changed(tied, architectures=[architecture]), ["model.embed_tokens.weight"])
