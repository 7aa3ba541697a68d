"""Latent attention and the gated delta rule of checkpoints, against transformers, as graphs and on MNN."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from frontends.checkpoint.load import load
from ir.base.diag import LadingError
from ir.evaluate.evaluator import evaluate
from tests.frontends.families.test_families import save_random_model
from tests.support.checkpoints import BASE, write_weights
from tests.support.decoders.forms import logits_in_pieces, written
from tests.support.runs import each_release

SIZES = {"qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 16, "kv_lora_rank": 24, "num_key_value_heads": 4}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "mscale": 1.0,
    "mscale_all_dim": 0.7,
}
DENSE = {"first_k_dense_replace": 99, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LAYERS = {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_conv_kernel_dim": 4,
    "head_dim": 16,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "queries of low rank, pairs, yarn with a gain": (
        "deepseek_v3",
        {**SIZES, **DENSE, "q_lora_rank": 20, "rope_scaling": YARN, "max_position_embeddings": 64, "pad_token_id": 0},
    ),
    "queries of one matrix, biases, wide values, halves": (
        "deepseek_v3",
        {
            **SIZES,
            **DENSE,
            "q_lora_rank": None,
            "v_head_dim": 24,
            "attention_bias": True,
            "rope_interleave": False,
            "pad_token_id": 0,
        },
    ),
    "complex ropes": ("deepseek_v2", {**SIZES, **DENSE, "q_lora_rank": None, "pad_token_id": 0}),
    "multipliers": (
        "minicpm3",
        {**SIZES, "q_lora_rank": 20, "scale_emb": 3, "scale_depth": 1.4, "dim_model_base": 32},
    ),
    "delta rule, one tensor for all": (
        "qwen3_next",
        {**LAYERS, "mlp_only_layers": [0, 1, 2], "num_experts": 4, "moe_intermediate_size": 16, "pad_token_id": 0},
    ),
    "delta rule, tensors apart": ("qwen3_5_text", {**LAYERS, "pad_token_id": 0}),
}
IDS = np.random.default_rng(5).integers(0, BASE["vocab_size"], (1, 40))


@pytest.fixture(scope="module", params=CASES)
def model(request, tmp_path_factory):
    """A checkpoint and the logits of the reference."""
    import torch

    model_type, config = CASES[request.param]
    folder = tmp_path_factory.mktemp("model")
    reference = save_random_model(folder, model_type, config)
    with torch.no_grad():
        logits = reference(torch.from_numpy(IDS)).logits.numpy()
    return folder, logits, "delta" in request.param


def test_parts_agree_with_the_reference(model):
    folder, expected, _ = model
    assert 4 < np.abs(expected).max() < 100
    found = evaluate(load(folder), {"input_ids": IDS})["logits"]
    # The reference computes the delta rule in chunks of positions, each with the inverse of a matrix.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.mnn
@pytest.mark.parametrize("version", [param for param in each_release() if param.values[0] in ("3.4.1", "3.6.1")])
def test_parts_agree_with_the_reference_on_mnn(model, version, tmp_path):
    folder, expected, recurrent = model
    written(load(folder), tmp_path, "fp32", target=">=3.4.1" if recurrent else "portable")
    got = logits_in_pieces(tmp_path, version, [IDS[0, :23], *([number] for number in IDS[0, 23:])])
    assert np.abs(got - expected[0]).max() < 1e-4 * np.abs(expected).max()


def test_fewer_heads_of_keys_than_of_queries_are_refused(tmp_path):
    config = {**CASES["multipliers"][1], "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps({**BASE, **config, "model_type": "minicpm3"}))
    write_weights(tmp_path, {"model.embed_tokens.weight": np.zeros((BASE["vocab_size"], 64), np.float32)})
    with pytest.raises(LadingError, match="keys and values for each of 4 heads, and not for 2") as caught:
        load(tmp_path)
    assert caught.value.code == "F536"
