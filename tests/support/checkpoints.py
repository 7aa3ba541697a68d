"""The random checkpoints of `tools.matrix.random_checkpoints` and what the reference implementation in torch makes of
them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tools.matrix.random_checkpoints import (
    BASE,
    FAMILIES,
    hot_tensor,
    hot_tensors,
    make_checkpoint,
    tensor_shapes,
    write_safetensors,
    write_tokenizer,
    write_weights,
)

__all__ = [
    "BASE",
    "FAMILIES",
    "hot_tensor",
    "hot_tensors",
    "make_checkpoint",
    "reference_logits",
    "tensor_shapes",
    "write_safetensors",
    "write_tokenizer",
    "write_weights",
]


def reference_logits(folder: str | Path, ids: np.ndarray) -> np.ndarray:
    """Logits float32[batch, seq, vocab] of the reference implementation in float32 for token ids [batch, seq]."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return model(torch.from_numpy(ids)).logits.numpy()
