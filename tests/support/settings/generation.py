"""Checkpoints with other settings for generation, and what the logits processors of transformers make of logits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.support.paths import ROOT

EXAMPLE = ROOT / "examples" / "tiny-qwen2.5"


def edited(folder: Path, **files: Any) -> Path:
    """A copy of the example without end tokens, with these JSON files changed: a mapping is merged into the file,
    ``None`` removes it."""
    shutil.copytree(EXAMPLE, folder)
    ends: dict[str, Any] = {"config": {"eos_token_id": None}, "tokenizer_config": {"eos_token": None}}
    (folder / "generation_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    for name, change in [*ends.items(), *files.items()]:
        path = folder / f"{name}.json"
        if change is None:
            path.unlink()
            continue
        data = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**data, **change}))
    return folder


def processed(
    given: Mapping[str, Any], logits: np.ndarray, history: Sequence[int], ends: Sequence[int] = ()
) -> np.ndarray:
    """Scores float32 [vocabulary] after the processors that ``generate`` of transformers makes for the settings."""
    import torch
    from transformers import GenerationConfig
    from transformers.generation.utils import GenerationMixin
    from transformers.utils import logging

    logging.set_verbosity_error()
    config = GenerationConfig(**given)
    config.update(**GenerationConfig._get_default_generation_params(), defaults_only=True)
    config._eos_token_tensor = torch.tensor(list(ends)) if ends else None
    model = SimpleNamespace(
        config=SimpleNamespace(is_encoder_decoder=False), _merge_criteria_processor_list=lambda found, more: found
    )
    ids = torch.tensor([list(history)])
    processors = GenerationMixin._get_logits_processor(
        model, config, input_ids_seq_length=len(history), encoder_input_ids=ids, logits_processor=[], device="cpu"
    )
    return processors(ids, torch.tensor(logits[None].astype(np.float32)))[0].numpy()


def surprise(scores: Sequence[np.ndarray], tokens: Sequence[int]) -> float:
    """How many standard deviations the log probability of drawn tokens is from what their distributions promise."""
    total = variance = 0.0
    for row, token in zip(scores, tokens, strict=True):
        odds = np.exp(row.astype(np.float64) - row.max())
        odds /= odds.sum()
        logs = np.log(odds, where=odds > 0, out=np.zeros_like(odds))
        mean = float((odds * logs).sum())
        total += float(logs[token]) - mean
        variance += float((odds * logs**2).sum()) - mean**2
    return total / variance**0.5
