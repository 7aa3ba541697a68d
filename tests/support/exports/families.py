"""Random checkpoints of the families that exporters know, in sizes that export in a second.

Two layers (gemma 3 has four, so that both kinds of attention occur), four heads, two key-value heads. Norm gains vary,
biases are not zero and scores are large enough for attention to have favourites: a mistake shows in the logits.
"""

from __future__ import annotations

import atexit
import zlib
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tools.matrix.random_checkpoints import write_tokenizer

VOCAB = 320
CONTEXT = 128
WINDOW = 8

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_HEAD = {"head_dim": 16}


def _rope(theta: float = 10000.0, kind: str = "default", **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": False, **_rope(1e6)}),
    "qwen2-tied": ("Qwen2Config", {"tie_word_embeddings": True, **_rope()}),
    "qwen3": ("Qwen3Config", {**_HEAD, "tie_word_embeddings": True, **_rope(1e6)}),
    "llama": ("LlamaConfig", {**_HEAD, "tie_word_embeddings": False, **_rope(5e5)}),
    "llama3": (
        "LlamaConfig",
        {
            **_HEAD,
            "tie_word_embeddings": True,
            **_rope(
                5e5,
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=32,
            ),
        },
    ),
    "mistral": ("MistralConfig", {**_HEAD, "sliding_window": WINDOW, "tie_word_embeddings": False, **_rope()}),
    "gemma": (
        "GemmaConfig",
        {**_HEAD, "num_key_value_heads": 1, "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True, **_rope()},
    ),
    "gemma2": (
        "Gemma2Config",
        {
            **_HEAD,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "tie_word_embeddings": True,
            **_rope(),
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            **_HEAD,
            "num_hidden_layers": 4,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 16,
            "tie_word_embeddings": True,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "phi": ("PhiConfig", {"tie_word_embeddings": False, **_rope(partial_rotary_factor=0.5)}),
    "phi3": (
        "Phi3Config",
        {"original_max_position_embeddings": CONTEXT, "tie_word_embeddings": False, **_rope()},
    ),
    "glm": (
        "GlmConfig",
        {**_HEAD, "attention_bias": True, "tie_word_embeddings": False, **_rope(partial_rotary_factor=0.5)},
    ),
    "one-layer": (  # many heads on one, a width that is no power of two
        "Qwen2Config",
        {
            "num_hidden_layers": 1,
            "hidden_size": 144,
            "num_attention_heads": 6,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
            **_rope(kind="linear", factor=4.0),
        },
    ),
    "yarn": (  # as many heads of keys as of queries, heads wider together than the hidden state
        "LlamaConfig",
        {
            "head_dim": 32,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "tie_word_embeddings": False,
            **_rope(kind="yarn", factor=4.0, original_max_position_embeddings=32),
        },
    ),
    "wide-window": (
        "MistralConfig",
        {
            "head_dim": 8,
            "num_attention_heads": 8,
            "num_hidden_layers": 3,
            "sliding_window": 20,
            "tie_word_embeddings": True,
            **_rope(),
        },
    ),
    "jais2": (  # has no row
        "Jais2Config",
        {**_HEAD, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False, **_rope()},
    ),
    "cohere": ("CohereConfig", {"logit_scale": 0.25, "tie_word_embeddings": True, **_rope()}),
    "stablelm": (
        "StableLmConfig",
        {"use_qkv_bias": True, "tie_word_embeddings": False, **_rope(partial_rotary_factor=0.25)},
    ),
}
"""Name of the configuration class of transformers, and what it gets beyond the common sizes."""

_folder = TemporaryDirectory(prefix="lading-exports-")
atexit.register(_folder.cleanup)
WORK = Path(_folder.name)
"""Where checkpoints and exports of this process lie."""


def config_of(family: str) -> Any:
    """The configuration object of transformers for a key of `FAMILIES`."""
    import transformers

    name, keys = FAMILIES[family]
    return getattr(transformers, name)(**{**_SIZES, **keys})


@cache
def checkpoint(family: str) -> Path:
    """The folder of the family's random checkpoint: configuration, one file of float32 weights, tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    _quiet()
    model = AutoModelForCausalLM.from_config(config_of(family)).float().eval()
    generator = torch.Generator().manual_seed(zlib.crc32(family.encode()))
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            weight.copy_(_values(name, weight, torch.randn(weight.shape, generator=generator)))
    folder = WORK / "checkpoints" / family
    model.save_pretrained(folder)
    write_tokenizer(folder, VOCAB)
    return folder


def _values(name: str, weight: Any, drawn: Any) -> Any:
    if name.endswith("bias"):
        return 0.2 * drawn
    if weight.ndim == 1:  # gains, which gemma stores less one
        return weight.mean().round() + 0.2 * drawn
    if "embed" in name or "lm_head" in name:
        return 0.35 * drawn
    return 1.5 * drawn / weight.shape[1] ** 0.5


@cache
def torch_model(family: str, attention: str = "eager", half: bool = False) -> Any:
    """The model of the family's checkpoint in torch, in float32 or float16."""
    import torch
    from transformers import AutoModelForCausalLM

    _quiet()
    dtype = torch.float16 if half else torch.float32
    model = AutoModelForCausalLM.from_pretrained(checkpoint(family), dtype=dtype, attn_implementation=attention)
    return model.eval()


def _quiet() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
