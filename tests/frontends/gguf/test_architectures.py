"""Files of every architecture become checkpoints of the same numbers: transformers reads what was rebuilt of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from frontends.checkpoint.load import load
from frontends.containers.gguf import open_gguf
from frontends.families.table import FAMILIES
from frontends.gguf.model import ARCHITECTURES, rebuilt
from ir.base.diag import LadingError
from ir.evaluate.evaluator import evaluate
from tests.support.gguf_files import MODELS, gguf_of, write_gguf

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
IDS = torch.tensor(np.random.default_rng(0).integers(3, 90, (1, 40)))
EXPERTS = {"num_experts_per_tok": 2}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-3": ("llama", {"rope_parameters": LLAMA3, "head_dim": 32}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mixtral": ("mixtral", {**EXPERTS, "num_local_experts": 4, "sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2-yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen2-moe": (
        "qwen2_moe",
        {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24},
    ),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3-moe": (
        "qwen3_moe",
        {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 16, "head_dim": 16, "norm_topk_prob": True},
    ),
    "phi3": ("phi3", {"sliding_window": 16, "original_max_position_embeddings": 256}),
    "gemma": ("gemma", {"head_dim": 16}),
    "gemma2": ("gemma2", {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}),
    "gemma3": (
        "gemma3_text",
        {"num_hidden_layers": 7, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
    ),
    "granite": (
        "granite",
        {"attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    ),
    "granite-moe": ("granitemoe", {**EXPERTS, "num_local_experts": 4, "attention_multiplier": 0.2}),
    "granite-shared": ("granitemoeshared", {**EXPERTS, "num_local_experts": 4, "shared_intermediate_size": 24}),
    "gpt-oss": (
        "gpt_oss",
        {
            **EXPERTS,
            "num_local_experts": 4,
            "head_dim": 16,
            "sliding_window": 8,
            "rope_parameters": {**YARN, "truncate": False},
        },
    ),
    "starcoder2": ("starcoder2", {"sliding_window": None}),
    "stablelm": ("stablelm", {"partial_rotary_factor": 0.5, "use_qkv_bias": True}),
    "stablelm-parallel": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "olmo2": ("olmo2", {}),
    "glm4": ("glm4", {"head_dim": 16, "attention_bias": True}),
    "cohere": ("cohere", {"logit_scale": 0.25, "use_qk_norm": True}),
    "cohere2": ("cohere2", {"logit_scale": 0.25, "num_hidden_layers": 5, "sliding_window": 8}),
    "smollm3": ("smollm3", {"num_hidden_layers": 5}),
    "hunyuan": ("hunyuan_v1_dense", {"head_dim": 16}),
    "ernie": ("ernie4_5", {"head_dim": 16, "use_bias": True}),
    "deepseek": (
        "deepseek_v3",
        {
            **EXPERTS,
            "num_key_value_heads": 4,
            "q_lora_rank": 12,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 12,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 16,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    "arcee": ("arcee", {}),
    "seed-oss": ("seed_oss", {"head_dim": 16, "attention_bias": True}),
    "exaone4": ("exaone4", {"num_hidden_layers": 5, "sliding_window": 8, "head_dim": 16}),
    "exaone4-full": (
        "exaone4",
        {"sliding_window": None, "layer_types": ["full_attention"] * 2, "rope_parameters": LLAMA3},
    ),
    "nemotron": ("nemotron", {"partial_rotary_factor": 0.5, "attention_bias": True}),
    "phi2": ("phi", {"partial_rotary_factor": 0.5}),
    "olmoe": ("olmoe", {**EXPERTS, "num_experts": 4, "norm_topk_prob": False}),
    "glm4-moe": (
        "glm4_moe",
        {
            **EXPERTS,
            "head_dim": 16,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 16,
            "use_qk_norm": True,
            "routed_scaling_factor": 1.5,
        },
    ),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gpt-neox": ("gpt_neox", {"rotary_pct": 0.5}),
    "falcon": ("falcon", {"multi_query": True, "parallel_attn": True, "bias": False, "num_kv_heads": 1}),
    "falcon-groups": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": False}),
}


def checkpoint(folder: Path, model_type: str, settings: dict[str, Any]) -> torch.nn.Module:
    """A tiny model with large random weights, saved in a folder."""
    drop = {
        "gpt2": set(SIZES) - {"vocab_size", "bos_token_id", "eos_token_id"},
        "gpt_neox": {"num_key_value_heads"},
        "falcon": {"num_key_value_heads", "intermediate_size"},
    }
    sizes = {key: value for key, value in SIZES.items() if key not in drop.get(model_type, ())}
    config = AutoConfig.for_model(model_type, **{**sizes, **settings})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            scale = 0.3 if weight.ndim == 1 else 1.2 / weight.shape[-1] ** 0.5
            weight.copy_(torch.randn_like(weight) * scale + (weight.ndim == 1 and name.endswith("norm.weight")))
    model.save_pretrained(folder)
    return model


def logits(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model(IDS).logits.numpy()


@pytest.fixture(autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()


@pytest.mark.parametrize("case", CASES)
def test_the_rebuilt_checkpoint_computes_the_same(tmp_path: Path, case: str) -> None:
    model_type, settings = CASES[case]
    model = checkpoint(tmp_path / "original", model_type, settings)
    gguf_of(tmp_path / "original", tmp_path / "model.gguf")
    found = rebuilt(open_gguf(tmp_path / "model.gguf"), "model.gguf")
    (tmp_path / "rebuilt").mkdir()
    (tmp_path / "rebuilt" / "config.json").write_text(json.dumps(found.config))
    tensors = {name: torch.from_numpy(tensor.load().copy()) for name, tensor in found.tensors.items()}
    save_file(tensors, tmp_path / "rebuilt" / "model.safetensors", metadata={"format": "pt"})
    read, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "rebuilt", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    assert read.config.model_type == (model_type if model_type != "mistral" else "llama")
    assert np.abs(logits(read.eval()) - logits(model)).max() == 0
    if found.config["model_type"] in FAMILIES:
        graph = evaluate(load(tmp_path / "model.gguf"), {"input_ids": IDS.numpy()})["logits"]
        assert np.abs(graph - logits(model)).max() < 1e-4


@pytest.mark.parametrize("name", ["internlm2", "baichuan"])
def test_models_whose_files_are_those_of_a_llama(tmp_path: Path, name: str) -> None:
    model = checkpoint(tmp_path, "llama", {})
    gguf_of(tmp_path, tmp_path / "model.gguf", written_as=name)
    found = evaluate(load(tmp_path / "model.gguf"), {"input_ids": IDS.numpy()})["logits"]
    assert np.abs(found - logits(model)).max() < 1e-4


def test_minicpm_computes_what_granite_does(tmp_path: Path) -> None:
    model = checkpoint(tmp_path, "granite", {**CASES["granite"][1], "attention_multiplier": 8**-0.5})
    gguf_of(tmp_path, tmp_path / "model.gguf", written_as="minicpm")
    found = evaluate(load(tmp_path / "model.gguf"), {"input_ids": IDS.numpy()})["logits"]
    assert np.abs(found - logits(model)).max() < 1e-4


def test_a_baichuan_without_rope_is_refused(tmp_path: Path) -> None:
    error = refused(tmp_path / "model.gguf", "baichuan", {"block_count": 40})
    assert error.code == "F585" and "ALiBi" in str(error)


def test_every_architecture_has_a_case() -> None:
    written = {MODELS[model_type].name for model_type, _ in CASES.values()} | {"internlm2", "baichuan", "minicpm"}
    assert set(ARCHITECTURES) == written


# ---- what is not read ----

TINY = {
    "block_count": 1,
    "context_length": 64,
    "embedding_length": 32,
    "feed_forward_length": 32,
    "attention.head_count": 4,
    "attention.layer_norm_rms_epsilon": 1e-5,
}


def refused(path: Path, architecture: str, more: dict[str, Any], drop: str = "", **general: Any) -> LadingError:
    metadata = {f"{architecture}.{key}": value for key, value in {**TINY, **more}.items() if key != drop}
    metadata |= {f"general.{key}": value for key, value in general.items()}
    write_gguf(path, architecture, metadata, {"token_embd.weight": np.zeros((8, 32), np.float32)})
    with pytest.raises(LadingError) as caught:
        rebuilt(open_gguf(path), str(path))
    return caught.value


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    error = refused(tmp_path / "model.gguf", "rwkv7", {})
    assert error.code == "F585" and "'rwkv7'" in str(error) and "qwen3moe" in error.diagnostics[0].hint


@pytest.mark.parametrize(
    "key", [{"attention.max_alibi_bias": 8.0}, {"full_attention_interval": 4}, {"attention.causal": False}]
)
def test_keys_that_change_the_computation_are_not_passed_over(tmp_path: Path, key: dict[str, Any]) -> None:
    error = refused(tmp_path / "model.gguf", "llama", key)
    assert error.code == "F585" and f"llama.{next(iter(key))}" in str(error)


def test_an_adapter_is_told_apart(tmp_path: Path) -> None:
    error = refused(tmp_path / "model.gguf", "llama", {}, type="adapter")
    assert error.code == "F585" and "adapter" in str(error)


def test_an_unknown_rope_scaling_is_named(tmp_path: Path) -> None:
    error = refused(tmp_path / "model.gguf", "llama", {"rope.scaling.type": "spiral", "rope.scaling.factor": 2.0})
    assert error.code == "F585" and "'spiral'" in str(error)


@pytest.mark.parametrize(
    ("more", "drop", "says"),
    [
        ({}, "block_count", "lacks llama.block_count"),
        ({"embedding_length": "x"}, "", "llama.embedding_length is 'x'"),
        ({"attention.head_count": [4, 2]}, "", "the same for every layer"),
        ({"attention.layer_norm_rms_epsilon": float("nan")}, "", "must be a number"),
    ],
)
def test_values_that_are_missing_or_wrong(tmp_path: Path, more: dict[str, Any], drop: str, says: str) -> None:
    error = refused(tmp_path / "model.gguf", "llama", more, drop)
    assert error.code == "F586" and says in str(error)
