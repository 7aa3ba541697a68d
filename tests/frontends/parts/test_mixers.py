"""Latent attention and the gated delta rule of checkpoints, against transformers, as graphs and on MNN."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frontends.checkpoint.load import load
from frontends.configuration.specs import Product
from frontends.families.scheme import FULL, Family, Kind, Kinds, RopeRule
from frontends.parts.delta import Delta
from frontends.parts.latent import Latent
from frontends.parts.norms import Norm
from frontends.parts.softmax import Softmax
from ir.evaluate.evaluator import evaluate
from ir.graph.graph import Graph
from tests.frontends.families.test_families import save_random_model
from tests.support.checkpoints import BASE
from tests.support.decoders.forms import logits_in_pieces, written
from tests.support.runs import each_release
from tests.support.settings.class_defaults import of_class

LINEAR = {FULL: Kind(), "linear_attention": Kind("linear", rope=None)}
SHARES: dict[str, Any] = {
    "kinds": Kinds("layer_types", period=("full_attention_interval", 4), miss="linear_attention"),
    "of_kind": LINEAR,
    "norm": Norm(offset=1.0),
    "ropes": {"main": RopeRule(partial=("rope.partial_rotary_factor", 0.25))},
}
GATED = Softmax(qk_norm="head", gated=True)

ROWS = (
    Family(("deepseek_v3",), {"main": Latent(pairs=("rope_interleave", True))}, fixed={"num_nextn_predict_layers": ()}),
    Family(("deepseek_v2",), {"main": Latent()}),
    Family(
        ("minicpm3",),
        {"main": Latent(pairs=False)},
        embed_scale="scale_emb",
        residual=Product((("scale_depth", 1), ("num_hidden_layers", -0.5))),
        logits=Product((("dim_model_base", 1), ("hidden_size", -1))),
    ),
    Family(("qwen3_next",), {"main": GATED, "linear": Delta(fused=True)}, **SHARES),
    Family(("qwen3_5_text",), {"main": GATED, "linear": Delta()}, **SHARES),
)


def with_defaults(row: Family) -> Family:
    """The row with what the configuration class of its type says, whether or not the product has a row of it."""
    record = of_class(row.types[0])
    assert record is not None
    return replace(row, defaults=record["defaults"], aliases=record["aliases"])


TABLE = {row.types[0]: with_defaults(row) for row in ROWS}

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


def rebuilt(folder: Path) -> Graph:
    return load(folder, families=TABLE)


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
    found = evaluate(rebuilt(folder), {"input_ids": IDS})["logits"]
    # The reference computes the delta rule in chunks of positions, each with the inverse of a matrix.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.mnn
@pytest.mark.parametrize("version", [param for param in each_release() if param.values[0] in ("3.4.1", "3.6.1")])
def test_parts_agree_with_the_reference_on_mnn(model, version, tmp_path):
    folder, expected, recurrent = model
    written(rebuilt(folder), tmp_path, "fp32", target=">=3.4.1" if recurrent else "portable")
    got = logits_in_pieces(tmp_path, version, [IDS[0, :23], *([number] for number in IDS[0, 23:])])
    assert np.abs(got - expected[0]).max() < 1e-4 * np.abs(expected).max()
