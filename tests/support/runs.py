"""Compiling in tests, running the result on every MNN release that is there, torch as the reference, and terminals."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from backends.mnn.run.native import EXACT_CONFIG, run_model
from backends.mnn.target.environments import LLM_RELEASES, ReleaseEnvironments, installed_version
from backends.mnn.write.configs import config_for
from tools.compile.job import Request, compile_model

MISSING = "no environment of MNN {}: make one with python -m tools.releases, or set LADING_MNN_ENVS"


def interpreters() -> dict[str, str | Path]:
    """Interpreter of each release on this machine: its own environment, or this one for the installed release."""
    import sys

    found: dict[str, str | Path] = dict(ReleaseEnvironments().available())
    found.setdefault(installed_version() or "", sys.executable)
    return {version: path for version, path in found.items() if version in LLM_RELEASES}


def each_release():
    """Parametrize over all releases; a release without an environment is skipped by name."""
    here = interpreters()
    return [
        pytest.param(version, marks=() if version in here else pytest.mark.skip(reason=MISSING.format(version)))
        for version in LLM_RELEASES
    ]


def compiled(source: Path, out: Path, pipeline: str, **options) -> Path:
    """Compile without verification; returns the model directory."""
    compile_model(Request(str(source), out, pipeline, verify="none", **options))
    return out


def run_actions(folder: Path, version: str, actions: Sequence[dict], **settings) -> list[dict]:
    """Results of actions of `backends.mnn.run.native.run_model` with exact arithmetic, all in one process of the
    release."""
    config = config_for(folder, version)
    run = run_model(
        config, actions, overrides={**EXACT_CONFIG, **settings}, interpreter=interpreters()[version], timeout_s=600
    )
    return [dict(result) for result in run.require(str(config)).results]


def pieces(*parts: Sequence[int]) -> dict:
    """The action that feeds token ids to the KV cache in pieces and keeps all logits."""
    return {"do": "forward", "pieces": [list(map(int, part)) for part in parts]}


def logits_of(result: dict) -> np.ndarray:
    """Logits of every position of a `pieces` action, float32[tokens, vocabulary]."""
    return np.concatenate(result["logits"])


def torch_model(source: Path):
    """The original implementation in single precision."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()


def torch_logits(model, ids: Sequence[int]) -> np.ndarray:
    """Logits of every position, float32[tokens, vocabulary]."""
    import torch

    with torch.no_grad():
        return model(torch.tensor([list(map(int, ids))]), use_cache=False).logits[0].numpy()


def torch_greedy(model, prompt: Sequence[int], count: int) -> list[int]:
    """Greedy continuation by the original implementation with its own cache."""
    import torch

    with torch.no_grad():
        out = model.generate(
            torch.tensor([list(map(int, prompt))]), max_new_tokens=count, min_new_tokens=count, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    return out[0, len(prompt) :].tolist()


PIECES = [list(range(5, 40)), [7], [9, 10, 11]]
"""Token ids of a prefill, a single token and a further piece."""


def exact_logits(folder: Path, version: str) -> np.ndarray:
    """Logits of the pieces of `PIECES` in exact arithmetic, float32[tokens, vocabulary]."""
    result = run_model(
        config_for(folder, version),
        [{"do": "forward", "pieces": PIECES}],
        interpreter=interpreters()[version],
        timeout_s=120,
    )
    return np.concatenate(result.require(str(folder)).results[0]["logits"])


def shown_at(width: int, show: Callable[[Console], object]) -> str:
    """What a function prints to a console of a width."""
    stream = io.StringIO()
    show(Console(file=stream, width=width, highlight=False))
    return stream.getvalue()
